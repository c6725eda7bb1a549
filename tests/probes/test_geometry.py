import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from mood_jax.errors import UserError
from mood_jax.probes import (
    behavioural_r,
    bootstrap_indices,
    correlation_table,
    cosine_floor,
    cosine_table,
    effective_dimension,
    geo_cos,
    geometry,
    participation_ratio,
    pca,
)
from mood_jax.probes.geometry import _described


def spectrum(rng, n, d, scales):
    """Centred samples [n, d] with exactly the singular values `scales`."""
    left = rng.normal(size=(n, len(scales)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.normal(size=(d, len(scales))))[0]
    return (left * scales) @ right.T


def eigenvalues(x):
    return np.linalg.eigvalsh(np.cov(x.T.astype(np.float64)))[::-1]


def ratio(values):
    return values.sum() ** 2 / (values**2).sum()


@pytest.mark.parametrize(("n", "d", "rank"), [(30, 7, 7), (12, 64, 11), (2, 5, 1), (9, 9, 3), (8, 1, 1)])
@pytest.mark.parametrize("offset", [0, 100])
def test_pca_equals_sklearn(rng, n, d, rank, offset):
    scales = 10 * 0.7 ** np.arange(rank)  # apart, so that every component is defined
    x = (spectrum(rng, n, d, scales) + offset * rng.normal(size=d)).astype(np.float32)
    out, expected = jax.jit(pca)(x), PCA().fit(x.astype(np.float64))
    np.testing.assert_allclose(out.variances[:rank], expected.explained_variance_[:rank], rtol=1e-3)
    np.testing.assert_allclose(out.shares[:rank], expected.explained_variance_ratio_[:rank], atol=1e-4)
    sizes = np.linalg.norm(np.array(out.components), axis=1)
    np.testing.assert_allclose(sizes[:rank], 1, atol=1e-4)
    assert (sizes[rank:] == 0).all()
    assert (np.array(out.shares[rank:]) == 0).all()
    components = np.array(out.components)[:rank]
    cosines = np.abs(np.sum(components * np.asarray(expected.components_)[:rank], axis=1))
    assert cosines.min() > 0.9999
    # The convention of scikit-learn, read from the output itself: which entry is largest may be a close call.
    assert (components[np.arange(rank), np.abs(components).argmax(axis=1)] > 0).all()
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(out.scores[:, :rank], centred @ components.T, atol=1e-2)
    assert bool(out.ok)


def test_pca_of_samples_that_repeat_and_of_constant_columns(rng):
    x = np.repeat(rng.normal(size=(5, 6)), 3, axis=0).astype(np.float32)
    x[:, 2], x[:, 4] = 1.1, x[:, 0]
    out = jax.jit(pca)(x)
    values = np.maximum(eigenvalues(x), 0)
    np.testing.assert_allclose(out.shares, values / values.sum(), atol=1e-5)
    assert (np.array(out.components)[:, 2] == 0).all()
    np.testing.assert_allclose(jax.jit(effective_dimension)(x), ratio(values), rtol=1e-4)


def test_nothing_varies():
    out = jax.jit(pca)(jnp.full((4, 3), 0.7))
    assert not bool(out.ok)
    assert all((np.asarray(leaf, float) == 0).all() for leaf in out)
    assert float(effective_dimension(jnp.full((4, 3), 0.7))) == 0
    assert float(effective_dimension(jnp.ones((1, 3)))) == 0


@pytest.mark.parametrize(("n", "d"), [(30, 7), (10, 400), (2, 3)])
def test_effective_dimension_equals_the_sum_over_eigenvalues(rng, n, d):
    x = rng.normal(size=(n, d)) * (1 + np.arange(d)) ** -0.5 + 20 * rng.normal(size=d)
    values = eigenvalues(x.astype(np.float32))
    np.testing.assert_allclose(jax.jit(effective_dimension)(x.astype(np.float32)), ratio(values), rtol=1e-3)


def test_participation_ratio_of_known_spectra():
    assert float(participation_ratio(jnp.eye(5) * 1e-25)) == pytest.approx(5)
    assert float(participation_ratio(jnp.ones((5, 5)))) == pytest.approx(1)
    assert float(participation_ratio(jnp.diag(jnp.array([3.0, 1.0, 0.0])))) == pytest.approx(16 / 10)
    assert float(participation_ratio(jnp.zeros((5, 5)))) == 0


def test_cosines_equal_a_loop(rng):
    vectors = rng.normal(size=(6, 40)) * 10.0 ** rng.integers(-12, 12, (6, 1))
    vectors[3] = 0
    vectors[5] = -2 * vectors[0]
    out = jax.jit(cosine_table)(vectors.astype(np.float32))
    off = []
    for i in range(6):
        for j in range(6):
            size = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
            cosine = vectors[i] @ vectors[j] / size if size else 0
            np.testing.assert_allclose(out.table[i, j], cosine, atol=1e-5)
            off += [abs(cosine)] if i < j and size > 0 else []
    assert out.ok.tolist() == [True, True, True, False, True, True]
    overlap = jax.jit(geo_cos)(vectors.astype(np.float32))
    np.testing.assert_allclose(overlap.value, np.mean(off), rtol=1e-4)
    np.testing.assert_allclose(overlap.floor, np.sqrt(2 / (np.pi * 40)), rtol=1e-6)
    assert bool(overlap.ok)
    alone = geo_cos(jnp.zeros((3, 4)).at[1, 2].set(1.0))
    assert not bool(alone.ok)
    assert float(alone.value) == 0


def test_random_directions_and_unrelated_scores_lie_at_the_floor():
    rng = np.random.default_rng(3)  # fixed: the bounds below are statistical
    vectors = rng.normal(size=(200, 512)).astype(np.float32)
    np.testing.assert_allclose(geo_cos(jnp.asarray(vectors)).value, cosine_floor(512), rtol=0.02)  # SE .5 %
    out = jax.jit(behavioural_r)(rng.normal(size=(30, 200)).astype(np.float32))
    np.testing.assert_allclose(out.value, out.floor, rtol=0.04)  # 1/(4·29) and SE .5 %


def residuals(x, covariates, rows=slice(None)):
    """Least squares with intercept on the rows; constant columns, before or after, become 0."""
    x, design = x[rows], np.column_stack([np.ones(len(x)), covariates])[rows]
    centred = x - x.mean(axis=0)
    left = x - design @ np.linalg.lstsq(design, x, rcond=1e-10)[0]
    keep = (np.abs(centred).max(axis=0) > 1e-9) & (np.abs(left).max(axis=0) > 1e-3 * np.abs(centred).max(axis=0))
    return left[:, keep]


def described(left):
    values = eigenvalues(left) if left.shape[1] > 1 else np.array([left.var()])
    table = np.abs(np.corrcoef(left.T))
    return np.array([values[0] / values.sum(), ratio(values), table[np.triu_indices(len(table), 1)].mean()])


@pytest.fixture
def profile(rng):
    """Scores [30, 7] that share length and cut-off; one axis constant, one differing once, one length."""
    tokens = rng.integers(200, 384, 30).astype(float)
    tokens[rng.permutation(30)[:11]] = 384
    covariates = np.column_stack([tokens, tokens == 384])
    scores = rng.normal(size=(30, 7)) @ rng.normal(size=(7, 7)) + 0.01 * tokens[:, None] * rng.normal(size=7)
    scores[:, 1] = 0.3
    scores[:, 2] = np.where(np.arange(30) == rng.integers(30), 2.0, -1.0)
    scores[:, 5] = 0.25 * tokens - 3 * covariates[:, 1]
    return scores.astype(np.float32), covariates


def test_behavioural_r_equals_numpy(profile):
    scores, covariates = profile
    for z in (np.zeros((30, 0)), covariates):
        out = jax.jit(behavioural_r)(scores, z.astype(np.float32))
        expected = described(residuals(scores.astype(np.float64), z))[2]
        np.testing.assert_allclose(out.value, expected, atol=1e-4)
        np.testing.assert_allclose(out.floor, np.sqrt(2 / np.pi / (29 - z.shape[1])), rtol=1e-6)
    table, ok = jax.jit(correlation_table)(scores)
    assert ok.tolist() == [True, False, *[True] * 5]
    varying = np.array(ok)
    np.testing.assert_allclose(
        np.array(table)[varying][:, varying], np.corrcoef(scores[:, varying].T.astype(np.float64)), atol=1e-4
    )
    assert (np.array(table)[1] == 0).all()
    one = jax.jit(behavioural_r)(scores[:, [1, 2, 1, 1, 1, 1, 1]])
    assert not bool(one.ok)
    assert float(one.value) == 0


def test_geometry_and_its_intervals_equal_a_loop_over_the_same_draws(profile):
    scores, covariates = profile
    out = geometry(scores, covariates, n_boot=300, seed=7)
    indices = np.asarray(bootstrap_indices(jax.random.key(7), 300, 30))
    x = scores.astype(np.float64)
    for got, z in ((out, np.zeros((30, 0))), (out["residual"], covariates)):
        expected = described(residuals(x, z))
        draws = np.array([described(residuals(x, z, rows)) for rows in indices])
        names = ("pc1_share", "effective_dimension", "behavioural_r")
        for i, (name, low, high) in enumerate(zip(names, (0, 1, -1), (1, 7, 1), strict=True)):
            np.testing.assert_allclose(got[name], expected[i], rtol=1e-3)

            def to(v, a=low, b=high):
                return np.log((v - a) / (b - v))

            reach = stats.t.ppf(0.975, 29) * np.sqrt(30 / 29) * to(draws[:, i]).std()
            ends = low + (high - low) / (1 + np.exp(-to(expected[i]) - reach * np.array([-1, 1])))
            ends = np.maximum(ends, (1 / 7, 1, 0)[i])
            np.testing.assert_allclose(got[f"{name}_ci95"], ends, atol=5e-3)
        np.testing.assert_allclose(got["behavioural_floor"], np.sqrt(2 / np.pi / (29 - z.shape[1])), rtol=1e-5)
        assert bool(got["ok"])
        assert bool(got["behavioural_ok"])
    scores_of_first = x - x.mean(axis=0)
    scores_of_first = scores_of_first @ np.array(out["components"][0])
    np.testing.assert_allclose(out["pc1_scores"], scores_of_first, atol=1e-3)
    expected = [np.corrcoef(scores_of_first, c)[0, 1] for c in covariates.T]
    np.testing.assert_allclose(out["pc1_covariate_r"], expected, atol=1e-4)


@pytest.mark.parametrize(
    "scores", [np.full((5, 3), 0.1), np.eye(5)[:, :1] * [1, 0, 0], np.eye(3)[:2], np.zeros((2, 3))]
)
def test_degenerate_scores_give_finite_numbers(scores):
    out = geometry(scores, np.arange(len(scores))[:, None], n_boot=50)
    assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(out))
    varies = (scores != scores[0]).any()
    assert bool(out["ok"]) == varies
    assert bool(out["behavioural_ok"]) == ((scores != scores[0]).any(axis=0).sum() > 1)
    for name in ("pc1_share", "effective_dimension"):
        assert float(out[f"{name}_ci95"][0]) <= float(out[name]) <= float(out[f"{name}_ci95"][1])
        assert float(out[name]) == pytest.approx(float(varies))
    assert not bool(out["residual"]["ok"]) or len(scores) > 2


POPULATIONS = {
    "equal correlations of .4": 0.4 * np.ones((7, 7)) + 0.6 * np.eye(7),
    # Unequal variances, a few strong correlations and many near 0: as in measured profiles.
    "uneven": np.diag([1.0, 0.3, 0.1, 0.1, 0.1, 0.05, 0.05])
    + np.outer([0.8, -0.4, 0.3, 0.1, 0, 0, 0], [0.8, -0.4, 0.3, 0.1, 0, 0, 0]),
}


@jax.jit
def intervals(sets, key):
    none = jnp.zeros((sets.shape[1], 0))
    return jax.lax.map(lambda s: _described(s[0], none, s[1], 0, n_boot=200), (sets, jax.random.split(key, len(sets))))


@pytest.mark.parametrize("population", POPULATIONS)
def test_intervals_cover_what_thirty_questions_give_on_average(population):
    rng = np.random.default_rng(2)  # fixed: the bounds below are statistical
    covariance = POPULATIONS[population]
    sets = rng.multivariate_normal(np.zeros(7), covariance, (400, 30)).astype(np.float32)
    out = intervals(sets, jax.random.key(0))
    for name in ("pc1_share", "effective_dimension", "behavioural_r"):
        low, high = np.array(out[f"{name}_ci95"]).T
        expected = np.mean(out[name])
        covered = np.mean((low <= expected) & (expected <= high))
        assert 0.87 <= covered <= 0.995, (name, covered)  # binomial SE .011


def test_mistakes_are_clear_errors():
    with pytest.raises(UserError, match="two questions or more"):
        geometry(np.zeros((1, 7)))
    with pytest.raises(UserError, match="covariates has 29 rows and needs 30"):
        geometry(np.zeros((30, 7)), np.zeros((29, 2)))
    with pytest.raises(UserError, match="210 NaN or inf"):
        geometry(np.full((30, 7), np.nan))
