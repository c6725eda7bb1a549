"""Pole-swap permutation: is the held-out AUC of an axis more than exchanging its poles within questions gives?

n samples, K folds, Q questions, P swaps. The statistic is the held-out AUC of the untrimmed mean difference, which
needs the Gram matrix only, so that every swap refits every fold (`spans.py`).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.probes import inputs
from mood_jax.probes.arrays import map_in_batches
from mood_jax.probes.folds import TIE, encode, grouped_folds
from mood_jax.probes.separation import auc
from mood_jax.probes.spans import centred_gram, held_out_mean_difference

_PERMUTATIONS_AT_ONCE = 128
_SAME = 1e-6  # AUCs nearer than this are the same number of pairs, rounded


def pole_swaps(sign: np.ndarray, question: np.ndarray, n_perm: int = 2000, seed: int = 0) -> np.ndarray:
    """Swaps [P, Q] of ±1 per question, the identity first; −1 exchanges the poles of that question.

    All 2^C swaps of the C questions that have both poles where 2^C ≤ n_perm (exact test), else the identity and
    n_perm drawn ones. A question without one of its poles has nothing to exchange and is never swapped.
    """
    sign, question = np.asarray(sign), np.asarray(question)
    n_questions = int(question.max()) + 1
    both = [q for q in range(n_questions) if {-1, 1} <= set(np.sign(sign[question == q]).tolist())]
    if 2 ** len(both) <= n_perm:
        bits = (np.arange(2 ** len(both))[:, None] >> np.arange(len(both))[None, :]) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (n_perm, len(both)))
        bits = np.concatenate([np.zeros((1, len(both)), bits.dtype), bits])
    swaps = np.ones((len(bits), n_questions), np.int32)
    swaps[:, both] = 1 - 2 * bits
    return swaps


def swap_p(
    gram: jax.Array,
    sign: jax.Array,
    question: jax.Array,
    fold: jax.Array,
    swaps: jax.Array,
    valid: jax.Array,
    n_folds: int,
) -> tuple[jax.Array, jax.Array]:
    """Permutation p of the held-out AUC under swaps [P, Q], the first of which is the identity.

    Args:
      gram: [n, n] from `centred_gram`, or [K, n, n] from `residual_grams`.
      sign, question, fold: [n].
      swaps: [P, Q] of ±1.
      valid: [P] bool, False = padding.
      n_folds: K.
    Returns:
      p = (1 + #≥)/(1 + number of swaps beside the identity), and the observed AUC.
    """

    def statistic(swap: jax.Array) -> jax.Array:
        swapped = sign * swap[jnp.maximum(question, 0)]
        return auc(held_out_mean_difference(gram, swapped, fold, n_folds), swapped, TIE)

    values = map_in_batches(statistic, swaps, _PERMUTATIONS_AT_ONCE)
    reached = valid & (values >= values[0] - _SAME)
    return jnp.sum(reached) / jnp.sum(valid), values[0]


@functools.partial(jax.jit, static_argnames="n_folds")
def _swap_p(states, sign, question, fold, swaps, *, n_folds):
    valid = jnp.ones(swaps.shape[0], bool)
    return swap_p(centred_gram(states, sign), sign, question, fold, swaps, valid, n_folds)


def pole_swap_test(
    states: Sequence | np.ndarray | jax.Array,
    sign: Sequence[int] | np.ndarray,
    question: Sequence | np.ndarray,
    n_perm: int = 2000,
    seed: int = 0,
    *,
    k: int = 5,
) -> dict:
    """Permutation test of one axis: exchange the poles within questions, refit every fold, compare held-out AUCs.

    The statistic is the held-out AUC of the untrimmed mean difference, which needs the Gram matrix only.

    Args:
      states: [n, d] of any scale and offset.
      sign: [n] of −1, 0 (left out), 1; both poles.
      question: [n] ids.
      n_perm: swaps that are drawn, where there are more to enumerate.
      seed: of swaps and folds.
      k: folds.
    Returns:
      p, auc (the observed statistic), n (swaps beside the identity), exact (all swaps were enumerated).
    Raises:
      UserError: as of `resampling.heldout`.
    """
    states = inputs.relative32("states", states, ndim=2)
    sign = np.asarray(inputs.signs(sign, len(states)))
    code, n_perm = encode(question, len(sign)), inputs.count("n_perm", n_perm)
    fold = grouped_folds(code, k, seed)
    swaps = pole_swaps(sign, code, n_perm, seed)
    p, observed = _swap_p(
        jnp.asarray(states), jnp.asarray(sign), code, fold, jnp.asarray(swaps), n_folds=int(fold.max()) + 1
    )
    return {"p": float(p), "auc": float(observed), "n": len(swaps) - 1, "exact": len(swaps) <= n_perm}
