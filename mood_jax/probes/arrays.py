"""Small array helpers shared by the probes.

n samples, d state size, c covariates, q quantiles. Everything here is pure and can be vmapped; a sample is left out
by a mask and never by indexing, so that folds of unequal size share one compiled program.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# Accelerators multiply float32 in bfloat16 or TF32 unless told otherwise, which would cost the fourth digit of every
# projection.
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

# A covariate whose part not yet explained by the earlier ones is below this share of its own spread is dropped as
# collinear.
COLLINEAR = 1e-3
# A covariate whose deviation from its mean is below this share of its size is constant in float32.
CONSTANT = 1e-4


def masked_quantile(x: jax.Array, q: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Quantiles of the masked-in entries of `x`, interpolated as `numpy.percentile(method="linear")` does.

    Args:
      x: [n] values.
      q: [q] probabilities in [0, 1].
      mask: [n] bool, True = counts; None = all.
    Returns:
      [q] quantiles; 0 where nothing is masked in.
    """
    mask = jnp.ones(x.shape, bool) if mask is None else mask
    count = jnp.sum(mask)
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf))
    position = jnp.asarray(q) * jnp.maximum(count - 1, 0)
    below = jnp.floor(position).astype(jnp.int32)
    above = jnp.minimum(below + 1, jnp.maximum(count - 1, 0))
    low, high = ordered[below], ordered[above]
    # Equal ends are returned as they are, which keeps infinite and tied values exact.
    value = jnp.where(low == high, low, low + (high - low) * (position - below))
    return jnp.where(count > 0, value, 0.0)


def shifted(states: jax.Array) -> jax.Array:
    """`states` [n, d] minus their first row.

    Directions and every standardised projection are invariant to it. It removes the large common offset of residual
    streams before fp32 sums lose digits to it, and makes constant columns exactly zero.
    """
    return states - states[:1]


def spread(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Root mean squared distance of the masked-in rows of `states` [n, d] from their mean, a scalar."""
    weight = mask.astype(states.dtype)[:, None]
    count = jnp.maximum(jnp.sum(weight), 1.0)
    centred = states - jnp.sum(states * weight, axis=0, keepdims=True) / count
    return jnp.sqrt(jnp.sum(jnp.square(centred) * weight) / count)


def residualise(states: jax.Array, covariates: jax.Array, fit: jax.Array) -> jax.Array:
    """Takes covariates (and an intercept) out of states by least squares fitted on some of the samples.

    The projection of the residual on a vector equals the residual of the projection on it, so this is "regress the
    projections on the covariates" for every direction at once. Modified Gram–Schmidt over the columns with inner
    products over `fit`; a constant or collinear column is dropped, so it equals `numpy.linalg.lstsq` fitted on `fit`
    and applied everywhere.

    Args:
      states: [n, d].
      covariates: [n, c], c small (a Python loop runs over it).
      fit: [n] bool, the samples on which the coefficients are fitted.
    Returns:
      [n, d] residuals of all samples.
    """
    use = fit.astype(states.dtype)
    basis = [jnp.ones(states.shape[0], states.dtype) / jnp.sqrt(jnp.maximum(jnp.sum(use), 1.0))]
    for c in range(covariates.shape[1]):
        column = covariates[:, c].astype(states.dtype)
        size = own = jnp.sqrt(jnp.sum(jnp.square(column) * use))
        for i, vector in enumerate(basis):
            column = column - vector * jnp.sum(vector * column * use)
            if i == 0:
                own = jnp.sqrt(jnp.sum(jnp.square(column) * use))
        norm = jnp.sqrt(jnp.sum(jnp.square(column) * use))
        keep = (norm > COLLINEAR * own) & (own > CONSTANT * size)
        basis.append(jnp.where(keep, column / jnp.where(keep, norm, 1.0), 0.0))
    for vector in basis:
        coefficients = einsum("n,nd->d", vector * use, states)
        states = states - vector[:, None] * coefficients[None, :]
    return states


def map_in_batches(function: Callable[[jax.Array], jax.Array], rows: jax.Array, batch: int) -> jax.Array:
    """`lax.map` over rows [m, ...], `batch` at a time at most. Rows are padded to whole batches, since a remainder
    would be compiled as a second program."""
    m = rows.shape[0]
    n_batches = -(-m // batch)
    size = -(-m // n_batches)
    padding = jnp.broadcast_to(rows[:1], (n_batches * size - m, *rows.shape[1:]))
    return lax.map(function, jnp.concatenate([rows, padding]), batch_size=size)[:m]
