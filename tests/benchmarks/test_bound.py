"""The arithmetic bound and the parameter counts, against plain counting and against what was published."""

from __future__ import annotations

import math

import pytest

from mood_jax.benchmarks import bound, shapes
from mood_jax.generation import memory
from mood_jax.models import families
from mood_jax.models.decoder import param_shapes
from mood_jax.models.sharding import param_sharding
from mood_jax.parity import tiny_config

# Totals as the model cards and the safetensors indices give them, in units of 10⁹.
PUBLISHED = {
    "qwen2_5_7b": 7.62,
    "deepseek_llm_7b": 6.91,
    "llama3_1_8b": 8.03,
    "yi1_5_9b": 8.83,
    "gemma2_9b": 9.24,
    "mistral_7b": 7.25,
    "llama3_1_70b": 70.6,
    "qwen2_5_72b": 72.7,
    "llama3_1_405b": 406.0,
}


def counted(config, B, P, N, W, R, b):
    """Seconds of prefill and of all steps, product by product and slot by slot."""
    D, H, F, V = config.d_model, config.head_dim, config.d_ff, config.vocab_size
    per_token = 0
    for _ in range(config.n_layers):
        for rows in (config.n_heads * H, config.n_kv_heads * H, config.n_kv_heads * H):  # q, k, v
            per_token += 2 * rows * D
        per_token += 2 * D * config.n_heads * H  # o
        per_token += 3 * 2 * D * F  # gate, up, down
    weights = sum(math.prod(x.shape) for x in param_shapes(config).values())
    weights = (weights - (0 if config.tied else V * D)) * b

    def look(position, window):
        return len([j for j in range(position) if window is None or position - j <= window])

    flops = B * P * per_token + B * 2 * V * D
    for window in config.windows:
        for i in range(1, P + 1):
            flops += B * config.n_heads * 2 * (2 * H * look(i, window))  # q·k, and the mixing of the values
    prefill = max(weights / W, flops / R)
    decode = 0.0
    for t in range(N):
        read, flops = weights, B * (per_token + 2 * V * D)
        for window in config.windows:
            n = look(P + t + 1, window)
            read += B * 2 * config.n_kv_heads * H * n * b
            flops += B * config.n_heads * 2 * (2 * H * n)
        decode += max(read / W, flops / R)
    return prefill, decode


@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
@pytest.mark.parametrize("rates", [(1e6, 1e15), (1e15, 1e8), (2e8, 4e9)], ids=["bytes", "flops", "both"])
def test_the_bound_against_plain_counting(family, rates):
    """Gemma 2 is tied and looks back 8 tokens in every other block, which 11 + 5 tokens exceed."""
    config = families.decoder_config(tiny_config(family, tie_word_embeddings=family == "gemma2"))
    found = bound.bound(config, bound.Rates(*rates), batch=6, prompt=11, new=5, dtype="bfloat16")
    prefill, decode = counted(config, 6, 11, 5, *rates, 2)
    assert found.prefill == pytest.approx(prefill, rel=1e-12)
    assert found.decode == pytest.approx(decode, rel=1e-12)
    assert found.total == found.prefill + found.decode


def test_devices_share_the_work():
    config = families.decoder_config(tiny_config("llama", num_attention_heads=8, num_key_value_heads=4))
    about = {"batch": 8, "length": 20, "dtype": "float32"}
    one = bound.step_work(config, **about)
    rows = bound.step_work(config, data=2, **about)
    assert rows.flops == one.flops / 2
    cache = one.bytes - bound.step_work(config, **about | {"batch": 0}).bytes
    assert one.bytes - rows.bytes == cache / 2  # every device reads the weights
    head = 2 * 8 * 397 * config.d_model  # the vocabulary of 397 does not divide
    heads = bound.step_work(config, model=4, **about)
    assert heads.flops - head == (one.flops - head) / 4
    whole = bound.prefill_work(config, batch=8, prompt=9)
    assert bound.prefill_work(config, batch=8, prompt=9, data=4).flops == whole.flops / 4


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_shapes_have_the_published_number_of_parameters(name):
    config = shapes.decoder_config(name)
    assert memory.param_bytes(config) / 2 / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("model", [1, 2, 3])
def test_parameters_counted_by_one_block_are_those_of_all(model):
    config = families.decoder_config(tiny_config("gemma2", tie_word_embeddings=True))
    mesh = memory._abstract(1, model)
    sizes = (param_sharding(mesh, p, x.shape).shard_shape(x.shape) for p, x in param_shapes(config).items())
    assert memory.param_bytes(config, "float32", 1, model) == 4 * sum(map(math.prod, sizes))


def test_rates_are_the_best_of_what_was_measured(monkeypatch):
    monkeypatch.setitem(bound.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(bound.MATRIX, "cpu", 64)
    probe = bound.Probe("float32", "cpu")
    with pytest.raises(ValueError, match="nothing was measured"):
        probe.rates  # noqa: B018
    taken = {name: [path() for _ in range(3)] for name, path in probe.paths.items()}
    assert probe.rates.bytes_per_second == 2 * 2**16 / min(taken["copy"])
    assert probe.rates.flops_per_second == 2 * 64**3 / min(taken["product"])
