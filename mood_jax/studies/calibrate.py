"""Calibration: the two instructions of every axis over its questions → directions, scales, evidence.

Directions and scales come from the states in context (set A, or another of the bank's calibration sets); whether an
axis is real is judged on the same responses read again without their system prompt (method.md, sections 3, 6 and 7). A
control with random weights reads the same responses: what it separates needs no training to be seen.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import artifacts, bank, probes, processes
from mood_jax import readout as readouts
from mood_jax.artifacts import AxisNames, Calibration
from mood_jax.errors import UserError
from mood_jax.generation.model import Model, random_weights
from mood_jax.probes.estimators import ESTIMATORS
from mood_jax.probes.estimators import estimator as estimator_named
from mood_jax.readout import Readout
from mood_jax.studies import origin
from mood_jax.studies.collect import Ask, Collected, Protocol, collect
from mood_jax.studies.origin import identity as identity

SETS = ("A", "B", "C")  # B and C have paraphrased instructions and questions of their own
EVALUATION = "eval"
ESTIMATOR = "mean_difference"
FOLDS = 5
MIN_RESPONSES = 4  # per pole that has any token; fewer cannot be folded by question


@dataclass(frozen=True)
class Calibrated:
    """A calibration with what it was made from: responses of all sets, and h float32 [N, D] per condition."""

    calibration: Calibration
    collected: Collected
    h: dict[str, np.ndarray]


def asks(
    source: bank.Bank, axes: Sequence[bank.Axis], samples: int = 1, cross_sets: Sequence[str] = (), base: str = "A"
) -> list[Ask]:
    """Every axis × pole × question of the sets `base` and eval, and of `cross_sets`, × sample.

    Sets B and C come with their own wording of the instructions. Raises UserError where the bank lacks it.
    """
    check_sets(base, cross_sets)
    found = []
    for axis in axes:
        for set_ in (base, EVALUATION, *cross_sets):
            for question in _questions(source, axis.id, set_):
                for sign, pole in ((1, axis.positive), (-1, axis.negative)):
                    for sample in range(samples):
                        found.append(
                            Ask(
                                f"{question.id}|{pole.name}|{sample}",
                                (
                                    {"role": "system", "content": _instruction(pole, set_)},
                                    {"role": "user", "content": question.text},
                                ),
                                {
                                    "axis": axis.id,
                                    "pole": pole.name,
                                    "sign": sign,
                                    "question": question.id,
                                    "set": set_,
                                    "sample": sample,
                                },
                            )
                        )
    return found


def check_sets(base: str, cross_sets: Sequence[str]) -> None:
    """Raises UserError for a calibration set that is unknown, and for one to compare with that is no other."""
    if base not in SETS:
        raise UserError(f"unknown calibration set {base!r}; use one of {', '.join(SETS)}")
    others = [s for s in SETS if s != base]
    if unknown := [s for s in cross_sets if s not in others]:
        raise UserError(f"unknown set {unknown[0]!r} to compare with {base}; use some of {', '.join(others)}")


def _instruction(pole: bank.Pole, set_: str) -> str:
    return pole.instruction_for(set_) if set_ in SETS else pole.instruction


def _questions(source: bank.Bank, axis: str, set_: str) -> tuple[bank.Question, ...]:
    """The set's questions; an axis of the user's own may do without the evaluation set, but not without the others."""
    if set_ == EVALUATION and not any(q.axis == axis and q.set == EVALUATION for q in source.question_records):
        return ()
    return source.questions(axis, set=set_)


def settings(
    model: Model,
    source: bank.Bank,
    axes: Sequence[bank.Axis],
    protocol: Protocol,
    samples: int = 1,
    *,
    estimator: str = ESTIMATOR,
    control: bool = True,
    cross_sets: Sequence[str] = (),
    base: str = "A",
) -> dict[str, Any]:
    """What the numbers were made from: ties a work folder and a calibration to model, texts, protocol and estimator.

    `control`: random weights read the responses too.
    """
    made_from = collected_from(model, source, axes, protocol, samples, cross_sets, base)
    return made_from | {"estimator": estimator, "random_weights": control}


def collected_from(
    model: Model,
    source: bank.Bank,
    axes: Sequence[bank.Axis],
    protocol: Protocol,
    samples: int = 1,
    cross_sets: Sequence[str] = (),
    base: str = "A",
) -> dict[str, Any]:
    """What responses and their states were made from, whatever is then done with them."""
    return origin.of_model(model) | {
        "axes": [a.id for a in axes],
        "bank": bank_hashes(source, axes, cross_sets, base),
        "protocol": protocol.describe(),
        "samples": samples,
        **({"notes": list(model.notes)} if model.notes else {}),
    }


def bank_hashes(
    source: bank.Bank, axes: Sequence[bank.Axis], cross_sets: Sequence[str] = (), base: str = "A"
) -> dict[str, str]:
    """The content hash of every set that is asked."""
    return {s: source.content_hash(s, axes=[a.id for a in axes]) for s in (base, EVALUATION, *cross_sets)}


def calibrate(
    model: Model,
    axes: Sequence[bank.Axis] | None = None,
    *,
    source: bank.Bank | None = None,
    seed: int = 0,
    readout: str = "last4",
    estimator: str | None = None,
    max_new_tokens: int = 200,
    samples: int = 1,
    batch_size: int = 64,
    control: bool = True,
    cross_sets: Sequence[str] = (),
) -> Calibration:
    """Calibrates in memory. See `run` for the resumable form that scripts use.

    Args:
        axes: from `bank.axes()` (default: all axes of the source).
        source: the bank that holds their questions (default: the shipped one; see `bank.load`).
        readout: "last4", "article", or the path of a selected.json.
        estimator: "mean_difference", "logistic" or "whitened"; None: that of a selected.json, else mean_difference.
        control, cross_sets: as of `run`.

    Raises UserError: what `generate` raises, or an axis whose responses are nearly all empty.
    """
    chosen_readout, selected = artifacts.load_readout(readout, model.config.n_layers)
    protocol = Protocol(chosen_readout, max_new_tokens, seed=seed, batch_size=batch_size)
    source = bank.shipped() if source is None else source
    return run(
        model,
        source,
        source.axes() if axes is None else axes,
        protocol,
        samples=samples,
        estimator=estimator or (selected.estimator if selected else ESTIMATOR),
        control=control,
        cross_sets=cross_sets,
        label=None,
    ).calibration


def run(
    model: Model,
    source: bank.Bank,
    axes: Sequence[bank.Axis],
    protocol: Protocol[Readout],
    *,
    samples: int = 1,
    estimator: str = ESTIMATOR,
    control: bool = True,
    cross_sets: Sequence[str] = (),
    base: str = "A",
    workdir: Path | None = None,
    label: str | None = "calibration",
) -> Calibrated:
    """Collects (resumably under `workdir`, which it ties to these settings) and analyses.

    Args:
        estimator: of `probes.estimators.ESTIMATORS`.
        control: a model with random weights reads all responses too; it takes the memory of the weights once more.
        base: the calibration set, "A", "B" or "C", that directions, scales and verdicts are made from.
        cross_sets: others of them, whose directions are compared with those of the base.

    Raises UserError: see `calibrate`.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"unknown estimator {estimator!r}; use one of {', '.join(ESTIMATORS)}")
    asked = asks(source, axes, samples, cross_sets, base)
    about = {"estimator": estimator, "control": control, "cross_sets": cross_sets, "base": base}
    made_from = settings(model, source, axes, protocol, samples, **about)
    if workdir is not None:
        artifacts.check_workdir(workdir, "calibrate", made_from)

    def claim() -> None:
        if workdir is not None:
            artifacts.claim_workdir(workdir, "calibrate", made_from)

    collected = collect(
        model,
        asked,
        protocol,
        re_read=True,
        control=random_weights(model, protocol.seed) if control else None,
        folder=None if workdir is None else workdir / "units" / "calibration",
        claim=claim,
        settings={k: made_from[k] for k in ("axes", "bank", "samples")},
        label=label,
    )
    claim()  # again, where all units were there and their claim was not
    processes.leave_others()
    return analyse(axes, collected, protocol, made_from, estimator=estimator, base=base)


def analyse(
    axes: Sequence[bank.Axis],
    collected: Collected,
    protocol: Protocol[Readout],
    made_from: dict[str, Any],
    *,
    estimator: str = ESTIMATOR,
    base: str = "A",
) -> Calibrated:
    """Responses and states → calibration. Pure: it needs no model."""
    readout = protocol.readout
    usable = collected.column("n_tokens") > 0
    set_of, axis_of, sign = (collected.column(name) for name in ("set", "axis", "sign"))
    in_base = set_of == base
    for axis in axes:
        for s, pole in ((1, axis.positive), (-1, axis.negative)):
            n = int((usable & in_base & (axis_of == axis.id) & (sign == s)).sum())
            if n < MIN_RESPONSES:
                raise UserError(
                    f"axis {axis.id}: only {n} responses to the instruction {pole.name!r} have any token; the model "
                    "ends at once: check its chat template and end-of-sequence ids"
                )
    picked = {c: states[:, :, 0] for c, states in collected.states.items()}
    rms = {
        condition: readouts.site_rms(readout, picked[condition][usable & in_base])
        for condition in ("in_context", "random_in_context")
        if condition in picked
    }
    h = {c: readouts.combine(readout, p, _divisors(rms, c)) for c, p in picked.items()}

    def rows_of(axis: bank.Axis, set_: str) -> np.ndarray:
        return np.flatnonzero((axis_of == axis.id) & (set_of == set_))

    rows = [rows_of(a, base) for a in axes]
    signs = [np.where(usable[r], sign[r], 0).astype(np.int32) for r in rows]
    question = collected.column("question")
    fit = functools.partial(_fit, estimator, protocol.seed)
    directions = [fit(h["in_context"][r], s, question[r]) for r, s in zip(rows, signs, strict=True)]
    vectors = np.stack([np.asarray(d.vector) for d in directions])
    scalings = [
        probes.calibrate_scaling(
            probes.project(jnp.asarray(h["in_context"][r]), d.vector),
            jnp.asarray(s),
            probes.project(jnp.asarray(h["re_read"][r]), d.vector),
        )
        for r, d, s in zip(rows, directions, signs, strict=True)
    ]
    scaling = probes.Scaling(*(jnp.stack(column) for column in zip(*scalings, strict=True)))
    per_axis = {c: [values[r] for r in rows] for c, values in h.items()}
    random = {c.removeprefix("random_"): v for c, v in per_axis.items() if c.startswith("random_")}
    text = collected.column("text")
    blocks = probes.evidence(
        per_axis["re_read"],
        signs,
        [question[r] for r in rows],
        [collected.column("n_tokens")[r] for r in rows],
        [collected.column("finish")[r] == "length" for r in rows],
        in_context=per_axis["in_context"],
        texts=[text[r].tolist() for r in rows],
        random_weights=random or None,
        estimator=estimator,
        k=FOLDS,
        seed=protocol.seed,
    )
    others = [s for s in (*SETS, EVALUATION) if s != base and (set_of == s).any()]
    for axis, block, direction in zip(axes, blocks, directions, strict=True):
        held_out = rows_of(axis, EVALUATION)
        pole = np.where(usable[held_out], sign[held_out], 0)
        block["evaluation"] = _evaluation(h["in_context"][held_out] @ np.asarray(direction.vector), pole)
        block["empty_responses"] = int((~usable & (axis_of == axis.id)).sum())
        of_set = {base: direction}
        for set_ in others:
            r = rows_of(axis, set_)
            of_set[set_] = fit(h["in_context"][r], np.where(usable[r], sign[r], 0).astype(np.int32), question[r])
        block["cross_set_cosine"] = _cross_set_cosines(of_set, base)
    calibration = Calibration(
        axes=tuple(AxisNames(a.id, a.positive.name, a.negative.name) for a in axes),
        readout=readout,
        directions=vectors.astype(np.float32),
        site_rms=rms["in_context"],
        scaling=scaling,
        evidence=tuple(blocks),
        identity=made_from,
    )
    return Calibrated(calibration, collected, h)


def _divisors(rms: dict[str, np.ndarray], condition: str) -> np.ndarray:
    """The states of random weights have sizes of their own."""
    return rms["random_in_context" if condition.startswith("random_") else "in_context"]


def _fit(estimator: str, seed: int, states: np.ndarray, sign: np.ndarray, question: np.ndarray) -> probes.Direction:
    """The direction of one axis; none where a pole has fewer than two samples, or all are of one question."""
    used = sign != 0
    if min((sign > 0).sum(), (sign < 0).sum()) < 2 or len(set(question[used])) < 2:
        return probes.Direction(jnp.zeros(states.shape[1]), jnp.asarray(False))
    fold = probes.grouped_folds(question, FOLDS, seed)
    fit = _compiled(estimator, int(fold.max()) + 1)
    return fit(jnp.asarray(states), jnp.asarray(sign), fold=jnp.asarray(fold))


@functools.cache
def _compiled(estimator: str, n_folds: int) -> probes.Estimator:
    return jax.jit(estimator_named(estimator, n_folds))


def _cross_set_cosines(directions: dict[str, probes.Direction], base: str) -> dict[str, float | None]:
    """Cosine of the directions of two sets, by "A-B"; None where a set has no direction. That of the base with the
    evaluation set is always there."""
    found: dict[str, float | None] = {f"{base}-{EVALUATION}": None}
    for first, second in ((base, EVALUATION), *itertools.combinations(SETS, 2)):
        if first in directions and second in directions:
            a, b = directions[first], directions[second]
            there = bool(a.ok) and bool(b.ok)
            found[f"{first}-{second}"] = float(np.asarray(a.vector) @ np.asarray(b.vector)) if there else None
    return found


def _evaluation(x: np.ndarray, sign: np.ndarray) -> dict[str, Any] | None:
    """How the whole direction separates the poles on the evaluation questions, which it was not fitted on.

    sign: 0 for a response without any token. None when a pole has fewer than two usable responses there.
    """
    if min((sign > 0).sum(), (sign < 0).sum()) < 2:
        return None
    values, signs = jnp.asarray(x), jnp.asarray(sign)
    return {
        "n": int((sign != 0).sum()),
        "auc": float(probes.auc(values, signs)),
        "dprime": float(probes.dprime(values, signs)),
        "accuracy": float(probes.midpoint_accuracy(values, signs)),
    }
