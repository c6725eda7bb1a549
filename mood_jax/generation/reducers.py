"""Reducers: the states of a response's tokens → one vector a site, recursively, in float32.

    mean        S ← S + h                       S / n
    decay_γ     S ← γ S + h                     S (1 − γ) / (1 − γⁿ)      weight γ^(n−1−t) on token t
    last        S ← h                           S
    max_abs     per dimension the value of largest magnitude, the earlier of equals

`update` runs inside the decode loop, one token at a time; `reduce` does the same for a whole sequence at once.
A response without any token reduces to zeros; its count says so.

For every γ and thousands of tokens both are within 1e-6 of the largest value of the same in float64. What that takes:
1 − γ and log γ come from Python's float64, where float32 knows of γ near 1 neither; 1 − γⁿ is −expm1(n log γ); and the
sum S carries along what each addition rounded off (Knuth's two-sum), which a sum of n tokens loses √n-fold else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from mood_jax.errors import UserError

# A number as a reducer's name has it. Python's float() also takes digits of other scripts, spaces and underscores.
_GAMMA = re.compile(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
# Tokens that one matrix product adds up; the sums of more are added in turn, where one long sum would round more.
_SPAN = 256

Accumulator = jax.Array | tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Reducer:
    """A reducer by name; `gamma` is that of a decay, and 1 of the mean."""

    name: str
    kind: Literal["mean", "decay", "last", "max_abs"]
    gamma: float = 1.0

    @property
    def summed(self) -> bool:
        """Is the result a weighted mean of all tokens?"""
        return self.kind in ("mean", "decay")


def parse_reducers(names: Sequence[str]) -> tuple[Reducer, ...]:
    """("mean", "decay_0.9", "last", "max_abs") → reducers in that order. Raises UserError for an unknown name."""
    names = (names,) if isinstance(names, str) else tuple(names)
    found = []
    for name in names:
        if name in ("mean", "last", "max_abs"):
            found.append(Reducer(name, name))
            continue
        kind, _, gamma = name.partition("_") if isinstance(name, str) else ("", "", "")
        value = float(gamma) if _GAMMA.fullmatch(gamma) else -1.0
        if kind != "decay" or not 0 < value < 1:
            raise UserError(f"unknown reducer {name!r}; use mean, last, max_abs or decay_γ with 0 < γ < 1 (decay_0.9)")
        found.append(Reducer(name, "decay", value))
    if len({r.name for r in found}) != len(found):
        raise UserError(f"a reducer is named twice in {list(names)}; name each once")
    return tuple(found)


def start(reducer: Reducer, rows: int, size: int) -> Accumulator:
    """The accumulator before the first token: float32 [B, D]; of a sum two, itself and what was rounded off it."""
    zeros = jnp.zeros((rows, size), jnp.float32)
    return (zeros, zeros) if reducer.summed else zeros


def update(reducer: Reducer, state: Accumulator, h: jax.Array, active: jax.Array) -> Accumulator:
    """One token: the accumulator, h [B, D], active bool [B] (False leaves the row exactly as it is)."""
    h = h.astype(jnp.float32)
    on = active[:, None]
    if isinstance(state, tuple):
        total, rest = _add(reducer.gamma, *state, h)
        return jnp.where(on, total, state[0]), jnp.where(on, rest, state[1])
    if reducer.kind == "last":
        return jnp.where(on, h, state)
    return jnp.where(on & (jnp.abs(h) > jnp.abs(state)), h, state)


def _add(gamma: float, total: jax.Array, rest: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """γ (total + rest) + h, and what float32 rounds off it.

    Above ½, γ S is S − (1 − γ) S: the rounding of the small term is small.
    """
    kept, step = (
        (total, h - (1.0 - gamma) * (total + rest) + rest) if gamma > 0.5 else (gamma * total, h + gamma * rest)
    )
    new = kept + step
    added = new - kept
    return new, (kept - (new - added)) + (step - added)


def finish(reducer: Reducer, state: Accumulator, count: jax.Array) -> jax.Array:
    """The reduced state [B, D] from the accumulator after `count` [B] tokens."""
    if isinstance(state, tuple):
        return (state[0] + state[1]) / weight_sum(reducer.gamma, count)[:, None]
    return state


def weight_sum(gamma: float, count: jax.Array) -> jax.Array:
    """Σ γᵗ over t < count [B], float32, of one token at least; `gamma` in (0, 1]."""
    n = jnp.maximum(count, 1).astype(jnp.float32)
    return n if gamma == 1.0 else -jnp.expm1(n * math.log(gamma)) / (1.0 - gamma)


def reduce(reducer: Reducer, h: jax.Array, rank: jax.Array, count: jax.Array) -> jax.Array:
    """A whole sequence: h [B, T, D]; rank int [B, T] the token's number in its span, −1 outside; count [B] → [B, D]."""
    h = h.astype(jnp.float32)
    inside = rank >= 0
    n = jnp.maximum(count, 1)
    if reducer.summed:
        age = jnp.where(inside, count[:, None] - 1 - rank, 0).astype(jnp.float32)
        weight = jnp.where(inside, jnp.exp(age * math.log(reducer.gamma)), 0.0)
        return _weighted_sum(weight / weight_sum(reducer.gamma, count)[:, None], h)
    if reducer.kind == "last":
        return jnp.where((rank == (n - 1)[:, None])[..., None], h, 0.0).sum(axis=1)
    magnitude = jnp.where(inside[..., None], jnp.abs(h), -1.0)
    at = jnp.argmax(magnitude, axis=1)[:, None]  # B 1 D
    best = jnp.take_along_axis(h, at, axis=1)[:, 0]
    return jnp.where(inside.any(axis=1)[:, None], best, 0.0)


def _weighted_sum(weight: jax.Array, h: jax.Array) -> jax.Array:
    """Σ_t weight [B, T] · h [B, T, D] → [B, D], `_SPAN` tokens at a time."""
    T = weight.shape[1]
    size = min(T, _SPAN)

    def part(k: int | jax.Array) -> jax.Array:
        begin = jnp.minimum(k * size, T - size)  # the last part lies within the sequence and begins with old tokens
        new = begin + jnp.arange(size) >= k * size
        w = jnp.where(new, lax.dynamic_slice_in_dim(weight, begin, size, axis=1), 0.0)
        some = lax.dynamic_slice_in_dim(h, begin, size, axis=1)
        return jnp.einsum("bt,btd->bd", w, some, precision=lax.Precision.HIGHEST)

    if size == T:
        return jnp.einsum("bt,btd->bd", weight, h, precision=lax.Precision.HIGHEST)
    return lax.fori_loop(1, -(-T // size), lambda k, total: total + part(k), part(0))
