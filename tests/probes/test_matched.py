"""Length-matched pairs, the length trap, and the manipulation check."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.probes import bootstrap_counts, bootstrap_indices, evidence, grouped_folds
from mood_jax.probes.comparisons import split_half_cosine
from mood_jax.probes.controls import MATCHED_MIN, MATCHED_WITHIN, length_matched, length_matched_auc, matched_classes
from mood_jax.probes.spans import centred_gram
from mood_jax.probes.verdicts import manipulation
from mood_jax.probes.words import bag_of_words_auc
from tests.probes.test_resampling import combined, interval, ragged, reference_projections

pytestmark = pytest.mark.usefixtures("unoptimised")

N = 60
SIGN, QUESTION = np.tile([1, -1], 30), np.repeat(np.arange(30), 2)


# --- pairs ---


def pair_auc(x, sign, tokens, cut):
    """AUC over matched pairs, the two orders of length weighted alike, and the effective number; plain loops."""
    hits, pairs = np.zeros(3), np.zeros(3)
    for i in np.flatnonzero(sign > 0):
        for j in np.flatnonzero(sign < 0):
            if abs(tokens[i] - tokens[j]) > MATCHED_WITHIN * max(tokens[i], tokens[j]) or cut[i] != cut[j]:
                continue
            kind = 0 if tokens[i] == tokens[j] else 1 if tokens[i] > tokens[j] else 2
            pairs[kind] += 1
            hits[kind] += 0.5 * (float(x[i] > x[j] + 5e-6) + float(x[i] >= x[j] - 5e-6))
    both = min(pairs[1], pairs[2])
    effective = pairs[0] + 2 * both
    if effective == 0:
        return 0.5, 0.0
    unequal = both * (hits[1] / pairs[1] + hits[2] / pairs[2]) if both else 0.0
    return (hits[0] + unequal) / effective, effective


def least_variance(value, sign, question, tokens, cut):
    """`floors` for matched pairs: of the effective number of responses that take part, one a question at most."""
    weight = np.zeros((len(sign), len(sign)))
    kind = np.zeros((len(sign), len(sign)), int)
    for i in np.flatnonzero(sign > 0):
        for j in np.flatnonzero(sign < 0):
            if abs(tokens[i] - tokens[j]) <= MATCHED_WITHIN * max(tokens[i], tokens[j]) and cut[i] == cut[j]:
                weight[i, j], kind[i, j] = 1, np.sign(tokens[i] - tokens[j])
    longer, shorter = (weight[kind == k].sum() for k in (1, -1))
    for k, own in ((1, longer), (-1, shorter)):
        weight[(kind == k) & (weight > 0)] = min(longer, shorter) / own if own else 0
    asked = len(set(question[sign != 0]))
    n_pos, n_neg = (min(w.sum() ** 2 / (w**2).sum(), asked) for w in (weight.sum(axis=1), weight.sum(axis=0)))
    least = min(n_pos, n_neg)
    a = (value * least + 0.5) / (least + 1)
    whole = a * (1 - a) + (n_pos - 1) * (a / (2 - a) - a**2) + (n_neg - 1) * (2 * a**2 / (1 + a) - a**2)
    return whole / (2 * n_pos * n_neg)


def test_matched_auc_and_its_interval_equal_loops_on_the_same_draws(rng):
    states, sign, question = ragged(rng, questions=13, shift=1.5)
    tokens = rng.integers(40, 60, len(sign)) + 4 * sign
    cut = rng.random(len(sign)) < 0.2
    fold = grouped_folds(question, 4)
    x = np.round(reference_projections(states, sign, fold), 1).astype(np.float32)  # ties
    draws = np.asarray(bootstrap_indices(jax.random.key(1), 80, 13))
    arrays = [jnp.asarray(a) for a in (x, sign, question, fold, tokens, cut)]
    out = jax.jit(length_matched, static_argnames="n_folds")(
        *arrays, bootstrap_counts(jnp.asarray(draws)), centred_gram(jnp.asarray(states), jnp.asarray(sign)), n_folds=4
    )
    fixed, left_out = [], []
    for draw in draws:
        r = np.concatenate([np.flatnonzero(question == q) for q in draw])
        value, effective = pair_auc(x[r], sign[r], tokens[r], cut[r])
        if effective:
            fixed.append(value)
    for q in range(13):
        r = (question != q) & (sign != 0)
        again = np.round(reference_projections(states[r], sign[r], fold[r], trim=0), 6)
        value, effective = pair_auc(again, sign[r], tokens[r], cut[r])
        if effective:
            left_out.append(value)
    value, effective = pair_auc(x, sign, tokens, cut)
    assert float(out["pairs"]) == pytest.approx(effective)
    assert float(out["share"]) == pytest.approx(effective / ((sign > 0).sum() * (sign < 0).sum()), abs=1e-6)
    if bool(out["ok"]):  # nearly always
        assert float(out["auc"]) == pytest.approx(value, abs=1e-4)
        se = np.sqrt(max(combined(fixed, left_out), least_variance(value, sign, question, tokens, cut)))
        np.testing.assert_allclose(out["auc_ci95"], interval(value, se, effective), atol=2e-2)


def test_matched_classes():
    tokens, cut = jnp.array([100, 100, 90, 89, 0, 0, 100]), jnp.array([0, 0, 0, 0, 0, 0, 1])
    equal, longer, shorter = np.asarray(matched_classes(tokens, cut)).astype(int)
    assert equal.tolist()[0] == [1, 1, 0, 0, 0, 0, 0]  # a cut response is not as long as its count says
    assert longer.tolist()[0] == [0, 0, 1, 0, 0, 0, 0]  # 90 is within a tenth of 100, 89 is not
    assert equal.tolist()[4] == [0, 0, 0, 0, 1, 1, 0]
    np.testing.assert_array_equal(shorter, longer.T)


@pytest.mark.parametrize("function", ["increasing", "decreasing", "logarithm"])
def test_any_monotone_function_of_the_count_has_a_matched_auc_of_one_half(rng, function):
    tokens = rng.integers(50, 150, N) + 25 * (SIGN > 0)
    x = {"increasing": tokens / 50, "decreasing": -tokens / 50, "logarithm": np.log(tokens)}[function]
    counts = bootstrap_counts(bootstrap_indices(jax.random.key(0), 50, 30))
    arrays = [jnp.asarray(a) for a in (x.astype(np.float32), SIGN, QUESTION, grouped_folds(QUESTION))]
    gram = centred_gram(jnp.asarray(x[:, None], jnp.float32), jnp.asarray(SIGN))
    out = jax.jit(length_matched, static_argnames="n_folds")(
        *arrays, jnp.asarray(tokens), jnp.zeros(N, bool), counts, gram, n_folds=5
    )
    assert float(out["auc"]) == pytest.approx(0.5, abs=1e-5)
    low, high = out["auc_ci95"]
    assert float(low) < 0.5 < float(high)


@pytest.mark.parametrize("case", ["apart", "one always longer", "few", "two samples"])
def test_too_few_matched_pairs_say_nothing(rng, case):
    n = 2 if case == "two samples" else N
    sign, question = SIGN[:n], np.arange(2) if n == 2 else QUESTION
    tokens = {
        "apart": 100 + 200 * (SIGN > 0),
        "one always longer": 100 + 5 * (SIGN > 0),
        "few": np.where(SIGN > 0, 300, 100) - 200 * ((SIGN > 0) & (QUESTION < 4)),  # four positives match
        "two samples": np.full(N, 100),
    }[case][:n]
    states = rng.normal(size=(n, 8)) + 2 * sign[:, None]
    with pytest.raises(UserError, match="one pole is missing"):
        length_matched_auc(states, np.abs(sign), question, tokens, np.zeros(n))
    out = length_matched_auc(states, sign, question, tokens, np.zeros(n), n_boot=50)
    assert not bool(out["ok"])
    assert float(out["auc"]) == 0.5
    assert np.asarray(out["auc_ci95"]).tolist() == [0.0, 1.0]
    assert float(out["pairs"]) == {"few": 120.0, "two samples": 1.0}.get(case, 0.0)
    assert MATCHED_MIN > 4


# --- the manipulation check ---

YES, NO = {"auc": 0.8, "ci95": (0.7, 0.9), "p": 0.001}, {"auc": 0.52, "ci95": (0.4, 0.65), "p": 0.4}


@pytest.mark.parametrize(
    ("texts", "states", "label"),
    [
        (YES, YES, "complies and seen"),
        (YES, NO, "complies, instrument blind"),
        (NO, YES, "represented but suppressed"),
        (NO, NO, "dead"),
        (YES | {"auc": 0.61, "ci95": (0.45, 0.75)}, YES, "complies and seen"),  # of the words the p decides
        (YES, YES | {"ci95": (0.5, 0.9)}, "complies, instrument blind"),  # of the states both the interval and the p
        (YES | {"p": 0.05}, NO, "dead"),
        (YES, YES | {"p": 0.2}, "complies, instrument blind"),
    ],
)
def test_cells_of_the_manipulation_check(texts, states, label):
    got = manipulation(**{f"text_{k}": v for k, v in texts.items()}, **{f"states_{k}": v for k, v in states.items()})
    assert got.label == label
    assert f"{texts['auc']:.2f}" in got.reason
    assert f"{states['auc']:.2f}" in got.reason
    assert "\n" not in got.reason
    assert (got.texts_differ, got.states_differ) == (label.startswith("complies"), "seen" in label or "repr" in label)


# --- their place in the block ---

TRAPS, AXES = 8, ("complies", "blind", "suppressed", "dead", "ragged")


@pytest.fixture(scope="module")
def called():
    """One call on everything: 8 length traps, 8 of them with a true axis beside it, and five axes of known texts."""
    rng = np.random.default_rng(11)  # fixed: what is asserted of it is statistical
    vocabulary = [f"w{i}" for i in range(60)]

    def said(styled):
        return [
            " ".join([*rng.choice(vocabulary, 20), *(("lovely", "dear") if s > 0 else ("indeed",)) * styled])
            for s in SIGN
        ]

    longer = np.round(rng.normal(100, 25, (TRAPS, N)) + 30 * (SIGN > 0)).clip(20, 200)
    trap = 0.3 * rng.normal(size=(TRAPS, N, 32))
    trap[:, :, :4] += (longer / 25)[:, :, None]  # the count and nothing else
    true = trap.copy()
    true[:, :, 9] += 1.0 * SIGN
    noise, shift = rng.normal(size=(5, N, 32)), 1.5 * np.where(np.arange(32) < 3, 1, 0) * SIGN[:, None]
    states = [*trap, *true, noise[0] + shift, noise[1], noise[2] + shift, noise[1], (noise[4] + shift)[1:]]
    texts = [said(0) for _ in range(2 * TRAPS)] + [said(1), said(1), said(0), said(0), ["", *said(1)[2:]]]
    signs = [SIGN] * (2 * TRAPS + 4) + [np.where(np.arange(N - 1) == 7, 0, SIGN[1:])]  # no first sample, one left out
    questions = [QUESTION] * (2 * TRAPS + 4) + [QUESTION[1:]]
    tokens = [*longer, *longer, *([np.full(N, 50)] * 4), np.full(N - 1, 50)]
    random = [h - shift[-len(h) :] for h in states]
    blocks = evidence(
        states,
        signs,
        questions,
        tokens,
        [t >= 200 for t in tokens],
        in_context=states,
        texts=texts,
        random_weights={"re_read": random, "in_context": states},
        n_boot=500,
        n_perm=1000,
        n_random=100,
        n_splits=40,
    )
    return blocks, (states[-1], signs[-1], questions[-1], texts[-1])


def test_length_traps_are_seen_through_and_a_true_axis_beside_them_is_not(called):
    trapped, honest = called[0][:TRAPS], called[0][TRAPS : 2 * TRAPS]
    assert np.mean([b["re_read"]["auc"] for b in trapped]) > 0.7
    assert all(b["length_matched"]["ok"] for b in trapped + honest)
    for control in ("length_residualised", "length_matched"):
        assert np.mean([b[control]["auc"] for b in trapped]) == pytest.approx(0.5, abs=0.1)  # SE .04
        assert np.mean([b[control]["auc"] for b in honest]) > 0.8
    assert [b["verdict"] for b in trapped].count("length") >= TRAPS - 1
    assert [b["verdict"] for b in honest].count("real") >= TRAPS - 1
    assert np.mean([b["length_matched"]["auc_ci95"][0] > 0.5 for b in honest]) > 0.8
    for block in trapped + honest:  # their texts are all alike; a longer response is not a style that is suppressed
        style = {"length": "dead", "real": "represented but suppressed"}
        assert block["manipulation"]["label"] == style[block["verdict"]]


def test_texts_and_random_weights_have_their_place_in_the_block(called):
    blocks = called[0]
    json.dumps(blocks, allow_nan=False)  # finite, and plain types
    of = dict(zip(AXES, blocks[2 * TRAPS :], strict=True))
    assert [block["manipulation"]["label"] for block in of.values()] == [
        "complies and seen",
        "complies, instrument blind",
        "represented but suppressed",
        "dead",
        "complies and seen",
    ]
    for block in of.values():
        assert block["random_in_context"] == block["in_context"]
        assert set(block["random_re_read"]) == set(block["re_read"])
        assert set(block["split_half_cosine"]) == set(block["mahalanobis_cosine"]) == {"re_read", "in_context"}
        # All are equally long, so that all pairs are matched.
        assert block["length_matched"]["share"] == pytest.approx(1.0)
        assert block["length_matched"]["auc"] == pytest.approx(block["re_read"]["auc"], abs=1e-5)
        np.testing.assert_allclose(block["length_matched"]["auc_ci95"], block["re_read"]["auc_ci95"], atol=2e-3)
    assert np.mean([of[name]["random_re_read"]["auc"] for name in ("complies", "suppressed")]) < 0.7
    halves = {name: block["split_half_cosine"]["re_read"]["mean"] for name, block in of.items()}
    assert halves["complies"] > halves["blind"] + 0.2
    assert (of["ragged"]["n_samples"], of["ragged"]["bag_of_words"]["n_empty"]) == (N - 2, 1)
    assert set(of["complies"]["bag_of_words"]["words"]["positive"][:2]) == {"lovely", "dear"}


def test_padding_and_stacking_change_nothing(called):
    blocks, (states, sign, question, texts) = called
    alone = bag_of_words_auc(texts, sign, question, n_boot=50)
    for name in ("auc", "dprime", "accuracy", "auc_within_folds"):
        assert blocks[-1]["bag_of_words"][name] == pytest.approx(float(alone[name]), abs=3e-3)
    splits = split_half_cosine(states, sign, question, n_splits=40)
    for metric, split in zip(("split_half_cosine", "mahalanobis_cosine"), splits, strict=True):
        for name in ("mean", "sd", "full_length"):
            got = blocks[-1][metric]["re_read"][name]
            assert got == pytest.approx(float(getattr(split, name)), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": [["a"]]}, "texts of axis 0 has 1 samples"),
        ({"random_weights": {"reread": []}}, "random_weights has no 'reread'"),
        ({"random_weights": {"re_read": []}}, "random_re_read has 0 axes"),
        ({"estimator": "ridge"}, "'ridge'"),
    ],
)
def test_what_does_not_fit_is_a_clear_error(change, words):
    zeros = np.zeros(6)
    with pytest.raises(UserError, match=words):
        evidence(np.zeros((1, 6, 4)), [np.tile([1, -1], 3)], [np.repeat(np.arange(3), 2)], [zeros], [zeros], **change)
