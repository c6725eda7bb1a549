"""Parts of a step in other forms: the sampler and the attention of whole prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.generation.sampling import TopP
from mood_jax.models import layers
from mood_jax.models.config import DecoderConfig


def sorted_top_p(logits: jax.Array, keys: jax.Array, token_index: jax.Array, sampler: TopP) -> jax.Array:
    """Top-p as most programs write it: sort, cumulate, cut, draw. float32 [B, V] → int32 [B]."""
    typed = jax.vmap(lambda k: jax.random.fold_in(k, token_index))(jax.random.wrap_key_data(keys, impl="threefry2x32"))
    order = jnp.argsort(-logits, axis=-1, stable=True)
    weights = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1) / sampler.temperature, axis=-1)
    cumulative = jnp.cumsum(weights, axis=-1)
    kept = jnp.where(cumulative - weights < sampler.p, weights, 0.0)
    target = jax.vmap(jax.random.uniform)(typed) * kept.sum(axis=-1)
    rank = (jnp.cumsum(kept, axis=-1) <= target[:, None]).sum(axis=-1)
    rank = jnp.minimum(rank, (kept > 0).sum(axis=-1) - 1)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)


def prefill_attentions(
    config: DecoderConfig, batch: int, length: int, dtype_name: str, seed: int
) -> tuple[dict[str, Callable[[], jax.Array]], dict[str, str]]:
    """Attention of whole prompts, each from q [B,T,N,H] and k, v [B,T,K,H] → [B,T,N,H]; and what cannot run here.

    Ours includes the transposition into the cache's order. Without soft-caps and windows, which theirs lack.
    """
    c, B = config, batch
    skipped = {}
    dtype: Any = jnp.dtype(dtype_name)
    rng = np.random.default_rng(seed)
    q, k, v = (
        jnp.asarray(rng.standard_normal((B, length, heads, c.head_dim), np.float32), dtype)
        for heads in (c.n_heads, c.n_kv_heads, c.n_kv_heads)
    )
    mask = jnp.asarray(np.broadcast_to(np.tri(length, dtype=bool), (B, length, length)))
    found = {}

    @jax.jit
    def ours(q, k, v, mask):
        return layers.attention(q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), mask, c.query_scale, None)

    found["ours"] = lambda: ours(q, k, v, mask)
    theirs = partial(jax.nn.dot_product_attention, scale=c.query_scale)
    found["xla"] = partial(jax.jit(partial(theirs, implementation="xla")), q, k, v, mask=mask[:, None])
    if jax.default_backend() != "gpu" or dtype == jnp.float32:
        skipped["cudnn"] = "needs a GPU and bfloat16"
    else:  # causal alone: it takes no mask of the padding on the left
        found["cudnn"] = partial(jax.jit(partial(theirs, implementation="cudnn", is_causal=True)), q, k, v)
    return found, skipped
