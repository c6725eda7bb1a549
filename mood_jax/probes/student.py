"""Student's t on the host, in float64: tails, quantiles, and the mean of a few scores with its interval and its p.

Interval and p of one mean come from one t, so that p < 0.05 exactly where the 95 % interval leaves 0 out.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from mood_jax.errors import UserError
from mood_jax.probes import inputs

_ROUNDINGS = 8  # a spread of so many units in the last place is rounding


def two_sided_p(t: Any, df: float) -> np.ndarray:
    """P(|T| > |t|) of Student's t with `df` degrees of freedom, elementwise."""
    return 2.0 * stdtr(df, -np.abs(np.asarray(t, np.float64)))


def quantile(p: float, df: float) -> float:
    """What |T| exceeds with probability p; inf for p = 0."""
    return math.inf if p <= 0.0 else -float(stdtrit(df, p / 2)) if p < 1 else 0.0


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
