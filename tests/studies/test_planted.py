"""The instrument against a known truth: the embedded model, whose temperament and dead axis were planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mood_jax as mj
from mood_jax.organisms.export import organism_folder
from mood_jax.organisms.spec import load_spec
from mood_jax.studies import find
from mood_jax.studies.config import embedded_folder

SHIPPED = Path(__file__).parents[2] / "calibrations"
TOKENS = {"max_new_tokens": 96, "batch_size": 70}


@pytest.fixture(scope="module")
def model():
    return mj.load_model(str(embedded_folder()), dtype="float32")


@pytest.fixture(scope="module")
def truth() -> dict:
    whole = json.loads((embedded_folder() / "realised.json").read_text(encoding="utf-8"))
    return whole["identities"]["default"]


@pytest.fixture(scope="module")
def calibration(model):
    return mj.calibrate(model, seed=1, **TOKENS)


def dead_axes(truth: dict) -> set[str]:
    return {axis for axis, row in truth["instructed"]["production"].items() if abs(row["gap"]) < 0.2}


def test_the_dead_axis_is_found_and_the_others_are_real(calibration, truth):
    dead = dead_axes(truth)
    assert len(dead) == 1
    verdicts = {a.id: e["verdict"] for a, e in zip(calibration.axes, calibration.evidence, strict=True)}
    assert {axis for axis, v in verdicts.items() if v == "dead"} == dead
    assert {axis for axis, v in verdicts.items() if v == "real"} == set(verdicts) - dead


def test_what_shows_is_not_there_without_training_nor_on_some_questions_alone(calibration):
    """Random weights tell the instructions apart, whatever they say, but hardly the responses to them."""
    for block in calibration.evidence:
        assert block["random_in_context"]["auc"] > 0.95
        if block["verdict"] == "real":
            assert block["random_re_read"]["auc"] < block["re_read"]["auc"] - 0.15
            assert block["cross_set_cosine"]["A-eval"] > 0.7


def test_planted_signs_and_amounts_come_out(model, calibration, truth):
    profile = mj.profile(model, calibration, seed=1, samples=3, scale="pole", **TOKENS)
    axes = [a.axis.id for a in profile.axes if a.axis.id not in dead_axes(truth)]
    planted = np.asarray([truth["uninstructed"][a]["planted"] for a in axes])
    realised = np.asarray([truth["uninstructed"][a]["realised"] for a in axes])
    measured = np.asarray([profile[a].mean for a in axes])
    print(dict(zip(axes, zip(planted, realised, measured, strict=True), strict=True)))
    assert (np.sign(measured) == np.sign(planted)).all()
    assert np.corrcoef(measured, realised)[0, 1] >= 0.85
    for axis, amount in zip(axes, planted, strict=True):
        low, high = profile[axis].ci95
        assert abs(amount) < 0.5 or low * high > 0, f"{axis}: {low:.2f} … {high:.2f} does not tell the sign"


def test_the_shipped_calibration_is_this_models(model, calibration, tmp_path):
    """It is found by fingerprint, and points where a calibration with another seed points (.92 to .97 when written)."""
    folder, shipped = find.calibration(model, "", tmp_path, SHIPPED)
    assert folder.parent == SHIPPED
    for k, axis in enumerate(shipped.axes):
        if shipped.evidence[k]["verdict"] == "real":
            assert shipped.directions[k] @ calibration.directions[calibration.index(axis.id)] > 0.85


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "yi", "deepseek", "gemma2"])
def test_every_organism_finds_its_shipped_calibration(name, tmp_path):
    found = mj.load_model(str(organism_folder(name)), dtype="float32")
    folder, shipped = find.calibration(found, "", tmp_path, SHIPPED)
    assert folder == SHIPPED / name
    spec = load_spec(organism_folder(name) / "spec.yaml")
    assert all(spec.identities[0].is_obedient(a) for a in range(7))
    assert [block["verdict"] for block in shipped.evidence] == ["real"] * 7
