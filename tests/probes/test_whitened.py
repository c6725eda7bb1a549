import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mood_jax.errors import UserError
from mood_jax.probes import (
    ESTIMATORS,
    estimator,
    fit_mean_difference,
    fit_whitened,
    ledoit_wolf,
    whitened_coefficients,
    within_gram,
)
from mood_jax.probes.resampling import cross_validated_projections
from mood_jax.probes.spans import centred_gram

pytestmark = pytest.mark.usefixtures("unoptimised")

fit = jax.jit(fit_whitened)
# Every problem has this many rows, some of them left out, and one of two widths, so that few programs are compiled.
N = 60
CASES = {
    # n₊, n₋, d
    "wide": (30, 30, 256),
    "unequal poles": (25, 17, 256),
    "narrow": (40, 20, 6),
    "two and two": (2, 2, 256),
    "one against many": (1, 12, 256),
    "decaying spectrum": (30, 30, 256),
    "outlier coordinate": (30, 30, 256),
    "large offset": (30, 30, 256),
    "collinear and constant columns": (20, 20, 256),
    "collinear and constant, narrow": (30, 30, 6),
    "duplicated samples": (20, 20, 256),
    "three dimensions and a little noise": (30, 30, 256),
}


@jax.jit
def measured(states, sign):
    """Shrinkage, mean variance, coefficients and direction."""
    gram = centred_gram(states, sign)
    weight = jnp.abs(sign).astype(jnp.float32)
    d = states.shape[1]
    a, ok = whitened_coefficients(gram, sign, d)
    return *ledoit_wolf(within_gram(gram, sign), weight, d), a, ok, gram @ a, fit_whitened(states, sign)


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def problem(rng, case):
    n, m, d = CASES[case]
    sign = np.concatenate([np.repeat([1, -1], [n, m]), np.zeros(N - n - m, int)])
    states = rng.normal(size=(N, d))
    if case == "decaying spectrum":
        states /= np.arange(1, d + 1)
    if case == "three dimensions and a little noise":
        states = states[:, :3] @ rng.normal(size=(3, d)) + 0.01 * states
    states += 0.5 * sign[:, None] * rng.normal(size=d) * states.std(0)
    if case == "outlier coordinate":
        states[:, 3] *= 100
    elif case == "large offset":
        states[:, 3] += 4096
    elif case.startswith("collinear"):
        states[:, 1], states[:, 2], states[:, 3] = 2 * states[:, 0], 5.0, states[:, 4] - states[:, 0]
    elif case == "duplicated samples":
        states[1:8] = states[0]
    states[sign == 0] += 100.0  # must not matter
    order = rng.permutation(N)
    return states[order].astype(np.float32), sign[order]


def reference(states, sign, shrinkage=None):
    """Shrinkage and Σ⁻¹δ by scikit-learn and numpy in float64."""
    pos, neg = (states[sign * side > 0].astype(np.float64) for side in (1, -1))
    within = np.concatenate([pos - pos.mean(0), neg - neg.mean(0)])
    shrinkage = LedoitWolf(assume_centered=True).fit(within).shrinkage_ if shrinkage is None else shrinkage
    covariance = within.T @ within / len(within)
    d = states.shape[1]
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    return shrinkage, np.linalg.solve(shrunk, pos.mean(0) - neg.mean(0))


@pytest.mark.parametrize("case", CASES)
def test_shrinkage_and_direction_equal_scikit_learn_and_numpy(rng, case):
    states, sign = problem(rng, case)
    expected_shrinkage, expected = reference(states, sign)
    shrinkage, variance, a, ok, x, direction = measured(states, sign)
    assert float(shrinkage) == pytest.approx(expected_shrinkage, abs=1e-4)
    pos, neg = (states[sign * side > 0].astype(np.float64) for side in (1, -1))
    squares = np.square(pos - pos.mean(0)).sum() + np.square(neg - neg.mean(0)).sum()
    assert float(variance) == pytest.approx(squares / (len(pos) + len(neg)) / states.shape[1], rel=1e-4)

    assert bool(direction.ok)
    assert cosine(direction.vector, expected) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(direction.vector), 1, rtol=1e-5)

    # The same from the Gram matrix alone.
    assert bool(ok)
    np.testing.assert_array_equal(np.asarray(a)[sign == 0], 0)
    assert float(jnp.sum(a)) == pytest.approx(0, abs=1e-5 * float(jnp.sum(jnp.abs(a))))
    used = states[sign != 0].astype(np.float64)
    assert cosine(np.asarray(a, np.float64)[sign != 0] @ (used - used.mean(0)), expected) > 0.9999
    assert float(x[sign > 0].mean() - x[sign < 0].mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("case", "shrinkage"), [("wide", 0.05), ("wide", 0.9), ("wide", 1.0), ("narrow", 0.0)])
def test_a_given_shrinkage_equals_numpy_and_lda(rng, case, shrinkage):
    states, sign = problem(rng, case)
    direction = fit(states, sign, shrinkage=shrinkage)
    assert cosine(direction.vector, reference(states, sign, shrinkage)[1]) > 0.9999
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(states.astype(np.float64), sign)
    assert cosine(direction.vector, lda.coef_[0]) > 0.9999


def test_without_shrinkage_in_many_dimensions_the_training_poles_collapse_to_two_points(rng):
    # With n ≤ d the limit s → 0 is the direction on which each pole has no variance at all.
    states, sign = problem(rng, "wide")
    direction = fit(states, sign, shrinkage=0.0)
    x = states @ np.asarray(direction.vector)
    assert bool(direction.ok)
    assert max(x[sign > 0].std(), x[sign < 0].std()) < 1e-3 * (x[sign > 0].mean() - x[sign < 0].mean())


def test_a_sample_of_sign_w_counts_w_times(rng):
    states, sign = problem(rng, "unequal poles")
    count = rng.integers(1, 4, N)
    direction = fit(states, sign * count)
    expected = reference(np.repeat(states, count, axis=0), np.repeat(sign, count))[1]
    assert cosine(direction.vector, expected) > 0.9999


@pytest.mark.parametrize("copies", [1, 5])
def test_poles_without_inner_variance_give_their_difference(rng, copies):
    states = rng.normal(size=(N, 256)).astype(np.float32)
    sign = np.zeros(N, int)
    sign[:copies], sign[-copies:] = 1, -1
    states[:copies], states[-copies:] = states[:1], states[-1:]
    for direction in (fit(states, sign), fit(states, sign, shrinkage=0.0)):
        assert bool(direction.ok)
        assert cosine(direction.vector, states[0] - states[-1]) > 0.9999


# --- all estimators ---


def no_difference(rng):
    """[cases, 12, 6] states and [cases, 12] signs that have no difference to point along."""
    states, sign = rng.normal(size=(7, 12, 6)), np.tile(np.repeat([1, -1], 6), (7, 1))
    states[0] = 1.7
    states[1] = rng.normal(size=6) * 3e4
    sign[1, 0] = -1  # unequal poles: their sums round differently
    states[2, 6:] = states[2, :6][::-1]
    states[3, 6:] = states[3, :6][::-1] + 1e-7
    sign[4] = 0
    sign[5, :6] = 0
    sign[6, 6:] = 0
    return states.astype(np.float32), sign


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_difference_gives_zeros_and_a_flag(rng, name):
    states, sign = no_difference(rng)
    fit_all = jax.vmap(lambda h, s: estimator(name, 3)(h, s, fold=jnp.arange(12) % 3))
    direction = jax.jit(fit_all)(states, sign)
    np.testing.assert_array_equal(direction.ok, np.zeros(7, bool))
    np.testing.assert_array_equal(direction.vector, np.zeros((7, 6)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_finite_on_hopeless_input_under_vmap(rng, name):
    n, d, k = 12, 5, 3
    fold = jnp.asarray(np.arange(n) // 2 % k)
    sign = np.tile([1, -1], 6)
    scale = np.array([0, 1e-20, 1e-3, 1.0, 1e6, 1e12])
    states = rng.normal(size=(len(scale), n, d)) * scale[:, None, None]
    states[3, :, 2] = 7.0
    states[4, 2:] = states[4, :1]
    states[5, 2:] = 0
    signs = np.tile(sign, (len(scale), 1))
    signs[2, 1::2] = 0  # no negative sample
    signs[3, 0] = 0  # a question without one pole
    fit_all = jax.vmap(lambda h, s: cross_validated_projections(h, s, fold, n_folds=k, estimator=estimator(name, k)))
    held = jax.jit(fit_all)(states.astype(np.float32), signs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(held))
    np.testing.assert_array_equal(held.ok[jnp.array([0, 2, 3])], [False, False, True])


def test_cross_validation_hands_its_folds_to_the_estimator(rng):
    states, sign, fold = rng.normal(size=(12, 5)).astype(np.float32), np.tile([1, -1], 6), np.arange(12) // 2 % 3
    seen = []

    def spy(states, sign, *, spread=None, fold=None):
        seen.append(fold)
        return fit_mean_difference(states, sign, spread=spread)

    cross_validated_projections(jnp.asarray(states), jnp.asarray(sign), jnp.asarray(fold), n_folds=3, estimator=spy)
    for given in seen:
        np.testing.assert_array_equal(given, fold)
    assert seen


def test_an_estimator_is_one_object_per_arguments_and_unknown_names_are_refused():
    for name in ESTIMATORS:
        assert estimator(name, 5) is estimator(name, n_folds=5)
        assert hash(estimator(name, 4)) == hash(estimator(name, 4))
    with pytest.raises(UserError, match="no estimator is called 'svm'; use one of mean_difference, logistic"):
        estimator("svm", 5)
