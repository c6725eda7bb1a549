"""Mistral: v0.1 (window of 4 096 in every block), v0.2 and v0.3 (no window), Nemo (head size ≠ D / N).

A config with `layer_types` has windows in some blocks only; transformers calls that Ministral and computes the same.
"""

from __future__ import annotations

from typing import Any

from mood_jax.models.config import DecoderConfig
from mood_jax.models.families import common

MODEL_TYPE = "mistral"


def decoder_config(hf: Any) -> DecoderConfig:
    head_dim = common.head_dim(hf)
    alternating = vars(hf).get("layer_types") is not None
    return DecoderConfig(
        family=MODEL_TYPE,
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        windows=common.layer_type_windows(hf) if alternating else (common.window(hf),) * hf.num_hidden_layers,
        activation=common.activation(hf.hidden_act),
        **common.sizes(hf),
    )


def tensor_names(config: DecoderConfig) -> dict[str, str]:
    return common.tensor_names(config, common.NORMS)
