"""The profile: neutral questions without a system prompt, scored along a model's calibrated directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax import artifacts, bank, probes, processes, published
from mood_jax import readout as readouts
from mood_jax.artifacts import AxisProfile, Calibration, Profile
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.studies import origin
from mood_jax.studies.collect import Ask, Collected, Protocol, collect
from mood_jax.studies.origin import identity

SCALES: tuple[probes.Scale, ...] = ("iqr", "article", "pole", "re_read")
MOVES = 0.1  # up to this correlation (1 % of the variance) a score is not said to move with length


def asks(questions: Sequence[bank.Question], samples: int = 1) -> list[Ask]:
    """Every neutral question × sample, alone: no system prompt."""
    return [
        Ask(
            f"{q.id}|none|{sample}",
            ({"role": "user", "content": q.text},),
            {"axis": None, "pole": None, "sign": 0, "question": q.id, "set": "profile", "sample": sample},
        )
        for q in questions
        for sample in range(samples)
    ]


def check_calibration(model: Model, calibration: Calibration) -> None:
    """Raises UserError when the calibration was made for another checkpoint, or spoken to in another way.

    An imported one is of a size, and of a checkpoint only where it was imported for one (see `published.notes`).
    """
    made, mine = calibration.identity["model"], identity(model)
    if published.is_imported(calibration):
        published.check_size(calibration, model.config.n_layers, model.config.d_model, mine["name"])
        if made is None:
            return
    if made["fingerprint"] != mine["fingerprint"]:
        raise UserError(
            f"this calibration was made for another checkpoint ({made['name']}, {made['fingerprint'][:8]}…) than "
            f"{mine['name']} ({mine['fingerprint'][:8]}…); run scripts/calibrate.py on this one"
        )
    for key, what in (
        ("tokenizer_hash", "tokenizer"),
        ("template_hash", "chat template"),
        ("plain_text", "plain_text setting"),
        ("dtype", "dtype"),
    ):
        if made[key] != mine[key]:
            raise UserError(
                f"this calibration was made with another {what} ({made[key]}) than this run's ({mine[key]}); "
                "use the same, or calibrate again"
            )
    ends, own = calibration.identity.get("eos_token_ids"), list(model.chat.eos_token_ids)
    if ends is not None and ends != own:  # earlier versions did not write them down
        raise UserError(
            f"this calibration was made with other end-of-sequence ids ({ends}) than this run's ({own}); use the same "
            "generation_config.json, or calibrate again"
        )


def available_scales(calibration: Calibration, scale: str) -> tuple[probes.Scale, ...]:
    """The scalings that the calibration has constants for. Raises UserError when `scale` is none of them."""
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}; use one of {', '.join(SCALES)}")
    if not published.is_imported(calibration):
        return SCALES
    if scale != "article":
        raise UserError(
            f"the scale {scale!r} cannot be computed: {calibration.identity['imported']['file']}, which this "
            "calibration was imported from, holds no centre and no pole means; use scale article"
        )
    return ("article",)


def settings(
    model: Model, calibration: Calibration, source: bank.Bank, protocol: Protocol, samples: int = 1
) -> dict[str, Any]:
    """What the numbers were made from, as in `calibrate.settings`."""
    made = {k: calibration.identity[k] for k in ("bank", "protocol", "samples", "versions")}
    return origin.of_model(model) | {
        "axes": [a.id for a in calibration.axes],
        "bank": {"profile": source.content_hash("profile")},
        "calibration": made | {"digest": calibration.digest},
        "protocol": protocol.describe(),
        "samples": samples,
    }


def profile(
    model: Model,
    calibration: Calibration,
    *,
    source: bank.Bank | None = None,
    seed: int = 0,
    max_new_tokens: int = 384,
    samples: int = 1,
    batch_size: int = 64,
    scale: str = "iqr",
) -> Profile:
    """Profiles in memory. See `run` for the resumable form that scripts use.

    Args:
        source: the bank whose profile questions are asked (default: the shipped one).
        scale: which scaling `AxisProfile.mean` and `.ci95` show: "iqr", "article", "pole" or "re_read"; all are kept.
            An imported calibration has "article" alone.

    Raises UserError: a calibration of another checkpoint, and what `generate` raises.
    """
    protocol = Protocol(calibration.readout, max_new_tokens, seed=seed, batch_size=batch_size)
    return run(model, calibration, protocol, source=source, samples=samples, scale=scale, label=None)[0]


def run(
    model: Model,
    calibration: Calibration,
    protocol: Protocol,
    *,
    source: bank.Bank | None = None,
    samples: int = 1,
    scale: str = "iqr",
    workdir: Path | None = None,
    label: str | None = "profile",
) -> tuple[Profile, Collected]:
    """Collects (resumably under `workdir`, which it ties to these settings) and analyses."""
    check_calibration(model, calibration)
    available_scales(calibration, scale)
    if protocol.readout != calibration.readout:
        raise UserError(
            f"the calibration was made with another readout ({calibration.readout.describe()}) than this run's "
            f"({protocol.readout.describe()}); use the same, or calibrate again"
        )
    source = bank.shipped() if source is None else source
    made_from = settings(model, calibration, source, protocol, samples)
    if workdir is not None:
        artifacts.check_workdir(workdir, "measure", made_from)

    def claim() -> None:
        if workdir is not None:
            artifacts.claim_workdir(workdir, "measure", made_from)

    collected = collect(
        model,
        asks(source.questions(set="profile"), samples),
        protocol,
        re_read=False,
        folder=None if workdir is None else workdir / "units" / "profile",
        claim=claim,
        settings={k: made_from[k] for k in ("bank", "samples")},
        label=label,
    )
    claim()  # again, where all units were there and their claim was not
    processes.leave_others()
    notes = published.notes(calibration) + model.notes + _notes(model, collected)
    return analyse(calibration, collected, made_from, notes, scale=scale), collected


def _notes(model: Model, collected: Collected) -> tuple[str, ...]:
    """What else could explain the numbers, said in words."""
    notes = []
    if model.chat.default_system is not None:
        text = " ".join(model.chat.default_system.split())
        notes.append(f"the chat template adds a system prompt of its own when none is given: {text[:100]!r}")
    cut = float(np.mean(collected.column("finish") == "length"))
    if cut > 0.1:
        notes.append(f"{cut:.0%} of the responses were cut at the token budget; raise max_new_tokens to see their ends")
    empty = int((collected.column("n_tokens") == 0).sum())
    if empty:
        notes.append(f"{empty} responses were empty and are left out")
    return tuple(notes)


def analyse(
    calibration: Calibration,
    collected: Collected,
    made_from: dict[str, Any],
    notes: tuple[str, ...] = (),
    *,
    scale: str = "iqr",
) -> Profile:
    """Responses and states → profile; it needs no model. Samples of a question are averaged before any interval."""
    readout, scales = calibration.readout, available_scales(calibration, scale)
    usable = collected.column("n_tokens") > 0
    if len(set(collected.column("question")[usable])) < 2:
        raise UserError(
            "fewer than two questions have a response with any token; check the chat template and end-of-sequence ids"
        )
    h = readouts.combine(readout, collected.states["in_context"][usable][:, :, 0], calibration.site_rms)
    question = collected.column("question")[usable]
    ids = tuple(dict.fromkeys(question.tolist()))
    mean_of = np.stack([(question == q) / (question == q).sum() for q in ids]).astype(np.float32)  # [ids, responses]
    x = h @ calibration.directions.T  # responses, axes
    n_tokens = collected.column("n_tokens")[usable]
    length = _length(x, n_tokens, question)
    scores = {"raw": x} | {name: calibration.scores(x, name) for name in scales}
    averaged = np.stack([mean_of @ scores[name] for name in scales], axis=1)  # questions, scales, axes
    mean, low, high, p = probes.mean_interval(averaged)
    found = []
    for k, axis in enumerate(calibration.axes):
        summary = {
            name: {
                "mean": float(mean[i, k]),
                "sd": float(averaged[:, i, k].std(ddof=1)),
                "ci95": [float(low[i, k]), float(high[i, k])],
                "clip_rate": float(np.mean(np.abs(scores[name][:, k]) > 1)),
            }
            for i, name in enumerate(scales)
        }
        shown = float(p[scales.index(scale), k])
        own = {name: v[:, k] for name, v in scores.items()}
        found.append(AxisProfile(axis, scale, own, summary, shown, shown, calibration.evidence[k], length[k]))
    adjusted = probes.holm([a.p for a in found])
    axes = tuple(replace(a, p_holm=float(q)) for a, q in zip(found, adjusted, strict=True))
    return Profile(
        axes=axes,
        question_ids=tuple(str(q) for q in question),
        n_tokens=tuple(int(n) for n in n_tokens),
        cut_share=float(np.mean(collected.column("finish")[usable] == "length")),
        notes=notes,
        identity=made_from,
    )


def _length(x: np.ndarray, n_tokens: np.ndarray, question: np.ndarray) -> list[dict[str, Any]]:
    """Of each axis: how its projections x [responses, axes] move with the length of a response.

    With many responses any two quantities correlate beyond chance, so p is that of a correlation up to MOVES.
    """
    if len(set(question)) < 3:
        return [{} for _ in range(x.shape[1])]
    found = probes.clustered_correlation(x, n_tokens, question, least=MOVES)
    adjusted = probes.holm(found.p)
    return [
        {"r": float(r), "ci95": [float(end) for end in ci95], "least": MOVES, "p_holm": float(p)}
        for r, ci95, p in zip(found.r, found.ci95, adjusted, strict=True)
    ]
