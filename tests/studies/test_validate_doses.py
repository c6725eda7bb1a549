"""The instrument against planted doses: nine identities, every axis at nine amounts, the others varying."""

import numpy as np
import pytest

from tests.studies.quick import check, validated


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return validated(tmp_path_factory.mktemp("doses"), "llama")


def test_profiles_follow_what_the_texts_show(found):
    profile = check(found, 1)
    assert profile.passed is True, profile.reason
    assert profile.figures["cells"] == 63


def test_more_of_a_style_is_measured_as_more(found):
    doses = check(found, 2)
    assert doses.passed is True, doses.reason
    assert len(doses.figures) == 7
    for row in doses.figures.values():
        assert row["slope"] > 0.5
        assert row["smallest_difference"] < 0.6


def test_obedience_is_seen_in_every_cell_that_leaves_it_room(found):
    for s in found.subjects:
        for said, amount in zip(s.said, s.identity.temperament, strict=True):
            assert said != "dead"
            if abs(amount) <= 0.25:
                assert said == "obeys", s.name


def test_axes_hold_for_other_wordings(found):
    wording = check(found, 8)
    assert wording.passed is True, wording.reason


def test_borrowed_poles_and_own_agree_where_both_are_good(found):
    own = np.array([s.own for s in found.subjects])
    shared = np.array([s.shared.free for s in found.subjects])
    assert np.corrcoef(own.ravel(), shared.ravel())[0, 1] > 0.8


def test_what_is_missing_is_said_and_not_passed(found):
    for number in (3, 4, 5, 6, 7):
        assert check(found, number).passed is None
    json = found.as_json()
    assert json["subjects"]["llama/dose_1"]["warm_cold"]["planted"] == -1
    assert [c["verdict"] for c in json["checks"]].count("no subjects") == 5
