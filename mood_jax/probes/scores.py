"""From states to scores: projections and the scalings of method section 5.

The raw projection stays what it is; a scaling is constants of the calibration, applied to any later projection.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mood_jax.probes.arrays import einsum, masked_quantile

Scale = Literal["iqr", "article", "pole", "re_read"]

# The floor that the published code puts under the IQR.
ARTICLE_FLOOR = 0.1
# An IQR or pole distance below this share of the largest projection is float32 rounding.
FLAT = 1e-6


class Scaling(NamedTuple):
    """Constants of the pooled calibration projections of both poles, all scalars (or [axes] after vmap).

    re_read_pos, re_read_neg: pole means of the same responses, read again without the instruction in front of them.
    `ok` is False where the IQR is 0: the score `iqr` is then 0 everywhere. `pole_ok` and `re_read_ok` are the same for
    those two scales; the latter also where nothing was read again.
    """

    median: jax.Array
    iqr: jax.Array
    pos_mean: jax.Array
    neg_mean: jax.Array
    ok: jax.Array
    pole_ok: jax.Array
    re_read_pos: jax.Array
    re_read_neg: jax.Array
    re_read_ok: jax.Array


def project(states: jax.Array, vector: jax.Array) -> jax.Array:
    """x = h·v: states [..., d] and a direction [d] to projections [...]."""
    return einsum("...d,d->...", states, vector)


@jax.jit
def calibrate_scaling(x: jax.Array, sign: jax.Array, re_read: jax.Array | None = None) -> Scaling:
    """Scaling constants from calibration projections x [n] with signs [n] (+1 / −1, 0 = left out); `re_read`: the
    projections [n] of the same responses read again."""
    use = sign != 0
    low, median, high = masked_quantile(x, jnp.array([0.25, 0.5, 0.75]), use)
    largest = jnp.max(jnp.where(use, jnp.abs(x), 0.0))
    pos_mean, neg_mean, distinct = _poles(x, sign)
    if re_read is None:
        nothing = jnp.zeros_like(pos_mean)
        again = (nothing, nothing, jnp.zeros_like(distinct))
    else:
        again = _poles(re_read, sign)
    return Scaling(median, high - low, pos_mean, neg_mean, high - low > FLAT * largest, distinct, *again)


def _poles(x: jax.Array, sign: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of the poles, and whether they are apart."""
    positive, negative = _mean(x, sign > 0), _mean(x, sign < 0)
    largest = jnp.max(jnp.where(sign != 0, jnp.abs(x), 0.0))
    apart = jnp.any(sign > 0) & jnp.any(sign < 0) & (jnp.abs(positive - negative) > FLAT * largest)
    return positive, negative, apart


@functools.partial(jax.jit, static_argnames="scale")
def score(x: jax.Array, scaling: Scaling, scale: Scale = "iqr") -> jax.Array:
    """Scaled scores of projections, elementwise and unclipped.

    `iqr`: (x − median)/IQR. `article`: x/max(IQR, 0.1), not centred, as the published code does. `pole`:
    2(x − m₋)/(m₊ − m₋) − 1, so that the instructed pole means are ±1. `re_read`: the same with the means of the
    responses read again without the instruction, as uninstructed ones are read; in context the instruction itself
    drives the poles apart, and `pole` comes out nearer to 0 than the style is. A degenerate scaling gives 0 (see
    `Scaling.ok`).

    Args:
      x: projections; constants of a vmapped `scaling` have to broadcast against it.
      scaling: constants from `calibrate_scaling`.
      scale: which of the four.
    """
    if scale == "iqr":
        return jnp.where(scaling.ok, (x - scaling.median) / jnp.where(scaling.ok, scaling.iqr, 1.0), 0.0)
    if scale == "article":
        return x / jnp.maximum(scaling.iqr, ARTICLE_FLOOR)
    if scale in ("pole", "re_read"):
        high, low, ok = (
            (scaling.pos_mean, scaling.neg_mean, scaling.pole_ok)
            if scale == "pole"
            else (scaling.re_read_pos, scaling.re_read_neg, scaling.re_read_ok)
        )
        distance = jnp.where(ok, high - low, 1.0)
        return jnp.where(ok, 2.0 * (x - low) / distance - 1.0, 0.0)
    raise ValueError(f"unknown scale {scale!r}; use 'iqr', 'article', 'pole' or 're_read'")


def clip_rate(scores: jax.Array, limit: float = 1.0) -> jax.Array:
    """Share of scores that a display range of ±limit would clip, over the last axis."""
    return jnp.mean(jnp.abs(scores) > limit, axis=-1)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
