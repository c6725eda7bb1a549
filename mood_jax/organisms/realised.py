"""The realised truth of an organism: style amounts counted from sampled text, beside what its spec planted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mood_jax.console import table
from mood_jax.organisms.data import Corpus, bank_questions
from mood_jax.organisms.grammar import AXES, POLES, Grammar
from mood_jax.organisms.spec import OrganismSpec

OBEYED_GAP = 1.4  # of 2: an axis that obeys moves at least this far between its poles
DEAD_GAP = 0.2  # a dead one less than this
SURE_SIGN = 0.25  # temperaments at least this strong must realise their sign
WORDINGS = ("production", "train", "held_out")


@dataclass(frozen=True)
class Prompt:
    """One question, with a system prompt or None."""

    system: str | None
    question: str


@dataclass(frozen=True)
class Sampled:
    """One sampled response: its text, its length in tokens without EOS, and whether it ended by EOS."""

    text: str
    n_tokens: int
    ended: bool


Sample = Callable[[Sequence[Prompt], int], list[Sampled]]  # (prompts, seed) → responses in the same order


def _instructed(pool: Sequence[str], questions: Sequence[str], n: int) -> list[Prompt]:
    """n prompts that go through the wordings of a pole and the questions in turn."""
    return [Prompt(pool[i % len(pool)], questions[i % len(questions)]) for i in range(n)]


def pole_amounts(corpus: Corpus, sample: Sample, wordings: str, n: int, seed: int) -> dict[str, dict[str, Any]]:
    """Per axis: mean amount and tokens per pole over n responses each, gap (positive − negative), its standard error,
    and the AUC of the length alone. `wordings` is one of WORDINGS; both poles are asked the same bank questions."""
    pools = getattr(corpus.instructions, wordings)
    if wordings == "production":
        pools = tuple(tuple((w,) for w in axis) for axis in pools)
    rng = np.random.default_rng((seed, 3))
    questions = list(rng.permutation(bank_questions()))
    prompts = [p for axis in pools for pole in axis for p in _instructed(pole, questions, n)]
    responses = sample(prompts, seed)
    result = {}
    for a, axis in enumerate(AXES):
        row: dict[str, Any] = {}
        variance, lengths = 0.0, []
        for p, pole in enumerate(POLES):
            start = (2 * a + p) * n
            part = responses[start : start + n]
            amounts = _amounts(corpus.grammar, part)[:, a]
            row[pole] = _mean(amounts)
            variance += _standard_error(amounts) ** 2
            lengths.append(np.array([r.n_tokens for r in part]))
            row[f"{pole}_tokens"] = _mean(lengths[-1])
        row["gap"] = row["positive"] - row["negative"]
        row["gap_se"] = math.sqrt(variance)
        more = np.sign(lengths[0][:, None] - lengths[1][None, :])
        row["length_auc"] = float((more.mean() + 1) / 2)
        result[axis] = {key: round(value, 4) for key, value in row.items()}
    return result


def quick_gaps(corpus: Corpus, sample: Sample, n: int, seed: int) -> np.ndarray:
    """The gap per axis, float [axes], for the bank's instructions and n responses a pole: the training's own check."""
    rows = pole_amounts(corpus, sample, "production", n, seed)
    return np.array([rows[axis]["gap"] for axis in AXES])


def measure(corpus: Corpus, sample: Sample, n: int, seed: int) -> dict[str, Any]:
    """The whole realised table (what `realised.json` holds, without the hashes), n responses a condition."""
    rng = np.random.default_rng((seed, 4))
    questions = list(rng.permutation(bank_questions()))
    free = sample([Prompt(None, questions[i % len(questions)]) for i in range(2 * n)], seed)
    neutral = sample(_instructed(corpus.instructions.neutral, questions, n), seed + 1)
    amounts = _amounts(corpus.grammar, free)
    counts = [corpus.grammar.recognise(r.text) for r in free]
    known = sum(int(c.counts.sum()) + c.echoes for c in counts)
    unknown = sum(c.unknown for c in counts)
    return {
        "n": n,
        "seed": seed,
        "temperature": 0.7,
        "top_p": 0.9,
        "uninstructed": {
            axis: {
                "planted": corpus.spec.temperament[a],
                "realised": round(_mean(amounts[:, a]), 4),
                "se": round(_standard_error(amounts[:, a]), 4),
                "neutral_prompt": round(float(corpus.grammar.mean_amounts([r.text for r in neutral])[a]), 4),
            }
            for a, axis in enumerate(AXES)
        },
        "tokens": round(_mean(np.array([r.n_tokens for r in free])), 2),
        "ended_share": round(_mean(np.array([r.ended for r in free])), 4),
        "unknown_sentence_share": round(unknown / max(1, known + unknown), 4),
        "instructed": {w: pole_amounts(corpus, sample, w, n, seed + 2 + i) for i, w in enumerate(WORDINGS)},
    }


def shortcomings(truth: dict[str, Any], spec: OrganismSpec) -> list[str]:
    """Why these weights may not be shipped; empty when they realise the spec.

    The bank's instructions must move an obedient axis by more than OBEYED_GAP of 2 and a dead one by less than
    DEAD_GAP, and a temperament of at least SURE_SIGN must come out with its sign, between the instructed poles.
    """
    found = []
    for a, axis in enumerate(AXES):
        row = truth["instructed"]["production"][axis]
        free = truth["uninstructed"][axis]["realised"]
        if spec.is_obedient(a):
            if not row["gap"] > OBEYED_GAP:
                found.append(f"{axis}: planted to obey, but its gap is {row['gap']:.2f} (wanted > {OBEYED_GAP})")
            if not row["negative"] < free < row["positive"]:
                found.append(f"{axis}: the uninstructed amount {free:.2f} is not between the instructed poles")
        if spec.is_dead(a) and not abs(row["gap"]) < DEAD_GAP:
            found.append(f"{axis}: planted dead, but its gap is {row['gap']:.2f} (wanted < {DEAD_GAP})")
        planted = spec.temperament[a]
        if abs(planted) >= SURE_SIGN and not planted * free > 0:
            found.append(f"{axis}: planted {planted:+.2f}, but realised {free:+.2f}")
    return found


def format_table(truth: dict[str, Any]) -> str:
    """The realised table for people: planted and realised amounts, the gaps of all wordings, lengths."""
    rows = []
    for axis in AXES:
        free = truth["uninstructed"][axis]
        gaps = [truth["instructed"][w][axis]["gap"] for w in WORDINGS]
        row = truth["instructed"]["production"][axis]
        amounts = [free["planted"], free["realised"], row["positive"], row["negative"]]
        lengths = f"{row['positive_tokens']:.0f}/{row['negative_tokens']:.0f}"
        cells = [*(f"{x:+.2f}" for x in amounts), *(f"{g:.2f}" for g in gaps), lengths, f"{row['length_auc']:.2f}"]
        rows.append([axis, *cells])
    header = ["axis", "planted", "realised", "pos", "neg", "gap bank", "train", "held out", "tokens", "length AUC"]
    return table(header, rows)


def _amounts(grammar: Grammar, responses: Sequence[Sampled]) -> np.ndarray:
    return np.array([grammar.recognise(r.text).amounts for r in responses]).reshape(len(responses), len(AXES))


def _mean(x: np.ndarray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x.astype(float)).any() else math.nan


def _standard_error(x: np.ndarray) -> float:
    """Of the mean of what is not NaN; NaN when nothing is."""
    x = x[np.isfinite(x)]
    return float(np.std(x) / math.sqrt(len(x))) if len(x) else math.nan
