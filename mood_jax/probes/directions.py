"""Directions of an axis from labelled states: unit vectors that point at the positive pole.

n samples, d state size. An estimator takes `(states [n, d], sign [n], spread=None, fold=None)` and returns a
`Direction`; `sign` is +1 for the positive pole, −1 for the negative, 0 for a sample that is left out (a held-out fold,
padding). Leaving out by sign and not by indexing keeps shapes static: unequal folds and a question without one of its
poles need nothing special, and any estimator can be vmapped over axes, readouts, folds and resamples.

Here is the mean difference; `logistic.py` and `whitened.py` hold the others, `estimators.py` names all three.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.probes.arrays import shifted
from mood_jax.probes.arrays import spread as rms_spread

# A difference of pole means below this share of the spread of the states is float32 rounding, not a direction.
FLAT = 1e-5


class Direction(NamedTuple):
    """A unit vector [d], or zeros with `ok` False where the states have no difference to point along."""

    vector: jax.Array
    ok: jax.Array


class Estimator(Protocol):
    """States [n, d] and signs [n] to a direction.

    `spread` (a scalar) is the scale on which a difference counts as none. `fold` [n] (0…K−1, or −1 for a sample that is
    never held out) are question-grouped folds for a choice of the estimator's own, such as a penalty.
    """

    def __call__(
        self, states: jax.Array, sign: jax.Array, *, spread: jax.Array | None = None, fold: jax.Array | None = None
    ) -> Direction: ...


def trimmed_mean(x: jax.Array, proportion: float = 0.1, mask: jax.Array | None = None) -> jax.Array:
    """Mean of every column after cutting ⌊proportion·n⌋ entries at each end; equals `scipy.stats.trim_mean`.

    Only the value at each cut is looked for (a few masked minima), not a sorted column: XLA's sort is slow on CPU.
    What lies between the cuts is summed directly, so an extreme outlier never enters the sum.

    Args:
      x: [n, d].
      proportion: share cut at each end, in [0, 0.5).
      mask: [n] bool, True = counts; None = all. n in ⌊proportion·n⌋ is then the number of True.
    Returns:
      [d] means; zeros when nothing is masked in.
    """
    if not 0 <= proportion < 0.5:
        raise ValueError(f"proportion must be in [0, 0.5), not {proportion}")
    n = x.shape[0]
    use = (jnp.ones(n, bool) if mask is None else mask)[:, None]
    count = jnp.sum(use)
    # A table, because the product has to be rounded as Python rounds it.
    cut = jnp.asarray(np.array([int(proportion * m) for m in range(n + 1)], np.int32))[count]
    low = _cut_value(x, use, cut)
    high = -_cut_value(-x, use, cut)
    trimmed = cut > 0
    low, high = jnp.where(trimmed, low, 0.0), jnp.where(trimmed, high, 0.0)
    between = use & ((x > low) & (x < high) | ~trimmed)
    # Ties with a cut value: all of them lie at or beyond the cut, `cut` of them (and beyond) are dropped.
    low_kept = jnp.sum(use & (x <= low), axis=0) - cut
    high_kept = jnp.sum(use & (x >= high), axis=0) - cut
    edges = jnp.where(trimmed, low[0] * low_kept + high[0] * high_kept, 0.0)
    mean = (jnp.sum(jnp.where(between, x, 0.0), axis=0) + edges) / jnp.maximum(count - 2 * cut, 1)
    return jnp.where(trimmed & (low[0] == high[0]), low[0], mean)


def _cut_value(x: jax.Array, use: jax.Array, cut: jax.Array) -> jax.Array:
    """The `cut`-th smallest used entry of every column of x [n, d], as [1, d]; −inf where cut = 0."""

    def next_value(_, state):
        value, reached = state
        larger = jnp.min(jnp.where(use & (x > value), x, jnp.inf), axis=0, keepdims=True)
        going = reached < cut  # several equal values are passed in one step
        reached = jnp.where(going, jnp.sum(use & (x <= larger), axis=0, keepdims=True), reached)
        return jnp.where(going, larger, value), reached

    start = (jnp.full((1, x.shape[1]), -jnp.inf, x.dtype), jnp.zeros((1, x.shape[1]), jnp.sum(use).dtype))
    return lax.fori_loop(0, cut, next_value, start)[0]


def fit_mean_difference(
    states: jax.Array,
    sign: jax.Array,
    *,
    trim: float = 0.1,
    spread: jax.Array | None = None,
    fold: jax.Array | None = None,
) -> Direction:
    """v ∝ tm(H₊) − tm(H₋), the per-dimension trimmed means of the poles (method, section 4).

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out.
      trim: share cut at each end of every column.
      spread: scale of the states against which a difference counts as none; None = their own.
      fold: not used.
    Returns:
      Direction. `ok` is False, and the vector 0, when a pole is empty or the means do not differ.
    """
    del fold
    states = shifted(states)
    spread = rms_spread(states, sign != 0) if spread is None else spread
    difference = trimmed_mean(states, trim, sign > 0) - trimmed_mean(states, trim, sign < 0)
    norm = jnp.sqrt(jnp.sum(jnp.square(difference)))
    ok = jnp.any(sign > 0) & jnp.any(sign < 0) & (norm > FLAT * spread)
    return Direction(jnp.where(ok, difference / jnp.where(ok, norm, 1.0), 0.0), ok)


def mean_difference(pos: jax.Array, neg: jax.Array, trim: float = 0.1) -> Direction:
    """`fit_mean_difference` on the states of the positive pole [n, d] and of the negative pole [m, d]."""
    sign = jnp.concatenate([jnp.ones(pos.shape[0], jnp.int32), -jnp.ones(neg.shape[0], jnp.int32)])
    return fit_mean_difference(jnp.concatenate([pos, neg]), sign, trim=trim)
