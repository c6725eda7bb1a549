import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest, kstest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from mood_jax.errors import UserError
from mood_jax.probes import bootstrap_indices, grouped_folds
from mood_jax.probes.comparisons import (
    clustered_correlation,
    cross_set_cosine,
    half_splits,
    mahalanobis_cosine,
    mcnemar,
    paired_auc_difference,
    paired_test,
    sign_flip_p,
    split_half,
    split_half_cosine,
)
from mood_jax.probes.spans import centred_gram
from tests.probes.test_resampling import combined, ragged, reference_projections

pytestmark = pytest.mark.usefixtures("unoptimised")

SIGN, QUESTION = np.tile([1, -1], 30), np.repeat(np.arange(30), 2)


# --- two readouts on the same samples ---


@pytest.mark.parametrize("refit", [False, True])
def test_paired_auc_difference_equals_a_loop_on_the_same_draws(rng, refit):
    states, sign, question = ragged(rng, shift=1.5)
    other = states + 2 * rng.normal(size=states.shape).astype(np.float32)
    fold = grouped_folds(question, 4, seed=1)
    xs = [np.round(reference_projections(h, sign, fold, trim=0), 1) for h in (states, other)]  # ties
    given = {"states": (states, other), "k": 4} if refit else {}
    out = paired_auc_difference(*xs, sign, question, n_boot=100, seed=1, **given)

    draws = np.asarray(bootstrap_indices(jax.random.key(1), 100, 11))
    rows = [np.concatenate([np.flatnonzero((question == q) & (sign != 0)) for q in draw]) for draw in draws]
    a, b = ([roc_auc_score(sign[r] > 0, x[r]) for r in rows] for x in xs)
    variance = np.var(np.subtract(a, b))
    if refit:
        left_out = []
        for q in range(11):
            r = (question != q) & (sign != 0)
            again = [np.round(reference_projections(h[r], sign[r], fold[r], trim=0), 6) for h in (states, other)]
            left_out.append(np.subtract(*(roc_auc_score(sign[r] > 0, x) for x in again)))
        variance = combined(np.subtract(a, b), left_out)
    used = sign != 0
    a, b = (roc_auc_score(sign[used] > 0, x[used]) for x in xs)
    assert (out["a"], out["b"]) == pytest.approx((a, b), abs=1e-5)
    se, t = np.sqrt(variance * 11 / 10), stats.t(10)  # of 11 questions
    assert (out["se"], out["df"]) == (pytest.approx(se, abs=1e-3), 10)
    np.testing.assert_allclose(out["ci95"], a - b + np.array([-1, 1]) * t.ppf(0.975) * se, atol=2e-3)
    assert out["p"] == pytest.approx(2 * t.sf(abs(a - b) / se), abs=5e-3)


def test_a_readout_does_not_differ_from_itself(rng):
    x = rng.normal(size=60)
    out = paired_auc_difference(x, x, SIGN, QUESTION, n_boot=100)
    assert (out["difference"], out["p"]) == (0.0, 1.0)
    out = paired_auc_difference(SIGN, SIGN * 2, SIGN, QUESTION, n_boot=100)  # both separate everything
    assert (out["a"], out["b"], out["p"]) == (1.0, 1.0, 1.0)
    assert np.isfinite(out["ci95"]).all()
    certain = paired_auc_difference(SIGN, np.zeros(60), SIGN, QUESTION, n_boot=100)  # no draw differs from another
    assert (certain["difference"], certain["p"] < 1e-6) == (0.5, True)
    assert certain["ci95"][0] < 0.5 < certain["ci95"][1]
    with pytest.raises(UserError, match="one pole is missing"):
        paired_auc_difference(x, -x, np.ones(60), QUESTION, n_boot=100)
    with pytest.raises(UserError, match="needs 2 questions, not 1"):
        paired_auc_difference(x[:4], -x[:4], [1, -1, 0, 0], QUESTION[:4], n_boot=100)


def test_paired_difference_of_fixed_readouts_has_the_right_size_and_power():
    rng = np.random.default_rng(8)  # fixed: statistical bounds
    null, found = [], []
    for _ in range(150):
        shared = 1.0 * SIGN + rng.normal(size=60) + np.repeat(rng.normal(size=30), 2)
        a, b = shared + 0.7 * rng.normal(size=60), shared + 0.7 * rng.normal(size=60)
        null.append(paired_auc_difference(a, b, SIGN, QUESTION, n_boot=500)["p"] < 0.05)
        found.append(paired_auc_difference(shared, b + 5 * rng.normal(size=60), SIGN, QUESTION, n_boot=500))
    assert 0.01 <= np.mean(null) <= 0.09  # .05, binomial SE .018
    # The bootstrap's own standard error against the normal quantile, without what few questions cost.
    assert np.mean([f["difference"] / f["se"] * np.sqrt(30 / 29) > 1.96 for f in found]) > 0.8
    assert np.mean([f["p"] < 0.05 for f in found]) > 0.75  # 0.79: Student's t of 30 questions


def test_unequal_lengths_are_a_clear_error():
    with pytest.raises(UserError, match="differ in length"):
        paired_auc_difference(np.zeros(3), np.zeros(4), np.ones(4), np.zeros(4))
    with pytest.raises(UserError, match="lengths differ"):
        paired_test([1.0], [1.0, 2.0])
    with pytest.raises(UserError, match="at least one pair"):
        paired_test([], [])
    with pytest.raises(UserError, match="two questions"):
        paired_test([1.0], [2.0])
    with pytest.raises(UserError, match="matched items"):
        mcnemar([True], [True, False])


# --- per-question differences and matched items ---


def enumerated_p(scores) -> float:
    flips = 1 - 2 * ((np.arange(2 ** len(scores))[:, None] >> np.arange(len(scores))) & 1)
    return float(np.mean(np.abs(flips @ scores) >= abs(scores.sum()) - 1e-9))


def test_sign_flip_p_equals_the_enumeration(rng):
    for m in (2, 6, 10):
        scores = rng.normal(0.4, 1, m)
        assert sign_flip_p(scores, seed=1, n=20_000) == pytest.approx(enumerated_p(scores), rel=1e-12)  # exact
        assert sign_flip_p(scores, seed=1, n=2**m - 1) == pytest.approx(enumerated_p(scores), abs=4 / 2 ** (m / 2))
        assert sign_flip_p(np.r_[scores, np.zeros(9)], 1, n=20_000) == pytest.approx(enumerated_p(scores), abs=0.02)


def test_paired_test_averages_a_question_first(rng):
    question = np.repeat(np.arange(8), 3)[:-1]
    a, b = rng.normal(0.5, 1, 23), rng.normal(size=23)
    out = paired_test(a, b, question)
    means = np.array([(a - b)[question == q].mean() for q in range(8)])
    assert out["n"] == 8
    assert out["difference"] == pytest.approx(means.mean(), abs=1e-6)
    expected = stats.ttest_1samp(means, 0)
    assert out["p"] == pytest.approx(expected.pvalue, rel=1e-9)
    np.testing.assert_allclose(out["ci95"], expected.confidence_interval(0.95), rtol=1e-9)
    alone = paired_test(a, b)
    assert (alone["n"], alone["difference"]) == (23, pytest.approx(np.mean(a - b)))
    assert paired_test([1.0, 2.0], [1.0, 2.0])["p"] == 1.0


@pytest.mark.parametrize("size", [0, 1, 7, 60, 3000])
def test_mcnemar_equals_the_exact_binomial(rng, size):
    a, b = rng.random(size) < 0.6, rng.random(size) < 0.5
    out = mcnemar(a, b)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert (out["only_a"], out["only_b"], out["n"]) == (only_a, only_b, size)
    assert out["p"] == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, a)["p"] == out["p"]


# --- directions ---


def cosine(u, v) -> float:
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def test_halves_are_balanced_and_random():
    for q in (2, 7, 30):
        splits = half_splits(q, 400, seed=1)
        assert splits.shape == (400, q)
        assert set(np.abs(splits.sum(axis=1))) == {q % 2}
    assert len(np.unique(splits, axis=0)) > 390
    np.testing.assert_allclose(splits.mean(axis=0), 0, atol=0.3)  # SE .05
    np.testing.assert_array_equal(half_splits(9, 5, seed=2), half_splits(9, 5, seed=2))


@pytest.mark.parametrize("d", [6, 200])
def test_split_half_equals_a_loop_over_splits(rng, d):
    states, sign, question = ragged(rng, d=d)
    splits = half_splits(11, 40, seed=4)
    h = jnp.asarray(states)
    plain, metric, shrinkage = jax.jit(split_half, static_argnames="d")(
        centred_gram(h, jnp.asarray(sign)), jnp.asarray(sign), jnp.asarray(question), jnp.asarray(splits), d=d
    )
    cosines, metrics, weights = [], [], []
    for split in splits:
        side = split[question]
        masks = [(side == s) & (sign == p) for s in (1, -1) for p in (1, -1)]
        means = [states[m].astype(np.float64).mean(axis=0) for m in masks]
        u, v = means[0] - means[1], means[2] - means[3]
        residuals = np.concatenate([states[m] - mean for m, mean in zip(masks, means, strict=True)])
        fit = LedoitWolf(assume_centered=True).fit(residuals)
        s = max(fit.shrinkage_, 0.01)
        empirical = residuals.T @ residuals / len(residuals)
        whole = np.linalg.inv((1 - s) * empirical + s * np.trace(empirical) / d * np.eye(d))
        cosines.append(cosine(u, v))
        metrics.append(u @ whole @ v / np.sqrt((u @ whole @ u) * (v @ whole @ v)))
        weights.append(s)
    assert bool(plain.ok)
    assert bool(metric.ok)
    np.testing.assert_allclose([plain.mean, plain.sd], [np.mean(cosines), np.std(cosines)], atol=1e-4)
    np.testing.assert_allclose([metric.mean, metric.sd], [np.mean(metrics), np.std(metrics)], atol=1e-3)
    assert float(shrinkage) == pytest.approx(np.mean(weights), abs=1e-4)
    for split in (plain, metric):
        r = max(float(split.mean), 0.0)
        assert float(split.full_length) == pytest.approx(2 * r / (1 + r), abs=1e-5)


def test_noise_has_no_split_half_agreement_in_either_metric():
    rng = np.random.default_rng(3)  # fixed: statistical bounds
    spectrum = (1 + np.arange(512)) ** -1.0  # far from isotropic: little shrinkage
    means = []
    for _ in range(20):
        states = (rng.normal(size=(60, 512)) * spectrum).astype(np.float32)
        plain, metric = split_half_cosine(states, SIGN, QUESTION, n_splits=50)
        means.append([plain.mean, metric.mean])
    np.testing.assert_allclose(np.mean(means, axis=0), 0, atol=0.1)  # SE .04 and less


def test_full_length_is_the_cosine_of_two_sets_and_its_root_that_with_the_truth():
    rng = np.random.default_rng(6)  # fixed: statistical bounds
    sets, ceilings, truths = [], [], []
    for _ in range(30):
        states = rng.normal(size=(2, 60, 256)).astype(np.float32)
        states[:, :, 0] += 1.5 * SIGN[None]
        vectors = states[:, SIGN > 0].mean(axis=1) - states[:, SIGN < 0].mean(axis=1)
        sets.append(cosine(*vectors))
        truths.append(vectors[0, 0] / np.linalg.norm(vectors[0]))
        ceilings.append(float(split_half_cosine(states[0], SIGN, QUESTION, n_splits=50)[0].full_length))
    assert np.mean(ceilings) == pytest.approx(np.mean(sets), abs=0.04)  # SE .01
    assert np.sqrt(np.mean(ceilings)) == pytest.approx(np.mean(truths), abs=0.04)


@pytest.mark.parametrize(
    "case", ["constant", "no spread within poles", "two questions", "collinear", "pole in one question"]
)
def test_hard_states_give_finite_cosines(rng, case):
    states, sign, question = rng.normal(size=(12, 6)), np.tile([1, -1], 6), np.repeat(np.arange(6), 2)
    if case == "constant":
        states[:] = 3.7
    elif case == "no spread within poles":
        states = np.outer(sign, rng.normal(size=6))
    elif case == "two questions":
        states, sign, question = states[:4], sign[:4], question[:4]
    elif case == "collinear":
        states = (rng.normal(size=(12, 1)) + 5 * sign[:, None]) * rng.normal(size=6)
    else:
        sign = np.where(question == 0, sign, np.abs(sign))
    for missing in (np.abs(sign), 0 * sign):
        with pytest.raises(UserError, match="one pole is missing"):
            split_half_cosine(states, missing, question)
    plain, metric = split_half_cosine(states, sign, question, n_splits=20)
    assert np.isfinite(np.array([*plain, *metric])).all()
    assert bool(plain.ok) == (case in ("no spread within poles", "two questions", "collinear"))
    assert bool(metric.ok) == (case == "collinear")  # a half with one sample a pole has no spread within the poles
    if case in ("no spread within poles", "collinear"):
        assert float(plain.mean) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 12), (20, 300)])
def test_mahalanobis_cosine_equals_scikit_learns_covariance(rng, n, d):
    sign = np.r_[np.ones(n // 2), -np.ones(n - n // 2 - 3), np.zeros(3)]
    states = (rng.normal(size=(n, d)) * (1 + np.arange(d)) ** -0.5 + 5 + np.outer(sign, rng.normal(size=d))).astype(
        np.float32
    )
    u, v = rng.normal(size=(2, d)).astype(np.float32)
    v += u
    residuals = np.concatenate([states[sign == s] - states[sign == s].mean(axis=0) for s in (1, -1)]).astype(np.float64)
    fit = LedoitWolf(assume_centered=True).fit(residuals)
    empirical = residuals.T @ residuals / len(residuals)
    for given in (None, 0.3, 1.0):
        s = max(fit.shrinkage_, 0.01) if given is None else given
        inverse = np.linalg.inv((1 - s) * empirical + s * np.trace(empirical) / d * np.eye(d))
        expected = u @ inverse @ v / np.sqrt((u @ inverse @ u) * (v @ inverse @ v))
        got = jax.jit(mahalanobis_cosine)(*(jnp.asarray(a) for a in (u, v, states, sign)), shrinkage=given)
        assert float(got) == pytest.approx(expected, abs=1e-3)
        if given == 1.0:
            assert float(got) == pytest.approx(cosine(u, v), abs=1e-4)


def test_mahalanobis_cosine_of_nothing_is_zero():
    sign = jnp.array([1, -1, 1, -1])
    states, u = jnp.arange(12.0).reshape(4, 3), jnp.array([1.0, 0.0, 2.0])
    assert float(mahalanobis_cosine(jnp.zeros(3), u, states, sign)) == 0.0
    assert float(mahalanobis_cosine(u, u, jnp.ones((4, 3)), sign)) == 0.0
    assert float(mahalanobis_cosine(u, -u, states, sign)) == pytest.approx(-1, abs=1e-4)


def test_cross_set_cosine_equals_a_loop_and_random_directions_reach_the_floor():
    rng = np.random.default_rng(2)  # fixed: statistical bounds
    vectors = rng.normal(size=(60, 400))
    out = cross_set_cosine(jnp.asarray(vectors, jnp.float32))
    expected = np.array([[cosine(a, b) for a in vectors] for b in vectors])
    np.testing.assert_allclose(out["cosine"], expected, atol=1e-5)
    off = expected[~np.eye(60, dtype=bool)]
    assert float(out["mean"]) == pytest.approx(off.mean(), abs=1e-5)
    assert float(out["floor"]) == pytest.approx(np.abs(off).mean(), rel=0.05)
    alone = cross_set_cosine(jnp.zeros((1, 5)))
    assert (float(alone["mean"]), float(alone["cosine"][0, 0])) == (0.0, 0.0)


def test_sign_flip_p_is_uniform_where_there_is_nothing():
    rng = np.random.default_rng(4)  # fixed: a test of uniformity
    p = [sign_flip_p(rng.normal(size=12), seed=i, n=999) for i in range(400)]
    assert kstest(p, "uniform").pvalue > 0.01


# --- scores against length ---


@pytest.mark.parametrize("least", [0, 0.1])
def test_clustered_correlation_is_spearmans_with_the_jackknife_over_questions(fixed_rng, least):
    question = np.repeat(np.arange(12), [1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 3, 2])
    y = fixed_rng.integers(20, 200, len(question)).astype(float)
    x = fixed_rng.normal(size=(len(question), 3)) + np.outer(y, [0.0, 0.02, -0.01]) + 1e4
    x[:, 2] += fixed_rng.normal(size=12)[question]
    found = clustered_correlation(x, y, question, least=least)
    of_y = stats.rankdata(y)
    for a in range(3):
        ranks = stats.rankdata(x[:, a])
        r = stats.spearmanr(x[:, a], y).statistic
        left = [np.arctanh(stats.pearsonr(ranks[question != q], of_y[question != q]).statistic) for q in range(12)]
        error = np.sqrt(11 / 12 * np.sum((left - np.mean(left)) ** 2))
        z, t = np.arctanh(r), stats.t(11)
        assert found.r[a] == pytest.approx(r, abs=1e-8)
        tails = [t.sf((abs(z) + np.arctanh(at)) / error) for at in (least, -least)]
        assert found.p[a] == pytest.approx(sum(tails), abs=1e-6)
        assert found.ci95[a] == pytest.approx(np.tanh(z + np.array([-1, 1]) * t.ppf(0.975) * error), abs=1e-6)


def test_clustered_correlation_of_what_does_not_vary_is_no_evidence(rng):
    x = np.stack([np.full(9, 1e6), rng.normal(size=9)], axis=1)
    question = np.repeat(np.arange(3), 3)
    found = clustered_correlation(x, np.full(9, 200), question)
    assert (found.r == 0).all()
    assert (found.p == 1).all()
    assert (found.ci95 == [-1, 1]).all()
    assert clustered_correlation(x, np.arange(9), question).p[0] == 1
    with pytest.raises(UserError, match="three"):
        clustered_correlation(x, np.arange(9), np.repeat([0, 1, 1], 3))
    with pytest.raises(UserError, match="least is 1"):
        clustered_correlation(x, np.arange(9), question, least=1)


@pytest.mark.parametrize(("least", "samples"), [(0, 3), (0.1, 3), (0.1, 8)])
def test_clustered_correlation_holds_its_level_where_questions_differ(fixed_rng, least, samples):
    # 30 questions; both quantities have a part that is the question's own; they correlate by `least`
    question = np.repeat(np.arange(30), samples)
    p = []
    for _ in range(600):
        x, y = fixed_rng.normal(size=(2, 30))[:, question] + fixed_rng.normal(size=(2, len(question)))
        y = least * x + np.sqrt(1 - least**2) * y
        p.append(clustered_correlation(x[:, None], y, question, least=least).p[0])
    assert np.mean(np.array(p) < 0.05) < 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 600)
    assert np.mean(np.array(p) < 0.05) > 0.02
