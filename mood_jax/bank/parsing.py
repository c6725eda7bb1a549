"""YAML nodes → records, with the file, line and field of everything that is wrong with them.

Nodes are read as PyYAML composes them (safe: nothing but text and lists is ever made of them), because they still know
their lines. `schema.json` says the same of the format as this file does.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

import yaml

from mood_jax.bank.records import (
    ANCHOR,
    CALIBRATION_SETS,
    CONFLICT,
    CONTROL,
    FORMULATIONS,
    LAYERWISE,
    PROFILE,
    QUESTION_SETS,
    SCENARIO_KINDS,
    TOPICS,
    Axis,
    Dialogue,
    Pole,
    Prompt,
    Question,
    Record,
    Scenario,
)
from mood_jax.errors import UserError

_NAME = r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*"
AXIS_ID = re.compile(_NAME)
QUESTION_ID = re.compile(r"(?:(?P<axis>[^/\s]+)/(?P<set>[^/\s]+)|profile)/[0-9]{2,3}")
SCENARIO_ID = re.compile(r"(?P<axis>[^/\s]+)/(?P<kind>[^/\s]+)")
DIALOGUE_ID = re.compile(rf"(?:conflict/(?P<category>{_NAME})|control)/[0-9]{{2,3}}")
PROMPT_ID = re.compile(rf"(?P<kind>layerwise|anchor)/(?P<category>{_NAME})/[0-9]{{2,3}}")
RESERVED = (PROFILE, CONFLICT, CONTROL, LAYERWISE, ANCHOR)  # they begin other ids, so no axis may be called so

_KINDS = {
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "true/false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:seq": "a list",
    "tag:yaml.org,2002:map": "a mapping",
}

_COMMENT = re.compile(r"[ \t]+(#[^\r\n]*)")
# Letters and symbols without any ink: fillers of Hangul, inherent vowels of Khmer, the blank of Braille.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")

Lines = dict[str, int]


def unfit(text: str) -> str | None:
    """Why a text cannot be said to a model, with the remedy: characters that are none, or nothing to be seen."""
    for character in text:
        kind = unicodedata.category(character)
        if (kind == "Cc" and character not in "\n\t") or kind == "Cs" or ord(character) & 0xFFFE == 0xFFFE:
            return f"the text holds the control character U+{ord(character):04X}; remove it"
    if not any(unicodedata.category(c)[0] in "LNPS" and c not in _BLANK for c in text):
        codes = ", ".join(f"U+{ord(c):04X}" for c in dict.fromkeys(text))
        return f"the text holds nothing that can be seen ({codes}); write one or remove it"
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "…")


@dataclass(frozen=True)
class Entry:
    """A node, its file and the path of fields that led to it (for messages)."""

    node: yaml.Node
    file: str
    path: str
    source: str = field(default="", repr=False)  # the file's text, which knows what YAML has left out

    @property
    def line(self) -> int:
        return self.node.start_mark.line + 1

    def at(self, name: str) -> "Entry":
        """This entry under the name of one of its fields, for a message about that field."""
        return Entry(self.node, self.file, f"{self.path}.{name}".lstrip("."), self.source)

    def fail(self, message: str, line: int | None = None) -> NoReturn:
        raise UserError(f"{self.file}:{line or self.line}: {self.path}: {message}")

    def _expected(self, what: str) -> NoReturn:
        found = _KINDS.get(self.node.tag, f"something tagged {self.node.tag}")
        remedy = {
            "text": "put it in quotes" if isinstance(self.node, yaml.ScalarNode) else "write one text here",
            "a list": "begin each item with `- `",
            "a mapping": "write `field: value` lines",
        }[what]
        self.fail(f"expected {what}, found {found}; {remedy}")

    def mapping(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, "Entry"]:
        """The fields of a mapping; a missing, unknown or repeated one is an error."""
        if not isinstance(self.node, yaml.MappingNode):
            self._expected("a mapping")
        required, known = tuple(required), (*required, *optional)
        fields: dict[str, Entry] = {}
        for key, value in self.node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            entry = Entry(value, self.file, f"{self.path}.{name}".lstrip("."), self.source)
            if name not in known:
                entry.fail(f"unknown field; use one of: {', '.join(known)}", key.start_mark.line + 1)
            if name in fields:
                entry.fail("this field is given twice; remove one", key.start_mark.line + 1)
            fields[name] = entry
        for name in required:
            if name not in fields:
                self.at(name).fail("missing field; add it")
        return fields

    def items(self) -> list["Entry"]:
        if not isinstance(self.node, yaml.SequenceNode):
            self._expected("a list")
        return [Entry(node, self.file, f"{self.path}[{i}]", self.source) for i, node in enumerate(self.node.value)]

    def word(self) -> str:
        """A text that names something, such as an id."""
        if self.node.tag != "tag:yaml.org,2002:str":
            self._expected("text")
        text = self.node.value.strip()
        if not text:
            self.fail("the text is empty; write one or remove it")
        if wrong := unfit(self.node.value):
            self.fail(wrong)
        return text

    def text(self) -> str:
        """A text that is said to a model or shown to people: what was written, but for white space that YAML drops.

        What YAML would leave out of it is an error: a comment behind it, and a beginning that YAML reads as its own.
        Unicode is kept as it is written.
        """
        text = self.word()
        assert isinstance(self.node, yaml.ScalarNode)
        kept = self.node.value.strip(" \t\r\n") if self.node.style not in ("'", '"') else self.node.value
        if kept != text:
            self.fail("the text begins or ends with white space in quotes, or of a special kind; remove it")
        start, end = self.node.start_mark.index, self.node.end_mark.index
        plain = self.node.style in (None, "")
        if plain and (comment := _COMMENT.match(self.source, end)):
            self.fail(
                f"the text ends before {_short(comment[1])}, which YAML takes for a comment; put the text in quotes, "
                "or the comment on a line of its own"
            )
        mark = self.source[start : start + 1]
        if mark == "!" and not self.source.startswith("!!str ", start):
            self.fail("YAML takes the `!` at the beginning for its own; put the text in quotes")
        anchor = self.source[start + 1 :].split(None, 1)[0] if mark == "&" else ""
        if anchor and not re.search(rf"\*{re.escape(anchor)}\b", self.source):
            self.fail("YAML takes the `&` at the beginning for its own; put the text in quotes")
        return text

    def texts(self, name: str, lines: Lines) -> tuple[str, ...]:
        """A list of texts that is not empty; their lines are kept as `name[i]`."""
        items = self.items()
        if not items:
            self.fail("the list is empty; add a text or remove it")
        lines.update({f"{name}[{i}]": item.line for i, item in enumerate(items)})
        return tuple(item.text() for item in items)


def _fields(entry: Entry, lines: Lines, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Entry]:
    fields = entry.mapping(required, optional)
    lines.update({name: field.line for name, field in fields.items()})
    return fields


def _pole(entry: Entry, side: str, lines: Lines) -> Pole:
    fields = entry.mapping(("name", "instruction"), ("stems", "paraphrases", "formulations"))
    lines.update({f"{side}.{name}": field.line for name, field in fields.items()})
    texts: dict[str, tuple[tuple[str, str], ...]] = {}
    for group, names in (("paraphrases", CALIBRATION_SETS[1:]), ("formulations", FORMULATIONS[1:])):
        given = fields[group].mapping((), names) if group in fields else {}
        lines.update({f"{side}.{group}.{name}": field.line for name, field in given.items()})
        texts[group] = tuple((name, given[name].text()) for name in names if name in given)
    stems = tuple(item.text().casefold() for item in fields["stems"].items()) if "stems" in fields else ()
    return Pole(fields["name"].text(), fields["instruction"].text(), stems, **texts)


def _axis(entry: Entry, lines: Lines) -> Axis:
    fields = _fields(entry, lines, ("id", "positive", "negative"))
    id = fields["id"].word()
    if not AXIS_ID.fullmatch(id) or id in RESERVED:
        fields["id"].fail(f"{id!r} cannot name an axis; use lower-case words joined by _, as in warm_cold")
    positive, negative = (_pole(fields[side], side, lines) for side in ("positive", "negative"))
    if positive.name.casefold() == negative.name.casefold():
        fields["negative"].fail(f"both poles are named {negative.name!r}; name the opposite style")
    for group in ("paraphrases", "formulations"):
        names = [{name for name, _ in getattr(pole, group)} for pole in (positive, negative)]
        if names[0] != names[1]:
            odd = ", ".join(sorted(names[0] ^ names[1]))
            fields["negative"].at(group).fail(f"only one pole has {odd}; give both poles the same ones")
    return Axis(id, positive, negative)


def _question(entry: Entry, lines: Lines) -> Question:
    fields = _fields(entry, lines, ("id", "text"), ("topic",))
    id, text = fields["id"].word(), fields["text"].text()
    parts = QUESTION_ID.fullmatch(id)
    if not parts:
        fields["id"].fail(f"{id!r} is not a question id; write AXIS/SET/NN (as warm_cold/A/07) or profile/NN")
    if parts["axis"] is None:
        if "topic" not in fields:
            entry.at("topic").fail(f"missing field; add one of: {', '.join(TOPICS)}")
        topic = fields["topic"].word()
        if topic not in TOPICS:
            fields["topic"].fail(f"unknown topic {topic!r}; use one of: {', '.join(TOPICS)}")
        return Question(id, text, None, PROFILE, topic)
    if "topic" in fields:
        fields["topic"].fail("only profile questions have a topic; remove it")
    if parts["set"] not in QUESTION_SETS:
        fields["id"].fail(f"unknown set {parts['set']!r} in {id!r}; use one of: {', '.join(QUESTION_SETS)}")
    return Question(id, text, parts["axis"], parts["set"])


def _scenario(entry: Entry, lines: Lines) -> Scenario:
    fields = _fields(entry, lines, ("id", "turns"), ("system",))
    id = fields["id"].word()
    parts = SCENARIO_ID.fullmatch(id)
    if not parts or parts["kind"] not in SCENARIO_KINDS:
        kinds = ", ".join(SCENARIO_KINDS)
        fields["id"].fail(f"{id!r} is not a scenario id; write AXIS/KIND with a kind out of: {kinds}")
    turns = fields["turns"].texts("turns", lines)
    strong = parts["kind"] == "strong"
    wanted = 1 if strong else 2
    if len(turns) != wanted:
        fields["turns"].fail(f"a scenario of this kind has {wanted} user turn(s), here are {len(turns)}; mend the list")
    if strong and "system" not in fields:
        entry.at("system").fail("missing field; add the strong instruction")
    if not strong and "system" in fields:
        fields["system"].fail("only `strong` scenarios have a system prompt; remove it")
    return Scenario(id, parts["axis"], parts["kind"], turns, fields["system"].text() if strong else None)


def _dialogue(entry: Entry, lines: Lines) -> Dialogue:
    fields = _fields(entry, lines, ("id", "situation", "turns"), ("recovery",))
    id = fields["id"].word()
    parts = DIALOGUE_ID.fullmatch(id)
    if not parts:
        fields["id"].fail(f"{id!r} is not a dialogue id; write conflict/CATEGORY/NN or control/NN")
    category = parts["category"]
    if category in (CONFLICT, CONTROL):
        fields["id"].fail(f"{category!r} cannot name a category of conflicts; choose another word")
    if category is None and "recovery" in fields:
        fields["recovery"].fail("controls have no recovery; add these turns to `turns`")
    turns = fields["turns"].texts("turns", lines)
    recovery = fields["recovery"].texts("recovery", lines) if "recovery" in fields else ()
    kind = CONTROL if category is None else CONFLICT
    return Dialogue(id, kind, category or CONTROL, fields["situation"].text(), turns, recovery)


def _prompt(entry: Entry, lines: Lines) -> Prompt:
    fields = _fields(entry, lines, ("id", "text"))
    id = fields["id"].word()
    parts = PROMPT_ID.fullmatch(id)
    if not parts:
        fields["id"].fail(f"{id!r} is not a prompt id; write layerwise/CATEGORY/NN or anchor/STYLE/NN")
    return Prompt(id, fields["text"].text(), parts["kind"], parts["category"])


# Section → how one of its records is read.
SECTIONS: dict[str, Callable[[Entry, Lines], Record]] = {
    "axes": _axis,
    "questions": _question,
    "scenarios": _scenario,
    "dialogues": _dialogue,
    "prompts": _prompt,
}
