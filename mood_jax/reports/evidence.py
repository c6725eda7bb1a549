"""The evidence block as a table: one column an axis, one row a number (method.md, section 7)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mood_jax.artifacts import Calibration, Profile
from mood_jax.console import table
from mood_jax.reports.tables import MISSING

_COLUMNS = 8  # axes side by side in 100 columns
_WIDTH = 8
Block = Mapping[str, Any]


def calibration_evidence(calibration: Calibration) -> str:
    """The block of a calibration, with the centre and the scale of its scores; empty where nothing was measured."""
    scaling = calibration.scaling
    blocks = [
        {**e, "centre": float(scaling.median[k]), "scale": float(scaling.iqr[k])} if e else {}
        for k, e in enumerate(calibration.evidence)
    ]
    return evidence_table([a.positive for a in calibration.axes], blocks)


def profile_evidence(profile: Profile, calibration: Calibration) -> str:
    """The block of the calibration that a profile was scored with, and how many of its scores a display of ±1 clips."""
    scaling = calibration.scaling
    blocks = [
        {**a.evidence, "centre": float(scaling.median[k]), "scale": float(scaling.iqr[k])}
        | {"clip_rate": a.summary[a.scale]["clip_rate"]}
        if a.evidence
        else {}
        for k, a in enumerate(profile.axes)
    ]
    return evidence_table([a.axis.positive for a in profile.axes], blocks)


def evidence_table(axes: Sequence[str], blocks: Sequence[Block]) -> str:
    """Every number beside its controls; rows that no axis has are left out, missing cells read "–".

    Args:
        axes: a short name each, such as the positive pole.
        blocks: what `probes.evidence` returns, with what `studies.calibrate` adds.
    Returns:
        The table with its legend; empty where no axis has any evidence.
    """
    rows = [(label, [_cell(show, b) for b in blocks]) for label, show in _ROWS]
    kept, parent = [], False
    for label, cells in rows:
        there = any(c != MISSING for c in cells)
        if label.startswith("  "):
            there = there and parent  # what belongs to a row that is not there
        else:
            parent = there
        if there:
            kept.append((label, cells))
    if not kept:
        return ""
    parts = []
    for start in range(0, len(axes), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        header = ["held-out evidence", *(_short(a) for a in axes[some])]
        parts.append(table(header, [[label, *cells[some]] for label, cells in kept]))
    return "\n\n".join([*parts, LEGEND])


def _cell(show: Callable[[Block], str | None], block: Block) -> str:
    try:
        return show(block) or MISSING
    except KeyError:  # not measured
        return MISSING


def _short(name: str) -> str:
    return name if len(name) <= _WIDTH else name[: _WIDTH - 1] + "…"


def number(value: float | None, digits: int = 2) -> str | None:
    """.93, −.07, 1.00, 12.30: two digits without a leading zero."""
    if value is None:
        return None
    text = f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.0e}"
    text = text.replace("-", "−")
    return text.replace("0.", ".", 1) if text.removeprefix("−").startswith("0.") else text


def _interval(ends: Sequence[float]) -> str:
    return f"{number(ends[0])}–{number(ends[1])}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else number(value, 3) or MISSING


def _auc(condition: str) -> Callable[[Block], str | None]:
    return lambda b: number(b[condition]["auc"])


def _ci(condition: str, measure: str = "auc") -> Callable[[Block], str | None]:
    return lambda b: _interval(b[condition][f"{measure}_ci95"])


def _both(block: Block, key: str, form: Callable[[Any], str]) -> str:
    return f"{form(block[key]['positive'])}/{form(block[key]['negative'])}"


def _matched(block: Block) -> str | None:
    found = block["length_matched"]
    return number(found["auc"]) if found["ok"] else None


def _cross(pair: str) -> Callable[[Block], str | None]:
    return lambda b: number(b["cross_set_cosine"][pair])


_MANIPULATION = {
    "complies and seen": "seen",
    "complies, instrument blind": "blind",
    "dead": "dead",
    "represented but suppressed": "suppr.",
}

_ROWS: tuple[tuple[str, Callable[[Block], str | None]], ...] = (
    ("verdict", lambda b: b["verdict"].replace("no variance", "no var.")),
    ("responses, questions", lambda b: f"{b['n_samples']}, {b['n_questions']}"),
    ("AUC re-read", _auc("re_read")),
    ("  95 % CI", _ci("re_read")),
    ("  in sample", lambda b: number(b["re_read"]["in_sample_auc"])),
    ("AUC in context", _auc("in_context")),
    ("  95 % CI", _ci("in_context")),
    ("d' re-read", lambda b: number(b["re_read"]["dprime"])),
    ("  in sample", lambda b: number(b["re_read"]["in_sample_dprime"])),
    ("d' in context", lambda b: number(b["in_context"]["dprime"])),
    ("new questions, AUC", lambda b: number((b["evaluation"] or {})["auc"])),
    ("pole swap p", lambda b: _p(b["permutation"]["p"])),
    ("  Holm over axes", lambda b: _p(b["permutation"]["p_holm"])),
    ("random dirs., pctl.", lambda b: f"{b['random_direction_percentile']:.0f}"),
    ("token count alone", _auc("length_only")),
    ("  pole swap p, Holm", lambda b: _p(b["length_only"]["p_holm"])),
    ("length taken out", _auc("length_residualised")),
    ("  95 % CI", _ci("length_residualised")),
    ("length matched", _matched),
    ("cut + / −, %", lambda b: _both(b, "cutoff_share", lambda v: f"{100 * v:.0f}")),
    ("words alone", _auc("bag_of_words")),
    ("  95 % CI", _ci("bag_of_words")),
    ("texts × states", lambda b: _MANIPULATION[b["manipulation"]["label"]]),
    ("random weights", _auc("random_re_read")),
    ("  in context", _auc("random_in_context")),
    ("split-half cosine", lambda b: number(b["split_half_cosine"]["re_read"]["mean"])),
    ("  in context", lambda b: number(b["split_half_cosine"]["in_context"]["mean"])),
    ("  ceiling, in ctx", lambda b: number(b["split_half_cosine"]["in_context"]["full_length"])),
    ("Mahalanobis, in ctx", lambda b: number(b["mahalanobis_cosine"]["in_context"]["mean"])),
    ("cosine A, eval", _cross("A-eval")),
    ("cosine B, eval", _cross("B-eval")),
    ("cosine C, eval", _cross("C-eval")),
    ("cosine A, B", _cross("A-B")),
    ("cosine A, C", _cross("A-C")),
    ("cosine B, C", _cross("B-C")),
    ("centre (median)", lambda b: number(b["centre"])),
    ("scale (IQR)", lambda b: number(b["scale"])),
    ("clipped at ±1, %", lambda b: f"{100 * b['clip_rate']:.0f}"),
    ("top-5 coordinates", lambda b: number(b["in_context"]["top5_share"])),
)

LEGEND = textwrap.fill(
    "All but 'in sample' is on held-out questions. random dirs.: percentile of the re-read AUC among random directions "
    "of the same covariance. words alone: bag-of-words AUC of the texts. texts × states: seen = both differ, blind = "
    "texts only, suppr. = states only, dead = neither. random weights: the responses as read by a model of this shape "
    "with fresh parameters. ceiling: the cosine to expect between two sets of questions.",
    100,
)
