"""Mistral-7B-Instruct-v0.3 in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/mistral_7b.py --workdir=runs/mistral_7b
    python scripts/measure.py --config=configs/mistral_7b.py --workdir=runs/mistral_7b

Memory: 14.5 GB of weights and 5 GB of cache for 128 rows: one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights;
--config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 1,400 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("mistralai/Mistral-7B-Instruct-v0.3", batch_size=128)
