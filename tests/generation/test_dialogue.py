"""Conversations whose cache is carried give what the whole conversation gives, prompted anew at every turn."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import mood_jax as mj
from mood_jax.errors import UserError
from mood_jax.generation import api, engine
from mood_jax.generation.dialogue import Dialogue
from mood_jax.generation.model import load_model
from mood_jax.generation.sampling import Greedy, TopP
from tests.fixtures.tokenizers import make_tokenizer
from tests.parity.hf_models import save, tiny

pytestmark = pytest.mark.usefixtures("unoptimised")

WORDS = [
    "what",
    "you",
    "think",
    "about",
    "the",
    "weather",
    "today",
    "is",
    "that",
    "it",
    "rains",
    "in",
    "the",
    "language",
    "of",
    "many",
    "people",
    "and",
    "books",
]


def make(folder: Path, family: str, **changes) -> Path:
    save(tiny(family, num_hidden_layers=2, **changes)[0], folder)
    make_tokenizer(family, folder)
    return folder


def sentence(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(WORDS, n))


def without_cache(model, scripts, systems, ids, **options) -> list[api.Responses]:
    """The reference: `generate` on the whole list of messages at every turn."""
    said = [[] if s is None else [{"role": "system", "content": s}] for s in systems]
    found = []
    for t in range(len(scripts[0])):
        for messages, script in zip(said, scripts, strict=True):
            messages.append({"role": "user", "content": script[t]})
        found.append(api.generate(model, said, ids=[f"{i}/{t + 1}" for i in ids], **options))
        for messages, text in zip(said, found[-1].text, strict=True):
            messages.append({"role": "assistant", "content": text})
    return found


def assert_same(got: api.Responses, want: api.Responses) -> None:
    assert (got.ids, got.prompt_hashes, got.finish) == (want.ids, want.prompt_hashes, want.finish)
    assert [t.tolist() for t in got.tokens] == [t.tolist() for t in want.tokens]
    np.testing.assert_array_equal(got.read, want.read)
    np.testing.assert_allclose(got.states, want.states, rtol=0, atol=1e-4 * np.abs(want.states).max())


def test_a_carried_cache_changes_nothing(tmp_path, rng, seed, monkeypatch):
    """Also: windows shorter than the conversation, empty responses, and keys in blocks."""
    model = load_model(str(make(tmp_path / "m", "gemma2", sliding_window=24)), dtype="float32")
    model.chat.eos_token_ids = tuple(range(0, model.config.vocab_size, 3))
    scripts = [[sentence(rng, int(n)) for n in rng.integers(5, 8, 2)] for _ in range(4)]
    systems = [None, sentence(rng, 4), None, None]
    ids = [f"c{i}" for i in range(4)]
    sampler = TopP(1.0, temperature=0.7)  # compiles in less time than a nucleus
    options = {"max_new_tokens": 16, "sampler": sampler, "sites": ["resid_post@1"], "reducers": ("decay_0.9",)}
    asked = {"seed": seed, "ids": ids, **options}
    monkeypatch.setitem(engine.BLOCK, "cpu", 24)
    got = mj.converse(model, scripts, system=systems, **asked)
    monkeypatch.setitem(engine.BLOCK, "cpu", None)
    want = without_cache(model, scripts, systems, **asked)
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)
    n = np.concatenate([r.n_tokens for r in got])
    assert min(n) == 0 < max(n)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(make(tmp_path_factory.mktemp("dialogue") / "m", "llama")), dtype="float32")


OPTIONS = {"max_new_tokens": 6, "sampler": Greedy(), "sites": ["embed", "resid_post@1"], "reducers": ("mean", "last")}


def turns_of_ids(rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(5, 200, int(k)).tolist() for k in rng.integers(33, 46, 4)]


def test_only_what_is_new_is_computed(model, rng, monkeypatch):
    """Prompts of token ids, which go on in the very tokens sampled, also where rows were left behind on the way."""
    monkeypatch.setitem(engine.KNEE, "cpu", 3)
    prompts = turns_of_ids(rng)
    ends = [int(t[1]) for t in api.generate(model, prompts, **OPTIONS).tokens[:2]]
    monkeypatch.setitem(engine.CHUNK, "cpu", 3)
    monkeypatch.setattr(model.chat, "eos_token_ids", tuple(ends))
    seen, taken = [], []
    prefill, take = engine.prefill, engine.take
    monkeypatch.setattr(engine, "prefill", lambda *a, **k: (seen.append(a[1].shape), prefill(*a, **k))[1])
    monkeypatch.setattr(engine, "take", lambda state, rows: (taken.append(len(rows)), take(state, rows))[1])
    dialogue = Dialogue(model, **OPTIONS)
    first = dialogue.generate(prompts)
    assert taken == [2, 2]  # the two that went on, and the two whose cache is kept
    assert (dialogue.carried, dialogue.computed) == (0, sum(map(len, prompts)))
    longer = [[*p, *t.tolist(), *rng.integers(5, 200, 9)] for p, t in zip(prompts, first.tokens, strict=True)]
    assert_same(dialogue.generate(longer), api.generate(model, longer, **OPTIONS))
    assert seen[1] == (4, 16)  # the nine new ones, and seven more
    assert dialogue.carried == sum(map(len, longer)) - 4 * 16
    # One goes on from before the end of what was said.
    other = [[*p[:-2], 7, 8] for p in longer]
    other[2] = [*longer[2][:-20], 7, 8]
    assert_same(dialogue.generate(other), api.generate(model, other, **OPTIONS))
    assert seen[3] == (4, 16)
    # A stranger's row decides for the batch.
    other[3] = rng.integers(5, 200, 50).tolist()
    assert_same(dialogue.generate(other), api.generate(model, other, **OPTIONS))
    assert seen[5] == (4, 64)


def test_an_error_leaves_nothing_behind_that_is_wrong(model, rng, monkeypatch):
    dialogue = Dialogue(model, **OPTIONS)
    prompts = turns_of_ids(rng)
    dialogue.generate(prompts)

    def broken(*_):
        raise UserError("not finite")

    with monkeypatch.context() as patch:
        patch.setattr(api, "_check_finite", broken)
        with pytest.raises(UserError, match="not finite"):
            dialogue.generate([[6, *p[1:]] for p in prompts])
    assert_same(dialogue.generate(prompts), api.generate(model, prompts, **OPTIONS))


def test_out_of_memory_lets_go_of_what_is_held(model, rng, monkeypatch, capsys):
    dialogue = Dialogue(model, **OPTIONS)
    prompts = turns_of_ids(rng)
    dialogue.generate(prompts)
    prefill = engine.prefill

    def small(params, tokens, *args, **kwargs):
        if tokens.shape[0] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return prefill(params, tokens, *args, **kwargs)

    longer = [[*p, 9, 10] for p in prompts]
    want = api.generate(model, longer, **OPTIONS)
    monkeypatch.setattr(engine, "prefill", small)
    carried = dialogue.carried
    assert_same(dialogue.generate(longer), want)
    assert_same(dialogue.generate(longer), want)
    said = capsys.readouterr().err
    assert said.count("dialogues are computed anew") == 1
    assert "going on with 2" in said
    assert not dialogue._held
    assert dialogue.carried >= carried


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scripts": []}, "there are no turns"),
        ({"scripts": [[]]}, "there are no turns"),
        ({"scripts": ["Hi."]}, "a list of conversations"),
        ({"scripts": [["a"], ["a", "b"]]}, "1 to 2 turns"),
        ({"scripts": [[" "]]}, "the user message has no text"),
        ({"system": ["a", "b"]}, "2 system prompts for 1"),
        ({"ids": ["a", "b"]}, "2 ids for 1 prompts"),
        ({"batch_size": 0}, "batch size"),
        ({"max_new_tokens": 10**7}, "context holds"),
    ],
)
def test_mistakes_are_named(model, change, says):
    options = {"scripts": [["Hello."]], "max_new_tokens": 2} | change
    with pytest.raises(UserError, match=says):
        mj.converse(model, options.pop("scripts"), **options)


def test_batches_and_the_order_do_not_matter(model):
    """Seven conversations, four at a time: a second batch that is not full. Default ids name script and occurrence."""
    words = ("Hi.", "Hello.", "Hi.", "Why?", "No.", "Yes.", "Who?")
    counted = []
    (one,) = mj.converse(model, [[w] for w in words], batch_size=4, on_turn=counted.append, **OPTIONS)
    assert counted == [4, 3]
    (two,) = mj.converse(model, [[w] for w in words[::-1]], batch_size=4, **OPTIONS)
    assert one.ids[0].removesuffix("#0/1") == one.ids[2].removesuffix("#1/1")
    assert_same(two.select([two.ids.index(i) for i in one.ids]), one)
    assert_same(one, api.generate(model, words, ids=one.ids, batch_size=4, **OPTIONS))
