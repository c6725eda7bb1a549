"""`logistic`: L2-regularised logistic regression in the span of the samples (method, section 4).

n samples, d state size, S training sets, P penalties, K folds. States are standardised over the training samples,
z = (h − mean)/sd, and with labels y = ±1 and C = 1/penalty

    ½‖w‖² + C Σᵢ log(1 + exp(−yᵢ (w·zᵢ + b)))

is minimised over w [d] and an unpenalised b: scikit-learn's `LogisticRegression(C=1/penalty)` after its
`StandardScaler`. The minimum has w = Σᵢ aᵢ zᵢ, so Newton's method on a [n] and b reaches it exactly, in n × n work on
the Gram matrix of the z; the states are read once per training set, for that matrix.

Every step goes to the minimum along its line, which makes it converge from anywhere, and along separable data (where
plain Newton steps move each margin by about 1) fast. Iterations end when nothing is left to gain, at a static bound at
the latest; under vmap a problem that is done stays as it is, so no result depends on its neighbours.

Every column is standardised by itself, in units of its own largest deviation: whatever the sizes of the columns are
beside each other, each has the weight that scikit-learn gives it. What a caller gives is brought into such units in
float64 (`directions.samples`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import einsum, length
from mood_jax.probes.directions import FLAT, Direction, Samples, relative, samples, weights
from mood_jax.probes.separation import pole_weights, safe_ratio
from mood_jax.probes.spans import pole_contrast

# From "the difference of the means of the standardised states" to "margins kept wide", strongest first.
PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0)
# Where there are no folds to choose by: C = 1, as in scikit-learn.
PENALTY = 1.0

# A column whose SD is below this share of its distance from the mean of all samples is constant in its training set.
CONSTANT = 1e-6
# Held-out losses nearer than this share of the smallest count as tied.
TIE = 1e-5

MAX_ITERATIONS = 40
# Newton's decrement (about twice what the objective can still fall) as a share of ‖w‖² before the last step, which
# squares what is left. Of ‖w‖² and not of the objective, since the direction has to be right where the loss is large.
_TOLERANCE = 1e-5
_STEPS = np.concatenate([[0.0], 2.0 ** np.arange(-10, 7)]).astype(np.float32)
_GOING, _CONVERGED, _BROKEN = 0, 1, 2


class LogisticFit(NamedTuple):
    """One fit: w = Σᵢ aᵢ zᵢ with a the `coefficients` [n]; intercept, objective, converged, iterations are scalars.

    `objective` is the one at the head of the file, as scikit-learn states it.
    """

    coefficients: jax.Array
    intercept: jax.Array
    objective: jax.Array
    converged: jax.Array
    iterations: jax.Array


class LogisticPath(NamedTuple):
    """Fits on S training sets at P penalties.

    x [S, P, n]: decision values w·z + b of all samples; coefficients [S, P, n], intercept [S, P], converged [S, P];
    ok [S]: the poles differ; vectors [S, P, d]: unit directions in the space of the states, or None.
    """

    x: jax.Array
    coefficients: jax.Array
    intercept: jax.Array
    converged: jax.Array
    ok: jax.Array
    vectors: jax.Array | None


class LogisticChoice(NamedTuple):
    """A direction with the penalty that cross-validation chose, the held-out losses [P], and whether it converged."""

    direction: Direction
    penalty: jax.Array
    losses: jax.Array
    converged: jax.Array


# --- Newton's method on a Gram matrix ---


def newton(
    gram: Any,
    sign: Any,
    penalty: Any,
    start: tuple[Any, Any] | None = None,
    *,
    max_iterations: Any = MAX_ITERATIONS,
) -> LogisticFit:
    """Minimises the objective at the head of the file.

    Args:
      gram: [n, n] inner products of the standardised states.
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      penalty: 1/C > 0.
      start: coefficients [n] and intercept to begin with, for instance of the neighbouring penalty; where zeros are
      better, and with None, zeros.
      max_iterations: the bound.
    Returns:
      LogisticFit; coefficients are 0 where sign is 0, and everywhere when a traced pole is empty (converged is then
      False).
    Raises:
      UserError: a missing pole, a penalty that is not above 0, values that are no finite numbers.
    """
    gram = jnp.asarray(inputs.floats32("gram", gram, ndim=2, least=1))
    if gram.shape[0] != gram.shape[1]:
        raise UserError(f"gram has the shape {list(gram.shape)}; give the inner products [n, n] of n samples")
    sign = jnp.asarray(weights(sign, len(gram)))
    penalty = _penalties([penalty])[0]
    if start is not None:
        start = (
            jnp.asarray(inputs.floats32("start", start[0], rows=len(gram))),
            jnp.asarray(inputs.floats32("start", start[1], ndim=0)),
        )
    if not inputs.traced(max_iterations):
        max_iterations = inputs.count("max_iterations", max_iterations)
    pos, neg, weight = pole_weights(sign)
    both = jnp.any(pos > 0) & jnp.any(neg > 0)
    y = jnp.sign(sign).astype(gram.dtype)
    cost = weight / penalty  # C, times how often a sample counts
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)

    def loss(f: jax.Array) -> jax.Array:
        return jnp.sum(cost * jax.nn.softplus(-y * f))

    a, b = jnp.zeros_like(y), jnp.zeros((), gram.dtype)
    if start is not None:
        # Far from the minimum the logistic function is flat in float32, and a step is not to be had.
        near = jnp.where(weight > 0, start[0], 0.0)
        image = einsum("nm,m->n", gram, near)
        better = 0.5 * jnp.sum(near * image) + loss(image + start[1]) < loss(a)
        a, b = jnp.where(better, near, a), jnp.where(better, start[1], b)

    def step(state):
        a, b, _, i = state
        image = einsum("nm,m->n", gram, a)
        f = image + b
        pull = cost * y * jax.nn.sigmoid(-y * f)  # minus the gradient of the loss by f; equals a at the minimum
        residual = pull - a
        # The Newton step δa + D (G δa + δb) = residual, 1ᵀ(a + δa) = 0, with D the curvature of the loss, by the
        # Cholesky factor of I + D½ G D½, whose eigenvalues are 1 or more.
        root = jnp.sqrt(cost * jax.nn.sigmoid(f) * jax.nn.sigmoid(-f))
        factor = jnp.linalg.cholesky(identity + root[:, None] * gram * root[None, :])
        right = jnp.stack([root * einsum("nm,m->n", gram, residual), root], axis=1)
        solved = root[:, None] * cho_solve((factor, True), right)
        free = residual - solved[:, 0]
        shift = safe_ratio(jnp.sum(a + free), jnp.sum(solved[:, 1]), 0.0)
        direction = free - shift * solved[:, 1]
        slope = einsum("nm,m->n", gram, direction)
        decrement = jnp.sum(slope * residual) + shift * jnp.sum(pull)
        fine = jnp.isfinite(decrement) & jnp.all(jnp.isfinite(direction))
        t = _line_minimum(y, cost, f, slope + shift, jnp.sum(a * slope), jnp.sum(direction * slope))
        a = jnp.where(fine, a + t * direction, a)
        b = jnp.where(fine, b + t * shift, b)
        norm = jnp.sum(a * (image + jnp.where(fine, t, 0.0) * slope))
        # The second says that the gradient by b is not hidden by a vanishing curvature.
        converged = (decrement <= _TOLERANCE * norm) & (jnp.abs(jnp.sum(pull)) <= 0.1 * jnp.sum(jnp.abs(pull)))
        return a, b, jnp.where(fine, jnp.where(converged, _CONVERGED, _GOING), _BROKEN), i + 1

    def going(state):
        _, _, status, i = state
        return (status == _GOING) & (i < max_iterations)

    status = jnp.where(both, _GOING, _BROKEN)
    a, b, status, iterations = lax.while_loop(going, step, (a, b, status, jnp.zeros((), jnp.int32)))
    a, b = jnp.where(both, a, 0.0), jnp.where(both, b, 0.0)
    image = einsum("nm,m->n", gram, a)
    objective = 0.5 * jnp.sum(a * image) + loss(image + b)
    return LogisticFit(a, b, objective, status == _CONVERGED, iterations)


def _line_minimum(y, cost, f, change, linear, quadratic) -> jax.Array:
    """t ≥ 0 with the smallest objective at f + t·change [n], ½‖w‖² = const + linear·t + ½ quadratic·t² there.

    The derivative by t only grows, so its zero lies between two neighbours on a geometric grid, and on the chord
    between these; near the minimum of the objective it is a line, and the chord exact.
    """
    steps = jnp.asarray(_STEPS)
    values = f[None, :] + steps[:, None] * change[None, :]
    pull = (cost * y)[None, :] * jax.nn.sigmoid(-y[None, :] * values)
    slopes = linear + steps * quadratic - jnp.sum(pull * change[None, :], axis=1)
    falling = slopes <= 0
    low, low_slope = jnp.max(jnp.where(falling, steps, 0.0)), jnp.max(jnp.where(falling, slopes, -jnp.inf))
    high, high_slope = jnp.min(jnp.where(falling, _STEPS[-1], steps)), jnp.min(jnp.where(falling, jnp.inf, slopes))
    inside = jnp.isfinite(low_slope) & jnp.isfinite(high_slope)
    share = jnp.where(inside, low_slope / jnp.where(inside, low_slope - high_slope, 1.0), 0.0)
    return low + share * (high - low)


# --- from states ---


def _penalties(penalties: Any) -> jax.Array:
    """Penalties [P] in float32, all above 0."""
    found = inputs.floats32("penalties", penalties, least=1)
    if not inputs.traced(found) and (found <= 0).any():
        raise UserError("a penalty is 0 or below; give 1/C above 0")
    return jnp.asarray(found)


def _own_units(vectors: jax.Array, exponent: Any) -> jax.Array:
    """Unit directions [..., d] on columns in units of 2^exponent [d] → those in the space of the states."""
    if exponent is None or not np.ndim(exponent):
        return vectors
    found = np.ldexp(np.asarray(vectors, np.float64), exponent.min() - exponent)
    largest = np.abs(found).max(axis=-1, keepdims=True)
    found = found / np.where(largest > 0, largest, 1.0)
    return jnp.asarray(found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1.0), jnp.float32)


def logistic_projections(
    states: Any,
    training: Any,
    penalties: Any = PENALTIES,
    *,
    spread: Any = None,
    vectors: bool = False,
) -> LogisticPath:
    """Fits on many training sets of the same samples, and the decision values of all samples on them.

    Per training set the states are read three times: for their largest deviations, for their SD, and for one Gram
    matrix [n, d]·[d, n], which is most of the work. All the rest is n × n. One standardised copy of the states exists
    at a time.

    Args:
      states: [n, d].
      training: [S, n] signs, 0 = not in this training set; ±w counts w times.
      penalties: [P], each 1/C; fastest from strong to weak, as each fit starts from the one before.
      spread: root mean squared distance of the samples from their mean, before anything was taken out of the states:
      the scale on which a difference counts as none; None = each column's own.
      vectors: whether to return the directions too.
    Returns:
      LogisticPath; all is 0, `ok` and `converged` False, where a pole is empty or the poles do not differ.
    Raises:
      UserError: values that are no finite numbers, penalties that are not above 0, sizes that differ.
    """
    h = inputs.numbers("states", states, ndim=2, least=1)
    signs = inputs.floats32("training", training, ndim=2, least=1)
    if signs.shape[1] != len(h):
        raise UserError(f"training has {signs.shape[1]} columns and needs {len(h)}, one for each of the states")
    strengths, exponent = _penalties(penalties), None
    spread = None if spread is None else inputs.number("spread", spread, 0.0)
    if not inputs.traced(h, signs, spread):
        h, exponent = relative(h, (signs != 0).any(axis=0), each=spread is None)
        spread = None if spread is None else np.float32(np.ldexp(spread, -exponent))
    found = _paths(jnp.asarray(h, jnp.float32), jnp.asarray(signs), strengths, spread, vectors)
    return found if found.vectors is None else found._replace(vectors=_own_units(found.vectors, exponent))


def _paths(states: jax.Array, training: jax.Array, strengths: jax.Array, spread: Any, vectors: bool) -> LogisticPath:
    _, _, weight = pole_weights(training)
    h, mean = _centred(states, weight)
    columns = h.T  # samples last: sums over them are in order of memory, and the product of two such is faster

    def one_set(parts):
        z, inverse = _standardised(columns, parts[0], parts[1])
        return einsum("dn,dm->nm", z, z), inverse

    gram, inverse = lax.map(one_set, (weight, mean))
    contrast = jax.vmap(pole_contrast)(training)
    difference = einsum("sn,nd->sd", contrast, h)
    live = jnp.sum(inverse > 0, axis=1)
    ok = jnp.any(contrast != 0, axis=1) & (live > 0)
    if spread is not None:
        ok &= length(difference, axis=1) > FLAT * spread
    ok &= jnp.sum(jnp.square(difference * inverse), axis=1) > FLAT**2 * live

    def path(gram: jax.Array, sign: jax.Array) -> LogisticFit:
        def next_penalty(start, penalty):
            fit = newton(gram, sign, penalty, start)
            return (fit.coefficients, fit.intercept), fit

        start = (jnp.zeros(sign.shape, gram.dtype), jnp.zeros((), gram.dtype))
        return lax.scan(next_penalty, start, strengths)[1]

    fit = jax.vmap(path)(gram, jnp.where(ok[:, None], training, 0))
    a = fit.coefficients
    x = einsum("spm,snm->spn", a, gram) + fit.intercept[:, :, None]
    unit = None
    if vectors:
        # Σ a is 0 but for rounding, which must not meet the mean.
        normal = einsum("spn,nd->spd", a, h) - jnp.sum(a, axis=2)[:, :, None] * mean[:, None, :]
        normal = normal * inverse[:, None, :] * inverse[:, None, :]  # in turn, since the square may overflow
        norm = length(normal, axis=2)[:, :, None]
        unit = safe_ratio(normal, jnp.broadcast_to(norm, normal.shape), 0.0)
    return LogisticPath(x, a, fit.intercept, fit.converged, ok, unit)


def fit_logistic(
    states: Any,
    sign: Any,
    *,
    penalty: Any = PENALTY,
    spread: Any = None,
    fold: Any = None,
) -> Direction:
    """v ∝ w/sd, the weights of the logistic regression mapped back to the space of the states.

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      penalty: 1/C.
      spread: scale of the states against which a difference counts as none; None = each column's own.
      fold: not used.
    Returns:
      Direction. `ok` is False, and the vector 0, when the means do not differ; of traced signs also when a pole is
      empty, which is refused in given ones.
    Raises:
      UserError: a pole without samples, values that are no finite numbers, a penalty that is not above 0.
    """
    given = samples(states, sign, spread, fold, weighted=True, each=True)
    path = _paths(given.states, given.sign[None, :], _penalties([penalty]), given.spread, True)
    assert path.vectors is not None
    return Direction(_own_units(path.vectors[0, 0], given.exponent), path.ok[0])


def fit_logistic_cv(
    states: Any,
    sign: Any,
    *,
    n_folds: int,
    penalties: Any = PENALTIES,
    spread: Any = None,
    fold: Any = None,
) -> Direction:
    """`fit_logistic` at the penalty that `choose_logistic` finds, or at `PENALTY` where there are no folds."""
    if fold is None:
        return fit_logistic(states, sign, spread=spread)
    return choose_logistic(states, sign, fold, n_folds=n_folds, penalties=penalties, spread=spread).direction


def choose_logistic(
    states: Any,
    sign: Any,
    fold: Any,
    *,
    n_folds: int,
    penalties: Any = PENALTIES,
    spread: Any = None,
) -> LogisticChoice:
    """The penalty with the smallest held-out log loss per sample, averaged over folds; of tied ones the strongest.

    Folds without a used sample (one that an outer loop holds out), and folds without which a pole is empty, do not
    count; when none does, the strongest penalty is taken.

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      fold: [n] in 0…K−1, or −1 for a sample that is never held out; grouped by question.
      n_folds: K.
      penalties: [P], each 1/C, strongest first.
      spread: as in `fit_logistic`.
    Raises:
      UserError: as `fit_logistic`, and for folds that are no whole numbers.
    """
    states, sign, spread, fold, exponent = samples(states, sign, spread, fold, weighted=True, each=True)
    n_folds, strengths = inputs.count("n_folds", n_folds, 1), _penalties(penalties)
    held_out = (fold[None, :] == jnp.arange(n_folds)[:, None]) & (sign != 0)[None, :]  # [K, n]
    training = jnp.concatenate([jnp.where(held_out, 0, sign[None, :]), sign[None, :]])
    path = _paths(states, training, strengths, spread, True)
    assert path.vectors is not None
    weight = held_out * pole_weights(sign)[2][None, :]
    size = jnp.sum(weight, axis=1)
    loss = jax.nn.softplus(-jnp.sign(sign).astype(path.x.dtype)[None, None, :] * path.x[:-1])
    loss = safe_ratio(jnp.sum(loss * weight[:, None, :], axis=2), jnp.maximum(size, 1.0)[:, None], 0.0)
    counts = ((size > 0) & path.ok[:-1]).astype(loss.dtype)
    losses = safe_ratio(jnp.sum(loss * counts[:, None], axis=0), jnp.broadcast_to(jnp.sum(counts), loss.shape[1:]), 0.0)
    best = jnp.argmax(jnp.where(losses <= jnp.min(losses) * (1.0 + TIE), strengths, -jnp.inf))
    return LogisticChoice(
        Direction(_own_units(path.vectors[-1, best], exponent), path.ok[-1]),
        strengths[best],
        losses,
        path.converged[-1, best],
    )


def standardised_gram(states: Any, sign: Any, *, spread: Any = None) -> jax.Array:
    """[n, n] inner products of the states of all samples, standardised (mean, SD with ddof 0) over the used ones.

    A column that is constant over the used samples counts as 0: no weight falls on it, as with scikit-learn, whose
    scale for it is 1.

    Args:
      states: [n, d].
      sign: [n], +1 / −1, 0 = left out; ±w counts w times.
      spread: not used; a column's own SD is its scale.
    Raises:
      UserError: a pole without samples, values that are no finite numbers.
    """
    given: Samples = samples(states, sign, spread, weighted=True, each=True)
    weight = pole_weights(given.sign)[2]
    h, mean = _centred(given.states, weight[None, :])
    z, _ = _standardised(h.T, weight, mean[0])
    return einsum("dn,dm->nm", z, z)


def _centred(states: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States [n, d] about the mean of all samples that some training set has, and the means [S, d] of the sets, whose
    weights are [S, n]."""
    some = jnp.max(weight, axis=0)
    # First about a used sample, as `arrays.shifted` does and why; one that is left out could lie anywhere.
    h = states - states[jnp.argmax(some > 0)][None, :]
    h -= (einsum("n,nd->d", some, h) / jnp.maximum(jnp.sum(some), 1.0))[None, :]
    return h, einsum("sn,nd->sd", weight, h) / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)


def _standardised(h: jax.Array, weight: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z [d, n] and 1/sd [d] (0 for a constant column) with the weights [n] of one training set; h is [d, n].

    Squares are formed in units of the column's largest deviation, a power of two, which changes no digit.
    """
    deviation = h - mean[:, None]
    largest = jnp.max(jnp.where(weight[None, :] > 0, jnp.abs(deviation), 0.0), axis=1)
    per_unit = jnp.ldexp(jnp.float32(1.0), -jnp.clip(jnp.frexp(largest)[1], -125, 125))
    scaled = deviation * per_unit[:, None]
    variance = jnp.sum(weight[None, :] * jnp.square(scaled), axis=1) / jnp.maximum(jnp.sum(weight), 1.0)
    live = variance > jnp.square(CONSTANT * mean * per_unit)
    inverse = jnp.where(live, lax.rsqrt(jnp.where(live, variance, 1.0)), 0.0)
    return scaled * inverse[:, None], inverse * per_unit
