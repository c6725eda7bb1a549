"""How well projections tell the poles apart: AUC, d′ and accuracies (method, section 6).

x [n] projections, sign [n] with +1 / −1 and 0 for a sample that is left out. The public functions take lists and
arrays of any dtype, and refuse NaN, other labels and a pole that has no sample: an AUC of .5 is no separation, and not
a pole that is missing. They compute from what a caller gives before it is narrowed: an AUC knows neither scale nor
offset.

Inside traced code nothing is checked; there a sample that counts w times (in a bootstrap draw) has ±w, and all are
finite for every input: a pole without samples gives AUC .5, d′ 0, accuracy .5. The measures are jitted: by itself each
would compile up to ten small programs for every n.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.probes import inputs

# d′ of poles without any spread is infinite; |d′| is cut here so that it can be averaged and written to JSON.
DPRIME_LIMIT = 1e6
# A projection nearer to the middle than this share of the largest distance from it lies on the middle: float32
# rounding of the two means.
ON_THE_MIDDLE = 1e-6


def auc(x: Any, sign: Any, tie: Any = 0.0) -> jax.Array:
    """Share of (positive, negative) pairs in the right order, ties ½; equals `sklearn.metrics.roc_auc_score`.

    Values are compared in the dtype in which they come, so float64 and int64 keep all their digits.

    Args:
      x: [n].
      sign: [n] of −1, 0, 1, both poles.
      tie: projections nearer than this count as tied; in units of x.
    Raises:
      UserError: NaN, inf, other labels, a pole that is missing, unequal lengths.
    """
    if inputs.traced(x, sign, tie):
        return _auc(jnp.asarray(x), jnp.asarray(sign), tie)
    x = inputs.numbers("x", x)
    sign, tie = inputs.signs(sign, len(x)), inputs.number("tie", tie, 0.0)
    pos, neg = x[sign > 0], np.sort(x[sign < 0])
    if tie:
        pos, neg = pos.astype(np.float64), neg.astype(np.float64)
    below = np.searchsorted(neg + tie if tie else neg, pos, "left")
    not_above = np.searchsorted(neg - tie if tie else neg, pos, "right")
    return jnp.asarray(0.5 * (below.sum() + not_above.sum()) / (len(pos) * len(neg)), jnp.float32)


@jax.jit
def _auc(x: jax.Array, sign: jax.Array, tie: jax.Array | float) -> jax.Array:
    """Exact pair counting: n is small, and n² comparisons are cheaper than XLA's sort."""
    x = at_least_float32(x)
    right = pair_order(x, tie)
    pos, neg, _ = pole_weights(sign)
    return safe_ratio(jnp.sum(right * pos[:, None] * neg[None, :]), jnp.sum(pos) * jnp.sum(neg), 0.5)


def pair_order(x: jax.Array, tie: jax.Array | float = 0.0) -> jax.Array:
    """[n, n]: 1 where x_i > x_j, ½ where they are tied, else 0."""
    left, right = x[:, None], x[None, :]
    return 0.5 * ((left > right + tie).astype(x.dtype) + (left >= right - tie).astype(x.dtype))


def dprime(x: Any, sign: Any) -> jax.Array:
    """(mean₊ − mean₋)/pooled SD with ddof 1: √(((n₊−1)s₊² + (n₋−1)s₋²)/(n₊+n₋−2)), cut at ±`DPRIME_LIMIT`.

    Args and errors as of `auc`.
    """
    return _dprime(*_relative(x, sign))


@jax.jit
def _dprime(x: jax.Array, sign: jax.Array) -> jax.Array:
    x = unit_scale(at_least_float32(x))  # squares neither under- nor overflow
    pos, neg, _ = pole_weights(sign)
    n_pos, n_neg = jnp.sum(pos), jnp.sum(neg)
    mean_pos, mean_neg = safe_ratio(jnp.sum(x * pos), n_pos, 0.0), safe_ratio(jnp.sum(x * neg), n_neg, 0.0)
    squares = jnp.sum(pos * jnp.square(x - mean_pos) + neg * jnp.square(x - mean_neg))
    return dprime_from_moments(mean_pos - mean_neg, squares, n_pos, n_neg)


def dprime_from_moments(difference: jax.Array, squares: jax.Array, n_pos: jax.Array, n_neg: jax.Array) -> jax.Array:
    """d′ from the difference of the pole means, the within-pole sum of squares and the counts; elementwise."""
    sd = jnp.sqrt(jnp.maximum(squares, 0.0) / jnp.maximum(n_pos + n_neg - 2, 1))
    floor = jnp.abs(difference) / DPRIME_LIMIT
    defined = (n_pos > 0) & (n_neg > 0) & (difference != 0)
    return jnp.where(defined, difference / jnp.where(defined, jnp.maximum(sd, floor), 1.0), 0.0)


def midpoint_accuracy(x: Any, sign: Any) -> jax.Array:
    """Share of samples on their own side of the middle of the two pole means, on the middle ½; args as of `auc`."""
    return _midpoint_accuracy(*_relative(x, sign))


@jax.jit
def _midpoint_accuracy(x: jax.Array, sign: jax.Array) -> jax.Array:
    x = at_least_float32(x)
    pos, neg, used = pole_weights(sign)
    mean_pos = safe_ratio(jnp.sum(x * pos), jnp.sum(pos), 0.0)
    mean_neg = safe_ratio(jnp.sum(x * neg), jnp.sum(neg), 0.0)
    x = x - 0.5 * (mean_pos + mean_neg)
    x = jnp.where(jnp.abs(x) > ON_THE_MIDDLE * jnp.max(jnp.abs(x) * (used > 0), initial=0.0), x, 0.0)
    return _threshold_accuracy(x, sign)


def threshold_accuracy(x: Any, sign: Any) -> jax.Array:
    """Share of samples on their own side of zero, on zero ½ (of `article` scores: the article's accuracy); args as of
    `auc`."""
    if not inputs.traced(x, sign):
        x = inputs.numbers("x", x)
        x, sign = np.sign(x.astype(np.float64)).astype(np.float32), inputs.signs(sign, len(x))
    return _threshold_accuracy(jnp.asarray(x), jnp.asarray(sign))


@jax.jit
def _threshold_accuracy(x: jax.Array, sign: jax.Array) -> jax.Array:
    return safe_ratio(jnp.sum(correct(at_least_float32(x), sign)), jnp.sum(jnp.abs(sign)), 0.5)


def _relative(x: Any, sign: Any) -> tuple[Any, Any]:
    """x and sign of the used samples, checked, for what knows neither offset nor scale."""
    if inputs.traced(x, sign):
        return jnp.asarray(x), jnp.asarray(sign)
    x = inputs.floats("x", x)
    sign = inputs.signs(sign, len(x))
    return inputs.relative32("x", x[sign != 0]), sign[sign != 0]


def at_least_float32(x: jax.Array) -> jax.Array:
    """x, in float32 where its dtype is narrower or an integer."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unit_scale(x: jax.Array) -> jax.Array:
    """x over the power of two above its largest entry, so exactly, for what knows no scale."""
    exponent = jnp.frexp(jnp.max(jnp.abs(x), initial=0.0))[1]
    half = -exponent // 2  # 2⁻ᵉ in two steps, each of which float32 holds
    return jnp.ldexp(jnp.ldexp(x, half), -exponent - half)


def correct(x: jax.Array, sign: jax.Array) -> jax.Array:
    """[n]: |sign| on the own side of zero, half of it on zero, 0 on the other side."""
    side = jnp.sign(x) * jnp.sign(sign).astype(x.dtype)
    return 0.5 * (1.0 + side) * jnp.abs(sign).astype(x.dtype)


def pole_weights(sign: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How often each sample [n] counts in the positive pole, in the negative pole, and in all, as floats."""
    sign = sign.astype(jnp.float32)
    return jnp.maximum(sign, 0.0), jnp.maximum(-sign, 0.0), jnp.abs(sign)


def safe_ratio(top: jax.Array, bottom: jax.Array, otherwise: float) -> jax.Array:
    """top/bottom, and `otherwise` where bottom is not positive; elementwise."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1), otherwise)
