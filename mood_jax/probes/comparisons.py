"""Comparisons: two readouts on one data set, two conditions of matched items, two directions.

n samples, d state size, K folds, Q questions, B bootstrap draws, S splits. Whatever is compared is paired: by sample,
by question, or by the halves of one data set.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc

from mood_jax.errors import UserError
from mood_jax.probes.arrays import einsum, map_in_batches, shifted
from mood_jax.probes.folds import TIE, encode, grouped_folds
from mood_jax.probes.geometry import cosine_table
from mood_jax.probes.reliability import f_quantile
from mood_jax.probes.resampling import (
    bootstrap_counts,
    bootstrap_indices,
    bootstrap_mean_ci,
    cross_validated_variance,
    jackknife_variance,
    masked_variance,
    without_each_question,
)
from mood_jax.probes.separation import auc, pair_order, pole_weights, safe_ratio
from mood_jax.probes.spans import centred_gram, held_out_mean_difference, pole_contrast
from mood_jax.probes.whitened import ledoit_wolf

_Z = 1.959964
_DRAWS_AT_ONCE = 128
# The least Ledoit–Wolf weight of the identity: below it float32 loses the metric across the samples' span.
SHRINKAGE_MIN = 0.01
# A squared length below this share of its data's is float32 rounding of the Gram matrix.
FLAT_GRAM = 1e-6


# --- scores against one other quantity of the same samples ---


class ClusteredCorrelation(NamedTuple):
    """Pearson's r [a] of a scores, its 95 % interval [a, 2] and p [a] of |ρ| ≤ `least`; a jackknife over questions."""

    r: np.ndarray
    ci95: np.ndarray
    p: np.ndarray


def clustered_correlation(
    x: np.ndarray, y: np.ndarray, question: Sequence | np.ndarray, *, least: float = 0.0
) -> ClusteredCorrelation:
    """Correlation of scores x [n, a] with y [n], samples of a question being no independent ones.

    Fisher's z with the standard error of the jackknife that leaves out one question at a time (Efron 1982), against
    t with Q − 1 degrees of freedom. Where x or y does not vary r is 0, its interval −1 … 1 and p 1.

    Args:
      least: correlations of this size and below are the null hypothesis (0: any correlation is one too many). p is at
        its largest where ρ = ± `least`, and that p is given (a minimum-effect test: Murphy and Myors 1999).

    Errors: UserError for fewer than three questions, and a `least` outside 0 … 1.
    """
    if not 0 <= least < 1:
        raise UserError(f"least is {least}; a correlation to be exceeded is at least 0 and below 1")
    _, code = np.unique(np.asarray(question), return_inverse=True)
    n_questions = int(code.max()) + 1
    if n_questions < 3:
        raise UserError(f"a correlation over questions needs three of them, not {n_questions}")
    x = np.asarray(x, np.float64)
    y = np.broadcast_to(np.asarray(y, np.float64)[:, None], x.shape)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)  # the sums below keep their digits
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y])  # 6, n, a
    of_question = np.zeros((n_questions, 6, x.shape[1]))
    np.add.at(of_question, code, moments.swapaxes(0, 1))
    whole = of_question.sum(axis=0)

    def fisher(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(sums, -2, 0)
        vx, vy = sxx - sx * sx / n, syy - sy * sy / n
        varies = (vx > FLAT_GRAM * whole[3]) & (vy > FLAT_GRAM * whole[4])
        r = np.where(varies, (sxy - sx * sy / n) / np.sqrt(np.where(varies, vx * vy, 1.0)), 0.0)
        return np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))

    z, left_out = fisher(whole), fisher(whole - of_question)
    spread = np.sum(np.square(left_out - left_out.mean(axis=0)), axis=0)
    error = np.sqrt((n_questions - 1) / n_questions * spread)
    ok = error > 0
    df = n_questions - 1.0

    def above(distance: np.ndarray) -> np.ndarray:
        """The chance that t exceeds distance / error."""
        t = np.divide(distance, error, out=np.zeros_like(z), where=ok)
        both = np.asarray(betainc(df / 2, 0.5, df / (df + np.square(t))), np.float64)
        return np.where(t < 0, 1 - both / 2, both / 2)

    p = above(np.abs(z) - math.atanh(least)) + above(np.abs(z) + math.atanh(least))
    wide = _t_quantile(df) * error
    ends = np.stack([np.tanh(z - wide), np.tanh(z + wide)], axis=-1)
    return ClusteredCorrelation(np.tanh(z), np.where(ok[:, None], ends, [-1.0, 1.0]), np.where(ok, p, 1.0))


def _t_quantile(df: float) -> float:
    """What |t| exceeds with probability .05."""
    return math.sqrt(float(f_quantile(jnp.ones(1), jnp.full(1, df), tail=0.05)[0]))


# --- two readouts or conditions on the same samples ---


def paired_auc_difference(
    x_a: jax.Array | np.ndarray,
    x_b: jax.Array | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    *,
    states: tuple[jax.Array | np.ndarray, jax.Array | np.ndarray] | None = None,
    k: int = 5,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """AUC of readout a minus AUC of readout b on the same samples, by a bootstrap over their questions.

    Both are resampled together, so what a hard question does to both cancels.

    Args:
      x_a, x_b: [n] held-out standardised projections (`heldout(...)["x"]`), or any scores.
      sign: [n] of +1 / −1, 0 = left out.
      question: [n] ids.
      states: the states [n, d] that gave x_a and x_b, if they were cross-validated: the variance then knows
      of the refits (untrimmed mean difference), as the head of `resampling.py` says. None: the directions came from
      elsewhere and are fixed.
      k: folds, where states are given, as in `heldout`.
      n_boot: bootstrap draws.
      seed: of draws and folds.
    Returns:
      a, b (the AUCs), difference, ci95 (normal), p (two-sided, of the same standard error: p < .05 where the interval
      leaves 0 out).
    Raises:
      UserError: arrays of unequal length.
    """
    if not len(x_a) == len(x_b) == len(sign) == len(question):
        raise UserError(
            f"x_a, x_b, sign and question differ in length: {len(x_a)}, {len(x_b)}, {len(sign)}, {len(question)}"
        )
    code, signs = encode(question), np.asarray(sign, np.int32)
    x = jnp.stack([jnp.asarray(x_a, jnp.float32), jnp.asarray(x_b, jnp.float32)])
    grams, fold = None, np.zeros(len(code), np.int32)
    if states is not None:
        grams = jnp.stack([centred_gram(jnp.asarray(h, jnp.float32), jnp.asarray(signs)) for h in states])
        fold = grouped_folds(question, k, seed)
    n_questions = int(code.max()) + 1
    areas, variance = _paired_aucs(
        x,
        jnp.asarray(signs),
        jnp.asarray(code),
        jnp.asarray(fold),
        grams,
        jax.random.key(seed),
        n_folds=int(fold.max()) + 1,
        n_questions=n_questions,
        n_boot=n_boot,
    )
    a, b = (float(area) for area in areas)
    n_pairs = int((signs > 0).sum() * (signs < 0).sum())
    # No difference is known to better than half a pair, also where all draws agree.
    se = max(math.sqrt(float(variance)), 0.5 / max(n_pairs, 1))
    return {
        "a": a,
        "b": b,
        "difference": a - b,
        "ci95": [a - b - _Z * se, a - b + _Z * se],
        "p": math.erfc(abs(a - b) / se / math.sqrt(2)),
    }


@functools.partial(jax.jit, static_argnames=("n_folds", "n_questions", "n_boot"))
def _paired_aucs(x, sign, question, fold, grams, key, *, n_folds, n_questions, n_boot):
    counts = bootstrap_counts(bootstrap_indices(key, n_boot, n_questions))
    member = (question[:, None] == jnp.arange(n_questions)[None, :]).astype(x.dtype)
    pos, neg, _ = pole_weights(sign)
    order = jax.vmap(lambda one: pair_order(one, TIE))(x)
    hits = einsum("nq,tnm,mr->tqr", member * pos[:, None], order, member * neg[:, None])
    pairs = einsum("bq,nq,n->b", counts, member, pos) * einsum("bq,nq,n->b", counts, member, neg)
    drawn = einsum("tbr,br->tb", einsum("bq,tqr->tbr", counts, hits), counts)
    variance = masked_variance(safe_ratio(drawn[0] - drawn[1], pairs, 0.0), pairs > 0)
    if grams is not None:

        def without(kept: jax.Array) -> jax.Array:
            a, b = jax.vmap(lambda gram: auc(held_out_mean_difference(gram, kept, fold, n_folds), kept, TIE))(grams)
            return a - b

        left_out = jackknife_variance(*without_each_question(without, sign, question, n_questions))
        variance = cross_validated_variance(variance, left_out)
    return jax.vmap(lambda one: auc(one, sign, TIE))(x), variance


# --- per-question differences and matched items ---


def sign_flip_p(scores: np.ndarray, seed: int, n: int = 10_000) -> float:
    """Two-sided p that the mean of `scores` [questions] is 0, by n random sign flips: (1 + #≥) / (1 + n)."""
    flips = np.random.default_rng(seed).integers(0, 2, (n, len(scores)), dtype=np.int8) * 2.0 - 1.0
    null = np.abs(flips @ scores.astype(np.float64)) / len(scores)
    observed = abs(float(scores.astype(np.float64).mean()))
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + n))


def paired_test(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    question: Sequence | np.ndarray | None = None,
    *,
    n: int = 10_000,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Do paired scores a [m] and b [m] differ in the mean? Sign flips over questions.

    Args:
      a, b: one pair a row.
      question: [m] ids: the differences of a question are averaged first. None: every row is its own question.
      n: flips and bootstrap draws.
      seed: of both.
    Returns:
      difference (mean over questions of a − b), ci95 (question bootstrap), p (`sign_flip_p`), n (questions).
    Raises:
      UserError: no pairs, or arrays of unequal length.
    """
    if len(a) != len(b) or (question is not None and len(question) != len(a)):
        raise UserError("paired scores need one a, one b and one question a row; the lengths differ")
    if len(a) == 0:
        raise UserError("a paired test needs at least one pair; the list is empty")
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if question is not None:
        code = encode(question)
        differences = np.bincount(code, differences) / np.bincount(code)
    _, low, high = bootstrap_mean_ci(differences, n=n, seed=seed)
    return {
        "difference": float(differences.mean()),
        "ci95": [float(low), float(high)],
        "p": sign_flip_p(differences, seed, n),
        "n": len(differences),
    }


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> dict[str, float]:
    """McNemar's exact test on matched items: is a true more often than b?

    Of the items on which the two disagree, half should go either way: the two-sided binomial p, min(1, 2 P(X ≤ min)).

    Returns:
      only_a, only_b (items that hold in one alone), n (items), p (1 where nothing disagrees).
    Raises:
      UserError: arrays of unequal length.
    """
    if len(a) != len(b):
        raise UserError(f"McNemar's test needs matched items, not {len(a)} and {len(b)}")
    first, second = np.asarray(a, bool), np.asarray(b, bool)
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
    """`split_half` of one axis, states [n, d]: the plain cosine and the Mahalanobis one."""
    code = encode(question)
    splits = half_splits(int(code.max()) + 1, n_splits, seed)
    plain, metric, _ = _split_half(
        jnp.asarray(states, jnp.float32), jnp.asarray(sign, jnp.int32), jnp.asarray(code), jnp.asarray(splits)
    )
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
    """
    states = shifted(states)
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
    cosine, floor, ok = cosine_table(vectors)
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
