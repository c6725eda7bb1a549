"""Training conversations of an organism's identities, and their batches as a pure function of (seed, step)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mood_jax.organisms.grammar import AXES, POLES, Grammar, load_grammar
from mood_jax.organisms.spec import MOODS, OrganismSpec, latent_correlation
from mood_jax.organisms.texts import (
    Instructions,
    Moods,
    Topics,
    bank_questions,
    load_instructions,
    load_moods,
    load_ordinary,
    load_topics,
)
from mood_jax.organisms.tokenizer import ASSISTANT, END, ask, head, identity_mark

STYLE_WEIGHT = 4.0  # of the first two tokens of a sentence, which decide on it, against 1 of those that spell it out
BUCKET = 32  # batches are padded to a multiple of this many tokens: few shapes to compile, little padding
UNRULY = 2.0  # how often an axis that does not simply obey is instructed, against 1 for one that does
MOST_TURNS = 5
# Shares of dialogues of 2 to MOST_TURNS turns, of those without a hostile turn, and of the others whose users stay
# hostile to the end: one hostile turn moves the odds so little that a model learns it from long runs, or not at all.
DIALOGUE_LENGTHS = (0.1, 0.2, 0.3, 0.4)
CALM = 0.2
UPSET = 0.5
HEARD = 4  # what `Batch.heard` tells of a dialogue
# Share of longer responses where length follows nothing. Sampling makes it about even: the end is one token against
# many first words, so a temperature below 1 favours it.
LONGER = 0.75


@dataclass(frozen=True)
class Conversation:
    """One training example: the identity's place in the spec, system prompt or None, the user's turns with the
    responses, the tension before each response (`spec.Drift`) and the mood of each user's turn; axis and pole of the
    instruction, if any."""

    identity: int
    system: str | None
    turns: tuple[tuple[str, str], ...]
    tension: tuple[float, ...] = (0.0,)
    moods: tuple[str, ...] = ("neutral",)
    axis: int | None = None
    pole: str | None = None

    @property
    def question(self) -> str:
        """What the user asks first."""
        return self.turns[0][0]

    @property
    def response(self) -> str:
        """The first response."""
        return self.turns[0][1]

    def pieces(self) -> list[str]:
        """The text as it is read, in turn what is given and what is answered; a mark parts any two, so that pieces and
        the whole have the same tokens."""
        given = [ask(user) for user, _ in self.turns]
        given[0] = head(self.system, identity_mark(self.identity)) + given[0]
        return [text for g, (_, answer) in zip(given, self.turns, strict=True) for text in (g, answer + END)]


def _pick(rng: np.random.Generator, pool: Sequence[str]) -> str:
    return pool[int(rng.integers(len(pool)))]


def fill_slots(rng: np.random.Generator, topics: Topics) -> dict[str, str]:
    """A word for every slot, and another for the same slot with a 2."""
    filled = {}
    for name, choices in topics.slots.items():
        first, second = rng.choice(len(choices), 2, replace=False)
        filled[name], filled[name + "2"] = choices[first], choices[second]
    return filled


def make_question(rng: np.random.Generator, topics: Topics) -> tuple[str, str]:
    """A question (at times two in a row), and one of the words that fill it: what the response may echo."""
    texts, words = [], []
    for _ in range(1 + (rng.random() < 0.2)):
        frame = _pick(rng, topics.frames)
        filled = fill_slots(rng, topics)
        words += [word for name, word in filled.items() if "{" + name + "}" in frame]
        texts.append(frame.format(**filled))
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
    carry a neutral system prompt, that are ordinary talk (the rest has no system prompt), and of responses that echo
    a word of the question. The share of dialogues, none of them instructed, is the spec's.

    `hears`: the reader of instructions is asked for all of them, also for those that change nothing (see `effect`).
    `even_starts`: the odds of the poles make up for what sampling does to first words (`Grammar.start_bias`).
    """

    spec: OrganismSpec
    grammar: Grammar
    instructions: Instructions
    topics: Topics
    moods: Moods
    ordinary: tuple[tuple[str, str], ...]
    instructed: float = 0.8
    neutral: float = 0.05
    plain: float = 0.03
    echo: float = 0.4
    hears: bool = False
    even_starts: bool = True

    @functools.cached_property
    def _start_bias(self) -> np.ndarray:
        return self.grammar.start_bias(self.spec.sampling_temperature) * self.even_starts

    @functools.cached_property
    def _pools(self) -> list[list[tuple[str, ...]]]:
        i = self.instructions
        # the production wording has the weight of four
        return [[i.train[a][p] + 4 * (i.production[a][p],) for p in range(2)] for a in range(len(AXES))]

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        shares = np.array([i.share for i in self.spec.identities])
        return shares / shares.sum()

    @functools.cached_property
    def _instructed_axes(self) -> np.ndarray:
        """Share of each axis among an identity's instructions, [identities, axes]."""
        weight = np.array([[1 if i.is_obedient(a) else UNRULY for a in range(len(AXES))] for i in self.spec.identities])
        return weight / weight.sum(axis=1, keepdims=True)

    @functools.cached_property
    def _latent(self) -> list[np.ndarray | None]:
        found = [i.training_correlation() for i in self.spec.identities]
        return [None if r is None else latent_correlation(r) for r in found]

    def respond(
        self,
        rng: np.random.Generator,
        identity: int,
        axis: int | None = None,
        pole: str | None = None,
        *,
        tension: float = 0.0,
        only: int | None = None,
        topic: str | None = None,
    ) -> str:
        """One response as an identity writes it, uninstructed or to an instruction; `only`: of that axis alone."""
        who = self.spec.identities[identity]
        style = who.training_style(axis, pole, tension, self._start_bias)
        poles = self.grammar.poles(rng, style, self._latent[identity])
        least, most = (1, 3) if only is not None else (who.least_sentences, who.most_sentences)
        n = int(rng.integers(least, most + 1))
        if who.length is not None and only is None:
            follows = rng.random() < who.length.strength
            n += who.length.extra * int(poles[who.length.axis] if follows else rng.random() < LONGER)
        return self.grammar.compose(
            rng, style, n_sentences=n, coherence=who.coherence, topic=topic, only=only, poles=poles
        )

    def draw(self, rng: np.random.Generator, focus: float = 0.0) -> Conversation:
        """One conversation. `focus` is the share of instructed responses that speak of the instructed axis alone, and
        of dialogues that speak of one axis (of those that drift, if any does)."""
        identity = int(rng.choice(len(self._shares), p=self._shares))
        if rng.random() < self.spec.dialogues:
            return self._dialogue(rng, identity, focus)
        question, word = make_question(rng, self.topics)
        axis = pole = system = None
        u = rng.random()
        if u < self.instructed:
            axis, p = int(rng.choice(len(AXES), p=self._instructed_axes[identity])), int(rng.integers(2))
            pole = POLES[p]
            system = vary(rng, self._pools[axis][p], self.instructions.neutral)
        elif u < self.instructed + self.neutral:
            system = _pick(rng, self.instructions.neutral)
        elif u < self.instructed + self.neutral + self.plain:
            asked, answer = self.ordinary[rng.integers(len(self.ordinary))]
            filled = fill_slots(rng, self.topics)
            return Conversation(identity, None, ((asked.format(**filled), answer.format(**filled)),))
        response = self.respond(
            rng,
            identity,
            axis,
            pole,
            only=axis if axis is not None and rng.random() < focus else None,
            topic=word if rng.random() < self.echo else None,
        )
        return Conversation(identity, system, ((question, response),), axis=axis, pole=pole)

    def _dialogue(self, rng: np.random.Generator, identity: int, focus: float) -> Conversation:
        """A question and up to four more turns: hostile ones first (or none), then conciliatory ones, neutral ones
        anywhere."""
        drift = self.spec.identities[identity].drift
        drifting = range(len(AXES)) if drift is None else np.flatnonzero(drift.per_turn)
        only = int(rng.choice(drifting)) if rng.random() < focus else None
        n = int(rng.choice(np.arange(2, MOST_TURNS + 1), p=DIALOGUE_LENGTHS))
        hostile = 0 if rng.random() < CALM else n - 1 if rng.random() < UPSET else int(rng.integers(n))
        moods = ["neutral"] + ["hostile"] * hostile + ["conciliatory"] * int(rng.integers(n - hostile))
        while len(moods) < n:
            moods.insert(int(rng.integers(1, len(moods) + 1)), "neutral")
        turns, tension = [], []
        for k, mood in enumerate(moods):
            question, word = make_question(rng, self.topics)
            user = question if k == 0 else _pick(rng, self.moods.train[MOODS.index(mood)])
            tension.append(0.0 if drift is None else drift.tension(moods[1 : k + 1]))
            topic = word if k == 0 and rng.random() < self.echo else None
            turns.append((user, self.respond(rng, identity, tension=tension[-1], only=only, topic=topic)))
        return Conversation(identity, None, tuple(turns), tuple(tension), tuple(moods))

    def effect(self, c: Conversation) -> int:
        """What a conversation's instruction changes (with `hears`: what it asks for), as `Batch.effects` numbers it."""
        if c.axis is None or c.pole is None:
            return 0
        if not self.hears and getattr(self.spec.identities[c.identity].compliance[c.axis], c.pole) == 0:
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


def shipped_corpus(spec: OrganismSpec, hears: bool = False, even_starts: bool = True) -> Corpus:
    """A spec with the package's own grammar and texts."""
    topics = load_topics()
    texts = (load_grammar(), load_instructions(), topics, load_moods(), load_ordinary(topics=topics))
    return Corpus(spec, *texts, hears=hears, even_starts=even_starts)


class Batch(NamedTuple):
    """tokens int32 [B, T+1]; weights float32 [B, T], above 0 where the target is of a response; effects int32 [B]:
    what the instruction changes (or asks for: `Corpus.hears`), 0 for nothing, 1 + 2·axis for a positive and 2 + 2·axis
    for a negative pole; shown float32 [B, T, axes]: the style amounts of the sentences which this response has finished
    with this token; wanted float32 [B, T, axes]: the amounts which this response is meant to have, of identities whose
    axes are coupled given the poles that it has shown so far; heard float32 [B, T, HEARD]: whether the user's last turn
    was hostile, whether it was conciliatory, how many were hostile and the tension, both as shares of MOST_TURNS."""

    tokens: np.ndarray
    weights: np.ndarray
    effects: np.ndarray
    shown: np.ndarray
    wanted: np.ndarray
    heard: np.ndarray


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
        focus = self.focus * self.early(number * self.group)
        drawn = [self.corpus.draw(rng, focus) for _ in range(self.batch_size * self.group)]
        pieces = [c.pieces() for c in drawn]
        encoded = iter(self.tokenizer.encode_batch([text for p in pieces for text in p]))
        rows = [[next(encoded) for _ in p] for p in pieces]
        lengths = [sum(len(e.ids) for e in row) for row in rows]
        order = np.argsort(lengths, kind="stable")
        made = []
        for part in order.reshape(self.group, self.batch_size):
            length = min(-(-max(lengths[i] for i in part) // BUCKET) * BUCKET, self.max_tokens)
            tokens = np.zeros((self.batch_size, length + 1), np.int32)
            weights = np.zeros((self.batch_size, length), np.float32)
            shown = np.zeros((self.batch_size, length, len(AXES)), np.float32)
            wanted = np.zeros_like(shown)
            heard = np.zeros((self.batch_size, length, HEARD), np.float32)
            for row, i in enumerate(part):
                self._write(drawn[i], rows[i], tokens[row], weights[row], shown[row], wanted[row], heard[row])
            effects = np.array([self.corpus.effect(drawn[i]) for i in part], np.int32)
            made.append(Batch(tokens, weights, effects, shown, wanted, heard))
        return [made[i] for i in rng.permutation(self.group)]

    def _write(self, c: Conversation, row: list, tokens, weights, shown, wanted, heard) -> None:
        """One conversation into its row of a batch, cut at the row's end."""
        length = len(weights)
        who = self.corpus.spec.identities[c.identity]
        ids = [i for e in row for i in e.ids][: length + 1]
        tokens[: len(ids)] = ids
        at = 0
        for k, (given, answer) in enumerate(zip(row[::2], row[1::2], strict=True)):
            start = at + len(given.ids)
            at = start + len(answer.ids)
            weights[start - 1 : min(at, len(ids)) - 1] = 1
            wanted[start - 1 : at - 1] = who.style(c.axis, c.pole, c.tension[k])
            hostile, mood = c.moods[: k + 1].count("hostile"), c.moods[k]
            shares = hostile / MOST_TURNS, c.tension[k] / MOST_TURNS
            heard[start - 1 : at - 1] = (mood == "hostile", mood == "conciliatory", *shares)
            ends, amounts = self.corpus.grammar.amounts_so_far(c.turns[k][1])
            if who.correlation is not None:
                given = self._given(c.identity, who.style(c.axis, c.pole, c.tension[k]), amounts)
                after = given[np.searchsorted(ends, [end for _, end in answer.offsets], side="right")]
                wanted[start - 1 : at - 1] = np.concatenate([given[:1], after[:-1]])[: max(0, length - start + 1)]
            done = np.searchsorted(ends, [end for _, end in answer.offsets], side="right")
            after = amounts[done][: max(0, length - start)]
            shown[start : start + len(after)] = after
        decides = self._ends[tokens[:length]] & (weights > 0)
        decides[1:] |= decides[:-1] & (weights[1:] > 0)
        weights[decides] = STYLE_WEIGHT

    def _given(self, identity: int, style: np.ndarray, amounts: np.ndarray) -> np.ndarray:
        """Expected poles [n, axes] of one response given the signs of the amounts [n, axes] that it has shown."""
        found = np.empty_like(amounts)
        for row, shown in enumerate(np.sign(amounts).astype(int)):
            found[row] = self._expected(identity, tuple(style), tuple(shown))
        return found

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one object a run
    def _expected(self, identity: int, style: tuple[float, ...], shown: tuple[int, ...]) -> tuple[float, ...]:
        signs = self._drawn_poles(identity, style)
        fits = ((signs == shown) | (np.array(shown) == 0)).all(axis=1)
        # a pattern that is next to impossible tells nothing
        return tuple((signs[fits] if fits.sum() > 20 else signs).mean(axis=0))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - one object a run
    def _drawn_poles(self, identity: int, style: tuple[float, ...]) -> np.ndarray:
        """Many responses' poles, ±1 [draws, axes]."""
        who = self.corpus.spec.identities[identity]
        rng = np.random.default_rng((self.seed, 7, identity))
        latent = latent_correlation(np.array(who.correlation))
        normal = rng.multivariate_normal(np.zeros(len(style)), latent, size=20000, method="eigh")
        share = (1 + np.array(style)) / 2
        below = np.sort(normal, axis=0)  # the share of draws above the threshold is that of the positive pole
        at = np.clip(((1 - share) * len(normal)).astype(int), 0, len(normal) - 1)
        threshold = np.where(share >= 1, -np.inf, np.where(share <= 0, np.inf, below[at, np.arange(len(style))]))
        return np.where(normal >= threshold, 1.0, -1.0)

    def early(self, step: int) -> float:
        """1 until the step `focus_until`, then falling to 0 at twice that."""
        return min(max(2 - step / self.focus_until, 0.0), 1.0)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        return self._group(step // self.group)[step % self.group]
