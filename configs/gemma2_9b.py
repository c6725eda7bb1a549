"""Gemma-2-9B-it (gated: accept its licence and set HF_TOKEN) in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/gemma2_9b.py --workdir=runs/gemma2_9b
    python scripts/measure.py --config=configs/gemma2_9b.py --workdir=runs/gemma2_9b

Memory: 18.5 GB of weights and 7 GB of cache for 64 rows: one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights,
for which 40 GB are too few; --config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 2,200 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
It has no system role: instructions go in front of the first user message, a blank line between.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("google/gemma-2-9b-it", batch_size=64)
