import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import trim_mean
from sklearn.metrics import roc_auc_score

from mood_jax.probes.directions import fit_mean_difference
from mood_jax.probes.estimators import ESTIMATORS
from mood_jax.probes.folds import encode, grouped_folds, standardise
from mood_jax.probes.grid import readout_scores, split_scores
from mood_jax.probes.logistic import PENALTIES, fit_logistic
from mood_jax.probes.whitened import fit_whitened

pytestmark = pytest.mark.usefixtures("unoptimised")

K, S, D, HALF = 4, 3, 20, 14


@pytest.fixture
def problem(rng):
    """Positive pole first: 12 questions, two of them twice; the last one has no negative pole; padding at the ends."""
    question = np.r_[np.arange(12), [0, 1], np.arange(11), [2, 0, 0]]
    sign = np.r_[np.ones(14, int), -np.ones(12, int), [0, 0]].astype(np.int32)
    states = rng.normal(size=(S, 2 * HALF, D)) + rng.normal(size=(S, 1, D)) * 5
    states += 0.8 * sign[None, :, None] * rng.normal(size=(S, 1, D))
    fold = grouped_folds(question, K, seed=2)
    mixes = rng.random((2, S))
    return states.astype(np.float32), mixes.astype(np.float32), sign, encode(question), fold


FIT = {
    "mean_difference": jax.jit(fit_mean_difference),
    "whitened": jax.jit(fit_whitened),
    "logistic": jax.jit(lambda h, sign, penalty: fit_logistic(h, sign, penalty=penalty)),
}


def direction(name, h, sign, penalty):
    return FIT[name](h, sign, PENALTIES[penalty]) if name == "logistic" else FIT[name](h, sign)


def test_every_readout_and_estimator_equals_fitting_it_alone(problem):
    states, mixes, sign, question, fold = problem
    scores = readout_scores(*map(jnp.asarray, problem), n_folds=K, estimators=ESTIMATORS)
    readouts = [*states, *np.einsum("ms,snd->mnd", mixes, states)]
    assert scores.x.shape == (S + 2, len(ESTIMATORS), 2 * HALF)
    assert bool(jnp.all(scores.ok))
    for r, h in enumerate(readouts):
        for e, name in enumerate(ESTIMATORS):
            expected = np.zeros(2 * HALF)
            for f in range(K):
                training = jnp.asarray(np.where(fold == f, 0, sign))
                vector = direction(name, jnp.asarray(h), training, int(scores.choice[r, e, f])).vector
                x = np.asarray(standardise(jnp.asarray((h - h[0]) @ np.asarray(vector)), training))
                expected[(fold == f) & (sign != 0)] = x[(fold == f) & (sign != 0)]
            np.testing.assert_allclose(scores.x[r, e], expected, atol=5e-3)
            used = sign != 0
            area = roc_auc_score(sign[used] > 0, np.round(np.asarray(scores.x[r, e])[used], 5))
            assert float(scores.auc[r, e, K]) == pytest.approx(area, abs=6e-3)  # one pair of 168 at a rounded tie
            halves = [jnp.where(jnp.asarray(side), sign, 0) for side in half_questions(question, fold)]
            first, second = (
                np.asarray(direction(name, jnp.asarray(h), s, int(scores.choice[r, e, K])).vector) for s in halves
            )
            assert float(scores.stability[r, e]) == pytest.approx(float(first @ second), abs=2e-3)


def half_questions(question, fold):
    """Every other question of a fold, by a loop."""
    first = np.zeros(len(question), bool)
    for f in range(K):
        for rank, q in enumerate(sorted(set(question[fold == f]))):
            first[question == q] = rank % 2 == 0
    return first, ~first


def test_inner_scores_leave_the_outer_fold_out(problem):
    """What happens in an outer fold cannot move the inner scores that choose for it."""
    states, mixes, sign, question, fold = problem
    before = readout_scores(*map(jnp.asarray, problem), n_folds=K, estimators=ESTIMATORS)
    changed = states.copy()
    changed[:, fold == 1] *= -3
    after = readout_scores(
        jnp.asarray(changed), jnp.asarray(mixes), *map(jnp.asarray, (sign, question, fold)), n_folds=K,
        estimators=ESTIMATORS,
    )  # fmt: skip
    np.testing.assert_allclose(after.auc[:, :, 1], before.auc[:, :, 1], atol=1e-2)
    np.testing.assert_allclose(after.dprime[:, :, 1], before.dprime[:, :, 1], rtol=2e-2, atol=2e-2)
    assert not np.allclose(after.auc[:, :, 0], before.auc[:, :, 0], atol=1e-2)


def test_a_site_without_variance_says_so(problem):
    states, *rest = problem
    states = states.copy()
    states[1] = 7.5
    scores = readout_scores(jnp.asarray(states), *map(jnp.asarray, rest), n_folds=K, estimators=ESTIMATORS)
    assert not np.asarray(scores.ok[1]).any()
    assert np.isfinite(np.asarray(scores.x)).all()
    np.testing.assert_array_equal(scores.auc[1], 0.5)
    np.testing.assert_array_equal(scores.stability[1], 0)


def test_one_split_equals_the_published_loop(rng):
    states, mixes = rng.normal(size=(S, 40, D)).astype(np.float32), rng.random((2, S)).astype(np.float32)
    sign, question = np.tile([1, -1], 20), np.repeat(np.arange(20), 2)
    states += 0.5 * sign[None, :, None].astype(np.float32) * rng.normal(size=(S, 1, D)).astype(np.float32)
    pos, neg, test = (question < 15) & (sign > 0), (question < 15) & (sign < 0), question >= 15
    auc, dprime = split_scores(
        *(jnp.asarray(states[:, rows]) for rows in (pos, neg, test)), jnp.asarray(sign[test]), jnp.asarray(mixes)
    )
    for r, weights in enumerate(np.concatenate([np.eye(S), mixes])):
        h = np.stack([sum(weights[s] * states[s, i].astype(np.float64) for s in range(S)) for i in range(40)])
        v = trim_mean(h[pos], 0.1) - trim_mean(h[neg], 0.1)
        x = h[test] @ v / np.linalg.norm(v)
        assert float(auc[r]) == pytest.approx(roc_auc_score(sign[test] > 0, x), abs=1e-6)
        a, b = x[sign[test] > 0], x[sign[test] < 0]
        pooled = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        assert float(dprime[r]) == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-3, abs=1e-4)
