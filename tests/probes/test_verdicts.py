import pytest

from mood_jax.probes import verdict

REAL = {
    "ok": True,
    "auc": 0.8,
    "auc_ci95": (0.7, 0.9),
    "p_holm": 0.01,
    "length_auc": 0.6,
    "residual_auc": 0.75,
    "residual_ci95": (0.6, 0.85),
    "residual_p": 0.01,
    "in_context_auc": 0.95,
    "in_context_ci95": (0.9, 1.0),
}
LEAK = {"auc": 0.55, "auc_ci95": (0.4, 0.7), "p_holm": 0.6}


@pytest.mark.parametrize(
    ("change", "label", "words"),
    [
        ({}, "real", "AUC 0.80"),
        ({"in_context_auc": None, "in_context_ci95": None}, "real", "0.75 with length"),
        ({"residual_ci95": (0.5, 0.7)}, "length", "token count alone: 0.60"),
        ({"residual_p": 0.2}, "length", "falls to 0.75"),
        ({"p_holm": 0.05, "in_context_ci95": (0.4, 1.0)}, "dead", "not above chance"),
        ({"auc_ci95": (0.5, 0.9)}, "dead", "not above chance"),
        (LEAK, "dead", "instruction leak: in-context AUC 0.95"),
        (LEAK | {"in_context_ci95": None}, "dead", "instruction leak"),
        ({"ok": False}, "no variance", "no difference"),
    ],
)
def test_labels(change, label, words):
    got = verdict(**(REAL | change))
    assert got.label == label
    assert words in got.reason
    assert "\n" not in got.reason


@pytest.mark.parametrize("change", [{"in_context_auc": 0.6, "in_context_ci95": None}, {"in_context_ci95": (0.45, 0.7)}])
def test_no_leak_is_named_where_in_context_does_not_separate(change):
    assert "leak" not in verdict(**(REAL | LEAK | change)).reason
