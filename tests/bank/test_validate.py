"""Near duplicates against all pairs compared one by one; stems."""

import random

import numpy as np
import pytest

from mood_jax import bank
from mood_jax.bank.validate import grams, jaccard, near_duplicates, pole_word, quartiles, stems


def brute(texts, threshold):
    sets = [grams(text) for text in texts]
    return [
        (i, j, jaccard(sets[i], sets[j]))
        for j in range(len(texts))
        for i in range(j)
        if jaccard(sets[i], sets[j]) >= threshold
    ]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 2 / 3, 0.9, 1.0])
def test_near_duplicates_equal_all_pairs(threshold):
    rng = random.Random(0)
    texts = [q.text for q in bank.questions("warm_cold")]
    for text in texts[:20]:  # relatives of every degree
        words = text.split()
        for _ in range(5):
            kept = [w for w in words if rng.random() > 0.15] or words
            texts.append(" ".join(kept[: rng.randint(1, len(kept))]))
    texts += ["", "a", "a", "ab", "abcde", "abcdef"]
    expected = sorted(brute(texts, threshold))
    assert near_duplicates(texts, threshold) == expected
    assert near_duplicates(texts, threshold, first=60) == [pair for pair in expected if pair[1] >= 60]
    assert expected, "the texts must hold duplicates, or nothing is tested"


def test_jaccard_by_hand():
    # "abcdef": abcde, bcdef; "abcdeg": abcde, bcdeg → 1 of 3
    assert near_duplicates(["abcdef", "abcdeg"], 1 / 3) == [(0, 1, 1 / 3)]
    assert near_duplicates(["abcdef", "abcdeg"], 0.34) == []
    assert near_duplicates(["Is it so?", "is  it SO"], 1.0) == [(0, 1, 1.0)]


def test_pole_words():
    axis = bank.Axis("patient_irritated", bank.Pole("patient", "…", ("patien",)), bank.Pole("irritated", "…"))
    assert stems(axis.negative) == ("irritated",)
    assert pole_word("Have some Patience.", axis) == "Patience"
    assert pole_word("Why so irritated?", axis) == "irritated"
    assert pole_word("An impatient, irritating day", axis) is None
    warm = bank.axis("warm_cold")
    assert [pole_word(t, warm) for t in ("a cold brew", "lukewarm", "scolded", "the warmest")] == [
        "cold",
        None,
        None,
        "warmest",
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 30])
def test_quartiles_equal_numpy(n):
    lengths = random.Random(n).choices(range(100), k=n)
    assert quartiles(lengths) == pytest.approx(tuple(np.percentile(lengths, [25, 50, 75])))
