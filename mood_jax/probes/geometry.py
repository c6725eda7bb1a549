"""How many dimensions the axes of a model span: in its states and in its behaviour (method, section 8).

n samples (questions), a axes, d state size, c covariates, B bootstrap draws.

With n ≪ d, the Gram matrix [n, n] has the eigenvalues of the covariance [d, d], and principal components are its
eigenvectors taken back through the samples. That is exact and no approximation; in float32, eigenvalues of either are
known to about 1e-6 of the largest, and what is below 1e-5 of it counts as none. The effective dimension needs no
eigenvalues at all: Σλ is the trace and Σλ² the squared Frobenius norm of either matrix.

Both overlaps are means of absolute values and so never 0, not even for axes that have nothing to do with each other:
compare them with their floors. For random directions E|cos| ≈ √(2/(πd)) (1/(4d) of itself below the exact value), and
for n independent normal scores per axis E|r| is the same with n − 1 for d. (States vary in far fewer than d
directions, so that unrelated directions fitted to them overlap more than the floor.)

**Intervals** resample questions, refitting everything in every draw. Drawn questions repeat, so draws of a mean of |r|
lie above the estimate, and their percentiles with them. So intervals are symmetric on the logit scale, with the
bootstrap's standard error times √(n/(n−1)) and Student's t. Of normal scores of 7 axes and 30 questions they cover, in
89–99.9 %, *what 30 questions give on average*. That is not the population's value: of unrelated axes 30 questions give
an r of .15 and an effective dimension of 5.6 on average. Hence the floor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.errors import UserError
from mood_jax.probes.arrays import COLLINEAR, einsum, map_in_batches, residualise, shifted
from mood_jax.probes.reliability import ROUNDING, f_quantile
from mood_jax.probes.resampling import bootstrap_counts, bootstrap_indices
from mood_jax.probes.separation import safe_ratio

# An eigenvalue below this share of the largest is float32 rounding.
FLAT_EIGENVALUE = 1e-5
_LOGIT_EDGE = 1e-6
_DRAWS_AT_ONCE = 1000


class PCA(NamedTuple):
    """Principal components, largest first; r = min(n, d).

    shares [r] of the variance; components [r, d], unit rows, zero where there is no variance; scores [n, r];
    variances [r] (ddof 1). `ok` False, and all zero: the samples are all alike.
    """

    shares: jax.Array
    components: jax.Array
    scores: jax.Array
    variances: jax.Array
    ok: jax.Array


class Cosines(NamedTuple):
    """table [a, a]; floor: E|cos| of random directions, a scalar; ok [a]: the vector is not zero."""

    table: jax.Array
    floor: jax.Array
    ok: jax.Array


class Overlap(NamedTuple):
    """Mean absolute value over pairs, what unrelated ones would have, and whether there is a pair at all (else 0)."""

    value: jax.Array
    floor: jax.Array
    ok: jax.Array


# --- principal components ---


def pca(x: jax.Array) -> PCA:
    """Principal components of the covariance of samples x [n, d]: centred, not standardised.

    The entry of largest magnitude of a component is positive, as in `sklearn.decomposition.PCA`. Where n < d the Gram
    matrix is decomposed instead, see the head of this file.
    """
    n, d = x.shape
    centred = _centred(x)
    in_samples = n < d
    values, vectors = jnp.linalg.eigh(_second_moment(centred))
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]  # ascending from eigh
    used = values > FLAT_EIGENVALUE * values[0]
    values = jnp.where(used, values, 0.0)
    components = vectors.T
    if in_samples:
        components = einsum("nr,nd->rd", vectors, centred)
        components = components / jnp.where(used, jnp.linalg.norm(components, axis=1), 1.0)[:, None]
    # A constant column takes no part, where rounding would mix it into the small components.
    components = jnp.where(used[:, None] & jnp.any(centred != 0, axis=0)[None, :], components, 0.0)
    largest = jnp.take_along_axis(components, jnp.argmax(jnp.abs(components), axis=1, keepdims=True), axis=1)
    components = components * jnp.where(largest < 0, -1.0, 1.0)
    return PCA(
        shares=safe_ratio(values, jnp.sum(values), 0.0),
        components=components,
        scores=einsum("nd,rd->nr", centred, components),
        variances=values / max(n - 1, 1),
        ok=values[0] > 0,
    )


def participation_ratio(matrix: jax.Array) -> jax.Array:
    """Effective dimension (Σλ)²/Σλ² of a symmetric matrix [m, m], a covariance or a Gram matrix; 0 for a zero matrix.

    1 where one direction has all the variance, m where all have the same.
    """
    matrix = safe_ratio(matrix, jnp.broadcast_to(jnp.max(jnp.abs(matrix)), matrix.shape), 0.0)  # squares may underflow
    return safe_ratio(jnp.square(jnp.trace(matrix)), jnp.sum(jnp.square(matrix)), 0.0)


def effective_dimension(x: jax.Array) -> jax.Array:
    """`participation_ratio` of the covariance of samples x [n, d]; at most min(n − 1, d)."""
    return participation_ratio(_second_moment(_centred(x)))


def _centred(x: jax.Array) -> jax.Array:
    """x [n, d] minus its mean; a column that differs by rounding only becomes exactly 0."""
    return _varying(shifted(x) - jnp.mean(shifted(x), axis=0, keepdims=True), x, None)[0]


def _varying(centred: jax.Array, x: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`centred` [n, d] with the columns zeroed that are constant in x to float32 rounding, and which are not: [d]."""
    used = jnp.ones(x.shape[0], bool) if weight is None else weight > 0
    # The largest deviation, since a single one of many samples may differ.
    keep = _largest(centred, used) > ROUNDING * _largest(x, used)
    return jnp.where(keep[None, :], centred, 0.0), keep


def _largest(x: jax.Array, used: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(used[:, None], jnp.abs(x), 0.0), axis=0)


def _second_moment(centred: jax.Array) -> jax.Array:
    """The smaller of Xᵀ X [d, d] and X Xᵀ [n, n]: the same eigenvalues other than 0."""
    equation = "nd,md->nm" if centred.shape[0] < centred.shape[1] else "nd,ne->de"
    return einsum(equation, centred, centred)


# --- overlap of directions, overlap of behaviour ---


def cosine_floor(dimension: int) -> float:
    """√(2/(πd)): the expected |cos| of two random directions in d dimensions."""
    return math.sqrt(2.0 / (math.pi * max(dimension, 1)))


def cosine_table(vectors: jax.Array) -> Cosines:
    """Cosines between the rows of `vectors` [a, d]; the row and column of a zero vector are 0, its diagonal too."""
    vectors = jnp.asarray(vectors, jnp.float32)
    largest = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    ok = largest[:, 0] > 0
    vectors = vectors / jnp.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor underflow
    units = vectors / jnp.where(ok[:, None], jnp.linalg.norm(vectors, axis=1, keepdims=True), 1.0)
    table = jnp.clip(einsum("ad,bd->ab", units, units), -1.0, 1.0)
    return Cosines(table, jnp.float32(cosine_floor(vectors.shape[1])), ok)


def geo_cos(vectors: jax.Array) -> Overlap:
    """Mean |cos| over the pairs of rows of `vectors` [a, d], zero vectors left out."""
    table, floor, ok = cosine_table(vectors)
    value, any_pair = _mean_of_pairs(table, ok)
    return Overlap(value, floor, any_pair)


def correlation_table(scores: jax.Array, weight: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Pearson correlations between the columns of `scores` [n, a].

    Args:
      scores: [n, a].
      weight: [n], how often each sample counts; None = once.
    Returns:
      table [a, a], rows and columns of constant scores 0; ok [a], the scores are not constant.
    """
    x, keep = _residual(scores, jnp.zeros((scores.shape[0], 0)), weight)
    return _correlations(x, keep, weight)


def behavioural_r(scores: jax.Array, covariates: jax.Array | None = None) -> Overlap:
    """Mean |Pearson r| over the pairs of columns of `scores` [n, a], constant columns left out.

    Args:
      scores: [n, a], one row a question.
      covariates: [n, c] regressed out first (token count, cut-off), or None. What they explain completely is constant
        afterwards.
    """
    n = scores.shape[0]
    covariates = jnp.zeros((n, 0)) if covariates is None else covariates
    value, ok = _mean_of_pairs(*_correlations(*_residual(scores, covariates, None), None))
    return Overlap(value, jnp.float32(cosine_floor(n - 1 - covariates.shape[1])), ok)


def _residual(scores: jax.Array, covariates: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Scores [n, a] after regressing covariates [n, c] and the mean out, and the columns with something left: [a]."""
    scores = jnp.asarray(scores, jnp.float32)
    weight = jnp.ones(scores.shape[0]) if weight is None else weight
    # Inner products over a bootstrap draw are inner products weighted with its counts.
    centred, keep = _varying(residualise(shifted(scores), jnp.zeros((scores.shape[0], 0)), weight), scores, weight)
    residual = residualise(centred, covariates, weight)
    left = _largest(residual, weight > 0) > COLLINEAR * _largest(centred, weight > 0)
    return jnp.where(left[None, :], residual, 0.0), keep & left


def _correlations(x: jax.Array, keep: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    x = x if weight is None else x * jnp.sqrt(weight)[:, None]
    table, _, ok = cosine_table(x.T)
    return table, ok & keep


def _mean_of_pairs(table: jax.Array, ok: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean absolute value above the diagonal of table [a, a] where both are ok; and whether there is such a pair."""
    pairs = jnp.triu(ok[:, None] & ok[None, :], 1).astype(table.dtype)
    return safe_ratio(jnp.sum(jnp.abs(table) * pairs), jnp.sum(pairs), 0.0), jnp.any(pairs > 0)


# --- all of it for the scores of a model ---


def geometry(
    scores: jax.Array | np.ndarray,
    covariates: jax.Array | np.ndarray | None = None,
    *,
    n_boot: int = 10_000,
    seed: int = 0,
) -> dict:
    """PCA, effective dimension and behavioural r of profile scores, with question-bootstrap 95 % intervals.

    The PCA is that of the covariance, not of the correlations: axes that vary more weigh more.

    Args:
      scores: [n, a], one row a question (average several samples first), not clipped if possible.
      covariates: [n, c] to regress out, or None. The published figures took the token count and the cut-off
        indicator.
      n_boot: draws.
      seed: of the draws.
    Returns:
      pc1_share, effective_dimension, behavioural_r, each with `_ci95` [2]; behavioural_floor; shares [r],
      components [r, a], pc1_scores [n], correlations [a, a]; ok, and behavioural_ok: there are two axes that vary.
      With covariates also residual: the same of the scores after regressing them out (in every draw anew), from the
      same draws; and pc1_covariate_r [c], the correlation of the first component of the plain scores with each
      covariate, its sign as arbitrary as the component's.
    Errors:
      UserError: fewer than two questions, shapes that do not fit, values that are not finite.
    """
    values = np.asarray(scores, np.float32)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise UserError(
            f"the geometry needs scores [questions, axes] of two questions or more, not {list(values.shape)}"
        )
    others = None if covariates is None else np.asarray(covariates, np.float32)
    if others is not None and (others.ndim != 2 or others.shape[0] != values.shape[0]):
        raise UserError(f"covariates {list(others.shape)} need one row for each of the {values.shape[0]} questions")
    if not (np.isfinite(values).all() and (others is None or np.isfinite(others).all())):
        raise UserError("scores or covariates are NaN or infinite; leave such questions out")
    x, key = jnp.asarray(values), jax.random.key(seed)
    if others is None:
        return _described(x, jnp.zeros((x.shape[0], 0)), key, 0, n_boot=n_boot)
    # Covariates of zeros change nothing, and the plain scores then need no program of their own.
    z = jnp.asarray(others)
    out = _described(x, jnp.zeros_like(z), key, 0, n_boot=n_boot)
    residual = _described(x, z, key, z.shape[1], n_boot=n_boot)
    return out | {"residual": residual, "pc1_covariate_r": _correlations_with(out["pc1_scores"], z)}


@jax.jit
def _correlations_with(x: jax.Array, others: jax.Array) -> jax.Array:
    """Correlations [c] of x [n] with the columns of `others` [n, c]."""
    return correlation_table(jnp.concatenate([x[:, None], others], axis=1))[0][0, 1:]


@functools.partial(jax.jit, static_argnames="n_boot")
def _described(scores, covariates, key, n_covariates, *, n_boot: int) -> dict:
    n, a = scores.shape
    degrees = jnp.maximum(n - 1 - n_covariates, 1).astype(jnp.float32)
    x, keep = _residual(scores, covariates, None)
    components = pca(x)
    table, _ = _correlations(x, keep, None)
    counts = bootstrap_counts(bootstrap_indices(key, n_boot, n))
    counts = jnp.concatenate([jnp.ones((1, n)), counts])  # row 0: the sample itself
    # Per draw three numbers and, for each, whether the draw has it.
    draws = map_in_batches(lambda w: _summary(scores, covariates, w), counts, _DRAWS_AT_ONCE)
    estimate, ok, draws = draws[0, :3], draws[0, 3:] > 0, draws[1:]
    # Ends between which each of the three can lie: for the logit scale, and by definition.
    rank = jnp.minimum(degrees, a)
    scale = jnp.stack([jnp.array([0.0, 1.0]), jnp.stack([jnp.ones(()), rank]), jnp.array([-1.0, 1.0])])
    bounds = scale.at[0, 0].set(1.0 / rank).at[2, 0].set(0.0)
    ends = jax.vmap(_logit_interval, in_axes=(0, 1, 1, 0, 0, None))(
        estimate, draws[:, :3], draws[:, 3:], scale, bounds, n
    )
    names = ("pc1_share", "effective_dimension", "behavioural_r")
    return (
        dict(zip(names, estimate, strict=True))
        | {f"{name}_ci95": end for name, end in zip(names, jnp.where(ok[:, None], ends, 0.0), strict=True)}
        | {
            "behavioural_floor": jnp.sqrt(2.0 / (jnp.pi * degrees)),
            "shares": components.shares,
            "components": components.components,
            "pc1_scores": components.scores[:, 0],
            "correlations": table,
            "ok": ok[0],
            "behavioural_ok": ok[2],
        }
    )


def _summary(scores: jax.Array, covariates: jax.Array, weight: jax.Array) -> jax.Array:
    """First share, effective dimension and behavioural r of a draw, then whether each is defined: [6]."""
    x, keep = _residual(scores, covariates, weight)
    behavioural, pair = _mean_of_pairs(*_correlations(x, keep, weight))
    matrix = _second_moment(x * jnp.sqrt(weight)[:, None])
    total = jnp.trace(matrix)
    share = safe_ratio(jnp.linalg.eigvalsh(matrix)[-1], total, 0.0)
    return jnp.stack([share, participation_ratio(matrix), behavioural, total > 0, total > 0, pair])


def _logit_interval(
    value: jax.Array, draws: jax.Array, defined: jax.Array, scale: jax.Array, bounds: jax.Array, n: int
) -> jax.Array:
    """value ∓ t·SE of the draws where they are defined (1 or 0), on the logit scale between the ends `scale` [2]."""
    width = scale[1] - scale[0]

    def logit(v: jax.Array) -> jax.Array:
        p = jnp.clip(safe_ratio(v - scale[0], width, 0.5), _LOGIT_EDGE, 1.0 - _LOGIT_EDGE)
        return jnp.log(p) - jnp.log1p(-p)

    count = jnp.maximum(jnp.sum(defined), 1.0)
    moved = logit(draws)
    mean = jnp.sum(moved * defined) / count
    variance = jnp.sum(jnp.square(moved - mean) * defined) / count
    student = jnp.sqrt(f_quantile(jnp.float32(1.0), jnp.float32(n - 1), tail=0.05))
    reach = student * jnp.sqrt(variance * n / (n - 1))
    ends = scale[0] + width * jax.nn.sigmoid(logit(value) + jnp.array([-1.0, 1.0]) * reach)
    ends = jnp.clip(ends, bounds[0], bounds[1])
    return jnp.stack([jnp.minimum(ends[0], value), jnp.maximum(ends[1], value)])
