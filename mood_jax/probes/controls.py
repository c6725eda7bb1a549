"""Controls: what else could separate the poles, and how much of a direction is a few coordinates.

n samples, d state size, c covariates, K folds. `n_tokens` [n] counts response tokens, `cut` [n] says that the budget
stopped the response.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import einsum, map_in_batches
from mood_jax.probes.directions import fit_mean_difference
from mood_jax.probes.folds import TIE, encode, grouped_folds
from mood_jax.probes.resampling import (
    auc_floor,
    bootstrap_counts,
    bootstrap_indices,
    cross_validated_projections,
    cross_validated_variance,
    heldout,
    interval,
    jackknife_variance,
    masked_variance,
    without_each_question,
)
from mood_jax.probes.separation import auc, pair_order, pole_weights, safe_ratio, unit_scale
from mood_jax.probes.spans import centred_gram, held_out_mean_difference, held_out_span, pole_contrast

_DRAWS_AT_ONCE = 128
_SAME = 1e-6  # AUCs nearer than this are the same number of pairs, rounded
_UNTRIMMED = functools.partial(fit_mean_difference, trim=0.0)  # one object, so that one program serves every call
# Two responses are of matched length when their token counts differ by at most this share of the longer one.
MATCHED_WITHIN = 0.1
# A matched AUC of fewer effective responses a pole than this has a standard error above .19, and says nothing.
MATCHED_MIN = 5.0


def length_covariates(n_tokens: Any, cut: Any) -> jax.Array:
    """[n, 3]: token count, its logarithm, cut-off indicator.

    The logarithm, because a state need not encode the count linearly (averages over tokens approach their limit as
    1/n).
    """
    if not inputs.traced(n_tokens, cut):
        n_tokens = _counts(n_tokens)
        cut = inputs.flags("cut", cut, len(n_tokens))
    count = jnp.asarray(n_tokens, jnp.float32)
    columns = (count / jnp.maximum(jnp.max(count), 1.0), jnp.log1p(count), jnp.asarray(cut).astype(jnp.float32))
    return jnp.stack(columns, axis=1)


def length_only_auc(
    n_tokens: Sequence[int] | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    *,
    k: int = 5,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict:
    """Held-out separation by the token count alone: the one-dimensional state, its sign chosen on the training folds by
    the untrimmed mean difference.

    Returns:
      as `resampling.heldout`, and raw_auc: the AUC of the plain count, > .5 where the positive pole's responses are
      longer.
    """
    count = inputs.floats("n_tokens", n_tokens)
    sign = inputs.signs(sign, len(count))
    out = heldout(count[:, None], sign, question, k=k, seed=seed, n_boot=n_boot, estimator=_UNTRIMMED)
    return out | {"raw_auc": auc(count, sign)}


def length_residualised(
    states: jax.Array | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    n_tokens: Sequence[int] | np.ndarray,
    cut: Sequence[bool] | np.ndarray,
    *,
    k: int = 5,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict:
    """`resampling.heldout` after regressing length and cut-off out, with coefficients fitted on the training questions.

    They are regressed out of every coordinate and the direction is fitted on what is left; projections of residuals
    are residuals of projections. (Regressing the training projections of a direction fitted on raw states would not
    do: in many dimensions these are overfitted to the labels, and their chance correlation with length swamps the
    held-out residuals.)
    """
    covariates = np.asarray(length_covariates(n_tokens, cut))
    return heldout(states, sign, question, k=k, seed=seed, n_boot=n_boot, covariates=covariates)


def matched_classes(n_tokens: jax.Array, cut: jax.Array) -> jax.Array:
    """[3, n, n]: pairs (i, j) of matched length where both are equally long, i is longer, j is longer; 1 or 0.

    Matched: the counts differ by at most `MATCHED_WITHIN` of the larger, and both responses ended, or neither did (a
    response that the budget stopped is not as long as its count says, and its last state is mid-sentence).
    """
    count, cut = jnp.asarray(n_tokens, jnp.float32), jnp.asarray(cut).astype(bool)
    left, right = count[:, None], count[None, :]
    near = jnp.abs(left - right) <= MATCHED_WITHIN * jnp.maximum(left, right)
    matched = near & (cut[:, None] == cut[None, :])
    classes = jnp.stack([left == right, left > right, left < right]) & matched[None]
    return classes.astype(jnp.float32)


def balanced_auc(hits: jax.Array, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """AUC over the three classes of matched pairs, the two unequal ones weighted alike; elementwise.

    Tolerance alone does not match: where one pole is longer, it is the longer one in most pairs within 10 % too, and
    states that encode nothing but the count order these pairs. So the class that has more pairs (positive longer, or
    negative longer) is weighted down to the other: any increasing or decreasing function of the count then has an AUC
    of exactly ½. Where a pole is always the longer one no unequal pair is left.

    Args:
      hits: [3, ...] weight of the pairs in order.
      pairs: [3, ...] weight of all pairs.
    Returns:
      AUC, and the effective number of pairs.
    """
    both = jnp.minimum(pairs[1], pairs[2])
    effective = pairs[0] + 2.0 * both
    longer, shorter = (safe_ratio(hits[c], pairs[c], 0.5) for c in (1, 2))
    return safe_ratio(hits[0] + both * (longer + shorter), effective, 0.5), effective


def length_matched(
    x: jax.Array,
    sign: jax.Array,
    question: jax.Array,
    fold: jax.Array,
    n_tokens: jax.Array,
    cut: jax.Array,
    counts: jax.Array,
    gram: jax.Array,
    n_folds: int,
) -> dict:
    """AUC of held-out projections over pairs of matched length, with a question-clustered bootstrap interval.

    The states are as they are, and a direction may have learned length in training; pairs of responses of one length
    cannot show it. Pairs run across questions. Beside `length_residualised`, this supposes no form (linear,
    logarithmic) in which states encode length, and pays with pairs.

    Args:
      x: [n] standardised held-out projections.
      sign, question, fold, n_tokens, cut: [n].
      counts: [B, Q] question weights from `resampling.bootstrap_counts`.
      gram: [n, n] of the states; the interval knows of the refits, as the head of `resampling.py` says.
      n_folds: K.
    Returns:
      auc, auc_ci95; pairs: their effective number (see `balanced_auc`), share: of all pairs; ok: False, and auc .5,
      where fewer than `MATCHED_MIN` effective responses (Σw)²/Σw² of either pole take part.
    """
    classes = matched_classes(n_tokens, cut)
    member = (question[:, None] == jnp.arange(counts.shape[1])[None, :]).astype(x.dtype)
    pos, neg, _ = pole_weights(sign)
    pairs = classes * (pos[:, None] * neg[None, :])[None]
    hits = pairs * pair_order(x, TIE)[None]
    value, effective = balanced_auc(jnp.sum(hits, axis=(1, 2)), jnp.sum(pairs, axis=(1, 2)))

    by_question = einsum("nq,tcnm,mr->tcqr", member, jnp.stack([hits, pairs]), member)
    drawn_hits, drawn_pairs = einsum("tcbr,br->tcb", einsum("bq,tcqr->tcbr", counts, by_question), counts)
    fixed, fixed_pairs = balanced_auc(drawn_hits, drawn_pairs)

    def without(kept: jax.Array) -> jax.Array:
        order = pair_order(held_out_mean_difference(gram, kept, fold, n_folds), TIE)
        pos, neg, _ = pole_weights(kept)
        weights = classes * (pos[:, None] * neg[None, :])[None]
        return jnp.stack(balanced_auc(jnp.sum(weights * order[None], axis=(1, 2)), jnp.sum(weights, axis=(1, 2))))

    left_out, used = without_each_question(without, sign, question, counts.shape[1])
    jackknife = jackknife_variance(left_out[:, 0], used & (left_out[:, 1] > 0))
    variance = cross_validated_variance(masked_variance(fixed, fixed_pairs > 0), jackknife)

    asked = jnp.sum(einsum("nq,n->q", member, pos + neg) > 0).astype(x.dtype)
    total = jnp.sum(pairs, axis=(1, 2))
    kept = safe_ratio(jnp.minimum(total[1], total[2]), total, 1.0).at[0].set(1.0)  # weight of a pair, by class
    weights = jnp.sum(pairs * kept[:, None, None], axis=0)
    responses = [
        safe_ratio(jnp.square(jnp.sum(w)), jnp.sum(jnp.square(w)), 0.0) for w in (weights.sum(1), weights.sum(0))
    ]
    ok = jnp.minimum(*responses) >= MATCHED_MIN
    poles = jnp.minimum(jnp.stack(responses), asked)
    variance = jnp.maximum(variance, auc_floor(value, poles))
    return {
        "auc": jnp.where(ok, value, 0.5),
        "auc_ci95": jnp.where(ok, interval(value, jnp.sqrt(variance), effective), jnp.array([0.0, 1.0])),
        "pairs": effective,
        "share": safe_ratio(effective, jnp.sum(pos) * jnp.sum(neg), 0.0),
        "ok": ok,
    }


@functools.partial(jax.jit, static_argnames=("n_folds", "n_questions", "n_boot"))
def _length_matched(states, sign, question, fold, n_tokens, cut, key, *, n_folds, n_questions, n_boot):
    held = cross_validated_projections(states, sign, fold, n_folds=n_folds)
    counts = bootstrap_counts(bootstrap_indices(key, n_boot, n_questions))
    gram = centred_gram(states, sign)
    return length_matched(held.x, sign, question, fold, n_tokens, cut, counts, gram, n_folds)


def length_matched_auc(
    states: jax.Array | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    n_tokens: Sequence[int] | np.ndarray,
    cut: Sequence[bool] | np.ndarray,
    *,
    k: int = 5,
    seed: int = 0,
    n_boot: int = 2000,
) -> dict:
    """`length_matched` of the held-out mean difference of one axis: states [n, d], the others [n]."""
    states = inputs.relative32("states", states, ndim=2)
    sign = inputs.signs(sign, len(states))
    code = encode(question, len(sign))
    fold = grouped_folds(code, k, seed)
    return _length_matched(
        jnp.asarray(states),
        jnp.asarray(sign),
        jnp.asarray(code),
        jnp.asarray(fold),
        jnp.asarray(_counts(n_tokens, len(sign))),
        jnp.asarray(inputs.flags("cut", cut, len(sign))),
        numerics.key(seed),
        n_folds=int(fold.max()) + 1,
        n_questions=int(code.max()) + 1,
        n_boot=inputs.count("n_boot", n_boot),
    )


def _counts(n_tokens: Any, rows: int | None = None) -> np.ndarray:
    """Token counts, none of them negative."""
    counts = inputs.floats32("n_tokens", n_tokens, rows=rows)
    if (counts < 0).any():
        raise UserError(f"n_tokens has the value {counts.min():g}; give counts of tokens")
    return counts


def cutoff_share(cut: jax.Array, sign: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of responses that the budget cut, in the positive and in the negative pole."""
    if not inputs.traced(cut, sign):
        cut = inputs.flags("cut", cut)
        sign = inputs.signs(sign, len(cut))
    cut, sign = jnp.asarray(cut).astype(jnp.float32), jnp.asarray(sign)
    pos, neg = ((side * sign > 0).astype(jnp.float32) for side in (1, -1))
    return safe_ratio(jnp.sum(cut * pos), jnp.sum(pos), 0.0), safe_ratio(jnp.sum(cut * neg), jnp.sum(neg), 0.0)


def top_k_share(vector: jax.Array, k: int = 5) -> jax.Array:
    """Share of ‖v‖² in the k largest coordinates of v [d]; 0 for a zero vector. Near 1: a few outlier dimensions are
    the axis."""
    vector, k = jnp.asarray(inputs.directions32("vector", vector)), inputs.count("k", k)
    squares = jnp.square(unit_scale(vector))
    return safe_ratio(jnp.sum(lax.top_k(squares, min(k, vector.shape[0]))[0]), jnp.sum(squares), 0.0)


def random_direction_aucs(
    gram: jax.Array, sign: jax.Array, fold: jax.Array, key: jax.Array, *, n_folds: int, n_draws: int
) -> jax.Array:
    """Held-out AUCs of random directions with the covariance of the states within the poles.

    r = Σᵢ zᵢ hᵢ with z normal and centred within each pole has covariance ∝ Σ_pooled, and needs the Gram matrix only.
    Each fold uses the r of its training samples, since a sample's own term zᵢ‖hᵢ‖² would dominate its projection, and
    orients it there, as the axis is oriented.

    Args:
      gram: [n, n] from `centred_gram`.
      sign, fold: [n].
      key: of the draws.
      n_folds: K.
      n_draws: number of directions.
    Returns:
      [n_draws].
    """

    def one_fold(z: jax.Array, f: jax.Array) -> jax.Array:
        training = jnp.where(fold == f, 0, sign)
        coefficients = _centred_within(z, training)
        difference = einsum("n,nm,m->", coefficients, gram, pole_contrast(training))
        return jnp.where(difference < 0, -coefficients, coefficients)

    def one(z: jax.Array) -> jax.Array:
        coefficients = jax.vmap(one_fold, in_axes=(None, 0))(z, jnp.arange(n_folds))
        return auc(held_out_span(gram, coefficients, sign, fold), sign)

    draws = jax.random.normal(key, (n_draws, gram.shape[0]))
    return map_in_batches(one, draws, _DRAWS_AT_ONCE)


def percentile_among(value: jax.Array, draws: jax.Array) -> jax.Array:
    """Percentile (0–100) of an AUC among those of draws, ties counted half."""
    return 100.0 * jnp.mean(0.5 * ((draws < value - _SAME).astype(jnp.float32) + (draws <= value + _SAME)))


@functools.partial(jax.jit, static_argnames=("n_folds", "n_draws"))
def _random_directions(states, sign, fold, key, *, n_folds, n_draws):
    return random_direction_aucs(centred_gram(states, sign), sign, fold, key, n_folds=n_folds, n_draws=n_draws)


def random_direction_percentile(
    states: jax.Array | np.ndarray,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    held_out_auc: float,
    *,
    k: int = 5,
    seed: int = 0,
    n_draws: int = 1000,
) -> float:
    """Where the held-out AUC of an axis lies among random directions of matched covariance, as a percentile.

    Near the 100th: the axis separates better than directions of its size in the data do. In the middle: it does not.
    """
    states = inputs.relative32("states", states, ndim=2)
    sign, held_out_auc = inputs.signs(sign, len(states)), inputs.number("held_out_auc", held_out_auc, 0, 1)
    fold = grouped_folds(encode(question, len(sign)), k, seed)
    draws = _random_directions(
        jnp.asarray(states),
        jnp.asarray(sign),
        jnp.asarray(fold),
        numerics.key(seed),
        n_folds=int(fold.max()) + 1,
        n_draws=inputs.count("n_draws", n_draws),
    )
    return float(percentile_among(jnp.float32(held_out_auc), draws))


def _centred_within(z: jax.Array, sign: jax.Array) -> jax.Array:
    """z [n] centred within each pole, 0 where sign is 0."""
    out = jnp.zeros_like(z)
    for mask in ((sign > 0).astype(z.dtype), (sign < 0).astype(z.dtype)):
        out += mask * (z - safe_ratio(jnp.sum(z * mask), jnp.sum(mask), 0.0))
    return out
