"""The small model that ships with the package: no download, two CPU cores are enough.

    python scripts/calibrate.py --config=configs/embedded.py --workdir=runs/demo
    python scripts/measure.py --config=configs/embedded.py --workdir=runs/demo

Memory: under 2 GB. Time: about a minute for both on two cores, most of it compiling.

The score is printed in the scale `re_read` here: this model obeys its instructions so well that the responses fall into
two far clumps, and the median of the pooled projections, the zero of the scale `iqr`, may lie anywhere between them.
"""

from mood_jax.studies.config import EMBEDDED, study_config


def get_config():
    return study_config(
        EMBEDDED, dtype="float32", calibration_tokens=96, profile_tokens=96, batch_size=70, scale="re_read"
    )
