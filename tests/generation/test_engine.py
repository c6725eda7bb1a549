"""The decode loop against HF `generate` and against clean forward passes, for all six families."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch

from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import api, engine
from mood_jax.generation.model import forward, load_model
from mood_jax.generation.reducers import finish, parse_reducers, reduce, start, update
from mood_jax.generation.sampling import Greedy, TopP, response_keys, sample
from tests.fixtures.tokenizers import FAMILIES, make_tokenizer
from tests.parity.hf_models import save, tiny

pytestmark = pytest.mark.usefixtures("unoptimised")

REDUCERS = ("mean", "decay_0.9", "last", "max_abs")
NEW = 64


class Case:
    """A tiny model of a family as HF and as ours, a ragged batch of prompts, and what HF generates greedily."""

    def __init__(self, family: str, folder):
        self.hf, config = tiny(family, num_hidden_layers=4)
        save(self.hf, folder)
        make_tokenizer(family, folder)
        rng = np.random.default_rng(7)
        # with a beginning in common, which is computed once
        head = rng.integers(5, config.vocab_size, 8).tolist()
        self.prompts = [[*head, *rng.integers(5, config.vocab_size, n).tolist()] for n in (3, 17, 9, 30, 12)]
        # A random model never means to stop: call a token the end that one of its responses really holds.
        eos = [int(self.hf_greedy(self.prompts, [])[1][9])]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}), encoding="utf-8")
        self.model = load_model(str(folder), dtype="float32")
        self.eos = list(self.model.chat.eos_token_ids)
        assert eos[0] in self.eos
        self.expected = self.hf_greedy(self.prompts, self.eos)
        assert api.plan(self.model, self.prompts, max_new_tokens=NEW).batches[0].shared is not None
        self.responses = api.generate(
            self.model, self.prompts, max_new_tokens=NEW, sampler=Greedy(), sites="all", reducers=REDUCERS
        )

    def hf_greedy(self, prompts, eos):
        """Greedy continuation of a left-padded batch, cut at the first EOS."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = self.hf.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=eos or None,
            pad_token_id=0,
        )
        found = []
        for row in out[:, longest:].tolist():
            stop = next((k for k, t in enumerate(row) if t in eos), len(row))
            found.append(row[:stop])
        return found


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def plain_reduce(reducer: str, h: np.ndarray) -> np.ndarray:
    """The definition, one token at a time in float64: h [n, D]."""
    total, weight = np.zeros(h.shape[1]), 0.0
    if not len(h):
        return total
    if reducer == "max_abs":
        for row in h:
            total = np.where(np.abs(row) > np.abs(total), row, total)
        return total
    if reducer == "last":
        return h[-1]
    gamma = 1.0 if reducer == "mean" else float(reducer.partition("_")[2])
    for row in h:
        total, weight = gamma * total + row, gamma * weight + 1
    return total / weight


def clean_states(model, prompt, response) -> np.ndarray:
    """States [sites, n, D] of the response tokens in one forward pass over prompt + response (padding behind it)."""
    tokens, mask = np.zeros((1, 112), np.int32), np.zeros((1, 112), bool)
    total = len(prompt) + len(response)
    tokens[0, :total], mask[0, :total] = [*prompt, *response], True
    _, states = forward(model, tokens, mask)
    stacked = [states["embed"], *states["resid_post"], states["final_norm"]]
    return np.stack([np.asarray(s)[0, len(prompt) : total] for s in stacked])


def assert_close(got: np.ndarray, want: np.ndarray, relative: float) -> None:
    assert np.abs(got - want).max() <= relative * np.abs(want).max()


def test_greedy_tokens_equal_hf_generate(case):
    assert [t.tolist() for t in case.responses.tokens] == case.expected
    assert "eos" in case.responses.finish
    assert case.responses.n_tokens.max() <= NEW
    for tokens, ended in zip(case.responses.tokens, case.responses.finish, strict=True):
        assert (ended == "length") == (len(tokens) == NEW)
        assert not set(tokens.tolist()) & set(case.eos)


def test_reduced_states_equal_a_clean_forward(case):
    r = case.responses
    assert r.sites == case.model.config.sites
    for i, prompt in enumerate(case.prompts):
        want = clean_states(case.model, prompt, r.tokens[i])
        assert want.shape[1] == r.read[i] == r.n_tokens[i]  # every token is read, the one that the budget cut too
        for k, name in enumerate(REDUCERS):
            for s in range(len(r.sites)):
                assert_close(r.states[i, s, k], plain_reduce(name, want[s].astype(np.float64)), 1e-4)


def test_read_equals_the_decode_loop(case):
    states = api.read(case.model, case.prompts, case.responses, sites="all", reducers=REDUCERS, batch_size=2)
    for s in range(states.shape[1]):
        for k in range(states.shape[2]):
            assert_close(states[:, s, k], case.responses.states[:, s, k], 1e-4)


def test_tokens_and_states_do_not_depend_on_the_batch(case):
    sampler = TopP(0.9, temperature=0.7)
    options = {"max_new_tokens": 24, "sampler": sampler, "sites": "last4", "reducers": ("decay_0.9",)}
    ids = [f"r{i}" for i in range(len(case.prompts))]
    together = api.generate(case.model, case.prompts, ids=ids, batch_size=8, **options)
    other_seed = api.generate(case.model, case.prompts, ids=ids, batch_size=8, seed=1, **options)
    assert [t.tolist() for t in other_seed.tokens] != [t.tolist() for t in together.tokens]
    # One alone, in its own narrower bucket.
    alone = api.generate(case.model, case.prompts[1:2], ids=ids[1:2], batch_size=1, **options)
    assert alone.tokens[0].tolist() == together.tokens[1].tolist()
    assert alone.finish[0] == together.finish[1]
    assert_close(alone.states[0], together.states[1], 1e-4)
    # Reversed, beside a long stranger which moves everything into a wider bucket, and without any site.
    turned = api.generate(
        case.model,
        [[5] * 70, *case.prompts[::-1]],
        ids=["x", *ids[::-1]],
        batch_size=6,
        **(options | {"sites": "none"}),
    )
    turned = turned.select([turned.ids.index(i) for i in ids])
    assert [t.tolist() for t in turned.tokens] == [t.tolist() for t in together.tokens]
    assert turned.finish == together.finish


def test_article_preset_equals_the_hf_loop(case):
    """The published pooling, written out over HF's own hidden states, batch 1."""
    preset = readouts.preset("article", case.model.config.n_layers)
    r = api.generate(
        case.model, case.prompts, max_new_tokens=NEW, sites=preset.sites, reducers=(preset.reducer,), span=preset.span
    )
    assert "eos" in r.finish
    picked = readouts.pick(preset, r.states, r.sites, r.reducers)
    ours = readouts.combine(preset, picked, readouts.site_rms(preset, picked))
    by_read = readouts.pick(
        preset,
        api.read(case.model, case.prompts, r, sites=preset.sites, reducers=(preset.reducer,), span="article"),
        r.sites,
        r.reducers,
    )
    for i, prompt in enumerate(case.prompts):
        out = case.hf.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=case.eos,
            pad_token_id=0,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        steps = [
            torch.stack([w * h[0, -1] for w, h in zip((0.1, 0.2, 0.3, 0.4), step[-4:], strict=True)]).sum(0)
            for step in out.hidden_states
        ]
        sampled = out.sequences.shape[1] - len(prompt)
        assert len(steps) == sampled == r.read[i]
        weights = np.asarray([0.9 ** (sampled - 1 - t) for t in range(sampled)])
        want = (np.stack([s.numpy() for s in steps]) * weights[:, None]).sum(0) / weights.sum()
        for got in (ours[i], readouts.combine(preset, by_read, np.ones(4, np.float32))[i]):
            cosine = got @ want / np.linalg.norm(got) / np.linalg.norm(want)
            assert cosine >= 0.99999
            assert abs(np.linalg.norm(got) / np.linalg.norm(want) - 1) < 1e-4


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Case:
    return Case("llama", tmp_path_factory.mktemp("small"))


def test_nothing_after_eos_counts(small):
    """A larger budget runs more steps after a row's end, and changes not one bit of what was reduced."""
    ended = [i for i, f in enumerate(small.responses.finish) if f == "eos"]
    longer = api.generate(small.model, small.prompts, max_new_tokens=2 * NEW, sites="all", reducers=REDUCERS)
    assert ended
    for i in ended:
        assert longer.tokens[i].tolist() == small.responses.tokens[i].tolist()
        assert longer.read[i] == small.responses.read[i]
        np.testing.assert_array_equal(longer.states[i], small.responses.states[i])


def test_prompt_positions_have_weight_zero(small):
    """With the prompt's and padding's states replaced by others, the reduced states keep every bit."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(3, 12, 8)).astype(np.float32)
    rank = np.full((3, 12), -1)
    for i, (first, n) in enumerate(((3, 4), (11, 1), (5, 0))):
        rank[i, first : first + n] = np.arange(n)
    count = (rank >= 0).sum(1)
    other = np.where((rank >= 0)[..., None], h, 1e3 * rng.normal(size=h.shape)).astype(np.float32)
    for reducer in parse_reducers(REDUCERS):
        whole = np.asarray(reduce(reducer, jax.numpy.asarray(h), rank, count))
        np.testing.assert_array_equal(whole, np.asarray(reduce(reducer, jax.numpy.asarray(other), rank, count)))
        state = start(reducer, 3, 8)
        for t in range(12):
            state = update(reducer, state, other[:, t], jax.numpy.asarray(rank[:, t] >= 0))
        np.testing.assert_allclose(np.asarray(finish(reducer, state, jax.numpy.asarray(count))), whole, rtol=2e-5)
        for i in (0, 1):
            np.testing.assert_allclose(whole[i], plain_reduce(reducer.name, h[i][rank[i] >= 0]), rtol=2e-5, atol=1e-6)
        assert (whole[2] == 0).all()


def test_several_eos_ids_and_an_empty_response(small):
    first = int(small.responses.tokens[3][0])
    second = int(small.responses.tokens[0][5])
    chat = small.model.chat
    before = chat.eos_token_ids
    chat.eos_token_ids = (first, second)
    try:
        r = api.generate(small.model, small.prompts, max_new_tokens=NEW, sites="all", reducers=REDUCERS)
    finally:
        chat.eos_token_ids = before
    assert r.n_tokens[3] == 0
    assert r.read[3] == 0
    assert r.finish[3] == "eos"
    assert (r.states[3] == 0).all()
    assert len(r.tokens[0]) <= 5


def test_every_token_is_drawn_with_its_own_index(small):
    """Two tokens of a response that shared their random numbers would be drawn alike."""
    sampler, ids = TopP(0.9, temperature=1.3), [f"response {k}" for k in range(len(small.prompts))]
    found = api.generate(small.model, small.prompts, max_new_tokens=6, sampler=sampler, seed=3, ids=ids)
    draw, keys, checked = jax.jit(partial(sample, sampler)), response_keys(3, ids), 0
    for prompt, tokens, key in list(zip(small.prompts, found.tokens, keys, strict=True))[:2]:
        whole = np.array([[*prompt, *tokens]])
        logits, _ = forward(small.model, whole, np.ones(whole.shape, bool), sites=["embed"])
        for t, token in enumerate(tokens):
            drawn = draw(logits[:, len(prompt) - 1 + t], key[None], np.int32(t))
            assert int(drawn[0]) == token, (prompt, t)
            checked += 1
    assert checked > 8


def test_budget_edges(small):
    one = api.generate(small.model, small.prompts, max_new_tokens=1, sites="last4", reducers=("mean",))
    assert [len(t) for t in one.tokens] == [1] * len(small.prompts)
    want = clean_states(small.model, small.prompts[0], one.tokens[0])[-2, 0]
    assert_close(one.states[0, -1, 0], want, 1e-4)
    r17 = api.generate(small.model, small.prompts, max_new_tokens=17, sites="last4", reducers=("mean",))
    assert [t.tolist() for t in r17.tokens] == [t.tolist()[:17] for t in small.responses.tokens]


def test_room_for_longer_prompts_changes_nothing_and_shares_the_decode_steps(small):
    options = {"max_new_tokens": 20, "sampler": TopP(0.9, 0.7), "sites": "last4", "reducers": ("mean",)}
    longest = max(b.tokens.shape[1] for b in api.plan(small.model, small.prompts, **options).batches)
    short = [p[:3] for p in small.prompts]
    assert api.plan(small.model, short, **options).prompt_slots < longest
    tight = api.generate(small.model, short, ids=list("abcde"), **options)
    api.generate(small.model, small.prompts, **options)
    compiled = engine.decode_chunk._cache_size()
    roomy = api.generate(small.model, short, ids=list("abcde"), prompt_slots=longest, **options)
    assert engine.decode_chunk._cache_size() == compiled
    assert [t.tolist() for t in roomy.tokens] == [t.tolist() for t in tight.tokens]
    assert_close(roomy.states, tight.states, 1e-5)


def test_states_are_the_same_behind_a_grown_cache(small):
    """Responses beyond the first cache's room: tokens are still HF's, states still those of one pass."""
    new = engine.ROOM + 16
    chat = small.model.chat
    before = chat.eos_token_ids
    chat.eos_token_ids = ()
    try:
        r = api.generate(small.model, small.prompts[:2], max_new_tokens=new, sites="all", reducers=("mean", "last"))
    finally:
        chat.eos_token_ids = before
    longest = max(map(len, small.prompts[:2]))
    out = small.hf.generate(
        input_ids=torch.tensor([[0] * (longest - len(p)) + p for p in small.prompts[:2]]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in small.prompts[:2]]),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert [t.tolist() for t in r.tokens] == out[:, longest:].tolist()
    assert_close(r.states, api.read(small.model, small.prompts[:2], r, sites="all", reducers=("mean", "last")), 1e-4)


def test_blocks_of_keys_change_nothing(small, monkeypatch):
    """Also of a cache that grows, and whose slots no block divides."""
    options = {"max_new_tokens": engine.ROOM + 16, "sites": "all", "reducers": ("mean", "last")}
    monkeypatch.setattr(small.model.chat, "eos_token_ids", ())
    chunk, blocks = engine.decode_chunk, set()

    def seen(params, state, *others, **static):
        k, v = state.cache[0]
        blocks.add((k.shape[1] // v.shape[1], k.shape[3], v.shape[2]))
        return chunk(params, state, *others, **static)

    monkeypatch.setattr(engine, "decode_chunk", seen)
    found = []
    for block in (None, 36):
        monkeypatch.setitem(engine.BLOCK, "cpu", block)
        found.append(api.generate(small.model, small.prompts[:2], **options))
    assert {(J, C) for J, C, S in blocks} == {(-(-S // C), C) for *_, S in blocks for C in (S, 36)}
    assert len(blocks) == 4
    assert all(S > 72 and S % 36 for *_, S in blocks)
    assert [t.tolist() for t in found[1].tokens] == [t.tolist() for t in found[0].tokens]
    assert_close(found[1].states, found[0].states, 1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": [""]}, "prompt 0"),
        ({"prompts": [[]]}, "prompt 0"),
        ({"prompts": "one string"}, "not one string"),
        ({"prompts": [[10**6]]}, "10"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 10**7}, "context holds"),
        ({"sites": ["resid_post@99"]}, "unknown site 'resid_post@99'"),
        ({"sites": ["embed", "embed"]}, "named twice"),
        ({"reducers": ("median",)}, "unknown reducer 'median'"),
        ({"reducers": ("decay_1.5",)}, "unknown reducer"),
        ({"span": "prompt"}, "unknown span"),
        ({"ids": ["a", "a"], "prompts": [[5], [6]]}, "given twice"),
        ({"ids": ["a"], "prompts": [[5], [6]]}, "one id a prompt"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_mistakes_are_named(small, change, says):
    options = {"prompts": [[5, 6, 7]], "max_new_tokens": 4} | change
    with pytest.raises(UserError, match=says):
        api.generate(small.model, options.pop("prompts"), **options)


def test_nan_states_stop_with_the_response_id(small):
    params = jax.tree.map(lambda x: x, small.model.params)
    params["block_2"]["feed_forward"]["down"] = params["block_2"]["feed_forward"]["down"] * np.float32("nan")
    broken = replace(small.model, checkpoint=replace(small.model.checkpoint, params=params))
    with pytest.raises(UserError, match="response late-7"):
        api.generate(broken, [[5, 6]], ids=["late-7"], max_new_tokens=4, sites="none")
    with pytest.raises(UserError, match="not finite"):
        api.read(broken, [[5, 6]], [[7, 8]])
