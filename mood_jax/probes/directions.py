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

    One pass over the rows with the few smallest and largest values so far in two sorted buffers, since XLA's sort is
    slow on CPU, and so are its reductions along the first axis. What leaves both buffers is summed directly, so an
    extreme outlier never enters the sum.

    Args:
      x: [n, d], finite.
      proportion: share cut at each end, in [0, 0.5).
      mask: [n] bool, True = counts; None = all. n in ⌊proportion·n⌋ is then the number of True.
    Returns:
      [d] means; zeros when nothing is masked in.
    """
    if not 0 <= proportion < 0.5:
        raise ValueError(f"proportion must be in [0, 0.5), not {proportion}")
    n, d = x.shape
    use = jnp.ones(n, bool) if mask is None else jnp.asarray(mask)
    count = jnp.sum(use)
    # A table, because the product has to be rounded as Python rounds it.
    cuts = np.array([int(proportion * m) for m in range(n + 1)], np.int32)
    cut, most = jnp.asarray(cuts)[count], int(cuts[-1])
    if most == 0:
        return jnp.sum(jnp.where(use[:, None], x, 0.0), axis=0) / jnp.maximum(count, 1)
    least, largest = jnp.full((1, d), -jnp.inf, x.dtype), jnp.full((1, d), jnp.inf, x.dtype)

    def take(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, between = state  # low: ascending, high: descending; infinite where not filled yet
        value = jnp.where(use[i], lax.dynamic_index_in_dim(x, i), jnp.inf)
        passed = jnp.maximum(low[-1:], value)
        low = jnp.minimum(low, jnp.maximum(jnp.concatenate([least, low[:-1]]), value))
        value = jnp.where(passed == jnp.inf, -jnp.inf, passed)
        passed = jnp.minimum(high[-1:], value)
        high = jnp.maximum(high, jnp.minimum(jnp.concatenate([largest, high[:-1]]), value))
        return low, high, between + jnp.where(passed == -jnp.inf, 0.0, passed)

    buffers = jnp.broadcast_to(largest, (most, d)), jnp.broadcast_to(least, (most, d))
    low, high, between = lax.fori_loop(0, n, take, (*buffers, jnp.zeros((1, d), x.dtype)))
    # Fewer samples than rows are cut less than the buffers hold, and few enough fill the lower one alone.
    place = jnp.arange(most)
    in_low = jnp.minimum(count, most)
    in_high = jnp.minimum(count - in_low, most)
    keep_low = (place >= cut) & (place < in_low - jnp.maximum(cut - in_high, 0))
    keep_high = (place >= cut) & (place < in_high)
    for edge, keep in ((low, keep_low), (high, keep_high)):
        between += jnp.sum(jnp.where(keep[:, None], edge, 0.0), axis=0, keepdims=True)
    return between[0] / jnp.maximum(count - 2 * cut, 1)


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
    return unit_difference(difference, jnp.any(sign > 0) & jnp.any(sign < 0), spread)


def unit_difference(difference: jax.Array, both: jax.Array, spread: jax.Array) -> Direction:
    """A difference of pole means [d] as a unit vector; no direction where not `both` poles have samples, or where it is
    rounding beside the `spread` of the states."""
    norm = jnp.sqrt(jnp.sum(jnp.square(difference)))
    ok = both & (norm > FLAT * spread)
    return Direction(jnp.where(ok, difference / jnp.where(ok, norm, 1.0), 0.0), ok)


def mean_difference(pos: jax.Array, neg: jax.Array, trim: float = 0.1) -> Direction:
    """`fit_mean_difference` on the states of the positive pole [n, d] and of the negative pole [m, d]."""
    sign = jnp.concatenate([jnp.ones(pos.shape[0], jnp.int32), -jnp.ones(neg.shape[0], jnp.int32)])
    return fit_mean_difference(jnp.concatenate([pos, neg]), sign, trim=trim)
