"""What rows share is found and computed once, and changes nothing. `test_engine` holds it against HF in all families,
`test_mesh` on eight devices."""

from __future__ import annotations

import numpy as np
import pytest

from mood_jax.generation import api, prefix
from mood_jax.generation.batching import bucket, halves, make_batches
from mood_jax.generation.model import load_model
from mood_jax.generation.sampling import TopP
from tests.fixtures.tokenizers import make_tokenizer
from tests.parity.hf_models import save, tiny

pytestmark = pytest.mark.usefixtures("unoptimised")


def poles(rng: np.random.Generator, n: int, head: int, low: int, high: int) -> list[list[int]]:
    """n prompts a head of `head` tokens, all of them with one template in front, behind it low … high − 1 more."""
    template = rng.integers(5, 200, 6).tolist()
    heads = [rng.integers(5, 200, head).tolist() for _ in range(3)]
    return [[*template, *h, *rng.integers(5, 200, int(k)).tolist()] for h in heads for k in rng.integers(low, high, n)]


@pytest.mark.parametrize("divisor", [1, 4])
def test_every_row_finds_its_own_beginning(rng, divisor):
    prompts = poles(rng, 11, 40, 4, 30)
    batches = prefix.share(make_batches(prompts, 16, divisor))
    assert sum(b.shared is not None for b in batches) >= 2
    parts = [part for b in batches for part in (b, *halves(b, divisor))]
    for b in parts:
        if b.shared is None:
            continue
        W, P = b.shared.tokens.shape[1], b.tokens.shape[1]
        assert b.shared.source.shape == b.lengths.shape
        for row, n, g in zip(b.tokens, b.lengths, b.shared.source, strict=True):
            known = max(n - (P - W), 0)
            np.testing.assert_array_equal(b.shared.tokens[g, :known], row[P - n : P - n + known])
    # all batches of a length have one shape, and are the same whenever they are planned
    found: dict[int, set] = {}
    for b in batches:
        found.setdefault(b.tokens.shape[1], set()).add(b.shared and b.shared.tokens.shape)
    assert all(len(shapes) == 1 for shapes in found.values())
    for one, two in zip(batches, prefix.share(make_batches(prompts, 16, divisor)), strict=True):
        assert one.rows == two.rows
        if one.shared is not None:
            assert two.shared is not None
            np.testing.assert_array_equal(one.shared.tokens, two.shared.tokens)


def test_beginnings_are_as_few_as_they_can_be(rng):
    """Of three heads there are three, whatever the order; one that goes on in another's words is no fourth."""
    prompts = [p[:50] for p in poles(rng, 8, 44, 20, 21)]
    prompts = [prompts[k] for k in rng.permutation(len(prompts))]
    (batch,) = prefix.share(make_batches([*prompts, prompts[0][:40]], 64))
    assert batch.shared is not None
    assert batch.shared.tokens.shape[0] == 4  # three, as a power of two
    assert batch.shared.tokens[:3].any(axis=1).all()
    assert not batch.shared.tokens[3].any()
    assert len(set(batch.shared.source.tolist())) == 3


def test_nothing_is_shared_where_it_does_not_pay(rng):
    strangers = [rng.integers(5, 200, 60).tolist() for _ in range(8)]
    few = poles(rng, 1, 40, 4, 12)
    short = poles(rng, 8, 2, 6, 9)
    for prompts in (strangers, few, short):
        for b in prefix.share(make_batches(prompts, 64)):
            assert b.shared is None
            assert b.tokens.shape[1] == bucket(max(map(len, prompts)))


def test_sharing_changes_nothing(tmp_path, rng, seed, monkeypatch):
    """A model with a window, and rows of all lengths."""
    folder = tmp_path / "m"
    window = {"use_sliding_window": True, "sliding_window": 14, "max_window_layers": 1}
    save(tiny("qwen2", num_hidden_layers=2, **window)[0], folder)
    make_tokenizer("qwen2", folder)
    model = load_model(str(folder), dtype="float32")
    model.chat.eos_token_ids = tuple(range(0, 400, 20))
    prompts = poles(rng, 4, 34, 2, 8)
    options = {
        "max_new_tokens": 12,
        "sampler": TopP(1.0, temperature=0.7),
        "seed": seed,
        "sites": ["resid_post@1"],
        "reducers": ("mean",),
    }
    with monkeypatch.context() as patch:
        patch.setattr(prefix, "PAYS", 0)
        assert api.plan(model, prompts, **options).batches[0].shared is None
        whole = api.generate(model, prompts, **options)
    assert api.plan(model, prompts, **options).batches[0].shared is not None
    shared = api.generate(model, prompts, **options)
    assert [t.tolist() for t in shared.tokens] == [t.tolist() for t in whole.tokens]
    assert (shared.ids, shared.finish) == (whole.ids, whole.finish)
    np.testing.assert_array_equal(shared.read, whole.read)
    np.testing.assert_allclose(shared.states, whole.states, rtol=0, atol=1e-5 * np.abs(whole.states).max())
