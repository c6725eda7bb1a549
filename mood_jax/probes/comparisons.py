"""Comparisons: two readouts on one data set, two conditions of matched items, two directions.

n samples, d state size, K folds, Q questions, B bootstrap draws, S splits. Whatever is compared is paired: by sample,
by question, or by the halves of one data set.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import einsum, map_in_batches, shifted
from mood_jax.probes.folds import TIE, encode, grouped_folds
from mood_jax.probes.geometry import cosine_table
from mood_jax.probes.resampling import (
    bootstrap_counts,
    bootstrap_indices,
    cross_validated_variance,
    jackknife_variance,
    masked_variance,
    without_each_question,
)
from mood_jax.probes.separation import at_least_float32, auc, pole_weights, safe_ratio, unit_scale
from mood_jax.probes.spans import centred_gram, held_out_mean_difference, pole_contrast
from mood_jax.probes.student import mean_interval, quantile, two_sided_p
from mood_jax.probes.whitened import ledoit_wolf

_DRAWS_AT_ONCE = 128
FEWEST_QUESTIONS = 2  # of a standard error over questions
_ROUNDINGS = 8  # a spread of so many units in the last place is rounding
_SAME_SUM = 1e-12  # sums of the same numbers with other signs, added in another order, as a share of their sizes
# The least Ledoit–Wolf weight of the identity: below it float32 loses the metric across the samples' span.
SHRINKAGE_MIN = 0.01
# A squared length below this share of its data's is float32 rounding of the Gram matrix.
FLAT_GRAM = 1e-6


# --- scores against one other quantity of the same samples ---


class ClusteredCorrelation(NamedTuple):
    """Spearman's r [a] of a scores, its 95 % interval [a, 2] and p [a] of |ρ| ≤ `least`; a jackknife over questions."""

    r: np.ndarray
    ci95: np.ndarray
    p: np.ndarray


def clustered_correlation(
    x: Sequence | np.ndarray, y: Sequence | np.ndarray, question: Sequence | np.ndarray, *, least: float = 0.0
) -> ClusteredCorrelation:
    """Rank correlation of scores x [n, a] with y [n], samples of a question being no independent ones.

    Spearman's r, since token counts are skewed: under heavy tails a jackknife of Pearson's r is far too sure. Fisher's
    z with the standard error of the jackknife that leaves out one question at a time (Efron 1982), against t with
    Q − 1 degrees of freedom. z of ±1 is that of half a step of the ranks below 1. Nothing is surer than the order of
    all questions: p is not below 2/Q!, which is also what questions in perfect order have (so fewer than five
    questions never reach 0.05). Under independence 3 to 6 % have p < 0.05, whatever the tails, from four questions on.
    Where x or y does not vary r is 0, its interval −1 … 1 and p 1.

    Args:
      x: [n, a] of any scale and offset, y: [n].
      question: [n] ids.
      least: correlations of this size and below are the null hypothesis (0: any correlation is one too many). p is at
        its largest where ρ = ± `least`, and that p is given (a minimum-effect test: Murphy and Myors 1999).
    Raises:
      UserError: fewer than three questions, a `least` outside 0 … 1, NaN, inf, unequal lengths.
    """
    least = inputs.number("least", least)
    if not 0 <= least < 1:
        raise UserError(f"least is {least}; a correlation to be exceeded is at least 0 and below 1")
    table = inputs.numbers("x", x, ndim=2)
    lone, code = inputs.numbers("y", y, rows=len(table)), encode(question, len(table))
    n_questions = int(code.max()) + 1 if len(code) else 0
    if n_questions < 3:
        raise UserError(f"a correlation over questions needs three of them, not {n_questions}")
    ranks = np.stack([_centred_ranks(column) for column in (*table.T, lone)], axis=1)
    x, y = ranks[:, :-1], np.broadcast_to(ranks[:, -1:], (len(ranks), ranks.shape[1] - 1))
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])  # 6, n, a
    of_question = np.zeros((n_questions, 6, x.shape[1]))
    np.add.at(of_question, code, moments.swapaxes(0, 1))
    whole = of_question.sum(axis=0)
    nearest = 1 - 6 / (len(x) ** 3 - len(x))

    def correlation(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums, -2, 0)
        vx, vy = sxx - sx * sx / n, syy - sy * sy / n
        varies = (vx > FLAT_GRAM * whole[3]) & (vy > FLAT_GRAM * whole[4])
        return np.where(varies, (sxy - sx * sy / n) / np.sqrt(np.where(varies, vx * vy, 1.0)), 0.0)

    def fisher(r: np.ndarray) -> np.ndarray:
        return np.arctanh(np.clip(r, -nearest, nearest))

    r = np.clip(correlation(whole), -1.0, 1.0)
    z, left_out = fisher(r), fisher(correlation(whole - of_question))
    df = n_questions - 1.0
    spread = np.sum(np.square(left_out - left_out.mean(axis=0)), axis=0)
    surest = quantile(math.exp(math.log(2) - math.lgamma(n_questions + 1)), df)
    error = np.maximum(np.sqrt(df / n_questions * spread), np.abs(z) / surest)
    ok = (error > 0) | (z != 0)

    def above(distance: np.ndarray) -> np.ndarray:
        """The chance that t exceeds distance / error."""
        t = np.divide(
            distance, error, out=np.full_like(z, np.inf) * np.sign(distance + (distance == 0)), where=error > 0
        )
        both = two_sided_p(t, df)
        return np.where(t < 0, 1 - both / 2, both / 2)

    p = above(np.abs(z) - math.atanh(least)) + above(np.abs(z) + math.atanh(least))
    wide = quantile(0.05, df) * error
    ends = np.stack([np.minimum(np.tanh(z - wide), r), np.maximum(np.tanh(z + wide), r)], axis=-1)
    return ClusteredCorrelation(r, np.where(ok[:, None], ends, [-1.0, 1.0]), np.where(ok, np.minimum(p, 1.0), 1.0))


def _centred_ranks(x: np.ndarray) -> np.ndarray:
    """Ranks of x [n], of tied ones the mean, minus the mean rank; zeros where x varies by no more than rounding."""
    found, code, count = np.unique(x, return_inverse=True, return_counts=True)
    values = found.astype(np.float64)
    if len(found) == 1 or (values[-1] - values[0] <= _ROUNDINGS * inputs.eps(x.dtype) * np.abs(values).max() > 0):
        return np.zeros(len(x))
    last = np.cumsum(count)
    return (last - 0.5 * (count - 1))[code.reshape(-1)] - 0.5 * (len(x) + 1)


# --- two readouts or conditions on the same samples ---


def paired_auc_difference(
    x_a: Sequence | np.ndarray | jax.Array,
    x_b: Sequence | np.ndarray | jax.Array,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    *,
    states: tuple[Any, Any] | None = None,
    k: int = 5,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUC of readout a minus AUC of readout b on the same samples, by a bootstrap over their questions.

    Both are resampled together, so what a hard question does to both cancels. The variance of a bootstrap of Q
    questions is too small by (Q − 1)/Q, and known with Q − 1 degrees of freedom: both are taken into account, so that
    1 to 6 % of null differences have p < 0.05, and no more than 1.6 % p < 0.01, from two questions on.

    Args:
      x_a, x_b: [n] scores of any scale and offset, in the dtype in which they come. With `states`, they are the
      held-out standardised projections (`heldout(...)["x"]`), tied within `folds.TIE` of their root mean square.
      sign: [n] of +1 / −1, 0 = left out.
      question: [n] ids.
      states: the states [n, d] that gave x_a and x_b, if they were cross-validated: the variance then knows
      of the refits (untrimmed mean difference), as the head of `resampling.py` says. None: the directions came from
      elsewhere and are fixed.
      k: folds, where states are given, as in `heldout`.
      n_boot: bootstrap draws.
      seed: of draws and folds.
    Returns:
      a, b (the AUCs), difference, se, df, ci95 and p (Student's t of se and df: p < .05 where the interval leaves 0
      out).
    Raises:
      UserError: arrays of unequal length, NaN, inf, other labels, a missing pole, samples of fewer than
      `FEWEST_QUESTIONS` questions.
    """
    x = [inputs.numbers(name, values) for name, values in (("x_a", x_a), ("x_b", x_b))]
    signs = inputs.numbers("sign", sign)
    code = encode(question)
    if len({len(v) for v in (*x, signs, code)}) > 1:
        lengths = ", ".join(str(len(v)) for v in (*x, signs, code))
        raise UserError(f"x_a, x_b, sign and question differ in length: {lengths}")
    signs, used = inputs.signs(signs), signs != 0
    n_questions = len(set(code[used].tolist()))
    if n_questions < FEWEST_QUESTIONS:
        raise UserError(
            f"a difference of AUCs needs {FEWEST_QUESTIONS} questions, not {n_questions}; "
            "fewer are too few for its standard error"
        )
    fold, grams = grouped_folds(code, k, seed)[used], None
    if states is not None:
        kept = jnp.asarray(signs[used])
        both = [inputs.relative32("states", h, ndim=2, rows=len(signs))[used] for h in states]
        grams = jnp.stack([centred_gram(jnp.asarray(h), kept) for h in both])
    x = [values[used] for values in x]
    ties = [0.0 if states is None else TIE * _root_mean_square(values) for values in x]
    hits = np.stack([_pair_hits(values, signs[used], tie) for values, tie in zip(x, ties, strict=True)])
    variance = _paired_variance(
        jnp.asarray(hits, jnp.float32),
        jnp.asarray(signs[used]),
        jnp.asarray(encode(code[used])),
        jnp.asarray(fold),
        grams,
        numerics.key(seed),
        n_folds=int(fold.max()) + 1,
        n_questions=n_questions,
        n_boot=inputs.count("n_boot", n_boot),
    )
    n_pairs = int((signs > 0).sum() * (signs < 0).sum())
    a, b = (float(one.sum() / n_pairs) for one in hits)
    # No difference is known to better than half a pair, also where all draws agree.
    se = max(math.sqrt(float(variance) * n_questions / (n_questions - 1)), 0.5 / n_pairs)
    df = n_questions - 1
    reach = quantile(0.05, df) * se
    p = float(two_sided_p((a - b) / se, df))
    return {"a": a, "b": b, "difference": a - b, "se": se, "df": df, "ci95": [a - b - reach, a - b + reach], "p": p}


def _root_mean_square(x: np.ndarray) -> float:
    largest = float(np.abs(x).max(initial=0))
    return largest * math.sqrt(float(np.mean(np.square(x / largest)))) if largest > 0 else 0.0


def _pair_hits(x: np.ndarray, sign: np.ndarray, tie: float) -> np.ndarray:
    """[n, n]: 1 where i of the positive pole is above j of the negative one, ½ where they are tied, else 0."""
    left, right = x[:, None], x[None, :]
    above, level = (left > right + tie, left >= right - tie) if tie else (left > right, left >= right)
    return 0.5 * (above.astype(np.float64) + level) * ((sign > 0)[:, None] & (sign < 0)[None, :])


@functools.partial(jax.jit, static_argnames=("n_folds", "n_questions", "n_boot"))
def _paired_variance(hits, sign, question, fold, grams, key, *, n_folds, n_questions, n_boot):
    counts = bootstrap_counts(bootstrap_indices(key, n_boot, n_questions))
    member = (question[:, None] == jnp.arange(n_questions)[None, :]).astype(hits.dtype)
    pos, neg, _ = pole_weights(sign)
    hits = einsum("nq,tnm,mr->tqr", member, hits, member)
    pairs = einsum("bq,nq,n->b", counts, member, pos) * einsum("bq,nq,n->b", counts, member, neg)
    drawn = einsum("tbr,br->tb", einsum("bq,tqr->tbr", counts, hits), counts)
    variance = masked_variance(safe_ratio(drawn[0] - drawn[1], pairs, 0.0), pairs > 0)
    if grams is None:
        return variance

    def without(kept: jax.Array) -> jax.Array:
        a, b = jax.vmap(lambda gram: auc(held_out_mean_difference(gram, kept, fold, n_folds), kept, TIE))(grams)
        return a - b

    left_out = jackknife_variance(*without_each_question(without, sign, question, n_questions))
    return cross_validated_variance(variance, left_out)


# --- per-question differences and matched items ---


def sign_flip_p(scores: Sequence | np.ndarray, seed: int = 0, n: int = 10_000) -> float:
    """Two-sided p that the mean of `scores` [questions] is 0, by sign flips.

    Exact over all 2^m flips of m scores where there are at most n; else (1 + #≥) / (1 + n) of n random flips. Flips
    whose sums differ by rounding alone are tied with the observed one.

    Raises:
      UserError: no scores, NaN, inf.
    """
    values = inputs.floats("scores", scores, least=1)
    seed, n, m = inputs.seed(seed), inputs.count("n", n), len(values)
    values = values / (float(np.abs(values).max()) or 1.0)
    exact = m < 63 and 2**m <= n
    if exact:
        flips = 1.0 - 2.0 * ((np.arange(2**m)[:, None] >> np.arange(m)) & 1)
    else:
        flips = np.random.default_rng(seed).integers(0, 2, (n, m), dtype=np.int8) * 2.0 - 1.0
    observed = abs(float(values.sum()))
    reached = int((np.abs(flips @ values) >= observed - _SAME_SUM * float(np.abs(values).sum())).sum())
    return reached / 2**m if exact else (1 + reached) / (1 + n)


def paired_test(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    question: Sequence | np.ndarray | None = None,
) -> dict[str, Any]:
    """Do paired scores a [m] and b [m] differ in the mean over questions? Student's t of the differences.

    Args:
      a, b: one pair a row.
      question: [m] ids: the differences of a question are averaged first. None: every row is its own question.
    Returns:
      difference (mean over questions of a − b), ci95 and p (`student.mean_interval`: p < .05 where the interval leaves
      0 out), n (questions). `sign_flip_p` of the differences is the test without the normal distribution.
    Raises:
      UserError: no pairs, fewer than two questions, arrays of unequal length, NaN, inf.
    """
    first, second = inputs.numbers("a", a), inputs.numbers("b", b)
    code = np.arange(len(first)) if question is None else encode(question)
    if not len(first) == len(second) == len(code):
        raise UserError("paired scores need one a, one b and one question a row; the lengths differ")
    if len(first) == 0:
        raise UserError("a paired test needs at least one pair; the list is empty")
    rounding = max(inputs.eps(v.dtype) * float(np.abs(v.astype(np.float64)).max()) for v in (first, second))
    differences = first.astype(np.float64) - second.astype(np.float64)
    differences = np.bincount(code, differences) / np.bincount(code)
    mean, low, high, p = mean_interval(differences, resolution=_ROUNDINGS * rounding)
    return {"difference": float(mean), "ci95": [float(low), float(high)], "p": float(p), "n": len(differences)}


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> dict[str, float]:
    """McNemar's exact test on matched items: is a true more often than b?

    Of the items on which the two disagree, half should go either way: the two-sided binomial p, min(1, 2 P(X ≤ min)).

    Returns:
      only_a, only_b (items that hold in one alone), n (items), p (1 where nothing disagrees).
    Raises:
      UserError: arrays of unequal length, values that are neither true nor false.
    """
    first, second = inputs.flags("a", a), inputs.flags("b", b)
    if len(first) != len(second):
        raise UserError(f"McNemar's test needs matched items, not {len(first)} and {len(second)}")
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))  # whole numbers: exact for any n
    return {"only_a": only_a, "only_b": only_b, "n": len(first), "p": min(1.0, tail / 2 ** (n - 1)) if n else 1.0}


# --- directions ---


class Split(NamedTuple):
    """Cosines of the directions of two halves, over all splits; scalars.

    full_length: what the cosine of two directions would be, each fitted on as many questions as there are. ok: False,
    and all 0, where no split has a direction in both halves.
    """

    mean: jax.Array
    sd: jax.Array
    full_length: jax.Array
    ok: jax.Array


def half_splits(n_questions: int, n_splits: int = 200, seed: int = 0) -> np.ndarray:
    """Random halves [S, Q] of the questions, as ±1; sizes differ by one at most."""
    n_questions, n_splits = inputs.count("n_questions", n_questions), inputs.count("n_splits", n_splits)
    seed = inputs.seed(seed)
    side = np.where(np.arange(n_questions) < n_questions // 2, 1, -1).astype(np.int32)
    return np.random.default_rng(seed).permuted(np.tile(side, (n_splits, 1)), axis=1)


def split_half(
    gram: jax.Array, sign: jax.Array, question: jax.Array, splits: jax.Array, d: int
) -> tuple[Split, Split, jax.Array]:
    """Cosine of the mean differences of two halves of the questions: plain, and in the Mahalanobis metric.

    Exact for the untrimmed mean difference, from the Gram matrix alone.

    `full_length` is Spearman and Brown's 2r/(1+r). A mean difference is the true one plus an error whose squared
    length is inverse to the number of questions, and in many dimensions errors of different questions are orthogonal:
    with s = ‖error‖²/‖truth‖² of a half, r = 1/(1+s), and two sets of full size have 1/(1+s/2) = 2r/(1+r). So it is
    the ceiling of cross-set cosines, and its root the expected cosine with the true direction. Below 0 it is cut at 0.

    The Mahalanobis cosine is u'Σ⁻¹v/√(u'Σ⁻¹u v'Σ⁻¹v) with the Ledoit–Wolf covariance *within pole and half* of each
    split. Centring the halves apart matters: with n ≪ d, residuals about the means of both halves span exactly what
    the two directions differ in, the rest of either is common to both, and Σ⁻¹ weighs it so much more that directions
    of pure noise would agree.

    Args:
      gram: [n, n] from `centred_gram`.
      sign, question: [n].
      splits: [S, Q] from `half_splits`; 0 for a question (or a split) that is padding.
      d: state size, of which the shrinkage depends.
    Returns:
      plain and Mahalanobis `Split`, and the mean weight of the identity in Σ.
    """
    used = (sign != 0).astype(gram.dtype)
    spread = safe_ratio(jnp.sum(jnp.diagonal(gram) * used), jnp.sum(used), 0.0)

    def one(split: jax.Array) -> jax.Array:
        side = split[jnp.maximum(question, 0)]
        halves = jnp.stack([jnp.where(side == half, sign, 0) for half in (1, -1)])
        directions = jax.vmap(pole_contrast)(halves)
        products = einsum("an,nm,bm->ab", directions, gram, directions)
        cosine, ok = _cosine(products, FLAT_GRAM * spread)
        groups = jnp.concatenate([halves > 0, halves < 0]).astype(gram.dtype)
        residuals = _without_group_means(gram, groups)  # residuals · samples
        metric, metric_ok, shrinkage = _inverse_cosine(
            products,
            einsum("nm,am->an", residuals, directions),
            _without_group_means(residuals.T, groups),
            jnp.sum(groups, axis=0),
            d,
        )
        metric_ok &= ok
        return jnp.stack([v.astype(gram.dtype) for v in (cosine, ok, metric, metric_ok, shrinkage)])

    cosine, ok, metric, metric_ok, shrinkage = map_in_batches(one, splits, _DRAWS_AT_ONCE).T
    mean_shrinkage = safe_ratio(jnp.sum(shrinkage * metric_ok), jnp.sum(metric_ok), 0.0)
    return _split(cosine, ok > 0), _split(metric, metric_ok > 0), mean_shrinkage


@jax.jit
def _split_half(states, sign, question, splits):
    return split_half(centred_gram(states, sign), sign, question, splits, states.shape[1])


def split_half_cosine(
    states: jax.Array | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    *,
    n_splits: int = 100,
    seed: int = 0,
) -> tuple[Split, Split]:
    """`split_half` of one axis, states [n, d]: the plain cosine and the Mahalanobis one.

    Raises:
      UserError: NaN, inf, other labels, a pole that has no sample, unequal lengths.
    """
    states = inputs.relative32("states", states, ndim=2)
    sign = inputs.signs(sign, len(states))
    code = encode(question, len(sign))
    splits = half_splits(int(code.max()) + 1, n_splits, seed)
    plain, metric, _ = _split_half(jnp.asarray(states), jnp.asarray(sign), jnp.asarray(code), jnp.asarray(splits))
    return plain, metric


def mahalanobis_cosine(
    u: jax.Array, v: jax.Array, states: jax.Array, sign: jax.Array, *, shrinkage: float | None = None
) -> jax.Array:
    """u'Σ⁻¹v/√(u'Σ⁻¹u v'Σ⁻¹v), Σ the covariance of the states within the poles: agreement where the states are quiet.

    Plain cosines of directions are dominated by the few coordinates of large variance; in this metric a difference
    counts by how unlikely it is. In the dual: n × n work beside two products with the states. u and v are not to be
    fitted on these very states (see `split_half`), but on other ones, or on both poles of another set.

    Args:
      u, v: [d].
      states: [n, d], sign: [n].
      shrinkage: weight of the identity (times the mean variance) in Σ, in (0, 1]; None: Ledoit and Wolf's, as
      `sklearn.covariance.LedoitWolf` on the residuals, and `SHRINKAGE_MIN` at least.
    Returns:
      A scalar; 0 where u, v or the spread within the poles is 0.
    Raises:
      UserError: outside traced code, NaN, inf, other labels, a pole that has no sample, unequal lengths.
    """
    if shrinkage is not None and not inputs.traced(shrinkage):
        shrinkage = inputs.number("shrinkage", shrinkage, 0.0, 1.0)
    if not inputs.traced(u, v, states, sign):
        states = inputs.relative32("states", states, ndim=2)
        sign = inputs.signs(sign, len(states))
        u, v = (inputs.directions32(name, w, rows=states.shape[1]) for name, w in (("u", u), ("v", v)))
    u, v, states = (unit_scale(at_least_float32(jnp.asarray(w))) for w in (u, v, shifted(jnp.asarray(states))))
    sign = jnp.asarray(sign)
    groups = jnp.stack([sign > 0, sign < 0]).astype(states.dtype)
    residuals = _without_group_means(states, groups)
    pair = jnp.stack([u, v])
    return _inverse_cosine(
        einsum("ad,bd->ab", pair, pair),
        einsum("ad,nd->an", pair, residuals),
        einsum("nd,md->nm", residuals, residuals),
        jnp.sum(groups, axis=0),
        states.shape[1],
        shrinkage,
    )[0]


def cross_set_cosine(vectors: jax.Array) -> dict[str, jax.Array]:
    """Cosines of the directions of one axis from several calibration sets.

    Args:
      vectors: [S, d], of any length; a zero vector is no direction, and in no pair.
    Returns:
      cosine: [S, S]. mean: over the pairs of different sets. floor: √(2/(πd)), the mean |cosine| of random directions.
    """
    vectors = jnp.asarray(inputs.directions32("vectors", vectors, ndim=2))
    cosine, floor, ok = (jnp.asarray(x) for x in cosine_table(vectors))
    other = (ok[:, None] & ok[None, :] & ~jnp.eye(len(ok), dtype=bool)).astype(cosine.dtype)
    return {"cosine": cosine, "mean": safe_ratio(jnp.sum(cosine * other), jnp.sum(other), 0.0), "floor": floor}


def _without_group_means(rows: jax.Array, groups: jax.Array) -> jax.Array:
    """rows [n, m] minus the mean of their group; 0 for a row in none. groups: [g, n] of 1 and 0."""
    means = einsum("gn,nm->gm", groups, rows) / jnp.maximum(jnp.sum(groups, axis=1, keepdims=True), 1.0)
    return rows * jnp.sum(groups, axis=0)[:, None] - einsum("gn,gm->nm", groups, means)


def _inverse_cosine(
    products: jax.Array, along: jax.Array, within: jax.Array, weight: jax.Array, d: int, shrinkage: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosine of two vectors under Σ⁻¹, Σ = (1 − s) XᵀX/n + s (tr/d) I, by Woodbury's identity.

    Args:
      products: [2, 2] plain products of the vectors.
      along: [2, m] their products with the residuals X.
      within: [m, m] Gram matrix XXᵀ.
      weight: [m], 0 = no sample.
      d: state size.
      shrinkage: s, or None for Ledoit and Wolf's.
    Returns:
      cosine, whether it is defined, s.
    """
    trace = jnp.trace(within)
    ok = trace > 0
    scale = jnp.where(ok, trace, 1.0)
    s = ledoit_wolf(within, weight, d)[0] if shrinkage is None else jnp.asarray(shrinkage, within.dtype)
    s, within = jnp.maximum(s, SHRINKAGE_MIN), within / scale
    inner = (1.0 - s) * within + (s / d) * jnp.eye(within.shape[0], dtype=within.dtype)
    factor = jax.scipy.linalg.cho_factor(inner)
    inverse = products - (1.0 - s) / scale * einsum("an,nb->ab", along, jax.scipy.linalg.cho_solve(factor, along.T))
    cosine, defined = _cosine(inverse, 0.0)
    return jnp.where(ok, cosine, 0.0), ok & defined, s


def _cosine(products: jax.Array, floor: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Cosine of two vectors from their products [2, 2], and whether both squared lengths exceed `floor`."""
    ok = (products[0, 0] > floor) & (products[1, 1] > floor)
    length = jnp.sqrt(jnp.where(ok, products[0, 0], 1.0)) * jnp.sqrt(jnp.where(ok, products[1, 1], 1.0))
    return jnp.where(ok, jnp.clip(products[0, 1] / length, -1.0, 1.0), 0.0), ok


def _split(cosine: jax.Array, ok: jax.Array) -> Split:
    mean = safe_ratio(jnp.sum(cosine * ok), jnp.sum(ok), 0.0)
    positive = jnp.maximum(mean, 0.0)
    return Split(mean, jnp.sqrt(masked_variance(cosine, ok)), 2.0 * positive / (1.0 + positive), jnp.any(ok))
