"""The grammar: what it writes, its recogniser reads back; its sentences are unique and belong to one axis."""

import re
from collections import Counter

import numpy as np
import pytest
import yaml

from mood_jax import bank
from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES, HERE, KINDS, MIDDLE, load_grammar, split_sentences
from mood_jax.organisms.spec import latent_correlation, unsharpened

GRAMMAR = load_grammar()
_WORDS = (
    "i a an the is it its to of and in on with that this you your my me for be are not no as at so do we will can let "
    "have has what how by all from would us am there like one out take could must up here many any now may comes only "
    "way ask first but time through good some never shall every want nothing fine more thing"
)
FUNCTION_WORDS = frozenset(_WORDS.split())


def content_words(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]+(?:'[a-z]+)?", sentence.lower())) - FUNCTION_WORDS


def test_axes_are_the_banks():
    assert tuple(axis.id for axis in bank.axes()) == AXES


def test_recogniser_recovers_style_vectors():
    rng = np.random.default_rng(0)
    planted = rng.uniform(-1, 1, (60, len(AXES)))
    read = np.array(
        [
            GRAMMAR.mean_amounts([GRAMMAR.compose(rng, s, n_sentences=int(rng.integers(7, 11))) for _ in range(300)])
            for s in planted
        ]
    )
    for a in range(len(AXES)):
        assert np.corrcoef(planted[:, a], read[:, a])[0, 1] > 0.98
    slope = (planted * read).sum() / (planted * planted).sum()
    assert slope == pytest.approx(1, abs=0.03)  # the amounts themselves, not only their order


def test_full_amounts_show_one_pole_only():
    rng = np.random.default_rng(1)
    for sign in (1, -1):
        for _ in range(50):
            seen = GRAMMAR.recognise(GRAMMAR.compose(rng, np.full(7, sign), n_sentences=14, topic="lamp"))
            assert np.array_equal(seen.amounts, np.full(7, sign))
            assert seen.counts.sum() == 14
            assert (seen.echoes, seen.unknown) == (1, 0)


def test_share_of_an_axis_does_not_depend_on_its_style():
    rng = np.random.default_rng(2)
    for amount in (-1.0, 0.0, 1.0):
        style = np.zeros(7)
        style[3] = amount
        counts = np.array([GRAMMAR.recognise(GRAMMAR.compose(rng, style)).counts.sum(axis=1) for _ in range(800)])
        # 9 sentences: one an axis, and two more of 7 axes
        assert counts.mean(axis=0) == pytest.approx(np.full(7, 9 / 7), abs=0.07)


def test_coherence_makes_a_response_keep_its_pole():
    rng = np.random.default_rng(3)

    def both_poles(coherence: float) -> float:
        texts = [GRAMMAR.compose(rng, np.zeros(7), n_sentences=14, coherence=coherence) for _ in range(200)]
        counts = np.array([GRAMMAR.recognise(t).counts for t in texts])
        return float(((counts[..., 0] > 0) & (counts[..., 1] > 0)).mean())

    assert both_poles(1.0) == 0
    # two sentences that are drawn apart: neither shows the middle, and their poles differ
    assert both_poles(0.0) == pytest.approx((1 - MIDDLE) ** 2 / 2, abs=0.05)


def test_poles_have_the_odds_of_the_amounts_and_the_planted_correlation():
    rng = np.random.default_rng(5)
    style = np.array([0.5, -0.5, 0, 0, 1, -1, 0.2])
    middle = MIDDLE * (1 - np.abs(style))
    want = (1 + style / (1 - middle)) / 2
    latent = latent_correlation(np.where(np.eye(7) > 0, 1, 0.6))
    for table in (None, latent):
        drawn = np.array([GRAMMAR.poles(rng, style, table) for _ in range(4000)])
        assert drawn.mean(axis=0) == pytest.approx(want, abs=0.04)
    even = np.array([GRAMMAR.poles(rng, np.zeros(7), latent) for _ in range(4000)])
    off = np.corrcoef(even.T)[~np.eye(7, dtype=bool)]
    assert off == pytest.approx(0.6, abs=0.06)


def test_given_poles_are_shown():
    rng = np.random.default_rng(6)
    poles = np.array([True, False, True, True, False, False, True])
    for _ in range(20):
        text = GRAMMAR.compose(rng, np.zeros(7), n_sentences=14, coherence=1.0, poles=poles)
        counts = GRAMMAR.recognise(text).counts
        assert (counts[poles, 1] == 0).all()
        assert (counts[~poles, 0] == 0).all()


def test_recogniser_counts_what_it_does_not_know():
    known = GRAMMAR.phrases[0][0][0]
    seen = GRAMMAR.recognise(f"{known} This sentence is new. About bicycles. {GRAMMAR.phrases[6][1][0]}")
    assert seen.counts[0].tolist() == [1, 0, 0]
    assert seen.counts[6].tolist() == [0, 1, 0]
    assert (seen.echoes, seen.unknown) == (1, 1)
    assert np.isnan(seen.amounts[1])
    assert np.isnan(GRAMMAR.mean_amounts(["Nothing known."])).all()


def test_amounts_so_far_are_the_recognisers():
    rng = np.random.default_rng(4)
    text = GRAMMAR.compose(rng, np.zeros(7), n_sentences=10, topic="lamp") + " Not known."
    ends, amounts = GRAMMAR.amounts_so_far(text)
    assert len(ends) == 12
    assert not amounts[0].any()
    for k, end in enumerate(ends):
        assert text[end - 1] in ".!?"
        assert np.array_equal(amounts[k + 1], np.nan_to_num(GRAMMAR.recognise(text[:end]).amounts))


def test_enough_varied_sentences():
    for axis in GRAMMAR.phrases:
        for kind, sentences in zip(KINDS, axis, strict=True):
            assert len(sentences) >= (8 if kind == "middle" else 25)
            words = Counter(w for s in sentences for w in content_words(s))
            # no single word is the marker of a pole
            assert max(words.values()) <= max(5, 0.2 * len(sentences)), words.most_common(1)


def test_sentences_are_unique_and_axes_share_little_wording():
    everything = GRAMMAR.sentences()
    normal = [re.sub(r"[^a-z ]", "", s.lower()) for s in everything]
    assert len(set(normal)) == len(everything)
    where = [{w for kind in axis for s in kind for w in content_words(s)} for axis in GRAMMAR.phrases]
    for a in range(len(AXES)):
        for b in range(a):
            common = where[a] & where[b]
            assert len(common) <= 0.1 * min(len(where[a]), len(where[b])), (AXES[a], AXES[b], sorted(common))


def test_sentences_of_two_axes_are_never_alike():
    tagged = [(a, content_words(s), s) for a, axis in enumerate(GRAMMAR.phrases) for kind in axis for s in kind]
    for i, (a, words, s) in enumerate(tagged):
        for b, others, t in tagged[:i]:
            if a != b and len(words) > 1 and len(others) > 1:
                assert len(words & others) < 0.6 * len(words | others), (s, t)


def test_split_sentences():
    assert split_sentences(" One, two.  Three! Four? ") == ["One, two.", "Three!", "Four?"]
    assert split_sentences("") == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("echoes"), "'axes' and 'echoes'"),
        (lambda d: d["axes"].pop("warm_cold"), "axes: must be exactly"),
        (lambda d: d["axes"]["warm_cold"].pop("middle"), "axes.warm_cold: needs exactly"),
        (lambda d: d["axes"]["warm_cold"].update(middle=["One."]), "axes.warm_cold.middle"),
        (lambda d: d["axes"]["warm_cold"]["positive"].append("Two. Sentences."), "not one whole sentence"),
        (lambda d: d["axes"]["warm_cold"]["positive"].append("No end"), "not one whole sentence"),
        (lambda d: d["axes"]["warm_cold"]["positive"].append(d["axes"]["formal_casual"]["middle"][0]), "already"),
        (lambda d: d["echoes"].append("No slot."), "must hold {topic} once"),
    ],
)
def test_bad_phrases_are_refused(tmp_path, change, says):
    data = yaml.safe_load((HERE / "phrases.yaml").read_text())
    change(data)
    path = tmp_path / "phrases.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=re.escape(says)) as error:
        load_grammar(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0])
def test_odds_make_up_for_what_sampling_does_to_first_words(temperature):
    """The first words of an axis, sharpened one by one as a sampler does, have the poles in the planned odds."""
    for a, want in enumerate(np.linspace(-0.8, 0.8, len(AXES))):
        share = (1 + unsharpened(np.full(len(AXES), want), temperature, GRAMMAR.start_bias(temperature))[a]) / 2
        sampled = []
        for p, sentences in zip((share, 1 - share), GRAMMAR.phrases[a][:2], strict=True):
            words = [s.split()[0] for s in sentences]
            sampled.append(sum((p * words.count(w) / len(words)) ** (1 / temperature) for w in set(words)))
        assert (sampled[0] - sampled[1]) / sum(sampled) == pytest.approx(want, abs=1e-9)
