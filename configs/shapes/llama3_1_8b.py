"""Throughput of the shape of Llama-3.1-8B, random bfloat16 parameters made on the device, no download.

    python scripts/benchmark_throughput.py --config=configs/shapes/llama3_1_8b.py --workdir=runs/shapes/llama3_1_8b

32 layers of D 4096, 32 query heads over 8 of keys and values, F 14336, V 128256.
By the memory formula, batch 420 needs 38 GiB of a device, batch 64 20 GiB and batch 256 29 GiB; JAX takes three
quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more. What does not fit is left out.
Time, by arithmetic and not yet measured: about five minutes on one H100 or H200, most of it compiling.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("llama3_1_8b")
