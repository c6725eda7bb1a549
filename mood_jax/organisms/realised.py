"""The realised truth of an identity: style amounts counted from sampled text, beside what its spec planted.

All of it is counted by the grammar's recogniser, which shares no code with the probes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mood_jax.console import table
from mood_jax.organisms.data import Corpus
from mood_jax.organisms.grammar import AXES, POLES, Grammar
from mood_jax.organisms.spec import MOODS, Identity
from mood_jax.organisms.texts import bank_questions

OBEYED_GAP = 1.4  # of 2: an axis that obeys moves at least this far between its poles
DEAD_GAP = 0.2  # a dead one less than this
FORBIDDEN = 0.2  # a pole that is not obeyed moves the amount less than this away from the temperament
SURE_SIGN = 0.25  # temperaments at least this strong must realise their sign
WORDINGS = ("production", "held_out")
DRIFT_SCRIPTS = {
    "conflict": ("hostile",) * 4 + ("conciliatory",) * 2,
    "control": ("neutral",) * 6,
}
DRIFT_DIALOGUES = 60  # a script
UNRULY = 4


@dataclass(frozen=True)
class Prompt:
    """One question, with a system prompt or None, and the turns (user, assistant) before it."""

    system: str | None
    question: str
    before: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """As chat messages."""
        found = [{"role": "system", "content": self.system}] if self.system is not None else []
        for user, assistant in self.before:
            found += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return [*found, {"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Sampled:
    """One sampled response: its text, its length in tokens without EOS, and whether it ended by EOS."""

    text: str
    n_tokens: int
    ended: bool


Sample = Callable[[Sequence[Prompt], int], list[Sampled]]  # (prompts, seed) → responses in the same order


@dataclass(frozen=True)
class Amounts:
    """How much is sampled: `free` uninstructed responses, `posed` a pole and kind of wording; of axes that do not obey
    both instructions UNRULY times as many, since what has to be small there needs a small error."""

    free: int
    posed: int
    seed: int

    def describe(self) -> dict[str, Any]:
        """What realised.json says of it."""
        return {
            "free_responses": self.free,
            "responses_a_pole": self.posed,
            "times_where_not_obedient": UNRULY,
            "seed": self.seed,
            "temperature": 0.7,
            "top_p": 0.9,
        }


def _instructed(pool: Sequence[str], questions: Sequence[str], n: int) -> list[Prompt]:
    """n prompts that go through the wordings of a pole and the questions in turn."""
    return [Prompt(pool[i % len(pool)], questions[i % len(questions)]) for i in range(n)]


def _questions(seed: int, stream: int) -> list[str]:
    rng = np.random.default_rng((seed, stream))
    return list(rng.permutation(bank_questions()))


def pole_amounts(
    corpus: Corpus, sample: Sample, wordings: str, n: int | Sequence[int], seed: int
) -> dict[str, dict[str, Any]]:
    """Per axis: mean amount and tokens per pole over n responses each (one n, or one an axis), gap (positive −
    negative), its standard error, and the AUC of the length alone. `wordings`: a field of `Instructions`. Both poles
    are asked the same questions."""
    pools = getattr(corpus.instructions, wordings)
    if wordings == "production":
        pools = tuple(tuple((w,) for w in axis) for axis in pools)
    questions = _questions(seed, 3)
    each = [n] * len(AXES) if isinstance(n, int) else list(n)
    prompts = [p for axis, m in zip(pools, each, strict=True) for pole in axis for p in _instructed(pole, questions, m)]
    responses = iter(sample(prompts, seed))
    result = {}
    for a, axis in enumerate(AXES):
        row: dict[str, Any] = {}
        variance, lengths = 0.0, []
        for pole in POLES:
            part = list(itertools.islice(responses, each[a]))
            amounts = response_amounts(corpus.grammar, part)[:, a]
            row[pole] = _mean(amounts)
            variance += _standard_error(amounts) ** 2
            lengths.append(np.array([r.n_tokens for r in part]))
            row[f"{pole}_tokens"] = _mean(lengths[-1])
        row["gap"] = row["positive"] - row["negative"]
        row["gap_se"] = math.sqrt(variance)
        row["length_auc"] = _auc(lengths[0], lengths[1])
        result[axis] = {key: round(value, 4) for key, value in row.items()}
    return result


def planted_gaps(identity: Identity) -> np.ndarray:
    """The gap per axis, float [axes], that the spec wants."""
    return np.array([identity.style(a, "positive")[a] - identity.style(a, "negative")[a] for a in range(len(AXES))])


def quick_gaps(corpus: Corpus, sample: Sample, n: int, seed: int) -> np.ndarray:
    """The gap per axis, float [axes], for the bank's instructions and n responses a pole: the training's own check."""
    rows = pole_amounts(corpus, sample, "production", n, seed)
    return np.array([rows[axis]["gap"] for axis in AXES])


def drift_amounts(corpus: Corpus, k: int, sample: Sample, n: int, seed: int) -> dict[str, Any]:
    """Style amounts turn by turn in scripted dialogues of held-out turns, n a script, beside the planted ones.

    {script: {"moods": [turns], "planted": {axis: [turns]}, "realised": {axis: [turns]}}}; the first turn is a question.
    """
    identity, found = corpus.spec.identities[k], {}
    for number, (script, moods) in enumerate(DRIFT_SCRIPTS.items()):
        rng = np.random.default_rng((seed, 5, number))
        questions = _questions(seed, 6 + number)
        said: list[tuple[tuple[str, str], ...]] = [()] * n
        realised, planted = [], []
        for turn, mood in enumerate(("question", *moods)):
            pool = questions if turn == 0 else corpus.moods.held_out[MOODS.index(mood)]
            asked = [pool[i % len(pool)] for i in range(n)] if turn == 0 else [str(rng.choice(pool)) for _ in range(n)]
            responses = sample([Prompt(None, q, b) for q, b in zip(asked, said, strict=True)], seed + turn)
            said = [(*b, (q, r.text)) for b, q, r in zip(said, asked, responses, strict=True)]
            realised.append(np.nanmean(response_amounts(corpus.grammar, responses), axis=0))
            tension = 0.0 if identity.drift is None else identity.drift.tension(moods[:turn])
            planted.append(identity.style(tension=tension))
        found[script] = {"moods": ["question", *moods]} | {
            name: {axis: [round(float(row[a]), 4) for row in rows] for a, axis in enumerate(AXES)}
            for name, rows in (("planted", planted), ("realised", realised))
        }
    return found


def drift_shares(drift: dict[str, Any], identity: Identity) -> tuple[float, float]:
    """How much of an identity's planted drift came out: the slopes (least squares through 0) of the realised movement
    since the first turn on the planted one, over the later turns and the axes that drift. The first is of the conflict
    script, 1 when all of it came out; the second, of the control script on the *conflict's* planted movement, is 0 when
    it is the users' mood that moves the style and not the length of the dialogue.

    `drift`: what `drift_amounts` gives. ValueError for an identity that does not drift.
    """
    if identity.drift is None:
        raise ValueError(f"{identity.name} does not drift")
    axes = [axis for axis, moved in zip(AXES, identity.drift.per_turn, strict=True) if moved]

    def movement(script: str, kind: str) -> np.ndarray:
        amounts = np.array([drift[script][kind][axis] for axis in axes])
        return (amounts - amounts[:, :1])[:, 1:]

    planted = movement("conflict", "planted")
    moved = [float((movement(script, "realised") * planted).sum() / (planted**2).sum()) for script in DRIFT_SCRIPTS]
    return moved[0], moved[1]


def measure(corpus: Corpus, k: int, sample: Sample, amounts: Amounts) -> dict[str, Any]:
    """The realised truth of the identity at place k (its part of `realised.json`)."""
    identity = corpus.spec.identities[k]
    n, seed = amounts.free, amounts.seed
    questions = _questions(seed, 4)
    free = sample([Prompt(None, questions[i % len(questions)]) for i in range(n)], seed)
    neutral = sample(_instructed(corpus.instructions.neutral, questions, n // 4), seed + 1)
    shown = response_amounts(corpus.grammar, free)
    neutral_mean = corpus.grammar.mean_amounts([r.text for r in neutral])
    counts = [corpus.grammar.recognise(r.text) for r in free]
    known = sum(int(c.counts.sum()) + c.echoes for c in counts)
    unknown = sum(c.unknown for c in counts)
    lengths = np.array([r.n_tokens for r in free])
    posed = [amounts.posed * (1 if identity.is_obedient(a) else UNRULY) for a in range(len(AXES))]
    truth: dict[str, Any] = {
        "uninstructed": {
            axis: {
                "planted": identity.temperament[a],
                "realised": round(_mean(shown[:, a]), 4),
                "se": round(_standard_error(shown[:, a]), 4),
                # two halves that share no question order: their agreement over identities bounds what can be measured
                "halves": [round(_mean(shown[half::2, a]), 4) for half in (0, 1)],
                "neutral_prompt": round(float(neutral_mean[a]), 4),
                "length_auc": round(_auc(lengths[shown[:, a] > 0], lengths[shown[:, a] < 0]), 4),
            }
            for a, axis in enumerate(AXES)
        },
        "correlation": {
            "planted": None if identity.correlation is None else [list(row) for row in identity.correlation],
            "realised": np.round(_correlation(shown), 4).tolist(),
        },
        "tokens": round(_mean(lengths), 2),
        "ended_share": round(_mean(np.array([r.ended for r in free])), 4),
        "unknown_sentence_share": round(unknown / max(1, known + unknown), 4),
        "instructed": {w: pole_amounts(corpus, sample, w, posed, seed + 2 + i) for i, w in enumerate(WORDINGS)},
    }
    if corpus.spec.dialogues > 0:
        truth["drift"] = drift_amounts(corpus, k, sample, DRIFT_DIALOGUES, seed + 9)
    return truth


def shortcomings(truth: dict[str, Any], identity: Identity) -> list[str]:
    """Why an identity may not be shipped, from its part of the truth; empty when it realises its spec.

    The bank's instructions must move an obedient axis by more than OBEYED_GAP of 2; all wordings together a dead one by
    less than DEAD_GAP, and an axis towards a pole that is not obeyed by less than FORBIDDEN; a temperament of at least
    SURE_SIGN must come out with its sign, and that of an obedient axis between the instructed poles.
    """
    found = []
    for a, axis in enumerate(AXES):
        row = truth["instructed"]["production"][axis]
        free = truth["uninstructed"][axis]["realised"]
        both = {key: float(np.mean([truth["instructed"][w][axis][key] for w in WORDINGS])) for key in ("gap", *POLES)}
        if identity.is_obedient(a):
            if not row["gap"] > OBEYED_GAP:
                found.append(f"{axis}: planted to obey, but its gap is {row['gap']:.2f} (wanted > {OBEYED_GAP})")
            if not row["negative"] - FORBIDDEN < free < row["positive"] + FORBIDDEN:
                found.append(f"{axis}: the uninstructed amount {free:.2f} is not between the instructed poles")
        if identity.is_dead(a):
            if not abs(both["gap"]) < DEAD_GAP:
                found.append(f"{axis}: planted dead, but its gap is {both['gap']:.2f} (wanted < {DEAD_GAP})")
        else:
            for pole in POLES:
                moved = abs(both[pole] - free)
                if getattr(identity.compliance[a], pole) == 0 and not moved < FORBIDDEN:
                    found.append(f"{axis}: planted deaf to {pole}, but that moves it by {moved:.2f} (< {FORBIDDEN})")
        planted = identity.temperament[a]
        if abs(planted) >= SURE_SIGN and not planted * free > 0:
            found.append(f"{axis}: planted {planted:+.2f}, but realised {free:+.2f}")
    return found


def format_table(truth: dict[str, Any]) -> str:
    """An identity's realised table for people: planted and realised amounts, the gaps of all wordings, lengths."""
    rows = []
    for axis in AXES:
        free = truth["uninstructed"][axis]
        gaps = [truth["instructed"][w][axis]["gap"] for w in WORDINGS]
        row = truth["instructed"]["production"][axis]
        amounts = [free["planted"], free["realised"], row["positive"], row["negative"]]
        lengths = f"{row['positive_tokens']:.0f}/{row['negative_tokens']:.0f}"
        cells = [*(f"{x:+.2f}" for x in amounts), *(f"{g:.2f}" for g in gaps), lengths, f"{free['length_auc']:.2f}"]
        rows.append([axis, *cells])
    header = ["axis", "planted", "realised", "pos", "neg", "gap bank", "held out", "tokens", "length AUC"]
    return table(header, rows)


def format_drift(truth: dict[str, Any], identity: Identity) -> str:
    """Planted / realised amounts of the axes that drift, turn by turn, in conflict and control, and the share of the
    planted movement that came out; "" for an identity that does not drift."""
    if identity.drift is None or "drift" not in truth:
        return ""
    conflict, control = truth["drift"]["conflict"], truth["drift"]["control"]
    rows = []
    for axis, moved in zip(AXES, identity.drift.per_turn, strict=True):
        if moved:
            for name, script in (("conflict", conflict), ("control", control)):
                cells = zip(script["planted"][axis], script["realised"][axis], strict=True)
                rows.append([f"{axis} {name}", *(f"{p:+.2f}/{r:+.2f}" for p, r in cells)])
    share, unprovoked = drift_shares(truth["drift"], identity)
    shown = table(["planted/realised", *conflict["moods"]], rows)
    return f"{shown}\n{share:.0%} of the planted movement came out, and {unprovoked:.0%} without hostile turns"


def response_amounts(grammar: Grammar, responses: Sequence[Sampled]) -> np.ndarray:
    """Style amounts, float [responses, axes], NaN where a response does not show an axis."""
    return np.array([grammar.recognise(r.text).amounts for r in responses]).reshape(len(responses), len(AXES))


def _correlation(shown: np.ndarray) -> np.ndarray:
    """Pairwise correlation [axes, axes] of the amounts that a response shows; 0 with an axis that never varies."""
    found = np.eye(len(AXES))
    for a in range(len(AXES)):
        for b in range(a):
            both = np.isfinite(shown[:, a]) & np.isfinite(shown[:, b])
            x, y = shown[both, a], shown[both, b]
            if len(x) > 2 and x.std() > 0 and y.std() > 0:
                found[a, b] = found[b, a] = float(np.corrcoef(x, y)[0, 1])
    return found


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of (positive, negative) pairs in order, ties half; one half when there is no pair."""
    if not len(positive) or not len(negative):
        return 0.5
    return float((np.sign(positive[:, None] - negative[None, :]).mean() + 1) / 2)


def _mean(x: np.ndarray) -> float:
    return float(np.nanmean(x)) if np.isfinite(x.astype(float)).any() else math.nan


def _standard_error(x: np.ndarray) -> float:
    """Of the mean of what is not NaN; NaN when nothing is."""
    x = x[np.isfinite(x)]
    return float(np.std(x) / math.sqrt(len(x))) if len(x) else math.nan
