import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mood_jax.probes import (
    PENALTIES,
    choose_logistic,
    fit_logistic,
    fit_logistic_cv,
    logistic_projections,
    newton,
    standardised_gram,
)
from mood_jax.probes.logistic import MAX_ITERATIONS

pytestmark = pytest.mark.usefixtures("unoptimised")

# Every problem has this many rows, some of them left out, and one of two widths, so that few programs are compiled.
N, WIDE, NARROW = 60, 256, 6
CASES = {
    # n₊, n₋, d
    "wide": (30, 30, WIDE),
    "unequal poles": (35, 12, WIDE),
    "two and two": (2, 2, WIDE),
    "one and one": (1, 1, WIDE),
    "outlier coordinate": (30, 30, WIDE),
    "large offset": (30, 30, WIDE),
    "duplicated samples": (25, 25, WIDE),
    "outlier sample": (30, 30, NARROW),
    "narrow noise": (30, 30, NARROW),
    "narrow, unequal poles": (40, 5, NARROW),
    "narrow and separable": (30, 30, NARROW),
    "collinear and constant columns": (30, 30, NARROW),
    "the same sample in both poles": (30, 30, NARROW),
}
gram_of = jax.jit(standardised_gram)


@jax.jit
def _solve(gram, sign, penalty, start, max_iterations):
    return newton(gram, sign, penalty, start, max_iterations=max_iterations)


ZEROS = (np.zeros(N, np.float32), np.float32(0))


def solve(gram, sign, penalty, start=ZEROS, max_iterations=MAX_ITERATIONS):
    return _solve(gram, sign, penalty, start, max_iterations)


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def problem(rng, case):
    n, m, d = CASES[case]
    sign = np.concatenate([np.repeat([1, -1], [n, m]), np.zeros(N - n - m, int)])
    states = rng.normal(size=(N, d))
    if case not in ("narrow noise", "narrow and separable"):
        states += 0.4 * sign[:, None] * rng.normal(size=d)
    if case == "narrow and separable":
        states += 8 * sign[:, None]
    elif case == "outlier coordinate":
        states[:, 3] *= 1000
    elif case == "large offset":
        states[:, 3] += 4096
    elif case == "duplicated samples":
        states[1:8] = states[0]
    elif case == "outlier sample":
        states[0] *= 1000
    elif case == "collinear and constant columns":
        states[:, 1], states[:, 2], states[:, 3] = 2 * states[:, 0], 5.0, states[:, 4] - states[:, 0]
    elif case == "the same sample in both poles":
        states[25:35] = states[25]
    states[sign == 0] += 100.0  # must not matter
    order = rng.permutation(N)
    return states[order].astype(np.float32), sign[order]


def objective(z, sign, c, w, b) -> float:
    return 0.5 * w @ w + c * np.logaddexp(0, -sign * (z @ w + b)).sum()


def reference(states, sign, c):
    """Standardised states of all samples, sd, weights and intercept by scikit-learn in float64, fitted on sign ≠ 0."""
    used = sign != 0
    scaler = StandardScaler().fit(states[used].astype(np.float64))
    z = np.asarray(scaler.transform(states.astype(np.float64)))
    solver = "lbfgs" if states.shape[1] > used.sum() else "newton-cholesky"
    model = LogisticRegression(C=c, tol=1e-10, max_iter=100_000, solver=solver).fit(z[used], sign[used])
    return z, scaler.scale_, model.coef_[0], model.intercept_[0]


@pytest.mark.parametrize("case", CASES)
def test_newton_reaches_scikit_learns_objective_and_weights(rng, case):
    states, sign = problem(rng, case)
    used = sign != 0
    gram = gram_of(states, sign)
    for c in (1e-4, 1e-2, 1.0, 1e2):
        z, _, w, b = reference(states, sign, c)
        np.testing.assert_allclose(gram, z @ z.T, atol=1e-4 * np.abs(z @ z.T)[used][:, used].max(), rtol=1e-3)
        fit = solve(gram, sign, 1 / c)
        assert bool(fit.converged)
        np.testing.assert_array_equal(np.asarray(fit.coefficients)[~used], 0)
        got = z.T @ np.asarray(fit.coefficients, np.float64)
        reached = objective(z[used], sign[used], c, got, float(fit.intercept))
        assert reached <= (1 + 1e-6) * objective(z[used], sign[used], c, w, b)
        assert float(fit.objective) == pytest.approx(reached, rel=1e-3)
        assert cosine(got, w) > 0.9999
        np.testing.assert_allclose(z @ got + float(fit.intercept), z @ w + b, atol=1e-2 * np.abs(z @ w + b).max())


def test_a_sample_of_sign_w_counts_w_times(rng):
    states, sign = problem(rng, "narrow, unequal poles")
    count = rng.integers(1, 4, N)
    fit = solve(gram_of(states, sign * count), sign * count, 1.0)
    z, _, w, b = reference(np.repeat(states, count, axis=0), np.repeat(sign, count), 1.0)
    first = np.cumsum(count) - count
    assert cosine(z[first].T @ np.asarray(fit.coefficients, np.float64), w) > 0.9999
    assert float(fit.intercept) == pytest.approx(b, abs=1e-3)


def test_any_start_leads_to_the_same_minimum(rng):
    states, sign = problem(rng, "narrow noise")
    gram = gram_of(states, sign)
    z, _, w, _ = reference(states, sign, 1.0)
    for size in (1e-4, 1e-2, 1.0, 1e4):
        start = (jnp.asarray(rng.normal(size=N) * size, jnp.float32), jnp.float32(rng.normal() * size))
        fit = solve(gram, sign, 1.0, start)
        assert bool(fit.converged)
        assert cosine(z.T @ np.asarray(fit.coefficients, np.float64), w) > 0.9999


def test_a_fit_does_not_depend_on_its_neighbours_under_vmap(rng):
    problems = [problem(rng, case) for case in ("narrow noise", "narrow and separable", "outlier sample")]
    grams, signs = (jnp.stack(parts) for parts in zip(*((gram_of(h, s), s) for h, s in problems), strict=True))
    together = jax.jit(jax.vmap(newton, in_axes=(0, 0, None)))(grams, signs, 0.01)
    alone = [solve(gram, sign, 0.01) for gram, sign in zip(grams, signs, strict=True)]
    np.testing.assert_array_equal(together.iterations, [fit.iterations for fit in alone])
    np.testing.assert_allclose(
        together.coefficients, np.stack([fit.coefficients for fit in alone]), rtol=1e-3, atol=1e-3
    )


def test_too_few_iterations_are_reported(rng):
    states, sign = problem(rng, "wide")
    fit = solve(gram_of(states, sign), sign, 0.01, max_iterations=2)
    assert not bool(fit.converged)
    assert int(fit.iterations) == 2


project = jax.jit(logistic_projections, static_argnames=("penalties", "vectors"))


def test_projections_on_many_training_sets_equal_scikit_learn(rng):
    states, sign = problem(rng, "wide")
    training = np.stack([sign, np.where(np.arange(N) % 5 == 0, 0, sign), np.where(rng.random(N) < 0.7, sign, 0), sign])
    training[3, sign > 0] = 0  # a pole is empty
    held_out = np.flatnonzero(training[1] == 0)
    states[:, 7] = 3.0
    states[held_out[0], 7] = 1e3  # constant in one training set, an outlier held out
    states[:, 8] = states[held_out[0], 7] * (np.arange(N) == held_out[0]) + states[:, 8]
    penalties = (100.0, 1.0, 0.01)
    path = project(states, training, penalties, vectors=True)
    np.testing.assert_array_equal(path.ok, [True, True, True, False])
    np.testing.assert_array_equal(path.converged, np.asarray(path.ok)[:, None] & np.ones((4, 3), bool))
    for s, p in np.ndindex(3, 3):
        z, scale, w, b = reference(states, training[s], 1 / penalties[p])
        x = z @ w + b
        np.testing.assert_allclose(path.x[s, p], x, atol=1e-3 * np.abs(x).max())
        assert cosine(path.vectors[s, p], w / scale) > 0.9999
        np.testing.assert_allclose(np.linalg.norm(path.vectors[s, p]), 1, rtol=1e-5)
        assert cosine(path.coefficients[s, p] @ z, w) > 0.9999
    for leaf in (path.x, path.vectors, path.coefficients, path.intercept):
        np.testing.assert_array_equal(leaf[3], np.zeros_like(leaf[3]))


@jax.jit
def choose(states, sign, fold, penalties):
    return choose_logistic(states, sign, fold, n_folds=5, penalties=penalties)


def test_the_penalty_is_that_of_the_smallest_held_out_loss(rng):
    states, sign = problem(rng, "unequal poles")
    fold = np.arange(N) % 5
    fold[rng.choice(N, 3, replace=False)] = -1
    sign[fold == 4] = 0  # a fold that an outer loop holds out
    sign[fold == 3] = np.where(np.arange(np.sum(fold == 3)) % 2, 1, -1)
    sign[[0, 1, 2, 5, 6, 7]] = [1, 1, 1, -1, -1, -1]
    choice = choose(states, sign, fold, np.array(PENALTIES))
    losses = np.zeros((4, len(PENALTIES)))
    for f, p in np.ndindex(*losses.shape):
        z, _, w, b = reference(states, np.where(fold == f, 0, sign), 1 / PENALTIES[p])
        out = (fold == f) & (sign != 0)
        losses[f, p] = np.logaddexp(0, -sign[out] * (z[out] @ w + b)).mean()
    np.testing.assert_allclose(choice.losses, losses.mean(axis=0), rtol=1e-3)
    assert float(choice.penalty) == PENALTIES[int(np.argmin(choice.losses))]
    assert bool(choice.converged)
    _, scale, w, _ = reference(states, sign, 1 / float(choice.penalty))
    assert bool(choice.direction.ok)
    assert cosine(choice.direction.vector, w / scale) > 0.9999


def test_of_tied_penalties_the_strongest_is_chosen_in_any_order(rng):
    states, sign = problem(rng, "unequal poles")
    penalties = np.array([1.0, 1e2, 1e4, 1e3, 1e1])
    choice = choose(states, sign, np.full(N, -1), penalties)  # nothing to choose by
    np.testing.assert_array_equal(choice.losses, np.zeros(5))
    assert float(choice.penalty) == 1e4
    _, scale, w, _ = reference(states, sign, 1e-4)
    assert cosine(choice.direction.vector, w / scale) > 0.9999


@jax.jit
def fit_at(states, sign, penalty, spread):
    return fit_logistic(states, sign, penalty=penalty, spread=spread)


def test_the_estimators_are_unit_vectors_at_the_documented_penalty(rng):
    states, sign = problem(rng, "wide")
    spread = np.sqrt(states.var(axis=0).sum())
    fixed = jax.jit(functools.partial(fit_logistic_cv, n_folds=5))  # without folds
    for direction, c in ((fit_at(states, sign, 100.0, spread), 0.01), (fixed(states, sign), 1.0)):
        _, scale, w, _ = reference(states, sign, c)
        x = states @ np.asarray(direction.vector)
        assert bool(direction.ok)
        assert cosine(direction.vector, w / scale) > 0.9999
        np.testing.assert_allclose(np.linalg.norm(direction.vector), 1, rtol=1e-5)
        assert x[sign > 0].mean() > x[sign < 0].mean()


def test_what_was_taken_out_of_the_states_leaves_no_direction_in_its_rounding(rng):
    # Columns that are rounding beside the spread of the states before, as after `residualise`, must not be blown up.
    states, sign = problem(rng, "wide")
    assert not bool(fit_at(1e-6 * states, sign, 1.0, np.sqrt(WIDE)).ok)
