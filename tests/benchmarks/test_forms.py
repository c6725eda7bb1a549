"""Whatever the A/B list measures computes what the decoder computes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mood_jax.benchmarks import ab, decoding, loops, parts, shapes
from mood_jax.benchmarks.decoding import Form
from mood_jax.errors import UserError
from mood_jax.generation.sampling import Greedy, TopP, response_keys
from mood_jax.models import families
from mood_jax.models.checkpoint import flatten
from mood_jax.models.decoder import LayerCache, grow_cache, run
from mood_jax.parity import random_params, tiny_config

pytestmark = pytest.mark.usefixtures("unoptimised")

STEPS = 4
S = 14  # slots, of which the first 8 hold what was read before
# Gemma 2 is tied, soft-capped, with norms after each half and a window of 8 in every other block; Qwen 2 has biases.
CASES = {
    "gemma2": (Form("scanned", "ksh", fused_qkv=True), Form("unrolled", "skh", fused_gate_up=True)),
    "qwen2": (Form("unrolled", "khs", fused_qkv=True, fused_gate_up=True), Form("scanned"), Form()),
}
decoder_step = jax.jit(partial(run, logits="last"), static_argnums=0)


@pytest.mark.parametrize("family", list(CASES))
def test_every_form_decodes_as_the_decoder_does(family, rng):
    """Greedy tokens and the last logits from a cache of random numbers, its rows padded on the left."""
    config = families.decoder_config(tiny_config(family, num_hidden_layers=2))
    params = jax.tree.map(jnp.asarray, random_params(config, rng))
    lengths = jnp.asarray([8, 3, 6], jnp.int32)
    shape = (config.n_layers, 3, config.n_kv_heads, config.head_dim, S)
    k, v = (rng.standard_normal(shape, np.float32) for _ in range(2))
    start = tuple(LayerCache(jnp.asarray(a), jnp.asarray(b.transpose(0, 1, 3, 2))) for a, b in zip(k, v, strict=True))
    start = grow_cache(start, S, 4)
    first = jnp.asarray(rng.integers(0, config.vocab_size, 3), jnp.int32)

    valid = jnp.arange(S)[None, :] >= (8 - lengths)[:, None]
    cache, token, expected, logits = start, first, [], None
    for t in range(STEPS):
        expected.append(np.asarray(token))
        at = (lengths + t)[:, None]
        logits, cache, _ = decoder_step(config, params, token[:, None], at, valid, cache=cache, index=jnp.int32(8 + t))
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    for form in CASES[family]:
        arranged = decoding.arrange_params(form, config, params), decoding.arrange_cache(form, start)
        where = (first, lengths, jnp.int32(8), jnp.int32(0))
        _, _, tokens, last = decoding.decode(*arranged, *where, form=form, config=config, steps=STEPS)
        np.testing.assert_array_equal(tokens, np.stack(expected), err_msg=str(form))
        atol = 2e-5 * float(jnp.abs(logits).max())
        np.testing.assert_allclose(last, logits, rtol=0, atol=atol, err_msg=str(form))


def config(**changes) -> ConfigDict:
    shape = shapes.fields("tiny") | {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32}
    shape |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}  # few programs to compile
    found = {
        "shape": shape,
        "dtype": "float32",
        "experiments": ("attention", "flags"),
        "rounds": 2,
        "clock": "cpu",
        "batch_size": 3,
        "prompt_tokens": 5,
        "new_tokens": 11,
        "vocabularies": (50,),
        "attention_tokens": (9,),
        "seed": 3,
    }
    return ConfigDict(found | changes)


@pytest.fixture(scope="module")
def bench() -> loops.Bench:
    return loops.Bench(config())


def test_random_parameters_are_made_in_the_models_shape(bench):
    params = flatten(bench.model.params)
    assert params["block_0/attention/q"].shape == (4, 8, 32)
    assert all(x.dtype == jnp.float32 for x in params.values())
    assert np.asarray(params["embedding"]).std() == pytest.approx(0.02, rel=0.15)
    assert (np.asarray(params["output_norm/scale"]) == 1).all()
    assert (np.asarray(params["block_0/attention/k_bias"]) == 0).all()
    again = shapes.random_model("again", bench.decoder, bench.mesh, "float32", bench.config.seed)
    np.testing.assert_array_equal(params["block_0/attention/o"], again.params["block_0"]["attention"]["o"])


def test_chunks_and_one_loop_make_the_same_tokens(bench):
    chunked, _ = loops.loop_tokens(bench, 4, sampler=Greedy())
    whole, taken = loops.loop_tokens(bench, None, sampler=Greedy())
    assert chunked.shape == (3, 11)
    assert len(np.unique(chunked)) > 3
    np.testing.assert_array_equal(whole, chunked)
    assert taken > 0


def test_forms_are_checked_before_they_are_timed(bench, monkeypatch):
    off = {None: 1.0, Form(): 1.00001, Form("scanned"): 1.001}
    monkeypatch.setattr(loops, "first_logits", lambda _, form: np.full(4, off[form]))
    loops.check_forms(bench, {"ours": Form()})
    with pytest.raises(AssertionError, match="scanned computes other logits"):
        loops.check_forms(bench, {"ours": Form(), "scanned": Form("scanned")})


def test_the_sorted_sampler_draws_from_the_same_nucleus(fixed_rng):
    sampler = TopP(0.7, temperature=0.8)
    logits = np.array([1.0, 2.0, 0.0, 2.5, -1.0, 1.5, 0.5, 2.0], np.float32)
    n = 2000
    keys = jnp.asarray(response_keys(int(fixed_rng.integers(1000)), [str(i) for i in range(n)]))
    drawn = np.asarray(parts.sorted_top_p(jnp.tile(logits, (n, 1)), keys, jnp.int32(2), sampler))
    p = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    order = np.argsort(-p, kind="stable")
    kept = order[np.cumsum(p[order]) - p[order] < 0.7]
    expected = np.zeros(8)
    expected[kept] = p[kept] / p[kept].sum()
    share = np.bincount(drawn, minlength=8) / n
    assert 1 < len(kept) < 8
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / n))
    assert (share[expected == 0] == 0).all()


@pytest.mark.parametrize("make", [parts.prefill_attentions, parts.decode_attentions])
def test_attentions_that_jax_brings_compute_ours(make):
    """Its Pallas kernels interpreted: grouped heads, rows that begin at slots of their own, a scale of the config's."""
    shape = shapes.fields("tiny") | {"num_attention_heads": 4, "num_key_value_heads": 2}
    found, skipped = make(shapes.decoder_config(shape), 3, 32, "float32", 5, interpret=True)
    assert list(found) == ["ours", "xla", "pallas"]
    assert list(skipped) == ["cudnn"]
    ours = np.asarray(found["ours"]())
    for name, attention in found.items():
        np.testing.assert_allclose(attention(), ours, rtol=0, atol=2e-5 * np.abs(ours).max(), err_msg=name)
    assert "pallas" in make(shapes.decoder_config(shape), 3, 32, "float32", 5)[1]


def test_the_list_writes_ratios_with_their_spread(tmp_path, capsys):
    result = ab.measure(config(), tmp_path)
    names = [e["name"] for e in result["experiments"]]
    assert names == ["attention of 9 tokens", "attention of a token over 9 slots", "flags"]
    for found in result["experiments"][:2]:
        assert found["base"] == "ours"
        assert found["variants"]["ours"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        for variant in found["variants"].values():
            assert len(variant["seconds"]) == 2
            assert variant["ratio"]["min"] <= variant["ratio"]["median"] <= variant["ratio"]["max"]
    assert (tmp_path / "ab.json").is_file()
    assert "| attention of 9 tokens | xla |" in (tmp_path / "ab.md").read_text()
    assert "not measured: latency hiding: XLA's GPU flags need a GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"experiments": ("layer",)}, "unknown experiment 'layer'.*layers"), ({"clock": "sun"}, "clock 'sun'.*wall, cpu")],
)
def test_mistakes_in_the_config_are_named(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        ab.measure(config(**changes), tmp_path)
