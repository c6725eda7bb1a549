"""Nested cross-validation of many readouts, so that the score of the chosen one is not the maximum of noise.

n samples, d state size, K folds of questions, S training sets, P penalties of an estimator (1 where it has none).

Outer fold i is held out from the choice altogether: readouts are compared by inner cross-validation on the other K−1
folds, and the winner's projections of fold i are what is reported. Both need only the fits without one fold and
without two, {i} and {i, j}, which all outer folds share: 1 + K + K(K−1)/2 fits instead of K².

A penalty is chosen by held-out log loss in the same way: for outer fold i from the fits without {i, j} on fold j. The
inner scores of a readout use that same choice, which flatters readouts with penalties a little where they are
compared; the reported outer score is free of it.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.probes.folds import standardise
from mood_jax.probes.separation import safe_ratio

# Held-out losses nearer than this share of the smallest count as tied.
TIE_LOSS = 1e-5


class TrainingSets(NamedTuple):
    """Which folds, or which half of the questions, each training set leaves out.

    excluded: [S, K] bool. Rows: nothing; each fold; each pair of folds; then the two halves, which exclude by question
    and not by fold (all False here). outer [K] and inner [K, K] are row numbers: without {i}, and without {i, j}
    (inner[i, i] is outer[i], unused).
    """

    excluded: np.ndarray
    outer: np.ndarray
    inner: np.ndarray

    @property
    def halves(self) -> tuple[int, int]:
        """Rows of the two disjoint halves of the questions."""
        return len(self.excluded) - 2, len(self.excluded) - 1


def training_sets(n_folds: int) -> TrainingSets:
    """The training sets of K folds.

    Raises:
      ValueError: fewer than three folds, without which there is no inner cross-validation.
    """
    if n_folds < 3:
        raise ValueError(f"nested cross-validation needs 3 folds, not {n_folds}")
    left_out: list[tuple[int, ...]] = [(), *((i,) for i in range(n_folds))]
    left_out += itertools.combinations(range(n_folds), 2)
    row = {frozenset(folds): k for k, folds in enumerate(left_out)}
    excluded = np.zeros((len(left_out) + 2, n_folds), bool)
    for k, folds in enumerate(left_out):
        excluded[k, list(folds)] = True
    inner = np.array([[row[frozenset((i, j))] for j in range(n_folds)] for i in range(n_folds)])
    return TrainingSets(excluded, np.diagonal(inner).copy(), inner)


def training_signs(sets: TrainingSets, sign: jax.Array, question: jax.Array, fold: jax.Array) -> jax.Array:
    """[S, n]: `sign` [n] with the samples that a training set leaves out at 0.

    The halves take every other question of a fold, so that both have questions of every fold.
    """
    of_fold = fold[:, None] == jnp.arange(sets.excluded.shape[1])[None, :]
    out = jnp.any(jnp.asarray(sets.excluded)[:, None, :] & of_fold[None, :, :], axis=2)
    # Rank of the question within its fold, from the smallest sample of each question.
    n = question.shape[0]
    same = question[:, None] == question[None, :]
    first = jnp.argmax(same, axis=1) == jnp.arange(n)
    earlier = (fold[:, None] == fold[None, :]) & first[None, :] & (question[None, :] < question[:, None])
    odd = jnp.sum(earlier, axis=1) % 2 == 1
    out = out.at[-2].set(odd).at[-1].set(~odd)
    return jnp.where(out, 0, sign[None, :])


class Nested(NamedTuple):
    """x [K+1, n]: standardised projections of every sample on a direction fitted without it. Row K: plain
    cross-validation. Row i < K: inner cross-validation of the other folds; 0 on fold i.

    ok: every training set had a direction. choice [K+1]: index of the penalty for outer fold i; last, for all folds.
    """

    x: jax.Array
    ok: jax.Array
    choice: jax.Array


def nested_projections(
    x: jax.Array, ok: jax.Array, training: jax.Array, sign: jax.Array, fold: jax.Array, sets: TrainingSets
) -> Nested:
    """Picks, from the decision values of all training sets, those of held-out samples.

    Args:
      x: [S, P, n] decision values of all samples; with P > 1 on the scale of log odds, penalties from the strongest
        regularisation to the weakest.
      ok: [S] or [S, P].
      training: [S, n] from `training_signs`.
      sign, fold: [n].
      sets: from `training_sets`.
    """
    n_folds = sets.excluded.shape[1]
    of_fold = (fold[None, :] == jnp.arange(n_folds)[:, None]) & (sign != 0)[None, :]  # [K, n]
    loss = jax.nn.softplus(-x * sign[None, None, :].astype(x.dtype))

    def held_out(rows: np.ndarray, folds: np.ndarray) -> jax.Array:
        """Mean loss [P] of the fits `rows` on the folds that each left out."""
        test = of_fold[folds].astype(x.dtype)
        total = jnp.sum(loss[rows] * test[:, None, :], axis=(0, 2))
        return safe_ratio(total, jnp.broadcast_to(jnp.sum(test), total.shape), 0.0)

    all_folds = np.arange(n_folds)
    others = [np.delete(all_folds, i) for i in range(n_folds)]
    losses = [held_out(sets.inner[i, others[i]], others[i]) for i in range(n_folds)]
    losses.append(held_out(sets.outer, all_folds))
    stacked = jnp.stack(losses)
    tied = stacked <= jnp.min(stacked, axis=1, keepdims=True) * (1.0 + TIE_LOSS)
    choice = jnp.argmax(tied, axis=1)  # the first of equals: the strongest regularisation

    scaled = jax.vmap(lambda rows, signs: jax.vmap(standardise, in_axes=(0, None))(rows, signs))(x, training)

    def pick(rows: np.ndarray, penalties: jax.Array) -> jax.Array:
        """[n]: fold j from the fit rows[j] with penalty penalties[j]."""
        values = jax.vmap(lambda row, p: scaled[row, p])(jnp.asarray(rows), penalties)
        return jnp.sum(jnp.where(of_fold, values, 0.0), axis=0)

    rows = []
    for i in range(n_folds):
        inner = pick(sets.inner[i], jnp.broadcast_to(choice[i], (n_folds,)))
        rows.append(jnp.where(of_fold[i], 0.0, inner))
    rows.append(pick(sets.outer, choice[:n_folds]))
    return Nested(jnp.stack(rows), jnp.all(ok), choice)


def inner_signs(sign: jax.Array, fold: jax.Array, n_folds: int) -> jax.Array:
    """[K+1, n]: the samples that count in each row of `Nested.x`: all but fold i, and all."""
    return jnp.where(fold[None, :] == jnp.arange(n_folds + 1)[:, None], 0, sign[None, :])
