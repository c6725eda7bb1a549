"""The instrument against planted wills, lengths, couplings and constancy."""

import pytest

from tests.studies.quick import check, validated


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return validated(tmp_path_factory.mktemp("wills"), "qwen2", "mistral", "yi", "deepseek")


def test_temperaments_are_read_on_axes_that_obey_and_on_those_that_do_not(found):
    profile = check(found, 1)
    assert profile.passed is True, profile.reason


def test_dead_and_asymmetric_axes_are_told(found):
    compliance = check(found, 3)
    assert compliance.figures["roc"]["shared_gap"] == 1, compliance.reason
    assert compliance.figures["asymmetric_right"] >= 0.75
    dead = [cell for cell in compliance.figures["wrong"] if ": dead" in cell or "said dead" in cell]
    assert dead == []


def test_length_is_warned_of_where_it_follows_a_style(found):
    length = check(found, 5)
    assert length.figures["warned"] >= 0.75, length.reason
    assert length.figures["false_warnings"] <= length.figures["bound"]
    assert not any("warm_100 warm_cold" in cell for cell in length.figures["missed"])


def test_planted_coupling_and_rank_come_out(found):
    coupling = check(found, 6)
    assert coupling.passed is True, coupling.reason
    rows = coupling.figures
    assert rows["rank_1"]["measured_dimension"] < rows["pair_90"]["measured_dimension"]


def test_a_style_that_changes_with_every_response_is_no_profile(found):
    constancy = check(found, 7)
    assert constancy.passed is True, constancy.reason
