"""Throughput of a shape of 5 M parameters like Qwen2.5, in float32: the same benchmark without a GPU.

    python scripts/benchmark_throughput.py --config=configs/shapes/tiny.py --workdir=runs/shapes/tiny

4 layers of D 256, 8 query heads over 4 of keys and values, F 688, V 4096. About a minute on two CPU cores and 1.5 GB of
memory. Its figures say nothing about a model of 7 B; what they show is what the benchmark prints.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("tiny", dtype="float32", batch_sizes=(16, 64), new_tokens=60, repeats=3)
