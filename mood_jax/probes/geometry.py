"""How many dimensions the axes of a model span: in its states and in its behaviour (method, section 8).

n samples (questions), a axes, d state size, c covariates, B bootstrap draws.

With n ≪ d, the Gram matrix [n, n] has the eigenvalues of the covariance [d, d], and principal components are its
eigenvectors taken back through the samples. That is exact and no approximation. The effective dimension needs no
eigenvalues at all: Σλ is the trace and Σλ² the squared Frobenius norm of either matrix.

What a caller gives is computed on the host in float64, after its offset and its size were taken out; what is traced is
computed by the same lines in float32, where eigenvalues are known to about 1e-6 of the largest, and what is below 1e-5
of it counts as none. A column whose deviations are rounding beside its values is constant: 5e-7 of them in float32 and
shorter dtypes, 9e-16 in float64.

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import COLLINEAR, ROUNDING, map_in_batches, namespace, product, residualise, rounding
from mood_jax.probes.resampling import bootstrap_counts, bootstrap_indices
from mood_jax.probes.separation import safe_ratio
from mood_jax.probes.student import quantile

# An eigenvalue below this share of the largest is rounding, in float32 and in float64.
FLAT_EIGENVALUE = 1e-5
_FLAT_64 = 1e-13
# Scores of which covariates leave less than this share are explained by them completely, in float64.
_EXPLAINED_64 = 1e-8
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


# --- what a caller gives ---


class _Table(NamedTuple):
    """x [n, a], float64 on the host about its mean and in units of `unit`, constant columns exactly 0; or traced, as
    it came."""

    x: Any
    unit: float


def _taken(name: str, x: Any, *, each: bool = False) -> _Table:
    """A table of samples [n, a]; with `each`, every column is in a unit of its own, and `unit` is 1."""
    array = inputs.numbers(name, x, ndim=2, least=1)
    if inputs.traced(array):
        return _Table(array, 1.0)
    values = array.astype(np.float64)
    largest = np.abs(values).max(initial=0.0)
    scaled = values / (largest if largest > 0 else 1.0)
    centred = scaled - scaled[:1]  # equal values are then exactly 0
    centred = centred - centred.mean(axis=0, keepdims=True)
    deviation = np.abs(centred).max(axis=0, initial=0.0)
    deviation = np.where(deviation > rounding(array.dtype) * np.abs(scaled).max(axis=0, initial=0.0), deviation, 0.0)
    unit = deviation if each else np.full_like(deviation, deviation.max(initial=0.0))
    table = np.where(deviation > 0, centred, 0.0) / np.where(unit > 0, unit, 1.0)
    return _Table(table, 1.0 if each else float(deviation.max(initial=0.0) * largest))


# --- principal components ---


def pca(x: Any) -> PCA:
    """Principal components of the covariance of samples x [n, d]: centred, not standardised.

    The entry of largest magnitude of a component is positive, as in `sklearn.decomposition.PCA`. Where n < d the Gram
    matrix is decomposed instead, see the head of this file.

    Errors: UserError for anything but a table of finite numbers.
    """
    table, unit = _taken("x", x)
    found = _components(table)
    return found._replace(scores=found.scores * unit, variances=found.variances * unit * unit)


def _components(x: Any) -> PCA:
    xp = namespace(x)
    n, d = x.shape
    centred = _centred(x)
    values, vectors = xp.linalg.eigh(_second_moment(centred))
    values, vectors = xp.maximum(values[::-1], 0.0), vectors[:, ::-1]  # ascending from eigh
    used = values > (FLAT_EIGENVALUE if xp is jnp else _FLAT_64) * values[0]
    values = xp.where(used, values, 0.0)
    components = vectors.T
    if n < d:
        components = product("nr,nd->rd", vectors, centred)
        components = components / xp.where(used, xp.linalg.norm(components, axis=1), 1.0)[:, None]
    # A constant column takes no part, where rounding would mix it into the small components.
    components = xp.where(used[:, None] & xp.any(centred != 0, axis=0)[None, :], components, 0.0)
    largest = xp.take_along_axis(components, xp.argmax(xp.abs(components), axis=1)[:, None], axis=1)
    components = components * xp.where(largest < 0, -1.0, 1.0)
    return PCA(
        shares=_share(values, xp.sum(values)),
        components=components,
        scores=product("nd,rd->nr", centred, components),
        variances=values / max(n - 1, 1),
        ok=values[0] > 0,
    )


def participation_ratio(matrix: Any) -> Any:
    """Effective dimension (Σλ)²/Σλ² of a symmetric matrix [m, m], a covariance or a Gram matrix; 0 for a zero matrix.

    1 where one direction has all the variance, m where all have the same.

    Errors: UserError for anything but a square table of finite numbers.
    """
    matrix = inputs.floats("matrix", matrix, ndim=2, least=1)
    if matrix.shape[0] != matrix.shape[1]:
        raise UserError(f"matrix has the shape {list(matrix.shape)}; give a covariance or a Gram matrix [m, m]")
    return _participation(matrix)


def _participation(matrix: Any) -> Any:
    xp = namespace(matrix)
    matrix = _share(matrix, xp.max(xp.abs(matrix)))  # squares may underflow
    return _share(xp.square(xp.trace(matrix)), xp.sum(xp.square(matrix)))


def effective_dimension(x: Any) -> Any:
    """`participation_ratio` of the covariance of samples x [n, d]; at most min(n − 1, d).

    Errors: UserError for anything but a table of finite numbers.
    """
    return _participation(_second_moment(_centred(_taken("x", x).x)))


def _share(top: Any, bottom: Any) -> Any:
    """top/bottom, 0 where bottom is; NumPy or JAX."""
    xp = namespace(top, bottom)
    return xp.where(bottom > 0, top / xp.where(bottom > 0, bottom, 1.0), 0.0)


def _centred(x: Any) -> Any:
    """x [n, d] minus its mean; a column that differs by rounding only becomes exactly 0."""
    from_first = x - x[:1]
    return _varying(from_first - namespace(x).mean(from_first, axis=0, keepdims=True), x, None)[0]


def _varying(centred: Any, x: Any, weight: Any) -> tuple[Any, Any]:
    """`centred` [n, d] with the columns zeroed that are constant in x to rounding, and which are not: [d]."""
    xp = namespace(x)
    used = xp.ones(x.shape[0], bool) if weight is None else weight > 0
    # The largest deviation, since a single one of many samples may differ.
    keep = _largest(centred, used) > (ROUNDING if xp is jnp else _FLAT_64) * _largest(x, used)
    return xp.where(keep[None, :], centred, 0.0), keep


def _largest(x: Any, used: Any) -> Any:
    xp = namespace(x)
    return xp.max(xp.where(used[:, None], xp.abs(x), 0.0), axis=0)


def _second_moment(centred: Any) -> Any:
    """The smaller of Xᵀ X [d, d] and X Xᵀ [n, n]: the same eigenvalues other than 0."""
    equation = "nd,md->nm" if centred.shape[0] < centred.shape[1] else "nd,ne->de"
    return product(equation, centred, centred)


# --- overlap of directions, overlap of behaviour ---


def cosine_floor(dimension: int) -> float:
    """√(2/(πd)): the expected |cos| of two random directions in d dimensions.

    Errors: UserError for a dimension that is no whole number of 0 or more.
    """
    return math.sqrt(2.0 / (math.pi * max(inputs.count("dimension", dimension, 0), 1)))


def cosine_table(vectors: Any) -> Cosines:
    """Cosines between the rows of `vectors` [a, d]; the row and column of a zero vector are 0, its diagonal too.

    Errors: UserError for anything but a table of finite numbers.
    """
    vectors = inputs.floats("vectors", vectors, ndim=2)
    table, ok = _cosines(vectors)
    return Cosines(table, namespace(table).asarray(cosine_floor(vectors.shape[1]), table.dtype), ok)


def _cosines(vectors: Any) -> tuple[Any, Any]:
    """Table [a, a] of the rows' cosines, and which are not zero: [a]."""
    xp = namespace(vectors)
    largest = xp.max(xp.abs(vectors), axis=1, keepdims=True)
    ok = largest[:, 0] > 0
    vectors = vectors / xp.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor underflow
    units = vectors / xp.where(ok[:, None], xp.linalg.norm(vectors, axis=1, keepdims=True), 1.0)
    return xp.clip(product("ad,bd->ab", units, units), -1.0, 1.0), ok


def geo_cos(vectors: Any) -> Overlap:
    """Mean |cos| over the pairs of rows of `vectors` [a, d], zero vectors left out.

    Errors: UserError for anything but a table of finite numbers.
    """
    table, floor, ok = cosine_table(vectors)
    value, any_pair = _mean_of_pairs(table, ok)
    return Overlap(value, floor, any_pair)


def correlation_table(scores: Any, weight: Any = None) -> tuple[Any, Any]:
    """Pearson correlations between the columns of `scores` [n, a].

    Args:
      scores: [n, a].
      weight: [n] of 0 or more, how often each sample counts; None = once.
    Returns:
      table [a, a], rows and columns of constant scores 0; ok [a], the scores are not constant.
    Errors:
      UserError: values that are no finite numbers, or not one weight a row.
    """
    table = _taken("scores", scores, each=True).x
    if weight is not None:
        weight = inputs.floats("weight", weight, rows=len(table))
        if not inputs.traced(weight) and (weight < 0).any():
            raise UserError("weight has a value below 0; give how often each sample counts")
    return _correlations(*_residual(table, np.zeros((len(table), 0)), weight), weight)


def behavioural_r(scores: Any, covariates: Any = None) -> Overlap:
    """Mean |Pearson r| over the pairs of columns of `scores` [n, a], constant columns left out.

    Args:
      scores: [n, a], one row a question.
      covariates: [n] or [n, c] regressed out first (token count, cut-off), or None. What they explain completely is
        constant afterwards.
    Errors:
      UserError: values that are no finite numbers, or not one row of covariates for each of the scores.
    """
    x = _taken("scores", scores, each=True).x
    z = np.zeros((len(x), 0)) if covariates is None else _covariates(covariates, len(x))
    value, ok = _mean_of_pairs(*_correlations(*_residual(x, z, None), None))
    return Overlap(value, namespace(value).asarray(cosine_floor(max(len(x) - 1 - z.shape[1], 0)), value.dtype), ok)


def _covariates(covariates: Any, rows: int) -> Any:
    """Covariates [n, c] of one column [n] or more, as `_taken` has them."""
    x = inputs.numbers("covariates", covariates, ndim=None, rows=rows)
    if x.ndim not in (1, 2):
        raise UserError(
            f"covariates {list(x.shape)} need one row for each of the {rows} questions, and columns at most"
        )
    return _taken("covariates", x[:, None] if x.ndim == 1 else x, each=True).x


def _residual(scores: Any, covariates: Any, weight: Any) -> tuple[Any, Any]:
    """Scores [n, a] after regressing covariates [n, c] and the mean out, and the columns with something left: [a]."""
    xp = namespace(scores, covariates, weight)
    scores = xp.asarray(scores)
    weight = xp.ones(scores.shape[0], scores.dtype) if weight is None else weight
    # Inner products over a bootstrap draw are inner products weighted with its counts.
    nothing = np.zeros((scores.shape[0], 0))
    centred, keep = _varying(residualise(scores - scores[:1], nothing, weight), scores, weight)
    residual = residualise(centred, covariates, weight)
    share = COLLINEAR if xp is jnp else _EXPLAINED_64
    left = _largest(residual, weight > 0) > share * _largest(centred, weight > 0)
    return xp.where(left[None, :], residual, 0.0), keep & left


def _correlations(x: Any, keep: Any, weight: Any) -> tuple[Any, Any]:
    table, ok = _cosines((x if weight is None else x * namespace(x).sqrt(weight)[:, None]).T)
    return table, ok & keep


def _mean_of_pairs(table: Any, ok: Any) -> tuple[Any, Any]:
    """Mean absolute value above the diagonal of table [a, a] where both are ok; and whether there is such a pair."""
    xp = namespace(table)
    pairs = xp.triu(ok[:, None] & ok[None, :], 1).astype(table.dtype)
    return _share(xp.sum(xp.abs(table) * pairs), xp.sum(pairs)), xp.any(pairs > 0)


# --- all of it for the scores of a model ---


def geometry(
    scores: Any,
    covariates: Any = None,
    *,
    n_boot: int = 10_000,
    seed: int = 0,
) -> dict:
    """PCA, effective dimension and behavioural r of profile scores, with question-bootstrap 95 % intervals.

    The PCA is that of the covariance, not of the correlations: axes that vary more weigh more.

    Args:
      scores: [n, a], one row a question (average several samples first), not clipped if possible.
      covariates: [n] or [n, c] to regress out, or None. The published figures took the token count and the cut-off
        indicator.
      n_boot: draws.
      seed: of the draws.
    Returns:
      pc1_share, effective_dimension, behavioural_r, each with `_ci95` [2]; behavioural_floor; shares [r],
      components [r, a], pc1_scores [n], correlations [a, a]; ok, and behavioural_ok: there are two axes that vary.
      With covariates also residual: the same of the scores after regressing them out (in every draw), from the same
      draws; and pc1_covariate_r [c], the correlation of the first component of the plain scores with each
      covariate, its sign as arbitrary as the component's.
    Errors:
      UserError: fewer than two questions, shapes that do not fit, values that are not finite.
    """
    table, unit = _taken("scores", scores)
    if inputs.traced(table):
        raise UserError("the geometry draws samples on the host; call it outside jit")
    n_boot, seed = inputs.count("n_boot", n_boot), inputs.seed(seed)
    n, a = table.shape
    if n < 2 or a < 1:
        raise UserError(f"the geometry needs scores [questions, axes] of two questions or more, not {[n, a]}")
    given = None if covariates is None else _covariates(covariates, n)
    x, key = jnp.asarray(table, jnp.float32), numerics.key(seed)
    if given is None:
        return _in_units(_described(x, jnp.zeros((n, 0)), key, 0, n_boot=n_boot), unit)
    # Covariates of zeros change nothing, and the plain scores then need no program of their own.
    z = jnp.asarray(_orthonormal(given), jnp.float32)
    out = _described(x, jnp.zeros_like(z), key, 0, n_boot=n_boot)
    residual = _in_units(_described(x, z, key, z.shape[1], n_boot=n_boot), unit)
    first = np.asarray(out["pc1_scores"], np.float64)
    moved = correlation_table(np.concatenate([first[:, None], given], axis=1))[0][0, 1:]
    return _in_units(out, unit) | {"residual": residual, "pc1_covariate_r": moved}


def _in_units(out: dict, unit: float) -> dict:
    return out | {"pc1_scores": np.asarray(out["pc1_scores"], np.float64) * unit}


def _orthonormal(covariates: np.ndarray) -> np.ndarray:
    """Columns [n, c] that span what centred covariates [n, c] do, orthogonal to float64, then 0: nearly collinear
    covariates would lose their digits in float32."""
    left, sizes, _ = np.linalg.svd(covariates, full_matrices=False)
    found = np.zeros_like(covariates)
    kept = left[:, sizes > 1e-9 * sizes.max(initial=0.0)]
    found[:, : kept.shape[1]] = kept
    return found


@functools.partial(jax.jit, static_argnames="n_boot")
def _described(scores, covariates, key, n_covariates, *, n_boot: int) -> dict:
    n, a = scores.shape
    degrees = jnp.maximum(n - 1 - n_covariates, 1).astype(jnp.float32)
    x, keep = _residual(scores, covariates, None)
    components = _components(x)
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
    return jnp.stack([share, _participation(matrix), behavioural, total > 0, total > 0, pair])


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
    reach = quantile(0.05, n - 1.0) * jnp.sqrt(variance * n / (n - 1))
    ends = scale[0] + width * jax.nn.sigmoid(logit(value) + jnp.array([-1.0, 1.0]) * reach)
    ends = jnp.clip(ends, bounds[0], bounds[1])
    return jnp.stack([jnp.minimum(ends[0], value), jnp.maximum(ends[1], value)])
