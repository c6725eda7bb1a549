"""Checks of the texts: nothing asked twice, no pole word in a question, things that are compared of equal length."""

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mood_jax.bank.collection import Bank
from mood_jax.bank.records import CONFLICT, CONTROL, Axis, Pole, user_texts
from mood_jax.errors import UserError

GRAM = 5
NEAR = 0.5  # Jaccard similarity of character 5-grams from which two texts count as nearly the same
LENGTH_RATIO = 0.85  # the shorter instruction of a pair has at least this share of the longer one's characters

_WORD = re.compile(r"[^\W\d_]+")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a text: where it stands, what, and the ids of the records concerned."""

    file: str
    line: int
    field: str
    message: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.message}"


@functools.lru_cache(maxsize=1 << 12)  # the shipped texts are compared anew with every file that is loaded
def grams(text: str) -> frozenset[str]:
    """The character 5-grams of a text; case, punctuation and spacing do not count."""
    plain = _NOT_WORD.sub(" ", text.casefold()).strip()
    return frozenset(plain[i : i + GRAM] for i in range(max(1, len(plain) - GRAM + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a ∩ b| / |a ∪ b|, of sets that are not both empty."""
    return len(a & b) / len(a | b)


def near_duplicates(texts: Sequence[str], threshold: float = NEAR, first: int = 0) -> list[tuple[int, int, float]]:
    """Pairs i < j, j ≥ `first`, of texts whose 5-gram Jaccard similarity is at least `threshold`, with the similarity.

    Exact, and near linear in the number of texts: two sets with Jaccard ≥ t share a gram among the first
    n − ⌈t·n⌉ + 1 of each when grams are ordered by rarity, so only texts that share a rare gram are compared
    (prefix filtering: Chaudhuri, Ganti & Kaushik 2006).
    """
    sets = [grams(text) for text in texts]
    frequency = Counter(gram for s in sets for gram in s)
    holders: defaultdict[str, list[int]] = defaultdict(list)
    found = []
    for j, s in enumerate(sets):
        ordered = sorted(s, key=lambda gram: (frequency[gram], gram))
        prefix = ordered[: len(s) - math.ceil(threshold * len(s)) + 1]
        for i in {i for gram in prefix for i in holders[gram]} if j >= first else ():
            # sizes alone bound the similarity: |a ∩ b| / |a ∪ b| ≤ min / max
            if min(len(sets[i]), len(s)) >= threshold * max(len(sets[i]), len(s)):
                similarity = jaccard(sets[i], s)
                if similarity >= threshold:
                    found.append((i, j, similarity))
        for gram in prefix:
            holders[gram].append(j)
    return sorted(found)


def stems(pole: Pole) -> tuple[str, ...]:
    """Beginnings of words that give the pole away: those that the bank names, else the words of the pole's name."""
    return pole.stems or tuple(word.casefold() for word in _WORD.findall(pole.name))


def pole_word(text: str, axis: Axis) -> str | None:
    """The first word of a text that names a pole of the axis, or None."""
    beginnings = tuple(stem for pole in axis.poles for stem in stems(pole))
    return next((word for word in _WORD.findall(text) if word.casefold().startswith(beginnings)), None)


def quartiles(lengths: Sequence[int]) -> tuple[float, float, float]:
    """25th, 50th and 75th percentile, linearly interpolated (as numpy's default)."""
    ordered = sorted(lengths)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


def turn_lengths(bank: Bank, kind: str) -> list[int]:
    """Characters of every turn of the conflict (recovery not counted) or control dialogues."""
    return [len(turn) for dialogue in bank.dialogues(kind) for turn in dialogue.turns]


def _at(bank: Bank, id: str, field: str, message: str, *others: str) -> Problem:
    place = bank.places[id]
    return Problem(place.file, place.line_of(field), field, message, (id, *others))


def _alike(a: float, b: float) -> bool:
    return min(a, b) >= LENGTH_RATIO * max(a, b)


def _spellings(pole: Pole) -> dict[str, str]:
    return (
        {"instruction": pole.instruction}
        | {f"paraphrases.{name}": text for name, text in pole.paraphrases}
        | {f"formulations.{name}": text for name, text in pole.formulations}
    )


def _instructions(bank: Bank) -> list[Problem]:
    """The instructions of a pair are of about the same length; a paraphrase is not the production instruction again."""
    found = []
    for axis in bank.axes():
        positive, negative = (_spellings(pole) for pole in axis.poles)
        for name in positive:
            lengths = len(positive[name]), len(negative[name])
            if not _alike(*lengths):
                message = (
                    f"the instructions of {axis.id!r} have {lengths[0]} and {lengths[1]} characters; "
                    f"bring them within {1 - LENGTH_RATIO:.0%} of each other"
                )
                found.append(_at(bank, axis.id, f"negative.{name}", message))
        for side, spellings in (("positive", positive), ("negative", negative)):
            names = [name for name in spellings if not name.startswith("formulations")]
            for i, j, _ in near_duplicates([spellings[name] for name in names]):
                message = f"nearly the same as `{names[i]}` of the same pole; say it in other words"
                found.append(_at(bank, axis.id, f"{side}.{names[j]}", message))
    return found


def _pole_words(bank: Bank) -> list[Problem]:
    axes = {axis.id: axis for axis in bank.axes()}
    found = []
    for question in bank.question_records:
        word = pole_word(question.text, axes[question.axis]) if question.axis is not None else None
        if word is not None:
            message = f"{question.id!r} holds {word!r}, a word of a pole of its own axis; say it without that word"
            found.append(_at(bank, question.id, "text", message))
    return found


def _near_duplicates(bank: Bank, since: int) -> list[Problem]:
    """No two texts of users are nearly the same, but for the turns of one dialogue or scenario among themselves."""
    # the pair is reported at the text that was read last: a user's own rather than the shipped one
    records = sorted(bank.records, key=lambda record: (bank.places[record.id].rank, bank.places[record.id].line))
    texts = [(record.id, name, text) for record in records for name, text in user_texts(record)]
    new = sum(bank.places[id].rank < since for id, _, _ in texts)
    found = []
    for i, j, similarity in near_duplicates([text for _, _, text in texts], first=new):
        (first, first_field, a), (second, second_field, b) = texts[i], texts[j]
        if first == second:
            continue
        earlier = bank.places[first]
        same = "the same as" if a == b else f"nearly the same ({similarity:.2f}) as"
        message = f"{second!r} is {same} {first!r} ({earlier.file}:{earlier.line_of(first_field)}); ask something else"
        found.append(_at(bank, second, second_field, message, first))
    return found


def _turn_lengths(bank: Bank) -> list[Problem]:
    """Conflict and control turns are of like length (quartiles within 15 %): drift is judged against the controls."""
    conflict, control = turn_lengths(bank, CONFLICT), turn_lengths(bank, CONTROL)
    if not conflict or not control:
        return []
    pairs = list(zip(quartiles(conflict), quartiles(control), strict=True))
    if all(_alike(a, b) for a, b in pairs):
        return []
    shown = ", ".join(f"{a:.0f}/{b:.0f}" for a, b in pairs)
    last = max(bank.dialogues(), key=lambda dialogue: (bank.places[dialogue.id].rank, bank.places[dialogue.id].line))
    message = (
        f"conflict and control turns have quartiles of {shown} characters; bring them within {1 - LENGTH_RATIO:.0%} "
        "of each other"
    )
    return [_at(bank, last.id, "turns", message)]


def problems(bank: Bank, since: int = 0) -> tuple[Problem, ...]:
    """Everything that is wrong with the texts of a bank, in the order of its files and lines.

    `since` leaves out what concerns only files of a lower rank (see `Place.rank`).
    """
    found = [*_instructions(bank), *_pole_words(bank), *_near_duplicates(bank, since), *_turn_lengths(bank)]
    found = [problem for problem in found if bank.places[problem.ids[0]].rank >= since]
    return tuple(sorted(found, key=lambda p: (p.file, p.line, p.field, p.ids)))


def validate(bank: Bank, since: int = 0) -> None:
    """Raises `UserError` with the first problem of the bank's texts and the number of further ones."""
    found = problems(bank, since)
    if not found:
        return
    first, *rest = found
    raise UserError(f"{first} (and {len(rest)} more)" if rest else str(first))
