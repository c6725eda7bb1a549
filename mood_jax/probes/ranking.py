"""Readouts compared by how well they separate the poles: rankings, and which of them hold on every axis.

A row is one readout under one estimator with its numbers; where they come from (an ablation of our own, a published
file) does not matter here. Numbers that are not finite count as not measured: they rank last and hold nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose, isfinite
from typing import Any, Literal

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.readout import WEIGHTS

Order = Literal["auc", "dprime"]

# Shares of pairs come in float32: 17 of 20 pairs must hold a share of .85.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Ranked:
    """One readout with what it achieves.

    `sites` and `weights` go together, weights sum to 1; `per_axis[axis]` has "auc" and "dprime", and the two means are
    over the axes.
    """

    name: str
    estimator: str
    reducer: str
    sites: tuple[str, ...]
    weights: tuple[float, ...]
    per_axis: dict[str, dict[str, float]]
    mean_auc: float
    mean_dprime: float

    @property
    def worst_auc(self) -> float:
        """The lowest AUC of any axis; NaN where one was not measured."""
        values = [v["auc"] for v in self.per_axis.values()]
        return min(values) if all(map(isfinite, values)) else float("nan")


def _taken(rows: Any) -> list[Ranked]:
    found = list(rows) if isinstance(rows, Iterable) else [rows]
    for row in found:
        if not isinstance(row, Ranked):
            raise UserError(f"a row is of type {type(row).__name__}; give rows of `Ranked`")
    return found


def ranking(rows: Iterable[Ranked], by: Order = "auc") -> list[Ranked]:
    """The rows, best first; equals stay in the order in which they came.

    Args:
      by: "auc": by mean AUC, then mean d′. "dprime": by mean d′ alone, as the published tables do. d′ has no upper end
        and grows without limit where the poles hardly vary, so a readout can lead by it that orders no pair better.
    Raises:
      UserError: an unknown order, or rows that are no `Ranked`.
    """
    if by not in ("auc", "dprime"):
        raise UserError(f"unknown order {by!r}; use 'auc' or 'dprime'")

    def key(row: Ranked) -> tuple[float, ...]:
        values = (row.mean_auc, row.mean_dprime) if by == "auc" else (row.mean_dprime,)
        return tuple(v if isfinite(v) else -float("inf") for v in values)

    return sorted(_taken(rows), key=key, reverse=True)  # stable in reverse too


def holds(rows: Iterable[Ranked], share: float = 0.85) -> list[Ranked]:
    """The rows whose AUC is at least `share` on every axis, in the order in which they came.

    Raises UserError for a share that is no number from 0 to 1.
    """
    share = inputs.number("share", share, 0.0, 1.0)
    return [row for row in _taken(rows) if row.worst_auc >= share - ROUNDING]


def best_per_reducer(rows: Iterable[Ranked], by: Order = "auc") -> dict[str, Ranked]:
    """The first of each reducer in `ranking(rows, by)`, in the order in which the reducers come up in `rows`."""
    rows = _taken(rows)
    best: dict[str, Ranked] = {}
    for row in ranking(rows, by):
        best.setdefault(row.reducer, row)
    return {reducer: best[reducer] for reducer in dict.fromkeys(row.reducer for row in rows)}


def production(rows: Iterable[Ranked], sites: Sequence[str] | None = None) -> Ranked | None:
    """The readout of the published system: mean difference, decay_0.9, four sites weighted .1 .2 .3 .4.

    Args:
      sites: of which four, where the rows have that weighting of several (those of the presets `article` and `last4`).
    Returns:
      The row, or None where there is none. Raises UserError where several fit.
    """
    found = [
        row
        for row in _taken(rows)
        if (row.estimator, row.reducer, len(row.weights)) == ("mean_difference", "decay_0.9", len(WEIGHTS))
        and all(isclose(a, b, abs_tol=ROUNDING) for a, b in zip(row.weights, WEIGHTS, strict=True))
        and (sites is None or row.sites == tuple(sites))
    ]
    if len(found) > 1:
        raise UserError(f"several rows are the production readout: {', '.join(row.name for row in found)}; name sites")
    return found[0] if found else None


def describe_sites(sites: Sequence[str]) -> str:
    """("resid_post@3", "resid_post@4", "resid_post@5", "final_norm") → "resid_post@3…5, final_norm"."""
    runs: list[list[str]] = []
    for k, site in enumerate(sites):
        if k and site == _after(sites[k - 1]):
            runs[-1].append(site)
        else:
            runs.append([site])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}…{run[-1].partition('@')[2]}" for run in runs)


def _after(site: str) -> str | None:
    """The site of the next block."""
    name, at, block = site.partition("@")
    return f"{name}@{int(block) + 1}" if at and block.isdecimal() else None
