"""Which instructions of an axis a model follows, told from where its responses stand between borrowed poles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOVED = 0.3  # an axis is dead when no instruction moves the score between borrowed poles this far beyond doubt
OFFSET = 0.5  # SD over models of where the middle of borrowed poles lies in truth
POLE = 0.15  # SD of where an obeyed instruction leads, besides


@dataclass(frozen=True)
class Shared:
    """Scores between borrowed poles, one entry an axis: means and standard errors over questions of the uninstructed
    responses (`free`) and of those to the positive and the negative instruction."""

    free: np.ndarray
    free_se: np.ndarray
    positive: np.ndarray
    positive_se: np.ndarray
    negative: np.ndarray
    negative_se: np.ndarray


def obedience(s: Shared, a: int) -> str:
    """What the instrument says of an axis: "obeys", "positive only", "negative only" or "dead".

    "dead": neither instruction moves the re-read score, between borrowed poles, beyond doubt. Else the most likely of
    the three others, normal errors and flat in the temperament b: with an offset δ of this model's scale (SD OFFSET) an
    obeyed instruction leads to ±1 + δ (and POLE more or less), one that is not to b + δ, where the uninstructed
    responses are. Where b is near a pole, obedience to this pole cannot show, and the answer is a guess.
    """
    free, up, down = s.free[a], s.positive[a], s.negative[a]
    free_v, up_v, down_v = s.free_se[a] ** 2, s.positive_se[a] ** 2, s.negative_se[a] ** 2
    moved = max(up - free - 2 * math.sqrt(up_v + free_v), free - down - 2 * math.sqrt(down_v + free_v))
    if moved <= MOVED:
        return "dead"
    cost = {
        "obeys": _surprise([up - 1, down + 1], [up_v + POLE**2, down_v + POLE**2]),
        "positive only": _surprise([up - 1], [up_v + POLE**2]) + _surprise([down - free], [down_v + free_v], 0.0),
        "negative only": _surprise([down + 1], [down_v + POLE**2]) + _surprise([up - free], [up_v + free_v], 0.0),
    }
    return min(cost, key=lambda key: cost[key])


def _surprise(deviations: Sequence[float], variances: Sequence[float], offset: float = OFFSET) -> float:
    """−2 log likelihood of normal deviations that share one offset of SD `offset`, but for a constant."""
    covariance = np.diag(variances) + offset**2
    x = np.asarray(deviations)
    return float(x @ np.linalg.solve(covariance, x) + np.linalg.slogdet(2 * math.pi * covariance)[1])
