import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mood_jax.errors import UserError
from mood_jax.probes import (
    cutoff_share,
    grouped_folds,
    length_covariates,
    length_only_auc,
    length_residualised,
    random_direction_percentile,
    top_k_share,
)
from mood_jax.probes.controls import random_direction_aucs
from mood_jax.probes.spans import centred_gram, residual_grams
from tests.probes.test_resampling import reference_projections

pytestmark = pytest.mark.usefixtures("unoptimised")

SIGN, QUESTION = np.tile([1, -1], 30), np.repeat(np.arange(30), 2)


def test_length_only_equals_the_loop_and_chooses_its_sign_on_training_folds(fixed_rng):
    n_tokens = fixed_rng.integers(20, 200, 60) - 60 * (SIGN > 0)  # the positive pole is shorter
    out = length_only_auc(n_tokens, SIGN, QUESTION, n_boot=100, seed=3)
    expected = reference_projections(n_tokens[:, None].astype(np.float32), SIGN, grouped_folds(QUESTION, 5, seed=3))
    assert float(out["auc"]) == pytest.approx(roc_auc_score(SIGN > 0, expected), abs=2e-3)
    assert float(out["auc"]) > 0.6
    assert float(out["raw_auc"]) == pytest.approx(roc_auc_score(SIGN > 0, n_tokens), abs=1e-6)
    assert float(out["raw_auc"]) < 0.4


def test_equal_lengths_are_chance():
    out = length_only_auc(np.full(60, 200), SIGN, QUESTION, n_boot=100)
    assert not bool(out["ok"])
    assert float(out["auc"]) == 0.5


@pytest.mark.parametrize("encoding", ["count", "logarithm", "cut"])
def test_states_that_encode_length_alone_fall_to_chance(fixed_rng, encoding):
    rng = fixed_rng  # chance is not exactly .5
    n_tokens = np.where(SIGN > 0, rng.integers(20, 120, 60), rng.integers(60, 201, 60))
    cut = n_tokens >= 180
    value = {"count": n_tokens / 50, "logarithm": 2 * np.log1p(n_tokens), "cut": 3.0 * cut}[encoding]
    states = np.zeros((60, 256))
    states[:, :8] = value[:, None] * rng.normal(size=8)
    exact = length_residualised(states, SIGN, QUESTION, n_tokens, cut, n_boot=100)
    # What is left is rounding, which must not count as a direction.
    assert not bool(exact["ok"]) or 0.2 < float(exact["auc"]) < 0.8
    noisy = [
        float(
            length_residualised(
                states + 0.1 * rng.normal(size=states.shape), SIGN, QUESTION, n_tokens, cut, n_boot=100
            )["auc"]
        )
        for _ in range(20)
    ]
    assert abs(np.mean(noisy) - 0.5) < 0.1  # SE .1/√20 = .022


def test_a_true_axis_survives_taking_length_out(fixed_rng):
    rng = fixed_rng  # of 400 draws the median AUC is .972 and 60 are below .95
    n_tokens = rng.integers(50, 200, 60) + 20 * SIGN
    states = rng.normal(size=(60, 256))
    states[:, 0] += 4 * SIGN
    states[:, 1] += n_tokens / 10
    out = length_residualised(states, SIGN, QUESTION, n_tokens, n_tokens > 190, n_boot=100)
    assert float(out["auc"]) > 0.95


def test_residual_grams_equal_the_gram_of_residuals(rng):
    states = rng.normal(size=(20, 6)) + 3
    covariates = rng.normal(size=(20, 2))
    sign, fold = SIGN[:20], grouped_folds(QUESTION[:20], 3)
    centred = jnp.asarray(states, jnp.float32)
    grams = residual_grams(
        centred_gram(centred, jnp.asarray(sign)), jnp.asarray(covariates, jnp.float32), jnp.asarray(sign), fold, 3
    )
    for f in range(3):
        design = np.column_stack([np.ones(20), covariates])
        rest = states - design @ np.linalg.lstsq(design[fold != f], states[fold != f], rcond=None)[0]
        np.testing.assert_allclose(grams[f], rest @ rest.T, atol=1e-3)


def test_length_covariates_and_cutoff_share():
    covariates = length_covariates(jnp.array([10, 20, 0]), jnp.array([False, True, False]))
    np.testing.assert_allclose(covariates, [[0.5, np.log(11), 0], [1, np.log(21), 1], [0, 0, 0]], rtol=1e-5)
    pos, neg = cutoff_share(jnp.array([1, 0, 1, 1, 0]), jnp.array([1, 1, -1, -1, 0]))
    assert (float(pos), float(neg)) == (0.5, 1.0)
    assert float(jax.jit(cutoff_share)(jnp.array([True]), jnp.array([1]))[1]) == 0.0
    with pytest.raises(UserError, match="no −1"):
        cutoff_share([True], [1])


def test_top_k_share(rng):
    v = rng.normal(size=300)
    expected = np.sort(v**2)[-5:].sum() / (v**2).sum()
    np.testing.assert_allclose(top_k_share(jnp.asarray(v, jnp.float32)), expected, rtol=1e-4)
    assert float(top_k_share(jnp.zeros(9))) == 0.0
    assert float(top_k_share(jnp.array([1.0, 2.0]), 5)) == pytest.approx(1.0)


def test_random_directions_follow_the_covariance_of_the_states(fixed_rng):
    rng = fixed_rng  # percentiles among random directions are draws
    # One noisy coordinate carries the variance and all of the separation: random directions find it as the axis does.
    states = 0.1 * rng.normal(size=(60, 64))
    states[:, 0] = 3 * rng.normal(size=60) + 4 * SIGN
    fold = grouped_folds(QUESTION, 5)
    aucs = np.asarray(
        jax.jit(random_direction_aucs, static_argnames=("n_folds", "n_draws"))(
            centred_gram(jnp.asarray(states, jnp.float32), jnp.asarray(SIGN)),
            jnp.asarray(SIGN),
            jnp.asarray(fold),
            jax.random.key(0),
            n_folds=5,
            n_draws=300,
        )
    )
    along = roc_auc_score(SIGN > 0, states[:, 0])
    assert abs(np.median(aucs) - along) < 0.05
    # Separation along a quiet coordinate is what random directions do not find.
    states = rng.normal(size=(60, 64)) * np.r_[np.full(8, 10.0), np.full(56, 0.1)]
    states[:, 40] += 0.5 * SIGN
    assert random_direction_percentile(states, SIGN, QUESTION, 0.95, n_draws=300) > 95
    assert 10 < random_direction_percentile(states, SIGN, QUESTION, 0.5, n_draws=300) < 90


def test_random_directions_do_not_know_the_poles(fixed_rng):
    rng = fixed_rng
    # A mean difference of 8 SD along one coordinate of 256 is in the covariance of all samples, not of those in a pole.
    states = rng.normal(size=(60, 256))
    states[:, 5] += 4 * SIGN
    assert random_direction_percentile(states, SIGN, QUESTION, 0.8, n_draws=300) > 80
