import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mood_jax.probes import auc, dprime, midpoint_accuracy, threshold_accuracy

SIZES = [(30, 30), (2, 2), (7, 19), (1, 3)]


def sample(rng, n, m, ties):
    x = np.concatenate([rng.normal(0.5, 1, n), rng.normal(size=m)])
    if ties:
        x = np.round(x)
    order = rng.permutation(n + m)
    return x[order].astype(np.float32), np.repeat([1, -1], [n, m])[order]


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_sklearn(rng, n, m, ties):
    x, sign = sample(rng, n, m, ties)
    np.testing.assert_allclose(auc(jnp.asarray(x), jnp.asarray(sign)), roc_auc_score(sign > 0, x), atol=1e-6)


@pytest.mark.parametrize(("n", "m"), SIZES[:3])
def test_dprime_equals_numpy(fixed_rng, n, m):
    x, sign = sample(fixed_rng, n, m, False)  # a relative error has no bound where the means are nearly equal
    pos, neg = x[sign > 0].astype(np.float64), x[sign < 0].astype(np.float64)
    pooled = ((n - 1) * pos.var(ddof=1) + (m - 1) * neg.var(ddof=1)) / (n + m - 2)
    expected = (pos.mean() - neg.mean()) / np.sqrt(pooled)
    np.testing.assert_allclose(dprime(jnp.asarray(x), jnp.asarray(sign)), expected, rtol=1e-4)
    np.testing.assert_allclose(dprime(jnp.asarray(x + 300), jnp.asarray(sign)), expected, rtol=1e-3)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_midpoint_accuracy_equals_numpy(fixed_rng, n, m):
    x, sign = sample(fixed_rng, n, m, False)  # a value may lie nearer to the midpoint than float32 tells
    middle = (x[sign > 0].mean() + x[sign < 0].mean()) / 2
    got = midpoint_accuracy(jnp.asarray(x), jnp.asarray(sign))
    np.testing.assert_allclose(got, np.mean((x > middle) == (sign > 0)), atol=1e-6)


def test_left_out_samples_change_nothing(rng):
    x, sign = sample(rng, 9, 12, False)
    more, zeros = (
        np.concatenate([x, rng.normal(size=8) * 50]).astype(np.float32),
        np.concatenate([sign, np.zeros(8, int)]),
    )
    for function in (auc, dprime, midpoint_accuracy, threshold_accuracy):
        expected = function(jnp.asarray(x), jnp.asarray(sign))
        np.testing.assert_allclose(function(jnp.asarray(more), jnp.asarray(zeros)), expected, rtol=1e-6)


def test_degenerate_values_are_finite():
    sign = jnp.array([1, 1, -1, -1])
    same = jnp.full(4, 2.5)
    assert [float(f(same, sign)) for f in (auc, dprime, midpoint_accuracy)] == [0.5, 0.0, 0.5]
    apart = jnp.array([1.0, 1.0, -1.0, -1.0])
    assert float(dprime(apart, sign)) == pytest.approx(1e6)
    assert float(dprime(-apart, sign)) == pytest.approx(-1e6)
    one_pole = jnp.array([1, 1, 0, 0])  # refused, but for traced code
    assert [float(jax.jit(f)(apart, one_pole)) for f in (auc, dprime)] == [0.5, 0.0]
    assert float(threshold_accuracy(jnp.array([0.0, 3.0, 1.0, -2.0]), sign)) == pytest.approx(0.625)
