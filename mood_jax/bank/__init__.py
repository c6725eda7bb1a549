"""What is asked: axes, questions, scenarios, dialogues and prompts, as YAML beside this file.

The functions answer for the shipped bank, which is read at the first call; `load(path)` gives a `Bank` with the same
methods, the user's own YAML merged over the shipped one.
"""

from collections.abc import Iterable

from mood_jax.bank.collection import HASHED_SETS, Bank
from mood_jax.bank.loader import load, shipped
from mood_jax.bank.records import (
    FORMULATIONS,
    PROFILE,
    QUESTION_SETS,
    SCENARIO_KINDS,
    TOPICS,
    Axis,
    Dialogue,
    Pole,
    Prompt,
    Question,
    Scenario,
)
from mood_jax.bank.validate import Problem, pole_word, problems, validate

__all__ = [
    "FORMULATIONS",
    "HASHED_SETS",
    "PROFILE",
    "QUESTION_SETS",
    "SCENARIO_KINDS",
    "TOPICS",
    "Axis",
    "Bank",
    "Dialogue",
    "Pole",
    "Problem",
    "Prompt",
    "Question",
    "Scenario",
    "anchors",
    "axes",
    "axis",
    "content_hash",
    "dialogues",
    "load",
    "pole_word",
    "problems",
    "prompts",
    "questions",
    "scenarios",
    "shipped",
    "validate",
]


def axes() -> tuple[Axis, ...]:
    """The seven shipped axes, in the order of every table."""
    return shipped().axes()


def axis(id: str) -> Axis:
    """The shipped axis with this id; `UserError` with the known ids if there is none."""
    return shipped().axis(id)


def questions(axis: str | None = None, set: str = "A") -> tuple[Question, ...]:
    """Shipped questions: set "A" (30 an axis), "B", "C" (20), "eval" (10) or "profile" (30). See `Bank.questions`."""
    return shipped().questions(axis, set=set)


def scenarios(axis: str | None = None, kind: str | None = None) -> tuple[Scenario, ...]:
    """Shipped benchmark scenarios: "strong", "more" and "less" of every axis. See `Bank.scenarios`."""
    return shipped().scenarios(axis, kind)


def dialogues(category: str | None = None) -> tuple[Dialogue, ...]:
    """Shipped dialogues: 50 of "conflict" (5 in each of 10 categories), 10 of "control". See `Bank.dialogues`."""
    return shipped().dialogues(category)


def prompts(category: str | None = None) -> tuple[Prompt, ...]:
    """Shipped prompts of the layer-wise study: 25 in each of four categories. See `Bank.prompts`."""
    return shipped().prompts(category)


def anchors(style: str | None = None) -> tuple[Prompt, ...]:
    """Shipped anchor prompts of the layer-wise study: 20 for each of four styles. See `Bank.anchors`."""
    return shipped().anchors(style)


def content_hash(*sets: str, axes: Iterable[str] | None = None) -> str:
    """sha256 (hex) of shipped sets. See `Bank.content_hash`."""
    return shipped().content_hash(*sets, axes=axes)
