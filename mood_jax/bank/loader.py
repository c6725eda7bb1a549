"""YAML files → `Bank`.

A file is a mapping with `format: 1` and any of the sections `axes`, `questions`, `scenarios`, `dialogues`, `prompts`;
each section is a list of records. The shipped bank is every YAML file beside this module, read as one.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mood_jax.bank.collection import Bank, Place
from mood_jax.bank.parsing import SECTIONS, Entry
from mood_jax.bank.records import (
    LAYERWISE,
    PROFILE,
    QUESTION_SETS,
    SCENARIO_KINDS,
    Dialogue,
    Prompt,
    Question,
    Record,
    Scenario,
)
from mood_jax.bank.validate import validate
from mood_jax.errors import UserError
from mood_jax.files import expanded

FORMAT = 1
SHIPPED = Path(__file__).parent
_FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same loader in C where libyaml is there: 10× faster
_DEEP = 2000  # more brackets, or a longer line, than this could nest deep enough to overrun the C loader's stack


def compose(path: Path, what: str = "bank") -> Entry:
    """The root of a YAML file; every way in which reading can fail, as a `UserError`. `what` names it in messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a {what} in YAML") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder; give the path of one YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    deep = text.count("[") + text.count("{") > _DEEP or any(len(line) > _DEEP for line in text.splitlines())
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader if deep else _FastLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{path}:{line}: YAML: {error.problem or error.context}; mend the syntax there") from None
    except yaml.YAMLError as error:  # a character that YAML forbids; it has a position but no line
        position = getattr(error, "position", 0) or 0
        line = text.count("\n", 0, position) + 1
        reason = getattr(error, "reason", "not YAML")
        raise UserError(f"{path}:{line}: YAML: {reason}; remove the character") from None
    except RecursionError:
        raise UserError(f"{path}:1: YAML: nested too deep for a {what}; keep to its format") from None
    if node is None:
        raise UserError(f"{path}:1: format: the file is empty; begin it with `format: {FORMAT}`")
    return Entry(node, str(path), "", text)


def _read(path: Path, rank: int) -> tuple[dict[str, dict[str, Record]], dict[str, Place]]:
    """One file → its records by section and id, and their places."""
    root = compose(path)
    if not isinstance(root.node, yaml.MappingNode):
        raise UserError(f"{path}:{root.line}: format: the file is not a mapping; begin it with `format: {FORMAT}`")
    sections = root.mapping(("format",), SECTIONS)
    version = sections.pop("format")
    if getattr(version.node, "value", None) != str(FORMAT):
        version.fail(f"this version reads format {FORMAT} only; write `format: {FORMAT}`")
    records: dict[str, dict[str, Record]] = {name: {} for name in SECTIONS}
    places: dict[str, Place] = {}
    for name, section in sections.items():
        for entry in section.items():
            lines: dict[str, int] = {}
            record = SECTIONS[name](entry, lines)
            if record.id in places:
                first = places[record.id].line_of("id")
                entry.at("id").fail(
                    f"id {record.id!r} was given before, on line {first}; give it a new number", lines["id"]
                )
            records[name][record.id] = record
            places[record.id] = Place(root.file, rank, entry.line, lines)
    return records, places


def _ordered(merged: Mapping[str, Mapping[str, Any]], places: Mapping[str, Place]) -> Bank:
    """Records by axis or category, as these first appear, then by number: the file that a record is in is no matter."""
    axes = {id: i for i, id in enumerate(merged["axes"])}
    sets, kinds = (*QUESTION_SETS, PROFILE), SCENARIO_KINDS
    dialogues: list[Dialogue] = list(merged["dialogues"].values())
    prompts: list[Prompt] = list(merged["prompts"].values())

    def number(record: Record) -> int:
        return int(record.id.rsplit("/", 1)[-1])

    def rank(record: Question | Scenario) -> int:
        return axes.get(record.axis or "", len(axes))

    def first_seen(records: Iterable[Dialogue | Prompt]) -> dict[str, int]:
        return {category: i for i, category in enumerate(dict.fromkeys(r.category for r in records))}

    categories, groups = first_seen(dialogues), first_seen(prompts)
    return Bank(
        tuple(merged["axes"].values()),
        tuple(sorted(merged["questions"].values(), key=lambda q: (rank(q), sets.index(q.set), number(q)))),
        tuple(sorted(merged["scenarios"].values(), key=lambda s: (rank(s), kinds.index(s.kind)))),
        tuple(sorted(dialogues, key=lambda d: (d.kind, categories[d.category], number(d)))),
        tuple(sorted(prompts, key=lambda p: (p.kind != LAYERWISE, groups[p.category], number(p)))),
        places,
    )


def _check_axes(bank: Bank) -> None:
    """Every axis that is asked about exists, and every axis can be calibrated."""
    known = [axis.id for axis in bank.axis_records]
    asked = {question.axis for question in bank.question_records if question.set == "A"}
    for record in (*bank.question_records, *bank.scenario_records):
        if record.axis is not None and record.axis not in known:
            place = bank.places[record.id]
            raise UserError(
                f"{place.file}:{place.line_of('id')}: id: unknown axis {record.axis!r} in {record.id!r}; "
                f"add it under `axes`, or use one of: {', '.join(known)}"
            )
    for id in known:
        if id not in asked:
            place = bank.places[id]
            raise UserError(
                f"{place.file}:{place.line_of('id')}: questions: axis {id!r} has no calibration questions; "
                f"add questions with ids {id}/A/01, …"
            )


def read_files(paths: Iterable[Path], base: Bank | None = None, check: bool = True) -> Bank:
    """Reads files into one bank; a record of theirs replaces the one of `base` with the same id, or is added.

    Structure is always checked; `check=False` leaves the texts unchecked (`validate.problems` then lists them all).
    Raises `UserError` with file, line and field.
    """
    merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    places: dict[str, Place] = {}
    if base is not None:
        places |= base.places
        kinds = (
            base.axis_records,
            base.question_records,
            base.scenario_records,
            base.dialogue_records,
            base.prompt_records,
        )
        for name, records in zip(SECTIONS, kinds, strict=True):
            merged[name] = {record.id: record for record in records}
    first_rank = 1 + max((place.rank for place in places.values()), default=-1)
    for rank, path in enumerate(paths, first_rank):
        records, found = _read(Path(path), rank)
        for id, place in found.items():
            if id in places and places[id].rank >= first_rank:
                earlier = places[id]
                raise UserError(
                    f"{place.file}:{place.line_of('id')}: id: {id!r} was given before, in {earlier.file}:"
                    f"{earlier.line_of('id')}; give it a new number"
                )
        places |= found
        for name, section in records.items():
            merged[name] |= section
    bank = _ordered(merged, places)
    _check_axes(bank)
    if check:
        validate(bank, since=first_rank)
    return bank


@functools.lru_cache(maxsize=1)
def shipped() -> Bank:
    """The bank that comes with the package, read once; its texts are checked by the tests, not at every start."""
    return read_files(sorted(SHIPPED.glob("*.yaml")), check=False)


def load(path: str | os.PathLike[str], check: bool = True) -> Bank:
    """The shipped bank with a user's own YAML merged over it: equal ids replace, new ones are added.

    Raises `UserError("bank.yaml:12: field: what is wrong; remedy")` at the first mistake. `check=False` leaves out
    the checks of the texts (near duplicates, pole words, lengths of instruction pairs); see `validate.problems`.
    """
    return read_files([Path(expanded(path))], base=shipped(), check=check)
