"""The validation: organisms measured by the real pipeline, then every check of `validation.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mood_jax import bank
from mood_jax.console import Progress
from mood_jax.generation.model import load_model, random_weights
from mood_jax.organisms.export import organism_folder
from mood_jax.organisms.spec import load_spec
from mood_jax.readout import preset
from mood_jax.studies import validation, workers
from mood_jax.studies.collect import Protocol
from mood_jax.studies.nulls import FalseAlarms, false_alarms, verdicts
from mood_jax.studies.subjects import Plan, Subject, chosen, reference_of
from mood_jax.studies.validation import Check

NULL = "no_style"  # the organism that hears instructions and follows none
NULL_TOKENS, NULL_BATCH = 32, 140


@dataclass(frozen=True)
class Validation:
    """Measured subjects and what every check says of them; `jobs`: the processes that measured them."""

    subjects: tuple[Subject, ...]
    checks: tuple[Check, ...]
    jobs: int = 1

    def as_json(self) -> dict[str, Any]:
        """For validation.json."""
        axes = [a.id for a in bank.axes()]
        return {
            "checks": [dataclasses.asdict(c) | {"verdict": c.verdict} for c in self.checks],
            "subjects": {
                s.name: {
                    axis: {
                        "planted": s.identity.temperament[a],
                        "realised": float(s.realised[a]),
                        "measured": float(s.measured[a]),
                        "realised_gap": float(s.gap[a]),
                        "shared_gap": float(s.shared.positive[a] - s.shared.negative[a]),
                        "shared": {
                            name: [float(getattr(s.shared, name)[a]), float(getattr(s.shared, f"{name}_se")[a])]
                            for name in ("free", "positive", "negative")
                        },
                        "said": s.said[a],
                        "verdict": s.evidence[a]["verdict"],
                    }
                    for a, axis in enumerate(axes)
                }
                for s in self.subjects
            },
        }


def run(
    names: Sequence[str], plan: Plan, workdir: Path, *, null_seeds: int = 30, jobs: int | None = None
) -> Validation:
    """Measures (resumably under `workdir`) and checks.

    Args:
        names: organisms, by the names of shipped ones or their folders, or single identities: `llama/dose_1`.
        null_seeds: draws of each axis for the models without style; 0: none.
        jobs: processes that measure organisms side by side; None: see `workers.default`. Results depend on it by
            rounding alone, since a process has fewer threads where there are several.

    Raises UserError: an unknown organism, or one without an identity that obeys.
    """
    axes = [a.id for a in bank.axes()]
    picked = chosen(names)
    for name in picked:
        reference_of(load_spec(organism_folder(name) / "spec.yaml"))  # a mistake shows before anything is computed
    progress = Progress("subjects", sum(map(len, picked.values())), "identities")

    def tell(subject: str) -> None:
        progress.advance(1, subject)

    jobs = min(workers.default() if jobs is None else jobs, len(picked))
    subjects = workers.measured(picked, plan, workdir, jobs, tell)
    nulls = null_models(null_seeds, plan) if null_seeds else {}
    checks = (
        validation.profile_check(subjects),
        validation.dose_check(subjects, axes),
        validation.compliance_check(subjects, axes),
        validation.false_alarm_check(nulls),
        validation.length_check(subjects, axes),
        validation.coupling_check(subjects, axes),
        validation.constancy_check(subjects),
        validation.wording_check({s.name: s.held_out for s in subjects if s.held_out}),
    )
    return Validation(tuple(subjects), checks, jobs)


def null_models(seeds: int, plan: Plan) -> dict[str, FalseAlarms]:
    """False alarms of untrained weights, anew for each seed, and of the organism that follows no instruction."""
    model = load_model(str(organism_folder(NULL)), dtype="float32")
    readout = preset("last4", model.config.n_layers)
    found = {}
    for name in ("untrained", NULL):
        blocks = []
        progress = Progress(f"nulls, {name}", seeds, "seeds")
        for seed in range(plan.seed, plan.seed + seeds):
            reader = random_weights(model, seed) if name == "untrained" else model
            blocks += verdicts(reader, bank.axes(), Protocol(readout, NULL_TOKENS, seed=seed, batch_size=NULL_BATCH))
            progress.advance(1)
        found[name] = false_alarms(blocks)
    return found
