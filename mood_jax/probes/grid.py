"""Many readouts of one axis × estimators × nested folds in one compiled program.

n samples, d state size, S sites, M mixes of sites, R = S + M readouts, E estimators, K folds, T training sets, P
penalties.

Per readout, the states [n, d] are read once for the Gram matrix of `whitened`, once per training set for the
standardised one of `logistic`, and a few times per training set for the trimmed means of `mean_difference`; all else
is n × n work. Exact: no estimator is approximated here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mood_jax.probes.arrays import einsum, length, shifted
from mood_jax.probes.arrays import spread as rms_spread
from mood_jax.probes.directions import Direction, trimmed_mean, unit_difference
from mood_jax.probes.folds import TIE
from mood_jax.probes.logistic import PENALTIES, logistic_projections
from mood_jax.probes.nested import TrainingSets, inner_signs, nested_projections, training_sets, training_signs
from mood_jax.probes.separation import auc, dprime
from mood_jax.probes.spans import centred_gram
from mood_jax.probes.whitened import whitened_coefficients

TRIM = 0.1  # as in `fit_mean_difference`


class Decisions(NamedTuple):
    """x [T, P, n]: decision values of all samples; ok [T]; halves [2, P, d]: directions of the two halves."""

    x: jax.Array
    ok: jax.Array
    halves: jax.Array


class ReadoutScores(NamedTuple):
    """Of R readouts by E estimators.

    x [R, E, n]: standardised held-out projections. auc, dprime [R, E, K+1]: held-out, of all folds in the last place,
    and in place i of the inner cross-validation that leaves fold i out. stability [R, E]: cosine of the directions of
    two disjoint halves of the questions. ok [R, E]: every training set had a direction. choice [R, E, K+1]: index of
    the penalty, for each outer fold and for all samples.
    """

    x: jax.Array
    auc: jax.Array
    dprime: jax.Array
    stability: jax.Array
    ok: jax.Array
    choice: jax.Array


def _mean_difference(h: jax.Array, training: jax.Array, scale: jax.Array, at_once: int) -> Decisions:
    half = h.shape[0] // 2

    def one(signs: jax.Array) -> Direction:
        # Each pole has its own rows, so that the trimmed mean of one does not wade through the other.
        pos = trimmed_mean(h[:half], TRIM, signs[:half] > 0)
        neg = trimmed_mean(h[half:], TRIM, signs[half:] < 0)
        return unit_difference(pos - neg, jnp.any(signs > 0) & jnp.any(signs < 0), scale)

    found = lax.map(one, training, batch_size=at_once)
    x = einsum("nd,td->tn", h, found.vector)
    return Decisions(x[:, None, :], found.ok, found.vector[-2:, None, :])


def _whitened(h: jax.Array, training: jax.Array, scale: jax.Array, at_once: int) -> Decisions:
    gram = centred_gram(h, training[0])
    coefficients, ok = jax.vmap(lambda sign: whitened_coefficients(gram, sign, h.shape[1]))(training)
    x = einsum("tn,nm->tm", coefficients, gram)
    return Decisions(x[:, None, :], ok, einsum("tn,nd->td", coefficients[-2:], h)[:, None, :])


def _logistic(h: jax.Array, training: jax.Array, scale: jax.Array, at_once: int) -> Decisions:
    del scale  # every column has its own
    path = logistic_projections(h, training, jnp.asarray(PENALTIES))
    halves = logistic_projections(h, training[-2:], jnp.asarray(PENALTIES), vectors=True)
    assert halves.vectors is not None
    return Decisions(path.x, path.ok, halves.vectors)


_DECIDE: dict[str, Callable[[jax.Array, jax.Array, jax.Array, int], Decisions]] = {
    "mean_difference": _mean_difference,
    "logistic": _logistic,
    "whitened": _whitened,
}


@functools.partial(jax.jit, static_argnames=("n_folds", "estimators", "at_once"))
def readout_scores(
    states: jax.Array,
    mixes: jax.Array,
    sign: jax.Array,
    question: jax.Array,
    fold: jax.Array,
    *,
    n_folds: int,
    estimators: tuple[str, ...],
    at_once: int = 1,
) -> ReadoutScores:
    """Every site alone, then every mix of sites.

    Args:
      states: [S, n, d] reduced states of one axis: the positive pole in the first n/2 samples, the negative in the
        others, either filled up with samples of sign 0.
      mixes: [M, S] weights of the sites.
      sign, question, fold: [n]; sign 0 = left out.
      n_folds: K ≥ 3.
      estimators: names out of mean_difference, logistic, whitened.
      at_once: readouts computed together: 1 for a CPU, more for an accelerator, which takes as many times the memory
      of a readout's training sets.
    """
    sets: TrainingSets = training_sets(n_folds)
    training = training_signs(sets, sign, question, fold)
    counts = inner_signs(sign, fold, n_folds)

    def one(h: jax.Array) -> tuple[jax.Array, ...]:
        h = shifted(h)
        scale = rms_spread(h, sign != 0)
        found = []
        for name in estimators:
            decided = _DECIDE[name](h, training, scale, at_once)
            nested = nested_projections(decided.x, decided.ok, training, sign, fold, sets)
            areas = jax.vmap(lambda x, s: auc(x, s, TIE))(nested.x, counts)
            first, second = decided.halves[:, nested.choice[-1]]
            norm = jnp.sqrt(jnp.sum(jnp.square(first)) * jnp.sum(jnp.square(second)))
            cosine = jnp.where(norm > 0, jnp.sum(first * second) / jnp.where(norm > 0, norm, 1.0), 0.0)
            found.append((nested.x[-1], areas, jax.vmap(dprime)(nested.x, counts), cosine, nested.ok, nested.choice))
        return tuple(jnp.stack(column) for column in zip(*found, strict=True))

    states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
    readouts = jnp.concatenate([states, einsum("ms,snd->mnd", mixes, states)])
    return ReadoutScores(*lax.map(one, readouts, batch_size=at_once))


@functools.partial(jax.jit, static_argnames="at_once")
def split_scores(
    pos: jax.Array, neg: jax.Array, test: jax.Array, test_sign: jax.Array, mixes: jax.Array, *, at_once: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The published ablation: one split of the questions, trimmed mean difference, no folds and no choice judged.

    Args:
      pos, neg, test: [S, p, d], [S, m, d] of the training samples' poles, [S, t, d].
      test_sign: [t].
      mixes: as of `readout_scores`.
    Returns:
      AUC and d′ [R] of the test samples.
    """

    def one(parts: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        origin = parts[0][:1]
        pos, neg, test = (part - origin for part in parts)
        size = length(jnp.concatenate([pos, neg])) / jnp.sqrt(pos.shape[0] + neg.shape[0])
        direction = unit_difference(trimmed_mean(pos, TRIM) - trimmed_mean(neg, TRIM), jnp.array(True), size)
        x = einsum("nd,d->n", test, direction.vector)
        return auc(x, test_sign), dprime(x, test_sign)

    parts = (pos, neg, test)
    single = lax.map(one, parts, batch_size=at_once)
    mixed = lax.map(one, tuple(einsum("ms,snd->mnd", mixes, part) for part in parts), batch_size=at_once)
    return jnp.concatenate([single[0], mixed[0]]), jnp.concatenate([single[1], mixed[1]])
