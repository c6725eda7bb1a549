"""A finished calibration or profile → its TensorBoard run (see `study.py` for what is shown)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mood_jax.artifacts import AxisNames, Profile
from mood_jax.reports.study import write_calibration, write_profile
from mood_jax.studies.calibrate import Calibrated

SNIPPET = 80  # characters of a response in the projector's labels


def calibration_run(logdir: Path, done: Calibrated, table: str) -> None:
    """The responses of the calibration set, scored by their own directions in the iqr scale, and their states."""
    calibration, collected = done.calibration, done.collected
    base = next(iter(calibration.identity["bank"]))  # the sets that were asked, the calibration set first
    use = (collected.column("set") == base) & (collected.column("n_tokens") > 0)
    rows = np.flatnonzero(use)
    h = done.h["in_context"]
    scores = calibration.scores(h @ calibration.directions.T, "iqr")
    axis_of, sign = collected.column("axis"), collected.column("sign")
    projections = {}
    for k, axis in enumerate(calibration.axes):
        own = use & (axis_of == axis.id)
        projections[axis.id] = (scores[own & (sign > 0), k], scores[own & (sign < 0), k])
    records = [collected.records[r] for r in rows]
    write_calibration(
        logdir,
        axes=_names(calibration.axes),
        projections=projections,
        states=h[rows],
        labels={
            "axis": [r["axis"] for r in records],
            "pole": [r["pole"] for r in records],
            "question": [r["question"] for r in records],
            "n_tokens": [str(r["n_tokens"]) for r in records],
            "text": [" ".join(r["text"].split())[:SNIPPET] for r in records],
        },
        evidence={a.id: e for a, e in zip(calibration.axes, calibration.evidence, strict=True)},
        table=table,
    )


def profile_run(logdir: Path, profile: Profile, table: str) -> None:
    """The profile's scores in the scale that its table shows."""
    write_profile(
        logdir,
        axes=_names([a.axis for a in profile.axes]),
        scores={a.axis.id: a.scores[a.scale] for a in profile.axes},
        means={a.axis.id: (a.mean, *a.ci95) for a in profile.axes},
        table=table,
    )


def _names(axes: tuple[AxisNames, ...] | list[AxisNames]) -> list[tuple[str, str, str]]:
    return [(a.id, a.positive, a.negative) for a in axes]
