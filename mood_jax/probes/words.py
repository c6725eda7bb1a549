"""The words of the responses as a probe: do the texts of the two poles differ, whatever the states say?

n samples, V vocabulary size, K folds, Q questions. Words are counted on the host; what goes to the device is their
Gram matrix [n, n], from which the held-out machinery needs nothing else (`spans.py`).

A row is log(1 + count) of every word, divided by its length. The logarithm, because the tenth "the" says less than the
first. Unit length, so that a long response is not a long vector. Poles that differ in length alone still separate,
since a longer text has more of the rare words in it: texts do differ then, and `controls.length_only_auc` stands
beside it. No weighting by rarity: the frequent words (pronouns, hedges, contractions) are where styles differ. The
vocabulary is that of all texts, which reveals no label. Words are runs of letters, marks and digits after Unicode's
composition (NFC); scripts without spaces between words (Thai, Lao, Khmer, Burmese, Chinese, Japanese) are counted by
characters.

Whether the texts differ at all is another question than how well a direction of some of them sorts the others, and has
a test of its own (`difference_p`): the maximum mean discrepancy of the two poles (Gretton et al., 2012), with the poles
exchanged within questions. It uses all pairs of texts, where a held-out AUC learns from some and counts the others. On
258 obeyed axes of planted models, thirty texts a pole, it finds 91 % at the 5 % level (89 % without weights of rarity);
exchanging the poles of the held-out AUC finds 87 %.

Rows are not centred within their question. The words of a question are in both of its poles: they cancel in the mean
difference and, being those of a held-out question, lie along it by chance only. In simulated responses (topic words by
question, style words by pole) centring raised the AUC from .63 to .69 and its standard deviation from .10 to .13, which
finds no more; and a response without its counterpart would be centred to nothing.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.folds import grouped_folds, own_fold, standardise
from mood_jax.probes.permutation import pole_swaps
from mood_jax.probes.resampling import HeldOut, bootstrap_counts, bootstrap_indices, evaluate
from mood_jax.probes.separation import safe_ratio
from mood_jax.probes.spans import pole_contrast

# Characters of the scripts that are written without spaces: Thai and Lao, Burmese, Khmer, the Tai scripts of Unicode's
# line breaking class SA; kana, Bopomofo, Chinese characters with their extensions, half-width kana.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf\U00011700-\U0001174f"
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# Combining marks, which are no letters to Python: vowel signs, points, accents without a composed form. Those that only
# choose a glyph (variation selectors) are taken out before.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c).startswith("M"))
# Variation selectors, joiners within words, soft hyphens and direction marks: they show nothing and part no words.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
# Runs of letters, digits and their marks, with apostrophes inside ("don't"); a character of a script that is written
# without spaces, with its marks, is a word of its own.
_RUN = rf"(?:[^\W_{_UNSPACED}]++[{_MARKS}]*+)++"
WORD = re.compile(rf"(?=\w)[{_UNSPACED}][{_MARKS}]*+|{_RUN}(?:['’]{_RUN})*+")
# A squared pole difference below this share of the squared spread is rounding of the float32 Gram matrix.
FLAT_GRAM = 1e-6


def split_words(text: str) -> list[str]:
    """The lower-cased words of a text, the same for composed (NFC) and decomposed (NFD) letters."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())  # "İ" loses its form by lower()
    return WORD.findall(_INVISIBLE.sub("", text))


def word_counts(texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Counts [n, V] of every word in every text, and the sorted vocabulary."""
    counted = [Counter(split_words(text)) for text in texts]
    vocabulary = sorted(set().union(*counted))
    column = {word: i for i, word in enumerate(vocabulary)}
    counts = np.zeros((len(counted), len(vocabulary)), np.int32)
    for row, words in zip(counts, counted, strict=True):
        for word, count in words.items():
            row[column[word]] = count
    return counts, vocabulary


def word_rows(counts: np.ndarray) -> np.ndarray:
    """log(1 + count), divided by its length: counts [n, V] to float64 rows of length 1, or 0 without any word."""
    rows = np.log1p(counts.astype(np.float64))
    length = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    return rows / np.where(length > 0, length, 1.0)


def word_gram(rows: np.ndarray) -> np.ndarray:
    """float32 Gram matrix [n, n] of rows [n, V] centred on their mean."""
    centred = rows - np.mean(rows, axis=0, keepdims=True)
    return (centred @ centred.T).astype(np.float32)


def rarity(counts: np.ndarray) -> np.ndarray:
    """Weight [V] of every word by the texts it is in, of n: log((1 + n) / (1 + texts)) + 1."""
    return np.log((1.0 + len(counts)) / (1.0 + (counts > 0).sum(axis=0))) + 1.0


def difference_p(counts: np.ndarray, sign: np.ndarray, question: np.ndarray, swaps: np.ndarray) -> float:
    """Permutation p of the squared maximum mean discrepancy between the words of two poles, all texts used.

    The kernel is the scalar product of the rows log(1 + count) · rarity of unit length, without a text's with itself.

    Args:
      counts: [n, V].
      sign: [n] of +1 / −1.
      question: [n], codes 0 … Q − 1.
      swaps: [P, Q] of ±1 from `permutation.pole_swaps`, the identity first.
    """
    rows = np.log1p(counts.astype(np.float64)) * rarity(counts)
    length = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    rows = rows / np.where(length > 0, length, 1.0)
    kernel = rows @ rows.T
    np.fill_diagonal(kernel, 0.0)
    signs = swaps[:, question] * np.asarray(sign)
    positive, negative = signs > 0, signs < 0
    weights = positive / np.maximum(positive.sum(axis=1, keepdims=True), 1)
    weights -= negative / np.maximum(negative.sum(axis=1, keepdims=True), 1)
    statistic = np.sum((weights @ kernel) * weights, axis=1)
    # Rows are of length 1, so entries of the kernel are at most 1 and sums are rounded by about 1e-16 of that.
    return float(np.mean(statistic >= statistic[0] - 1e-12))


def telling_words(rows: np.ndarray, sign: np.ndarray, vocabulary: Sequence[str], k: int = 5) -> dict[str, list[str]]:
    """The k words of largest mean difference on either side: what the responses of one pole say more than the other's.

    Returns:
      positive, negative: at most k words each, the most telling first; shown, and never an input of a test.
    """
    difference = np.asarray(pole_contrast(jnp.asarray(sign)), np.float64) @ rows
    out = {}
    for name, side in (("positive", 1.0), ("negative", -1.0)):
        order = np.argsort(-side * difference, kind="stable")[:k]
        out[name] = [vocabulary[i] for i in order if side * difference[i] > 1e-9]
    return out


def gram_projections(gram: jax.Array, sign: jax.Array, fold: jax.Array, n_folds: int) -> HeldOut:
    """`resampling.cross_validated_projections` of the untrimmed mean difference, from the Gram matrix alone.

    Args:
      gram: [n, n] of centred samples.
      sign, fold: [n].
      n_folds: K.
    Returns:
      HeldOut, whose `vector` holds the coefficients [n] of the direction of all samples and not a direction.
    """
    used = (sign != 0).astype(gram.dtype)
    spread = safe_ratio(jnp.sum(jnp.diagonal(gram) * used), jnp.sum(used), 0.0)

    def one_fold(f: jax.Array):
        training = jnp.where(fold == f, 0, sign)
        coefficients = pole_contrast(training)
        x = jnp.sum(coefficients[:, None] * gram, axis=0)
        ok = jnp.any(training > 0) & jnp.any(training < 0) & (jnp.sum(coefficients * x) > FLAT_GRAM * spread)
        return jnp.where(ok, standardise(x, training), 0.0), ok, coefficients

    # One fold more than there are, which holds nothing out.
    x, ok, coefficients = jax.vmap(one_fold)(jnp.arange(n_folds + 1))
    return HeldOut(own_fold(x, sign, fold), jnp.all(ok), coefficients[-1], x[-1])


@functools.partial(jax.jit, static_argnames=("n_folds", "n_questions", "n_boot"))
def _bag_of_words(gram, sign, question, fold, key, *, n_folds, n_questions, n_boot):
    held = gram_projections(gram, sign, fold, n_folds)
    counts = bootstrap_counts(bootstrap_indices(key, n_boot, n_questions))
    return evaluate(held.x, sign, question, fold, counts, gram, n_folds) | {"ok": held.ok, "x": held.x}


def bag_of_words_auc(
    texts: Iterable[str],
    sign: Any,
    question: Any,
    *,
    k: int = 5,
    seed: int = 0,
    n_boot: int = 2000,
    n_perm: int = 2000,
) -> dict:
    """Held-out separation of the poles by the words of their responses: `resampling.heldout` of `word_rows`.

    The direction is the untrimmed mean difference: trimmed means of word counts that are mostly 0 would be 0.

    Args:
      texts: [n] responses; one without any word is a row of zeros.
      sign: [n] of +1 / −1, 0 = left out.
      question: [n] ids.
      k: folds.
      seed: of folds and bootstrap.
      n_boot, n_perm: draws of the bootstrap and of exchanged poles.
    Returns:
      as `resampling.heldout`, and p (`difference_p`), n_words (size of the vocabulary), n_empty (responses without a
      word), words (`telling_words`).
    Raises:
      UserError: fewer than two questions, arrays of unequal length, a text that is none, labels that are none of −1,
        0, 1, a missing pole, question ids of several types.
    """
    texts = taken_texts("texts", texts)
    sign, code = inputs.signs(sign, len(texts)), inputs.groups("question", question, len(texts))
    k, seed, n_boot = inputs.count("k", k, 2), inputs.seed(seed), inputs.count("n_boot", n_boot)
    n_perm = inputs.count("n_perm", n_perm)
    fold = grouped_folds(code, k, seed)
    swaps = pole_swaps(sign, code, n_perm, seed)
    prepared = words_of([text if s else "" for text, s in zip(texts, sign, strict=True)], sign, code, swaps)
    out = _bag_of_words(
        jnp.asarray(prepared.pop("gram")),
        jnp.asarray(sign),
        jnp.asarray(code),
        jnp.asarray(fold),
        numerics.key(seed),
        n_folds=int(fold.max()) + 1,
        n_questions=int(code.max()) + 1,
        n_boot=n_boot,
    )
    return out | prepared


def taken_texts(name: str, texts: Iterable[str]) -> list[str]:
    """The texts as a list; refused where one is none, or where a single text was given."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise UserError(f"{name} needs a list of texts, one a response, not an object of type {type(texts).__name__}")
    found = list(texts)
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f"{name}[{i}] is of type {type(text).__name__}; give a text, empty where there is none")
    return [str(text) for text in found]


def words_of(texts: Sequence[str], sign: np.ndarray, question: np.ndarray, swaps: np.ndarray) -> dict:
    """The host's part, of texts, signs and question codes [n] and swaps [P, Q]: gram [n, n] of the used texts (0
    elsewhere), p of their difference, n_words, n_empty, words."""
    counts, vocabulary = word_counts(texts)
    used = np.asarray(sign) != 0
    rows = word_rows(counts)
    gram = np.zeros((len(rows), len(rows)), np.float32)
    gram[np.ix_(used, used)] = word_gram(rows[used])
    return {
        "gram": gram,
        "p": difference_p(counts[used], np.asarray(sign)[used], np.asarray(question)[used], swaps),
        "n_words": len(vocabulary),
        "n_empty": int(np.sum(counts[used].sum(axis=1) == 0)),
        "words": telling_words(rows, sign, vocabulary),
    }
