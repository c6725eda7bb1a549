"""Student's t on the host, in float64: tails, quantiles, and the mean of a few scores with its interval and its p.

Interval and p of one mean come from one t, so that p < 0.05 exactly where the 95 % interval leaves 0 out.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mood_jax.errors import UserError
from mood_jax.probes import inputs

_MOST_TERMS = 2000  # of the continued fraction, which needs O(√df)
_ROUNDINGS = 8  # a spread of so many units in the last place is rounding


def two_sided_p(t: Any, df: float) -> np.ndarray:
    """P(|T| > |t|) of Student's t with `df` degrees of freedom, elementwise: I(df/(df + t²); df/2, ½)."""
    t = np.abs(np.asarray(t, np.float64))
    small = np.where(t > 1, 1 / np.maximum(t, 1), t)  # so that no square overflows
    x = np.where(t > 1, df * small**2 / (df * small**2 + 1), df / (df + small**2))
    rest = np.where(t > 1, 1 / (df * small**2 + 1), small**2 / (df + small**2))  # 1 − x
    a, b = df / 2, 0.5
    direct = x < (a + 1) / (a + b + 2)  # where the fraction converges fast; else that of the complement
    front = np.exp(
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * np.log(np.maximum(x, 1e-300))
        + b * np.log(np.maximum(rest, 1e-300))
    )
    tail = front * _fraction(np.where(direct, x, 0.0), a, b) / a
    body = front * _fraction(np.where(direct, 0.0, rest), b, a) / b
    return np.where(np.isinf(t), 0.0, np.clip(np.where(direct, tail, 1.0 - body), 0.0, 1.0))


def _fraction(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """The continued fraction of the incomplete beta function, by Lentz's method (Press et al., section 6.4)."""
    tiny = 1e-300
    c, d = np.ones_like(x), 1.0 / np.maximum(1.0 - (a + b) * x / (a + 1.0), tiny)
    value = d
    for m in range(1, _MOST_TERMS):
        before = value
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            c, d = 1.0 + term / c, 1.0 + term * d
            c, d = np.where(c == 0, tiny, c), 1.0 / np.where(d == 0, tiny, d)
            value = value * c * d
        if np.all(np.abs(value - before) <= 1e-15 * np.abs(value)):
            break
    return value


@functools.lru_cache(maxsize=1024)
def quantile(p: float, df: float) -> float:
    """What |T| exceeds with probability p; inf for p = 0."""
    if p <= 0.0:
        return math.inf
    low, high = -700.0, 700.0  # of the logarithm
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(two_sided_p(math.exp(middle), df)) > p else (low, middle)
    return math.exp(0.5 * (low + high)) if p < 1 else 0.0


class MeanInterval(NamedTuple):
    """Mean, ends of its 95 % interval, and two-sided p that it is 0; each [...]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def mean_interval(scores: Sequence | np.ndarray, *, resolution: float = 0.0) -> MeanInterval:
    """Mean of scores over the first axis (questions), with Student's t interval and p.

    Exact for normal scores from two questions on. Scores that do not vary have no t: their standard error is then set
    so that p is that of exact sign flips, 2/2ⁿ, and the interval is the one that belongs to it.

    Args:
      scores: [questions, ...]; average several samples of a question first.
      resolution: differences of this size are rounding, if more than the dtype of the scores says.
    Raises:
      UserError: fewer than two questions, NaN, inf.
    """
    given = inputs.numbers("scores", scores, ndim=None)
    if given.ndim == 0 or len(given) < 2:
        raise UserError("scores of two questions at least are needed for the interval of a mean; ask more questions")
    n, values = len(given), given.astype(np.float64)
    exponent = np.frexp(np.abs(values).max(axis=0))[1]
    values, rounding = np.ldexp(values, -exponent), np.ldexp(resolution, -exponent)
    rounding = np.maximum(rounding, _ROUNDINGS * inputs.eps(given.dtype) * np.abs(values).max(axis=0))
    mean = values.mean(axis=0)
    se = values.std(axis=0, ddof=1) / math.sqrt(n)
    flat = np.ptp(values, axis=0) <= rounding
    nothing = flat & (np.abs(mean) <= rounding)
    se = np.where(flat, np.abs(mean) / quantile(2.0 ** (1 - n), n - 1.0), se)
    t = np.divide(mean, se, out=np.zeros_like(mean), where=(se > 0) & ~nothing)
    reach = quantile(0.05, n - 1.0) * np.where(nothing, 0.0, se)
    low, high = (np.ldexp(mean + side * reach, exponent) for side in (-1, 1))
    return MeanInterval(np.ldexp(mean, exponent), low, high, two_sided_p(t, n - 1.0))
