"""Collecting responses and their states, unit by unit, so that an interrupted run goes on where it stopped.

A unit is one batch: generated, read again, and written as one file (`studies.unit`) that holds the states, the records
of its responses, and what they were made from. Units are planned from the whole list of questions before the first is
run, so a resumed run computes the same units with the same shapes, and the assembled files have the same bytes. A unit
of other settings is refused, a damaged one made again. `collect` puts them together in memory; `studies.store` leaves
them where they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mood_jax import processes
from mood_jax.console import Progress
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.model import Model
from mood_jax.generation.sampling import Greedy, Sampler, TopP
from mood_jax.readout import PRESETS, STATE_DTYPES, Grid, Readout
from mood_jax.studies import origin, unit

ARTICLE_SAMPLER = TopP(0.9, temperature=0.7)  # method.md, section 2
R = TypeVar("R", bound=Readout | Grid)


@dataclass(frozen=True)
class Ask:
    """One thing asked: a response id, the conversation, and what the record says of it (axis, pole, question, set)."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    about: Mapping[str, Any]

    @property
    def without_system(self) -> tuple[Mapping[str, str], ...]:
        """The conversation as it is read again: the same without its system prompt."""
        return tuple(m for m in self.messages if m["role"] != "system")


@dataclass(frozen=True)
class Collected:
    """`records` one dict a response (method.md, section 2); `states[condition]` [N, sites, reducers, D].

    In float32, or in what a `Grid` keeps its states in.
    """

    records: list[dict[str, Any]]
    states: dict[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        return np.asarray([r[name] for r in self.records])


@dataclass(frozen=True)
class Protocol(Generic[R]):
    """How a study asks and reads. The defaults are those of method.md, section 2. `full`, `prompt_slots`: as of
    `api.plan`."""

    readout: R
    max_new_tokens: int
    sampler: Sampler = ARTICLE_SAMPLER
    seed: int = 0
    batch_size: int = 64
    full: bool = False
    prompt_slots: int = 0

    def describe(self) -> dict[str, Any]:
        """What of it decides the numbers, JSON-ready."""
        sampler = (
            {"kind": "greedy"}
            if isinstance(self.sampler, Greedy)
            else {"kind": "top_p", "p": self.sampler.p, "temperature": self.sampler.temperature}
        )
        found = {
            "max_new_tokens": self.max_new_tokens,
            "sampler": sampler,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "readout": self.readout.describe(),
        }
        if isinstance(self.readout, Readout) and self.readout.name not in PRESETS:
            found["readout_content"] = asdict(self.readout)  # the phrase rounds the weights
        return found


def collect(
    model: Model,
    asks: Sequence[Ask],
    protocol: Protocol,
    *,
    re_read: bool,
    control: Model | None = None,
    folder: Path | None = None,
    claim: Callable[[], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    label: str | None = "responses",
) -> Collected:
    """Generates a response to every ask, in memory, or resumably under `folder` (units stay there).

    Args:
        re_read: read every response once more without the system prompt (condition "re_read" beside "in_context").
        control: a model that reads the same responses, with the system prompt ("random_in_context") and without it
            ("random_re_read"): see `generation.model.random_weights`. Its parameters are on the device beside the
            model's.
        claim: called before the first unit is written: everything that is wrong with the input has shown by then.
        settings: what is asked, in words (see `origin.of_collection`), so that a refusal can name what differs.

    Raises UserError: what `generate` raises, units that were made from other things, and a full disk.
    """
    options = {"re_read": re_read, "control": control, "folder": folder, "claim": claim, "label": label}
    return _assemble(asks, list(units(model, asks, protocol, settings=settings or {}, **options)))


def conditions(re_read: bool, control: bool) -> tuple[str, ...]:
    """The names of the states of a response, in the order in which they are made."""
    wanted = (True, re_read, control, control)
    return tuple(name for name, there in zip(unit.CONDITIONS, wanted, strict=True) if there)


def units(
    model: Model,
    asks: Sequence[Ask],
    protocol: Protocol,
    *,
    re_read: bool,
    control: Model | None,
    folder: Path | None,
    claim: Callable[[], None] | None,
    settings: Mapping[str, Any],
    label: str | None,
) -> Iterator[Collected]:
    """What `collect` puts together, batch by batch; under a `folder`, the states are views of the files there."""
    readout = protocol.readout
    shared = {"sites": readout.sites, "reducers": readout.reducers, "span": readout.span}
    asking = {
        "ids": [a.id for a in asks],
        "max_new_tokens": protocol.max_new_tokens,
        "sampler": protocol.sampler,
        "seed": protocol.seed,
        "batch_size": protocol.batch_size,
        "full": protocol.full,
        "prompt_slots": protocol.prompt_slots,
    }
    plan = api.plan(model, [a.messages for a in asks], **asking, **shared)
    bare = ()
    if re_read or control is not None:  # for its checks: a template may add a system prompt that is longer than ours
        bare = api.plan(model, [a.without_system for a in asks], **asking, **shared).rendered
    names = conditions(re_read, control is not None)
    prompts, bare_prompts = ([r.hash for r in rendered] for rendered in (plan.rendered, bare))
    made_from = origin.of_collection(model, protocol, asks, prompts, bare_prompts, names, control, settings)
    done = {} if folder is None else _finished_units(folder, plan, asks, protocol, names, made_from)
    rows_done = sum(len(plan.batches[k].rows) for k in done)
    progress = Progress(label, len(asks), "responses", skipped=rows_done)
    if done:
        progress.advance(0, f"{len(done)} of {len(plan.batches)} batches were there already")
    for k, batch in enumerate(plan.batches):
        if k in done:
            yield done[k]
            continue
        r = plan.run(k)
        chosen = [asks[row] for row in batch.rows]
        readers: dict[str, tuple[Model, list[Any]]] = {"re_read": (model, [a.without_system for a in chosen])}
        if control is not None:
            readers["random_in_context"] = (control, [a.messages for a in chosen])
            readers["random_re_read"] = (control, [a.without_system for a in chosen])
        states = {"in_context": r.states}
        for name in names[1:]:
            reader, prompts = readers[name]
            states[name] = api.read(reader, prompts, r, batch_size=protocol.batch_size, **shared)
        states = {c: s.astype(STATE_DTYPES[readout.dtype], copy=False) for c, s in states.items()}
        part = Collected([_record(r, i, a, protocol) for i, a in enumerate(chosen)], states)
        if folder is not None:
            if claim is not None:
                claim()
            path = _unit_path(folder, k)
            unit.write(path, part.records, part.states, made_from)
            part = open_unit(path) if processes.is_first() else part
        progress.advance(len(chosen), f"{int(r.n_tokens.sum())} tokens in this batch")
        yield part


def _known(prompt_hash: str, ask: Ask, protocol: Protocol) -> dict[str, Any]:
    """What of a record is known before the response is."""
    return {"id": ask.id, **ask.about, "seed": protocol.seed, "prompt_hash": prompt_hash}


def _record(r: api.Responses, i: int, ask: Ask, protocol: Protocol) -> dict[str, Any]:
    return {
        **_known(r.prompt_hashes[i], ask, protocol),
        "text": r.text[i],
        "tokens": [int(t) for t in r.tokens[i]],
        "n_tokens": len(r.tokens[i]),
        "finish": r.finish[i],
    }


def open_unit(path: Path) -> Collected:
    """A unit's records, and its states as views of the file. Raises UserError as `unit.read`."""
    return Collected(*unit.read(path))


def _finished_units(
    folder: Path,
    plan: api.Plan,
    asks: Sequence[Ask],
    protocol: Protocol,
    names: Sequence[str],
    made_from: Mapping[str, Any],
) -> dict[int, Collected]:
    """The units that hold what they should; a damaged one is named on stderr and done again.

    Raises UserError for a unit that was made from other things than `made_from`: it is somebody's, and stays.
    """

    def look() -> list[int]:
        found = []
        for k in range(len(plan.batches)):
            path = _unit_path(folder, k)
            if not path.is_file():
                continue
            try:
                there = unit.verify(path)
                part = open_unit(path)
            except UserError as e:
                print(f"{path.name} is done again: {e}", file=sys.stderr)
                continue
            origin.refuse_other(path, there, made_from)
            try:
                _check_unit(path, part, plan, k, asks, protocol, names)
            except UserError as e:
                print(f"{path.name} is done again: {e}", file=sys.stderr)
                continue
            found.append(k)
        return found

    return {k: open_unit(processes.shared(_unit_path(folder, k))) for k in processes.on_first(look)}


def _unit_path(folder: Path, k: int) -> Path:
    return folder / f"{k:05d}.safetensors"


def _check_unit(
    path: Path,
    part: Collected,
    plan: api.Plan,
    k: int,
    asks: Sequence[Ask],
    protocol: Protocol,
    names: Sequence[str],
) -> None:
    """Raises UserError where a unit's file does not hold the responses of batch k, and finite states of them."""
    rows = plan.batches[k].rows
    wanted = [_known(plan.rendered[row].hash, asks[row], protocol) for row in rows]
    if [r["id"] for r in part.records] != [w["id"] for w in wanted]:
        raise UserError(f"{path} holds other responses than this batch")
    for record, known in zip(part.records, wanted, strict=True):
        tokens = record.get("tokens", [])
        expected = json.loads(json.dumps(known)) | {"text": plan.model.chat.decode(tokens), "n_tokens": len(tokens)}
        if wrong := [key for key, value in expected.items() if record.get(key) != value]:
            raise UserError(f"{path}: the {wrong[0]} of {record['id']} is not what this run gives")
    readout = protocol.readout
    shape = (len(rows), len(readout.sites), len(readout.reducers), plan.model.config.d_model)
    of_each = dict.fromkeys(names, (shape, np.dtype(STATE_DTYPES[readout.dtype])))
    if {c: (s.shape, s.dtype) for c, s in part.states.items()} != of_each:
        raise UserError(f"{path} holds other states than this run's")
    unit.check_finite(path, part.states)


def _assemble(asks: Sequence[Ask], parts: Sequence[Collected]) -> Collected:
    """The units' contents in the order of the asks."""
    records = [r for p in parts for r in p.records]
    row = {r["id"]: k for k, r in enumerate(records)}
    order = [row[a.id] for a in asks]
    states = {c: np.concatenate([np.asarray(p.states[c]) for p in parts])[order] for c in parts[0].states}
    return Collected([records[k] for k in order], states)
