import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.formula import api
from statsmodels.stats.anova import anova_lm

from mood_jax.errors import UserError
from mood_jax.probes import ICC_FORMS, f_quantile, icc, mean_squares, reliability, variance_components

pytestmark = pytest.mark.usefixtures("unoptimised")

# Six subjects and four raters, with the coefficients printed in the article (Shrout & Fleiss 1979, tables 2 and 4), and
# the intervals that the manual of the R package psych prints for them.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
PRINTED = {
    "1": (0.17, -0.133, 0.72),
    "2,1": (0.29, 0.019, 0.76),
    "3,1": (0.71, 0.342, 0.95),
    "1,k": (0.44, -0.884, 0.91),
    "2,k": (0.62, 0.071, 0.93),
    "3,k": (0.91, 0.676, 0.99),
}
SETS, N, K = 400, 30, 5  # one shape, so that one program serves several tests
SOME = 60  # compared with the slow reference


def reference(x):
    """{form: (value, low, high)} in float64 by the printed formulas, with sums over single cells."""
    n, k = x.shape
    grand = np.mean(x)
    sums = np.zeros(4)
    for i in range(n):
        for j in range(k):
            row, column = np.mean(x[i]), np.mean(x[:, j])
            sums += [
                (row - grand) ** 2,
                (column - grand) ** 2,
                (x[i, j] - row - column + grand) ** 2,
                (x[i, j] - row) ** 2,
            ]
    bms, jms, ems, wms = sums / [n - 1, k - 1, (n - 1) * (k - 1), n * (k - 1)]

    def one_way(error, df):
        f = bms / error
        low, high = f / stats.f.ppf(0.975, n - 1, df), f * stats.f.ppf(0.975, df, n - 1)
        single = [(v - 1) / (v + k - 1) for v in (f, low, high)]
        return single, [1 - 1 / v for v in (f, low, high)]

    out = {}
    out["1"], out["1,k"] = one_way(wms, n * (k - 1))
    out["3,1"], out["3,k"] = one_way(ems, (n - 1) * (k - 1))
    value = (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n)
    f_j = jms / ems
    df = (k - 1) * (n - 1) * (k * value * f_j + n * (1 + (k - 1) * value) - k * value) ** 2
    df /= (n - 1) * k**2 * value**2 * f_j**2 + (n * (1 + (k - 1) * value) - k * value) ** 2
    df = max(df, k - 1)
    up, down = stats.f.ppf(0.975, n - 1, df), stats.f.ppf(0.975, df, n - 1)
    low = n * (bms - up * ems) / (up * (k * jms + (k * n - k - n) * ems) + n * bms)
    high = n * (down * bms - ems) / (k * jms + (k * n - k - n) * ems + n * down * bms)
    out["2,1"] = [value, low, high]
    out["2,k"] = [k * v / (1 + (k - 1) * v) if 1 + (k - 1) * v > 0 else -1e6 for v in out["2,1"]]
    return out


def assert_same(got, expected, tolerance=2e-4):
    """Near 1 compared as they are, far below 0 as 1/(1 − ICC), which is linear in the mean squares there."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    with np.errstate(divide="ignore"):
        error = np.minimum(np.abs(got - expected), np.abs(1 / (1 - got) - 1 / (1 - expected)))
    assert np.nanmax(error) < tolerance, (got, expected)


def two_way(rng, subject, rater, residual, shape=(SETS, N, K)):
    parts = rng.normal(size=(*shape[:-1], 1)), rng.normal(size=(*shape[:-2], 1, shape[-1])), rng.normal(size=shape)
    return np.array(subject) * parts[0] + np.array(rater) * parts[1] + np.array(residual) * parts[2]


def by_set(values):
    return np.array(values)[np.arange(SETS) % len(values), None, None]


def test_the_example_of_shrout_and_fleiss():
    out = reliability(SHROUT_FLEISS)
    for form, (value, low, high) in PRINTED.items():
        estimate = out["icc"][form]
        assert bool(estimate.ok)
        np.testing.assert_allclose(estimate.value, value, atol=0.005)
        np.testing.assert_allclose(estimate.ci95, [low, high], atol=0.005)
    # The printed analysis of variance: BMS 11.24, JMS 32.49, EMS 1.02, WMS 6.26.
    np.testing.assert_allclose(out["mean_squares"][:4], [11.24, 32.49, 1.02, 6.26], atol=0.005)


def test_every_form_and_interval_equals_the_printed_formulas(rng):
    """Also with raters that differ more than subjects do, and with subjects that differ less than chance would have."""
    x = two_way(rng, by_set([1, 0.3, 0.0]), by_set([0.2, 3.0, 0, 10, 0.5]), by_set([0.1, 1.0]))
    x[::7] -= 0.95 * x[::7].mean(axis=2, keepdims=True)  # Satterthwaite's degrees of freedom go to their bound
    x = x.astype(np.float32)
    out = reliability(x)
    expected = [reference(s.astype(np.float64)) for s in x[:SOME]]
    for form in ICC_FORMS:
        estimate = out["icc"][form]
        ok = np.array(estimate.ok)
        assert ok.all() or form == "2,k"
        use = ok[:SOME]
        value, low, high = np.array([e[form] for e in expected])[use].T
        assert_same(estimate.value[:SOME][use], value)
        assert_same(estimate.ci95[:SOME][use], np.stack([low, high], axis=1))
        ends = np.array(estimate.ci95)
        inside = (ends[:, 0] <= np.array(estimate.value)) & (np.array(estimate.value) <= ends[:, 1])
        assert inside.all()
        assert np.isfinite(ends).all()


@pytest.mark.parametrize("shape", [(2, 2), (2, 3)])
def test_two_subjects(rng, shape):
    x = two_way(rng, 1.0, 0.5, 0.7, (8, *shape)).astype(np.float32)
    out = reliability(x)
    for i, s in enumerate(x):
        for form, expected in reference(s.astype(np.float64)).items():
            estimate = jax.tree.map(lambda v, i=i: np.array(v[i]), out["icc"][form])
            if estimate.ok:
                assert_same([estimate.value, *estimate.ci95], expected, 5e-4)
            else:
                assert form == "2,k"
                assert expected[0] < -1e5


def test_intervals_cover_the_true_coefficient():
    rng = np.random.default_rng(11)  # fixed: the bounds below are statistical
    out = reliability(two_way(rng, 1.0, 0.7, 0.8))
    for form, rho, least in (("2,1", 1 / 2.13, 0.90), ("3,1", 1 / 1.64, 0.92)):  # the former approximate
        low, high = np.array(out["icc"][form].ci95).T
        assert least <= np.mean((low <= rho) & (rho <= high)) <= 0.98, form  # binomial SE .011
    nested = reliability(two_way(rng, 1.0, 0.0, 1.0))
    low, high = np.array(nested["icc"]["1"].ci95).T
    assert 0.92 <= np.mean((low <= 0.5) & (high >= 0.5)) <= 0.98


def test_mean_squares_and_components_equal_statsmodels(rng):
    n, k = 7, 4
    x = (two_way(rng, 1.0, 0.5, 0.7, (n, k)) + 50).astype(np.float32)
    frame = pandas.DataFrame(
        {"y": x.astype(np.float64).ravel(), "row": np.repeat(np.arange(n), k), "column": np.tile(np.arange(k), n)}
    )
    two = anova_lm(api.ols("y ~ C(row) + C(column)", frame).fit())["mean_sq"]
    one = anova_lm(api.ols("y ~ C(row)", frame).fit())["mean_sq"]
    msr, msc, mse = two["C(row)"], two["C(column)"], two["Residual"]
    squares = jax.jit(mean_squares)(x)
    np.testing.assert_allclose(squares[:4], [msr, msc, mse, one["Residual"]], rtol=1e-4)
    components = jax.jit(variance_components)(x)
    raw = np.array([(msr - mse) / k, (msc - mse) / n, mse])
    np.testing.assert_allclose(components.variance, np.maximum(raw, 0), atol=1e-4 * raw.max())
    np.testing.assert_allclose(components.share, np.maximum(raw, 0) / np.maximum(raw, 0).sum(), atol=1e-4)
    np.testing.assert_array_equal(components.cut, raw < 0)


def test_components_recover_planted_variances():
    rng = np.random.default_rng(5)  # fixed: the bounds below are statistical
    variance = reliability(two_way(rng, 2.0, 1.0, 0.5))["components"].variance
    np.testing.assert_allclose(np.mean(variance, axis=0), [4.0, 1.0, 0.25], rtol=0.12)  # SE of the rater part .035


def test_negative_components_are_cut_and_flagged():
    # Every subject has the same mean, and raters too: all of it is interaction.
    components = variance_components(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(components.variance, [0, 0, 1])
    np.testing.assert_allclose(components.share, [0, 0, 1])
    assert components.cut.tolist() == [True, True, False]
    assert bool(components.ok)


def test_hard_cases_in_two_by_two():
    """Constant; perfect agreement; a constant shift between raters; raters alone; interaction alone; a huge offset."""
    sets = np.array(
        [
            [[3.3, 3.3], [3.3, 3.3]],
            [[1, 1], [2, 2]],
            [[1, 3], [2, 4]],
            [[1, 3], [1, 3]],
            [[1, 0], [0, 1]],
            [[1e4, 1e4 + 1], [1e4 + 3, 1e4 + 5]],
            [[0, 0], [0, 0]],
            [[0.1 + 0.2, 0.3], [0.3, 0.3]],
        ]
    )
    out = reliability(sets)
    leaves = jax.tree.leaves(out)
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in leaves)
    value = {form: np.array(out["icc"][form].value) for form in ICC_FORMS}
    ok = {form: np.array(out["icc"][form].ok) for form in ICC_FORMS}
    for constant in (0, 6, 7):
        assert not any(ok[form][constant] for form in ICC_FORMS)
        assert not any(value[form][constant] for form in ICC_FORMS)
        assert not bool(out["components"].ok[constant])
        np.testing.assert_array_equal(out["icc"]["1"].ci95[constant], [-1, 1])
    assert all(ok[form][1] and value[form][1] == 1 for form in ICC_FORMS)
    np.testing.assert_allclose(out["icc"]["2,1"].ci95[1], [1, 1])
    assert (value["3,1"][2], value["3,k"][2]) == (1, 1)
    np.testing.assert_allclose(value["2,1"][2], 1 / 5, rtol=1e-6)  # MSR 1, MSC 4, MSE 0: 1/(1 + 4)
    np.testing.assert_allclose(value["1"][2], -1 / 3, rtol=1e-6)  # MSW 2: (1 − 2)/(1 + 2)
    assert ok["1"][3]
    assert value["1"][3] == -1  # subjects do not differ at all: −1/(k − 1)
    assert not ok["3,1"][3]  # nothing is left to be consistent about
    assert ok["1"][4]
    assert value["1"][4] == -1
    assert not ok["1,k"][4]  # the mean of a subject's ratings has no variance
    assert not ok["2,1"][4]
    # MSR 12.25, MSC 2.25, MSE .25.
    np.testing.assert_allclose(value["3,1"][5], 12 / 12.5, rtol=1e-3)
    np.testing.assert_allclose(value["2,1"][5], 12 / 14.5, rtol=1e-3)


def test_one_form_alone_under_vmap_and_jit_is_the_same(rng):
    sets = np.stack([SHROUT_FLEISS, SHROUT_FLEISS[::-1] * 3.0 + 7, rng.normal(size=(6, 4))]).astype(np.float32)
    out = jax.jit(jax.vmap(lambda x: icc(x, "3,1")))(sets)
    np.testing.assert_array_equal(out.ok, True)
    np.testing.assert_allclose(out.value[0], 0.7148, atol=1e-4)
    np.testing.assert_allclose(out.value[1], out.value[0], atol=1e-5)  # order and units do not matter
    np.testing.assert_allclose(out.ci95[1], out.ci95[0], atol=1e-5)
    assert out.ci95.shape == (3, 2)


@pytest.mark.parametrize("tail", [0.025, 0.05])
def test_quantiles_of_f_equal_scipy(rng, tail):
    df1, df2 = np.concatenate([[[1, 1], [1, 300]], np.exp(rng.uniform(0, np.log(300), (98, 2)))]).T.astype(np.float32)
    got = jax.jit(f_quantile, static_argnames="tail")(df1, df2, tail=tail)
    np.testing.assert_allclose(got, stats.f.isf(tail, df1.astype(float), df2.astype(float)), rtol=4e-4)


def test_mistakes_are_clear_errors():
    with pytest.raises(UserError, match="two or more of each"):
        reliability(np.zeros((7, 30, 1)))
    with pytest.raises(UserError, match="two or more of each"):
        icc(jnp.zeros((1, 5)))
    with pytest.raises(UserError, match="subjects, raters"):
        reliability(np.zeros(5))
    with pytest.raises(UserError, match="ratings has 1 NaN or inf"):
        reliability(np.where(np.arange(10).reshape(5, 2) == 3, np.nan, 0.0))
    with pytest.raises(UserError, match="unknown form of ICC '4'"):
        icc(jnp.zeros((3, 2)), "4")
