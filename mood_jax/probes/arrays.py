"""Small array helpers shared by the probes.

n samples, d state size, c covariates, q quantiles. Everything here is pure and can be vmapped; a sample is left out
by a mask and never by indexing, so that folds of unequal size share one compiled program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Accelerators multiply float32 in bfloat16 or TF32 unless told otherwise, which would cost the fourth digit of every
# projection.
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

# A covariate whose part not yet explained by the earlier ones is below this share of its own spread is dropped as
# collinear.
COLLINEAR = 1e-3
# What is below this share of the values that it is the difference of is float32 rounding.
ROUNDING = 4 * float(np.finfo(np.float32).eps)
# A column of which covariates leave less than this share is explained by them completely, in float32.
EXPLAINED = 1e-4


def namespace(*xs: Any) -> Any:
    """`jax.numpy` where one of the arrays is JAX's, and else `numpy`: small tables are computed on the host in float64,
    and what is traced on the device, by the same lines."""
    return jnp if any(isinstance(x, jax.Array) for x in xs) else np


def product(equation: str, *operands: Any) -> Any:
    """`einsum` in the namespace of its operands."""
    return einsum(equation, *operands) if namespace(*operands) is jnp else np.einsum(equation, *operands, optimize=True)


def rounding(dtype: Any) -> float:
    """The share of its size below which numbers given in `dtype` differ by rounding only: that of float32 for the
    shorter ones too, whose few digits are values and not noise."""
    return ROUNDING * (np.finfo(np.float64).eps / np.finfo(np.float32).eps if _exact(np.dtype(dtype)) else 1.0)


def _exact(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" or dtype.itemsize > 4


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
    return length(jnp.where(weight > 0, centred, 0.0) * jnp.sqrt(weight)) / jnp.sqrt(count)


def length(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Euclidean length of an array or of its rows along `axis`, whose squares neither overflow nor underflow."""
    unit = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scaled = x / jnp.where(unit > 0, unit, 1.0)
    return jnp.sqrt(jnp.sum(jnp.square(scaled), axis=axis)) * jnp.squeeze(unit, axis)


def residualise(states: Any, covariates: Any, fit: Any) -> Any:
    """Takes covariates (and an intercept) out of states by least squares fitted on some of the samples.

    The projection of the residual on a vector equals the residual of the projection on it, so this is "regress the
    projections on the covariates" for every direction at once. Modified Gram–Schmidt over the columns with inner
    products over `fit`; a constant or collinear column is dropped, so it equals `numpy.linalg.lstsq` fitted on `fit`
    and applied everywhere. A column of the states of which nothing but rounding is left becomes exactly 0. Only the
    ratios of values count, whatever their size and offset.

    Args:
      states: [n, d], JAX or NumPy.
      covariates: [n, c], c small (a Python loop runs over it).
      fit: [n] bool, the samples on which the coefficients are fitted, or how often each counts.
    Returns:
      [n, d] residuals of all samples.
    """
    xp = namespace(states, covariates, fit)
    use = xp.asarray(fit).astype(states.dtype)
    used = (use > 0)[:, None]

    def inner(x: Any, y: Any) -> Any:
        return xp.sum(x * y * use)

    def largest(x: Any) -> Any:
        return xp.max(xp.where(used, xp.abs(x), 0.0), axis=0)

    basis = [xp.ones(states.shape[0], states.dtype) / xp.sqrt(xp.maximum(xp.sum(use), 1.0))]
    # About a sample that is used: an offset that all share would cost the products their digits.
    columns = xp.asarray(covariates).astype(states.dtype)
    size = largest(columns)
    columns = columns - columns[xp.argmax(use > 0)][None, :]
    unit = largest(columns)
    varies = unit > (ROUNDING if xp is jnp else 0.0) * size
    columns = columns / xp.where(varies, unit, 1.0)[None, :]
    for c in range(columns.shape[1]):
        column = own = columns[:, c]
        for i, vector in enumerate(basis):
            column = column - vector * inner(vector, column)
            if i == 0:
                own = column
        norm = xp.sqrt(inner(column, column))
        keep = varies[c] & (norm > (COLLINEAR if xp is jnp else 1e-9) * xp.sqrt(inner(own, own)))
        basis.append(xp.where(keep, column / xp.where(keep, norm, 1.0), 0.0))
    states = states - basis[0][:, None] * product("n,nd->d", basis[0] * use, states)[None, :]
    before = largest(states)
    for vector in basis[1:]:
        states = states - vector[:, None] * product("n,nd->d", vector * use, states)[None, :]
    if len(basis) == 1:
        return states
    explained = (before > 0) & (largest(states) <= (EXPLAINED if xp is jnp else 1e-10) * before)
    return xp.where(explained[None, :], 0.0, states)


def map_in_batches(function: Callable[[jax.Array], jax.Array], rows: jax.Array, batch: int) -> jax.Array:
    """`lax.map` over rows [m, ...], `batch` at a time at most. Rows are padded to whole batches, since a remainder
    would be compiled as a second program."""
    m = rows.shape[0]
    n_batches = -(-m // batch)
    size = -(-m // n_batches)
    padding = jnp.broadcast_to(rows[:1], (n_batches * size - m, *rows.shape[1:]))
    return lax.map(function, jnp.concatenate([rows, padding]), batch_size=size)[:m]
