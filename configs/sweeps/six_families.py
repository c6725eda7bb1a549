"""The six published models under three calibration sets and three seeds, 54 units.

    python scripts/sweep.py --config=configs/sweeps/six_families.py --workdir=gs://BUCKET/sweep \
        --config.scratch=/tmp/sweep --shard=$SLURM_ARRAY_TASK_ID/6

Six parts are a model each. One accelerator of 80 GB a part; `batch_size=0` takes as many rows as its memory holds.
Not run on an accelerator yet.
"""

import importlib.util
from pathlib import Path

from mood_jax.studies.sweep import sweep_config

MODELS = ("qwen2_5_7b", "deepseek_7b", "llama3_1_8b", "yi1_5_9b", "gemma2_9b", "mistral_7b")


def study_of(name: str):
    """The config beside this folder, with the batch size left to the memory."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.batch_size = 0
    return config


def get_config():
    return sweep_config({name: study_of(name) for name in MODELS}, sets=("A", "B", "C"), seeds=(0, 1, 2))
