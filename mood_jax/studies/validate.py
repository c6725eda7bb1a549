"""The validation: organisms measured by the real pipeline, then every check of `validation.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax import bank
from mood_jax import readout as readouts
from mood_jax.console import Progress
from mood_jax.generation import api
from mood_jax.generation.model import Model, load_model, random_weights
from mood_jax.organisms.export import organism_folder
from mood_jax.organisms.spec import Identity, load_spec
from mood_jax.organisms.texts import load_instructions
from mood_jax.readout import preset
from mood_jax.studies import validation
from mood_jax.studies.calibrate import Calibrated
from mood_jax.studies.collect import ARTICLE_SAMPLER, Protocol
from mood_jax.studies.nulls import FalseAlarms, false_alarms, verdicts
from mood_jax.studies.subjects import BATCH, Plan, Subject, chosen, measure, reference_of
from mood_jax.studies.validation import Check

NULL = "no_style"  # the organism that hears instructions and follows none
NULL_TOKENS = 32


@dataclass(frozen=True)
class Validation:
    """Measured subjects and what every check says of them."""

    subjects: tuple[Subject, ...]
    checks: tuple[Check, ...]

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


def run(names: Sequence[str], plan: Plan, workdir: Path, *, null_seeds: int = 30) -> Validation:
    """Measures (resumably under `workdir`) and checks.

    Args:
        names: organisms, by the names of shipped ones or their folders, or single identities: `llama/dose_1`.
        null_seeds: draws of each axis for the models without style; 0: none.

    Raises UserError: an unknown organism, or one without an identity that obeys.
    """
    axes = [a.id for a in bank.axes()]
    subjects: list[Subject] = []
    wordings: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    picked = chosen(names)
    progress = Progress("subjects", sum(map(len, picked.values())), "identities")
    for name, identities in picked.items():
        first = reference_of(load_spec(organism_folder(name) / "spec.yaml"))
        for subject, made, model in measure(name, identities, plan, workdir):
            subjects.append(subject)
            progress.advance(1, subject.name)
            if subject.identity == first:
                wordings[subject.name] = held_out_scores(model, made, subject.identity, plan)
    nulls = null_models(null_seeds, plan) if null_seeds else {}
    checks = (
        validation.profile_check(subjects),
        validation.dose_check(subjects, axes),
        validation.compliance_check(subjects, axes),
        validation.false_alarm_check(nulls),
        validation.length_check(subjects, axes),
        validation.coupling_check(subjects, axes),
        validation.constancy_check(subjects),
        validation.wording_check(wordings),
    )
    return Validation(tuple(subjects), checks)


def held_out_scores(
    model: Model, made: Calibrated, identity: Identity, plan: Plan
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of responses to paraphrases of the instructions that neither training nor calibration has seen, by axis:
    those to the positive and those to the negative pole, re-read without the instruction."""
    calibration = made.calibration
    wordings, questions = load_instructions().held_out, bank.questions(set="eval")
    asked, place = [], []
    for a, axis in enumerate(bank.axes()):
        own = [q for q in questions if q.axis == axis.id]
        for p, pool in enumerate(wordings[a]):
            for k, question in enumerate(own):
                asked.append((pool[k % len(pool)], question.text))
                place.append((a, p))
    prompts = [[{"role": "system", "content": s}, {"role": "user", "content": q}] for s, q in asked]
    readout = calibration.readout
    reading = {"sites": readout.sites, "reducers": readout.reducers, "span": readout.span, "batch_size": BATCH}
    responses = api.generate(
        model, prompts, max_new_tokens=plan.calibration_tokens, sampler=ARTICLE_SAMPLER, seed=plan.seed + 1, **reading
    )
    states = api.read(model, [p[1:] for p in prompts], responses, **reading)
    x = readouts.combine(readout, np.asarray(states)[:, :, 0], calibration.site_rms) @ calibration.directions.T
    where = np.array(place)
    usable = np.asarray(responses.n_tokens) > 0
    found = {}
    for a, axis in enumerate(bank.axes()):
        if identity.is_obedient(a):
            parts = [x[(where == (a, p)).all(axis=1) & usable, a] for p in range(2)]
            found[axis.id] = (parts[0], parts[1])
    return found


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
            blocks += verdicts(reader, bank.axes(), Protocol(readout, NULL_TOKENS, seed=seed, batch_size=BATCH))
            progress.advance(1)
        found[name] = false_alarms(blocks)
    return found
