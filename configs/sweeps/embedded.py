"""The embedded model under three calibration sets and two seeds: how far a score hangs on what is asked.

    python scripts/sweep.py --config=configs/sweeps/embedded.py --workdir=runs/sweep

Six units of about 40 s on two cores, the first somewhat longer for compiling; 2 GB of memory.
"""

from mood_jax.studies.config import EMBEDDED, study_config
from mood_jax.studies.sweep import sweep_config


def get_config():
    model = study_config(
        EMBEDDED, dtype="float32", calibration_tokens=96, profile_tokens=96, batch_size=70, scale="re_read"
    )
    return sweep_config({"embedded": model}, sets=("A", "B", "C"), seeds=(0, 1))
