"""The decode step in other forms than the decoder's, for A/B measurements alone. Axis letters: see `models/config.py`.

Every form computes what `models.decoder.run` computes for one token a row, from the same functions in
`models/layers.py`, with its parameters and its cache in another arrangement:

    layers   unrolled (one program a layer, as the decoder) or scanned (one, over parameters stacked along L)
    layout   of the cache: "jkhc" K [B,J·K,H,C] and V [B,K,S,H] (the decoder's), "khs" K [B,K,H,S] and V [B,K,S,H],
             "ksh" both [B,K,S,H], "skh" both [B,S,K,H]
    qkv      three kernels, or one of them joined
    gate_up  two kernels, or one of them joined
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from mood_jax.models import layers
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import Cache, grow_cache, rotary


@dataclass(frozen=True)
class Form:
    """How a decode step is written. The default is the decoder's own."""

    layers: Literal["unrolled", "scanned"] = "unrolled"
    layout: Literal["jkhc", "khs", "ksh", "skh"] = "jkhc"
    fused_qkv: bool = False
    fused_gate_up: bool = False


def arrange_params(form: Form, config: DecoderConfig, params: Any) -> tuple[Any, Any]:
    """Parameters of the decoder → (blocks, the rest): blocks a list of L, or one tree stacked along L."""
    blocks = []
    for i in range(config.n_layers):
        block = {k: dict(v) for k, v in params[f"block_{i}"].items()}
        if form.fused_qkv:
            block["attention"] = _joined(block["attention"], ("q", "k", "v"), "qkv")
        if form.fused_gate_up:
            block["feed_forward"] = _joined(block["feed_forward"], ("gate", "up"), "gate_up")
        blocks.append(block)
    rest = {k: v for k, v in params.items() if not k.startswith("block_")}
    return (jax.tree.map(lambda *x: jnp.stack(x), *blocks) if form.layers == "scanned" else blocks), rest


def _joined(tree: dict[str, Any], parts: tuple[str, ...], name: str) -> dict[str, Any]:
    """Kernels (and biases) of one input joined along their first axis, heads and head size kept apart."""
    kept = {k: v for k, v in tree.items() if k.removesuffix("_bias") not in parts}
    kept[name] = jnp.concatenate([tree[p] for p in parts])
    if f"{parts[0]}_bias" in tree:
        kept[f"{name}_bias"] = jnp.concatenate([tree[f"{p}_bias"] for p in parts])
    return kept


_FROM = {"khs": ("bkhs->bkhs", "bksh->bksh"), "ksh": ("bkhs->bksh", "bksh->bksh"), "skh": ("bkhs->bskh", "bksh->bskh")}
_SLOTS = {"khs": (3, 2), "ksh": (2, 2), "skh": (1, 1)}  # the axis of the slots in K and in V
_READ = {
    "khs": ("bkth,bkhs->bkts", "bkts,bksh->bkth"),
    "ksh": ("bkth,bksh->bkts", "bkts,bksh->bkth"),
    "skh": ("bkth,bskh->bkts", "bkts,bskh->bkth"),
}
_NEW = {"khs": ((0, 2, 3, 1), (0, 2, 1, 3)), "ksh": ((0, 2, 1, 3), (0, 2, 1, 3)), "skh": ((0, 1, 2, 3), (0, 1, 2, 3))}
_NEW["jkhc"], _SLOTS["jkhc"] = _NEW["khs"], _SLOTS["khs"]  # one column of one block


def arrange_cache(form: Form, cache: Cache) -> Any:
    """The decoder's cache → a list of (K, V) a layer in this form's layout, or K and V [L, …] where layers are scanned.

    The arrays are new, so that a step may be given them to overwrite.
    """
    if form.layout == "jkhc":
        pairs = [(c.k + 0, c.v + 0) for c in cache]
    else:
        to_k, to_v = _FROM[form.layout]
        whole = grow_cache(cache, cache[0].v.shape[2])  # keys in one block
        pairs = [(jnp.einsum(to_k, c.k) + 0, jnp.einsum(to_v, c.v) + 0) for c in whole]
    return jax.tree.map(lambda *x: jnp.stack(x), *pairs) if form.layers == "scanned" else pairs


def _attention(form: Form, config: DecoderConfig, q, k, v, mask):
    """As `layers.attention`, with K and V in this form's layout: q [B,1,N,H], mask [B,1,1,S] → [B,1,N,H]."""
    if form.layout == "jkhc":
        return layers.attention(q, k, v, mask[:, 0], config.query_scale, config.attn_softcap)
    B, T, N, H = q.shape
    K = config.n_kv_heads
    scores, mix = _READ[form.layout]
    precision = layers.precision(k.dtype)
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * T, H)
    logits = jnp.einsum(scores, q, k, preferred_element_type=jnp.float32, precision=precision)
    logits = layers.softcap(logits * config.query_scale, config.attn_softcap)
    logits += jnp.where(mask, 0.0, layers.MASKED)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum(mix, weights.astype(v.dtype), v, preferred_element_type=jnp.float32, precision=precision)
    out = (out / total).astype(v.dtype)
    return out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _projections(form: Form, config: DecoderConfig, p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    N, K = config.n_heads, config.n_kv_heads
    if form.fused_qkv:
        whole = layers.linear(x, p["qkv"], p.get("qkv_bias"))
        return whole[:, :, :N], whole[:, :, N : N + K], whole[:, :, N + K :]
    q, k, v = (layers.linear(x, p[name], p.get(f"{name}_bias")) for name in "qkv")
    return q, k, v


def _feed_forward(form: Form, config: DecoderConfig, p: Any, x: jax.Array) -> jax.Array:
    if form.fused_gate_up:
        gate, up = jnp.split(layers.linear(x, p["gate_up"], p.get("gate_up_bias")), 2, axis=-1)
    else:
        gate, up = (layers.linear(x, p[name], p.get(f"{name}_bias")) for name in ("gate", "up"))
    return layers.linear(layers.activate(gate, config.activation) * up, p["down"], p.get("down_bias"))


def _block(form: Form, config: DecoderConfig, p: Any, x, rope, mask, kv, write):
    """One block; `write(kv, k, v)` → (the cache with this token's k and v, all of this layer's K and V)."""

    def norm(name: str, y: jax.Array) -> jax.Array:
        return layers.rms_norm(y, p[name]["scale"], config.norm_eps, config.norm_plus_one)

    q, k, v = _projections(form, config, p["attention"], norm("attention_norm", x))
    to_k, to_v = _NEW[form.layout]
    kv, (K, V) = write(kv, layers.rotate(k, *rope).transpose(to_k), v.transpose(to_v))
    h = _attention(form, config, layers.rotate(q, *rope), K, V, mask)
    h = layers.linear(h, p["attention"]["o"], p["attention"].get("o_bias"), inputs=2)
    x = x + (norm("post_attention_norm", h) if config.post_norms else h)
    h = _feed_forward(form, config, p["feed_forward"], norm("feed_forward_norm", x))
    return x + (norm("post_feed_forward_norm", h) if config.post_norms else h), kv


def step(form: Form, config: DecoderConfig, params: Any, token, rope, valid, cache, index) -> tuple[jax.Array, Any]:
    """One token [B] a row → logits float32 [B, V] and the cache. valid bool [B, S]; index: the slot it goes into."""
    blocks, rest = params
    dtype = rest["embedding"].dtype
    x = jnp.take(rest["embedding"], token[:, None], axis=0)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, dtype)
    kinds = sorted(set(config.windows), key=str)
    masks = jnp.stack([layers.attention_mask(valid, index, 1, w) for w in kinds])[:, :, None]  # kinds B 1 1 S
    at_k, at_v = _SLOTS[form.layout]

    def written(x: jax.Array, new: jax.Array, axis: int, layer: Any = None) -> jax.Array:
        start: list[Any] = [0, 0, 0, 0]
        start[axis] = index
        if form.layout == "jkhc" and axis == 3:  # keys
            C = x.shape[-1]
            start = [0, index // C * config.n_kv_heads, 0, index % C]
        if layer is None:
            return lax.dynamic_update_slice(x, new, tuple(start))
        return lax.dynamic_update_slice(x, new[None], (layer, *start))

    if form.layers == "unrolled":
        new = []
        for i, block in enumerate(blocks):

            def write(kv, k, v):
                kv = written(kv[0], k, at_k), written(kv[1], v, at_v)
                return kv, kv

            x, kv = _block(form, config, block, x, rope, masks[kinds.index(config.windows[i])], cache[i], write)
            new.append(kv)
        cache = new
    else:

        def body(carry, layer):
            x, cache = carry
            p, i, kind = layer

            def write(kv, k, v):
                # In place in the whole cache, of which the loop carries one copy: as an input and output of the scan
                # every layer's cache would be copied in every step.
                kv = written(kv[0], k, at_k, i), written(kv[1], v, at_v, i)
                return kv, tuple(lax.dynamic_index_in_dim(a, i, keepdims=False) for a in kv)

            x, cache = _block(form, config, p, x, rope, masks[kind], cache, write)
            return (x, cache), None

        which = jnp.asarray([kinds.index(w) for w in config.windows], jnp.int32)
        (x, cache), _ = lax.scan(body, (x, cache), (blocks, jnp.arange(config.n_layers), which))

    x = layers.rms_norm(x, rest["output_norm"]["scale"], config.norm_eps, config.norm_plus_one)
    head = rest["embedding"] if config.tied else rest["unembedding"]
    out = jnp.einsum("btd,vd->btv", x, head, preferred_element_type=jnp.float32, precision=layers.precision(dtype))
    return layers.softcap(out, config.final_softcap)[:, 0], cache


@partial(jax.jit, static_argnames=("form", "config", "steps"), donate_argnames=("cache",))
def decode(
    params: Any,
    cache: Any,
    token: jax.Array,
    lengths: jax.Array,
    prompt_slots: jax.Array,
    t0: jax.Array,
    *,
    form: Form,
    config: DecoderConfig,
    steps: int,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """`steps` greedy steps from step t0: the cache, the next token [B], the tokens [steps, B], and the last logits."""
    _, at_v = _SLOTS[form.layout]
    slots = cache[0][1].shape[at_v] if form.layers == "unrolled" else cache[1].shape[at_v + 1]
    valid = jnp.arange(slots)[None, :] >= (prompt_slots - lengths)[:, None]
    times = t0 + jnp.arange(steps)
    cos, sin = rotary(config, lengths[:, None] + times[None, :])  # B steps 1 H/2
    ropes = (cos.transpose(1, 0, 2, 3)[:, :, None], sin.transpose(1, 0, 2, 3)[:, :, None])

    def body(carry, x):
        cache, token, _ = carry
        t, rope = x
        logits, cache = step(form, config, params, token, rope, valid, cache, prompt_slots + t)
        return (cache, jnp.argmax(logits, axis=-1).astype(jnp.int32), logits), token

    start = (cache, token, jnp.zeros((token.shape[0], config.vocab_size), jnp.float32))
    (cache, token, logits), tokens = lax.scan(body, start, (times, ropes))
    return cache, token, tokens, logits
