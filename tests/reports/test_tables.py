"""Planted beside measured, and what is said where length may explain a number."""

from __future__ import annotations

from dataclasses import replace

from mood_jax.artifacts import AxisNames, AxisProfile, Profile
from mood_jax.organisms.export import SHIPPED, planted_truth
from mood_jax.organisms.grammar import AXES
from mood_jax.reports.tables import length_warnings, planted_table

LONGER = {"length_only": {"auc": 0.91, "p_holm": 0.004}, "length_residualised": {"auc": 0.55}}
EVEN = {"length_only": {"auc": 0.52, "p_holm": 0.8}, "length_residualised": {"auc": 0.9}}


def test_length_is_named_where_it_may_explain_and_nowhere_else():
    moved, still = {"r": -0.62, "ci95": [-0.8, -0.3], "p_holm": 0.01}, {"r": 0.1, "ci95": [-0.3, 0.5], "p_holm": 1.0}
    assert length_warnings(["a", "b"], [EVEN, EVEN], [still, still]) == ""
    assert length_warnings(["a", "b"], [LONGER, EVEN]) == (
        "  length: a: the poles differ in length (token count alone: AUC 0.91, p 0.004); 0.55 with length taken out"
    )
    assert length_warnings(["a", "b"], [EVEN, EVEN], [still, moved]) == (
        "  length: b: the score moves with the number of tokens, rank r -0.62 [-0.80, -0.30], p 0.01"
    )
    assert length_warnings(["a"], [EVEN], [moved | {"least": 0.1}]).endswith("p 0.01 of ±0.1 or less")
    assert length_warnings(["a"], [{}], [{}]) == ""  # imported axes, and profiles of earlier versions


def test_planted_realised_and_measured_of_the_shipped_organism_stand_side_by_side():
    found = planted_truth(SHIPPED)
    assert found is not None
    identity, truth = found
    summary = {"re_read": {"mean": 0.31, "sd": 0.5, "ci95": [0.2, 0.4], "clip_rate": 0.0}}
    axes = []
    for axis in AXES:
        names = AxisNames(axis, *axis.split("_"))
        verdict = "dead" if axis == "proactive_reluctant" else "real"
        axes.append(AxisProfile(names, "re_read", {}, summary, 0.1, 0.1, {"verdict": verdict}))
    profile = Profile(tuple(axes), ("q",), (3,), 0.0, (), {})
    lines = [" ".join(line.split()) for line in planted_table(profile, identity, truth).splitlines()]
    rows = dict(line.split(" ", 1) for line in lines[2:])
    realised = truth["uninstructed"]["warm_cold"]["realised"]
    gap = truth["instructed"]["production"]["warm_cold"]["gap"]
    assert rows["warm/cold"] == f"+0.60 {realised:+.2f} +0.31 +0.20 … +0.40 2.00 {gap:.2f} real"
    assert rows["proactive/reluctant"].split()[2] == "(+0.31)"
    assert rows["proactive/reluctant"].split()[-3] == "0.00"
    assert planted_truth(SHIPPED.parent) is None
    imported = replace(profile, axes=tuple(replace(a, evidence={}) for a in profile.axes))
    assert planted_table(imported, identity, truth).splitlines()[2].split()[-1] == "–"
