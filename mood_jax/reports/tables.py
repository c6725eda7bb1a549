"""The tables that end a run: every number with the evidence for and against it."""

from __future__ import annotations

from mood_jax.artifacts import Calibration, Profile
from mood_jax.console import table


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
        low, high = e["re_read"]["auc_ci95"]
        cut = e["cutoff_share"]
        rows.append(
            [
                f"{axis.positive}/{axis.negative}",
                f"{e['in_context']['auc']:.2f}",
                f"{e['re_read']['auc']:.2f}",
                f"{low:.2f} … {high:.2f}",
                f"{e['re_read']['dprime']:.2f}",
                f"{e['length_only']['auc']:.2f}",
                f"{cut['positive']:.0%} / {cut['negative']:.0%}",
                f"{e['permutation']['p_holm']:.4f}",
                e["verdict"],
            ]
        )
    return table(header, rows)


def profile_table(profile: Profile) -> str:
    """One row an axis: score with its interval, the axis' held-out AUC, length-only AUC, and the verdict.

    `score` is in the scale that the profile was asked for; the column beside it has the other one, named.
    """
    scale = profile.axes[0].scale
    other = "iqr" if scale == "pole" else "pole"
    header = ["axis", "score", "95 % CI", f"({other})", "p Holm", "AUC re-read", "95 % CI", "length AUC", "verdict"]
    rows = []
    for a in profile.axes:
        e = a.evidence
        auc_low, auc_high = e["re_read"]["auc_ci95"]
        low, high = a.ci95
        rows.append(
            [
                f"{a.axis.positive}/{a.axis.negative}",
                f"{a.mean:+.2f}",
                f"{low:+.2f} … {high:+.2f}",
                f"{a.summary[other]['mean']:+.2f}",
                f"{a.p_holm:.4f}",
                f"{e['re_read']['auc']:.2f}",
                f"{auc_low:.2f} … {auc_high:.2f}",
                f"{e['length_only']['auc']:.2f}",
                e["verdict"],
            ]
        )
    return table(header, rows)


def reasons(axes: list[str], evidence: list[dict]) -> str:
    """Why each verdict that is not "real" was given, one line each; empty when all are."""
    lines = [f"  {name}: {e['reason']}" for name, e in zip(axes, evidence, strict=True) if e["verdict"] != "real"]
    return "\n".join(lines)
