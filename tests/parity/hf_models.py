"""Tiny random HF models of the families, in torch, and their folders: what the parity and generation tests run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from mood_jax import parity
from tests.fixtures.tokenizers import VOCAB_SIZE


def tiny(family: str, seed: int = 0, **overrides: Any) -> tuple[Any, Any]:
    """(model, config): float32, eval mode, eager attention, random weights of a size at which wrong code shows.

    `family` is one of `parity.TINY`; everything but the sizes has the published value unless overridden. The vocabulary
    is that of the family's test tokenizer.
    """
    vocab_size = VOCAB_SIZE[family if family in VOCAB_SIZE else "mistral_v3"]
    config = parity.tiny_config(family, **({"vocab_size": vocab_size} | overrides))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(parity.random_tensor(name, p.shape, family == "gemma2", rng)))
    return model, model.config


def save(model: Any, folder: Path, shards: int = 1) -> Path:
    """Saves a model in HF form, in about `shards` safetensors files (with an index from two on)."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // shards if shards > 1 else size * 2)
    return folder
