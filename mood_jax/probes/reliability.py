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
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import betainc

from mood_jax.errors import UserError
from mood_jax.probes.separation import safe_ratio

ICC_FORMS = ("1", "1,k", "2,1", "2,k", "3,1", "3,k")
# Ratings whose standard deviation is below this share of their size differ by float32 rounding only.
ROUNDING = 1e-6
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


def mean_squares(ratings: jax.Array) -> MeanSquares:
    """The two-way analysis of variance of ratings [n, k]; equals statsmodels' `anova_lm` of `y ~ C(row) + C(column)`.

    Errors: UserError for fewer than two subjects or two raters. Missing ratings are not supported: a subject or a
    rater with one is to be left out as a whole.
    """
    ratings = jnp.asarray(ratings, jnp.float32)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise UserError(
            f"agreement needs ratings [subjects, raters] with two or more of each, not the shape {list(ratings.shape)}"
        )
    n, k = ratings.shape
    size = jnp.max(jnp.abs(ratings))
    # An offset that they share would cost the sums of squares their digits.
    x = ratings - ratings[0, 0]
    x = x - jnp.mean(x)
    ok = jnp.sqrt(jnp.mean(jnp.square(x))) > ROUNDING * size
    x = jnp.where(ok, x, 0.0)
    row, column = jnp.mean(x, axis=1, keepdims=True), jnp.mean(x, axis=0, keepdims=True)
    return MeanSquares(
        rows=k * jnp.sum(jnp.square(row)) / (n - 1),
        columns=n * jnp.sum(jnp.square(column)) / (k - 1),
        error=jnp.sum(jnp.square(x - row - column)) / ((n - 1) * (k - 1)),
        within=jnp.sum(jnp.square(x - row)) / (n * (k - 1)),
        ok=ok,
    )


def icc(ratings: jax.Array, form: str = "2,1") -> ICC:
    """An intraclass correlation of ratings [n, k] with its 95 % interval; can be vmapped over axes.

    The intervals of forms 1 and 3 are exact for normal ratings; those of form 2 use Satterthwaite's degrees of freedom
    (Shrout & Fleiss 1979; McGraw & Wong 1996, table 7) and cover 92–95 % with five raters. Where a negative estimate
    gives MSC a negative weight, these degrees can fall below k − 1, the fewest that a sum of mean squares has, and the
    interval would leave its own estimate out; so they stop at k − 1.

    Args:
      ratings: [n, k], n ≥ 2, k ≥ 2, no missing ones.
      form: one of ICC_FORMS.
    Returns:
      ICC. Not ok where nothing varies that the form compares, and for the averaged forms also where the expected
      variance of a mean is estimated as 0 or less (all subjects have the same mean).
    Errors:
      UserError: too few ratings, or an unknown form.
    """
    if form not in ICC_FORMS:
        raise UserError(f"unknown form of ICC {form!r}; use one of {'; '.join(ICC_FORMS)}")
    return _all_forms(ratings)[form]


def _all_forms(ratings: jax.Array) -> dict[str, ICC]:
    squares = mean_squares(ratings)
    n, k = ratings.shape
    total = squares.rows + squares.columns + squares.error
    msr, msc, mse, msw = (safe_ratio(square, total, 0.0) for square in squares[:4])  # free of units
    between = jnp.full(3, n - 1.0)
    noise = jnp.stack([jnp.float32(n * (k - 1)), _satterthwaite(msr, msc, mse, n, k), jnp.float32((n - 1) * (k - 1))])
    # One bisection for all, since every one is compiled anew.
    quantiles = f_quantile(jnp.stack([between, noise]), jnp.stack([noise, between]))
    one = jnp.ones(())

    # An estimate is top/bottom at q = 1; at q = 1/F and at q = F′ the same expression is an end of its interval.
    def terms(form: str, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        if form == "2,1":
            return q * msr - mse, q * msr + (k * msc + (k * n - k - n) * mse) / n
        if form == "2,k":
            return q * msr - mse, q * msr + (msc - mse) / n
        error = msw if form.startswith("1") else mse
        return q * msr - error, q * msr + (0.0 if form.endswith("k") else (k - 1) * error)

    # Mean squares are rounded as the squares of deviations are, a difference of two as they themselves are.
    def floor(form: str) -> jax.Array:
        return ROUNDING * jnp.maximum(msr, (msc + mse) / n) if form == "2,k" else jnp.float32(ROUNDING**2)

    def ratio(form: str, q: jax.Array) -> jax.Array:
        top, bottom = terms(form, q)
        value = jnp.where(bottom > floor(form) * q, safe_ratio(top, bottom, 0.0), -ICC_LIMIT)
        return jnp.clip(value, -ICC_LIMIT, 1.0)

    def estimate(form: str) -> ICC:
        low, high = quantiles[:, int(form[0]) - 1]
        ok = squares.ok & (terms(form, one)[1] > floor(form))
        ends = jnp.stack([ratio(form, 1.0 / low), ratio(form, high)])
        return ICC(jnp.where(ok, ratio(form, one), 0.0), jnp.where(ok, ends, jnp.array([-1.0, 1.0])), ok)

    return {form: estimate(form) for form in ICC_FORMS}


def _satterthwaite(msr: jax.Array, msc: jax.Array, mse: jax.Array, n: int, k: int) -> jax.Array:
    """Degrees of freedom of a·MSC + b·MSE, the noise in ICC(2,1) and ICC(2,k)."""
    value = safe_ratio(n * (msr - mse), n * msr + k * msc + (k * n - k - n) * mse, 0.0)
    a = k * value * msc
    b = (n * (1.0 + (k - 1) * value) - k * value) * mse
    most = float((n - 1) * (k - 1))
    return jnp.maximum(safe_ratio(jnp.square(a + b), jnp.square(a) / (k - 1) + jnp.square(b) / most, most), k - 1.0)


@functools.partial(jax.jit, static_argnames=("tail",))  # the loop would else be compiled in every call
def f_quantile(df1: jax.Array, df2: jax.Array, tail: float = 0.025) -> jax.Array:
    """What F(df1, df2) exceeds with probability `tail`, .025 or .05; df1, df2 ≥ 1, elementwise.

    Bisection of the regularised incomplete beta function over log F ∈ [0, 8], on the device and for many axes at once.
    Float32 log-gammas limit it: within 2e-4 of `scipy.stats.f.isf` for up to 300 degrees of freedom, 1e-3 up to 1 200,
    2e-2 up to 10 000. An end of an ICC interval moves by half of that at most.
    """
    df1, df2 = jnp.broadcast_arrays(jnp.asarray(df1, jnp.float32), jnp.asarray(df2, jnp.float32))

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        exceeded = betainc(0.5 * df2, 0.5 * df1, jax.nn.sigmoid(jnp.log(df2 / df1) - middle)) > tail
        return jnp.where(exceeded, middle, low), jnp.where(exceeded, high, middle)

    low, high = lax.fori_loop(0, 30, halve, (jnp.zeros_like(df1), jnp.full_like(df1, _LOG_F_MAX)))
    return jnp.exp(0.5 * (low + high))


def variance_components(ratings: jax.Array) -> VarianceComponents:
    """Variances of subjects (questions), raters (seeds) and residual, by the expected mean squares of the random model.

    E MSR = σ² + k σ²_subject, E MSC = σ² + n σ²_rater, E MSE = σ². A negative solution is cut to 0 and flagged. With
    one rating per cell the residual holds the interaction of subject and rater too.

    Args:
      ratings: [n, k], n ≥ 2, k ≥ 2, no missing ones; can be vmapped over axes.
    Errors:
      UserError: too few ratings.
    """
    squares = mean_squares(ratings)
    n, k = ratings.shape
    estimate = jnp.stack([(squares.rows - squares.error) / k, (squares.columns - squares.error) / n, squares.error])
    variance = jnp.maximum(estimate, 0.0)
    return VarianceComponents(variance, safe_ratio(variance, jnp.sum(variance), 0.0), estimate < 0, squares.ok)


def reliability(ratings: jax.Array | np.ndarray) -> dict:
    """All of the above for every axis, in one compiled program.

    Args:
      ratings: [..., n, k]; leading dimensions (axes, readouts) are mapped over.
    Returns:
      icc: {form: ICC} for each of ICC_FORMS; components: VarianceComponents; mean_squares: MeanSquares. Every array
      has the leading dimensions of `ratings` in front.
    Errors:
      UserError: too few ratings, or one that is missing (NaN) or infinite.
    """
    values = np.asarray(ratings, np.float32)
    if values.ndim < 2:
        raise UserError(f"agreement needs ratings [..., subjects, raters], not the shape {list(values.shape)}")
    if not np.isfinite(values).all():
        missing = int(np.sum(~np.isfinite(values)))
        raise UserError(f"{missing} of {values.size} ratings are NaN or infinite; leave such subjects or raters out")
    return _reliability(jnp.asarray(values))


@jax.jit
def _reliability(ratings):
    if ratings.ndim > 2:
        return jax.vmap(_reliability)(ratings)
    return {
        "icc": _all_forms(ratings),
        "components": variance_components(ratings),
        "mean_squares": mean_squares(ratings),
    }
