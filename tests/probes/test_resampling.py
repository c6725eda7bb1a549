import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.stats import trim_mean
from sklearn.metrics import roc_auc_score

from mood_jax.errors import UserError
from mood_jax.probes import (
    benjamini_hochberg,
    bootstrap_counts,
    bootstrap_indices,
    bootstrap_mean_ci,
    cross_validated_projections,
    evaluate,
    grouped_folds,
    heldout,
    holm,
)
from mood_jax.probes.spans import centred_gram


def ragged(rng, questions=11, d=12, shift=0.8):
    """One or two samples a pole, question 3 without its positive pole, two samples left out."""
    sign, question = [], []
    for q in range(questions):
        for side in (1, -1):
            count = 0 if (q, side) == (3, 1) else 1 + (q + side) % 2
            sign += [side] * count
            question += [q] * count
    sign, question = np.array(sign), np.array(question)
    states = rng.normal(size=(len(sign), d))
    states[:, 0] += shift * sign
    sign[[5, 9]] = 0
    return states.astype(np.float32), sign, question


def reference_projections(states, sign, fold, covariates=None, trim=0.1):
    """The loop that the vmapped program stands for, in float64."""
    states, out = states.astype(np.float64), np.zeros(len(sign))
    for f in range(fold.max() + 1):
        train = (fold != f) & (sign != 0)
        h = states
        if covariates is not None:
            design = np.column_stack([np.ones(len(sign)), covariates])
            h = states - design @ np.linalg.lstsq(design[train], states[train], rcond=None)[0]
        v = trim_mean(h[train & (sign > 0)], trim) - trim_mean(h[train & (sign < 0)], trim)
        x = h @ (v / np.linalg.norm(v))
        middle = (x[train & (sign > 0)].mean() + x[train & (sign < 0)].mean()) / 2
        scale = np.sqrt(np.mean((x[train] - middle) ** 2))
        test = (fold == f) & (sign != 0)
        out[test] = (x[test] - middle) / scale
    return out


def test_folds_keep_questions_together_and_are_balanced_and_deterministic(rng):
    question = np.array([f"q{i}" for i in rng.permutation(np.repeat(np.arange(13), 4))])
    fold = grouped_folds(question, 5, seed=3)
    by_question = {q: set(fold[question == q]) for q in question}
    assert all(len(folds) == 1 for folds in by_question.values())
    sizes = np.bincount([f for folds in by_question.values() for f in folds])
    assert sizes.tolist() == [3, 3, 3, 2, 2]
    order = rng.permutation(len(question))
    np.testing.assert_array_equal(grouped_folds(question[order], 5, seed=3), fold[order])
    assert (grouped_folds(question, 5, seed=4) != fold).any()
    assert grouped_folds(["a", "b", "a", "b"], 5).max() == 1


@pytest.mark.parametrize(("question", "k"), [(["a", "a"], 5), ([], 5), (["a", "b"], 1)])
def test_too_few_questions_or_folds_are_a_clear_error(question, k):
    with pytest.raises(UserError, match="2 questions and 2 folds"):
        grouped_folds(question, k)


@pytest.mark.parametrize("length", [False, True])
def test_held_out_projections_equal_a_loop_over_folds(rng, length):
    states, sign, question = ragged(rng)
    fold = grouped_folds(question, 4, seed=1)
    covariates = rng.normal(size=(len(sign), 2)).astype(np.float32) if length else None
    held = jax.jit(cross_validated_projections, static_argnames="n_folds")(
        states, sign, fold, n_folds=4, covariates=covariates
    )
    assert bool(held.ok)
    np.testing.assert_allclose(held.x, reference_projections(states, sign, fold, covariates), atol=1e-4)
    whole = trim_mean(states[sign > 0], 0.1) - trim_mean(states[sign < 0], 0.1)
    if not length:
        np.testing.assert_allclose(held.vector, whole / np.linalg.norm(whole), atol=1e-4)


def separation(x, sign):
    """AUC, d′ and accuracy at threshold 0 of plain samples."""
    x, pos, neg = x.astype(np.float64), x[sign > 0].astype(np.float64), x[sign < 0].astype(np.float64)
    squares = ((pos - pos.mean()) ** 2).sum() + ((neg - neg.mean()) ** 2).sum()
    dprime = (pos.mean() - neg.mean()) / np.sqrt(squares / (len(pos) + len(neg) - 2))
    hits = np.concatenate([np.sign(pos), -np.sign(neg)])
    return np.array([roc_auc_score(sign[sign != 0] > 0, x[sign != 0]), dprime, np.mean((hits + 1) / 2)])


def combined(fixed, left_out):
    """The variance of a cross-validated statistic: draws with fixed directions, values without a question each."""
    m = len(left_out)
    jackknife = (m - 1) / m * ((left_out - np.mean(left_out, axis=0)) ** 2).sum(axis=0)
    return (jackknife + 2 * np.var(fixed, axis=0)) / 3


def floors(value, sign, question):
    """The least variance of AUC, d' and accuracy: half of Hanley and McNeil's and of the binomial one."""
    asked = len(set(question[sign != 0]))
    n_pos, n_neg = (min((sign == s).sum(), asked) for s in (1, -1))
    least, n = min(n_pos, n_neg), n_pos + n_neg
    a, p = (value[0] * least + 0.5) / (least + 1), (value[2] * n + 0.5) / (n + 1)
    q1, q2 = a / (2 - a), 2 * a**2 / (1 + a)
    whole = a * (1 - a) + (n_pos - 1) * (q1 - a**2) + (n_neg - 1) * (q2 - a**2)
    return np.array([whole / (2 * n_pos * n_neg), 0, p * (1 - p) / (2 * n)])


def interval(value, se, units, questions=11):
    if units is None:
        reach = stats.t(questions - 1).ppf(0.975) * se
        return [value - reach, value + reach]
    share = (value * units + 0.5) / (units + 1)
    logit_se = min(se / (share * (1 - share)), 1.5)  # bounded: the delta method does not hold at the edge
    ends = np.log(share / (1 - share)) + np.array([-1.96, 1.96]) * logit_se
    low, high = 1 / (1 + np.exp(-ends))
    return [min(low, value), max(high, value)]


def test_a_separated_axis_has_a_narrow_interval_whatever_single_draws_do():
    """At an AUC of 1 one stray refitted draw once stretched the interval to .02 … 1 (draw 5)."""
    sign, question = np.tile([1, -1], 20), np.repeat(np.arange(20), 2)
    for draw in (5, 1360436742):
        states = np.random.default_rng(draw).normal(size=(40, 16))
        states[:, 2] += 2 * sign
        out = heldout(states, sign, question, n_boot=200)
        assert float(out["auc"]) == 1.0
        assert float(out["auc_ci95"][0]) > 0.9


@pytest.mark.parametrize("refit", [False, True])
def test_evaluation_and_bootstrap_equal_plain_loops_on_the_same_draws(rng, refit):
    states, sign, question = ragged(rng, shift=1.5)
    fold = grouped_folds(question, 4)
    x = np.round(states[:, 0], 1)  # ties
    indices = np.asarray(bootstrap_indices(jax.random.key(1), 100, 11))
    arrays = [jnp.asarray(a) for a in (x, sign, question, fold)]
    gram = centred_gram(jnp.asarray(states), jnp.asarray(sign)) if refit else None
    counts = bootstrap_counts(jnp.asarray(indices))
    out = jax.jit(evaluate, static_argnames="n_folds")(*arrays, counts, gram, n_folds=4)

    everything = np.arange(len(sign))
    rows = [np.concatenate([everything[question == q] for q in draw]) for draw in indices]
    fixed = [separation(x[r], sign[r]) for r in rows]
    variance = np.var(fixed, axis=0)
    if refit:
        left_out = []
        for q in range(11):  # refitted without trimming
            r = (question != q) & (sign != 0)
            left_out.append(separation(reference_projections(states[r], sign[r], fold[r], trim=0), sign[r]))
        variance = combined(fixed, left_out)
        variance[2] = np.var(fixed, axis=0)[2] * np.clip(variance[0] / np.var(fixed, axis=0)[0], 1, 3)
    variance = np.maximum(variance, floors(separation(x, sign), sign, question))
    n_pos, n_neg = (sign > 0).sum(), (sign < 0).sum()
    units = (n_pos * n_neg, None, n_pos + n_neg)
    names = ("auc", "dprime", "accuracy")
    for name, unit, value, var in zip(names, units, separation(x, sign), variance, strict=True):
        np.testing.assert_allclose(out[name], value, atol=1e-4)
        np.testing.assert_allclose(out[f"{name}_ci95"], interval(value, np.sqrt(var), unit), rtol=2e-3)
    pairs = [
        (x[i] > x[j]) + 0.5 * (x[i] == x[j])
        for i in everything[sign > 0]
        for j in everything[sign < 0]
        if fold[i] == fold[j]
    ]
    np.testing.assert_allclose(out["auc_within_folds"], np.mean(pairs), atol=1e-5)


@jax.jit
def separated(states, sign, question, fold, counts):
    """Evaluation of every data set in states [draws, n, d]."""

    def one(h):
        held = cross_validated_projections(h, sign, fold, n_folds=5)
        return evaluate(held.x, sign, question, fold, counts, centred_gram(h, sign), 5)

    return jax.lax.map(one, states, batch_size=20)


@pytest.mark.parametrize("shift", [1, 2])
def test_intervals_of_a_planted_axis_cover_its_expected_value(shift):
    rng = np.random.default_rng(shift)  # fixed: the bounds below are statistical
    sign, question = np.tile([1, -1], 30), np.repeat(np.arange(30), 2)
    scale = (1 + np.arange(128)) ** -0.5  # correlated: a power-law spectrum, planted in a strong coordinate
    states = (rng.normal(size=(300, 60, 128)) + shift / 2 * np.where(np.arange(128) == 3, 1, 0) * sign[:, None]) * scale
    counts = bootstrap_counts(bootstrap_indices(jax.random.key(0), 300, 30))
    out = separated(states.astype(np.float32), sign, question, grouped_folds(question), counts)
    for measure in ("auc", "dprime", "accuracy"):
        low, high = np.array(out[f"{measure}_ci95"]).T
        expected = np.mean(out[measure])
        covered = np.mean((low <= expected) & (expected <= high))
        bounds = (0.93, 0.97) if measure == "auc" else (0.92, 0.99)
        assert bounds[0] <= covered <= bounds[1], (measure, covered)  # binomial SE .013


def test_bootstrap_draws_are_uniform_and_stop_at_the_used_units():
    indices = bootstrap_indices(jax.random.key(0), 4000, 8, 5)
    counts = np.asarray(bootstrap_counts(indices, 5))
    assert (counts.sum(axis=1) == 5).all()
    assert (counts[:, 5:] == 0).all()
    np.testing.assert_allclose(counts[:, :5].mean(axis=0), 1, atol=0.06)  # SE .014


def test_draws_without_one_pole_are_left_out_of_the_interval():
    x, sign = jnp.array([2.0, -1.0, 1.0]), jnp.array([1, -1, -1])
    question, fold = jnp.array([0, 0, 1]), jnp.array([0, 0, 1])
    counts = jnp.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    out = jax.jit(evaluate)(x, sign, question, fold, counts)
    # Two of three draws hold both poles, and all pairs of these are in order: no variance but the least there can be.
    least = floors(np.array([1.0, 0, 1.0]), np.asarray(sign), np.asarray(question))[0]
    np.testing.assert_allclose(out["auc_ci95"], interval(1.0, np.sqrt(least), 2), rtol=1e-4)
    assert np.isfinite(np.concatenate([np.ravel(v) for v in out.values()])).all()


def test_heldout_of_a_planted_axis_and_of_constant_states(fixed_rng):
    sign, question = np.tile([1, -1], 20), np.repeat([f"q{i}" for i in range(20)], 2)
    states = fixed_rng.normal(size=(40, 16))  # fixed: some draws are hard to tell apart
    states[:, 2] += 2 * sign
    out = heldout(states, sign, question, n_boot=200)
    assert bool(out["ok"])
    assert 0.7 < float(out["auc_ci95"][0]) <= float(out["auc"]) <= float(out["auc_ci95"][1])
    assert float(out["accuracy"]) > 0.85
    constant = heldout(np.full((40, 16), 3.0), sign, question, n_boot=200)
    assert not bool(constant["ok"])
    assert (float(constant["auc"]), float(constant["dprime"])) == (0.5, 0.0)


@pytest.mark.parametrize("axes", [(), (7,)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_bootstrap_of_the_mean_equals_a_loop(rng, axes, scale):
    scores = (rng.normal(2, 1, (30, *axes)) * scale).astype(np.float32)
    mean, low, high = bootstrap_mean_ci(scores, n=500, seed=4)
    indices = np.asarray(bootstrap_indices(jax.random.key(4), 500, 30))
    draws = np.array([scores[i].astype(float).mean(axis=0) for i in indices])
    np.testing.assert_allclose(mean, scores.astype(float).mean(axis=0), rtol=1e-12)
    widened = stats.t(29).ppf(0.975) / stats.norm.ppf(0.975) * np.sqrt(30 / 29)  # Student's, of 30
    expected = mean + widened * (np.percentile(draws, [2.5, 97.5], axis=0) - mean)
    np.testing.assert_allclose([low, high], expected, rtol=1e-6)


def test_bootstrap_of_nothing_is_a_clear_error():
    for scores in (np.zeros((0, 7)), [], [1.0], 3.0, [1.0, None]):
        with pytest.raises(UserError):
            bootstrap_mean_ci(scores)


def test_holm_and_benjamini_hochberg_equal_plain_loops(rng):
    p = rng.random(9) ** 3
    p[3] = p[5]  # a tie
    order = np.argsort(p)
    step_down, step_up, worst, best = np.zeros(9), np.zeros(9), 0.0, 1.0
    for rank, i in enumerate(order):
        worst = max(worst, p[i] * (9 - rank))
        step_down[i] = min(worst, 1)
    for rank in range(8, -1, -1):
        best = min(best, p[order[rank]] * 9 / (rank + 1))
        step_up[order[rank]] = best
    np.testing.assert_allclose(holm(p), step_down, rtol=1e-5)
    np.testing.assert_allclose(benjamini_hochberg(p), step_up, rtol=1e-5)
    # Worked by hand: 3·.01, 2·.03, .04 → .03, .06, .06.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06], rtol=1e-5)
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, 0.04, 0.03])), [0.03, 0.04, 0.04], rtol=1e-5)
