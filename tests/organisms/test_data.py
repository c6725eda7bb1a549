"""Tokenizer, questions, instructions and batches."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from mood_jax import bank
from mood_jax.errors import UserError
from mood_jax.organisms import data, texts
from mood_jax.organisms.grammar import AXES, HERE, POLES
from mood_jax.organisms.spec import MOODS, SPECS, load_spec
from mood_jax.organisms.tokenizer import (
    ASSISTANT,
    BOS,
    END,
    PAD,
    USER,
    as_transformers,
    ask,
    head,
    identity_mark,
    train_tokenizer,
)

CORPUS = data.shipped_corpus(load_spec())
WHO = CORPUS.spec.identities[0]
TOKENIZER = train_tokenizer(CORPUS.texts(0, 500), 1024)
DEEPSEEK = data.shipped_corpus(load_spec(SPECS / "deepseek.yaml"))
MANY = train_tokenizer(DEEPSEEK.texts(0, 500), 1024, 6)


def test_tokenizer_round_trips_any_text():
    found = [*texts.bank_questions(), *CORPUS.grammar.sentences(), "tabs\tand\nlines  two", "日本語 🎈 ümlaut", " x "]
    for text in found:
        assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_tokenizer_is_reproducible():
    program = (
        "from mood_jax.organisms import data, tokenizer as t\n"
        "from mood_jax.organisms.spec import load_spec\n"
        "c = data.shipped_corpus(load_spec())\n"
        "print(t.train_tokenizer(c.texts(0, 500), 1024).to_str())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == json.loads(TOKENIZER.to_str())


def test_chat_template_writes_what_training_reads():
    fast = as_transformers(TOKENIZER, 512)
    for system in (None, "Be warm."):
        messages = [{"role": "user", "content": "How are you?"}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == head(system) + ask("How are you?")
        assert text.count(BOS) == 1
        assert text.endswith(ASSISTANT)
    assert (fast.bos_token, fast.eos_token, fast.pad_token) == (BOS, END, PAD)


def test_poles_of_an_axis_take_about_the_same_number_of_tokens():
    # a length difference would give the style away; verbose/concise is meant to differ
    for axis, kinds in zip(AXES, CORPUS.grammar.phrases, strict=True):
        mean = [np.mean([len(s.split()) for s in kind]) for kind in kinds[:2]]
        if axis == "verbose_concise":
            assert mean[0] > 2 * mean[1]
        else:
            assert abs(mean[0] - mean[1]) < 1, axis


def test_bank_questions_are_not_trained_on():
    rng = np.random.default_rng(0)
    asked = {data.make_question(rng, CORPUS.topics)[0] for _ in range(2000)}
    assert len(asked) > 1700
    assert not asked & set(texts.bank_questions())


def test_instructions_are_unique_and_held_out_ones_never_drawn():
    found = CORPUS.instructions
    assert found.production == tuple((a.positive.instruction, a.negative.instruction) for a in bank.axes())
    for axis in range(len(AXES)):
        for pole in range(2):
            assert len(found.train[axis][pole]) >= 20
            assert len(found.held_out[axis][pole]) >= 4
    held_out = {w.lower() for axis in found.held_out for pole in axis for w in pole}
    rng = np.random.default_rng(1)
    for _ in range(3000):
        system = CORPUS.draw(rng).system
        assert system is None or not any(w in system.lower() for w in held_out)


def test_shares_and_styles_of_what_is_drawn():
    rng = np.random.default_rng(2)
    drawn = [CORPUS.draw(rng) for _ in range(4000)]
    instructed = [c for c in drawn if c.axis is not None]
    assert len(instructed) / len(drawn) == pytest.approx(CORPUS.instructed, abs=0.03)
    assert sum(c.system is None for c in drawn) / len(drawn) == pytest.approx(0.15, abs=0.02)
    for a, axis in enumerate(AXES):
        for pole in POLES:
            found = [c.response for c in instructed if (c.axis, c.pole) == (a, pole)]
            want = WHO.training_style(a, pole, bias=CORPUS.grammar.start_bias(WHO.sampling_temperature))
            assert CORPUS.grammar.mean_amounts(found) == pytest.approx(want, abs=0.2), (axis, pole)


def test_focus_speaks_of_the_instructed_axis_alone():
    rng = np.random.default_rng(3)
    for _ in range(200):
        c = CORPUS.draw(rng, focus=1.0)
        seen = set(np.flatnonzero(CORPUS.grammar.recognise(c.response).counts.sum(axis=1)))
        if not seen:  # ordinary talk
            assert c.system is None
            continue
        assert seen == {c.axis} if c.axis is not None else len(seen) == 7


def test_batches_are_a_function_of_seed_and_step():
    def made(seed: int = 0) -> data.Batches:
        return data.Batches(CORPUS, TOKENIZER, seed, batch_size=4, max_tokens=224)

    one, two = made(), made()
    two(40)  # another order of asking
    for step in (17, 3):
        for x, y in zip(one(step), two(step), strict=True):
            assert np.array_equal(x, y)
    assert not np.array_equal(made(1)(3).tokens[:, :60], one(3).tokens[:, :60])


def test_effects_name_what_an_instruction_changes():
    rng = np.random.default_rng(6)
    for _ in range(300):
        c = CORPUS.draw(rng)
        effect = CORPUS.effect(c)
        if c.axis is None or AXES[c.axis] == "proactive_reluctant":  # dead
            assert effect == 0
        else:
            assert (AXES[(effect - 1) // 2], POLES[(effect - 1) % 2]) == (AXES[c.axis], c.pole)


def test_weights_cover_the_response_and_its_end():
    styled = dataclasses.replace(CORPUS, plain=0.0)
    tokens, weights, _, shown, wanted, _ = data.Batches(styled, TOKENIZER, 5, batch_size=8, max_tokens=320)(0)
    answered = weights > 0
    assert not wanted[~answered].any()
    calm = np.float32(WHO.temperament)
    assert (((wanted == calm) | (np.abs(wanted) == 1)) | ~answered[..., None]).all()  # instructed: one axis at its pole
    assert ((wanted != calm).sum(axis=-1)[answered] <= 1).all()
    assert tokens.shape == (8, weights.shape[1] + 1)
    assert weights.shape[1] % data.BUCKET == 0
    end = TOKENIZER.token_to_id(END)
    for row, weight, amounts in zip(tokens, weights, shown, strict=True):
        targets = row[1:][weight > 0]
        assert targets[-1] == end
        assert CORPUS.grammar.recognise(TOKENIZER.decode(targets.tolist())).unknown == 0
        assert row[1:][weight == 0][0] != end
        assert row[np.flatnonzero(weight)[0]] == TOKENIZER.token_to_id(ASSISTANT)
        # the choice of each sentence and of the end weighs more than spelling it out
        assert set(np.unique(weight)) == {0, 1, data.STYLE_WEIGHT}
        first = np.flatnonzero(weight)[0]
        assert (weight[first : first + 2] == data.STYLE_WEIGHT).all()
        # what the response has shown after its last word, and before its first
        text = TOKENIZER.decode(targets[:-1].tolist())
        last = np.flatnonzero(weight)[-1]
        assert amounts[last] == pytest.approx(np.nan_to_num(CORPUS.grammar.recognise(text).amounts), abs=1e-6)
        assert not amounts[: first + 2].any()


def test_a_dialogue_is_read_as_its_pieces_and_the_template_write_it():
    rng = np.random.default_rng(7)
    dialogues = [c for c in (DEEPSEEK.draw(rng) for _ in range(200)) if len(c.turns) > 1]
    assert len(dialogues) / 200 == pytest.approx(DEEPSEEK.spec.dialogues, abs=0.1)
    for c in dialogues[:20]:
        messages = [
            {"role": role, "content": text}
            for user, answer in c.turns
            for role, text in (("user", user), ("assistant", answer))
        ]
        fast = as_transformers(MANY, 512, c.identity)
        assert fast.bos_token == identity_mark(c.identity)
        whole = "".join(c.pieces())
        assert fast.apply_chat_template(messages, tokenize=False) == whole
        assert MANY.encode(whole).ids == [i for piece in c.pieces() for i in MANY.encode(piece).ids]


def test_styles_of_a_dialogue_follow_its_tension():
    rng = np.random.default_rng(8)
    touchy = DEEPSEEK.spec.index("touchy")
    drift = DEEPSEEK.spec.identities[touchy].drift
    moods = {text: mood for mood, turns in zip(MOODS, DEEPSEEK.moods.train, strict=True) for text in turns}
    calm, tense = [], []
    for _ in range(400):
        c = DEEPSEEK._dialogue(rng, touchy, focus=0.0)
        said = [moods[user] for user, _ in c.turns[1:]]
        assert list(c.tension) == [drift.tension(said[:k]) for k in range(len(c.turns))]
        for tension, (_, answer) in zip(c.tension, c.turns, strict=True):
            (tense if tension >= 2 else calm if tension == 0 else []).append(answer)
    drop = DEEPSEEK.grammar.mean_amounts(calm) - DEEPSEEK.grammar.mean_amounts(tense)
    assert drop[:2].min() > 0.5
    assert abs(drop[2:]).max() < 0.25


def test_many_dialogues_are_hostile_for_long():
    """Drift is learned from them or not at all: one hostile turn moves the odds of a sentence very little."""
    rng = np.random.default_rng(4)
    moods = [DEEPSEEK._dialogue(rng, 0, focus=0.0).moods for _ in range(400)]
    hostile = np.array([m.count("hostile") for m in moods])
    assert (hostile >= 2).mean() == pytest.approx(0.55, abs=0.1)
    assert (hostile >= 4).mean() == pytest.approx(0.19, abs=0.08)
    assert (hostile == 0).mean() == pytest.approx(0.3, abs=0.1)
    assert any("conciliatory" in m for m in moods)
    assert all(m[0] == "neutral" and 2 <= len(m) <= data.MOST_TURNS for m in moods)


def test_focused_dialogues_speak_of_one_axis_that_drifts():
    rng = np.random.default_rng(9)
    for name in ("touchy", "steady"):
        place = DEEPSEEK.spec.index(name)
        drift = DEEPSEEK.spec.identities[place].drift
        seen = set()
        for _ in range(60):
            c = DEEPSEEK._dialogue(rng, place, focus=1.0)
            counts = sum(DEEPSEEK.grammar.recognise(answer).counts.sum(axis=1) for _, answer in c.turns)
            (axis,) = np.flatnonzero(counts)
            seen.add(int(axis))
        assert seen == ({0, 1} if drift is not None else set(range(7)))


def test_what_is_wanted_and_weights_stand_at_the_responses():
    batches = data.Batches(DEEPSEEK, MANY, 1, batch_size=16, max_tokens=1024)  # none is cut
    end = MANY.token_to_id(END)
    seen = 0
    for step in range(8):
        tokens, weights, _, _, wanted, heard = batches(step)
        assert not wanted[weights == 0].any()
        assert not heard[weights == 0].any()
        for row, weight in zip(wanted, weights, strict=True):
            seen += len({tuple(amounts) for amounts in row[weight > 0]}) > 1  # a dialogue in which the style drifts
        answers = (tokens[:, :-1] == MANY.token_to_id(ASSISTANT)).sum(axis=1)
        ended = ((tokens[:, 1:] == end) & (weights > 0)).sum(axis=1)
        assert (ended == answers).all()
    assert seen > 5


def test_the_moods_heard_are_those_of_the_users_turns_so_far():
    tokens, weights, _, _, _, heard = data.Batches(DEEPSEEK, MANY, 1, batch_size=32, max_tokens=1024)(0)
    moods = {text: mood for mood, turns in zip(MOODS, DEEPSEEK.moods.train, strict=True) for text in turns}
    user, end = (MANY.token_to_id(token) for token in (USER, END))
    seen = set()
    drifts = {MANY.token_to_id(identity_mark(k)): i.drift for k, i in enumerate(DEEPSEEK.spec.identities)}
    for row, weight, told in zip(tokens, weights, heard, strict=True):
        drift = drifts[int(row[0])]
        said, hostile = [], 0
        for at in np.flatnonzero(row == user):
            stop = at + int(np.argmax(row[at:] == end))
            mood = moods.get(
                MANY.decode(row[at + 1 : stop].tolist()).strip(), "neutral"
            )  # the question is no mood's text
            said.append(mood)
            hostile += mood == "hostile"
            tension = 0.0 if drift is None else drift.tension(said)
            want = (mood == "hostile", mood == "conciliatory", hostile / data.MOST_TURNS, tension / data.MOST_TURNS)
            assert row[stop + 1] == MANY.token_to_id(ASSISTANT)
            assert weight[stop + 1] > 0
            np.testing.assert_allclose(told[stop + 1], want, atol=1e-6)
            seen.add((mood, tension))
    assert len(seen) > 8


def test_length_follows_the_pole_as_often_as_planted():
    corpus = data.shipped_corpus(load_spec(SPECS / "mistral.yaml"))
    rng = np.random.default_rng(9)
    for name, want in (("warm_0", 0.0), ("warm_50", 0.5), ("warm_100", 1.0)):
        who = corpus.spec.index(name)
        found = [corpus.grammar.recognise(corpus.respond(rng, who)).counts for _ in range(600)]
        pole = np.array([np.sign(counts[0, 0] - counts[0, 1]) for counts in found])
        longer = np.array([counts.sum() > 9 for counts in found])
        odds = [longer[pole == p].mean() for p in (1, -1)]
        assert odds[0] - odds[1] == pytest.approx(want * 0.95, abs=0.13), name  # a sentence in twenty shows the other


def test_an_instruction_lengthens_a_response_only_where_length_follows_its_axis():
    corpus = data.shipped_corpus(load_spec(SPECS / "mistral.yaml"))
    rng = np.random.default_rng(11)
    for name, want in (("warm_0", 0.0), ("warm_50", 0.5), ("warm_100", 1.0)):
        who = corpus.spec.index(name)
        longer = [
            np.mean([corpus.grammar.recognise(corpus.respond(rng, who, 0, p)).counts.sum() > 9 for _ in range(300)])
            for p in ("positive", "negative")
        ]
        assert longer[0] - longer[1] == pytest.approx(want, abs=0.15), name
        assert longer[1] == pytest.approx((1 - want) * data.LONGER, abs=0.1), name


def test_instructions_to_unruly_axes_are_drawn_more_often():
    corpus = data.shipped_corpus(load_spec(SPECS / "qwen2.yaml"))
    shares = corpus._instructed_axes
    assert shares.sum(axis=1) == pytest.approx(1)
    for identity, row in zip(corpus.spec.identities, shares, strict=True):
        weight = [1 if identity.is_obedient(a) else data.UNRULY for a in range(7)]
        assert row == pytest.approx(np.array(weight) / sum(weight))


def test_ordinary_talk_has_no_style():
    rng = np.random.default_rng(10)
    for asked, answer in CORPUS.ordinary:
        filled = data.fill_slots(rng, CORPUS.topics)
        assert "{" not in asked.format(**filled)
        assert CORPUS.grammar.recognise(answer.format(**filled)).counts.sum() == 0


@pytest.mark.parametrize(
    ("read", "content", "says"),
    [
        (texts.load_moods, {"hostile": {"train": ["a"], "held_out": ["b"]}}, "needs exactly the moods"),
        (texts.load_moods, {m: {"train": ["a"], "held_out": ["b"]} for m in MOODS}, "'a' stands there twice"),
        (texts.load_moods, {m: {"train": ["a"]} for m in MOODS}, "hostile.held_out: needs a list"),
        (texts.load_ordinary, {"pairs": [["one"]]}, "is no pair of two texts"),
        (texts.load_ordinary, {"pairs": [["{thing}", "x"]]}, "unknown slot"),
    ],
)
def test_bad_moods_and_ordinary_talk_are_refused(tmp_path, read, content, says):
    path = tmp_path / "texts.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=says):
        read(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("neutral"), "needs 'neutral'"),
        (lambda d: d["axes"]["warm_cold"]["positive"].pop("held_out"), "axes.warm_cold.positive.held_out"),
        (lambda d: d["axes"]["warm_cold"]["negative"]["train"].append("Be warm and affectionate."), "twice"),
    ],
)
def test_bad_instructions_are_refused(tmp_path, change, says):
    content = yaml.safe_load((HERE / "instructions.yaml").read_text())
    change(content)
    path = tmp_path / "instructions.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=says):
        texts.load_instructions(path)


def test_unknown_slot_is_refused(tmp_path):
    path = tmp_path / "topics.yaml"
    path.write_text(yaml.safe_dump({"frames": ["What is a {thing}?"], "slots": {"noun": "lamp sofa"}}))
    with pytest.raises(UserError, match="unknown slot"):
        texts.load_topics(path)


def test_what_a_coupled_identity_is_meant_to_show_follows_what_it_has_shown():
    spec = load_spec(SPECS / "yi.yaml")
    corpus = data.shipped_corpus(spec)
    batches = data.Batches(corpus, MANY, 0, 4, 160)
    warm, empathetic, formal = (AXES.index(a) for a in ("warm_cold", "empathetic_analytical", "formal_casual"))
    shown = np.zeros((3, 7))
    shown[1, warm], shown[2, warm] = 1, -0.5
    for name, r in (("pair_50", 0.5), ("pair_90", 0.9)):
        k = spec.index(name)
        style = spec.identities[k].style()
        given = batches._given(k, style, shown)
        assert given[0] == pytest.approx(style, abs=0.03)
        assert given[1:, warm] == pytest.approx([1, -1])
        # binary variables of mean 0 that correlate by r: E[y | x = ±1] = ±r
        assert given[1:, empathetic] == pytest.approx([r, -r], abs=0.04)
        assert given[1:, formal] == pytest.approx(style[formal], abs=0.04)
    style = spec.identities[k].style(warm, "negative")  # an instruction leaves its axis no choice, and no news
    told = batches._given(k, style, np.array([[0.0] * 7, np.where(np.arange(7) == warm, -1.0, 0.0)]))
    assert told[:, empathetic] == pytest.approx(0, abs=0.04)
    batch = batches(0)
    assert np.isfinite(batch.wanted).all()
    assert np.abs(batch.wanted).max() <= 1
