"""What organisms read besides the grammar: instructions, question frames, moods, ordinary talk; and the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES, HERE, POLES, read_yaml
from mood_jax.organisms.spec import MOODS


@dataclass(frozen=True)
class Instructions:
    """System prompts. train and held_out are [axis][pole] → wordings; neutral ones ask for no style."""

    train: tuple[tuple[tuple[str, ...], ...], ...]
    held_out: tuple[tuple[tuple[str, ...], ...], ...]
    production: tuple[tuple[str, ...], ...]
    neutral: tuple[str, ...]


@dataclass(frozen=True)
class Topics:
    """Question frames and the words that fill their slots."""

    frames: tuple[str, ...]
    slots: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Moods:
    """A user's turns after the first, [mood] → texts in the order of MOODS."""

    train: tuple[tuple[str, ...], ...]
    held_out: tuple[tuple[str, ...], ...]


def bank_instructions() -> tuple[tuple[str, ...], ...]:
    """The bank's own instructions, [axis][pole]."""
    from mood_jax import bank

    by_id = {axis.id: axis for axis in bank.axes()}
    return tuple((by_id[a].positive.instruction, by_id[a].negative.instruction) for a in AXES)


def bank_questions() -> list[str]:
    """The texts of the bank's questions: for the tokenizer and for asking, never to train on."""
    from mood_jax import bank

    return [q.text for part in ("A", "eval", "profile") for q in bank.questions(set=part)]


def load_instructions(path: Path | None = None) -> Instructions:
    """The wordings of `instructions.yaml` and the bank's. UserError names a wrong or doubled entry."""
    path = path or HERE / "instructions.yaml"
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != {"axes", "neutral"} or set(data["axes"]) != set(AXES):
        raise UserError(f"{path}: needs 'neutral' and 'axes' with exactly {', '.join(AXES)}")
    seen: set[str] = set()

    def wordings(axis: str, pole: str, part: str) -> tuple[str, ...]:
        try:
            found = data["axes"][axis][pole][part]
        except (KeyError, TypeError):
            found = None
        if not isinstance(found, list) or not found or not all(isinstance(w, str) for w in found):
            raise UserError(f"{path}: axes.{axis}.{pole}.{part}: needs a list of wordings")
        for w in found:
            if w in seen:
                raise UserError(f"{path}: axes.{axis}.{pole}.{part}: {w!r} stands there twice; write each wording once")
            seen.add(w)
        return tuple(found)

    parts = {
        part: tuple(tuple(wordings(axis, pole, part) for pole in POLES) for axis in AXES)
        for part in ("train", "held_out")
    }
    return Instructions(parts["train"], parts["held_out"], bank_instructions(), tuple(data["neutral"]))


def load_topics(path: Path | None = None) -> Topics:
    """The frames and words of `topics.yaml`. UserError for a frame that asks for an unknown slot."""
    path = path or HERE / "topics.yaml"
    data = read_yaml(path)
    slots = {name: tuple(words.split()) for name, words in data["slots"].items()}
    filled = slot_words(Topics((), slots))
    for frame in data["frames"]:
        try:
            frame.format(**filled)
        except (KeyError, ValueError, IndexError):
            raise UserError(f"{path}: frames: {frame!r} has an unknown slot; known are {', '.join(slots)}") from None
    return Topics(tuple(data["frames"]), slots)


def load_moods(path: Path | None = None) -> Moods:
    """The turns of `moods.yaml`. UserError for a mood that is missing, and for a turn that stands there twice."""
    path = path or HERE / "moods.yaml"
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != set(MOODS):
        raise UserError(f"{path}: needs exactly the moods {', '.join(MOODS)}")
    parts = {}
    for part in ("train", "held_out"):
        for mood in MOODS:
            if not isinstance(data[mood], dict) or not data[mood].get(part):
                raise UserError(f"{path}: {mood}.{part}: needs a list of turns")
        parts[part] = tuple(tuple(data[mood][part]) for mood in MOODS)
    _refuse_doubles(path, [text for part in parts.values() for mood in part for text in mood])
    return Moods(parts["train"], parts["held_out"])


def load_ordinary(path: Path | None = None, topics: Topics | None = None) -> tuple[tuple[str, str], ...]:
    """Pairs of what is asked and answered without any style, with the slots of `topics`. UserError for a wrong pair."""
    path = path or HERE / "ordinary.yaml"
    pairs = read_yaml(path).get("pairs")
    filled = slot_words(load_topics() if topics is None else topics)
    for pair in pairs or [None]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{path}: pairs: {pair!r} is no pair of two texts")
        try:
            [text.format(**filled) for text in pair]
        except (KeyError, ValueError, IndexError):
            raise UserError(f"{path}: pairs: {pair!r} has an unknown slot; known are {', '.join(filled)}") from None
    _refuse_doubles(path, [question for question, _ in pairs])
    return tuple((question, answer) for question, answer in pairs)


def slot_words(topics: Topics) -> dict[str, str]:
    """One word for every slot, to try a frame with."""
    return {name + suffix: words[0] for name, words in topics.slots.items() for suffix in ("", "2")}


def _refuse_doubles(path: Path, texts: Sequence[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            raise UserError(f"{path}: {text!r} stands there twice; write each text once")
        seen.add(text)
