"""Reducers: the states of a response's tokens → one vector a site, recursively, in float32.

    mean        S ← S + h                       S / n
    decay_γ     S ← γ S + h                     S (1 − γ) / (1 − γⁿ)      weight γ^(n−1−t) on token t
    last        S ← h                           S
    max_abs     per dimension the value of largest magnitude, the earlier of equals

`update` runs inside the decode loop, one token at a time; `reduce` does the same for a whole sequence at once.
A response without any token reduces to zeros; its count says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from mood_jax.errors import UserError


@dataclass(frozen=True)
class Reducer:
    name: str
    kind: Literal["mean", "decay", "last", "max_abs"]
    gamma: float = 1.0


def parse_reducers(names: Sequence[str]) -> tuple[Reducer, ...]:
    """("mean", "decay_0.9", "last", "max_abs") → reducers in that order. Raises UserError for an unknown name."""
    if isinstance(names, str):
        names = (names,)
    found = []
    for name in names:
        kind, _, gamma = name.partition("_")
        if name in ("mean", "last", "max_abs"):
            found.append(Reducer(name, name))
            continue
        try:
            value = float(gamma)
        except ValueError:
            value = -1.0
        if kind != "decay" or not 0 < value < 1:
            raise UserError(f"unknown reducer {name!r}; use mean, last, max_abs or decay_γ with 0 < γ < 1 (decay_0.9)")
        found.append(Reducer(name, "decay", value))
    if len({r.name for r in found}) != len(found):
        raise UserError(f"a reducer is named twice in {list(names)}; name each once")
    return tuple(found)


def update(reducer: Reducer, state: jax.Array, h: jax.Array, active: jax.Array) -> jax.Array:
    """One token: state [B, D] float32, h [B, D], active bool [B] (False leaves the row exactly as it is)."""
    h = h.astype(jnp.float32)
    on = active[:, None]
    if reducer.kind == "mean":
        return jnp.where(on, state + h, state)
    if reducer.kind == "decay":
        return jnp.where(on, reducer.gamma * state + h, state)
    if reducer.kind == "last":
        return jnp.where(on, h, state)
    return jnp.where(on & (jnp.abs(h) > jnp.abs(state)), h, state)


def finish(reducer: Reducer, state: jax.Array, count: jax.Array) -> jax.Array:
    """The reduced state [B, D] from the accumulator after `count` [B] tokens."""
    n = jnp.maximum(count, 1).astype(jnp.float32)[:, None]
    if reducer.kind == "mean":
        return state / n
    if reducer.kind == "decay":
        return state * ((1 - reducer.gamma) / (1 - reducer.gamma**n))
    return state


def reduce(reducer: Reducer, h: jax.Array, rank: jax.Array, count: jax.Array) -> jax.Array:
    """A whole sequence: h [B, T, D]; rank int [B, T] the token's number in its span, −1 outside; count [B] → [B, D]."""
    h = h.astype(jnp.float32)
    inside = rank >= 0
    n = jnp.maximum(count, 1)
    if reducer.kind in ("mean", "decay"):
        age = (count[:, None] - 1 - rank).astype(jnp.float32)
        weight = jnp.where(inside, reducer.gamma ** jnp.where(inside, age, 0.0), 0.0)
        weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
        return jnp.einsum("bt,btd->bd", weight, h, precision=jax.lax.Precision.HIGHEST)
    if reducer.kind == "last":
        return jnp.where((rank == (n - 1)[:, None])[..., None], h, 0.0).sum(axis=1)
    magnitude = jnp.where(inside[..., None], jnp.abs(h), -1.0)
    at = jnp.argmax(magnitude, axis=1)[:, None]  # B 1 D
    best = jnp.take_along_axis(h, at, axis=1)[:, 0]
    return jnp.where(inside.any(axis=1)[:, None], best, 0.0)
