"""The instrument against planted wills, lengths, couplings and constancy."""

import dataclasses
import runpy

import numpy as np
import pytest

from mood_jax.studies.subjects import measure
from tests.studies.quick import CONFIG, check, planned, validated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wills")


@pytest.fixture(scope="module")
def found(folder):
    return validated(folder, "qwen2", "mistral", "yi", "deepseek", jobs=2)


def test_temperaments_are_read_on_axes_that_obey_and_on_those_that_do_not(found):
    profile = check(found, 1)
    assert profile.passed is True, profile.reason


def test_dead_and_asymmetric_axes_are_told(found):
    compliance = check(found, 3)
    assert compliance.passed is True, compliance.reason
    assert compliance.figures["roc"]["shared_gap"] == 1, compliance.reason
    dead = [cell for cell in compliance.figures["wrong"] if ": dead" in cell or "said dead" in cell]
    assert dead == []


def test_length_is_warned_of_where_it_follows_a_style(found):
    length = check(found, 5)
    assert length.figures["warned"] >= 0.75, length.reason
    assert length.figures["false_warnings"] <= length.figures["bound"]
    assert not any("warm_100 warm_cold" in cell for cell in length.figures["missed"])


def test_a_process_of_its_own_measures_what_this_one_does(found, folder):
    """The same responses, read and analysed once more here, after a run that was ended."""
    plan = planned(runpy.run_path(str(CONFIG))["get_config"]())
    (here,) = measure("yi", ["apart"], plan, folder)
    (there,) = (s for s in found.subjects if s.name == "yi/apart")
    for f in dataclasses.fields(here):
        mine, its = getattr(here, f.name), getattr(there, f.name)
        if f.name == "shared":
            mine, its = vars(mine), vars(its)
        if f.name in ("shared", "held_out"):
            assert list(mine) == list(its)
            mine, its = list(mine.values()), list(its.values())
        if f.name in ("organism", "identity", "truth", "length", "evidence"):
            assert mine == its
        else:
            assert all(np.array_equal(m, i) for m, i in zip(mine, its, strict=True)), f.name


def test_planted_coupling_and_rank_come_out(found):
    coupling = check(found, 6)
    assert coupling.passed is True, coupling.reason
    rows = coupling.figures
    assert rows["rank_1"]["measured_dimension"] < rows["pair_90"]["measured_dimension"]


def test_a_style_that_changes_with_every_response_is_no_profile(found):
    constancy = check(found, 7)
    assert constancy.passed is True, constancy.reason
