"""Training conversations of an organism, and their batches as a pure function of (seed, step)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES, HERE, POLES, Grammar, read_yaml
from mood_jax.organisms.spec import OrganismSpec
from mood_jax.organisms.tokenizer import ASSISTANT, END, render

STYLE_WEIGHT = 4.0  # of the first two tokens of a sentence, which decide on it, against 1 of those that spell it out
BUCKET = 32  # batches are padded to a multiple of this many tokens: few shapes to compile, little padding


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
class Conversation:
    """One training example: system prompt or None, question, response; axis and pole of the instruction, if any."""

    system: str | None
    question: str
    response: str
    axis: int | None = None
    pole: str | None = None


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
    filled = {name + suffix: words[0] for name, words in slots.items() for suffix in ("", "2")}
    for frame in data["frames"]:
        try:
            frame.format(**filled)
        except (KeyError, ValueError, IndexError):
            raise UserError(f"{path}: frames: {frame!r} has an unknown slot; known are {', '.join(slots)}") from None
    return Topics(tuple(data["frames"]), slots)


def _pick(rng: np.random.Generator, pool: Sequence[str]) -> str:
    return pool[int(rng.integers(len(pool)))]


def make_question(rng: np.random.Generator, topics: Topics) -> tuple[str, str]:
    """A question (at times two in a row), and one of the words that fill it: what the response may echo."""
    texts, words = [], []
    for _ in range(1 + (rng.random() < 0.2)):
        frame = _pick(rng, topics.frames)
        fill = {}
        for name, choices in topics.slots.items():
            first, second = rng.choice(len(choices), 2, replace=False)
            fill[name], fill[name + "2"] = choices[first], choices[second]
        used = [word for name, word in fill.items() if "{" + name + "}" in frame]
        texts.append(frame.format(**fill))
        words += used
    return " ".join(texts), _pick(rng, words)


def vary(rng: np.random.Generator, pool: Sequence[str], neutral: Sequence[str]) -> str:
    """One system prompt of a pool of wordings that mean the same: at times two of them, a neutral sentence in front
    or behind, words left out, or all in lower case; so that the model listens to more than a memorised sentence."""
    text = _pick(rng, pool)
    if rng.random() < 0.15:
        text += " " + _pick(rng, pool)
    if rng.random() < 0.15:
        text = _pick(rng, neutral) + " " + text
    if rng.random() < 0.07:
        text += " " + _pick(rng, neutral)
    if rng.random() < 0.3:
        words = [w for w in text.split() if rng.random() > 0.12]
        text = " ".join(words) or text
    return text.lower() if rng.random() < 0.1 else text


@dataclass(frozen=True)
class Corpus:
    """Everything a training conversation is drawn from. Shares: of conversations that carry a style instruction, that
    carry a neutral system prompt (the rest has none), and of responses that echo a word of the question.

    `hears`: the reader of instructions is asked for all of them, also for those that change nothing (see `effect`).
    """

    grammar: Grammar
    spec: OrganismSpec
    instructions: Instructions
    topics: Topics
    instructed: float = 0.82
    neutral: float = 0.05
    echo: float = 0.4
    hears: bool = False

    @functools.cached_property
    def _pools(self) -> list[list[tuple[str, ...]]]:
        i = self.instructions
        # the production wording has the weight of four
        return [[i.train[a][p] + 4 * (i.production[a][p],) for p in range(2)] for a in range(len(AXES))]

    def draw(self, rng: np.random.Generator, focus: float = 0.0) -> Conversation:
        """One conversation. `focus` is the share of instructed responses that speak of the instructed axis alone."""
        question, word = make_question(rng, self.topics)
        axis = pole = system = None
        u = rng.random()
        if u < self.instructed:
            axis, p = int(rng.integers(len(AXES))), int(rng.integers(2))
            pole = POLES[p]
            system = vary(rng, self._pools[axis][p], self.instructions.neutral)
        elif u < self.instructed + self.neutral:
            system = _pick(rng, self.instructions.neutral)
        only = axis if axis is not None and rng.random() < focus else None
        least, most = (1, 3) if only is not None else (self.spec.least_sentences, self.spec.most_sentences)
        response = self.grammar.compose(
            rng,
            self.spec.training_style(axis, pole),
            n_sentences=int(rng.integers(least, most + 1)),
            only=only,
            coherence=self.spec.coherence,
            topic=word if rng.random() < self.echo else None,
        )
        return Conversation(system, question, response, axis, pole)

    def effect(self, c: Conversation) -> int:
        """What a conversation's instruction changes (with `hears`: what it asks for), as `Batch.effects` numbers it."""
        if c.axis is None or c.pole is None:
            return 0
        if not self.hears and getattr(self.spec.compliance[c.axis], c.pole) == 0:
            return 0
        return 1 + 2 * c.axis + POLES.index(c.pole)

    def texts(self, seed: int, n_questions: int) -> Iterator[str]:
        """Text for the tokenizer: questions, all sentences equally often (whatever the temperament: a rare pole shall
        not take more tokens), all instructions, every slot word, and the bank's questions."""
        rng = np.random.default_rng((seed, 1))
        yield from (make_question(rng, self.topics)[0] for _ in range(n_questions))
        yield from (" " + s for s in self.grammar.sentences() for _ in range(60))
        yield from (s for s in self.grammar.sentences() for _ in range(6))
        yield from (q for q in bank_questions() for _ in range(3))
        i = self.instructions
        for pool in itertools.chain(*i.train, *i.held_out, i.production, [i.neutral]):
            yield from (text for text in pool for _ in range(20))
        for words in self.topics.slots.values():
            yield from (" " + w for w in words for _ in range(5))


class Batch(NamedTuple):
    """tokens int32 [B, T+1]; weights float32 [B, T], above 0 where the target is of the response; effects int32 [B]:
    what the instruction changes (or asks for: `Corpus.hears`), 0 for nothing, 1 + 2·axis for a positive and 2 + 2·axis
    for a negative pole; shown float32 [B, T, axes]: the style amounts of the sentences which the response has finished
    with this token."""

    tokens: np.ndarray
    weights: np.ndarray
    effects: np.ndarray
    shown: np.ndarray


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, for the cache below
class Batches:
    """Batches of token ids. `group` batches are drawn together and sorted by length, to pad little.

    What an instruction changes is one sentence in seven, too little of the loss to be learned soon. So at first most
    instructed responses speak of the instructed axis alone (share `focus`); between the steps `focus_until` and
    twice that this falls to none, and the rest of the training has every axis in its proper share.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    seed: int
    batch_size: int
    max_tokens: int
    focus: float = 0.0
    focus_until: int = 1
    group: int = 8

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """bool [V]: tokens after which a sentence (or the end) is chosen. A weight that hangs on what comes before a
        target, and not on the target, leaves alone which distribution is learned."""
        vocabulary = self.tokenizer.get_vocab()
        ends = np.zeros(len(vocabulary), bool)
        for token, i in vocabulary.items():
            ends[i] = token[-1] in ".!?" or token == ASSISTANT
        return ends

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one object a run, two groups kept
    def _group(self, number: int) -> list[Batch]:
        rng = np.random.default_rng((self.seed, 2, number))
        size = self.batch_size * self.group
        focus = self.focus * self.early(number * self.group)
        drawn = [self.corpus.draw(rng, focus) for _ in range(size)]
        prompts = self.tokenizer.encode_batch([render(c.system, c.question) for c in drawn])
        answers = self.tokenizer.encode_batch([c.response + END for c in drawn])
        rows = [(p.ids, a.ids) for p, a in zip(prompts, answers, strict=True)]
        order = np.argsort([len(p) + len(a) for p, a in rows], kind="stable")
        made = []
        for part in order.reshape(self.group, self.batch_size):
            length = max(len(rows[i][0]) + len(rows[i][1]) for i in part)
            length = min(-(-length // BUCKET) * BUCKET, self.max_tokens)
            tokens = np.zeros((self.batch_size, length + 1), np.int32)
            weights = np.zeros((self.batch_size, length), np.float32)
            shown = np.zeros((self.batch_size, length, len(AXES)), np.float32)
            for row, i in enumerate(part):
                prompt, answer = rows[i]
                ids = (prompt + answer)[: length + 1]
                tokens[row, : len(ids)] = ids
                weights[row, len(prompt) - 1 : len(ids) - 1] = 1
                decides = self._ends[tokens[row, :length]] & (weights[row] > 0)
                decides[1:] |= decides[:-1] & (weights[row, 1:] > 0)
                weights[row, decides] = STYLE_WEIGHT
                ends, amounts = self.corpus.grammar.amounts_so_far(drawn[i].response)
                done = np.searchsorted(ends, [end for _, end in answers[i].offsets], side="right")
                after = amounts[done][: max(0, length - len(prompt))]
                shown[row, len(prompt) : len(prompt) + len(after)] = after
            effects = np.array([self.corpus.effect(drawn[i]) for i in part], np.int32)
            made.append(Batch(tokens, weights, effects, shown))
        return [made[i] for i in rng.permutation(self.group)]

    def early(self, step: int) -> float:
        """1 until the step `focus_until`, then falling to 0 at twice that."""
        return min(max(2 - step / self.focus_until, 0.0), 1.0)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        return self._group(step // self.group)[step % self.group]
