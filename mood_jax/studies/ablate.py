"""Ablation: which readout and estimator separate the poles best, by nested cross-validation (method.md, section 8).

Readouts are every site alone and mixes of the last blocks, under every reducer of a `StateStore`; candidates are
readouts × estimators. They are compared on the questions of set A; the evaluation questions take no part in the choice
and are scored once, at the end.

A axes, C candidates, K folds, n responses of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from mood_jax import probes
from mood_jax import readout as readouts
from mood_jax.console import Progress
from mood_jax.errors import UserError
from mood_jax.probes.estimators import ESTIMATORS
from mood_jax.probes.folds import encode
from mood_jax.probes.grid import ReadoutScores, readout_scores
from mood_jax.probes.ranking import Ranked
from mood_jax.readout import Readout
from mood_jax.studies import finalists as final
from mood_jax.studies import selection
from mood_jax.studies.calibrate import FOLDS
from mood_jax.studies.selection import AxisData, Candidate
from mood_jax.studies.store import StateStore

# Layer weights of the mixes over the last blocks, shallowest first.
MIXES: dict[str, tuple[float, ...]] = {
    "last2_equal": (1, 1),
    "last3_equal": (1, 1, 1),
    "last4_equal": (1, 1, 1, 1),
    "last6_equal": (1,) * 6,
    "last8_equal": (1,) * 8,
    "last4_production": readouts.WEIGHTS,
    "last4_inverse": readouts.WEIGHTS[::-1],
    "last4_quadratic": (1, 4, 9, 16),
}
PRODUCTION = "last4_production/decay_0.9"
CONDITIONS = ("re_read", "in_context")


@dataclass(frozen=True)
class Ablation:
    """What an ablation found.

    rows: one a candidate, in the order of `candidates`, with "auc", "dprime" and "stability" of every axis, plain
    cross-validation. winner: the best by the same rule that the nested score judges; recommended: the winner where its
    nested score is above the production readout's beyond doubt, else the production readout. nested, evaluation and
    scaling are JSON-ready. x[axis]: standardised held-out projections of the recommended candidate, with their signs.
    """

    axes: tuple[str, ...]
    condition: str
    candidates: tuple[Candidate, ...]
    rows: tuple[Ranked, ...]
    winner: Candidate
    recommended: Candidate
    nested: dict[str, Any]
    evaluation: dict[str, Any]
    scaling: dict[str, Any]
    x: dict[str, tuple[np.ndarray, np.ndarray]]


def readouts_of(sites: Sequence[str], reducers: Sequence[str]) -> list[Readout]:
    """Every site alone, then every mix that this depth allows, under each reducer in turn."""
    blocks = [s for s in sites if s.startswith("resid_post@")]
    single = [(site, (site,), (1.0,), False) for site in sites]
    mixed = []
    for name, weights in MIXES.items():
        if len(weights) <= len(blocks):
            share = tuple(float(w) / sum(weights) for w in weights)
            mixed.append((name, tuple(blocks[-len(weights) :]), share, True))
    return [
        Readout(f"{name}/{reducer}", chosen, weights, reducer, "response", normalise)
        for reducer in reducers
        for name, chosen, weights, normalise in single + mixed
    ]


def axis_data(store: StateStore, axis: str, evaluation: bool = False) -> AxisData:
    """The axis' responses of set A, or of the evaluation set, that have any token."""
    in_set = (store.column("set") == "eval") if evaluation else (store.column("set") == "A")
    rows = np.flatnonzero((store.column("axis") == axis) & in_set & (store.column("n_tokens") > 0))
    return AxisData(axis, rows, store.column("sign")[rows].astype(np.int32), store.column("question")[rows])


def run(
    store: StateStore,
    axes: Sequence[str],
    *,
    condition: str = "re_read",
    estimators: Sequence[str] = ESTIMATORS,
    seed: int = 0,
    at_once: int = 1,
    label: str | None = "ablation",
) -> Ablation:
    """Analyses a finished collection; no model is needed.

    Args:
        condition: on which states readouts are compared: "re_read", since states in context also carry the
            instruction, or "in_context", as the published ablation does.
        at_once: readouts computed together; more than 1 pays on an accelerator.

    Raises UserError: a condition that was not collected, an unknown estimator, or fewer than three questions an axis.
    """
    if condition not in store.conditions or condition not in CONDITIONS:
        raise UserError(f"these states have no condition {condition!r}; use one of {', '.join(CONDITIONS)}")
    if unknown := [e for e in estimators if e not in ESTIMATORS]:
        raise UserError(f"unknown estimator {unknown[0]!r}; use some of {', '.join(ESTIMATORS)}")
    data = [axis_data(store, axis) for axis in axes]
    rms = site_rms(store, condition, np.concatenate([d.rows for d in data]))
    found = readouts_of(store.sites, store.reducers)
    candidates = tuple(Candidate(r, e) for r in found for e in estimators)
    folds = [probes.grouped_folds(d.question, FOLDS, seed) for d in data]
    if min(int(f.max()) + 1 for f in folds) < 3:
        raise UserError("an ablation needs 3 questions an axis that have both poles; add questions, or tokens")
    n_folds = max(int(f.max()) + 1 for f in folds)
    scores = _scores(store, condition, data, folds, n_folds, rms, tuple(estimators), at_once, label)
    rows = tuple(_row(c, k, scores, axes) for k, c in enumerate(candidates))
    production = _index(candidates)
    picked = selection.nested(scores, data, folds, production, seed)
    winner = picked.pop("winner")
    recommended = winner if picked["difference"]["ci95"][0] > 0 else production
    finalists = {"production": candidates[production]}
    if recommended != production:
        finalists["recommended"] = candidates[recommended]
    elif winner != production:
        finalists["winner"] = candidates[winner]
    picked["chosen_per_fold"] = [candidates[c].name for c in picked["chosen_per_fold"]]
    picked |= {
        "production": candidates[production].name,
        "winner": candidates[winner].name,
        "recommended": candidates[recommended].name,
    }
    return Ablation(
        axes=tuple(axes),
        condition=condition,
        candidates=candidates,
        rows=rows,
        winner=candidates[winner],
        recommended=candidates[recommended],
        nested=picked,
        evaluation=final.evaluation(
            store, data, [axis_data(store, a, evaluation=True) for a in axes], finalists, n_folds, seed
        ),
        scaling=final.scaling(store, condition, data, finalists, n_folds, seed),
        x={d.axis: (scores.x[recommended, a, : len(d.sign)], d.sign) for a, d in enumerate(data)},
    )


def site_rms(store: StateStore, condition: str, rows: np.ndarray) -> np.ndarray:
    """RMS of every site and reducer over these responses and all dimensions, [sites, reducers]; 1 for a zero site.

    It scales the sites of a mix against each other. It knows nothing of the poles, so it is taken over all folds.
    """
    squares = np.zeros((len(store.sites), len(store.reducers)))
    for block in np.array_split(rows, max(1, len(rows) // 16)):
        states = store.states(condition, block)
        squares += np.einsum("nsrd,nsrd->sr", states, states, dtype=np.float64)
    rms = np.sqrt(squares / (len(rows) * store.shape[-1]))
    return np.where(rms > 0, rms, 1.0).astype(np.float32)


def _scores(
    store: StateStore,
    condition: str,
    data: Sequence[AxisData],
    folds: Sequence[np.ndarray],
    n_folds: int,
    rms: np.ndarray,
    estimators: tuple[str, ...],
    at_once: int,
    label: str | None,
) -> selection.Scores:
    """All candidates on all axes: one compiled program, run per axis and reducer."""
    half = max(int((d.sign == side).sum()) for d in data for side in (1, -1))
    blocks: list[list[ReadoutScores]] = []
    progress = Progress(label, len(data) * len(store.reducers), "axes × reducers")
    for d, fold in zip(data, folds, strict=True):
        place = np.concatenate([np.flatnonzero(d.sign > 0), np.flatnonzero(d.sign < 0)])
        slot = np.concatenate([np.arange((d.sign > 0).sum()), half + np.arange((d.sign < 0).sum())])

        def placed(values: np.ndarray, empty: int, place: np.ndarray = place, slot: np.ndarray = slot) -> np.ndarray:
            """The positive pole in the first half, the negative in the second, `empty` elsewhere."""
            out = np.full((2 * half, *values.shape[1:]), empty, values.dtype)
            out[slot] = values[place]
            return out

        arguments = [placed(v, e) for v, e in ((d.sign, 0), (encode(d.question), -1), (fold, -1))]
        per_reducer = []
        for r, reducer in enumerate(store.reducers):
            states = placed(store.states(condition, d.rows, reducers=[reducer])[:, :, 0], 0)
            found = readout_scores(
                jnp.asarray(states.swapaxes(0, 1)),
                jnp.asarray(_mixes(store.sites, rms[:, r])),
                *(jnp.asarray(v) for v in arguments),
                n_folds=n_folds,
                estimators=estimators,
                at_once=at_once,
            )
            # Back to the order of `d.rows`.
            x = np.zeros((*found.x.shape[:2], max(len(d.rows) for d in data)), np.float32)
            x[:, :, place] = np.asarray(found.x)[:, :, slot]
            per_reducer.append(found._replace(x=x))
            progress.advance(1)
        blocks.append(per_reducer)

    def gathered(field: str) -> np.ndarray:
        """[C, A, …] out of [R, E, …] per axis and reducer."""
        per_axis = [np.concatenate([np.asarray(getattr(b, field)) for b in blocks_]) for blocks_ in blocks]
        flat = [v.reshape(-1, *v.shape[2:]) for v in per_axis]
        return np.stack(flat, axis=1)

    return selection.Scores(**{f: gathered(f) for f in ReadoutScores._fields})


def _mixes(sites: Sequence[str], rms: np.ndarray) -> np.ndarray:
    """Weights of the sites in each mix, divided by their RMS, float32 [mixes, sites]."""
    mixed = [r for r in readouts_of(sites, ("mean",)) if r.normalise]
    out = np.zeros((len(mixed), len(sites)), np.float32)
    for row, readout in zip(out, mixed, strict=True):
        for site, weight in zip(readout.sites, readout.weights, strict=True):
            column = list(sites).index(site)
            row[column] = weight / rms[column]
    return out


def _row(candidate: Candidate, k: int, scores: selection.Scores, axes: Sequence[str]) -> Ranked:
    per_axis = {
        axis: {
            "auc": float(scores.auc[k, a, -1]),
            "dprime": float(scores.dprime[k, a, -1]),
            "stability": float(scores.stability[k, a]),
        }
        for a, axis in enumerate(axes)
    }
    readout = candidate.readout
    return Ranked(
        name=candidate.readout.name,
        estimator=candidate.estimator,
        reducer=readout.reducer,
        sites=readout.sites,
        weights=readout.weights,
        per_axis=per_axis,
        mean_auc=float(np.mean([v["auc"] for v in per_axis.values()])),
        mean_dprime=float(np.mean([v["dprime"] for v in per_axis.values()])),
    )


def _index(candidates: Sequence[Candidate]) -> int:
    """The production readout under the default estimator, or the first estimator that was asked for."""
    found = [k for k, c in enumerate(candidates) if c.readout.name == PRODUCTION]
    default = [k for k in found if candidates[k].estimator == ESTIMATORS[0]]
    if not found:
        raise UserError("these states lack what the production readout reads: the last four blocks under decay_0.9")
    return (default or found)[0]
