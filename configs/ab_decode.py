"""Other ways to write the decode loop against ours, in turns: layers, chunks, cache layouts, fused products, samplers.

    python scripts/ab_decode.py --config=configs/ab_decode.py --workdir=runs/ab
    XLA_PYTHON_CLIENT_PREALLOCATE=false \
        python scripts/ab_decode.py --config=configs/ab_decode.py:qwen2_5_7b --workdir=runs/ab_7b

The first takes a Llama of 7.9 M parameters in float32: about four minutes on two quiet CPU cores, half of them spent
compiling, and 2 GB of memory. The second takes one of `mood_jax/benchmarks/shapes.py` in bfloat16 on a GPU, where
cuDNN's attention and XLA's flags are measured too (the flags in processes of their own, hence the variable); it needs
room for the weights twice. On a CPU beside other work, --config.clock=cpu counts what this process computes.
One experiment alone: --config.experiments="('samplers',)".
"""

from ml_collections import ConfigDict

from mood_jax.benchmarks.shapes import fields


def get_config(shape: str = "small") -> ConfigDict:
    """The A/B list on one of the shapes."""
    small = shape in ("small", "tiny")
    return ConfigDict(
        {
            "shape": fields(shape),  # as in the model's config.json
            "dtype": "float32" if small else "bfloat16",
            # of layers, chunks, cache, fused, samplers, attention, flags
            "experiments": ("layers", "chunks", "cache", "fused", "samplers", "attention", "flags"),
            "rounds": 7,
            "clock": "wall",  # or cpu, which is of no use where another device does the work
            "batch_size": 64 if small else 256,
            "prompt_tokens": 60,
            "new_tokens": 100 if small else 200,  # of `chunks`; the others decode at most 64
            "vocabularies": (4096, 32000, 152064),  # of `samplers`
            "attention_tokens": (64, 256),  # lengths of prompts, and of the cache of a new token, of `attention`
            "seed": 0,
        }
    )
