"""Mistral: v0.1 (window of 4 096 in every block), v0.2 and v0.3 (no window), Nemo (head size ≠ D / N)."""

from __future__ import annotations

from typing import Any

from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import common

MODEL_TYPE = "mistral"


def decoder_config(hf: Any) -> DecoderConfig:
    return DecoderConfig(
        family=MODEL_TYPE,
        head_dim=hf.head_dim,
        query_scale=hf.head_dim**-0.5,
        windows=(common.window(hf),) * hf.num_hidden_layers,
        activation=common.activation(hf.hidden_act),
        **common.sizes(hf),
    )


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    return common.tensor_names(config, common.NORMS)
