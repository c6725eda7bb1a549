"""The tables that end a run: every number with the evidence for and against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mood_jax.artifacts import Calibration, Profile
from mood_jax.console import table
from mood_jax.organisms.spec import Identity
from mood_jax.probes.verdicts import ALPHA

MISSING = "–"  # in place of what was not measured, as of imported axes


def calibration_table(calibration: Calibration) -> str:
    """One row an axis: held-out separation in context and re-read, what length alone explains, and the verdict."""
    header = [
        "axis",
        "AUC in context",
        "AUC re-read",
        "95 % CI",
        "d' re-read",
        "length AUC",
        "cut + / −",
        "p Holm",
        "verdict",
    ]
    rows = []
    for axis, e in zip(calibration.axes, calibration.evidence, strict=True):
        rows.append(
            [
                f"{axis.positive}/{axis.negative}",
                _cell(e, lambda e: f"{e['in_context']['auc']:.2f}"),
                *_re_read(e),
                _cell(e, lambda e: f"{e['re_read']['dprime']:.2f}"),
                _cell(e, lambda e: f"{e['length_only']['auc']:.2f}"),
                _cell(e, lambda e: f"{e['cutoff_share']['positive']:.0%} / {e['cutoff_share']['negative']:.0%}"),
                _cell(e, lambda e: f"{e['permutation']['p_holm']:.4f}"),
                _cell(e, lambda e: e["verdict"]),
            ]
        )
    return table(header, rows)


def profile_table(profile: Profile) -> str:
    """One row an axis: score with its interval, the axis' held-out AUC, length-only AUC, and the verdict.

    `score` is in the scale that the profile was asked for; the column beside it has the other one, named.
    """
    scale = profile.axes[0].scale
    other = "pole" if scale in ("iqr", "article") else "iqr"
    header = ["axis", "score", "95 % CI", f"({other})", "p Holm", "AUC re-read", "95 % CI", "length AUC", "verdict"]
    rows = []
    for a in profile.axes:
        e = a.evidence
        low, high = a.ci95
        rows.append(
            [
                f"{a.axis.positive}/{a.axis.negative}",
                f"{a.mean:+.2f}",
                f"{low:+.2f} … {high:+.2f}",
                _cell(a.summary, lambda s: f"{s[other]['mean']:+.2f}"),
                f"{a.p_holm:.4f}",
                *_re_read(e),
                _cell(e, lambda e: f"{e['length_only']['auc']:.2f}"),
                _cell(e, lambda e: e["verdict"]),
            ]
        )
    return table(header, rows)


def planted_table(profile: Profile, identity: Identity, truth: Mapping[str, Any]) -> str:
    """Planted, realised (counted in sampled text) and measured temperament of an organism, an axis a row; and what its
    two instructions move in text, of 2, beside the verdict.
    Measured in the scale `re_read`; a score whose verdict is not "real" stands in brackets."""
    header = ["axis", "planted", "realised", "measured", "95 % CI", "planted gap", "realised gap", "verdict"]
    scale = "re_read"  # the one in which an amount can be compared with that of a text
    rows = []
    for k, a in enumerate(profile.axes):
        mean, (low, high) = a.summary[scale]["mean"], a.summary[scale]["ci95"]
        planted = identity.style(k, "positive")[k] - identity.style(k, "negative")[k]
        rows.append(
            [
                f"{a.axis.positive}/{a.axis.negative}",
                f"{identity.temperament[k]:+.2f}",
                f"{truth['uninstructed'][a.axis.id]['realised']:+.2f}",
                f"{mean:+.2f}" if a.evidence.get("verdict") == "real" else f"({mean:+.2f})",
                f"{low:+.2f} … {high:+.2f}",
                f"{planted:.2f}",
                f"{truth['instructed']['production'][a.axis.id]['gap']:.2f}",
                _cell(a.evidence, lambda e: e["verdict"]),
            ]
        )
    return table(header, rows)


def reasons(axes: list[str], evidence: list[dict]) -> str:
    """Why each verdict that is not "real" was given, one line each; empty when all are, or none was given."""
    judged = [(name, e) for name, e in zip(axes, evidence, strict=True) if "verdict" in e]
    return "\n".join(f"  {name}: {e['reason']}" for name, e in judged if e["verdict"] != "real")


def length_warnings(axes: Sequence[str], evidence: Sequence[Mapping], profile: Sequence[Mapping] = ()) -> str:
    """One line for each axis that length may explain; empty when there is none.

    Where the instructed poles differ in length (pole swap of the token count alone, Holm over the axes), and where the
    scores of a profile move with length (`profile`: the `length` of each axis).
    """
    lines = []
    for name, e in zip(axes, evidence, strict=True):
        count = e.get("length_only", {})
        if count.get("p_holm", 1) < ALPHA:
            lines.append(
                f"  length: {name}: the poles differ in length (token count alone: AUC {count['auc']:.2f}, "
                f"p {count['p_holm']:.2g}); {e['length_residualised']['auc']:.2f} with length taken out"
            )
    for name, found in zip(axes, profile, strict=bool(profile)):
        if found.get("p_holm", 1) < ALPHA:
            low, high = found["ci95"]
            null = f" of ±{found['least']:g} or less" if found.get("least") else ""
            lines.append(
                f"  length: {name}: the score moves with the number of tokens, "
                f"rank r {found['r']:+.2f} [{low:+.2f}, {high:+.2f}], p {found['p_holm']:.2g}{null}"
            )
    return "\n".join(lines)


def _re_read(evidence: Mapping[str, Any]) -> list[str]:
    """AUC re-read and its interval."""
    return [
        _cell(evidence, lambda e: f"{e['re_read']['auc']:.2f}"),
        _cell(evidence, lambda e: "{:.2f} … {:.2f}".format(*e["re_read"]["auc_ci95"])),
    ]


def _cell(block: Mapping[str, Any], show: Callable[[Mapping[str, Any]], str]) -> str:
    try:
        return show(block)
    except KeyError:
        return MISSING
