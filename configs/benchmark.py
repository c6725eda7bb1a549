"""Throughput beside Hugging Face's `generate`: same checkpoint, prompts, precision and token counts.

    python scripts/benchmark_throughput.py --config=configs/benchmark.py --workdir=runs/benchmark

takes four minutes on 2 quiet CPU cores (11 beside other work) and 2 GiB of memory. It prints tokens/s of HF
at batch 1, HF batched and mood_jax, their ratios, what reading the states costs, compile seconds and peak memory, and
writes benchmark.json. For a real checkpoint add --config.model=FOLDER_OR_HUB_ID (and --config.dtype=bfloat16).

One CPU is one device to JAX. Two, with half of the batch each, keep two cores busier:
XLA_FLAGS=--xla_force_host_platform_device_count=2 in front of the command and --config.mesh_data=2 behind it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A random Llama of 7.9 M parameters."""
    return ConfigDict(
        {
            "model": "",  # a folder or hub id; "" is a random Llama of the sizes below
            "revision": "",  # of a hub id
            "dtype": "float32",  # or bfloat16
            "batch_size": 64,
            "prompt_tokens": 60,
            "new_tokens": 100,  # of every response: the end-of-sequence ids are switched off
            "repeats": 5,  # rounds of HF beside ours; medians are of these
            "single_responses": 2,  # a round, for HF at batch 1
            "site_repeats": 15,  # rounds of ours without, with four and with all sites
            "mesh_data": 1,  # devices over which batch rows are spread
            "mesh_model": 1,  # devices over which heads, feed-forward and vocabulary are spread
            "torch_threads": 0,  # 0: torch's own choice
            "seed": 0,
            "vocab_size": 4096,
            "d_model": 256,
            "n_layers": 8,
            "n_heads": 8,
            "n_kv_heads": 4,
            "d_ff": 688,
        }
    )
