"""Llama-3.1-8B-Instruct (gated: accept its licence and set HF_TOKEN) in bfloat16, on one accelerator.

    python scripts/calibrate.py --config=configs/llama3_1_8b.py --workdir=runs/llama3_1_8b
    python scripts/measure.py --config=configs/llama3_1_8b.py --workdir=runs/llama3_1_8b

Memory: 16.1 GB of weights and 5 GB of cache for 128 rows: one 40 GB device, or several smaller
ones with --config.mesh_model=N. Calibrating takes the room of the weights twice, for a control with random weights;
--config.random_weights=False does without it.
Time, by arithmetic and not yet measured: 590 responses are about 1,400 decode steps, each at least as long as one
reading of the weights (8 ms at 2 TB/s), so under a minute of decoding; loading, compiling and reading again add a few
minutes.
The date in its template is fixed to 26 Jul 2024, so that a prompt means the same every day.
"""

from mood_jax.studies.config import study_config


def get_config():
    return study_config("meta-llama/Llama-3.1-8B-Instruct", batch_size=128)
