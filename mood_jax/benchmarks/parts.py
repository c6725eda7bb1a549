"""Parts of a step in other forms: the sampler, and the attention of whole prompts and of one new token.

The Pallas kernels are those that JAX brings. `interpret` runs them without a GPU, which shows what they compute and not
how fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.generation import engine
from mood_jax.generation.sampling import TopP
from mood_jax.models import layers
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import LayerCache, grow_cache


def sorted_top_p(logits: jax.Array, keys: jax.Array, token_index: jax.Array, sampler: TopP) -> jax.Array:
    """Top-p as most programs write it: sort, cumulate, cut, draw. float32 [B, V] → int32 [B]."""
    typed = jax.vmap(lambda k: jax.random.fold_in(k, token_index))(
        jax.random.wrap_key_data(keys, impl=numerics.IMPLEMENTATION)
    )
    order = jnp.argsort(-logits, axis=-1, stable=True)
    weights = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1) / sampler.temperature, axis=-1)
    cumulative = jnp.cumsum(weights, axis=-1)
    kept = jnp.where(cumulative - weights < sampler.p, weights, 0.0)
    target = jax.vmap(jax.random.uniform)(typed) * kept.sum(axis=-1)
    rank = (jnp.cumsum(kept, axis=-1) <= target[:, None]).sum(axis=-1)
    rank = jnp.minimum(rank, (kept > 0).sum(axis=-1) - 1)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)


Attentions = tuple[dict[str, Callable[[], jax.Array]], dict[str, str]]


def _pallas(module: str, name: str, interpret: bool) -> tuple[Any, str]:
    """A kernel of JAX's, or None and why."""
    if jax.default_backend() != "gpu" and not interpret:
        return None, "JAX' Pallas kernels need a GPU"
    try:
        return getattr(importlib.import_module(f"jax.experimental.pallas.ops.gpu.{module}"), name), ""
    except ImportError as e:  # experimental: it may be elsewhere in another release
        return None, f"this JAX does not bring it ({e})"


def prefill_attentions(
    config: DecoderConfig, batch: int, length: int, dtype_name: str, seed: int, interpret: bool = False
) -> Attentions:
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
    mha, why = _pallas("attention", "mha", interpret)
    if mha is None:
        skipped["pallas"] = why
    else:

        @jax.jit
        def pallas(q, k, v):  # it takes a key and a value for every query head
            k, v = (jnp.repeat(x, c.n_heads // c.n_kv_heads, axis=2) for x in (k, v))
            return mha(q, k, v, None, sm_scale=c.query_scale, causal=True, interpret=interpret)

        found["pallas"] = partial(pallas, q, k, v)
    return found, skipped


def decode_attentions(
    config: DecoderConfig, batch: int, slots: int, dtype_name: str, seed: int, interpret: bool = False
) -> Attentions:
    """Attention of one new token a row over a full cache, q [B,1,N,H] → [B,1,N,H]; rows begin at slots of their own.

    Each has keys and values in the order that it reads best. Without soft-caps and windows, which theirs lack.
    """
    c, B = config, batch
    dtype: Any = jnp.dtype(dtype_name)
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.standard_normal((B, 1, c.n_heads, c.head_dim), np.float32), dtype)
    k, v = (jnp.asarray(rng.standard_normal((B, slots, c.n_kv_heads, c.head_dim), np.float32), dtype) for _ in range(2))
    start = jnp.asarray(rng.integers(0, slots // 2, B), jnp.int32)
    mask = jnp.arange(slots)[None, None, :] >= start[:, None, None]
    block = engine.BLOCK.get(jax.devices()[0].platform)
    cache = (LayerCache(k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)),)
    ours_k, ours_v = grow_cache(cache, slots, block)[0]

    @jax.jit
    def ours(q, k, v, mask):
        return layers.attention(q, k, v, mask, c.query_scale, None)

    found = {"ours": partial(ours, q, ours_k, ours_v, mask)}
    theirs = partial(jax.nn.dot_product_attention, scale=c.query_scale, implementation="xla")
    found["xla"] = partial(jax.jit(theirs), q, k, v, mask=mask[:, None])
    skipped = {"cudnn": "takes no mask of the padding on the left"}
    gqa, why = _pallas("decode_attention", "gqa", interpret)
    if gqa is None or slots % 16:
        return found, skipped | {"pallas": why or "needs a multiple of 16 slots"}
    splits = next(n for n in (16, 8, 4, 2, 1) if slots % (16 * n) == 0)  # parts of a cache that are read side by side

    @jax.jit
    def pallas(q, k, v, start):  # it reads [B,K,S,H], whatever it is given
        k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        end = jnp.full(B, slots, jnp.int32)
        about = {"sm_scale": c.query_scale, "k_splits": splits, "interpret": interpret}
        return gqa(q[:, 0], k, v, start, end, **about)[:, None]

    found["pallas"] = partial(pallas, q, k.swapaxes(1, 2), v.swapaxes(1, 2), start)
    return found, skipped
