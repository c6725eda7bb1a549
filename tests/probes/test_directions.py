import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import trim_mean

from mood_jax.probes import fit_mean_difference, mean_difference, trimmed_mean
from mood_jax.probes.arrays import residualise

pytestmark = pytest.mark.usefixtures("unoptimised")

fit = jax.jit(fit_mean_difference)


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(("n", "proportion"), [(2, 0.1), (19, 0.1), (30, 0.1), (30, 0.0)])
def test_trimmed_mean_equals_scipy(rng, n, proportion):
    x = rng.normal(size=(n, 7)).astype(np.float32)
    x[:, 1] = rng.integers(0, 3, n)  # ties
    x[:, 2] = 4.0  # constant
    x[:, 3] += 1e4  # a residual stream's outlier coordinate
    x[0, 4] = 1e12  # a value that must not enter a sum when it is cut
    expected = trim_mean(x.astype(np.float64), proportion)
    np.testing.assert_allclose(trimmed_mean(jnp.asarray(x), proportion), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("proportion", [0.1, 0.25])
def test_trimmed_mean_of_masked_rows_equals_scipy_on_those_rows(rng, proportion):
    x = rng.normal(size=(60, 5)).astype(np.float32)
    x[:, 0] = rng.integers(0, 4, 60)
    masks = rng.permuted(np.tril(np.ones((61, 60), bool), -1), axis=1)  # 0 to 60 rows
    got = jax.jit(jax.vmap(lambda m: trimmed_mean(jnp.asarray(x), proportion, m)))(jnp.asarray(masks))
    for mask, value in zip(masks, got, strict=True):
        expected = trim_mean(x[mask], proportion) if mask.any() else np.zeros(5)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "m", "d"), [(30, 30, 256), (25, 17, 64), (2, 2, 4096), (10, 1, 8)])
def test_mean_difference_equals_scipy(rng, n, m, d):
    pos, neg = rng.normal(0.3, 1, (n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)
    direction = jax.jit(mean_difference)(jnp.asarray(pos), jnp.asarray(neg))
    expected = trim_mean(pos, 0.1) - trim_mean(neg, 0.1)
    assert bool(direction.ok)
    assert cosine(direction.vector, expected) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(direction.vector), 1, rtol=1e-5)
    assert float(jnp.mean(pos @ direction.vector) - jnp.mean(neg @ direction.vector)) > 0


def test_states_with_a_large_common_offset_keep_their_direction(rng):
    states = rng.normal(size=(60, 32))
    sign = np.repeat([1, -1], 30)
    states[sign > 0, 0] += 1
    shift = np.zeros(32)
    shift[3] = 4096.0
    near, far = (fit(jnp.asarray(s, jnp.float32), jnp.asarray(sign)) for s in (states, states + shift))
    assert cosine(near.vector, far.vector) > 0.9999


def test_planted_direction_is_recovered(rng):
    u = rng.normal(size=256)
    u /= np.linalg.norm(u)
    sign = np.repeat([1, -1], 200)
    states = rng.normal(size=(400, 256)) + 6 * sign[:, None] * u
    assert cosine(fit(jnp.asarray(states, jnp.float32), jnp.asarray(sign)).vector, u) > 0.98  # mean .991, SD .001


@pytest.mark.parametrize(
    "case", ["constant", "large constant", "same poles", "no positive", "no negative", "nothing", "rounding"]
)
def test_no_difference_gives_zeros_and_a_flag(rng, case):
    states, sign = rng.normal(size=(12, 6)), np.repeat([1, -1], 6)
    if case == "constant":
        states[:] = 1.7
    elif case == "large constant":
        states[:] = rng.normal(size=6) * 3e4
        sign[0] = -1  # unequal poles: their sums round differently
    elif case == "same poles":
        states[6:] = states[:6][::-1]
    elif case == "rounding":
        states[6:] = states[:6][::-1] + 1e-7
    elif case == "nothing":
        sign[:] = 0
    else:
        sign[sign == (1 if case == "no positive" else -1)] = 0
    direction = fit(jnp.asarray(states, jnp.float32), jnp.asarray(sign))
    assert not bool(direction.ok)
    np.testing.assert_array_equal(direction.vector, np.zeros(6))


def test_constant_and_collinear_columns_do_no_harm(rng):
    sign = np.repeat([1, -1], 10)
    base = rng.normal(size=20) + 3 * sign  # 13 SE between the poles' means: their order is never the other
    states = np.stack([base, 2 * base, np.full(20, 5.0), -base], axis=1)
    direction = fit(jnp.asarray(states, jnp.float32), jnp.asarray(sign))
    np.testing.assert_allclose(direction.vector, np.array([1, 2, 0, -1]) / np.sqrt(6), atol=1e-5)


def test_residualise_equals_least_squares_fitted_on_some_rows(fixed_rng):
    rng = fixed_rng  # of 1,700 draws the worst had .93 of the tolerance, the median .26
    covariates = rng.normal(size=(40, 4))
    covariates[:, 1] = covariates[:, 0] + 5e-3 * covariates[:, 1]  # nearly collinear: kept
    states = rng.normal(size=(40, 5)) + 100 * covariates[:, :1]
    covariates[:, 2] = 7.0  # constant: dropped
    covariates[:, 3] = 1.7 * covariates[:, 0] - 0.3  # collinear: dropped
    rows = np.arange(40) % 5 != 0
    got = jax.jit(residualise)(
        jnp.asarray(states, jnp.float32), jnp.asarray(covariates, jnp.float32), jnp.asarray(rows)
    )
    design = np.column_stack([np.ones(40), covariates[:, :2]])
    beta = np.linalg.lstsq(design[rows], states[rows], rcond=None)[0]
    np.testing.assert_allclose(got, states - design @ beta, atol=2e-4)
