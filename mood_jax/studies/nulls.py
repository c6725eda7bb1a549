"""False alarms: how often an axis is called real in models that have no style, with the instruction in their context.

Untrained weights and organisms without any style obey nothing, yet their in-context states separate the poles, since
the instruction is in the context. A verdict, judged on the responses read again without it, may be "real" in 5 % of
draws at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mood_jax import bank, probes
from mood_jax import readout as readouts
from mood_jax.generation.model import Model
from mood_jax.probes.verdicts import ALPHA
from mood_jax.readout import Readout
from mood_jax.studies.calibrate import FOLDS, asks
from mood_jax.studies.collect import Protocol, collect

LEAK = "instruction leak"  # how the reason of a verdict names it


@dataclass(frozen=True)
class FalseAlarms:
    """Verdicts over draws (one axis of one model and seed each) of models without any style.

    real: share of draws called real. bound: ALPHA and two binomial standard errors. leaks: share of the draws that are
    not real whose reason names the leak. in_context_auc, re_read_auc: means.
    """

    draws: int
    real: float
    leaks: float
    in_context_auc: float
    re_read_auc: float

    @property
    def bound(self) -> float:
        return ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / self.draws)

    @property
    def passed(self) -> bool:
        """At most the bound is real, and the leak is there (else nothing was tested) and named."""
        return self.real <= self.bound and self.in_context_auc > 0.9 and self.leaks > 0.9


def verdicts(
    model: Model,
    axes: Sequence[bank.Axis],
    protocol: Protocol[Readout],
    source: bank.Bank | None = None,
    *,
    n_boot: int = 2000,
    n_perm: int = 2000,
) -> list[dict[str, Any]]:
    """The evidence of all axes on set A, as a calibration judges it; `n_boot` and `n_perm` as of `probes.evidence`."""
    asked = [a for a in asks(bank.shipped() if source is None else source, axes) if a.about["set"] == "A"]
    collected = collect(model, asked, protocol, re_read=True, label=None)
    usable = collected.column("n_tokens") > 0
    picked = {c: states[:, :, 0] for c, states in collected.states.items()}
    rms = readouts.site_rms(protocol.readout, picked["in_context"][usable])
    h = {c: readouts.combine(protocol.readout, states, rms) for c, states in picked.items()}
    rows = [np.flatnonzero(collected.column("axis") == a.id) for a in axes]
    sign = np.where(usable, collected.column("sign"), 0).astype(np.int32)
    return probes.evidence(
        [h["re_read"][r] for r in rows],
        [sign[r] for r in rows],
        [collected.column("question")[r] for r in rows],
        [collected.column("n_tokens")[r] for r in rows],
        [collected.column("finish")[r] == "length" for r in rows],
        in_context=[h["in_context"][r] for r in rows],
        texts=[collected.column("text")[r].tolist() for r in rows],
        k=FOLDS,
        seed=protocol.seed,
        n_boot=n_boot,
        n_perm=n_perm,
        n_random=20,  # serve no verdict
        n_splits=2,
    )


def false_alarms(blocks: Iterable[dict[str, Any]]) -> FalseAlarms:
    """Counts the verdicts of many draws."""
    blocks = list(blocks)
    quiet = [b for b in blocks if b["verdict"] != "real"]
    return FalseAlarms(
        draws=len(blocks),
        real=1 - len(quiet) / len(blocks),
        leaks=sum(LEAK in b["reason"] for b in quiet) / max(1, len(quiet)),
        in_context_auc=float(np.mean([b["in_context"]["auc"] for b in blocks])),
        re_read_auc=float(np.mean([b["re_read"]["auc"] for b in blocks])),
    )
