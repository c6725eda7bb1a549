"""Directions of an axis from labelled states: unit vectors that point at the positive pole.

n samples, d state size. An estimator takes `(states [n, d], sign [n], spread=None, fold=None)` and returns a
`Direction`; `sign` is +1 for the positive pole, −1 for the negative, 0 for a sample that is left out (a held-out fold,
padding). Leaving out by sign and not by indexing keeps shapes static: unequal folds and a question without one of its
poles need nothing special, and any estimator can be vmapped over axes, readouts, folds and resamples.

Here is the mean difference; `logistic.py` and `whitened.py` hold the others, `estimators.py` names all three.

A direction depends on no offset and no size of the states, so what a caller gives is taken about its medians and in
units of its largest deviation, in float64, before it becomes float32 (`samples`).
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import length, namespace, shifted
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


class Samples(NamedTuple):
    """States [n, d] about their medians and in units of 2^exponent (traced ones as they came, exponent None), how often
    each counts in which pole [n], and the spread and the folds [n] that came with them."""

    states: jax.Array
    sign: jax.Array
    spread: Any
    fold: Any
    exponent: Any


def samples(
    states: Any, sign: Any, spread: Any = None, fold: Any = None, *, weighted: bool = False, each: bool = False
) -> Samples:
    """What a caller gives to an estimator, checked and converted.

    Args:
      states: [n, d] finite numbers.
      sign: [n] of +1 / −1, 0 = left out; both poles are there. With `weighted` also ±w, which counts w times.
      spread: a number above 0, or None.
      fold: [n] whole numbers, or None.
      each: every column in a unit of its own, `exponent` [d]; not where a spread is given, which is of all columns.
    Raises:
      UserError: anything else.
    """
    h = inputs.numbers("states", states, ndim=2, least=1)
    checked = (weights if weighted else inputs.signs)(sign, len(h))
    if fold is not None:
        fold = whole("fold", fold, len(h))
    spread = None if spread is None else inputs.number("spread", spread, 0.0)
    if inputs.traced(h, checked, spread, fold):
        h = jnp.asarray(h)
        return Samples(h.astype(jnp.promote_types(h.dtype, jnp.float32)), jnp.asarray(checked), spread, fold, None)
    h, exponent = relative(h, checked != 0, each=each and spread is None)
    scaled = None if spread is None else np.float32(np.ldexp(spread, -exponent))
    return Samples(jnp.asarray(h), jnp.asarray(checked), scaled, fold, exponent)


def relative(x: np.ndarray, used: np.ndarray, *, each: bool = False) -> tuple[np.ndarray, Any]:
    """Numbers [n, d] about the medians of their columns over the `used` rows, in units of 2^exponent, as float32; and
    the exponent, with `each` one of every column [d].

    Medians, since a first or a mean value may be an outlier, beside which float32 would not hold the others.
    """
    half = 0.5 * x.astype(np.float64)  # so that a difference of the two largest numbers is finite
    half = half - (np.median(half[used], axis=0, keepdims=True) if used.any() else 0.0)
    largest = np.abs(half).max(axis=0, initial=0.0)
    exponent = np.frexp(largest if each else largest.max(initial=0.0))[1]
    return np.ldexp(half, -exponent).astype(np.float32), exponent + 1


def weights(sign: Any, rows: int | None = None) -> Any:
    """Signs that count |sign| times, as float32; refused where a pole is missing."""
    array = inputs.floats32("sign", sign, rows=rows)
    if not inputs.traced(array) and not ((array > 0).any() and (array < 0).any()):
        missing = "1" if (array <= 0).all() else "−1"
        raise UserError(f"sign has no {missing}, so one pole is missing; use −1, 0 (left out), 1")
    return array


def whole(name: str, x: Any, rows: int | None = None) -> Any:
    """Whole numbers [n] as int32."""
    array = inputs.numbers(name, x, rows=rows)
    if inputs.traced(array):
        return array
    if (array != np.round(array.astype(np.float64))).any() or np.abs(array).max(initial=0) > 2**31 - 1:
        raise UserError(f"{name} has entries that are no whole numbers; give one to a row")
    return jnp.asarray(array.astype(np.int32))


def trimmed_mean(x: Any, proportion: float = 0.1, mask: Any = None) -> jax.Array:
    """Mean of every column after cutting ⌊proportion·n⌋ entries at each end; equals `scipy.stats.trim_mean`.

    Given numbers are sorted and averaged on the host in float64, traced ones in one pass on the device.

    Args:
      x: [n, d], finite.
      proportion: share cut at each end, in [0, 0.5).
      mask: [n] bool, True = counts; None = all. n in ⌊proportion·n⌋ is then the number of True.
    Returns:
      [d] means; zeros when nothing is masked in.
    Raises:
      UserError: values that are no finite numbers or that float32 cannot hold, another proportion.
    """
    proportion = proportion_of("proportion", proportion)
    array = inputs.numbers("x", x, ndim=2)
    mask = None if mask is None else inputs.flags("mask", mask, len(array))
    if inputs.traced(array, mask):
        return _trimmed_mean(jnp.asarray(array), proportion, mask)
    x = inputs.floats32("x", array, ndim=2)  # what float32 cannot hold is refused
    rows = np.sort(array.astype(np.float64) if mask is None else array.astype(np.float64)[mask], axis=0)
    cut = int(proportion * len(rows))
    mean = rows[cut : len(rows) - cut].mean(axis=0) if len(rows) else np.zeros(x.shape[1])
    return jnp.asarray(mean, jnp.float32)


def proportion_of(name: str, value: Any) -> float:
    """A share to be cut at each end, in [0, 0.5)."""
    if not 0 <= (value := inputs.number(name, value)) < 0.5:
        raise UserError(f"{name} must be in [0, 0.5), not {value}")
    return value


def _trimmed_mean(x: jax.Array, proportion: float, mask: Any) -> jax.Array:
    """One pass over the rows with the few smallest and largest values so far in two sorted buffers, since XLA's sort is
    slow on CPU, and so are its reductions along the first axis. What leaves both buffers is summed directly, so an
    extreme outlier never enters the sum."""
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
    states: Any,
    sign: Any,
    *,
    trim: float = 0.1,
    spread: Any = None,
    fold: Any = None,
) -> Direction:
    """v ∝ tm(H₊) − tm(H₋), the per-dimension trimmed means of the poles (method, section 4).

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out.
      trim: share cut at each end of every column.
      spread: scale of the states against which a difference counts as none; None = their own.
      fold: not used.
    Returns:
      Direction. `ok` is False, and the vector 0, when the means do not differ; of traced signs also when a pole is
      empty, which is refused in given ones.
    Raises:
      UserError: a pole without samples, signs that are none of −1, 0, 1, states that are no finite numbers.
    """
    states, sign, spread, _, exponent = samples(states, sign, spread, fold)
    states = shifted(states) if exponent is None else states  # given ones are about their medians
    spread = rms_spread(states, sign != 0) if spread is None else spread
    proportion = proportion_of("trim", trim)
    difference = _trimmed_mean(states, proportion, sign > 0) - _trimmed_mean(states, proportion, sign < 0)
    return unit_difference(difference, jnp.any(sign > 0) & jnp.any(sign < 0), spread)


def unit_difference(difference: jax.Array, both: jax.Array, spread: jax.Array) -> Direction:
    """A difference of pole means [d] as a unit vector; no direction where not `both` poles have samples, or where it is
    rounding beside the `spread` of the states."""
    norm = length(difference)
    ok = both & (norm > FLAT * spread)
    return Direction(jnp.where(ok, difference / jnp.where(ok, norm, 1.0), 0.0), ok)


def mean_difference(pos: Any, neg: Any, trim: float = 0.1) -> Direction:
    """`fit_mean_difference` on the states of the positive pole [n, d] and of the negative pole [m, d]."""
    pos, neg = (inputs.numbers(name, x, ndim=2, least=1) for name, x in (("pos", pos), ("neg", neg)))
    if pos.shape[1] != neg.shape[1]:
        raise UserError(f"pos has {pos.shape[1]} columns and neg {neg.shape[1]}; give states of one size")
    xp = namespace(pos, neg)
    sign = np.repeat(np.array([1, -1], np.int32), [len(pos), len(neg)])
    return fit_mean_difference(xp.concatenate([pos, neg]), sign, trim=trim)
