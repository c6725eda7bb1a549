"""A batch that is halved as its rows end gives what it gives whole."""

from __future__ import annotations

import numpy as np
import pytest

from mood_jax.generation import api, engine
from mood_jax.generation.model import load_model
from mood_jax.generation.sampling import TopP
from tests.studies.tiny import checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.mark.parametrize("span", ["response", "article"])
def test_rows_that_have_ended_are_left_behind(tmp_path, monkeypatch, seed, span):
    model = load_model(str(checkpoint(tmp_path / "m")), dtype="float32")
    model.chat.eos_token_ids = list(range(0, model.config.vocab_size, 40))
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(5, 200, int(n)).tolist() for n in rng.integers(2, 40, 21)]
    options = {
        "batch_size": 24,
        "max_new_tokens": 150,  # ten chunks, and a cache that grows in between
        "sampler": TopP(0.9, temperature=0.7),
        "sites": "all",
        "reducers": ("mean", "decay_0.9", "last", "max_abs"),
        "span": span,
    }
    sizes = []

    def taken(state, rows):
        sizes.append((len(state.alive), len(rows)))
        return take(state, rows)

    take = engine.take
    monkeypatch.setattr(engine, "take", taken)
    monkeypatch.setitem(engine.KNEE, "cpu", 1000)
    whole = api.generate(model, prompts, **options)
    assert not sizes
    monkeypatch.setitem(engine.KNEE, "cpu", 3)
    halved = api.generate(model, prompts, **options)
    assert len(sizes) > 1
    assert all(after == -(-before // 2) for before, after in sizes)
    assert [t.tolist() for t in halved.tokens] == [t.tolist() for t in whole.tokens]
    assert (halved.ids, halved.finish) == (whole.ids, whole.finish)
    np.testing.assert_array_equal(halved.read, whole.read)
    np.testing.assert_allclose(halved.states, whole.states, rtol=0, atol=1e-5 * np.abs(whole.states).max())
