"""The published numbers of two models (method, section 10), read in place; skipped where they are not beside the
repository."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax.probes import behavioural_r, cosine_table, geometry, reliability

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "published"
AXES = (
    "warm_cold",
    "patient_irritated",
    "confident_cautious",
    "proactive_reluctant",
    "empathetic_analytical",
    "formal_casual",
    "verbose_concise",
)
BUDGET = 384

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the published numbers are not beside the repository")


def read(model, name):
    return json.loads((FOLDER / model / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("model", "share", "dimension", "overlap", "with_cut", "share_left", "dimension_left"),
    [("qwen_7b", 70.0, 1.91, 0.396, 0.66, 63.7, 2.19), ("llama_8b", 59.5, 2.41, 0.293, 0.68, 45.5, 3.10)],
)
def test_geometry_of_the_profiles(model, share, dimension, overlap, with_cut, share_left, dimension_left):
    """By the covariance of the scores as they are, and with the token count and the cut-off regressed out."""
    profile = read(model, "profile")
    scores = np.array([profile["axes"][axis] for axis in AXES]).T
    tokens = np.array(profile["n_tokens"])
    out = geometry(scores, np.column_stack([tokens, tokens >= BUDGET]), n_boot=200)
    np.testing.assert_allclose(100 * out["pc1_share"], share, atol=0.051)
    np.testing.assert_allclose(out["effective_dimension"], dimension, atol=0.0051)
    np.testing.assert_allclose(out["behavioural_r"], overlap, atol=0.00051)
    np.testing.assert_allclose(behavioural_r(jnp.asarray(scores)).value, out["behavioural_r"], atol=1e-6)
    np.testing.assert_allclose(abs(out["pc1_covariate_r"][1]), with_cut, atol=0.0051)
    np.testing.assert_allclose(100 * out["residual"]["pc1_share"], share_left, atol=0.051)
    np.testing.assert_allclose(out["residual"]["effective_dimension"], dimension_left, atol=0.0051)


@pytest.mark.parametrize(("model", "agreement"), [("qwen_7b", 0.989), ("llama_8b", 0.908)])
def test_replication(model, agreement):
    """Subjects are the scenarios, each with the reading of its last turn; raters are the seeds."""
    runs = read(model, "replication")["runs"]
    scenarios = [[run["scenarios"][name]["mood_values"][-1] for run in runs] for name in runs[0]["scenarios"]]
    ratings = np.array([[[turn[axis] for turn in seeds] for seeds in scenarios] for axis in scenarios[0][0]])
    assert ratings.shape == (3, 9, 5)
    out = reliability(ratings)
    np.testing.assert_allclose(np.mean(out["icc"]["2,1"].value), agreement, atol=0.00051)
    assert np.array(out["icc"]["2,1"].ok).all()


@pytest.mark.parametrize(("model", "mean"), [("qwen_7b", 0.755), ("llama_8b", 0.789)])
def test_cosines_of_the_three_calibration_sets(model, mean):
    sets = []
    for name in "ABC":
        with np.load(FOLDER / model / f"axes_set_{name}.npz", allow_pickle=False) as file:
            sets.append(np.stack([file[axis] for axis in AXES]))
    table = jax.vmap(cosine_table)(jnp.stack(sets, axis=1)).table  # [axes, sets, sets]
    upper = np.array(table)[:, *np.triu_indices(3, 1)]
    np.testing.assert_allclose(np.mean(upper), mean, atol=0.00051)
