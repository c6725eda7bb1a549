"""`whitened`: the pole difference seen through the covariance within the poles (method, section 4).

n samples, d state size. v ∝ Σ⁻¹(μ₊ − μ₋), with S the pooled covariance within the poles (ddof 0) and its shrinkage
s toward a multiple of the identity as Ledoit and Wolf (2004) estimate it, Σ = (1 − s) S + s (tr S/d) I. This is
scikit-learn's `LedoitWolf(assume_centered=True)` on the states centred within their poles, and for equal poles the
direction of `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)`.

**In n × n work.** The covariance of the samples about their common mean, T = S + (n₊n₋/n²) δδᵀ with δ = μ₊ − μ₋, gives
the same direction as S: adding a multiple of δδᵀ only scales Σ⁻¹δ (Sherman and Morrison). With the rows of H the
centred states, T = HᵀH/n and δ = Hᵀc, so that

    v ∝ ((1 − s) HᵀH/n + s (tr S/d) I)⁻¹ Hᵀc = Hᵀ ((1 − s) HHᵀ/n + s (tr S/d) I)⁻¹ c,

one positive definite n × n system in the Gram matrix HHᵀ. It is exact, and unlike Woodbury's formula for Σ⁻¹ it has no
difference of large terms; its condition is at most d/s.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import einsum, length, shifted
from mood_jax.probes.arrays import spread as rms_spread
from mood_jax.probes.directions import FLAT, Direction, samples, weights
from mood_jax.probes.separation import pole_weights, safe_ratio
from mood_jax.probes.spans import pole_contrast

# The smallest ridge, as a share of the total variance: with less, float32 may find no Cholesky factor. It takes the
# place of a smaller s/d, among them no shrinkage with fewer samples than dimensions.
_RIDGE_MIN = 2e-6
# The same as a share of the mean variance. With fewer dimensions than samples, some combinations of samples are no
# state at all, and the solution holds them in proportion to 1/ridge.
_RIDGE_MIN_MEAN = 1e-4
# Squared distance of the pole means as a share of the variance, below which float32 cannot tell it from 0 in a Gram
# matrix.
_FLAT_GRAM = 1e-7


def _gram(gram: Any) -> jax.Array:
    found = jnp.asarray(inputs.floats32("gram", gram, ndim=2, least=1))
    if found.shape[0] != found.shape[1]:
        raise UserError(f"gram has the shape {list(found.shape)}; give the inner products [n, n] of n samples")
    return found


def _shrinkage(shrinkage: Any) -> Any:
    return None if shrinkage is None else jnp.asarray(inputs.number("shrinkage", shrinkage, 0.0, 1.0), jnp.float32)


def ledoit_wolf(gram_within: Any, weight: Any, d: int) -> tuple[jax.Array, jax.Array]:
    """Shrinkage s in [0, 1] and mean variance tr S/d, from the Gram matrix alone.

    Exact: tr S = Σ wᵢ Gᵢᵢ/n, ‖S‖² = Σ wᵢ wⱼ Gᵢⱼ²/n² and Σ wᵢ ‖rᵢ‖⁴ = Σ wᵢ Gᵢᵢ² are all that the formula needs.

    Args:
      gram_within: [n, n] of the states centred within their poles (`within_gram`).
      weight: [n] how often a sample counts, 0 = left out.
      d: number of columns of the states.
    Returns:
      (s, tr S/d); s is 0 where S is a multiple of the identity already, for instance with d = 1.
    Raises:
      UserError: no square matrix of finite numbers that float32 holds, weights below 0, d < 1.
    """
    gram_within, d = _gram(gram_within), inputs.count("d", d)
    weight = inputs.floats32("weight", weight, rows=len(gram_within))
    if not inputs.traced(weight) and (weight < 0).any():
        raise UserError("weight has a value below 0; give how often each sample counts")
    weight = jnp.asarray(weight)
    count = jnp.maximum(jnp.sum(weight), 1.0)
    squares = jnp.diagonal(gram_within)
    trace = jnp.sum(weight * squares) / count
    unit = jnp.where(trace > 0, trace, 1.0)  # S in units of its trace, so that no square overflows
    norm = jnp.sum(weight[:, None] * weight[None, :] * jnp.square(gram_within / unit)) / jnp.square(count)
    fourth = jnp.sum(weight * jnp.square(squares / unit)) / count
    distance = norm - 1.0 / d  # of S to the identity
    error = (fourth - norm) / count  # of S from sampling
    shrinkage = safe_ratio(jnp.clip(error, 0.0, distance), jnp.where(distance > 1e-6 * norm, distance, 0.0), 0.0)
    return shrinkage, trace / d


def within_gram(gram: Any, sign: Any) -> jax.Array:
    """Gram matrix [n, n] of the states → that of the states centred within their poles, 0 for left-out samples.

    Errors: UserError for no square matrix of finite numbers that float32 holds, and for a missing pole.
    """
    gram = _gram(gram)
    sign = jnp.asarray(weights(sign, len(gram)))
    pos, neg, _ = pole_weights(sign)
    return _recentred(gram, (pos, neg))


def whitened_coefficients(gram: Any, sign: Any, d: int, shrinkage: Any = None) -> tuple[jax.Array, jax.Array]:
    """Coefficients a [n] of the whitened direction v = Σᵢ aᵢ hᵢ, in n × n work whatever d is.

    Exact (the head of this file says why), down to a ridge of 2·10⁻⁶ of the total and 10⁻⁴ of the mean variance, below
    which float32 cannot solve; Ledoit and Wolf's is larger unless a few coordinates hold nearly all variance.

    Args:
      gram: [n, n] of the states, best about their mean (`spans.centred_gram`), where it has the most digits.
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      d: number of columns of the states.
      shrinkage: s in [0, 1]; None = Ledoit and Wolf's.
    Returns:
      (a, ok): Σ a = 0, scaled so that the pole means of the projections G a are 1 apart; `ok` is False, and a 0, when
      the means do not differ; of traced signs also when a pole is empty, which is refused in given ones.
    Raises:
      UserError: as `within_gram`, and for d < 1 or a shrinkage outside [0, 1].
    """
    gram, d, shrinkage = _gram(gram), inputs.count("d", d), _shrinkage(shrinkage)
    sign = jnp.asarray(weights(sign, len(gram)))
    pos, neg, weight = pole_weights(sign)
    count = jnp.maximum(jnp.sum(weight), 1.0)
    estimate, variance = ledoit_wolf(_recentred(gram, (pos, neg)), weight, d)
    shrinkage = estimate if shrinkage is None else shrinkage

    centred = _recentred(gram, (weight,))
    total = jnp.sum(weight * jnp.diagonal(centred)) / count
    unit = jnp.where(total > 0, total, 1.0)
    root = jnp.sqrt(weight)
    system = (1.0 - shrinkage) * root[:, None] * (centred / (count * unit)) * root[None, :]
    ridge = jnp.maximum(shrinkage * variance / unit, max(_RIDGE_MIN, _RIDGE_MIN_MEAN / d))
    factor = jnp.linalg.cholesky(system + ridge * jnp.eye(gram.shape[0], dtype=gram.dtype))
    contrast = pole_contrast(sign)
    a = root * cho_solve((factor, True), safe_ratio(contrast, root, 0.0))
    a -= weight * jnp.sum(a) / count
    difference = einsum("n,nm->m", contrast, centred)
    distance = jnp.sum(difference * a)
    ok = jnp.any(contrast != 0) & (jnp.sum(difference * contrast) > _FLAT_GRAM * total)
    ok &= jnp.isfinite(distance) & (distance > 0)
    return jnp.where(ok, a / jnp.where(ok, distance, 1.0), 0.0), ok


def fit_whitened(
    states: Any,
    sign: Any,
    *,
    spread: Any = None,
    fold: Any = None,
    shrinkage: Any = None,
) -> Direction:
    """v ∝ Σ⁻¹(μ₊ − μ₋) with the pooled covariance within the poles, shrunk as Ledoit and Wolf do.

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      spread: scale of the states against which a difference counts as none; None = their own.
      fold: not used.
      shrinkage: s in [0, 1]; None = Ledoit and Wolf's.
    Returns:
      Direction. `ok` is False, and the vector 0, when the means do not differ; of traced signs also when a pole is
      empty, which is refused in given ones.
    Raises:
      UserError: a pole without samples, values that are no finite numbers, a shrinkage outside [0, 1].
    """
    given, shrinkage = samples(states, sign, spread, fold, weighted=True), _shrinkage(shrinkage)
    h = shifted(given.states) if given.exponent is None else given.states  # given ones are about their medians
    return _fit(h, given.sign, given.spread, shrinkage)


@jax.jit
def _fit(h: jax.Array, sign: jax.Array, spread: Any, shrinkage: Any) -> Direction:
    _, _, weight = pole_weights(sign)
    h -= (einsum("n,nd->d", weight, h) / jnp.maximum(jnp.sum(weight), 1.0))[None, :]
    spread = rms_spread(h, sign != 0) if spread is None else spread
    difference = einsum("n,nd->d", pole_contrast(sign), h)
    a, ok = whitened_coefficients(einsum("nd,md->nm", h, h), sign, h.shape[1], shrinkage)
    vector = einsum("n,nd->d", a, h)
    norm = length(vector)
    ok &= (length(difference) > FLAT * spread) & (norm > 0)
    return Direction(jnp.where(ok, vector / jnp.where(ok, norm, 1.0), 0.0), ok)


def _recentred(gram: jax.Array, groups: tuple[jax.Array, ...]) -> jax.Array:
    """Gram matrix of the states about the mean of their group, whose weights are [n]; 0 for samples of no group."""
    maker = jnp.zeros_like(gram)
    for weight in groups:
        member = (weight > 0).astype(gram.dtype)
        mean = safe_ratio(weight, jnp.broadcast_to(jnp.sum(weight), weight.shape), 0.0)
        maker += jnp.diag(member) - member[:, None] * mean[None, :]
    return einsum("ij,jk,lk->il", maker, gram, maker)
