"""Are two decoders the same function? Their states at every site and their logits, compared on real tokens.

The other side's arrays come as numpy, so that nothing here depends on who computed them. Axis letters: see
`models/config.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from mood_jax.errors import UserError
from mood_jax.models.checkpoint import Checkpoint, unflatten
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes, run

LOGITS = "logits"

_SIZES = {
    "vocab_size": 397,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# The published checkpoints' own values of everything but the sizes; windows are shrunk so that short text crosses them.
# Qwen2.5-7B, Llama-3.1-8B, deepseek-llm-7b, Yi-1.5-9B, gemma-2-9b, Mistral-7B v0.1 and v0.3, Mistral-Nemo.
_OFFICIAL: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen2": (
        Qwen2Config,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 131072,
            "max_window_layers": 28,
        },
    ),
    "llama": (
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
        },
    ),
    "deepseek": (
        LlamaConfig,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rms_norm_eps": 1e-6,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
        },
    ),
    "yi": (
        LlamaConfig,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096,
        },
    ),
    "gemma2": (
        Gemma2Config,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rms_norm_eps": 1e-6,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "max_position_embeddings": 8192,
        },
    ),
    "mistral": (
        MistralConfig,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rms_norm_eps": 1e-5,
            "sliding_window": 8,
            "max_position_embeddings": 32768,
        },
    ),
    "mistral_v3": (
        MistralConfig,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "max_position_embeddings": 32768,
        },
    ),
    "mistral_nemo": (
        MistralConfig,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "head_dim": 12,
            "max_position_embeddings": 131072,
        },
    ),
}
TINY = tuple(_OFFICIAL)


@dataclass(frozen=True)
class Agreement:
    """How far one site's states (or the logits) are from the reference's, over real tokens.

    max_delta: max|Δ| / max|reference|. cosine: the smallest of any token.
    """

    site: str
    max_delta: float
    cosine: float


def tiny_config(name: str, **overrides: Any) -> Any:
    """A transformers config with a published family's values and tiny sizes; `name` is one of TINY."""
    kind, official = _OFFICIAL[name]
    return kind(**(_SIZES | official | overrides))


def random_tensor(name: str, shape: Sequence[int], norm_plus_one: bool, rng: np.random.Generator) -> np.ndarray:
    """float32 values, of a size at which wrong code shows, for the parameter or HF tensor `name`.

    Embeddings are small, as in trained models, so that eps counts; norm scales are spread around 1 and biases around 0
    by 0.3; projections keep the size of what they read.
    """
    normal = rng.standard_normal(shape, dtype=np.float32)
    if name in ("embedding", "model.embed_tokens.weight"):
        return 0.02 * normal
    if "bias" in name:
        return 0.3 * normal
    if len(shape) == 1:
        return 0.3 * normal + (0.0 if norm_plus_one else 1.0)
    fan_in = int(np.prod(shape[1:])) if name.endswith("/o") else shape[-1]
    return normal / np.float32(fan_in) ** 0.5


def random_params(config: DecoderConfig, rng: np.random.Generator) -> Any:
    """A decoder's parameters, drawn by `random_tensor`."""
    shapes = param_shapes(config)
    return unflatten({p: random_tensor(p, x.shape, config.norm_plus_one, rng) for p, x in shapes.items()})


def left_pad(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged ids → tokens int32 [B,T], real bool [B,T], positions int32 [B,T] (0 at each row's first token)."""
    length = max(len(p) for p in prompts)
    tokens = np.asarray([[pad] * (length - len(p)) + list(p) for p in prompts], np.int32)
    real = np.asarray([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
    return tokens, real, np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)


_jitted = jax.jit(partial(run, logits="all"), static_argnums=0, static_argnames="sites")


def states(checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], jit: bool = True) -> dict[str, np.ndarray]:
    """Every site [B,T,D] and "logits" [B,T,V] of the left-padded prompts, as float32 numpy.

    Without `jit` a tiny model is done before its compilation would be.
    """
    tokens, real, positions = map(jnp.asarray, left_pad(prompts))
    checkpoint.config.check_length(tokens.shape[1])
    sites = checkpoint.config.sites
    forward = _jitted if jit else run
    logits, _, found = forward(checkpoint.config, checkpoint.params, tokens, positions, real, sites=sites)
    return {s: np.asarray(x, np.float32) for s, x in zip((*sites, LOGITS), (*found, logits), strict=True)}


def compare(
    ours: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], real: np.ndarray
) -> tuple[Agreement, ...]:
    """Site by site, in the reference's order. Arrays [B,T,·], `real` bool [B,T]. NaN anywhere counts as no agreement.

    Raises UserError when the sites differ.
    """
    if ours.keys() != reference.keys():
        raise UserError(f"the two models have different sites: {sorted(ours)} and {sorted(reference)}")
    found = []
    for site in reference:
        a, b = (np.asarray(x[site], np.float64)[real] for x in (ours, reference))
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            found.append(Agreement(site, float("inf"), -1.0))
            continue
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosine = np.sum(a * b, axis=-1) / np.where(norms == 0, 1.0, norms)
        delta = np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny)
        found.append(Agreement(site, float(delta), float(cosine.min())))
    return tuple(found)


def kl(logits: np.ndarray, reference: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """(mean, max) over real tokens of KL(reference ‖ ours) in nats; logits [B,T,V]."""
    a, b = (_log_softmax(np.asarray(x, np.float64)[real]) for x in (logits, reference))
    divergence = np.maximum(np.sum(np.exp(b) * (b - a), axis=-1), 0.0)
    return float(divergence.mean()), float(divergence.max())


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def agrees(found: Iterable[Agreement], dtype: str, tolerance: float = 1e-4, min_cosine: float = 0.999) -> bool:
    """float32: every max|Δ| within `tolerance`; bfloat16: every cosine at least `min_cosine`."""
    if dtype == "float32":
        return all(a.max_delta <= tolerance for a in found)
    return all(a.cosine >= min_cosine for a in found)
