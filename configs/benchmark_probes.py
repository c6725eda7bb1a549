"""The probes' speed beside numpy, scipy and scikit-learn: the sizes of a 32-layer model and of the published ablation.

    python scripts/benchmark_probes.py --config=configs/benchmark_probes.py --workdir=runs/benchmark

takes about twenty seconds on 2 quiet CPU cores and 2 GB of memory, and writes benchmark_probes.json.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The sizes of a 32-layer model and of the published ablation."""
    return ConfigDict(
        {
            "seed": 0,
            "sites": 33,
            "d_model": 4096,
            "axes": 8,
            "rules": 4,
            "questions": 20,  # per axis; three quarters train
            "logistic_axes": 7,
            "readouts": 164,
            "references": 20,  # readouts that the references are timed on
        }
    )
