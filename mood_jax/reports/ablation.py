"""What an ablation shows: the printed report, ablation.json, selected.json and the TensorBoard run `ablation`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax import artifacts
from mood_jax.artifacts import Selected
from mood_jax.console import table
from mood_jax.probes.ranking import Ranked, best_per_reducer, holds, ranking
from mood_jax.reports.tensorboard import Writer
from mood_jax.studies.ablate import Ablation

FORMAT = 1
SHARE = 0.85  # the published bar: at least this AUC on every axis
TOP = 20
WIDTH = 100  # columns of the report
_CELL = 16  # pixels of a cell in the image
_HEADER = ["readout", "by", "AUC", "d'", "worst axis", "stability"]


def report(ablation: Ablation, top: int = TOP) -> str:
    """The best readouts, where the production readout stands, and what is recommended with its nested score."""
    rows = ranking(ablation.rows)
    rank = {_key(row): k for k, row in enumerate(rows, 1)}
    made = next(r for r in rows if _key(r) == ablation.nested["production"])
    lines = [
        f"{len(rows)} readouts × estimators on {len(ablation.axes)} axes, {ablation.condition} states, "
        "cross-validated over questions",
        "",
        table(["rank", *_HEADER], [[str(rank[_key(r)]), *_cells(r)] for r in rows[:top]]),
        "",
        f"production ({made.name} by {made.estimator}): rank {rank[_key(made)]} of {len(rows)}, "
        f"AUC {made.mean_auc:.3f}, d' {made.mean_dprime:.2f}",
        "",
        "best of each token rule",
        table(["rank", *_HEADER], [[str(rank[_key(r)]), *_cells(r)] for r in best_per_reducer(rows).values()]),
        "",
        _holding(ablation, rows),
        "",
        *_choice(ablation),
        *_scaling(ablation),
    ]
    return "\n".join(lines)


def _key(row: Ranked) -> str:
    return f"{row.name} by {row.estimator}"


def _cells(row: Ranked) -> list[str]:
    stability = np.mean([v["stability"] for v in row.per_axis.values()])
    return [
        row.name,
        row.estimator,
        f"{row.mean_auc:.3f}",
        f"{row.mean_dprime:.2f}",
        f"{row.worst_auc:.2f}",
        f"{stability:.2f}",
    ]


def _holding(ablation: Ablation, rows: Sequence[Ranked]) -> str:
    """How many readouts hold on every axis; where none does, the axes that keep them from it."""
    kept = holds(rows, SHARE)
    text = f"AUC of at least {SHARE:.0%} on every axis: {len(kept)} of {len(rows)}"
    if kept:
        text += f": {', '.join(_key(r) for r in kept)}"
        return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    best = {a: max(r.per_axis[a]["auc"] for r in rows) for a in ablation.axes}
    never = [f"{a} (at most {v:.2f})" for a, v in best.items() if v < SHARE]
    text += f"; no readout reaches it on {', '.join(never)}" if never else ""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _choice(ablation: Ablation) -> list[str]:
    nested = ablation.nested
    low, high = nested["difference"]["ci95"]
    lines = [
        f"best: {nested['winner']}",
        f"  AUC {nested['in_fold_auc']:.3f} as the maximum of {len(ablation.rows)}; nested, on folds that the choice "
        f"has not seen: {nested['auc']:.3f}",
        f"  production on the same folds: {nested['production_auc']:.3f}; difference "
        f"{nested['difference']['difference']:+.3f} [{low:+.3f}, {high:+.3f}], p {nested['difference']['p']:.2g}",
    ]
    better = ablation.recommended == ablation.winner and nested["winner"] != nested["production"]
    reason = (
        f"nested AUC {nested['auc']:.3f}, above production beyond doubt"
        if better
        else "nothing is better than production beyond doubt"
    )
    lines.append(f"recommended: {nested['recommended']} ({reason})")
    if ablation.evaluation:
        lines += ["", "directions of set A on the evaluation questions, which no choice has seen (AUC, d')"]
        rows = []
        for role, found in ablation.evaluation.items():
            cells = [f"{found[t]['auc']:.3f}  {found[t]['dprime']:.2f}" for t in ("re_read", "in_context", "transfer")]
            rows.append([role, *cells])
        lines.append(table(["", "re-read", "in context", "fitted in context, tried re-read"], rows))
    return lines


def _scaling(ablation: Ablation) -> list[str]:
    if not any(ablation.scaling.values()):
        return []
    lines = ["", "questions a pole that train the direction, the others test it"]
    header = ["", "n", "AUC", "accuracy", "in sample", "gap", "cosine to all"]
    rows = []
    for role, found in ablation.scaling.items():
        for n, v in found.items():
            rows.append(
                [
                    role,
                    n,
                    f"{v['auc']:.3f}",
                    f"{v['accuracy']:.3f}",
                    f"{v['in_sample_accuracy']:.3f}",
                    f"{v['gap']:+.3f}",
                    f"{v['cosine']:.3f}",
                ]
            )
    return [*lines, table(header, rows)]


def save(folder: Path, ablation: Ablation, identity: dict[str, Any]) -> None:
    """Writes ablation.json (everything) and selected.json (the recommendation, for --config.readout)."""
    record = {
        "format": FORMAT,
        "condition": ablation.condition,
        "axes": list(ablation.axes),
        "candidates": [asdict(r) for r in ablation.rows],
        "ranking": [_key(r) for r in ranking(ablation.rows)],
        "holds": {"share": SHARE, "candidates": [_key(r) for r in holds(ablation.rows, SHARE)]},
        "nested": ablation.nested,
        "evaluation": ablation.evaluation,
        "scaling": ablation.scaling,
        "identity": identity,
    }
    artifacts.write_json(folder / "ablation.json", record)
    chosen = ablation.recommended
    Selected(chosen.readout, chosen.estimator, ablation.nested, identity).save(folder / "selected.json")


def tensorboard(logdir: Path, ablation: Ablation, sites: Sequence[str], text: str) -> Path:
    """The run `ablation`: per estimator and reducer an image of site × axis AUC (`auc_image`) and its curves over sites
    (`auc/{axis}`, the step is the site's number), and histograms of the recommended readout's held-out projections."""
    folder = Path(logdir) / "ablation"
    row_of = {(r.name, r.estimator): r for r in ablation.rows}
    estimators = list(dict.fromkeys(r.estimator for r in ablation.rows))
    reducers = list(dict.fromkeys(r.reducer for r in ablation.rows))
    with Writer(folder) as writer:
        writer.text("report", f"```\n{text}\n```")
        for estimator in estimators:
            for reducer in reducers:
                grid = np.array(
                    [[row_of[f"{s}/{reducer}", estimator].per_axis[a]["auc"] for a in ablation.axes] for s in sites]
                )
                writer.image(f"auc_image/{estimator}/{reducer}", heat(grid))
        reducer, estimator = ablation.recommended.readout.reducer, ablation.recommended.estimator
        for axis in ablation.axes:
            for step, site in enumerate(sites):
                writer.scalar(f"auc/{axis}", row_of[f"{site}/{reducer}", estimator].per_axis[axis]["auc"], step)
            x, sign = ablation.x[axis]
            for pole, side in (("positive", sign > 0), ("negative", sign < 0)):
                writer.histogram(f"held_out/{axis}/{pole}", x[side])
        all_auc = np.array([r.mean_auc for r in ablation.rows])
        writer.histogram("mean_auc/all_readouts", all_auc)
    return folder


def heat(values: np.ndarray) -> np.ndarray:
    """AUCs [rows, columns] → uint8 [H, W, 3]: white at .5 (chance), blue at 1, red at 0; row 0 at the top."""
    share = np.clip(2 * values - 1, -1, 1)[:, :, None]
    blue, red, white = np.array([8, 48, 107]), np.array([165, 15, 21]), np.array([255, 255, 255])
    colour = white + np.abs(share) * (np.where(share >= 0, blue, red) - white)
    return np.kron(colour.round().astype(np.uint8), np.ones((_CELL, _CELL, 1), np.uint8))
