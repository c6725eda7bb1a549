"""Qwen2 and Qwen2.5: biases on q, k and v; a window on the upper blocks only where the config switches it on."""

from __future__ import annotations

from typing import Any

from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import common

MODEL_TYPE = "qwen2"


def decoder_config(hf: Any) -> DecoderConfig:
    head_dim = common.head_dim(hf)
    return DecoderConfig(
        family=MODEL_TYPE,
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        windows=common.layer_type_windows(hf),
        activation=common.activation(hf.hidden_act),
        qkv_bias=True,
        **common.sizes(hf),
    )


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    return common.tensor_names(config, common.NORMS)
