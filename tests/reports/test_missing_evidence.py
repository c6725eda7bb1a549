"""Axes without evidence, or with part of it: the reports print "–" and go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mood_jax.artifacts import AxisNames, AxisProfile, Profile
from mood_jax.reports.runs import profile_run
from mood_jax.reports.study import evidence_scalars
from mood_jax.reports.tables import calibration_table, profile_table, reasons
from tests.reports.test_tensorboard import read
from tests.studies.planted import made_calibration

WHOLE = {
    "verdict": "dead",
    "reason": "not above chance",
    "re_read": {"auc": 0.61, "auc_ci95": [0.5, 0.72], "dprime": 0.4},
    "in_context": {"auc": 0.93},
    "length_only": {"auc": 0.57},
    "cutoff_share": {"positive": 0.25, "negative": 0.0},
    "permutation": {"p_holm": 0.0312},
}


def profile(evidence: list[dict], scale: str, scales: tuple[str, ...]) -> Profile:
    axes = []
    for k, e in enumerate(evidence):
        scores = {name: np.linspace(-1, 1, 5) for name in ("raw", *scales)}
        summary = {name: {"mean": 0.1, "sd": 0.5, "ci95": [-0.2, 0.4], "clip_rate": 0.0} for name in scales}
        axes.append(AxisProfile(AxisNames(f"a{k}_b", "a", "b"), scale, scores, summary, 0.3, 0.6, e))
    return Profile(tuple(axes), ("q",) * 5, (3,) * 5, 0.0, (), {})


def cells(text: str) -> str:
    """The last row with single spaces."""
    return " ".join(text.splitlines()[-1].split())


def test_a_profile_of_imported_axes():
    found = profile([{}], "article", ("article",))
    text = profile_table(found)
    assert cells(text) == "a/b +0.10 -0.20 … +0.40 – 0.6000 – – – –"
    assert reasons(["a0_b"], [{}]) == ""


def test_what_is_there_is_shown_beside_what_is_not():
    scales = ("iqr", "article", "pole")
    assert cells(profile_table(profile([{}, WHOLE], "iqr", scales))) == (
        "a/b +0.10 -0.20 … +0.40 +0.10 0.6000 0.61 0.50 … 0.72 0.57 dead"
    )
    part = {k: v for k, v in WHOLE.items() if k not in ("length_only", "in_context")}
    assert cells(profile_table(profile([part], "pole", scales))).endswith(" 0.50 … 0.72 – dead")
    assert reasons(["a0_b", "a1_b"], [{}, WHOLE]) == "  a1_b: not above chance"


def test_a_calibration_of_imported_axes():
    made = made_calibration(np.random.default_rng(0))
    assert cells(calibration_table(replace(made, evidence=({}, {})))) == "formal/casual – – – – – – – –"
    assert cells(calibration_table(replace(made, evidence=({}, WHOLE)))) == (
        "formal/casual 0.93 0.61 0.50 … 0.72 0.40 0.57 25% / 0% 0.0312 dead"
    )


def test_tensorboard_without_evidence(tmp_path):
    assert evidence_scalars({}) == {}
    assert evidence_scalars({"permutation": {"p": 0.1, "p_holm": 0.2}}) == {
        "permutation_p": 0.1,
        "permutation_p_holm": 0.2,
    }
    profile_run(tmp_path, profile([{}], "article", ("article",)), "a table")
    (event,) = read(tmp_path / "profile").Scalars("a0_b/profile_mean")
    assert event.value == pytest.approx(0.1)
