"""Does our decoder compute what transformers computes?

    python scripts/check_parity.py --config=configs/parity.py --config.model=FOLDER_OR_HUB_ID
    python scripts/check_parity.py --config=configs/parity.py --config.model=tiny --config.dtype=both

Needs torch (pip install 'mood_jax[test]'), which computes in float32 on the host's CPU: 4 bytes of memory a parameter,
32 GB for 8 B. Our model is loaded before it and freed. The second command makes and checks a tiny random model in the
style of each published family, in about half a minute on 2 cores.
Expected: PASS, with max|Δ| about 1e-6 in float32 and cosines above 0.9995 in bfloat16 for the tiny models.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.model = "tiny"  # a checkpoint folder, a hub id, or "tiny" for one random model of each family
    c.dtype = "float32"  # "float32", "bfloat16" or "both"
    c.revision = config_dict.placeholder(str)  # of a hub id
    c.offline = False  # look in the local hub cache only
    c.tolerance = 1e-4  # float32 passes when every site's max|Δ| ≤ tolerance · max|reference|
    c.min_cosine = 0.999  # bfloat16 passes when every token's cosine reaches this at every site; logits included
    c.seed = 0  # of the random weights and, where there is no tokenizer, of the random token ids
    return c
