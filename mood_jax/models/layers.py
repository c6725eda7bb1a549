"""The decoder's mathematics as pure functions on arrays. Axis letters: see `config.py`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row without any key (padding) must not become NaN


def precision(dtype: jnp.dtype) -> lax.Precision:
    """float32 weights ask for float32 products: GPUs and TPUs would otherwise round them to TF32 or bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, inputs: int = 1) -> jax.Array:
    """Sums the last `inputs` axes of activations and weights (output axes first), plus a bias of the output's axes.

    x [B,T,*in], kernel [*out,*in] → [B,T,*out], in the weights' dtype. Heads and head size are folded into one axis: an
    einsum over three axes would have XLA transpose the weights anew in every decode step.
    """
    B, T = x.shape[:2]
    out = kernel.shape[: kernel.ndim - inputs]
    y = jnp.einsum(
        "bti,oi->bto", x.reshape(B, T, -1), kernel.reshape(math.prod(out), -1), precision=precision(kernel.dtype)
    )
    y = y.reshape(B, T, *out)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, plus_one: bool) -> jax.Array:
    """x / rms(x) · scale over the last axis, computed in float32. `plus_one`: the scale is stored minus one."""
    x32 = x.astype(jnp.float32)
    y = x32 * lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    s = scale.astype(jnp.float32) + (1.0 if plus_one else 0.0)
    return (y * s.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def rotary(positions: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, H/2], of the absolute positions [B, T]."""
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x [B, T, N, H]: dimension i pairs with i + H/2 (the layout of the HF checkpoints)."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_mask(valid: jax.Array, index: jax.Array | int, length: int, window: int | None) -> jax.Array:
    """Which cache slots a query may read, bool [B, T, S].

    valid [B, S] marks slots that hold a token; the queries sit in slots index … index+T−1. Padding is on the left, so
    a row's slots and its positions differ by a constant and windows may be counted in slots.
    """
    query = index + jnp.arange(length)[:, None]  # [T, 1]
    key = jnp.arange(valid.shape[1])[None, :]  # [1, S]
    allowed = key <= query
    if window is not None:
        allowed &= key > query - window
    return valid[:, None, :] & allowed[None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float, cap: float | None) -> jax.Array:
    """Grouped-query attention. q [B,T,N,H], k [B,J·K,H,C], v [B,K,S,H], mask [B,T,S] → [B,T,N,H]; softmax in float32.

    Keys in J > 1 blocks are read as if each were a head of its own, and columns beyond S are left out: XLA's product on
    a CPU is slow where a head's dimensions are far apart in memory.
    The weights are divided by their sum after they have mixed the values: H numbers a query instead of S.
    """
    B, T, N, H = q.shape
    _, K, S, _ = v.shape
    J, C = k.shape[1] // K, k.shape[3]
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # B K G T H
    q = jnp.broadcast_to(q.reshape(B, 1, K, (N // K) * T, H), (B, J, K, (N // K) * T, H))
    logits = jnp.einsum(
        "bjth,bjhc->bjtc",
        q.reshape(B, J * K, (N // K) * T, H),
        k,
        preferred_element_type=jnp.float32,
        precision=precision(k.dtype),
    )  # B JK GT C
    logits = logits.reshape(B, J, K, (N // K) * T, C).transpose(0, 2, 3, 1, 4).reshape(B, K, (N // K) * T, J * C)
    logits = logits[..., :S]
    logits = softcap(logits * scale, cap).reshape(B, K, N // K, T, -1)
    logits += jnp.where(mask, 0.0, MASKED)[:, None, None]
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)).reshape(B, K, (N // K) * T, -1)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum(
        "bkts,bksh->bkth",
        weights.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
        precision=precision(v.dtype),
    )
    out = (out / total).astype(v.dtype)
    return out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def activate(x: jax.Array, kind: str) -> jax.Array:
    if kind == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=kind == "gelu_tanh")
