"""The public functions of the probes over scales, offsets, dtypes, ties and containers, against float64 references; and
what each of them refuses.

One table of calls serves all: a sibling of a fault is tried with every function.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mood_jax import probes
from mood_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("unoptimised")

SCALES = (1e-20, 1e-9, 1.0, 1e4, 1e20)
OFFSETS = (0.0, -3.0, 1e4)  # in units of the scale
Q = 6
SIGN, QUESTION = np.tile([1, -1, 1, -1], Q), np.repeat(np.arange(Q), 4)
N = len(SIGN)
FEW = {"n_boot": 20}


def separation_of(x, sign):
    x = np.asarray(x, np.float64)
    pos, neg = x[sign > 0], x[sign < 0]
    pooled = np.sqrt(((len(pos) - 1) * pos.var(ddof=1) + (len(neg) - 1) * neg.var(ddof=1)) / (len(x) - 2))
    middle = (pos.mean() + neg.mean()) / 2
    return roc_auc_score(sign > 0, x), (pos.mean() - neg.mean()) / pooled, np.mean((x > middle) == (sign > 0))


# --- scales, offsets, dtypes ---


@pytest.mark.parametrize(("scale", "offset"), list(itertools.product(SCALES, OFFSETS)))
def test_measures_know_neither_scale_nor_offset(rng, scale, offset):
    for ties in (False, True):
        x = rng.normal(size=N) + 0.4 * SIGN
        x = np.round(x * 2) / 2 if ties else x
        moved = (x + offset) * scale
        area, dprime, accuracy = separation_of(moved, SIGN)
        assert float(probes.auc(moved, SIGN)) == pytest.approx(area, abs=1e-6)
        assert float(probes.dprime(moved, SIGN)) == pytest.approx(dprime, rel=1e-5, abs=1e-6)
        if not ties:  # a tied value may lie on the middle
            assert float(probes.midpoint_accuracy(moved, SIGN)) == pytest.approx(accuracy, abs=1e-6)
        plain = probes.paired_auc_difference(x, x[::-1], SIGN, QUESTION, n_boot=50)
        again = probes.paired_auc_difference(moved, moved[::-1], SIGN, QUESTION, n_boot=50)
        np.testing.assert_allclose(leaves(again), leaves(plain), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_measures_inside_jit_know_no_scale(rng, scale):
    x = (rng.normal(size=N) + 0.4 * SIGN).astype(np.float32) * np.float32(scale)
    area, dprime, accuracy = separation_of(x, SIGN)
    measures = (probes.auc, probes.dprime, probes.midpoint_accuracy)
    got = jax.jit(lambda x, s: [f(x, s) for f in measures])(jnp.asarray(x), jnp.asarray(SIGN))
    np.testing.assert_allclose(got, [area, dprime, accuracy], rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "x"),
    [
        (np.float64, 1 + 1e-9 * np.arange(8)),
        (np.int64, 2**24 + np.arange(8)),
        (np.int64, 2**62 + np.arange(8)),
        (np.uint64, 2**63 + np.arange(8, dtype=np.uint64)),
        (np.float16, 1 + np.arange(8) / 1024),
        (ml_dtypes.bfloat16, 1 + np.arange(8) / 128),
        (np.int8, np.arange(8) + 120),
        (np.uint8, np.arange(8)[::-1]),
    ],
)
def test_values_are_compared_in_their_own_dtype(rng, dtype, x):
    x = np.asarray(x).astype(dtype)
    order, sign = rng.permutation(8), np.repeat([-1, 1], 4)
    ranks = np.array([sorted(x.tolist()).index(v) for v in x[order].tolist()])
    assert float(probes.auc(x[order], sign)) == roc_auc_score(sign > 0, ranks)
    flat = probes.clustered_correlation(x[order, None], ranks, np.arange(8))
    assert flat.r[0] == 1.0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int32])
def test_narrow_dtypes_are_computed_in_float32(rng, dtype):
    states = np.round(rng.normal(size=(N, 5)) * 20 + 8 * SIGN[:, None]).astype(dtype)  # all of them exact
    wide = states.astype(np.float64)
    for name in ("heldout", "pole_swap_test", "length_matched_auc", "split_half_cosine"):
        got, expected = (leaves(CALLS[name](states=h)) for h in (states, wide))
        np.testing.assert_array_equal(got, expected)
    x = wide[:, 0]
    area, dprime, _ = separation_of(x, SIGN)
    np.testing.assert_allclose(
        [probes.auc(x.astype(dtype), SIGN), probes.dprime(x.astype(dtype), SIGN)], [area, dprime], rtol=1e-5
    )
    assert probes.sign_flip_p(x.astype(dtype)[:8]) == probes.sign_flip_p(x[:8])
    np.testing.assert_array_equal(probes.mean_interval(x.astype(dtype)), probes.mean_interval(x))


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e5, 1e20])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_evaluations_of_states_know_neither_scale_nor_offset(rng, scale, offset):
    states = rng.normal(size=(N, 5)) + 0.7 * SIGN[:, None]
    for name in (
        "heldout",
        "pole_swap_test",
        "length_residualised",
        "random_direction_percentile",
        "mahalanobis_cosine",
    ):
        expected, got = (leaves(CALLS[name](states=h)) for h in (states, (states + offset) * scale))
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3, err_msg=name)


def test_covariates_of_any_scale_are_taken_out(rng):
    covariates = rng.normal(size=(N, 2))
    states = rng.normal(size=(N, 5)) + covariates @ rng.normal(size=(2, 5))
    expected = probes.heldout(states, SIGN, QUESTION, covariates=covariates, **FEW)["x"]
    moved = covariates * [1e-20, 1e20] + [1e-15, 1e25]
    got = probes.heldout(states, SIGN, QUESTION, covariates=moved, **FEW)["x"]
    np.testing.assert_allclose(got, expected, atol=1e-3)


def enumerated_p(scores) -> float:
    flips = 1 - 2 * ((np.arange(2 ** len(scores))[:, None] >> np.arange(len(scores))) & 1)
    exact = [sum(int(f) * s for f, s in zip(row, scores, strict=True)) for row in flips]  # Python integers
    return float(np.mean([abs(v) >= abs(sum(scores)) for v in exact]))


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e4, 1e5, 1e9, 1e20])
def test_sign_flips_of_any_scale_are_exact(rng, scale):
    for n in range(1, 10):
        for shift in (0, 3, 40):
            whole = [int(v) for v in rng.integers(-20, 20, n) + shift]
            assert probes.sign_flip_p(np.array(whole) * scale) == enumerated_p(whole)
        positive = rng.uniform(0.5, 2, n) * scale
        assert probes.sign_flip_p(positive) == 2 / 2**n
    many = np.abs(rng.normal(size=20)) * scale  # drawn: only all flips, or none, are as extreme
    assert probes.sign_flip_p(many, n=5000) == pytest.approx(1 / 5001, abs=1e-3)


def test_the_five_numbers_of_the_report():
    scores = np.array([12187.9, 22459.1, 17322.7, 15442.6, 13163.0])
    assert probes.sign_flip_p(scores, 0) == 0.0625
    got = probes.paired_test(scores, np.zeros(5))
    assert got["p"] == pytest.approx(stats.ttest_1samp(scores, 0).pvalue)


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1.0, 1e20, 1e200])
@pytest.mark.parametrize("offset", [0.0, 0.5, 1e6])
def test_means_equal_scipy(rng, scale, offset):
    for n in (2, 3, 4, 5, 9, 30):
        scores = rng.normal(size=(n, 3)) + offset
        expected = stats.ttest_1samp(scores, 0)
        scores, interval = scores * scale, np.array(expected.confidence_interval(0.95)) * scale
        got = probes.mean_interval(scores)
        np.testing.assert_allclose(got.mean, scores.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose([got.low, got.high], interval, rtol=1e-7)
        np.testing.assert_allclose(got.p, expected.pvalue, rtol=1e-6)
        np.testing.assert_array_equal(got.p < 0.05, (got.low > 0) | (got.high < 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e4 / 3, 1e-20])
def test_scores_that_do_not_vary_have_the_p_of_sign_flips(dtype, value):
    for n in (2, 4, 5, 6, 30):
        scores = np.full(n, value, dtype)
        scores[0] = np.nextafter(scores[0], dtype(1))  # rounding is no variance
        got = probes.mean_interval(scores if value else np.zeros(n))
        assert float(got.p) == pytest.approx(2 ** (1 - n) if value else 1.0, rel=1e-9)
        assert (got.p < 0.05) == (got.low > 0 or got.high < 0)
        assert got.low <= got.mean <= got.high
        a = scores + dtype(1)
        differences = probes.paired_test(a, a - scores)
        assert differences["p"] == pytest.approx(2 ** (1 - n) if value > 1e-10 or value < 0 else 1.0, rel=1e-6)


# --- correlations ---


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("slope", [2.0, -1e-20, 1e20])
def test_a_perfect_correlation_is_certain(rng, noise, slope):
    x = np.arange(10.0) + noise * rng.normal(size=10)
    got = probes.clustered_correlation(x[:, None], slope * np.arange(10) + 1e3 * slope, np.arange(10))
    assert got.r[0] == np.sign(slope)
    assert got.p[0] == pytest.approx(2 / math.factorial(10), rel=1e-6)  # of ten questions in perfect order
    assert min(np.sign(slope) * got.ci95[0]) > 0.8
    assert np.abs(got.ci95).max() == 1


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n", [4, 5, 30])
def test_correlations_are_of_ranks_whatever_the_scale(rng, scale, n):
    for ties in (False, True):
        x, y = rng.normal(size=(2, n))
        x, y = (np.round(x), np.round(y * 2)) if ties else (x, y)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        plain = probes.clustered_correlation(x[:, None], y, np.arange(n))
        assert plain.r[0] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        moved = probes.clustered_correlation((x[:, None] + 1e4) * scale, np.exp(y), np.arange(n))
        np.testing.assert_allclose(np.r_[moved.p, moved.ci95[0]], np.r_[plain.p, plain.ci95[0]])
        assert (plain.p[0] < 0.05) == (plain.ci95[0, 0] > 0 or plain.ci95[0, 1] < 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("value", [0, 1, 200, 1000003])
def test_what_is_flat_but_for_rounding_correlates_with_nothing(rng, dtype, value):
    x = np.full((12, 2), value, dtype)
    if dtype != np.int64:
        x[:, 1] = np.nextafter(x[:, 1], np.where(rng.random(12) < 0.5, 0, 2 * value + 1).astype(dtype))
    got = probes.clustered_correlation(x, rng.normal(size=12), np.arange(12))
    if value:
        assert (got.r == 0).all()
        assert (got.p == 1).all()
        assert (got.ci95 == [-1, 1]).all()


# --- corrections for many tests ---


def test_corrections_equal_statsmodels_and_scipy(rng):
    from statsmodels.stats.multitest import multipletests

    for m in (1, 2, 7, 50):
        p = np.round(rng.random(m) ** 4, 3 if m < 10 else 1)  # ties, and 0
        for container in (np.asarray, list, jnp.asarray, iter):
            np.testing.assert_allclose(probes.holm(container(p)), multipletests(p, method="holm")[1], rtol=1e-6)
            np.testing.assert_allclose(
                probes.benjamini_hochberg(container(p)), stats.false_discovery_control(p), rtol=1e-6
            )
        np.testing.assert_allclose(jax.jit(probes.holm)(p), multipletests(p, method="holm")[1], rtol=1e-5)
        np.testing.assert_allclose(jax.jit(probes.benjamini_hochberg)(p), stats.false_discovery_control(p), rtol=1e-5)
    assert probes.holm([1e-60, 1e-50])[0] == 2e-60
    assert len(probes.holm([])) == 0


# --- what is taken, and what is refused ---

STATES = np.random.default_rng(5).normal(size=(N, 5)) + 0.5 * SIGN[:, None]
X, TOKENS, CUT = STATES[:, 0].copy(), np.arange(N) % 7 + 20, np.arange(N) % 5 == 0
FOLD = probes.grouped_folds(QUESTION, 3)
CALLS = {
    "auc": lambda x=X, sign=SIGN: probes.auc(x, sign),
    "dprime": lambda x=X, sign=SIGN: probes.dprime(x, sign),
    "midpoint_accuracy": lambda x=X, sign=SIGN: probes.midpoint_accuracy(x, sign),
    "threshold_accuracy": lambda x=X, sign=SIGN: probes.threshold_accuracy(x, sign),
    "heldout": lambda states=STATES, sign=SIGN, question=QUESTION: probes.heldout(states, sign, question, **FEW),
    "cross_validated_projections": lambda states=STATES, sign=SIGN, fold=FOLD: probes.cross_validated_projections(
        states, sign, fold, n_folds=3
    ),
    "pole_swap_test": lambda states=STATES, sign=SIGN, question=QUESTION: probes.pole_swap_test(
        states, sign, question, 20
    ),
    "length_only_auc": lambda n_tokens=TOKENS, sign=SIGN, question=QUESTION: probes.length_only_auc(
        n_tokens, sign, question, **FEW
    ),
    "length_residualised": lambda states=STATES, sign=SIGN, question=QUESTION, n_tokens=TOKENS, cut=CUT: (
        probes.length_residualised(states, sign, question, n_tokens, cut, **FEW)
    ),
    "length_matched_auc": lambda states=STATES, sign=SIGN, question=QUESTION, n_tokens=TOKENS, cut=CUT: (
        probes.length_matched_auc(states, sign, question, n_tokens, cut, **FEW)
    ),
    "length_covariates": lambda n_tokens=TOKENS, cut=CUT: probes.length_covariates(n_tokens, cut),
    "cutoff_share": lambda cut=CUT, sign=SIGN: probes.cutoff_share(cut, sign),
    "random_direction_percentile": lambda states=STATES, sign=SIGN, question=QUESTION: (
        probes.random_direction_percentile(states, sign, question, 0.7, n_draws=20)
    ),
    "top_k_share": lambda x=X: probes.top_k_share(x),
    "clustered_correlation": lambda states=STATES, x=X, question=QUESTION: probes.clustered_correlation(
        states, x, question
    ),
    "paired_auc_difference": lambda x=X, b=X[::-1], sign=SIGN, question=QUESTION: probes.paired_auc_difference(
        x, b, sign, question, n_boot=20
    ),
    "paired_test": lambda x=X, b=X[::-1], question=QUESTION: probes.paired_test(x, b, question),
    "sign_flip_p": lambda x=X: probes.sign_flip_p(x),
    "mean_interval": lambda x=X: probes.mean_interval(x),
    "bootstrap_mean_ci": lambda x=X: probes.bootstrap_mean_ci(x, 20),
    "mcnemar": lambda cut=CUT, other=CUT[::-1]: probes.mcnemar(cut, other),
    "grouped_folds": lambda question=QUESTION: probes.grouped_folds(question),
    "split_half_cosine": lambda states=STATES, sign=SIGN, question=QUESTION: probes.split_half_cosine(
        states, sign, question, n_splits=5
    ),
    "mahalanobis_cosine": lambda states=STATES, sign=SIGN, u=STATES[0], v=STATES[1]: probes.mahalanobis_cosine(
        u, v, states, sign
    ),
    "cross_set_cosine": lambda states=STATES: probes.cross_set_cosine(states),
    "holm": lambda p=(0.1, 0.2): probes.holm(p),
    "benjamini_hochberg": lambda p=(0.1, 0.2): probes.benjamini_hochberg(p),
}
DEFAULTS = {name: dict(zip(f.__code__.co_varnames, f.__defaults__, strict=False)) for name, f in CALLS.items()}
CASES = [(name, argument) for name, given in DEFAULTS.items() for argument in given]


def leaves(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in jax.tree.leaves(tree)])


def listed(value):
    return np.asarray(value).tolist()


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_lists_generators_and_arrays_are_taken_alike(name, argument):
    value = DEFAULTS[name][argument]
    expected = leaves(CALLS[name]())
    forms = [listed, lambda v: tuple(listed(v)), lambda v: iter(listed(v)), lambda v: list(np.asarray(v))]
    for form in forms:
        np.testing.assert_allclose(leaves(CALLS[name](**{argument: form(value)})), expected, rtol=1e-6)


def damaged(argument: str, value):
    """The argument with something wrong in it, by what is wrong."""
    rows = listed(value)

    def one(entry, where=1):
        return [([entry, *r[1:]] if isinstance(r, list) else entry) if i == where else r for i, r in enumerate(rows)]

    yield "none", None
    yield "none inside", one(None)
    yield "nan", one(math.nan)
    yield "short", rows[:-1]
    yield "text", "abc"
    yield "mixed", one("1") if argument != "question" else one("x")
    if argument != "question":
        yield "inf", one(math.inf)
        yield "texts", [[str(v) for v in r] if isinstance(r, list) else str(r) for r in rows]
        yield "complex", one(1j)
        yield "ragged", one([1.0, 2.0])
    if argument not in ("question", "cut", "other"):
        yield "bool", one(True)
    if argument == "sign":
        yield "zero and one", [max(v, 0) for v in rows]
        yield "bools", [v > 0 for v in rows]
        yield "two", one(2)
        yield "half", one(0.5)
        yield "nothing", [0] * N
        yield "one pole", [abs(v) for v in rows]
    if argument in ("cut", "other"):
        yield "neither", one(2)
    if argument == "n_tokens":
        yield "column", [[v] for v in rows]
    if argument == "p":
        yield "above one", one(1.5)
        yield "below zero", one(-0.1)
        yield "table", [rows, rows]
        yield "scalar", 0.03


ALONE = {
    "top_k_share",
    "sign_flip_p",
    "mean_interval",
    "bootstrap_mean_ci",
    "grouped_folds",
    "cross_set_cosine",
    "holm",
    "benjamini_hochberg",
}


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_what_would_be_coerced_or_ignored_is_refused_in_one_line(name, argument):
    for what, value in damaged(argument, DEFAULTS[name][argument]):
        if what == "short" and name in ALONE:
            continue  # any length is right
        if what == "none" and (name, argument) == ("paired_test", "question"):
            continue  # every row is its own question
        with pytest.raises(UserError) as error:
            print(what, CALLS[name](**{argument: value}))
        assert "\n" not in str(error.value), what
        assert len(str(error.value)) < 200, what


@pytest.mark.parametrize(
    "call",
    [
        lambda n: probes.heldout(STATES, SIGN, QUESTION, k=n),
        lambda n: probes.heldout(STATES, SIGN, QUESTION, seed=n),
        lambda n: probes.heldout(STATES, SIGN, QUESTION, n_boot=n),
        lambda n: probes.pole_swap_test(STATES, SIGN, QUESTION, n),
        lambda n: probes.paired_auc_difference(X, X, SIGN, QUESTION, n_boot=n),
        lambda n: probes.split_half_cosine(STATES, SIGN, QUESTION, n_splits=n),
        lambda n: probes.half_splits(n),
        lambda n: probes.sign_flip_p(X, 0, n),
        lambda n: probes.sign_flip_p(X, n),
        lambda n: probes.bootstrap_mean_ci(X, n),
        lambda n: probes.bootstrap_indices(jax.random.key(0), n, 4),
        lambda n: probes.bootstrap_indices(jax.random.key(0), 4, n),
        lambda n: probes.grouped_folds(QUESTION, n),
        lambda n: probes.top_k_share(X, n),
        lambda n: probes.clustered_correlation(STATES, X, QUESTION, least=n),
        lambda n: probes.random_direction_percentile(STATES, SIGN, QUESTION, n),
        lambda n: probes.mahalanobis_cosine(X[:5], X[:5], STATES, SIGN, shrinkage=n),
    ],
)
@pytest.mark.parametrize("value", [2.5, -1, True, "3", math.nan, [3]])
def test_counts_and_settings_are_checked(call, value):
    with pytest.raises(UserError) as error:
        call(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [math.nan, None, "0.6", -0.1, 1.1, True])
def test_verdicts_refuse_what_is_no_share(value):
    share = {"auc": 0.8, "p_holm": 0.01, "length_auc": 0.6, "residual_auc": 0.7, "residual_p": 0.01}
    ends = {"auc_ci95": (0.7, 0.9), "residual_ci95": (0.6, 0.8)}
    assert probes.verdict(ok=True, **share, **ends).label == "real"
    for name in share:
        with pytest.raises(UserError, match=name):
            probes.verdict(ok=True, **(share | {name: value}), **ends)
    for name in ends:
        for interval in ((0.9, 0.7), (0.5,), (math.nan, 0.9), None if name == "auc_ci95" else (None, 1)):
            with pytest.raises(UserError):
                probes.verdict(ok=True, **share, **(ends | {name: interval}))
    both = {"text_auc": 0.5, "text_p": 0.5, "states_auc": 0.5, "states_p": 0.5}
    for name in both:
        with pytest.raises(UserError, match=name):
            probes.manipulation(**(both | {name: value}), text_ci95=(0.4, 0.6), states_ci95=(0.4, 0.6))
