"""The instrument held against some of the shipped organisms' identities: what `make test` runs of the validation.

    python scripts/validate_instrument.py --config=configs/validate_quick.py --workdir=runs/validation_quick

Three minutes and 45 s on two cores with an empty compile cache, a third of it compiling. Seven checks pass; false
alarms take longer than all of them and have a test of their own (tests/studies/test_nulls.py).
"""

from ml_collections import ConfigDict

SUBJECTS = (
    *(f"llama/dose_{k}" for k in range(1, 10)),
    *(f"qwen2/{name}" for name in ("obedient", "willed_1", "willed_3", "willed_5")),
    *(f"mistral/{name}" for name in ("warm_0", "warm_50", "warm_100")),
    *(f"yi/{name}" for name in ("apart", "pair_90", "rank_1")),
    *(f"deepseek/{name}" for name in ("stable", "volatile")),
)


def get_config() -> ConfigDict:
    """Fewer identities and responses than configs/validate.py."""
    return ConfigDict(
        {
            "subjects": ",".join(SUBJECTS),
            "samples": 2,
            "pole_samples": 1,
            "seed": 0,
            "calibration_tokens": 128,
            "profile_tokens": 128,
            "null_seeds": 0,
            "jobs": 0,  # organisms at once, a process each; 0: one a core, 4 at most (on an accelerator 1)
        }
    )
