"""How well projections tell the poles apart: AUC, d′ and accuracies (method, section 6).

x [n] projections, sign [n] with +1 / −1 and 0 for a sample that is left out; a sample that counts w times (in a
bootstrap draw) has ±w. All are finite for every input: a pole without samples gives AUC .5, d′ 0, accuracy .5.
The measures are jitted: by itself each would compile up to ten small programs for every n.
"""

import jax
import jax.numpy as jnp

# d′ of poles without any spread is infinite; |d′| is cut here so that it can be averaged and written to JSON.
DPRIME_LIMIT = 1e6


@jax.jit
def auc(x: jax.Array, sign: jax.Array, tie: float = 0.0) -> jax.Array:
    """Share of (positive, negative) pairs in the right order, ties ½; equals `sklearn.metrics.roc_auc_score`.

    Exact pair counting: n is small, and n² comparisons are cheaper than XLA's sort.

    Args:
      x: [n].
      sign: [n].
      tie: projections nearer than this count as tied.
    """
    right = pair_order(x, tie)
    pos, neg, _ = pole_weights(sign)
    return safe_ratio(jnp.sum(right * pos[:, None] * neg[None, :]), jnp.sum(pos) * jnp.sum(neg), 0.5)


def pair_order(x: jax.Array, tie: float = 0.0) -> jax.Array:
    """[n, n]: 1 where x_i > x_j, ½ where they are tied, else 0."""
    left, right = x[:, None], x[None, :]
    return 0.5 * ((left > right + tie).astype(x.dtype) + (left >= right - tie).astype(x.dtype))


@jax.jit
def dprime(x: jax.Array, sign: jax.Array) -> jax.Array:
    """(mean₊ − mean₋)/pooled SD with ddof 1: √(((n₊−1)s₊² + (n₋−1)s₋²)/(n₊+n₋−2)); 0 when a pole is empty."""
    pos, neg, _ = pole_weights(sign)
    n_pos, n_neg = jnp.sum(pos), jnp.sum(neg)
    mean_pos, mean_neg = safe_ratio(jnp.sum(x * pos), n_pos, 0.0), safe_ratio(jnp.sum(x * neg), n_neg, 0.0)
    squares = jnp.sum(pos * jnp.square(x - mean_pos) + neg * jnp.square(x - mean_neg))
    return dprime_from_moments(mean_pos - mean_neg, squares, n_pos, n_neg)


def dprime_from_moments(difference: jax.Array, squares: jax.Array, n_pos: jax.Array, n_neg: jax.Array) -> jax.Array:
    """d′ from the difference of the pole means, the within-pole sum of squares and the counts; elementwise."""
    sd = jnp.sqrt(jnp.maximum(squares, 0.0) / jnp.maximum(n_pos + n_neg - 2, 1))
    floor = jnp.abs(difference) / DPRIME_LIMIT
    defined = (n_pos > 0) & (n_neg > 0) & (difference != 0)
    return jnp.where(defined, difference / jnp.where(defined, jnp.maximum(sd, floor), 1.0), 0.0)


@jax.jit
def midpoint_accuracy(x: jax.Array, sign: jax.Array) -> jax.Array:
    """Share of samples on their own side of the middle of the two pole means, on the middle ½."""
    pos, neg, _ = pole_weights(sign)
    mean_pos = safe_ratio(jnp.sum(x * pos), jnp.sum(pos), 0.0)
    mean_neg = safe_ratio(jnp.sum(x * neg), jnp.sum(neg), 0.0)
    return threshold_accuracy(x - 0.5 * (mean_pos + mean_neg), sign)


@jax.jit
def threshold_accuracy(x: jax.Array, sign: jax.Array) -> jax.Array:
    """Share of samples on their own side of zero, on zero ½ (of `article` scores: the article's accuracy)."""
    return safe_ratio(jnp.sum(correct(x, sign)), jnp.sum(jnp.abs(sign)), 0.5)


def correct(x: jax.Array, sign: jax.Array) -> jax.Array:
    """[n]: |sign| on the own side of zero, half of it on zero, 0 on the other side."""
    side = jnp.sign(x) * jnp.sign(sign).astype(x.dtype)
    return 0.5 * (1.0 + side) * jnp.abs(sign).astype(x.dtype)


def pole_weights(sign: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How often each sample [n] counts in the positive pole, in the negative pole, and in all, as floats."""
    sign = sign.astype(jnp.float32)
    return jnp.maximum(sign, 0.0), jnp.maximum(-sign, 0.0), jnp.abs(sign)


def safe_ratio(top: jax.Array, bottom: jax.Array, otherwise: float) -> jax.Array:
    """top/bottom, and `otherwise` where bottom is not positive; elementwise."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1), otherwise)
