"""The grammar of styles: a style vector in, text out; and the recogniser, text in, style amounts out.

A style vector s has one amount per axis, −1 (negative pole) … +1 (positive pole). A response is a shuffled row of
sentences; each belongs to one axis and shows its positive pole, its negative pole or the middle, so that the mean of
+1, −1 and 0 over the sentences of an axis has the expectation s. Every axis fills the same share of a response in
expectation, whatever was asked, and the number of sentences does not depend on the style.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mood_jax.errors import UserError

AXES = (
    "warm_cold",
    "patient_irritated",
    "confident_cautious",
    "proactive_reluctant",
    "empathetic_analytical",
    "formal_casual",
    "verbose_concise",
)
POLES = ("positive", "negative")
KINDS = (*POLES, "middle")
MIDDLE = 0.12  # each sentence of the middle then is as frequent as one of a pole, so that sampling favours neither
_VALUE = np.array([1.0, -1.0, 0.0])  # the amount that a sentence of each kind counts for
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
HERE = Path(__file__).parent


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError with file and line when it is missing or malformed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', 'unreadable')}); mend the line") from None


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, cut after . ! and ? where white space follows."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


@dataclass(frozen=True)
class Recognition:
    """What the recogniser found in one text.

    counts: int [axes, 3], sentences of the positive pole, the negative pole and the middle.
    echoes: sentences that repeat a word of the question. unknown: sentences that the grammar does not have.
    """

    counts: np.ndarray
    echoes: int
    unknown: int

    @property
    def amounts(self) -> np.ndarray:
        """Style amounts, float [axes] in −1 … 1: the mean of +1, −1, 0 over an axis' sentences, NaN without any."""
        total = self.counts.sum(axis=1)
        return np.where(total > 0, self.counts @ _VALUE / np.maximum(total, 1), np.nan)


@dataclass(frozen=True)
class Grammar:
    """phrases[axis][kind] are the sentences of an axis, kinds in the order of KINDS; echoes hold "{topic}"."""

    phrases: tuple[tuple[tuple[str, ...], ...], ...]
    echoes: tuple[str, ...]

    @functools.cached_property
    def _index(self) -> dict[str, tuple[int, int]]:
        return {s: (a, k) for a, axis in enumerate(self.phrases) for k, kind in enumerate(axis) for s in kind}

    @functools.cached_property
    def _echo_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(e).replace(re.escape("{topic}"), r"\S+( \S+)?") for e in self.echoes))

    def poles(
        self, rng: np.random.Generator, style: Sequence[float] | np.ndarray, latent: np.ndarray | None = None
    ) -> np.ndarray:
        """The pole that one response has on each axis, bool [axes], True for the positive: drawn with the odds of the
        amounts `style`, independently or as the signs of normal variables of the correlation `latent` [axes, axes]."""
        positive = _positive(np.asarray(style, float))
        if latent is None:
            return rng.random(len(positive)) < positive
        z = rng.multivariate_normal(np.zeros(len(positive)), latent, method="eigh")
        uniform = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
        return uniform < positive

    def compose(
        self,
        rng: np.random.Generator,
        style: Sequence[float] | np.ndarray,
        *,
        n_sentences: int = 9,
        coherence: float = 0.9,
        topic: str | None = None,
        only: int | None = None,
        poles: np.ndarray | None = None,
    ) -> str:
        """One response of `n_sentences` style sentences with the amounts `style`, plus an echo of `topic` if given.

        Every axis has one sentence before any has a second. On each axis the response has one pole (`poles`, drawn with
        the amount's odds unless given); a sentence follows it with probability `coherence`, else its pole is drawn
        anew, which leaves the expectation alone. A share MIDDLE·(1 − |s|) of the sentences shows the middle. `only`
        restricts the response to one axis.
        """
        s = np.asarray(style, float)
        middle, positive = _middle(s), _positive(s)
        pole = self.poles(rng, s) if poles is None else poles
        rounds, rest = divmod(n_sentences, len(s))
        axes = [a for _ in range(rounds) for a in range(len(s))] + list(rng.permutation(len(s))[:rest])
        if only is not None:
            axes = [only] * n_sentences
        sentences: list[str] = []
        for a in rng.permutation(np.array(axes)):
            if rng.random() < middle[a]:
                kind = 2
            else:
                kind = int(not (pole[a] if rng.random() < coherence else rng.random() < positive[a]))
            choices = self.phrases[a][kind]
            sentence = choices[rng.integers(len(choices))]
            while sentence in sentences:
                sentence = choices[rng.integers(len(choices))]
            sentences.append(sentence)
        if topic is not None:
            echo = self.echoes[rng.integers(len(self.echoes))].replace("{topic}", topic)
            sentences.insert(int(rng.integers(len(sentences) + 1)) if rng.random() < 0.5 else 0, echo)
        return " ".join(sentences)

    def recognise(self, text: str) -> Recognition:
        """Counts the grammar's sentences in a text, by exact match of whole sentences."""
        counts = np.zeros((len(self.phrases), len(KINDS)), int)
        echoes = unknown = 0
        for sentence in split_sentences(text):
            found = self._index.get(sentence)
            if found is not None:
                counts[found] += 1
            elif self._echo_pattern.fullmatch(sentence):
                echoes += 1
            else:
                unknown += 1
        return Recognition(counts, echoes, unknown)

    def amounts_so_far(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Where each sentence of a text ends, int [n] in characters, and the style amounts shown after 0 … n sentences,
        float [n+1, axes], 0 on an axis that has not been shown yet."""
        counts = np.zeros((len(self.phrases), len(KINDS)))
        ends, amounts, at = [], [np.zeros(len(self.phrases))], 0
        for sentence in split_sentences(text):
            at = text.index(sentence, at) + len(sentence)
            found = self._index.get(sentence)
            if found is not None:
                counts[found] += 1
            ends.append(at)
            amounts.append(counts @ _VALUE / np.maximum(counts.sum(axis=1), 1))
        return np.array(ends, int), np.array(amounts)

    def mean_amounts(self, texts: Sequence[str]) -> np.ndarray:
        """Style amounts of many texts together, float [axes]: the mean over the texts that show the axis at all."""
        amounts = np.array([self.recognise(t).amounts for t in texts]).reshape(len(texts), len(self.phrases))
        seen = ~np.isnan(amounts)
        total = np.where(seen, amounts, 0).sum(axis=0)
        return np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan)

    def start_bias(self, temperature: float) -> np.ndarray:
        """What sampling at a temperature adds to half the log odds of the positive pole, float [axes].

        The choice of a sentence is the choice of its first word. Sampling raises the probability p·q of each, p of the
        pole and q of the word among the pole's sentences, to the power 1/τ; so the poles' odds are raised likewise, and
        multiplied by C₊/C₋ where C = Σ q^(1/τ): a pole whose sentences begin with fewer words gains.
        """
        half_log = []
        for axis in self.phrases:
            weights = []
            for sentences in axis[:2]:
                starts = Counter(s.split()[0] for s in sentences)
                shares = np.array(list(starts.values())) / len(sentences)
                weights.append(float(np.sum(shares ** (1 / temperature))))
            half_log.append(0.5 * math.log(weights[0] / weights[1]))
        return np.array(half_log)

    def sentences(self) -> list[str]:
        """Every style sentence, axis by axis."""
        return list(self._index)


def _middle(s: np.ndarray) -> np.ndarray:
    """The share of sentences that show the middle, at the amounts s."""
    return MIDDLE * (1 - np.abs(s))


def _positive(s: np.ndarray) -> np.ndarray:
    """The chance of the positive pole, given that a sentence does not show the middle, at the amounts s."""
    return np.clip((1 + s / np.maximum(1 - _middle(s), 1e-9)) / 2, 0, 1)


def load_grammar(path: Path | None = None) -> Grammar:
    """Reads and checks a phrases file (the package's own by default).

    Raises UserError for an axis or kind that is missing or unknown, fewer than two sentences of a kind, an entry that
    is not one whole sentence, or a sentence that stands in the file twice.
    """
    path = path or HERE / "phrases.yaml"
    data = read_yaml(path)
    if not isinstance(data, dict) or set(data) != {"axes", "echoes"}:
        raise UserError(f"{path}: needs the two keys 'axes' and 'echoes'")
    if not isinstance(data["axes"], dict) or set(data["axes"]) != set(AXES):
        raise UserError(f"{path}: axes: must be exactly {', '.join(AXES)}")
    seen: dict[str, str] = {}
    phrases = []
    for axis in AXES:
        entry = data["axes"][axis]
        if not isinstance(entry, dict) or set(entry) != set(KINDS):
            raise UserError(f"{path}: axes.{axis}: needs exactly {', '.join(KINDS)}")
        for kind in KINDS:
            where = f"{path}: axes.{axis}.{kind}"
            if not isinstance(entry[kind], list) or len(entry[kind]) < 4:
                raise UserError(f"{where}: needs a list of at least 4 sentences")
            for s in entry[kind]:
                if not isinstance(s, str) or split_sentences(s) != [s] or s[-1:] not in ".!?":
                    raise UserError(f"{where}: {s!r} is not one whole sentence; end it with . ! or ?")
                if s in seen:
                    raise UserError(f"{where}: {s!r} stands under {seen[s]} already; write each sentence once")
                seen[s] = f"{axis}.{kind}"
        phrases.append(tuple(tuple(entry[kind]) for kind in KINDS))
    for e in data["echoes"]:
        if not isinstance(e, str) or e.count("{topic}") != 1:
            raise UserError(f"{path}: echoes: {e!r} must hold {{topic}} once")
    return Grammar(tuple(phrases), tuple(data["echoes"]))
