"""Throughput of the shape of Gemma-2-9B, random bfloat16 parameters made on the device, no download.

    python scripts/benchmark_throughput.py --config=configs/shapes/gemma2_9b.py --workdir=runs/shapes/gemma2_9b

42 layers of D 3584, 16 query heads of 256 over 8 of keys and values, F 14336, V 256000, tied,
soft-caps, a window of 4096 in every other layer.
By the memory formula, batch 420 needs 65 GiB of a device, batch 64 26 GiB and batch 256 47 GiB; JAX takes three
quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more. What does not fit is left out.
Time, by arithmetic and not yet measured: about five minutes on one H100 or H200, most of it compiling.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("gemma2_9b")
