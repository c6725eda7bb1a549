"""What the Gram matrix of the samples is enough for.

n samples, d state size, K folds. With n ≪ d, once the Gram matrix [n, n] of a readout is known, a direction in the
span of the samples is its coefficients a [n], projections are G a, and every refit is n × n work. What is computed
here is exact and not an approximation of the fit on [n, d]; only the trimmed mean has no such form, so refits use the
untrimmed mean difference.
"""

import jax
import jax.numpy as jnp

from mood_jax.probes.arrays import einsum, residualise, shifted
from mood_jax.probes.folds import own_fold, standardise
from mood_jax.probes.separation import pole_weights


def pole_contrast(sign: jax.Array) -> jax.Array:
    """Coefficients [n] with which the states sum to mean₊ − mean₋; zeros if a pole is empty."""
    pos, neg, _ = pole_weights(sign)
    n_pos, n_neg = jnp.sum(pos), jnp.sum(neg)
    both = (n_pos > 0) & (n_neg > 0)
    return jnp.where(both, pos / jnp.where(both, n_pos, 1.0) - neg / jnp.where(both, n_neg, 1.0), 0.0)


def held_out_mean_difference(gram: jax.Array, sign: jax.Array, fold: jax.Array, n_folds: int) -> jax.Array:
    """Standardised held-out projections [n] of the untrimmed mean difference, O(K n²) whatever d is.

    Args:
      gram: [n, n], or [K, n, n] where each fold has its own states (`residual_grams`).
      sign, fold: [n].
      n_folds: K.
    """
    coefficients = jax.vmap(lambda f: pole_contrast(jnp.where(fold == f, 0, sign)))(jnp.arange(n_folds))
    return held_out_span(gram, coefficients, sign, fold)


def held_out_span(gram: jax.Array, coefficients: jax.Array, sign: jax.Array, fold: jax.Array) -> jax.Array:
    """Standardised held-out projections [n] on fold directions Σᵢ aᵢ hᵢ with coefficients a [K, n].

    `gram` is [n, n] or [K, n, n].
    """
    x = einsum("kn,nm->km" if gram.ndim == 2 else "kn,knm->km", coefficients, gram)
    training = jnp.where(fold[None, :] == jnp.arange(coefficients.shape[0])[:, None], 0, sign[None, :])
    return own_fold(jax.vmap(standardise)(x, training), sign, fold)


def centred_gram(states: jax.Array, sign: jax.Array) -> jax.Array:
    """Gram matrix [n, n] of states [n, d] centred on the mean of the used samples (sign ≠ 0)."""
    states = shifted(states)
    used = (sign != 0).astype(states.dtype)[:, None]
    centred = states - jnp.sum(states * used, axis=0, keepdims=True) / jnp.maximum(jnp.sum(used), 1.0)
    return einsum("nd,md->nm", centred, centred)


def residual_grams(gram: jax.Array, covariates: jax.Array, sign: jax.Array, fold: jax.Array, n_folds: int) -> jax.Array:
    """[K, n, n]: per fold, the Gram matrix of the states after `residualise` on that fold's training samples.

    Residualising is linear in the samples, h'ᵢ = Σⱼ Rᵢⱼ hⱼ, so this is R G Rᵀ exactly and d never enters.
    """

    def one_fold(f: jax.Array) -> jax.Array:
        maker = residualise(jnp.eye(gram.shape[0], dtype=gram.dtype), covariates, (sign != 0) & (fold != f))
        return einsum("ij,jk,lk->il", maker, gram, maker)

    return jax.vmap(one_fold)(jnp.arange(n_folds))
