"""Directions, scores, agreement and geometry of numbers of any size, offset, dtype and container, against float64
references; and what no number can be made of."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mood_jax import probes as P
from mood_jax.errors import UserError

SCALES = (1e-20, 1e-6, 1.0, 1e5, 1e20)
OFFSETS = (0.0, 1.0, 1e6)
DTYPES = (np.float16, jnp.bfloat16, np.float32, np.float64)
SIGN, QUESTION = np.tile([1, -1], 15), np.repeat(np.arange(15), 2)


def numbers(rng, shape, scale, offset):
    """Normal numbers of this SD about an offset of so many SDs a column."""
    return scale * (rng.normal(size=shape) + offset * np.sign(rng.normal(size=shape[-1])))


def correlations(x):
    return np.corrcoef(x.T)


def ratio(x):
    values = np.linalg.eigvalsh(np.cov((x / np.abs(x).max()).T))
    return values.sum() ** 2 / (values**2).sum()


def anova(x):
    """Mean squares of rows, columns, error and within rows, of ratings [n, k] in float64."""
    n, k = x.shape
    x = x - x.mean()
    row, column = x.mean(axis=1, keepdims=True), x.mean(axis=0, keepdims=True)
    msr, msc = k * (row**2).sum() / (n - 1), n * (column**2).sum() / (k - 1)
    return msr, msc, ((x - row - column) ** 2).sum() / ((n - 1) * (k - 1)), ((x - row) ** 2).sum() / (n * (k - 1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("n", [4, 30])
def test_geometry_and_agreement_equal_float64(rng, scale, offset, n):
    x = numbers(rng, (n, 3), scale, offset)
    out, expected = P.pca(x), PCA().fit((x - x.mean(axis=0)) / scale)
    np.testing.assert_allclose(out.variances / scale**2, expected.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(out.shares, expected.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(out.components * expected.components_, axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(P.effective_dimension(x), ratio(x - x.mean(axis=0)), rtol=1e-5)
    table, ok = P.correlation_table(x)
    np.testing.assert_allclose(table, correlations((x - x.mean(axis=0)) / scale), atol=1e-6)
    assert ok.all()
    np.testing.assert_allclose(
        P.behavioural_r(x).value, np.abs(correlations(x - x.mean(axis=0))[np.triu_indices(3, 1)]).mean(), atol=1e-6
    )
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    np.testing.assert_allclose(P.cosine_table(x).table, cosines, atol=1e-6)
    squares = anova(x)
    np.testing.assert_allclose(P.mean_squares(x)[:4], squares, rtol=1e-5, atol=1e-9 * max(squares))
    msr, msc, mse, _ = squares
    np.testing.assert_allclose(P.icc(x, "3,1").value, (msr - mse) / (msr + 2 * mse), atol=1e-5)
    components = P.variance_components(x).variance / scale**2
    raw = np.array([(msr - mse) / 3, (msc - mse) / n, mse]) / scale**2
    np.testing.assert_allclose(components, np.maximum(raw, 0), rtol=1e-4, atol=1e-9 * raw.max())


@pytest.mark.parametrize("dtype", [*DTYPES, np.int64])
def test_short_dtypes_lists_and_integers_count_as_what_they_hold(rng, dtype):
    x = np.asarray(300 * rng.normal(size=(6, 4))).astype(dtype)
    exact = x.astype(np.float64)
    for given in (x, jnp.asarray(x), exact.tolist(), (tuple(row) for row in exact)):
        np.testing.assert_allclose(P.effective_dimension(given), ratio(exact - exact.mean(axis=0)), rtol=1e-5)
    for given in (x, exact.tolist(), (tuple(row) for row in exact)):
        np.testing.assert_allclose(P.pca(given).shares, P.pca(exact).shares, rtol=1e-6)
    for given in (x, exact.tolist(), (tuple(row) for row in exact)):
        np.testing.assert_allclose(P.icc(given).value, P.icc(exact).value, rtol=1e-6)
    for given in (x, exact.tolist(), (tuple(row) for row in exact)):
        np.testing.assert_allclose(P.trimmed_mean(given, 0.2), stats.trim_mean(exact, 0.2), rtol=1e-6)
    covariate = exact[:, 0]
    np.testing.assert_allclose(
        P.behavioural_r(x[:, 1:], covariate.tolist()).value, P.behavioural_r(exact[:, 1:], covariate[:, None]).value
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("n", [4, 30])
def test_scores_equal_their_formulas_at_any_size(rng, scale, offset, n):
    sign = SIGN[:n]
    x = scale * (rng.normal(size=n) + 2 * sign + offset)
    new = scale * (rng.normal(size=5) + offset)
    found = P.calibrate_scaling(x, sign, x)
    low, middle, high = np.percentile(x, [25, 50, 75])
    up, down = x[sign > 0].mean(), x[sign < 0].mean()
    assert all((found.ok, found.pole_ok, found.re_read_ok))
    np.testing.assert_allclose(P.score(new, found), (new - middle) / (high - low), rtol=1e-4, atol=1e-5)
    for name in ("pole", "re_read"):
        np.testing.assert_allclose(P.score(new, found, name), 2 * (new - down) / (up - down) - 1, rtol=1e-4, atol=1e-5)


ESTIMATORS = {
    "mean": lambda x, s: P.fit_mean_difference(x, s),
    "logistic": lambda x, s: P.fit_logistic(x, s),
    "whitened": lambda x, s: P.fit_whitened(x, s),
}


def reference(name, x, sign):
    """Unit direction in float64, of states whose columns are about their means."""
    pos, neg = x[sign > 0], x[sign < 0]
    if name == "mean":
        v = stats.trim_mean(pos, 0.1) - stats.trim_mean(neg, 0.1)
    elif name == "logistic":
        scaler = StandardScaler().fit(x)
        fit = LogisticRegression(tol=1e-10, max_iter=10_000).fit(scaler.transform(x), sign)
        v = fit.coef_[0] / scaler.scale_
    else:
        within = np.concatenate([pos - pos.mean(axis=0), neg - neg.mean(axis=0)])
        v = np.linalg.solve(
            LedoitWolf(assume_centered=True).fit(within).covariance_, pos.mean(axis=0) - neg.mean(axis=0)
        )
    return v / np.linalg.norm(v)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_directions_know_no_size_and_no_offset(rng, name, scale, offset):
    x = rng.normal(size=(30, 12)) + 0.8 * SIGN[:, None] * rng.normal(size=12)
    expected = reference(name, x - x.mean(axis=0), SIGN)
    moved = scale * (x + offset * np.sign(rng.normal(size=12)))
    found = ESTIMATORS[name](moved, SIGN)
    assert bool(found.ok)
    np.testing.assert_allclose(np.asarray(found.vector, np.float64) @ expected, 1, atol=2e-6)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "column", [1e-30, 1e-6, 1e5, 1e12, *(pytest.param(c, marks=SLOW) for c in (1e-12, 1e-5, 1e6, 1e30))]
)
def test_logistic_columns_of_any_size_have_the_weight_of_scikit_learn(rng, column):
    x = rng.normal(size=(30, 12)) + 0.3 * SIGN[:, None]
    sizes = np.r_[column, np.ones(10), 1.0 / column]
    expected = reference("logistic", x, SIGN)  # in the units of x
    folds = P.grouped_folds(QUESTION, 5)
    paths = P.logistic_projections(x * sizes, np.tile(SIGN, (2, 1)), [1.0], vectors=True)
    found = {
        "fit": P.fit_logistic(x * sizes, SIGN).vector,
        "cv": P.choose_logistic(x * sizes, SIGN, folds, n_folds=5, penalties=[1.0]).direction.vector,
        "paths": paths.vectors[1, 0],
    }
    target = expected / sizes
    target /= np.linalg.norm(target)
    for name, vector in found.items():
        np.testing.assert_allclose(vector, target, atol=1e-4, err_msg=name)
    scaler = StandardScaler()
    z = scaler.fit_transform(x)
    np.testing.assert_allclose(P.standardised_gram(x * sizes, SIGN), z @ z.T, atol=1e-4)
    fit = LogisticRegression(tol=1e-10, max_iter=10_000).fit(z, SIGN)
    np.testing.assert_allclose(paths.x[0, 0], fit.decision_function(z), atol=1e-3)


@pytest.mark.parametrize("column", [1e-12, 1e-6, 1e6, 1e12])
def test_held_out_logistic_projections_know_no_size_of_a_column(rng, column):
    """Traced too: the folds, the readouts of an ablation."""
    x = (rng.normal(size=(30, 4)) + SIGN[:, None] * [1.0, 0.3, 0.0, 0.0]).astype(np.float32)
    fold = P.grouped_folds(QUESTION, 5)

    @jax.jit
    def held(states):
        fit = P.estimator("logistic", 5)
        return P.cross_validated_projections(states, jnp.asarray(SIGN), jnp.asarray(fold), n_folds=5, estimator=fit).x

    moved = x * np.float32([column, 1, 1, 1])
    np.testing.assert_allclose(held(moved), held(x), atol=2e-3)


@pytest.mark.parametrize("correlation", [0.0, 1 - 1e-8])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_covariates_are_taken_out_as_least_squares_does(rng, correlation, offset, scale):
    scores, z = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    z[:, 1] = correlation * z[:, 0] + np.sqrt(1 - correlation**2) * z[:, 1]
    scores[:, :2] += z
    design = np.column_stack([np.ones(40), z - z.mean(axis=0)])
    residual = scores - design @ np.linalg.lstsq(design, scores, rcond=None)[0]
    expected = np.abs(correlations(residual)[np.triu_indices(3, 1)]).mean()
    given = scale * (z + offset)
    # An offset of 1e6 leaves ten digits of a covariate, and two that differ by 1e-4 of themselves six of them.
    np.testing.assert_allclose(P.behavioural_r(scores, given).value, expected, atol=1e-4)
    found = P.geometry(scale * (scores + offset), given, n_boot=20)
    np.testing.assert_allclose(found["residual"]["behavioural_r"], expected, atol=1e-3)
    np.testing.assert_allclose(found["effective_dimension"], ratio(scores - scores.mean(axis=0)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_rounding_does_not_vary(dtype):
    """Sums that differ in their last digit only, whatever their size."""
    tenth = dtype(0.1)
    for scale in (1e-20, 1.0, 1e20):
        values = dtype(scale) * np.array([tenth + tenth + tenth, dtype(0.3)], dtype)
        x = values[np.arange(24).reshape(8, 3) % 2]
        x[0] = values[0]
        assert not P.mean_squares(x).ok
        assert not P.icc(x).ok
        assert not P.pca(x).ok
        assert not P.correlation_table(x)[1].any()
        assert P.effective_dimension(x) == 0
        scaling = P.calibrate_scaling(x[:, 0], np.tile([1, -1], 4))
        assert not scaling.ok
        assert not scaling.pole_ok


BAD = {
    "NaN": np.nan,
    "inf": np.inf,
    "None": None,
    "text": "1",
    "bool": True,
    "complex": 1j,
}
TABLE = [[1.0, 2.0], [3.0, 5.0], [4.0, 4.0], [6.0, 1.0]]
LABELS = [1, -1, 1, -1]
TABLES = {
    "pca": P.pca,
    "effective_dimension": P.effective_dimension,
    "cosine_table": P.cosine_table,
    "geo_cos": P.geo_cos,
    "correlation_table": P.correlation_table,
    "behavioural_r": P.behavioural_r,
    "behavioural_r covariates": lambda x: P.behavioural_r(TABLE, x),
    "geometry": lambda x: P.geometry(x, n_boot=5),
    "icc": P.icc,
    "mean_squares": P.mean_squares,
    "variance_components": P.variance_components,
    "reliability": P.reliability,
    "trimmed_mean": P.trimmed_mean,
    "mean_difference": lambda x: P.mean_difference(x, TABLE),
    "fit_mean_difference": lambda x: P.fit_mean_difference(x, LABELS),
    "fit_logistic": lambda x: P.fit_logistic(x, LABELS),
    "fit_logistic_cv": lambda x: P.fit_logistic_cv(x, LABELS, n_folds=2),
    "choose_logistic": lambda x: P.choose_logistic(x, LABELS, [0, 0, 1, 1], n_folds=2),
    "logistic_projections": lambda x: P.logistic_projections(x, [LABELS]),
    "standardised_gram": lambda x: P.standardised_gram(x, LABELS),
    "fit_whitened": lambda x: P.fit_whitened(x, LABELS),
    "project": lambda x: P.project(x, [1.0, 0.0]),
    "clip_rate": P.clip_rate,
    "score": lambda x: P.score(x, P.calibrate_scaling([1.0, 2, 3, 4], LABELS)),
}
SQUARE = np.eye(4) + 1.0
SQUARES = {
    "participation_ratio": P.participation_ratio,
    "within_gram": lambda g: P.within_gram(g, LABELS),
    "whitened_coefficients": lambda g: P.whitened_coefficients(g, LABELS, 3),
    "ledoit_wolf": lambda g: P.ledoit_wolf(g, np.ones(4), 3),
    "newton": lambda g: P.newton(g, LABELS, 1.0),
}
VECTORS = {
    "calibrate_scaling": lambda x: P.calibrate_scaling(x, LABELS),
    "calibrate_scaling re_read": lambda x: P.calibrate_scaling([1.0, 2, 3, 4], LABELS, x),
    "project": lambda x: P.project([[1.0, 2, 3, 4]], x),
    "f_quantile": lambda x: P.f_quantile(x, 4.0),
    "correlation_table weight": lambda x: P.correlation_table(TABLE, x),
    "clip_rate": P.clip_rate,
}
LABELLED = {
    "fit_mean_difference": lambda s: P.fit_mean_difference(TABLE, s),
    "fit_logistic": lambda s: P.fit_logistic(TABLE, s),
    "fit_whitened": lambda s: P.fit_whitened(TABLE, s),
    "choose_logistic": lambda s: P.choose_logistic(TABLE, s, [0, 0, 1, 1], n_folds=2),
    "standardised_gram": lambda s: P.standardised_gram(TABLE, s),
    "within_gram": lambda s: P.within_gram(SQUARE, s),
    "whitened_coefficients": lambda s: P.whitened_coefficients(SQUARE, s, 3),
    "newton": lambda s: P.newton(SQUARE, s, 1.0),
    "calibrate_scaling": lambda s: P.calibrate_scaling([1.0, 2, 3, 4], s),
}


def refused(call, value):
    with pytest.raises(UserError) as e:
        call(value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_finite_number_is_refused_by_every_function(bad):
    rows = [list(row) for row in TABLE]
    rows[2][1] = BAD[bad]
    for name, call in TABLES.items():
        refused(call, rows)
        refused(call, [TABLE[0], [1.0, 2.0, 3.0], *TABLE[2:]])  # rows of unequal length
        refused(call, "1234")
        if "covariates" not in name:  # there None means that there are none
            refused(call, None)
    square = SQUARE.tolist()
    square[1][2] = BAD[bad]
    for call in SQUARES.values():
        refused(call, square)
        refused(call, SQUARE[:3].tolist())
    for call in VECTORS.values():
        refused(call, [1.0, BAD[bad], 3.0, 4.0])
    for call in LABELLED.values():
        refused(call, [1, BAD[bad], 1, -1])


@pytest.mark.parametrize(
    "labels", [[1, 0, 1, 0], [True, False, True, False], [1, 1, 1, 1], [1, -1, 1], ["1", "-1"] * 2]
)
def test_labels_without_one_of_the_poles_are_refused(labels):
    for call in LABELLED.values():
        refused(call, labels)


def test_what_float32_cannot_hold_is_refused_or_computed():
    for factor in (1e-60, 1e60):
        table = factor * np.array(TABLE)
        refused(P.trimmed_mean, table)
        for call in SQUARES.values():
            refused(call, factor * SQUARE) if call is not P.participation_ratio else call(factor * SQUARE)
        np.testing.assert_allclose(P.pca(table).shares, P.pca(TABLE).shares)
        np.testing.assert_allclose(P.icc(table).value, P.icc(TABLE).value)
        np.testing.assert_allclose(
            P.fit_mean_difference(table, LABELS).vector, P.fit_mean_difference(TABLE, LABELS).vector, rtol=1e-5
        )


EVIDENCE = {
    "re_read": [np.arange(24.0).reshape(8, 3) ** 2],
    "sign": [[1, -1] * 4],
    "question": [np.repeat(["a", "b", "c", "d"], 2)],
    "n_tokens": [np.arange(8)],
    "cut": [[False] * 8],
    "in_context": None,
    "texts": [["some words"] * 8],
    "random_weights": None,
}


def one_bad(value, bad):
    """A copy as nested lists whose last entry is another."""
    rows = np.asarray(value, object).tolist()
    row = rows
    while isinstance(row[-1], list):
        row = row[-1]
    row[-1] = bad
    return rows


@pytest.mark.parametrize(
    "name", ["re_read", "in_context", "random_weights", "sign", "question", "n_tokens", "cut", "texts"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, None, 1j, 0.5, "", -3])
def test_evidence_refuses_what_it_cannot_use_before_anything_is_computed(monkeypatch, name, bad):
    fine = {"question": ("",), "re_read": (0.5, -3), "texts": ("",)}
    fine |= {"in_context": fine["re_read"], "random_weights": fine["re_read"], "n_tokens": (0.5,)}
    if bad in fine.get(name, ()):
        return

    def nothing(*args, **options):
        raise AssertionError("computed")

    monkeypatch.setattr(importlib.import_module("mood_jax.probes.evidence"), "_evidence", nothing)
    states = one_bad(EVIDENCE["re_read"], bad)
    value = {"in_context": states, "random_weights": {"re_read": states}}.get(name) or one_bad(EVIDENCE[name], bad)
    with pytest.raises(UserError) as e:
        P.evidence(**EVIDENCE | {name: value})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "options", [{"k": 1}, {"k": 2.5}, {"seed": -1}, {"trim": 0.5}, {"trim": None}, {"n_boot": 0}, {"n_perm": "9"},
                {"n_random": True}, {"n_splits": 0.5}, {"estimator": "mean"}]
)  # fmt: skip
def test_evidence_refuses_options_out_of_range(options):
    with pytest.raises(UserError):
        P.evidence(*(EVIDENCE[k] for k in ("re_read", "sign", "question", "n_tokens", "cut")), **options)
