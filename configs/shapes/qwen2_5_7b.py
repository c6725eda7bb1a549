"""Throughput of the shape of Qwen2.5-7B, random bfloat16 parameters made on the device, no download.

    python scripts/benchmark_throughput.py --config=configs/shapes/qwen2_5_7b.py --workdir=runs/shapes/qwen2_5_7b

28 layers of D 3584, 28 query heads over 4 of keys and values, F 18944, V 152064.
By the memory formula, batch 420 needs 28 GiB of a device, batch 64 18 GiB and batch 256 23 GiB; JAX takes three
quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more. What does not fit is left out.
Time, by arithmetic and not yet measured: about five minutes on one H100 or H200, most of it compiling.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("qwen2_5_7b")
