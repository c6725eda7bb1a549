import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.probes import calibrate_scaling, clip_rate, project, score
from mood_jax.probes.arrays import masked_quantile

calibrate = jax.jit(calibrate_scaling)


def test_project_is_the_dot_product(rng):
    states, vector = rng.normal(size=(3, 5, 64)), rng.normal(size=64)
    got = project(jnp.asarray(states, jnp.float32), jnp.asarray(vector, jnp.float32))
    np.testing.assert_allclose(got, states @ vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_masked_quantile_equals_numpy(rng, n):
    x = np.round(rng.normal(size=n + 5), 1).astype(np.float32)
    mask = np.arange(n + 5) < n
    q = np.array([0.0, 0.025, 0.25, 0.5, 0.75, 1.0])
    got = jax.jit(masked_quantile)(jnp.asarray(x), jnp.asarray(q), jnp.asarray(mask))
    np.testing.assert_allclose(got, np.percentile(x[mask], 100 * q), atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_scalings_equal_their_formulas(rng, offset):
    sign = np.where(np.arange(61) < 33, 1, -1)
    x = rng.normal(size=61) * 3 + offset + 6 * sign  # poles apart: where their means are equal "pole" has no scale
    sign[::10] = 0
    scaling = calibrate(jnp.asarray(x, jnp.float32), jnp.asarray(sign))
    used = x[sign != 0]
    low, median, high = np.percentile(used, [25, 50, 75])
    new = rng.normal(size=(4, 9)) * 3 + offset
    array = jnp.asarray(new, jnp.float32)
    np.testing.assert_allclose(score(array, scaling, "iqr"), (new - median) / (high - low), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(score(array, scaling, "article"), new / (high - low), rtol=1e-4)
    m_pos, m_neg = x[sign > 0].mean(), x[sign < 0].mean()
    np.testing.assert_allclose(
        score(array, scaling, "pole"), 2 * (new - m_neg) / (m_pos - m_neg) - 1, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(score(jnp.float32(m_pos), scaling, "pole"), 1, atol=1e-3)
    np.testing.assert_allclose(score(jnp.float32(m_neg), scaling, "pole"), -1, atol=1e-3)
    assert bool(scaling.ok)
    assert bool(scaling.pole_ok)
    assert not bool(scaling.re_read_ok)
    np.testing.assert_array_equal(score(array, scaling, "re_read"), np.zeros((4, 9)))
    again = x / 2 + rng.normal(size=61)
    scaling = calibrate_scaling(*(jnp.asarray(v, jnp.float32) for v in (x, sign, again)))
    m_pos, m_neg = again[sign > 0].mean(), again[sign < 0].mean()
    np.testing.assert_allclose(
        score(array, scaling, "re_read"), 2 * (new - m_neg) / (m_pos - m_neg) - 1, rtol=1e-3, atol=1e-3
    )


def test_article_has_a_floor_and_no_centre():
    x = jnp.array([5.0, 5.01, 5.02, 5.03])
    scaling = calibrate(x, jnp.array([1, 1, -1, -1]))
    np.testing.assert_allclose(score(x, scaling, "article"), x / 0.1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e4])
def test_constant_projections_are_flagged_and_score_zero(value):
    x = jnp.full(8, value)
    scaling = calibrate(x, jnp.array([1, -1] * 4))
    assert not bool(scaling.ok)
    assert not bool(scaling.pole_ok)
    scaling = calibrate_scaling(x, jnp.array([1, -1] * 4), x)
    assert not bool(scaling.re_read_ok)
    for scale in ("iqr", "pole", "re_read"):
        np.testing.assert_array_equal(score(x, scaling, scale), np.zeros(8))
    np.testing.assert_allclose(score(x, scaling, "article"), np.full(8, value / 0.1), rtol=1e-5)


def test_scaling_is_vmapped_over_axes(rng):
    x, sign = rng.normal(size=(7, 20)).astype(np.float32), jnp.tile(jnp.array([1, -1]), (7, 10))
    all_axes = jax.vmap(calibrate_scaling)(jnp.asarray(x), sign)
    scores = jax.vmap(score)(jnp.asarray(x), all_axes)
    one = calibrate(jnp.asarray(x[4]), sign[4])
    np.testing.assert_allclose(scores[4], score(jnp.asarray(x[4]), one), rtol=1e-6)


def test_clip_rate_and_unknown_scale():
    np.testing.assert_allclose(clip_rate(jnp.array([[0.5, -1.5, 1.0, 2.0], [0.0, 0.1, 0.2, 0.3]])), [0.5, 0.0])
    scaling = calibrate(jnp.array([0.0, 1.0]), jnp.array([-1, 1]))
    with pytest.raises(UserError, match="unknown scale 'z'"):
        score(jnp.zeros(2), scaling, "z")  # type: ignore[arg-type]
