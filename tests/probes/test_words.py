import re
import unicodedata

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

from mood_jax.errors import UserError
from mood_jax.probes import grouped_folds
from mood_jax.probes.permutation import pole_swap_test, pole_swaps
from mood_jax.probes.words import (
    WORD,
    bag_of_words_auc,
    difference_p,
    split_words,
    telling_words,
    word_counts,
    word_gram,
    word_rows,
)
from tests.probes.test_resampling import reference_projections

pytestmark = pytest.mark.usefixtures("unoptimised")

SIGN, QUESTION = np.tile([1, -1], 30), np.repeat(np.arange(30), 2)
WORDS = [f"w{i}" for i in range(80)]
HARD = [
    "",
    "?! … :-)",
    "Don't don’t DON'T",
    "naïve Straße café",
    "x_y 3.5 -- 42",
    "我很好 ok 東京",
    "a\n\tb  a\u00a0b",
    "\x00",
]


def responses(rng, style=0.0, length=30, kinds=1):
    """One text a row: words of the question, words of everybody, and with probability `style` one of `kinds` words of
    the pole."""
    texts = []
    for s, q in zip(SIGN, QUESTION, strict=True):
        said = list(rng.choice(WORDS, length)) + [f"topic{q}"] * 3
        mark = "lovely" if s > 0 else "indeed"
        said += [mark if kinds == 1 else f"{mark}{rng.integers(kinds)}"] * int(rng.random() < style)
        texts.append(" ".join(rng.permutation(said)))
    return texts


def test_words_of_hard_texts():
    assert split_words("Don't shout, it’s 9 o'clock 'now'") == ["don't", "shout", "it’s", "9", "o'clock", "now"]
    assert split_words("snake_case") == ["snake", "case"]
    assert split_words("東京は OK") == ["東", "京", "は", "ok"]
    assert split_words("… 🙂 --") == []


# Sentences with their words: marks kept, scripts without spaces by characters, the others by spaces.
SENTENCES = {
    "हिन्दी की किताब": ["हिन्दी", "की", "किताब"],
    "தமிழ் நாடு": ["தமிழ்", "நாடு"],
    "مَرْحَبًا بِكَ": ["مَرْحَبًا", "بِكَ"],
    "שָׁלוֹם עוֹלָם": ["שָׁלוֹם", "עוֹלָם"],
    "Tiếng Việt có dấu": ["tiếng", "việt", "có", "dấu"],
    "x\u0331y a\u0300\u0316b": ["x\u0331y", "à\u0316b"],
    "สวัสดี": ["ส", "วั", "ส", "ดี"],
    "ສະບາຍດີ": ["ສ", "ະ", "ບ", "າ", "ຍ", "ດີ"],
    "សួស្តី": ["សួ", "ស្", "តី"],
    "မင်္ဂလာ": ["မ", "င်္", "ဂ", "လာ"],
    "我很好，東京は": ["我", "很", "好", "東", "京", "は"],
    "がぎ・ｶﾅ𠮷": ["が", "ぎ", "ｶ", "ﾅ", "𠮷"],
    "한국어 문장 2개": ["한국어", "문장", "2개"],
    "Ünïcode isn't l’été 3.5": ["ünïcode", "isn't", "l’été", "3", "5"],
    "İstanbul ΟΔΟΣ": ["i̇stanbul", "οδος"],
    "می\u200cخواهم co\u00adop": ["میخواهم", "coop"],
    "❤\ufe0f ok \u0301": ["ok"],
}


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_of_many_scripts_in_either_form(text, form):
    words = [unicodedata.normalize("NFC", word) for word in SENTENCES[text]]
    assert split_words(unicodedata.normalize(form, text)) == words


def test_no_mark_is_lost_and_no_form_matters(rng):
    """Random strings of letters with marks: what is no separator is in some word, in the order of the text."""
    letters = "aéxкдהمคकがह한中ẞ"
    marks = [chr(c) for c in range(0x300, 0x1E000) if unicodedata.category(chr(c)) in ("Mn", "Mc")]
    for _ in range(300):
        parts = ["".join([rng.choice(list(letters)), *rng.choice(marks, rng.integers(3))]) for _ in range(5)]
        text = unicodedata.normalize("NFC", rng.choice(["", " "]).join(parts))
        words = split_words(text)
        assert words == split_words(unicodedata.normalize("NFD", text))
        shown = "".join(c for c in unicodedata.normalize("NFC", text.lower()) if not "\ufe00" <= c <= "\ufe0f")
        assert "".join(words) == shown.replace(" ", "")


def test_english_words_are_those_of_letters_digits_and_apostrophes(rng):
    plain = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
    characters = list("abcXYZ019 '’.,-_\n\t!?éß")
    for _ in range(200):
        text = "".join(rng.choice(characters, 60))
        assert split_words(text) == plain.findall(text.lower())


@pytest.mark.parametrize(
    ("one", "other"), [(" ki ki", " ka ka"), (" की की", " का का"), (" ki\u0300", " ki\u0301"), ("กิ", "กี")]
)
def test_a_difference_in_marks_alone_is_a_difference(one, other):
    rng, sign, question = np.random.default_rng(0), np.tile([1, -1], 20), np.repeat(np.arange(20), 2)
    texts = [" ".join(rng.choice(WORDS, 5)) + (one if s > 0 else other) for s in sign]
    out = bag_of_words_auc(texts, sign, question, n_boot=50, n_perm=500)
    assert float(out["auc"]) == 1.0
    assert out["p"] == pytest.approx(1 / 500, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": "abcd"}, "texts needs a list of texts"),
        ({"texts": None}, "texts needs a list of texts"),
        ({"texts": ["a", None, "b", "c"]}, r"texts\[1\] is of type NoneType"),
        ({"texts": ["a", 3, "b", "c"]}, r"texts\[1\] is of type int"),
        ({"sign": [1, 0, 1, 0]}, "sign has no −1"),
        ({"sign": [True, False, True, False]}, "True"),
        ({"sign": [1, 2, 1, -1]}, "sign has the value 2"),
        ({"question": [0, None, 1, 1]}, "question needs one id a row"),
        ({"question": [0, "0", 1, 1]}, "question needs one id a row"),
        ({"question": [0.0, np.nan, 1.0, 1.0]}, "NaN"),
        ({"k": 2.5}, "k is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"n_perm": None}, "n_perm is None"),
    ],
)
def test_what_words_cannot_be_counted_of_is_refused(change, said):
    given = {"texts": ["a b", "c", "a", "d"], "sign": [1, -1, 1, -1], "question": [0, 0, 1, 1]} | change
    with pytest.raises(UserError, match=said) as e:
        bag_of_words_auc(given.pop("texts"), given.pop("sign"), given.pop("question"), **given)
    assert "\n" not in str(e.value)


def test_counts_and_rows_equal_scikit_learn(rng):
    texts = [*HARD, *responses(rng, 0.5)]
    vectorizer = CountVectorizer(token_pattern=WORD.pattern)
    expected = vectorizer.fit_transform(texts).toarray()
    counts, vocabulary = word_counts(texts)
    np.testing.assert_array_equal(counts, expected)
    assert vocabulary == vectorizer.get_feature_names_out().tolist()
    rows = word_rows(counts)
    np.testing.assert_allclose(rows, normalize(np.log1p(expected)), atol=1e-12)
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(word_gram(rows), centred @ centred.T, atol=1e-6)


@pytest.mark.parametrize("hard", ["even", "ragged"])
def test_auc_equals_the_loop_over_folds_on_the_word_rows(rng, hard):
    texts, sign = responses(rng, 0.3), SIGN.copy()
    if hard == "ragged":  # two responses without words, two left out, one question without a pole
        texts[4], texts[11] = "", "?!"
        sign[[0, 7, 20]] = 0
        texts[20] = "words that nobody else says"
    out = bag_of_words_auc(texts, sign, QUESTION, n_boot=50, seed=2)
    used = sign != 0
    counts = CountVectorizer(token_pattern=WORD.pattern).fit_transform(np.array(texts)[used]).toarray()
    rows, fold = normalize(np.log1p(counts)), grouped_folds(QUESTION, 5, seed=2)
    x = reference_projections(rows, sign[used], fold[used], trim=0.0)
    assert float(out["auc"]) == pytest.approx(
        roc_auc_score(sign[used] > 0, x), abs=3e-3
    )  # a near tie may fall either way
    np.testing.assert_allclose(np.asarray(out["x"])[used], x, atol=1e-3)
    assert out["n_words"] == counts.shape[1]
    assert out["n_empty"] == (2 if hard == "ragged" else 0)
    assert bool(out["ok"])


def test_styles_are_found_and_named_and_topics_are_not():
    rng = np.random.default_rng(5)  # fixed: statistical bounds
    styled = bag_of_words_auc(responses(rng, 0.9, length=8), SIGN, QUESTION, n_boot=50)
    assert float(styled["auc_ci95"][0]) > 0.8
    assert styled["words"]["positive"][0] == "lovely"
    assert styled["words"]["negative"][0] == "indeed"
    plain = [float(bag_of_words_auc(responses(rng), SIGN, QUESTION, n_boot=50)["auc"]) for _ in range(40)]
    assert abs(np.mean(plain) - 0.5) < 0.05  # SE .016


@pytest.mark.parametrize("texts", [[""] * 60, ["the same words"] * 60, ["!"] * 30 + ["?"] * 30])
def test_texts_that_do_not_differ_have_no_direction(texts):
    out = bag_of_words_auc(texts, SIGN, QUESTION, n_boot=50)
    assert not bool(out["ok"])
    assert float(out["auc"]) == 0.5
    assert out["words"] == {"positive": [], "negative": []}
    assert all(np.isfinite(np.asarray(v)).all() for k, v in out.items() if k != "words")


def test_two_responses_a_pole():
    out = bag_of_words_auc(["yes a", "no b", "yes c", "no d"], [1, -1, 1, -1], [0, 0, 1, 1], n_boot=50)
    assert float(out["auc"]) == 1.0
    with pytest.raises(UserError, match="sign has no −1"):
        bag_of_words_auc(["yes a", "no b", "yes c", "no d"], [1, 1, 1, 1], [0, 0, 1, 1], n_boot=50)


def test_swapping_the_poles_swaps_the_words_and_keeps_the_auc(rng):
    texts = responses(rng, 0.5)
    one, other = (bag_of_words_auc(texts, s * SIGN, QUESTION, n_boot=50) for s in (1, -1))
    assert one["words"]["positive"] == other["words"]["negative"]
    assert float(one["auc"]) == pytest.approx(float(other["auc"]), abs=3e-3)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_p_of_the_difference_equals_a_loop_over_pairs_of_texts(rng, ragged):
    """Rows of scikit-learn's tf-idf; the discrepancy of one exchange after another from its definition."""
    keep = np.setdiff1d(np.arange(60), [0, 7, 20, 21] if ragged else [])  # two without a counterpart, a question gone
    texts = [responses(rng, 0.4, length=8)[i] for i in keep]
    if ragged:
        texts[5] = "?!"
    sign, question = SIGN[keep], np.unique(QUESTION[keep], return_inverse=True)[1]
    swaps = pole_swaps(sign, question, 40, 3)
    counts, _ = word_counts(texts)
    rows = np.asarray(normalize(np.log1p(counts) * TfidfTransformer().fit(counts).idf_))

    def discrepancy(s):
        means = {pair: [] for pair in ((1, 1), (-1, -1), (1, -1), (-1, 1))}
        for i in range(len(s)):
            for j in range(len(s)):
                means[s[i], s[j]].append(0.0 if i == j else rows[i] @ rows[j])
        return np.mean(means[1, 1]) + np.mean(means[-1, -1]) - np.mean(means[1, -1]) - np.mean(means[-1, 1])

    values = np.array([discrepancy(sign * swap[question]) for swap in swaps])
    assert difference_p(counts, sign, question, swaps) == np.mean(values >= values[0] - 1e-9)


def test_a_style_of_several_words_is_found_more_often_than_by_sorting_and_none_where_there_is_none():
    rng = np.random.default_rng(7)  # fixed: shares of draws
    swaps = pole_swaps(SIGN, QUESTION, 199, 0)
    none = [word_counts(responses(rng))[0] for _ in range(200)]
    several = [word_counts(responses(rng, 1.0, length=20, kinds=5))[0] for _ in range(60)]

    def found(p):
        return np.mean(np.array(p) < 0.05)

    assert found([difference_p(c, SIGN, QUESTION, swaps) for c in none]) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    differ = found([difference_p(c, SIGN, QUESTION, swaps) for c in several])
    sorted_ = found([pole_swap_test(word_rows(c), SIGN, QUESTION, 199, 0)["p"] for c in several])
    assert differ > 0.9
    assert differ > sorted_ + 0.1


def test_texts_that_do_not_differ_or_have_no_counterpart_have_a_p_of_one(rng):
    counts, _ = word_counts(["the same words"] * 60)
    assert difference_p(counts, SIGN, QUESTION, pole_swaps(SIGN, QUESTION, 100)) == 1.0
    alone = np.arange(60)  # a question each: nothing can be exchanged
    assert difference_p(word_counts(responses(rng, 0.9))[0], SIGN, alone, pole_swaps(SIGN, alone)) == 1.0


def test_telling_words_equal_sorting_the_differences(rng):
    counts, vocabulary = word_counts(responses(rng, 0.5))
    rows = word_rows(counts)
    difference = rows[SIGN > 0].mean(axis=0) - rows[SIGN < 0].mean(axis=0)
    got = telling_words(rows, SIGN, vocabulary, 3)
    assert got["positive"] == [vocabulary[i] for i in np.argsort(-difference)[:3]]
    assert got["negative"] == [vocabulary[i] for i in np.argsort(difference)[:3]]


def test_lengths_that_disagree_are_a_clear_error():
    with pytest.raises(UserError, match="sign has 2 rows and needs 1"):
        bag_of_words_auc(["a"], [1, -1], [0, 0])
