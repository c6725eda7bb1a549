"""Loading a synthetic checkpoint of several gigabytes: memory against its bound, time against plain reading.

    python scripts/benchmark_loading.py --config=configs/benchmark_loading.py --workdir=runs/loading [--config.bytes=…]

Disk: twice `bytes` in the workdir while it runs (the checkpoint and its cache), nothing but loading.json afterwards.
Memory: `bytes`, or twice that with --config.dtype=float32. Time: about two minutes on two cores. Expected: a peak of
less than 1.25 × the larger of one file and the parameters, and not much more time than reading the files takes.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.bytes = 3_000_000_000  # of the checkpoint, in bfloat16, about
    config.files = 3
    config.dtype = "bfloat16"  # that it is loaded in: bfloat16 or float32
    config.mesh_model = 1  # devices that share the weights; more than 1 are simulated on a CPU
    config.repeats = 3  # of every measurement, in turn, each in a process of its own; the median is shown
    config.keep = False  # leave the checkpoint and its cache in the workdir
    return config
