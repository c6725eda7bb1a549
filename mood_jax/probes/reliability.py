"""How well repeated measurements agree: intraclass correlations and variance components (method, section 8).

n subjects (neutral questions, or scenarios), k raters (seeds, runs, samples); ratings [n, k], one number in every
cell. Two-way analysis of variance with its mean squares MSR (rows: subjects), MSC (columns: raters), MSE (what is
left: interaction and noise, which one rating per cell cannot tell apart) and MSW (within rows: MSC and MSE together).

    form       asks                                                                       raters
    1 / 1,k    agreement of one rating / of the mean of k                                 others for every subject
    2,1 / 2,k  absolute agreement: a shift between raters counts as disagreement          a sample of all raters
    3,1 / 3,k  consistency: a shift between raters does not count                         these and no others

Names and formulas are those of Shrout & Fleiss (1979) and McGraw & Wong (1996): ICC(1), ICC(1,k), ICC(A,1), ICC(A,k),
ICC(C,1), ICC(C,k) there. An estimate is negative where subjects differ less than their ratings do; it is not cut.

Given numbers are computed on the host in float64, with SciPy's quantiles; traced ones by the same lines on the device.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import betainc
from scipy.special import fdtri

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import ROUNDING, namespace, rounding

ICC_FORMS = ("1", "1,k", "2,1", "2,k", "3,1", "3,k")
# The averaged forms have no lower bound; they are cut here so that they can be written to JSON.
ICC_LIMIT = 1e6
_LOG_F_MAX = 8.0  # the largest .975 quantile with a degree of freedom or more on both sides is 1 018


class MeanSquares(NamedTuple):
    """Mean squares of a two-way analysis of variance, scalars, in squared units of the ratings.

    `ok` False, and all four 0: the ratings are all alike.
    """

    rows: jax.Array
    columns: jax.Array
    error: jax.Array
    within: jax.Array
    ok: jax.Array


class ICC(NamedTuple):
    """An intraclass correlation with its 95 % interval [2]; 0 with [−1, 1] where it is undefined (`ok` False)."""

    value: jax.Array
    ci95: jax.Array
    ok: jax.Array


class VarianceComponents(NamedTuple):
    """Variances [3] of subjects, raters and residual, their shares of the sum, and which were negative and cut to 0.

    `ok` False, and all zero: the ratings are all alike.
    """

    variance: jax.Array
    share: jax.Array
    cut: jax.Array
    ok: jax.Array


def mean_squares(ratings: Any) -> MeanSquares:
    """The two-way analysis of variance of ratings [n, k]; equals statsmodels' `anova_lm` of `y ~ C(row) + C(column)`.

    Errors: UserError for fewer than two subjects or two raters. Missing ratings are not supported: a subject or a
    rater with one is to be left out as a whole.
    """
    return _in_units(*_mean_squares(*_taken(ratings)))


def _taken(ratings: Any, ndim: int | None = 2) -> tuple[Any, float]:
    """Ratings [..., n, k] ready for the analysis, and the share of their size that is rounding."""
    x = inputs.numbers("ratings", ratings, ndim=ndim)
    if x.ndim < 2 or min(x.shape[-2:]) < 2:
        raise UserError(
            f"agreement needs ratings [subjects, raters] with two or more of each, not the shape {list(x.shape)}"
        )
    return (x, ROUNDING) if inputs.traced(x) else (x.astype(np.float64), rounding(x.dtype))


def _mean_squares(ratings: Any, share: float) -> tuple[MeanSquares, Any]:
    """Mean squares of ratings [..., n, k] in units of their largest deviation, and that: [...]."""
    xp = namespace(ratings)
    n, k = ratings.shape[-2:]
    size = xp.max(xp.abs(ratings), axis=(-2, -1))
    # An offset that they share would cost the sums of squares their digits.
    x = ratings - ratings[..., :1, :1]
    x = x - xp.mean(x, axis=(-2, -1), keepdims=True)
    unit = xp.max(xp.abs(x), axis=(-2, -1))
    ok = unit > share * size
    x = xp.where(ok[..., None, None], x, 0.0) / xp.where(ok, unit, 1.0)[..., None, None]
    row, column = xp.mean(x, axis=-1, keepdims=True), xp.mean(x, axis=-2, keepdims=True)

    def squares(parts: Any) -> Any:
        return xp.sum(xp.square(parts), axis=(-2, -1))

    return MeanSquares(
        rows=k * squares(row) / (n - 1),
        columns=n * squares(column) / (k - 1),
        error=squares(x - row - column) / ((n - 1) * (k - 1)),
        within=squares(x - row) / (n * (k - 1)),
        ok=ok,
    ), unit


def _in_units(squares: MeanSquares, unit: Any) -> MeanSquares:
    rows, columns, error, within = (square * unit * unit for square in squares[:4])
    return MeanSquares(rows, columns, error, within, squares.ok)


def icc(ratings: Any, form: str = "2,1") -> ICC:
    """An intraclass correlation of ratings [n, k] with its 95 % interval; can be vmapped over axes.

    The intervals of forms 1 and 3 are exact for normal ratings; those of form 2 use Satterthwaite's degrees of freedom
    (Shrout & Fleiss 1979; McGraw & Wong 1996, table 7) and cover 92–95 % with five raters. With two raters that differ
    more than the subjects do they cover 85 % only: the variance of the raters is then known from one difference. Where
    a negative estimate gives MSC a negative weight, these degrees can fall below k − 1, the fewest that a sum of mean
    squares has, and the interval would leave its own estimate out; so they stop at k − 1.

    Args:
      ratings: [n, k], n ≥ 2, k ≥ 2, no missing ones.
      form: one of ICC_FORMS.
    Returns:
      ICC. Not ok where nothing varies that the form compares, and for the averaged forms also where the expected
      variance of a mean is estimated as 0 or less (all subjects have the same mean).
    Errors:
      UserError: too few ratings, one that is no finite number, or an unknown form.
    """
    if form not in ICC_FORMS:
        raise UserError(f"unknown form of ICC {form!r}; use one of {'; '.join(ICC_FORMS)}")
    ratings, share = _taken(ratings)
    n, k = ratings.shape[-2:]
    return _all_forms(_mean_squares(ratings, share)[0], n, k, share)[form]


def _ratio(top: Any, bottom: Any, otherwise: Any) -> Any:
    """top/bottom, and `otherwise` where bottom is not positive; elementwise, NumPy or JAX."""
    xp = namespace(top, bottom)
    return xp.where(bottom > 0, top / xp.where(bottom > 0, bottom, 1.0), otherwise)


def _all_forms(squares: MeanSquares, n: int, k: int, share: float) -> dict[str, ICC]:
    """Every form from mean squares [...] of n subjects and k raters."""
    xp = namespace(*squares)
    total = squares.rows + squares.columns + squares.error
    msr, msc, mse, msw = (_ratio(square, total, 0.0) for square in squares[:4])  # free of units
    between = xp.full((3, *msr.shape), n - 1.0)
    free = xp.ones_like(msr)
    noise = xp.stack([n * (k - 1) * free, _satterthwaite(msr, msc, mse, n, k), (n - 1) * (k - 1) * free])
    # One bisection for all, since each is compiled.
    quantiles = f_quantile(xp.stack([between, noise]), xp.stack([noise, between]))

    # An estimate is top/bottom at q = 1; at q = 1/F and at q = F′ the same expression is an end of its interval.
    def terms(form: str, q: Any) -> tuple[Any, Any]:
        if form == "2,1":
            return q * msr - mse, q * msr + (k * msc + (k * n - k - n) * mse) / n
        if form == "2,k":
            return q * msr - mse, q * msr + (msc - mse) / n
        error = msw if form.startswith("1") else mse
        return q * msr - error, q * msr + (0.0 if form.endswith("k") else (k - 1) * error)

    # Mean squares are rounded as the squares of deviations are, a difference of two as they themselves are.
    def floor(form: str) -> Any:
        return share * xp.maximum(msr, (msc + mse) / n) if form == "2,k" else share**2 * free

    def ratio(form: str, q: Any) -> Any:
        top, bottom = terms(form, q)
        value = xp.where(bottom > floor(form) * q, _ratio(top, bottom, 0.0), -ICC_LIMIT)
        return xp.clip(value, -ICC_LIMIT, 1.0)

    def estimate(form: str) -> ICC:
        low, high = quantiles[:, int(form[0]) - 1]
        ok = squares.ok & (terms(form, 1.0)[1] > floor(form))
        ends = xp.stack([ratio(form, 1.0 / low), ratio(form, high)], axis=-1)
        return ICC(xp.where(ok, ratio(form, 1.0), 0.0), xp.where(ok[..., None], ends, xp.array([-1.0, 1.0])), ok)

    return {form: estimate(form) for form in ICC_FORMS}


def _satterthwaite(msr: Any, msc: Any, mse: Any, n: int, k: int) -> Any:
    """Degrees of freedom of a·MSC + b·MSE, the noise in ICC(2,1) and ICC(2,k)."""
    xp = namespace(msr)
    value = _ratio(n * (msr - mse), n * msr + k * msc + (k * n - k - n) * mse, 0.0)
    a = k * value * msc
    b = (n * (1.0 + (k - 1) * value) - k * value) * mse
    most = float((n - 1) * (k - 1))
    degrees = _ratio(xp.square(a + b), xp.square(a) / (k - 1) + xp.square(b) / most, most)
    return xp.maximum(degrees, k - 1.0)


def f_quantile(df1: Any, df2: Any, tail: float = 0.025) -> Any:
    """What F(df1, df2) exceeds with probability `tail`; df1, df2 ≥ 1, elementwise.

    Given degrees of freedom are looked up with SciPy. For traced ones, `tail` 0.025 or 0.05, the
    regularised incomplete beta function is bisected over log F ∈ [0, 8], on the device and for many axes at once.
    Float32 log-gammas limit that: it is within 2e-4 of SciPy for up to 300 degrees of freedom, 1e-3 up to 1,200, 2e-2
    up to 10,000. An end of an ICC interval moves by half of that at most.

    Errors: UserError for degrees of freedom below 1 and for a tail outside (0, 1).
    """
    if inputs.traced(df1, df2):
        return _bisected(df1, df2, tail=tail)
    first, second = (inputs.floats(name, x, ndim=None) for name, x in (("df1", df1), ("df2", df2)))
    if not 0 < (tail := inputs.number("tail", tail)) < 1 or min(first.min(initial=1), second.min(initial=1)) < 1:
        raise UserError("quantiles of F need degrees of freedom of 1 or more and a tail between 0 and 1")
    return 1.0 / fdtri(second, first, tail)  # 1/F swaps the degrees of freedom: exact in the tail


@functools.partial(jax.jit, static_argnames=("tail",))  # the loop would else be compiled in every call
def _bisected(df1: jax.Array, df2: jax.Array, tail: float) -> jax.Array:
    df1, df2 = jnp.broadcast_arrays(jnp.asarray(df1, jnp.float32), jnp.asarray(df2, jnp.float32))

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        exceeded = betainc(0.5 * df2, 0.5 * df1, jax.nn.sigmoid(jnp.log(df2 / df1) - middle)) > tail
        return jnp.where(exceeded, middle, low), jnp.where(exceeded, high, middle)

    low, high = lax.fori_loop(0, 30, halve, (jnp.zeros_like(df1), jnp.full_like(df1, _LOG_F_MAX)))
    return jnp.exp(0.5 * (low + high))


def variance_components(ratings: Any) -> VarianceComponents:
    """Variances of subjects (questions), raters (seeds) and residual, by the expected mean squares of the random model.

    E MSR = σ² + k σ²_subject, E MSC = σ² + n σ²_rater, E MSE = σ². A negative solution is cut to 0 and flagged. With
    one rating per cell the residual holds the interaction of subject and rater too.

    Args:
      ratings: [n, k], n ≥ 2, k ≥ 2, no missing ones; can be vmapped over axes.
    Errors:
      UserError: too few ratings, or one that is no finite number.
    """
    ratings, share = _taken(ratings)
    n, k = ratings.shape[-2:]
    return _components(*_mean_squares(ratings, share), n, k)


def _components(squares: MeanSquares, unit: Any, n: int, k: int) -> VarianceComponents:
    xp = namespace(*squares)
    estimate = xp.stack(
        [(squares.rows - squares.error) / k, (squares.columns - squares.error) / n, squares.error], axis=-1
    )
    kept = xp.maximum(estimate, 0.0)
    share = _ratio(kept, xp.sum(kept, axis=-1, keepdims=True), 0.0)
    return VarianceComponents(kept * (unit * unit)[..., None], share, estimate < 0, squares.ok)


def reliability(ratings: Any) -> dict:
    """All of the above for every axis.

    Args:
      ratings: [..., n, k]; leading dimensions (axes, readouts) are mapped over.
    Returns:
      icc: {form: ICC} for each of ICC_FORMS; components: VarianceComponents; mean_squares: MeanSquares. Every array
      has the leading dimensions of `ratings` in front.
    Errors:
      UserError: too few ratings, or one that is missing (NaN) or infinite.
    """
    ratings, share = _taken(ratings, None)
    squares, unit = _mean_squares(ratings, share)
    n, k = ratings.shape[-2:]
    return {
        "icc": _all_forms(squares, n, k, share),
        "components": _components(squares, unit, n, k),
        "mean_squares": _in_units(squares, unit),
    }
