"""From states to scores: projections and the three scalings of method section 5.

The raw projection stays what it is; a scaling is constants of the calibration, applied to any later projection.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mood_jax.probes.arrays import einsum, masked_quantile

Scale = Literal["iqr", "article", "pole"]

# The floor that the published code puts under the IQR.
ARTICLE_FLOOR = 0.1
# An IQR or pole distance below this share of the largest projection is float32 rounding.
FLAT = 1e-6


class Scaling(NamedTuple):
    """Constants of the pooled calibration projections of both poles, all scalars (or [axes] after vmap).

    `ok` is False where the IQR is 0: the score `iqr` is then 0 everywhere. `pole_ok` is the same for `pole`.
    """

    median: jax.Array
    iqr: jax.Array
    pos_mean: jax.Array
    neg_mean: jax.Array
    ok: jax.Array
    pole_ok: jax.Array


def project(states: jax.Array, vector: jax.Array) -> jax.Array:
    """x = h·v: states [..., d] and a direction [d] to projections [...]."""
    return einsum("...d,d->...", states, vector)


def calibrate_scaling(x: jax.Array, sign: jax.Array) -> Scaling:
    """Scaling constants from calibration projections x [n] with signs [n] (+1 / −1, 0 = left out)."""
    use = sign != 0
    low, median, high = masked_quantile(x, jnp.array([0.25, 0.5, 0.75]), use)
    pos_mean, neg_mean = _mean(x, sign > 0), _mean(x, sign < 0)
    largest = jnp.max(jnp.where(use, jnp.abs(x), 0.0))
    distinct = jnp.any(sign > 0) & jnp.any(sign < 0) & (jnp.abs(pos_mean - neg_mean) > FLAT * largest)
    return Scaling(median, high - low, pos_mean, neg_mean, high - low > FLAT * largest, distinct)


def score(x: jax.Array, scaling: Scaling, scale: Scale = "iqr") -> jax.Array:
    """Scaled scores of projections, elementwise and unclipped.

    `iqr`: (x − median)/IQR. `article`: x/max(IQR, 0.1), not centred, as the published code does. `pole`:
    2(x − m₋)/(m₊ − m₋) − 1, so that the instructed pole means are ±1. A degenerate scaling gives 0 (see `Scaling.ok`).

    Args:
      x: projections; constants of a vmapped `scaling` have to broadcast against it.
      scaling: constants from `calibrate_scaling`.
      scale: which of the three.
    """
    if scale == "iqr":
        return jnp.where(scaling.ok, (x - scaling.median) / jnp.where(scaling.ok, scaling.iqr, 1.0), 0.0)
    if scale == "article":
        return x / jnp.maximum(scaling.iqr, ARTICLE_FLOOR)
    if scale == "pole":
        distance = jnp.where(scaling.pole_ok, scaling.pos_mean - scaling.neg_mean, 1.0)
        return jnp.where(scaling.pole_ok, 2.0 * (x - scaling.neg_mean) / distance - 1.0, 0.0)
    raise ValueError(f"unknown scale {scale!r}; use 'iqr', 'article' or 'pole'")


def clip_rate(scores: jax.Array, limit: float = 1.0) -> jax.Array:
    """Share of scores that a display range of ±limit would clip, over the last axis."""
    return jnp.mean(jnp.abs(scores) > limit, axis=-1)


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
