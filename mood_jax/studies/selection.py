"""Choosing among readouts × estimators without scoring the choice on the questions that made it.

A axes, C candidates, K folds, n responses of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mood_jax.probes.comparisons import paired_auc_difference
from mood_jax.probes.student import quantile, two_sided_p
from mood_jax.readout import Readout

BOOTSTRAP = 2000


@dataclass(frozen=True)
class Candidate:
    """A readout with the estimator of its directions."""

    readout: Readout
    estimator: str

    @property
    def name(self) -> str:
        return f"{self.readout.name} by {self.estimator}"


@dataclass(frozen=True)
class AxisData:
    """The responses of one axis that count, n of them: rows of the store, signs and questions."""

    axis: str
    rows: np.ndarray
    sign: np.ndarray
    question: np.ndarray


@dataclass(frozen=True)
class Scores:
    """`probes.grid.ReadoutScores` of all candidates on all axes.

    x [C, A, n], auc and dprime [C, A, K+1], stability and ok [C, A], choice [C, A, K+1].
    """

    x: np.ndarray
    auc: np.ndarray
    dprime: np.ndarray
    stability: np.ndarray
    ok: np.ndarray
    choice: np.ndarray


def best(auc: np.ndarray, dprime: np.ndarray) -> int:
    """The candidate with the largest mean AUC over axes, of equals the one with the largest mean d′; both [C, A]."""
    mean = np.round(auc.mean(axis=1), 6)  # below that is float32 rounding
    return int(np.lexsort((-dprime.mean(axis=1), -mean))[0])


def nested(
    scores: Scores, data: Sequence[AxisData], folds: Sequence[np.ndarray], production: int, seed: int = 0
) -> dict[str, Any]:
    """What choosing is worth: in every outer fold, the candidate that is best on the other folds scores that fold.

    Args:
        folds: [n] per axis, the outer folds.
        production: number of the candidate that the choice is compared with, on the same held-out samples.

    Returns: winner (best on all folds: the choice that this judges), chosen_per_fold, auc and production_auc (mean over
    axes), per_axis, and difference with ci95 and p. `in_fold_auc` is the winner's own cross-validated AUC, a maximum
    over all candidates, to be read as such.

    The interval is a question bootstrap with fixed directions; in noise these show half of the variance
    (`probes/resampling.py`), so it is doubled.
    """
    n_folds = scores.auc.shape[2] - 1
    chosen = [best(scores.auc[:, :, i], scores.dprime[:, :, i]) for i in range(n_folds)]
    winner = best(scores.auc[:, :, -1], scores.dprime[:, :, -1])
    per_axis, values = {}, []
    for a, (d, fold) in enumerate(zip(data, folds, strict=True)):
        mine = scores.x[np.asarray(chosen)[fold], a, np.arange(len(fold))]
        reference = scores.x[production, a, : len(fold)]
        pair = paired_auc_difference(mine, reference, d.sign, d.question, n_boot=BOOTSTRAP, seed=seed)
        per_axis[d.axis] = {"auc": pair["a"], "production_auc": pair["b"]}
        values.append(pair)
    return {
        "winner": winner,
        "chosen_per_fold": chosen,
        "in_fold_auc": float(scores.auc[winner, :, -1].mean()),
        "auc": float(np.mean([v["a"] for v in values])),
        "production_auc": float(np.mean([v["b"] for v in values])),
        "per_axis": per_axis,
        "difference": mean_difference_of(values, variance_factor=2.0),
    }


def mean_difference_of(pairs: Sequence[dict[str, Any]], variance_factor: float = 1.0) -> dict[str, Any]:
    """Mean over axes of paired differences, with the interval and p of independent axes: Student's t, its degrees of
    freedom by Satterthwaite (1946)."""
    difference = float(np.mean([p["difference"] for p in pairs]))
    variances = np.square([p["se"] for p in pairs])
    df = float(variances.sum() ** 2 / sum(v * v / p["df"] for v, p in zip(variances, pairs, strict=True)))
    se = math.sqrt(variance_factor * float(variances.sum())) / len(pairs)
    reach = quantile(0.05, df) * se
    return {
        "difference": difference,
        "ci95": [difference - reach, difference + reach],
        "p": float(two_sided_p(difference / se, df)),
    }
