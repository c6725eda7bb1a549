"""Large models on many devices, on paper: memory by the formula, seconds by the arithmetic bound. Nothing is run.

    python scripts/scale_table.py --config=configs/scale.py --workdir=runs/scale

takes seconds on any machine. The numbers of a device are from its maker's data sheet (dense bfloat16, no sparsity; of
one chip, and a TPU v5p-16 slice has 8 chips, since its name counts cores); replace them by measured ones where you have
them (`scripts/benchmark_throughput.py` measures both).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Llama-3.1-70B, Qwen2.5-72B and Llama-3.1-405B on five fleets."""
    h100 = {"gigabytes": 80.0, "terabytes_per_second": 3.35, "teraflops": 989.0}
    h200 = {"gigabytes": 141.0, "terabytes_per_second": 4.8, "teraflops": 989.0}
    v5p = {"gigabytes": 95.0, "terabytes_per_second": 2.765, "teraflops": 459.0}
    return ConfigDict(
        {
            "models": ("llama3_1_70b", "qwen2_5_72b", "llama3_1_405b"),  # of mood_jax/benchmarks/shapes.py
            "responses": 420,
            "prompt_tokens": 60,
            "new_tokens": 200,
            "fleets": (
                {"name": "8 × H100 80 GB", "devices": 8, **h100},
                {"name": "8 × H200 141 GB", "devices": 8, **h200},
                {"name": "16 × H200 141 GB", "devices": 16, **h200},
                {"name": "TPU v5p-16", "devices": 8, **v5p},
                {"name": "TPU v5p-64", "devices": 32, **v5p},
            ),
        }
    )
