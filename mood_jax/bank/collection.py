"""`Bank`: records that were read together, what can be asked of them, and their content hashes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mood_jax.bank.records import (
    ANCHOR,
    CALIBRATION_SETS,
    CONFLICT,
    CONTROL,
    LAYERWISE,
    PROFILE,
    QUESTION_SETS,
    SCENARIO_KINDS,
    Axis,
    Dialogue,
    Prompt,
    Question,
    Record,
    Scenario,
)
from mood_jax.errors import UserError

HASHED_SETS = ("axes", *QUESTION_SETS, PROFILE, "formulations", "scenarios", CONFLICT, CONTROL, LAYERWISE, ANCHOR)


@dataclass(frozen=True)
class Place:
    """Where a record was written: `rank` counts the files in reading order, `lines` maps a field to its line."""

    file: str
    rank: int
    line: int
    lines: Mapping[str, int]

    def line_of(self, name: str) -> int:
        return self.lines.get(name, self.line)


def _one_of(what: str, name: str, known: Iterable[str]) -> None:
    known = tuple(dict.fromkeys(known))
    if name not in known:
        raise UserError(f"unknown {what} {name!r}; use one of: {', '.join(known)}")


@dataclass(frozen=True)
class Bank:
    """All that can be asked. Records stand in the order of their ids' numbers; `places` says where each was read."""

    axis_records: tuple[Axis, ...]
    question_records: tuple[Question, ...]
    scenario_records: tuple[Scenario, ...] = ()
    dialogue_records: tuple[Dialogue, ...] = ()
    prompt_records: tuple[Prompt, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict, repr=False, compare=False)

    @property
    def records(self) -> tuple[Record, ...]:
        """Every record of every kind."""
        return (
            *self.axis_records,
            *self.question_records,
            *self.scenario_records,
            *self.dialogue_records,
            *self.prompt_records,
        )

    def axes(self) -> tuple[Axis, ...]:
        """Every axis, in the order of the bank."""
        return self.axis_records

    def axis(self, id: str) -> Axis:
        """The axis with this id; `UserError` with the known ids if there is none."""
        _one_of("axis", id, (axis.id for axis in self.axis_records))
        return next(axis for axis in self.axis_records if axis.id == id)

    def questions(self, axis: str | None = None, set: str = "A") -> tuple[Question, ...]:
        """The questions of a set in the order of their numbers, of one axis or, with `axis=None`, of all of them.

        `set="profile"` gives the neutral questions, which belong to no axis. Raises `UserError` for an unknown axis
        or set, and for a combination that the bank has no questions for.
        """
        _one_of("question set", set, (*QUESTION_SETS, PROFILE))
        if axis is not None:
            self.axis(axis)
            if set == PROFILE:
                raise UserError(f"profile questions belong to no axis; ask for questions(set={PROFILE!r})")
        found = tuple(q for q in self.question_records if q.set == set and axis in (None, q.axis))
        if not found:
            id = f"{PROFILE}/01" if set == PROFILE else f"{axis or self.axis_records[0].id}/{set}/01"
            raise UserError(
                f"the bank has no questions in set {set!r}{f' for axis {axis!r}' if axis else ''}; "
                f"add some with ids {id}, …"
            )
        return found

    def scenarios(self, axis: str | None = None, kind: str | None = None) -> tuple[Scenario, ...]:
        """Benchmark scenarios, of one axis or all, of one kind ("strong", "more", "less") or all."""
        if axis is not None:
            self.axis(axis)
        if kind is not None:
            _one_of("scenario kind", kind, SCENARIO_KINDS)
        return tuple(s for s in self.scenario_records if axis in (None, s.axis) and kind in (None, s.kind))

    def dialogues(self, category: str | None = None) -> tuple[Dialogue, ...]:
        """Dialogues of a category ("sarcasm", …), all "conflict" ones, the "control" ones, or, with None, all."""
        if category is not None:
            _one_of("dialogue category", category, (CONFLICT, CONTROL, *(d.category for d in self.dialogue_records)))
        return tuple(d for d in self.dialogue_records if category in (None, d.kind, d.category))

    def prompts(self, category: str | None = None) -> tuple[Prompt, ...]:
        """Prompts of the layer-wise study, of one category or all."""
        return self._prompts(LAYERWISE, "prompt category", category)

    def anchors(self, style: str | None = None) -> tuple[Prompt, ...]:
        """Anchor prompts of the layer-wise study, of one style or all."""
        return self._prompts(ANCHOR, "anchor style", style)

    def _prompts(self, kind: str, what: str, category: str | None) -> tuple[Prompt, ...]:
        of_kind = tuple(p for p in self.prompt_records if p.kind == kind)
        if category is not None:
            _one_of(what, category, (p.category for p in of_kind))
        return tuple(p for p in of_kind if category in (None, p.category))

    def content_hash(self, *sets: str, axes: Iterable[str] | None = None) -> str:
        """sha256 (hex) of what the sets ask: ids, texts and instructions, not their spelling in YAML.

        `sets` are names of `HASHED_SETS`; none means all of them. "axes" are the poles' names and production
        instructions; a calibration set includes the instructions that it is asked under. `axes` narrows sets that
        belong to axes to some of them, so that an axis which a user adds leaves the hash of the others alone. The
        order of files and records does not matter.
        """
        for name in sets:
            _one_of("set", name, HASHED_SETS)
        chosen = [self.axis(id) for id in axes] if axes is not None else list(self.axis_records)
        content = {name: self._content(name, chosen) for name in sets or HASHED_SETS}
        canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _content(self, name: str, axes: list[Axis]) -> dict[str, Any]:
        ids = {axis.id for axis in axes}
        if name == "formulations":
            return {axis.id: [[pole.name, sorted(pole.formulations)] for pole in axis.poles] for axis in axes}
        if name == "scenarios":
            return {s.id: [s.system, list(s.turns)] for s in self.scenario_records if s.axis in ids}
        if name in (CONFLICT, CONTROL):
            return {d.id: [list(d.turns), list(d.recovery)] for d in self.dialogue_records if d.kind == name}
        if name in (LAYERWISE, ANCHOR):
            return {p.id: p.text for p in self.prompt_records if p.kind == name}
        content: dict[str, Any] = {}
        if name in ("axes", *CALIBRATION_SETS):
            spelling = "A" if name == "axes" else name
            for axis in axes:
                texts = [[p.name, {"A": p.instruction, **dict(p.paraphrases)}.get(spelling)] for p in axis.poles]
                content[axis.id] = texts
        for question in self.question_records:
            if question.set == name and (question.axis is None or question.axis in ids):
                content[question.id] = [question.text, question.topic]
        return content
