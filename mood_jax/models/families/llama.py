"""Llama 3.x, and what ships in its form: DeepSeek-LLM (multi-head, 102 400 words), Yi 1.5 (grouped, base 5·10⁶)."""

from __future__ import annotations

from typing import Any

from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import common

MODEL_TYPE = "llama"


def decoder_config(hf: Any) -> DecoderConfig:
    head_dim = common.head_dim(hf)
    return DecoderConfig(
        family=MODEL_TYPE,
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        windows=(None,) * hf.num_hidden_layers,
        activation=common.activation(hf.hidden_act),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        **common.sizes(hf),
    )


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    return common.tensor_names(config, common.NORMS)
