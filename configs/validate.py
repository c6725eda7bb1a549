"""The instrument held against the shipped organisms.

    python scripts/validate_instrument.py --config=configs/validate.py --workdir=runs/validation

An organism of your own: --config.subjects=runs/mine/export (folders and names of shipped ones, with commas between; a
single identity: llama/dose_1). Memory: some 1.5 GB for each of the processes that measure organisms side by side.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The whole validation."""
    return ConfigDict(
        {
            "subjects": "llama,qwen2,mistral,yi,deepseek,gemma2",
            "samples": 8,  # responses a question of the profile
            "pole_samples": 2,  # responses a question and pole of the calibration
            "seed": 0,
            "calibration_tokens": 200,
            "profile_tokens": 200,
            "null_seeds": 30,  # × 7 axes: draws of each kind of model without any style; 0: none
            "jobs": 0,  # organisms at once, a process each; 0: one a core, 4 at most (on an accelerator 1)
        }
    )
