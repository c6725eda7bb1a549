"""Calibration: the two instructions of every axis over its questions → directions, scales, evidence.

Directions and scales come from the states in context (set A); whether an axis is real is judged on the same responses
read again without their system prompt (method.md, sections 3, 6 and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mood_jax
from mood_jax import artifacts, bank, probes
from mood_jax import readout as readouts
from mood_jax.artifacts import AxisNames, Calibration
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.studies.collect import Ask, Collected, Protocol, collect

SETS = ("A", "eval")
FOLDS = 5
MIN_RESPONSES = 4  # per pole that has any token; fewer cannot be folded by question


@dataclass(frozen=True)
class Calibrated:
    """A calibration with what it was made from: responses of sets A and eval, and h float32 [N, D] per condition."""

    calibration: Calibration
    collected: Collected
    h: dict[str, np.ndarray]


def asks(source: bank.Bank, axes: Sequence[bank.Axis], samples: int = 1) -> list[Ask]:
    """Every axis × pole × question of sets A and eval × sample."""
    found = []
    for axis in axes:
        for set_ in SETS:
            for question in _questions(source, axis.id, set_):
                for sign, pole in ((1, axis.positive), (-1, axis.negative)):
                    for sample in range(samples):
                        found.append(
                            Ask(
                                f"{question.id}|{pole.name}|{sample}",
                                (
                                    {"role": "system", "content": pole.instruction},
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


def _questions(source: bank.Bank, axis: str, set_: str) -> tuple[bank.Question, ...]:
    """The set's questions; an axis of the user's own may do without the evaluation set, but not without set A."""
    if set_ == "eval" and not any(q.axis == axis and q.set == "eval" for q in source.question_records):
        return ()
    return source.questions(axis, set=set_)


def settings(
    model: Model, source: bank.Bank, axes: Sequence[bank.Axis], protocol: Protocol, samples: int = 1
) -> dict[str, Any]:
    """What the numbers were made from: ties a work folder and a calibration to model, texts and protocol."""
    device = model.mesh.devices.flat[0]
    ids = [a.id for a in axes]
    return {
        "model": identity(model),
        "axes": ids,
        "bank": {s: source.content_hash(s, axes=ids) for s in ("A", "eval")},
        "protocol": protocol.describe(),
        "samples": samples,
        "versions": {"mood_jax": mood_jax.__version__, "jax": jax.__version__, "device": device.device_kind},
    }


def identity(model: Model) -> dict[str, Any]:
    """The checkpoint and the way it is spoken to."""
    c = model.checkpoint
    return {
        "name": Path(c.name).name if Path(c.name).is_dir() else c.name,
        "revision": c.revision,
        "fingerprint": c.fingerprint,
        "family": c.config.family,
        "dtype": c.dtype,
        "tokenizer_hash": model.chat.tokenizer_hash,
        "template_hash": model.chat.template_hash,
        "plain_text": not model.chat.has_template,
    }


def calibrate(
    model: Model,
    axes: Sequence[bank.Axis] | None = None,
    *,
    source: bank.Bank | None = None,
    seed: int = 0,
    readout: str = "last4",
    max_new_tokens: int = 200,
    samples: int = 1,
    batch_size: int = 64,
) -> Calibration:
    """Calibrates in memory. See `run` for the resumable form that scripts use.

    Args:
        axes: from `bank.axes()` (default: all axes of the source).
        source: the bank that holds their questions (default: the shipped one; see `bank.load`).
        readout: "last4" or "article".

    Raises UserError: what `generate` raises, or an axis whose responses are nearly all empty.
    """
    preset = readouts.preset(readout, model.config.n_layers)
    protocol = Protocol(preset, max_new_tokens, seed=seed, batch_size=batch_size)
    source = bank.shipped() if source is None else source
    chosen = source.axes() if axes is None else axes
    return run(model, source, chosen, protocol, samples=samples, label=None).calibration


def run(
    model: Model,
    source: bank.Bank,
    axes: Sequence[bank.Axis],
    protocol: Protocol,
    *,
    samples: int = 1,
    workdir: Path | None = None,
    label: str | None = "calibration",
) -> Calibrated:
    """Collects (resumably under `workdir`, which it ties to these settings) and analyses."""
    made_from = settings(model, source, axes, protocol, samples)
    if workdir is not None:
        artifacts.check_workdir(workdir, "calibrate", made_from)
    collected = collect(
        model,
        asks(source, axes, samples),
        protocol,
        re_read=True,
        folder=None if workdir is None else workdir / "units" / "calibration",
        claim=None if workdir is None else lambda: artifacts.claim_workdir(workdir, "calibrate", made_from),
        label=label,
    )
    return analyse(axes, collected, protocol, made_from)


def analyse(
    axes: Sequence[bank.Axis], collected: Collected, protocol: Protocol, made_from: dict[str, Any]
) -> Calibrated:
    """Responses and states → calibration. Pure: it needs no model."""
    readout = protocol.readout
    usable = collected.column("n_tokens") > 0
    in_a = collected.column("set") == "A"
    axis_of, sign = collected.column("axis"), collected.column("sign")
    for axis in axes:
        for s, pole in ((1, axis.positive), (-1, axis.negative)):
            n = int((usable & in_a & (axis_of == axis.id) & (sign == s)).sum())
            if n < MIN_RESPONSES:
                raise UserError(
                    f"axis {axis.id}: only {n} responses to the instruction {pole.name!r} have any token; the model "
                    "ends at once: check its chat template and end-of-sequence ids"
                )
    picked = {c: states[:, :, 0] for c, states in collected.states.items()}
    rms = readouts.site_rms(readout, picked["in_context"][usable & in_a])
    h = {c: readouts.combine(readout, p, rms) for c, p in picked.items()}

    rows = [np.flatnonzero((axis_of == a.id) & in_a) for a in axes]
    signs = [np.where(usable[r], sign[r], 0).astype(np.int32) for r in rows]
    fit = jax.jit(probes.fit_mean_difference)
    directions = [fit(h["in_context"][r], s) for r, s in zip(rows, signs, strict=True)]
    vectors = np.stack([np.asarray(d.vector) for d in directions])
    scalings = [
        probes.calibrate_scaling(probes.project(jnp.asarray(h["in_context"][r]), d.vector), jnp.asarray(s))
        for r, d, s in zip(rows, directions, signs, strict=True)
    ]
    scaling = probes.Scaling(*(jnp.stack(column) for column in zip(*scalings, strict=True)))
    blocks = probes.evidence(
        [h["re_read"][r] for r in rows],
        signs,
        [collected.column("question")[r] for r in rows],
        [collected.column("n_tokens")[r] for r in rows],
        [collected.column("finish")[r] == "length" for r in rows],
        in_context=[h["in_context"][r] for r in rows],
        k=FOLDS,
        seed=protocol.seed,
    )
    for axis, block, vector in zip(axes, blocks, vectors, strict=True):
        held_out = np.flatnonzero((axis_of == axis.id) & ~in_a & usable)
        block["evaluation"] = _evaluation(h["in_context"][held_out] @ vector, sign[held_out])
        block["empty_responses"] = int((~usable & (axis_of == axis.id)).sum())
    calibration = Calibration(
        axes=tuple(AxisNames(a.id, a.positive.name, a.negative.name) for a in axes),
        readout=readout,
        directions=vectors.astype(np.float32),
        site_rms=rms,
        scaling=scaling,
        evidence=tuple(blocks),
        identity=made_from,
    )
    return Calibrated(calibration, collected, h)


def _evaluation(x: np.ndarray, sign: np.ndarray) -> dict[str, Any] | None:
    """How the whole direction separates the poles on the evaluation questions, which it was not fitted on.

    None when a pole has fewer than two usable responses there.
    """
    if min((sign > 0).sum(), (sign < 0).sum()) < 2:
        return None
    values, signs = jnp.asarray(x), jnp.asarray(sign)
    return {
        "n": len(x),
        "auc": float(probes.auc(values, signs)),
        "dprime": float(probes.dprime(values, signs)),
        "accuracy": float(probes.midpoint_accuracy(values, signs)),
    }
