"""The memory formula holds what the compiler asks for; running out of memory halves the batch and changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaConfig

from mood_jax.errors import UserError
from mood_jax.generation import api, engine, memory
from mood_jax.generation import reducers as red
from mood_jax.generation.batching import halves, make_batches
from mood_jax.generation.model import load_model
from mood_jax.generation.rows import Rows
from mood_jax.generation.sampling import TopP
from mood_jax.models import families
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import init_params
from mood_jax.models.sharding import make_mesh
from mood_jax.studies.config import _batch_size, study_config
from tests.studies.tiny import checkpoint


def shape(**changes) -> DecoderConfig:
    options = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    return families.decoder_config(LlamaConfig(**(options | changes)))


def compiled_bytes(lowered) -> int:
    m = lowered.compile().memory_analysis()
    own = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return own + m.temp_size_in_bytes


@pytest.mark.parametrize(
    ("changes", "B", "P", "new", "n_sites", "block"),
    [
        ({}, 64, 64, 128, 4, None),
        ({"vocab_size": 32000, "num_key_value_heads": 8, "intermediate_size": 700}, 96, 48, 80, 2, 48),
        ({"hidden_size": 512}, 16, 256, 128, 6, 64),
    ],
)
def test_the_formula_holds_what_the_compiler_asks_for(changes, B, P, new, n_sites, block):
    c = shape(**changes)
    sites, kinds = c.sites[-n_sites:], red.parse_reducers(("mean", "last", "decay_0.9"))
    spec = engine.Spec(c, TopP(0.9, temperature=0.7), (1,), new, sites, kinds, block=block)

    def array(*size, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(size, dtype)

    params = jax.eval_shape(lambda: init_params(c, jax.random.key(0)))
    keys = array(B, 2, dtype=jnp.uint32)
    asked = (params, array(B, P), array(B), array(B, dtype=bool))
    first = engine.read_prompts.lower(*asked, spec=spec, slots=P + new)
    state, logits = jax.eval_shape(lambda *a: engine.read_prompts(*a, spec=spec, slots=P + new), *asked)
    draw = engine._first.lower(logits, keys, sampler=spec.sampler)  # beside the weights and the state
    beside = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, state)))
    step = engine.decode_chunk.lower(params, state, keys, array(B), array(), array(), spec=spec)
    again = engine.read_batch.lower(
        params, array(B, P + new), array(B), array(B), array(B), config=c, sites=sites, reducers=kinds
    )
    about = {"batch": B, "prompt": P, "new": new, "dtype": "float32", "sites": n_sites, "reducers": 3}
    found = memory.estimate(c, block=block, **about)
    generation = max(compiled_bytes(first), beside + compiled_bytes(draw), compiled_bytes(step))
    assert 0.5 * found.generation < generation <= found.generation
    reading = found.params + found.accumulators + found.reading
    assert 0.4 * reading < compiled_bytes(again) <= reading


def test_the_largest_batch_fits_and_the_next_does_not():
    c = shape()
    about = {"prompt": 64, "new": 100, "dtype": "bfloat16", "sites": 4, "reducers": 3}
    limit = 2**30
    n = memory.largest_batch(c, limit, **about)
    assert n % 8 == 0
    room = limit * (1 - memory.MARGIN)
    assert memory.estimate(c, batch=n, **about).total <= room < memory.estimate(c, batch=n + 8, **about).total
    assert memory.largest_batch(c, 2**50, **about) == memory.LARGEST
    with pytest.raises(UserError, match="8 rows would take"):
        memory.largest_batch(c, 2**20, **about)
    # two devices along `data` hold twice as many rows; along `model` half of the weights each
    assert memory.largest_batch(c, limit, data=2, **about) >= 2 * n - 8
    one, two = (memory.estimate(c, batch=8, model=m, **about) for m in (1, 2))
    assert two.params < 0.51 * one.params
    assert two.cache == one.cache // 2
    assert memory.estimate(c, batch=8, copies=2, **about).params == 2 * one.params
    # of 164 slots, the keys of blocks of 64 take 192
    assert memory.estimate(c, batch=8, block=64, **about).cache == one.cache * (164 + 192) // (2 * 164)


def test_the_config_asks_for_the_largest_batch(tmp_path, monkeypatch, capsys):
    model = load_model(str(checkpoint(tmp_path / "m")), dtype="float32")
    monkeypatch.setattr(memory, "device_limit", lambda _: 2**26)
    config = study_config("m", batch_size=0, dtype="float32", random_weights=False)
    readout = api.plan(model, ["hello"]).spec
    found = _batch_size(config, model, readout, 16)
    assert found % 8 == 0
    assert 8 <= found < memory.LARGEST
    assert f"batch size: {found} rows fit 0.1 GiB a device with 10% to spare" in capsys.readouterr().out
    config.batch_size = 3
    assert _batch_size(config, model, readout, 16) == 3


def test_the_limit_is_the_same_when_a_run_resumes():
    mesh = make_mesh()
    before = memory.device_limit(mesh)
    held = np.ones(2**26, np.uint8)  # what is free changes, what the machine has does not
    assert memory.device_limit(mesh) == before > 0
    assert held.all()


class OutOfMemory:
    """Passes on to a function of the engine what has at most `most` rows."""

    def __init__(self, inner, most: int):
        self.inner, self.most, self.sizes = inner, most, []

    def __call__(self, params, first, *args, **options):
        rows = (first.tokens if hasattr(first, "tokens") else first).shape[0]
        self.sizes.append(rows)
        if rows > self.most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return self.inner(params, first, *args, **options)


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(tmp_path, monkeypatch, capsys):
    model = load_model(str(checkpoint(tmp_path / "m", often_ends=True)), dtype="float32")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 200, int(n)).tolist() for n in rng.integers(2, 14, 23)]
    options = {"batch_size": 12, "max_new_tokens": 20, "sampler": TopP(0.9, temperature=0.7)}
    whole = api.generate(model, prompts, **options)
    read = api.read(model, prompts, whole, batch_size=12)

    # once in prefill, and once more in the middle of decoding
    fails = OutOfMemory(engine.prefill, 8), OutOfMemory(engine.decode_chunk, 3)
    monkeypatch.setattr(engine, "prefill", fails[0])
    monkeypatch.setattr(engine, "decode_chunk", fails[1])
    monkeypatch.setattr(engine, "read_batch", OutOfMemory(engine.read_batch, 6))
    smaller = api.generate(model, prompts, **options)
    said = capsys.readouterr().err.splitlines()
    assert said == ["out of memory with 12 rows: going on with 6", "out of memory with 6 rows: going on with 3"]
    assert fails[0].sizes.count(12) == 1  # the second batch begins with what went through
    assert [t.tolist() for t in smaller.tokens] == [t.tolist() for t in whole.tokens]
    assert (smaller.ids, smaller.text, smaller.finish) == (whole.ids, whole.text, whole.finish)
    np.testing.assert_allclose(smaller.states, whole.states, rtol=0, atol=1e-5 * np.abs(whole.states).max())
    np.testing.assert_allclose(
        api.read(model, prompts, whole, batch_size=12), read, rtol=0, atol=1e-5 * np.abs(read).max()
    )

    monkeypatch.setattr(engine, "prefill", OutOfMemory(engine.prefill, 0))
    with pytest.raises(UserError, match=r"runs out of memory with 1 row\(s\)"):
        api.generate(model, prompts, **options)


def test_other_errors_are_not_taken_for_it(tmp_path):
    (batch,) = make_batches([[1, 2], [3]], 2)

    def broken(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        Rows().smaller_when_out_of_memory(batch, broken)


@pytest.mark.parametrize(("n", "size", "divisor"), [(5, 8, 1), (8, 8, 2), (3, 8, 4), (7, 7, 1), (9, 12, 4)])
def test_halves_hold_every_row_once(n, size, divisor):
    (batch,) = make_batches([[k + 1] * (k + 1) for k in range(n)], max(n, 1), 1)
    pad = size - n
    batch = batch.__class__(
        batch.rows,
        np.concatenate([batch.tokens, batch.tokens[:1].repeat(pad, 0)]),
        np.concatenate([batch.lengths, batch.lengths[:1].repeat(pad)]),
        np.arange(size) < n,
    )
    parts = halves(batch, divisor)
    assert sum((p.rows for p in parts), ()) == batch.rows
    for part in parts:
        assert len(part.real) < size
        assert len(part.real) % divisor == 0
        assert part.real.sum() == len(part.rows) > 0
        for k in range(len(part.real)):
            row = part.rows[k] if part.real[k] else part.rows[0]
            place = batch.rows.index(row)
            assert (part.tokens[k] == batch.tokens[place]).all()
            assert part.lengths[k] == batch.lengths[place]
