"""What the few readouts that an ablation ends with are worth: evaluation questions, and how many questions they need.

n responses of an axis, D state size, Q questions, T training sets.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import probes
from mood_jax import readout as readouts
from mood_jax.probes.arrays import map_in_batches
from mood_jax.probes.comparisons import FEWEST_QUESTIONS, paired_auc_difference
from mood_jax.probes.directions import Estimator
from mood_jax.probes.estimators import estimator as estimator_named
from mood_jax.probes.folds import encode, standardise
from mood_jax.readout import Readout
from mood_jax.studies.selection import AxisData, Candidate, mean_difference_of
from mood_jax.studies.store import StateStore

SIZES = (5, 10, 15, 20, 25)
DRAWS = 20
_SETS_AT_ONCE = 5
# Where directions are fitted and where they are tried. The last is what a profile does: instruction in the
# calibration, none in the responses that are scored.
TRIALS = {
    "re_read": ("re_read", "re_read"),
    "in_context": ("in_context", "in_context"),
    "transfer": ("in_context", "re_read"),
}


class Reader:
    """h of any rows of a store under one readout: site RMS over the calibration rows of one condition."""

    def __init__(self, store: StateStore, readout: Readout, condition: str, calibration_rows: np.ndarray):
        self._store, self._readout = store, readout
        self._rms = readouts.site_rms(readout, self._picked(condition, calibration_rows))

    def _picked(self, condition: str, rows: np.ndarray) -> np.ndarray:
        return self._store.states(condition, rows, self._readout.sites, [self._readout.reducer])[:, :, 0]

    def __call__(self, condition: str, rows: np.ndarray) -> np.ndarray:
        """float32 [rows, D]."""
        return readouts.combine(self._readout, self._picked(condition, rows), self._rms)


def evaluation(
    store: StateStore,
    data: Sequence[AxisData],
    held_out: Sequence[AxisData],
    finalists: Mapping[str, Candidate],
    n_folds: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Directions of set A on the evaluation questions, which no choice has seen.

    Args:
        data, held_out: the axes' set A and evaluation responses, in the same order; an axis without two evaluation
            questions, or without one of its poles there, is left out.
        finalists: by role; "production" is what the others are compared with.

    Returns: per finalist and trial (`TRIALS`) the AUC and d′ of every axis and their means, and `difference`: the mean
    AUC minus production's with question-bootstrap ci95 and p. Empty where no axis has evaluation questions.
    """
    usable = [
        k
        for k, d in enumerate(held_out)
        if {-1, 1} <= set(d.sign.tolist()) and len(set(d.question[d.sign != 0].tolist())) >= FEWEST_QUESTIONS
    ]
    if not usable:
        return {}
    out: dict[str, Any] = {}
    projections: dict[tuple[str, str], list[np.ndarray]] = {}
    all_rows = np.concatenate([d.rows for d in data])
    for role, candidate in finalists.items():
        fit = _fit(estimator_named(candidate.estimator, n_folds))
        out[role] = {"candidate": candidate.name}
        for trial, (fitted, tried) in TRIALS.items():
            reader = Reader(store, candidate.readout, fitted, all_rows)
            per_axis, projections[role, trial] = {}, []
            for k in usable:
                d, test = data[k], held_out[k]
                fold = probes.grouped_folds(d.question, n_folds, seed)
                direction = fit(reader(fitted, d.rows), d.sign, fold)
                x = np.asarray(probes.project(jnp.asarray(reader(tried, test.rows)), direction.vector))
                per_axis[d.axis] = {
                    "auc": float(probes.auc(jnp.asarray(x), jnp.asarray(test.sign))),
                    "dprime": float(probes.dprime(jnp.asarray(x), jnp.asarray(test.sign))),
                }
                projections[role, trial].append(x)
            out[role][trial] = {
                "per_axis": per_axis,
                "auc": float(np.mean([v["auc"] for v in per_axis.values()])),
                "dprime": float(np.mean([v["dprime"] for v in per_axis.values()])),
            }
            if role != "production":
                pairs = [
                    paired_auc_difference(mine, theirs, held_out[k].sign, held_out[k].question, seed=seed)
                    for k, mine, theirs in zip(
                        usable, projections[role, trial], projections["production", trial], strict=True
                    )
                ]
                out[role][trial]["difference"] = mean_difference_of(pairs)
    return out


def _fit(estimator: Estimator):
    return jax.jit(
        lambda h, sign, fold: estimator(jnp.asarray(h), jnp.asarray(sign), fold=jnp.asarray(fold)),
    )


def scaling(
    store: StateStore,
    condition: str,
    data: Sequence[AxisData],
    finalists: Mapping[str, Candidate],
    n_folds: int,
    seed: int = 0,
    sizes: Sequence[int] = SIZES,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """How many questions a pole a direction needs: `draws` random sets of n questions train, all others test.

    Returns: per finalist and n (sizes that leave two questions or more): held-out auc and accuracy, in_sample_auc and
    in_sample_accuracy, gap (in-sample minus held-out accuracy), cosine to the direction of all questions; means over
    axes and draws, and auc_sd over draws.
    """
    out: dict[str, Any] = {}
    all_rows = np.concatenate([d.rows for d in data])
    for role, candidate in finalists.items():
        reader = Reader(store, candidate.readout, condition, all_rows)
        estimator = estimator_named(candidate.estimator, n_folds)
        found: dict[int, list[np.ndarray]] = {}
        for d in data:
            code = encode(d.question)
            n_questions = int(code.max()) + 1
            possible = [n for n in sizes if n <= n_questions - 2]
            if not possible:
                continue
            chosen = subsets(n_questions, possible, draws, seed)[:, code]  # T, n
            fold = probes.grouped_folds(d.question, n_folds, seed)
            h = jnp.asarray(reader(condition, d.rows))
            values = np.asarray(
                _trained(h, jnp.asarray(d.sign), jnp.asarray(fold), jnp.asarray(chosen), estimator=estimator)
            ).reshape(len(possible), draws, -1)
            for n, value in zip(possible, values, strict=True):
                found.setdefault(n, []).append(value)
        out[role] = {str(n): _summary(np.stack(values)) for n, values in sorted(found.items())}
    return out


def subsets(n_questions: int, sizes: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """[sizes · draws, Q] bool: random questions, `draws` sets of each size in turn."""
    rng = np.random.default_rng(seed)
    rows = [np.arange(n_questions) < n for n in sizes for _ in range(draws)]
    return rng.permuted(np.stack(rows), axis=1)


@functools.partial(jax.jit, static_argnames="estimator")
def _trained(h: jax.Array, sign: jax.Array, fold: jax.Array, chosen: jax.Array, *, estimator: Estimator) -> jax.Array:
    """[T, 5]: held-out AUC and accuracy, in-sample AUC and accuracy, cosine to the direction of all samples."""
    full = estimator(h, sign, fold=fold).vector

    def one(row: jax.Array) -> jax.Array:
        training, test = jnp.where(row, sign, 0), jnp.where(row, 0, sign)
        vector = estimator(h, training, fold=fold).vector
        x = standardise(probes.project(h, vector), training)
        pairs = [(probes.auc(x, s), probes.threshold_accuracy(x, s)) for s in (test, training)]
        return jnp.stack([*pairs[0], *pairs[1], jnp.sum(vector * full)])

    return map_in_batches(one, chosen, _SETS_AT_ONCE)


def _summary(values: np.ndarray) -> dict[str, float]:
    """Means over axes and draws of `_trained`'s columns [axes, draws, 5]."""
    names = ("auc", "accuracy", "in_sample_auc", "in_sample_accuracy", "cosine")
    out = {name: float(v) for name, v in zip(names, values.mean(axis=(0, 1)), strict=True)}
    return out | {
        "gap": out["in_sample_accuracy"] - out["accuracy"],
        "auc_sd": float(values[:, :, 0].std(axis=1, ddof=1).mean()),
    }
