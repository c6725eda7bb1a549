"""Organisms as subjects of the instrument: each identity is calibrated and profiled like any model.

Beside its own calibration an identity has *borrowed* poles (`borrowed.py`): it reads the texts of the reference, an
identity of the same organism that obeys every instruction. On that scale, the same for all its responses, stand its
uninstructed ones and those to both instructions, all read without any instruction in front of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax import bank
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.model import Model, load_model
from mood_jax.organisms.export import export_identity, organism_folder, read_realised
from mood_jax.organisms.spec import Identity, OrganismSpec, load_spec
from mood_jax.organisms.texts import load_instructions
from mood_jax.readout import preset
from mood_jax.studies import borrowed, calibrate, profile
from mood_jax.studies.borrowed import Borrowed
from mood_jax.studies.calibrate import Calibrated
from mood_jax.studies.collect import ARTICLE_SAMPLER, Collected, Protocol
from mood_jax.studies.obedience import Shared, obedience

# An organism's decode steps are compiled once, and not for profiles, calibrations and other wordings apart: batches of
# one size, full, with room for the longest prompts of either. 80 divides the 560 prompts of a calibration. Rows cost
# the same in batches of 48 to 140 here.
SHAPES: dict[str, Any] = {"batch_size": 80, "full": True, "prompt_slots": 96}
READ = 140  # responses read at once, at most
CROSSED = ("B", "C")
SCALE = "re_read"


@dataclass(frozen=True)
class Subject:
    """One identity, measured. Arrays have one entry an axis, in the order of the bank.

    own, own_sd: profile on its own calibration, scale `re_read`, and the SD over questions; scores: [axes, responses];
    own_length_out: `own` with the length of the responses taken out; length: how the scores move with it
    (`AxisProfile.length`); evidence: of its own calibration; truth: its part of realised.json; held_out, of the
    reference: scores of responses to paraphrases of the positive and the negative instruction, by axis.
    """

    organism: str
    identity: Identity
    truth: dict[str, Any]
    own: np.ndarray
    own_sd: np.ndarray
    scores: np.ndarray
    own_length_out: np.ndarray
    length: tuple[dict[str, Any], ...]
    evidence: tuple[dict[str, Any], ...]
    shared: Shared
    held_out: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.organism}/{self.identity.name}"

    @property
    def realised(self) -> np.ndarray:
        """Uninstructed style amounts, counted from sampled text."""
        return np.array([row["realised"] for row in self.truth["uninstructed"].values()])

    @property
    def halves(self) -> np.ndarray:
        """The same counted from two halves of the sample, [2, axes]."""
        return np.array([row["halves"] for row in self.truth["uninstructed"].values()]).T

    @property
    def gap(self) -> np.ndarray:
        """What the two instructions move the style apart, of 2."""
        return np.array([row["gap"] for row in self.truth["instructed"]["production"].values()])

    @property
    def said(self) -> list[str]:
        """What the instrument says of each axis' obedience."""
        return [obedience(self.shared, a) for a in range(len(self.own))]

    @property
    def measured(self) -> np.ndarray:
        """The style amounts as measured: between its own poles where it obeys both instructions and the verdict is
        real, else between borrowed ones."""
        obeys = np.array([said == "obeys" for said in self.said])
        return np.where(self.real & obeys, self.own, self.shared.free)

    @property
    def real(self) -> np.ndarray:
        """bool: the verdict on its own calibration."""
        return np.array([block["verdict"] == "real" for block in self.evidence])


@dataclass(frozen=True)
class Plan:
    """How subjects are measured: samples a question of the profile and of each pole, seed, and the responses' budgets
    in tokens."""

    samples: int = 3
    pole_samples: int = 2
    seed: int = 0
    calibration_tokens: int = 200
    profile_tokens: int = 200


def chosen(names: Sequence[str]) -> dict[str, list[str]]:
    """Organisms, by the names of shipped ones or folders, and their identities: of `llama` all, of `llama/dose_1` that
    one. UserError for an unknown one, and for two of one name, which would share their folders."""
    found: dict[str, list[str]] = {}
    called: dict[str, str] = {}
    for name in names:
        organism, _, identity = name.rpartition("/")
        whole = not identity or not organism or _is_organism(name)
        spec = load_spec(organism_folder(name if whole else organism) / "spec.yaml")
        wanted = [i.name for i in spec.identities] if whole else [spec.identities[spec.index(identity)].name]
        place = name if whole else organism
        if called.setdefault(spec.name, place) != place:
            raise UserError(
                f"two organisms are called {spec.name!r}: {called[spec.name]} and {place}; name one anew in its "
                "spec.yaml, or validate one at a time"
            )
        kept = found.setdefault(place, [])
        kept += [w for w in wanted if w not in kept]
    return found


def _is_organism(name: str) -> bool:
    return (Path(name) / "spec.yaml").is_file()


def reference_of(spec: OrganismSpec) -> Identity:
    """The first identity that obeys every instruction. UserError where there is none."""
    for identity in spec.identities:
        if all(identity.is_obedient(a) for a in range(len(identity.temperament))):
            return identity
    raise UserError(f"organism {spec.name}: no identity obeys every instruction; the validation needs one as reference")


def measure(organism: str, names: Sequence[str], plan: Plan, workdir: Path) -> Iterator[Subject]:
    """Measures identities of an organism one by one, resumably under `workdir`. The reference is measured too, and
    yielded where it is named."""
    folder = organism_folder(organism)
    spec, whole = load_spec(folder / "spec.yaml"), read_realised(folder)
    first = reference_of(spec)
    reference: Calibrated | None = None
    for identity in dict.fromkeys([first, *(spec.identities[spec.index(name)] for name in names)]):
        place = workdir / spec.name / identity.name
        model = load_model(str(export_identity(folder, identity.name, place / "checkpoint")), dtype="float32")
        crossed = CROSSED if _shows_constancy(spec, identity) else ()
        made, found, states = _run(model, plan, place, crossed)
        reference = made if reference is None else reference
        if identity.name in names:
            truth = whole["identities"][identity.name] | {"free_responses": whole["free_responses"]}
            shared = _shared(_borrow(model, reference), made, found, states)
            subject = _subject(spec.name, identity, truth, made, found, shared)
            if identity == first:
                subject = replace(subject, held_out=_held_out_scores(model, made, identity, plan))
            yield subject


def _borrow(model: Model, reference: Calibrated) -> Borrowed:
    source, axes = bank.shipped(), [a.id for a in reference.calibration.axes]
    usual = np.isin(reference.collected.column("set"), ("A", calibrate.EVALUATION))
    records = [r for r, keep in zip(reference.collected.records, usual, strict=True) if keep]
    samples = 1 + max(r["sample"] for r in records)
    asks = calibrate.asks(source, source.axes(), samples)
    return borrowed.poles(model, asks, Collected(records, {}), axes, reference.calibration.readout, READ)


def _shows_constancy(spec: OrganismSpec, identity: Identity) -> bool:
    """In an organism with an identity that never changes, that one and those that change with every response."""
    return any(i.coherence == 0 for i in spec.identities) and identity.coherence in (0, 1)


def _run(
    model: Model, plan: Plan, place: Path, cross_sets: Sequence[str] = ()
) -> tuple[Calibrated, profile.Profile, np.ndarray]:
    """Calibration, profile, and the raw states [responses, sites, D] of the profile."""
    source = bank.shipped()
    readout = preset("last4", model.config.n_layers)
    protocol = Protocol(readout, plan.calibration_tokens, seed=plan.seed, **SHAPES)
    made = calibrate.run(
        model,
        source,
        source.axes(),
        protocol,
        samples=plan.pole_samples,
        control=False,
        cross_sets=cross_sets,
        workdir=place,
        label=None,
    )
    protocol = Protocol(readout, plan.profile_tokens, seed=plan.seed, **SHAPES)
    found, collected = profile.run(
        model, made.calibration, protocol, samples=plan.samples, scale=SCALE, workdir=place, label=None
    )
    usable = collected.column("n_tokens") > 0
    return made, found, collected.states["in_context"][usable][:, :, 0]


def _held_out_scores(
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
    reading = {"sites": readout.sites, "reducers": readout.reducers, "span": readout.span}
    responses = api.generate(
        model,
        prompts,
        max_new_tokens=plan.calibration_tokens,
        sampler=ARTICLE_SAMPLER,
        seed=plan.seed + 1,
        **SHAPES,
        **reading,
    )
    states = api.read(model, [p[1:] for p in prompts], responses, batch_size=READ, **reading)
    x = readouts.combine(readout, np.asarray(states)[:, :, 0], calibration.site_rms) @ calibration.directions.T
    where = np.array(place)
    usable = np.asarray(responses.n_tokens) > 0
    found = {}
    for a, axis in enumerate(bank.axes()):
        if identity.is_obedient(a):
            parts = [x[(where == (a, p)).all(axis=1) & usable, a] for p in range(2)]
            found[axis.id] = (parts[0], parts[1])
    return found


def _rows(made: Calibrated, axis: str, sign: int) -> np.ndarray:
    c = made.collected
    return np.flatnonzero(
        (c.column("axis") == axis)
        & (c.column("sign") == sign)
        & (c.column("n_tokens") > 0)
        & np.isin(c.column("set"), ("A", "eval"))
    )


def _length_out(made: Calibrated, found: profile.Profile) -> np.ndarray:
    """Profile means [axes] on the identity's own directions, scale `pole`, with length taken out as an analysis of
    covariance does: the slope is that within the poles of the calibration, and all are compared at its mean length."""
    c = made.collected
    tokens, free_tokens = c.column("n_tokens").astype(float), np.array(found.n_tokens, float)
    x = made.h["in_context"] @ made.calibration.directions.T
    adjusted = []
    for a, axis in enumerate(found.axes):
        poles = [np.intersect1d(_rows(made, axis.axis.id, s), np.flatnonzero(c.column("set") == "A")) for s in (1, -1)]
        means = [(x[rows, a].mean(), tokens[rows].mean()) for rows in poles]
        residual = [(x[rows, a] - m, tokens[rows] - t) for rows, (m, t) in zip(poles, means, strict=True)]
        spread = sum(float(t @ t) for _, t in residual)
        slope = sum(float(y @ t) for y, t in residual) / spread if spread > 0 else 0.0
        middle = tokens[np.concatenate(poles)].mean()
        high, low = (m - slope * (t - middle) for m, t in means)
        free = axis.scores["raw"].mean() - slope * (free_tokens.mean() - middle)
        adjusted.append(2 * (free - low) / (high - low) - 1)
    return np.array(adjusted)


def _shared(scale: Borrowed, made: Calibrated, found: profile.Profile, states: np.ndarray) -> Shared:
    free = scale.scores(states)
    x = scale.scores(made.collected.states["re_read"][:, :, 0])
    poles = []
    for sign in (1, -1):
        parts = [x[_rows(made, a.id, sign), k] for k, a in enumerate(made.calibration.axes)]
        poles.append([(p.mean(), p.std(ddof=1) / np.sqrt(len(p))) for p in parts])
    (positive, positive_se), (negative, negative_se) = (np.array(p).T for p in poles)
    by_question = np.array(
        [free[np.array(found.question_ids) == q].mean(axis=0) for q in dict.fromkeys(found.question_ids)]
    )
    free_se = by_question.std(axis=0, ddof=1) / np.sqrt(len(by_question))
    return Shared(free.mean(axis=0), free_se, positive, positive_se, negative, negative_se)


def _subject(
    organism: str,
    identity: Identity,
    truth: dict[str, Any],
    made: Calibrated,
    found: profile.Profile,
    shared: Shared,
) -> Subject:
    return Subject(
        organism=organism,
        identity=identity,
        truth=truth,
        own=np.array([a.mean for a in found.axes]),
        own_sd=np.array([a.summary[SCALE]["sd"] for a in found.axes]),
        scores=np.array([a.scores[SCALE] for a in found.axes]),
        own_length_out=_length_out(made, found),
        length=tuple(a.length for a in found.axes),
        evidence=made.calibration.evidence,
        shared=shared,
    )
