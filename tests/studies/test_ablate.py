"""The choice of a readout on states whose best readout is planted, and on noise. No model: a store in memory.

What is chosen from random data holds for most seeds and not for all: fixed seeds.
"""

import json

import numpy as np
import pytest

from mood_jax import readout as readouts
from mood_jax.artifacts import Selected
from mood_jax.errors import UserError
from mood_jax.probes.ranking import ranking
from mood_jax.reports import ablation as report
from mood_jax.studies import ablate, finalists
from mood_jax.studies.selection import best
from mood_jax.studies.store import StateStore
from tests.reports.test_tensorboard import read

pytestmark = pytest.mark.usefixtures("unoptimised")

GRID = readouts.Grid(("embed", *(f"resid_post@{k}" for k in range(4)), "final_norm"), ("mean", "decay_0.9"))
AXES = ("warm_cold", "formal_casual")
D, QUESTIONS, EVALUATION = 12, 14, 6
IDENTITY = {"model": {"name": "tiny", "fingerprint": "f" * 64}}


def store_of(seed: int, shift: float, site: str = "resid_post@1", reducer: str = "mean") -> StateStore:
    """Two axes of 14 + 6 questions; the poles differ by `shift` SD along a direction of one site and one reducer."""
    rng = np.random.default_rng(seed)
    records = []
    for axis in AXES:
        for set_, count in (("A", QUESTIONS), ("eval", EVALUATION)):
            for q in range(count):
                for sign in (1, -1):
                    one = {"id": f"{axis}/{set_}/{q}/{sign}", "axis": axis, "set": set_, "sign": sign, "text": "x"}
                    records.append(one | {"question": f"{axis}/{set_}/{q}", "n_tokens": 5, "finish": "eos"})
    records[3]["n_tokens"] = 0  # an empty response is left out
    shape = (len(records), len(GRID.sites), len(GRID.reducers), D)
    sign = np.array([r["sign"] for r in records])
    states = {}
    for condition in ("in_context", "re_read"):
        h = rng.normal(size=shape) + 3 * rng.normal(size=(1, *shape[1:]))
        h *= np.array([1, 2, 4, 8, 16, 1.0])[None, :, None, None]
        s, r = GRID.sites.index(site), GRID.reducers.index(reducer)
        scale = [1, 2, 4, 8, 16, 1.0][s]
        for axis in AXES:
            v = rng.normal(size=D)
            rows = np.array([rec["axis"] == axis for rec in records])
            h[rows, s, r] += 0.5 * shift * scale * sign[rows, None] * v / np.linalg.norm(v)
        h[3] = 0
        states[condition] = h.astype(np.float32)
    place = np.stack([np.zeros(len(records), int), np.arange(len(records))], axis=1)
    return StateStore(records, ("in_context", "re_read"), GRID, IDENTITY, (states,), place)


@pytest.fixture(scope="module")
def planted():
    return ablate.run(store_of(0, 3.5), AXES, estimators=("mean_difference", "whitened"), label=None)


@pytest.fixture(scope="module")
def noise():
    return ablate.run(store_of(1, 0.0), AXES, estimators=("mean_difference", "whitened"), label=None)


def test_the_planted_readout_is_found_and_recommended(planted):
    assert planted.winner.readout.name == "resid_post@1/mean"
    assert planted.recommended == planted.winner
    nested = planted.nested
    assert nested["auc"] > 0.9
    assert nested["difference"]["ci95"][0] > 0
    assert nested["difference"]["difference"] == pytest.approx(nested["auc"] - nested["production_auc"], abs=1e-6)
    found = planted.evaluation
    for trial in finalists.TRIALS:
        if trial != "transfer":  # the two conditions were planted along different directions
            assert found["recommended"][trial]["auc"] > max(0.9, found["production"][trial]["auc"])
    sizes = planted.scaling["recommended"]
    assert list(sizes) == ["5", "10"]
    assert sizes["10"]["auc"] > sizes["5"]["auc"] > 0.7
    assert sizes["10"]["cosine"] > sizes["5"]["cosine"]
    assert all(v["gap"] == pytest.approx(v["in_sample_accuracy"] - v["accuracy"]) for v in sizes.values())


def test_on_noise_the_maximum_is_high_the_nested_score_is_not_and_production_stays(noise):
    assert noise.nested["in_fold_auc"] > 0.58
    assert abs(noise.nested["auc"] - 0.5) < 0.12
    assert noise.recommended.readout.name == ablate.PRODUCTION
    assert noise.recommended.estimator == "mean_difference"
    assert noise.evaluation["winner"]["candidate"] == noise.nested["winner"]
    for trial in finalists.TRIALS:
        assert noise.evaluation["winner"][trial]["difference"]["ci95"][0] < 0


def test_production_is_the_preset_and_candidates_are_counted(planted):
    last4 = readouts.preset("last4", 4)
    made = next(c for c in planted.candidates if c.readout.name == ablate.PRODUCTION)
    assert (made.readout.sites, made.readout.reducer, made.readout.span, made.readout.normalise) == (
        last4.sites, last4.reducer, last4.span, last4.normalise
    )  # fmt: skip
    np.testing.assert_allclose(made.readout.weights, last4.weights)
    # 6 sites, 2, 3 and 4 equal ones, three weightings of four; the mixes of 6 and 8 need deeper models
    assert len(planted.candidates) == 2 * (6 + 3 + 3) * 2
    assert len(readouts_32()) == 5 * (34 + 8)


def readouts_32():
    grid = readouts.grid(32)
    return ablate.readouts_of(grid.sites, grid.reducers)


def test_what_the_evaluation_questions_hold_changes_no_choice():
    store = store_of(0, 3.5)
    store.units[0]["re_read"][[k for k, r in enumerate(store.records) if r["set"] == "eval"]] *= -1
    changed = ablate.run(store, AXES, estimators=("mean_difference", "whitened"), label=None)
    again = ablate.run(store_of(0, 3.5), AXES, estimators=("mean_difference", "whitened"), label=None)
    assert changed.rows == again.rows
    assert changed.nested == again.nested
    assert changed.evaluation != again.evaluation


def test_best_goes_by_auc_then_dprime():
    auc = np.array([[0.8, 0.9], [0.9, 0.8], [0.7, 0.7]])
    assert best(auc, np.array([[1.0, 1.0], [2.0, 1.0], [9.0, 9.0]])) == 1
    assert best(auc, np.array([[3.0, 1.0], [2.0, 1.0], [9.0, 9.0]])) == 0


def test_files_report_and_log(planted, noise, tmp_path):
    text = report.report(planted)
    assert "recommended: resid_post@1/mean by" in text
    assert "production (last4_production/decay_0.9 by mean_difference): rank" in text
    assert "maximum of 48" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "nothing is better than production beyond doubt" in report.report(noise)
    report.save(tmp_path, planted, IDENTITY)
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert record["ranking"][0] == f"{ranking(planted.rows)[0].name} by {ranking(planted.rows)[0].estimator}"
    assert len(record["candidates"]) == len(planted.rows)
    assert record["nested"]["recommended"] == planted.recommended.name
    selected = Selected.load(tmp_path / "selected.json")
    assert (selected.readout, selected.estimator) == (planted.recommended.readout, planted.recommended.estimator)
    assert selected.nested["auc"] == pytest.approx(planted.nested["auc"])
    folder = report.tensorboard(tmp_path / "tb", planted, GRID.sites, text)
    tags = read(folder).Tags()
    assert "auc_image/mean_difference/mean" in tags["images"]
    assert {"auc/warm_cold", "auc/formal_casual"} <= set(tags["scalars"])
    assert "held_out/formal_casual/negative" in tags["histograms"]


def test_the_image_is_white_at_chance_and_blue_at_one():
    image = report.heat(np.array([[0.5, 1.0], [0.0, 0.75]]))
    assert image.shape == (32, 32, 3)
    assert tuple(image[0, 0]) == (255, 255, 255)
    assert tuple(image[0, -1]) == (8, 48, 107)
    assert tuple(image[-1, 0]) == (165, 15, 21)


def test_what_cannot_be_analysed_is_said_in_one_line():
    store = store_of(0, 0.0)
    with pytest.raises(UserError, match="no condition 'nowhere'"):
        ablate.run(store, AXES, condition="nowhere", label=None)
    with pytest.raises(UserError, match="unknown estimator 'lda'"):
        ablate.run(store, AXES, estimators=("lda",), label=None)
    few = StateStore(store.records[:4], store.conditions, GRID, IDENTITY, store.units, store.place[:4])
    with pytest.raises(UserError, match="3 questions an axis"):
        ablate.run(few, AXES[:1], estimators=("mean_difference",), label=None)
