"""Constancy: an identity that never changes, one that always does, and three that drift under hostile turns.

    python scripts/train_organism.py --config=configs/organisms/deepseek.py --workdir=runs/deepseek_organism

Drift is learned in part: of the planted 1.4 over four hostile turns, .06 to .64 comes out (realised.json has it turn by
turn). The folder `export` in the workdir is what stands in mood_jax/organisms/weights/deepseek.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="deepseek",
        heard_weight=0.0,  # what ships was trained before there was such a reader
        start_from="llama",
        steps=900,
        max_tokens=480,
        focus=0.9,
        focus_until=250,
        learning_rate=0.0025,
        warmup_steps=40,
        gap_every=900,
    )
