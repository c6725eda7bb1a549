"""What a bank holds, in rows of text for a table: counts, lengths that are compared, tokens."""

from collections.abc import Callable

from mood_jax.bank.collection import Bank
from mood_jax.bank.records import ANCHOR, CONFLICT, CONTROL, LAYERWISE, PROFILE, QUESTION_SETS, TOPICS
from mood_jax.bank.validate import quartiles, turn_lengths

Table = tuple[list[str], list[list[str]]]


def axis_counts(bank: Bank, since: int = 0) -> Table:
    """Per axis the questions of each set, scenarios, and the characters of its two instructions.

    `since` leaves out records of files of a lower rank, and axes of which nothing remains.
    """
    kept = {id for id, place in bank.places.items() if place.rank >= since}
    header = ["axis", *QUESTION_SETS, "scenarios", "paraphrases", "formulations", "instructions (chars)"]
    rows = []
    for axis in bank.axes():
        ids = [q for q in bank.question_records if q.axis == axis.id and q.id in kept]
        scenarios = [s for s in bank.scenarios(axis.id) if s.id in kept]
        if not ids and not scenarios and axis.id not in kept:
            continue
        positive, negative = axis.poles
        rows.append(
            [
                axis.id,
                *(str(sum(q.set == name for q in ids)) for name in QUESTION_SETS),
                str(len(scenarios)),
                str(len(positive.paraphrases)),
                str(1 + len(positive.formulations)),
                f"{len(positive.instruction)} / {len(negative.instruction)}",
            ]
        )
    return header, rows


def other_counts(bank: Bank, since: int = 0) -> Table:
    """Profile questions by topic, dialogues by category with their turns, prompts and anchors by category."""
    kept = {id for id, place in bank.places.items() if place.rank >= since}
    rows = []
    profile = [q for q in bank.question_records if q.set == PROFILE and q.id in kept]
    rows += [[PROFILE, topic, str(sum(q.topic == topic for q in profile)), ""] for topic in TOPICS if profile]
    for kind in (CONFLICT, CONTROL):
        dialogues = [d for d in bank.dialogues(kind) if d.id in kept]
        for category in dict.fromkeys(d.category for d in dialogues):
            of = [d for d in dialogues if d.category == category]
            turns = sorted({f"{len(d.turns)} + {len(d.recovery)}" if d.recovery else str(len(d.turns)) for d in of})
            rows.append([kind, category, str(len(of)), ", ".join(turns)])
    for kind in (LAYERWISE, ANCHOR):
        of_kind = [p for p in bank.prompt_records if p.kind == kind and p.id in kept]
        for category in dict.fromkeys(p.category for p in of_kind):
            rows.append([kind, category, str(sum(p.category == category for p in of_kind)), ""])
    return ["kind", "category", "records", "user turns"], rows


def turn_quartiles(bank: Bank) -> Table:
    """Quartiles of the characters of conflict turns (recovery not counted) and control turns, of the whole bank."""
    rows = []
    for kind in (CONFLICT, CONTROL):
        lengths = turn_lengths(bank, kind)
        if lengths:
            rows.append([f"{kind} turns", str(len(lengths)), *(f"{value:.1f}" for value in quartiles(lengths))])
    return ["characters", "n", "25 %", "median", "75 %"], rows


def question_tokens(bank: Bank, count: Callable[[str], int], since: int = 0) -> Table:
    """Per set the tokens of its questions, as `count` counts them: least, quartiles, most."""
    rows = []
    for name in (*QUESTION_SETS, PROFILE):
        questions = [q for q in bank.question_records if q.set == name and bank.places[q.id].rank >= since]
        if questions:
            tokens = [count(q.text) for q in questions]
            middle = (f"{value:.1f}" for value in quartiles(tokens))
            rows.append([name, str(len(tokens)), str(min(tokens)), *middle, str(max(tokens))])
    return ["tokens a question", "n", "least", "25 %", "median", "75 %", "most"], rows
