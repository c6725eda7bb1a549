"""Gemma 2: (1 + w) norms before and after each sublayer, scaled embedding, own query scale, soft-caps, every other
block windowed."""

from __future__ import annotations

from typing import Any

from mood_jax.errors import UserError
from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import common

MODEL_TYPE = "gemma2"

NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "post_feed_forward_norm",
}


def decoder_config(hf: Any) -> DecoderConfig:
    if hf.use_bidirectional_attention:
        raise UserError("config.json: use_bidirectional_attention is set; only causal Gemma 2 models are supported")
    if not common.is_number(hf.query_pre_attn_scalar) or hf.query_pre_attn_scalar <= 0:
        raise UserError(
            f"config.json: query_pre_attn_scalar is {hf.query_pre_attn_scalar}; it must be positive: compare it with "
            "the original"
        )
    return DecoderConfig(
        family=MODEL_TYPE,
        head_dim=common.head_dim(hf),
        query_scale=hf.query_pre_attn_scalar**-0.5,
        windows=common.layer_type_windows(hf),
        activation=common.activation(hf.hidden_activation),
        qkv_bias=hf.attention_bias,
        o_bias=hf.attention_bias,
        norm_plus_one=True,
        post_norms=True,
        embed_scale=hf.hidden_size**0.5,
        attn_softcap=hf.attn_logit_softcapping,
        final_softcap=hf.final_logit_softcapping,
        **common.sizes(hf),
    )


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    return common.tensor_names(config, NORMS)
