import numpy as np
import pytest

from mood_jax.probes import evidence
from mood_jax.reports.evidence import LEGEND, evidence_table, number

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.934, ".93"), (-0.067, "−.07"), (1.0, "1.00"), (-1.5, "−1.50"), (12.3, "12.30"), (0, ".00"), (3e6, "3e+06")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.fixture(scope="module")
def block():
    rng = np.random.default_rng(5)
    sign, question = np.tile([1, -1], 8), np.repeat(np.arange(8), 2)
    states = rng.normal(size=(16, 6)) + np.where(np.arange(6) < 2, 2, 0) * sign[:, None]
    tokens, cut = rng.integers(5, 20, 16), np.zeros(16, bool)
    texts = ["good fine" if s > 0 else "bad poor" for s in sign]
    arguments = ([states], [sign], [question], [tokens], [cut])
    options = {"n_boot": 100, "n_perm": 100, "n_random": 50, "n_splits": 20}
    return evidence(*arguments, in_context=[states], texts=[texts], **options)[0] | {"evaluation": None}


def test_the_whole_block_fits_100_columns_and_says_what_the_block_says(block):
    text = evidence_table(["proactive and more"] * 8, [block] * 8)
    lines = text.removesuffix(LEGEND).splitlines()
    assert max(map(len, text.splitlines())) <= 100
    cells = {line[:20].strip(): line.split() for line in lines}
    assert number(block["re_read"]["auc"]) == cells["AUC re-read"][-1]
    assert number(block["bag_of_words"]["auc"]) == cells["words alone"][-1]
    assert number(block["length_only"]["auc"]) == cells["token count alone"][-1]
    assert "new questions, AUC" not in text  # nothing was measured there
    assert "random weights" not in text.removesuffix(LEGEND)
    assert text.endswith(LEGEND)


def test_what_one_axis_lacks_is_a_dash_and_nine_axes_make_two_tables(block):
    lacking = {k: v for k, v in block.items() if k != "bag_of_words"}
    text = evidence_table(["a", "b"], [block, lacking])
    row = next(line for line in text.splitlines() if line.startswith("words alone"))
    assert row.split()[-1] == "–"
    assert evidence_table(["x"] * 9, [block] * 9).count("held-out evidence") == 2


def test_no_evidence_is_no_table():
    assert evidence_table(["a", "b"], [{}, {}]) == ""
