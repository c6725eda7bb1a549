"""Yi-1.5-9B-Chat in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/yi1_5_9b.py --workdir=runs/yi1_5_9b
    python scripts/measure.py --config=configs/yi1_5_9b.py --workdir=runs/yi1_5_9b

Memory: 17.7 GB of weights and 4 GB of cache for 128 rows: one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights,
for which 40 GB are too few; --config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 1,400 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("01-ai/Yi-1.5-9B-Chat", batch_size=128)
