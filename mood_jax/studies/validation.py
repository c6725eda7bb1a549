"""The instrument held against models whose temperament was planted: pure functions of measured subjects.

Every check compares what the instrument says with what the grammar's recogniser counted in sampled text, and has the
bounds of its requirement. Where its subjects are missing it says so and does not count as passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from mood_jax import probes
from mood_jax.organisms.spec import DEAF, OBEDIENT, Compliance
from mood_jax.probes.verdicts import ALPHA
from mood_jax.studies.nulls import FalseAlarms
from mood_jax.studies.subjects import Subject

STRONG = 0.4  # from this amount on a sign has to be right
DEAD, OBEYED = 0.4, 1.2  # realised gaps, of 2: below it is dead, above it obeyed
QUESTIONS = 30
DOSES = np.linspace(-1, 1, 9)


@dataclass(frozen=True)
class Check:
    """passed is None where there were no subjects."""

    name: str
    passed: bool | None
    reason: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return {True: "passed", False: "FAILED", None: "no subjects"}[self.passed]


def isotonic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares non-decreasing fit of y over x [n], by pooling adjacent violators; ties in x get one value."""
    levels, inverse = np.unique(x, return_inverse=True)
    blocks = [[float(y[inverse == k].mean()), float((inverse == k).sum()), 1] for k in range(len(levels))]
    pooled: list[list[float]] = []
    for block in blocks:
        pooled.append(list(block))
        while len(pooled) > 1 and pooled[-2][0] >= pooled[-1][0]:
            value, weight, count = pooled.pop()
            total = pooled[-1][1] + weight
            pooled[-1] = [(pooled[-1][0] * pooled[-1][1] + value * weight) / total, total, pooled[-1][2] + count]
    fitted = np.concatenate([np.full(int(count), value) for value, _, count in pooled])
    return fitted[inverse]


def explained(y: np.ndarray, fitted: np.ndarray) -> float:
    """R²: the share of the variance of y that a fit explains; 0 where y does not vary."""
    total = float(np.sum((y - y.mean()) ** 2))
    return 1 - float(np.sum((y - fitted) ** 2)) / total if total > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
    """1 … n, ties their mean rank."""
    below = (x[None, :] < x[:, None]).sum(axis=1)
    return below + ((x[None, :] == x[:, None]).sum(axis=1) + 1) / 2


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0 where either does not vary."""
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def roc_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs that a score puts in order, ties half."""
    difference = score[positive][:, None] - score[~positive][None, :]
    return float((np.sign(difference).mean() + 1) / 2)


def profile_check(subjects: Sequence[Subject]) -> Check:
    """1. Measured against realised temperament over identities × axes, and its signs."""
    name = "1 profile"
    if len(subjects) < 3:
        return Check(name, None, "needs three identities at least")
    measured, realised = (np.array([getattr(s, what) for s in subjects]) for what in ("measured", "realised"))
    halves = np.array([s.halves for s in subjects])
    centred = correlation(_centred(measured), _centred(realised))
    pooled = correlation(measured.ravel(), realised.ravel())
    half = correlation(_centred(halves[:, 0]), _centred(halves[:, 1]))
    ceiling = math.sqrt(max(0.0, 2 * half / (1 + half)))  # of a correlation with the whole realised amount
    strong = np.abs(realised) >= STRONG
    right = float((np.sign(measured) == np.sign(realised))[strong].mean()) if strong.any() else 0.0
    figures = {
        "cells": int(measured.size),
        "r_centred": centred,
        "r_pooled": pooled,
        "ceiling": ceiling,
        "strong_cells": int(strong.sum()),
        "signs_right": right,
        "mean_absolute_error": float(np.abs(measured - realised).mean()),
    }
    reason = (
        f"r {centred:.3f} centred per axis (≥ .9, ceiling {ceiling:.3f}), {pooled:.3f} pooled (≥ .85); "
        f"sign right in {right:.0%} of {int(strong.sum())} strong cells (≥ 95 %)"
    )
    return Check(name, centred >= 0.9 and pooled >= 0.85 and right >= 0.95, reason, figures)


def _centred(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0, keepdims=True)).ravel()


def dose_check(subjects: Sequence[Subject], axes: Sequence[str]) -> Check:
    """2. Nine doses an axis, the other axes varying: isotonic and linear R², Spearman, smallest difference found.

    The doses of an axis are those of one organism: one model, so that only the amount differs. Beside it stands the
    isotonic R² over all subjects, whose models, wills and scales differ too; what becomes of those is check 1.
    """
    name = "2 dose-response"
    of_organism: dict[str, list[Subject]] = {}
    for s in subjects:
        of_organism.setdefault(s.organism, []).append(s)
    rows = {}
    for a, axis in enumerate(axes):
        group = next((g for g in of_organism.values() if _has_all_doses(g, a)), None)
        if group is None:
            continue
        x, y = _amounts(group, a)
        slope, start = np.polyfit(x, y, 1)
        # Two means of 30 questions with the SD seen here differ at 80 % power from 2.8 standard errors on.
        noise = math.sqrt(2 * np.mean([s.own_sd[a] ** 2 for s in group]) / QUESTIONS)
        all_x, all_y = _amounts(subjects, a)
        rows[axis] = {
            "organism": group[0].organism,
            "isotonic_r2": explained(y, isotonic(x, y)),
            "isotonic_r2_all_subjects": explained(all_y, isotonic(all_x, all_y)),
            "linear_r2": explained(y, slope * x + start),
            "spearman": correlation(ranks(x), ranks(y)),
            "slope": float(slope),
            "smallest_difference": float(2.8 * noise / slope) if slope > 0 else None,
            "realised": x.tolist(),
            "measured": y.tolist(),
        }
    if len(rows) < 3:
        return Check(name, None, f"{len(rows)} axes have all nine doses; three are needed")
    worst = min(rows, key=lambda axis: rows[axis]["isotonic_r2"])
    value = rows[worst]["isotonic_r2"]
    reason = (
        f"isotonic R² ≥ {value:.3f} on {len(rows)} axes (≥ .95; least on {worst}), "
        f"linear ≥ {min(r['linear_r2'] for r in rows.values()):.3f}, "
        f"Spearman ≥ {min(r['spearman'] for r in rows.values()):.3f}; "
        f"isotonic over all organisms ≥ {min(r['isotonic_r2_all_subjects'] for r in rows.values()):.3f}"
    )
    return Check(name, value >= 0.95, reason, rows)


def _has_all_doses(group: Sequence[Subject], a: int) -> bool:
    planted = {round(s.identity.temperament[a], 3) for s in group}
    return set(np.round(DOSES, 3)) <= planted


def _amounts(group: Sequence[Subject], a: int) -> tuple[np.ndarray, np.ndarray]:
    """Realised and measured."""
    return np.array([s.realised[a] for s in group]), np.array([s.measured[a] for s in group])


PLANTED = {OBEDIENT: "obeys", DEAF: "dead", Compliance(1, 0): "positive only", Compliance(0, 1): "negative only"}


def compliance_check(subjects: Sequence[Subject], axes: Sequence[str]) -> Check:
    """3. Dead axes by the shared gap against the realised one; asymmetric ones by name; the manipulation check.

    Where the temperament is planted so near the one pole that is obeyed that the gap, planted and realised, is that of
    a dead axis, dead is what it has to be called. One that has room and does not move stays what was planted.
    """
    name = "3 compliance"
    gap = np.array([s.gap for s in subjects]).ravel()
    if not ((gap < DEAD).any() and (gap > OBEYED).any()):
        return Check(name, None, "needs axes that obey and axes that do not")
    shared = np.array([s.shared.positive - s.shared.negative for s in subjects]).ravel()
    own = np.array([[b["re_read"]["auc"] for b in s.evidence] for s in subjects]).ravel()
    context = np.array([[b["in_context"]["auc"] for b in s.evidence] for s in subjects]).ravel()
    clear = (gap < DEAD) | (gap > OBEYED)
    roc = {
        key: roc_auc(-score[clear], gap[clear] < DEAD)
        for key, score in (("shared_gap", shared), ("own_re_read_auc", own), ("own_in_context_auc", context))
    }
    named, wrong, roomless = [], [], []
    for s in subjects:
        for a, axis in enumerate(axes):
            planted, said = PLANTED.get(s.identity.compliance[a]), s.said[a]
            if planted is None:  # obeys in part, which is none of the four names
                continue
            room = s.identity.style(a, "positive")[a] - s.identity.style(a, "negative")[a]
            if planted.endswith("only") and s.gap[a] < DEAD and round(room, 6) <= DEAD:
                roomless.append(f"{s.name} {axis}")
                planted = "dead"
            named.append((planted, said))
            if planted != said:
                wrong.append(f"{s.name} {axis}: {planted}, said {said}")
    asymmetric = [(p, q) for p, q in named if p.endswith("only")]
    right = float(np.mean([p == q for p, q in asymmetric])) if asymmetric else None
    cells = [
        (b["manipulation"]["label"], gap_)
        for s in subjects
        for b, gap_ in zip(s.evidence, s.gap, strict=True)
        if gap_ < DEAD or gap_ > OBEYED
    ]
    manipulation = float(np.mean([(label == "complies and seen") == (g > OBEYED) for label, g in cells]))
    figures = {
        "roc": roc,
        "dead": int((gap < DEAD).sum()),
        "obeyed": int((gap > OBEYED).sum()),
        "asymmetric": len(asymmetric),
        "asymmetric_right": right,
        "asymmetric_without_room": roomless,
        "all_right": float(np.mean([p == q for p, q in named])),
        "manipulation_right": manipulation,
        "wrong": wrong,
    }
    said = "no asymmetric axes" if right is None else f"{right:.0%} of {len(asymmetric)} asymmetric axes named (≥ 90 %)"
    if roomless:
        said += f", {len(roomless)} too near the pole they obey to move and counted as dead"
    reason = (
        f"ROC {roc['shared_gap']:.3f} of the shared gap (≥ .95; own AUC re-read {roc['own_re_read_auc']:.3f}, "
        f"in context {roc['own_in_context_auc']:.3f}); {said}; "
        f"manipulation check right in {manipulation:.0%} (≥ 90 %)"
    )
    return Check(
        name, roc["shared_gap"] >= 0.95 and (right is None or right >= 0.9) and manipulation >= 0.9, reason, figures
    )


def false_alarm_check(found: dict[str, FalseAlarms]) -> Check:
    """4. Models without any style, judged re-read."""
    name = "4 false alarms"
    if not found or min(f.draws for f in found.values()) < 200:
        return Check(name, None, "needs 200 draws of each kind of model")
    reason = "; ".join(
        f"{key}: {f.real:.1%} of {f.draws} real (≤ {f.bound:.1%}), in context AUC {f.in_context_auc:.2f}"
        for key, f in found.items()
    )
    figures = {key: vars(f) | {"bound": f.bound} for key, f in found.items()}
    return Check(name, all(f.passed for f in found.values()), reason, figures)


def wording_check(scored: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], least: float = 0.9) -> Check:
    """8. Scores (positive, negative) of responses to held-out paraphrases, by identity and obedient axis."""
    name = "8 held-out wording"
    areas = {
        f"{identity} {axis}": roc_auc(np.concatenate(pair), np.arange(sum(map(len, pair))) < len(pair[0]))
        for identity, of_axis in scored.items()
        for axis, pair in of_axis.items()
    }
    if not areas:
        return Check(name, None, "needs an identity that obeys")
    mean, worst = float(np.mean(list(areas.values()))), min(areas, key=lambda key: areas[key])
    reason = f"AUC {mean:.3f} on average (≥ {least:g}) over {len(areas)} axes, {areas[worst]:.2f} at least ({worst})"
    return Check(name, mean >= least, reason, areas)


FOLLOWS, FREE = 0.2, 0.08  # realised |AUC − ½| of the length: from here on it follows the style, below it does not


def length_check(subjects: Sequence[Subject], axes: Sequence[str]) -> Check:
    """5. Identities whose length follows a style: the warnings, and the order of scores with length taken out.

    The truth is the larger of the realised AUCs of the length: between the instructed poles, and in uninstructed
    responses between those that show either pole. In between FOLLOWS and FREE nothing is asked.
    """
    name = "5 length trap"
    subjects = [s for s in subjects if s.identity.length is not None]
    cells = []
    for s in subjects:
        for a, axis in enumerate(axes):
            kinds = [s.truth["instructed"][w][axis]["length_auc"] for w in ("production", "held_out")]
            truth = max(abs(np.mean(kinds) - 0.5), abs(s.truth["uninstructed"][axis]["length_auc"] - 0.5))
            warned = s.evidence[a]["length_only"]["p_holm"] < ALPHA or s.length[a].get("p_holm", 1) < ALPHA
            cells.append((f"{s.name} {axis}", float(truth), bool(warned)))
    follows = [(cell, warned) for cell, truth, warned in cells if truth >= FOLLOWS]
    quiet = [(cell, warned) for cell, truth, warned in cells if truth < FREE]
    order = {}
    for a, axis in enumerate(axes):
        group = [s for s in subjects if s.identity.length is not None and s.identity.length.axis == a]
        if len(group) >= 3:
            planted = np.array([s.identity.temperament[a] for s in group])
            order[axis] = {
                key: correlation(ranks(planted), ranks(np.array([getattr(s, which)[a] for s in group])))
                for key, which in (("length_taken_out", "own_length_out"), ("plain", "own"))
            }
    if not (follows and quiet and order):
        return Check(name, None, "needs identities whose length follows a style, and some whose length does not")
    heard = float(np.mean([warned for _, warned in follows]))
    false = float(np.mean([warned for _, warned in quiet]))
    bound = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / len(quiet))
    kept = min(o["length_taken_out"] for o in order.values())
    reason = (
        f"warned in {heard:.0%} of {len(follows)} cells whose length follows (≥ 90 %), in {false:.0%} of {len(quiet)} "
        f"where it does not (≤ {bound:.0%}); order with length taken out: Spearman ≥ {kept:.2f} (= 1)"
    )
    figures = {
        "warned": heard,
        "false_warnings": false,
        "bound": bound,
        "order": order,
        "missed": [cell for cell, warned in follows if not warned],
        "false": [cell for cell, warned in quiet if warned],
        "cells": {cell: {"realised": truth, "warned": warned} for cell, truth, warned in cells},
    }
    return Check(name, heard >= 0.9 and false <= bound and kept > 1 - 1e-9, reason, figures)


STABLE, VOLATILE = 0.8, 0.2  # realised ICC of single responses over axes


def constancy_check(subjects: Sequence[Subject]) -> Check:
    """7. A stable identity against one whose style changes from response to response.

    ICC(2,1) with axes as subjects and single responses as raters: does one response show the profile? Truth is the same
    from the amounts that the recogniser counted. Beside it stand the cosines of the directions of sets A, B and C,
    which decide nothing: both identities obey, and how alike the directions of other wordings are is no matter of
    constancy.
    """
    name = "7 seeds, sets"
    rows = {}
    for s in subjects:
        cosines = [b["cross_set_cosine"] for b in s.evidence]
        if not all({"A-B", "A-C", "B-C"} <= set(c) for c in cosines):
            continue
        found = probes.icc(jnp.asarray(s.scores, jnp.float32), "2,1")
        rows[s.name] = {
            "realised_icc": _realised_icc(s),
            "measured_icc": float(found.value),
            "ci95": [float(end) for end in found.ci95],
            "cosine": float(np.mean([[c[pair] for pair in ("A-B", "A-C", "B-C")] for c in cosines])),
        }
    stable = [r for r in rows.values() if r["realised_icc"] >= STABLE]
    volatile = [r for r in rows.values() if r["realised_icc"] <= VOLATILE]
    if not (stable and volatile):
        return Check(name, None, "needs an identity that never changes and one that always does")
    least, most = min(r["measured_icc"] for r in stable), max(r["measured_icc"] for r in volatile)
    cosines = [float(np.mean([r["cosine"] for r in group])) for group in (stable, volatile)]
    reason = (
        f"ICC of single responses {least:.2f} where stable (≥ {STABLE:g}), {most:.2f} where changing (≤ {VOLATILE:g}); "
        f"A/B/C cosine {cosines[0]:.2f} against {cosines[1]:.2f} (tells nothing of constancy)"
    )
    return Check(name, least >= STABLE and most <= VOLATILE, reason, rows)


def _realised_icc(s: Subject) -> float:
    """ICC(1) over axes of single responses, from the recogniser's means and standard errors."""
    n = s.truth["free_responses"]
    within = float(np.mean([n * row["se"] ** 2 for row in s.truth["uninstructed"].values()]))
    between = max(0.0, float(np.var(s.realised, ddof=1)) - within / n)
    return between / (between + within) if between + within > 0 else 0.0


def coupling_check(subjects: Sequence[Subject], axes: Sequence[str]) -> Check:
    """6. Planted correlation of a pair against behavioural r, and planted rank against the effective dimension."""
    name = "6 coupling, rank"
    rows = {}
    for s in subjects:
        if s.identity.coherence < 1:
            continue
        table = np.asarray(probes.correlation_table(jnp.asarray(s.scores.T))[0])
        realised = np.array(s.truth["correlation"]["realised"])
        off = ~np.eye(len(axes), dtype=bool)
        rows[s.identity.name] = {
            "realised_pair": float(realised[axes.index("warm_cold"), axes.index("empathetic_analytical")]),
            "measured_pair": float(table[axes.index("warm_cold"), axes.index("empathetic_analytical")]),
            "realised_dimension": _dimension(realised),
            "measured_dimension": _dimension(table),
            "agreement": correlation(table[off], realised[off]),
        }
    if len(rows) < 3:
        return Check(name, None, "needs identities with planted couplings")
    pair = correlation(*(np.array([r[f"{w}_pair"] for r in rows.values()]) for w in ("realised", "measured")))
    dimension = correlation(*(np.array([r[f"{w}_dimension"] for r in rows.values()]) for w in ("realised", "measured")))
    reason = f"r {pair:.2f} of the pair's correlations (≥ .8) and {dimension:.2f} of the effective dimensions (≥ .8)"
    return Check(name, pair >= 0.8 and dimension >= 0.8, reason, rows)


def _dimension(table: np.ndarray) -> float:
    """(Σλ)²/Σλ² of a correlation table."""
    return float(np.trace(table) ** 2 / np.sum(table**2))


def format_subjects(subjects: Sequence[Subject], axes: Sequence[str]) -> list[list[str]]:
    """Rows for a table: identity, axis, planted, realised, measured, realised and measured gap, what is said."""
    return [
        [
            f"{s.name} {axis}",
            f"{s.identity.temperament[a]:+.2f}",
            f"{s.realised[a]:+.2f}",
            f"{s.measured[a]:+.2f}",
            f"{s.gap[a]:.2f}",
            f"{s.shared.positive[a] - s.shared.negative[a]:.2f}",
            PLANTED.get(s.identity.compliance[a], "in part"),
            s.said[a],
            s.evidence[a]["verdict"],
        ]
        for s in subjects
        for a, axis in enumerate(axes)
    ]
