"""Tables of a sweep: what is done, and what its units say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mood_jax.console import table
from mood_jax.studies.sweep import STATES, Check, Unit, refuse_mixed


def status_table(rows: Sequence[tuple[Unit, Check, int]]) -> str:
    """One row a unit, and a line that counts them."""
    lines = []
    for unit, found, batches in rows:
        note = found.reason or (f"{batches} batches" if batches else "")
        lines.append([unit.model, unit.set, str(unit.seed), found.state, note])
    counts = {state: sum(found.state == state for _, found, _ in rows) for state in STATES}
    said = " · ".join(f"{n} {state}" for state, n in counts.items() if n)
    return f"{table(['model', 'set', 'seed', 'state', 'note'], lines)}\n\n{len(rows)} units: {said}"


def summary_table(whole: Sequence[tuple[Unit, Mapping[str, Any]]], axes: Sequence[str]) -> str:
    """Of every model and axis: the mean score over its finished units, how it spreads over seeds within a set and over
    the sets' means (standard deviations), the mean re-read AUC, and in how many units the axis is real.

    Raises UserError where units of one model were made from different things (`sweep.refuse_mixed`).
    """
    refuse_mixed(whole)
    rows = []
    for model in dict.fromkeys(unit.model for unit, _ in whole):
        own = [(unit, record["summary"]) for unit, record in whole if unit.model == model]
        for axis in axes:
            found = [(unit, s["axes"][axis]) for unit, s in own if axis in s["axes"]]
            if not found:
                continue
            sets = [[a["mean"] for unit, a in found if unit.set == name] for name in sorted({u.set for u, _ in found})]
            means = [float(np.mean(values)) for values in sets]
            within = [float(np.var(values, ddof=1)) for values in sets if len(values) > 1]
            rows.append(
                [
                    f"{model} {axis}",
                    f"{np.mean(means):+.2f}",
                    f"{np.sqrt(np.mean(within)):.2f}" if within else "–",
                    f"{np.std(means, ddof=1):.2f}" if len(means) > 1 else "–",
                    f"{np.mean([a['auc'] for _, a in found]):.2f}",
                    f"{sum(a['verdict'] == 'real' for _, a in found)}/{len(found)}",
                ]
            )
    scales = sorted({record["summary"]["scale"] for _, record in whole})
    header = ["model, axis", "score", "SD seeds", "SD sets", "AUC re-read", "real"]
    return f"{table(header, rows)}\n\nscores in the scale {', '.join(scales)}; means over finished units alone"
