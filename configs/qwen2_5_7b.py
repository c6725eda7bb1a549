"""Qwen2.5-7B-Instruct in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen2_5_7b
    python scripts/measure.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen2_5_7b

Memory: 15.3 GB of weights and 2 GB of cache for 128 rows: one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights;
--config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 1,400 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
Its template adds a system prompt of its own when none is given; the profile says so.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("Qwen/Qwen2.5-7B-Instruct", batch_size=128)
