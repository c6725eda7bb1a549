"""What intervals cover and how often nulls are rejected, from four questions on: simulated, small here and large in the
slow tier (MOOD_JAX_SLOW=1).
"""

import functools
import os

import jax
import numpy as np
import pytest
from scipy import stats

from mood_jax import probes
from mood_jax.probes.spans import centred_gram

pytestmark = pytest.mark.usefixtures("unoptimised")

SLOW = os.environ.get("MOOD_JAX_SLOW") == "1"
QUESTIONS = (4, 5, 6, 10, 30)


def share(hits) -> tuple[float, float]:
    """The share, and three standard errors of one of .05."""
    return float(np.mean(hits)), 3 * np.sqrt(0.05 * 0.95 / np.size(hits))


# --- means ---


@pytest.mark.parametrize("questions", QUESTIONS)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_means_of_normal_scores_are_covered(questions, offset):
    rng = np.random.default_rng(questions)
    scores = rng.normal(size=(questions, 20_000)) + offset
    got = probes.mean_interval(scores)
    covered, error = share((got.low <= offset) & (offset <= got.high))
    assert abs(covered - 0.95) < error
    for level in (0.05, 0.01):
        assert abs(np.mean(probes.mean_interval(scores - offset).p < level) - level) < error


@pytest.mark.parametrize("questions", QUESTIONS)
def test_the_bootstrap_of_normal_scores_covers(questions):
    scores = np.random.default_rng(questions).normal(size=(questions, 3000))
    mean, low, high = probes.bootstrap_mean_ci(scores, n=2000)
    covered, error = share((low <= 0) & (high >= 0))
    assert 0.93 - error < covered < 0.97 + error
    assert (low <= mean).all()


@pytest.mark.parametrize("questions", QUESTIONS)
def test_tests_of_paired_scores_hold_their_level(questions):
    rng = np.random.default_rng(questions)
    p, flips = [], []
    for _ in range(1000 if SLOW else 300):
        question = np.repeat(np.arange(questions), 2)
        a, b = rng.normal(size=(2, questions))[:, question] + rng.normal(size=(2, len(question)))
        got = probes.paired_test(a, b, question)
        p.append(got["p"])
        assert (got["p"] < 0.05) == (got["ci95"][0] > 0 or got["ci95"][1] < 0)
        flips.append(probes.sign_flip_p(rng.normal(size=questions) * 1e5, n=999))
    rejected, error = share(np.array(p) < 0.05)
    assert abs(rejected - 0.05) < error
    for level in (0.05, 0.1, 0.25):
        assert np.mean(np.array(flips) <= level) < level + 3 * np.sqrt(level / len(flips))


# --- correlations ---

TAILS = {
    "normal": lambda z: z,
    "log-normal": lambda z: np.exp(1.5 * z),
    "token counts": lambda z: np.minimum(np.round(np.exp(3 + 1.5 * z)), 100),
    "Cauchy": lambda z: stats.cauchy.ppf(stats.norm.cdf(z)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("questions", "samples"), [(4, 1), (5, 3), (6, 8), (10, 1), (10, 8), (30, 1), (30, 3), (70, 1)]
)
def test_correlations_under_heavy_tails_hold_their_level(questions, samples, tail):
    rng = np.random.default_rng(questions + samples)
    question = np.repeat(np.arange(questions), samples)
    sets, per_set = (400 if SLOW else 40), 10
    p = []
    for _ in range(sets):
        z = rng.normal(size=(1 + per_set, questions))[:, question] + rng.normal(size=(1 + per_set, len(question)))
        y, *x = TAILS[tail](z / np.sqrt(2))
        got = probes.clustered_correlation(np.stack(x, axis=1), y, question)
        p.append(got.p)
        assert ((got.p < 0.05) == ((got.ci95[:, 0] > 0) | (got.ci95[:, 1] < 0))).all()
    rejected, error = share(np.array(p) < 0.05)  # the sets of one y are not independent, hence a wider bound
    assert rejected < 0.06 + 1.5 * error
    assert np.mean(np.array(p) < 0.01) < 0.017 + error
    assert questions < 5 or rejected > 0.015
    if questions == 4:
        assert rejected == 0  # four questions have 24 orders


@pytest.mark.parametrize(("questions", "samples"), [(10, 1), (10, 4), (30, 1), (30, 4)])
def test_intervals_of_correlations_cover_the_true_one(questions, samples):
    rng = np.random.default_rng(questions * samples)
    question = np.repeat(np.arange(questions), samples)
    for rho in (0.3, 0.7):
        true, covered = 6 / np.pi * np.arcsin(rho / 2), []  # Spearman's of a normal pair
        for _ in range(1000 if SLOW else 300):
            x, y = rng.normal(size=(2, questions))[:, question] + rng.normal(size=(2, len(question)))
            y = rho * x + np.sqrt(1 - rho * rho) * y
            low, high = probes.clustered_correlation(x[:, None], np.exp(y), question).ci95[0]
            covered.append(low <= true <= high)
        assert 0.91 - 0.03 * (not SLOW) < np.mean(covered) <= 0.99


# --- two readouts ---


def noise(rng, questions, samples):
    """[n]: a normal effect of every question and pole, and samples about it."""
    return (rng.normal(size=(questions, 2, 1)) + 0.5 * rng.normal(size=(questions, 2, samples))).ravel()


CASES = [(2, 5), (4, 1), (4, 5), (8, 3)] if not SLOW else [(q, m) for q in (2, 3, *QUESTIONS, 8) for m in (1, 3, 5)]


@pytest.mark.parametrize(("questions", "samples"), CASES)
def test_differences_of_readouts_hold_their_level(questions, samples):
    rng = np.random.default_rng(questions * samples)
    sign = np.tile(np.repeat([1, -1], samples), questions)
    question = np.repeat(np.arange(questions), 2 * samples)
    for effect in (0.0, 0.7):
        p = []
        for _ in range(1500 if SLOW else 250):
            a, b = (noise(rng, questions, samples) + effect * sign for _ in range(2))
            got = probes.paired_auc_difference(a, b, sign, question, n_boot=300)
            assert (got["p"] < 0.05) == (got["ci95"][0] > 0 or got["ci95"][1] < 0)
            p.append(got["p"])
        for level in (0.05, 0.01):
            assert np.mean(np.array(p) < level) < 1.3 * level + 3 * np.sqrt(level / len(p))


@pytest.mark.slow
@pytest.mark.parametrize(("questions", "samples"), [(4, 3), (6, 1), (10, 3), (30, 1)])
def test_differences_of_refitted_readouts_hold_their_level(questions, samples):
    rng = np.random.default_rng(questions)
    sign = np.tile(np.repeat([1, -1], samples), questions)
    question = np.repeat(np.arange(questions), 2 * samples)
    p = []
    for _ in range(400):
        states = [np.stack([noise(rng, questions, samples) for _ in range(16)], axis=1) for _ in range(2)]
        x = [probes.heldout(h, sign, question, n_boot=2)["x"] for h in states]
        p.append(probes.paired_auc_difference(*x, sign, question, states=(states[0], states[1]), n_boot=300)["p"])
    rejected, error = share(np.array(p) < 0.05)
    assert rejected < 0.06 + error


# --- held-out measures ---


@functools.partial(jax.jit, static_argnames="k")
def separated(states, sign, question, fold, counts, k):
    def one(h):
        held = probes.cross_validated_projections(h, sign, fold, n_folds=k)
        return probes.evaluate(held.x, sign, question, fold, counts, centred_gram(h, sign), k)

    return jax.lax.map(one, states, batch_size=20)


@pytest.mark.parametrize(
    ("questions", "samples"),
    [(6, 1)] if not SLOW else [(4, 1), (4, 3), (5, 3), (6, 1), (6, 3), (10, 1), (10, 3), (30, 1)],
)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_held_out_intervals_cover(questions, samples, shift):
    rng = np.random.default_rng(questions + shift)
    sign = np.tile(np.repeat([1, -1], samples), questions)
    question, fold = np.repeat(np.arange(questions), 2 * samples), None
    fold = probes.grouped_folds(question)
    own = 0.5 * rng.normal(size=(400 if SLOW else 200, questions, 8))[:, question]
    states = own + rng.normal(size=own.shape) + shift / 2 * (np.arange(8) == 0) * sign[:, None]
    counts = probes.bootstrap_counts(probes.bootstrap_indices(jax.random.key(0), 300, questions))
    out = separated(states.astype(np.float32), sign, question, fold, counts, int(fold.max()) + 1)
    for measure in ("auc", "accuracy", "dprime"):
        if measure == "dprime" and questions * samples < 6:
            continue  # has no finite expected value
        low, high = np.array(out[f"{measure}_ci95"]).T
        expected = np.mean(out[measure])
        assert np.mean((low <= expected) & (expected <= high)) > 0.93 - 3 * np.sqrt(0.06 / len(low)), measure
