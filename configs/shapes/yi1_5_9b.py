"""Throughput of the shape of Yi-1.5-9B, random bfloat16 parameters made on the device, no download.

    python scripts/benchmark_throughput.py --config=configs/shapes/yi1_5_9b.py --workdir=runs/shapes/yi1_5_9b

48 layers of D 4096, 32 query heads over 4 of keys and values, F 11008, V 64000.
By the memory formula, batch 420 needs 35 GiB of a device, batch 64 21 GiB and batch 256 29 GiB; JAX takes three
quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more. What does not fit is left out.
Time, by arithmetic and not yet measured: about five minutes on one H100 or H200, most of it compiling.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("yi1_5_9b")
