"""Controls: what else could separate the poles, and how much of a direction is a few coordinates.

n samples, d state size, c covariates, K folds. `n_tokens` [n] counts response tokens, `cut` [n] says that the budget
stopped the response.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.probes.arrays import einsum, map_in_batches
from mood_jax.probes.folds import grouped_folds
from mood_jax.probes.resampling import heldout
from mood_jax.probes.separation import auc, safe_ratio
from mood_jax.probes.spans import centred_gram, held_out_span, pole_contrast

_DRAWS_AT_ONCE = 128


def length_covariates(n_tokens: jax.Array, cut: jax.Array) -> jax.Array:
    """[n, 3]: token count, its logarithm, cut-off indicator.

    The logarithm, because a state need not encode the count linearly (averages over tokens approach their limit as
    1/n).
    """
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
    """Held-out separation by the token count alone: the one-dimensional state, its sign chosen on the training folds.

    Returns:
      as `resampling.heldout`, and raw_auc: the AUC of the plain count, > .5 where the positive pole's responses are
      longer.
    """
    count = jnp.asarray(n_tokens, jnp.float32)
    out = heldout(count[:, None], sign, question, k=k, seed=seed, n_boot=n_boot)
    return out | {"raw_auc": auc(count, jnp.asarray(sign))}


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
    covariates = np.asarray(length_covariates(jnp.asarray(n_tokens), jnp.asarray(cut)))
    return heldout(states, sign, question, k=k, seed=seed, n_boot=n_boot, covariates=covariates)


def cutoff_share(cut: jax.Array, sign: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Share of responses that the budget cut, in the positive and in the negative pole."""
    cut, sign = jnp.asarray(cut).astype(jnp.float32), jnp.asarray(sign)
    pos, neg = ((side * sign > 0).astype(jnp.float32) for side in (1, -1))
    return safe_ratio(jnp.sum(cut * pos), jnp.sum(pos), 0.0), safe_ratio(jnp.sum(cut * neg), jnp.sum(neg), 0.0)


def top_k_share(vector: jax.Array, k: int = 5) -> jax.Array:
    """Share of ‖v‖² in the k largest coordinates of v [d]; 0 for a zero vector. Near 1: a few outlier dimensions are
    the axis."""
    squares = jnp.square(vector)
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
    """Percentile (0–100) of a value among draws, ties counted half."""
    return 100.0 * jnp.mean((draws < value) + 0.5 * (draws == value))


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
    fold = grouped_folds(question, k, seed)
    draws = _random_directions(
        jnp.asarray(states, jnp.float32),
        jnp.asarray(sign, jnp.int32),
        jnp.asarray(fold),
        jax.random.key(seed),
        n_folds=int(fold.max()) + 1,
        n_draws=n_draws,
    )
    return float(percentile_among(jnp.float32(held_out_auc), draws))


def _centred_within(z: jax.Array, sign: jax.Array) -> jax.Array:
    """z [n] centred within each pole, 0 where sign is 0."""
    out = jnp.zeros_like(z)
    for mask in ((sign > 0).astype(z.dtype), (sign < 0).astype(z.dtype)):
        out += mask * (z - safe_ratio(jnp.sum(z * mask), jnp.sum(mask), 0.0))
    return out
