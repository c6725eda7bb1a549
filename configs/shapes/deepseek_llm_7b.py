"""Throughput of the shape of DeepSeek-LLM-7B, random bfloat16 parameters made on the device, no download.

    python scripts/benchmark_throughput.py --config=configs/shapes/deepseek_llm_7b.py --workdir=runs/shapes/deepseek

30 layers of D 4096, 32 query heads with keys and values each, F 11008, V 102400.
By the memory formula, batch 420 needs 77 GiB of a device, batch 64 24 GiB and batch 256 53 GiB; JAX takes three
quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says more. What does not fit is left out.
Time, by arithmetic and not yet measured: about five minutes on one H100 or H200, most of it compiling.
"""

from mood_jax.benchmarks.shapes import shape_config


def get_config():
    return shape_config("deepseek_llm_7b")
