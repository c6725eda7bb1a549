"""One clear line for everything that can be wrong with a checkpoint folder."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from mood_jax import parity
from tests.models.corrupt import EMBEDDING, HEAD, QUERY, edit, edit_config, refusal
from tests.parity.hf_models import save, tiny


def test_folders_without_config_or_weights(copy, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no config.json" in refusal(empty)
    (copy / "model.safetensors").unlink()
    assert "holds no model*.safetensors" in refusal(copy)
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    line = refusal(copy)
    assert "pickle" in line
    assert "pytorch_model.bin" in line
    assert "safetensors" in line


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "\x00\x01", '"llama"', "null"])
def test_a_broken_config(copy, text):
    (copy / "config.json").write_text(text)
    assert str(copy / "config.json") in refusal(copy)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2"}, ["unknown architecture 'gpt2'", "llama", "gemma2", "mistral", "qwen2"]),
        ({"model_type": None}, ["unknown architecture None"]),
        ({"model_type": "qwen3", "auto_map": {"AutoConfig": "evil.Config"}}, ["unknown architecture 'qwen3'"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, ["rope type 'yarn'"]),
        ({"rope_parameters": {"rope_type": "default"}}, ["gives no rotary base", "rope_theta"]),
        ({"rope_parameters": None}, ["gives no rotary base", "rope_theta"]),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}, ["factor"]),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"hidden_act": "relu"}, ["activation 'relu'", "silu"]),
        ({"num_key_value_heads": 3}, ["4 attention heads cannot share 3"]),
        ({"num_attention_heads": 5}, ["config.json", "64"]),
        ({"num_hidden_layers": "three"}, ["config.json", "num_hidden_layers"]),
        ({"rms_norm_eps": "small"}, ["config.json", "rms_norm_eps"]),
        ({"num_hidden_layers": 2}, ["model.layers.2.", "and 8 more", "no place"]),
        ({"num_hidden_layers": 4}, ["lacks the tensor model.layers.3.", "and 8 more"]),
        ({"vocab_size": 405}, [EMBEDDING, "(404, 64)", "(405, 64)", "do not belong together"]),
        ({"attention_bias": True}, ["lacks the tensor model.layers.0.self_attn.q_proj.bias"]),
        ({"tie_word_embeddings": True}, [HEAD, "tie_word_embeddings to false"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantised", "float original"]),
    ],
    ids=lambda x: ",".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_a_config_that_does_not_fit(copy, fields, words):
    line = refusal(edit_config(copy, **fields))
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("family", "fields", "word"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma2", {"sliding_window": None}, "sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("qwen2", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("mistral", {"head_dim": 7}, "head_dim"),
    ],
    ids=str,
)
def test_a_family_config_that_cannot_be_computed(tmp_path, family, fields, word):
    (tmp_path / "config.json").write_text(json.dumps(parity.tiny_config(family).to_dict() | fields))
    assert word in refusal(tmp_path)


def test_missing_extra_and_misshapen_tensors(copy):
    query = load_file(copy / "model.safetensors")[QUERY]
    assert f"lacks the tensor {QUERY}" in refusal(edit(copy, **{QUERY: None}))
    line = refusal(edit(copy, **{QUERY: query.T[:, :32]}))
    assert "model.safetensors" in line
    assert QUERY in line
    assert "(64, 32)" in line
    assert "(64, 64)" in line
    assert QUERY in refusal(edit(copy, **{QUERY: query.reshape(4, 16, 64)}))
    edit(copy, **{QUERY: query})
    line = refusal(edit(copy, model__layers__0__mlp__router__weight=np.zeros((2, 2), np.float32)))
    assert "model.layers.0.mlp.router.weight" in line
    assert "no place" in line


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor", [QUERY, "model.norm.weight", EMBEDDING])
def test_weights_that_are_not_finite(copy, value, tensor, rng):
    weights = load_file(copy / "model.safetensors")[tensor].copy()
    weights.reshape(-1)[rng.integers(0, weights.size)] = value
    line = refusal(edit(copy, **{tensor: weights}))
    assert tensor in line
    assert "NaN or infinite" in line


def test_quantised_weights(copy):
    query = load_file(copy / "model.safetensors")[QUERY]
    for kind, word in ((np.int8, "I8"), (np.uint8, "U8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")):
        line = refusal(edit(copy, **{QUERY: query.astype(kind)}))
        assert f"{QUERY} is {word};" in line
        assert "quantised" in line


@pytest.mark.parametrize("left", [0, 4, 100, 5_000, -1])
def test_a_truncated_file(copy, left):
    file = copy / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:left])
    line = refusal(copy)
    assert str(file) in line
    assert "download" in line


def test_a_damaged_index(tmp_path):
    save(tiny("llama")[0], tmp_path, shards=3)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shards = sorted(set(good["weight_map"].values()))
    for broken in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(broken)
        line = refusal(tmp_path)
        assert str(index) in line
        assert "damaged" in line
    moved = good["weight_map"] | {QUERY: next(s for s in shards if s != good["weight_map"][QUERY])}
    index.write_text(json.dumps({"weight_map": moved}))
    line = refusal(tmp_path)
    assert QUERY in line
    assert moved[QUERY] in line
    index.write_text(json.dumps(good))
    (tmp_path / shards[1]).rename(tmp_path / "elsewhere")
    line = refusal(tmp_path)
    assert f"lacks {shards[1]}" in line
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {QUERY: "../elsewhere"}}))
    assert "a file of this folder" in refusal(tmp_path)


def test_a_tensor_in_two_files(copy):
    shutil.copy(copy / "model.safetensors", copy / "model-2.safetensors")
    line = refusal(copy)
    assert "model-2.safetensors" in line
    assert "remove one" in line


def test_a_refused_checkpoint_leaves_nothing_behind(copy):
    before = sorted(p.name for p in copy.rglob("*"))
    refusal(edit(copy, **{QUERY: None}))
    assert sorted(p.name for p in copy.rglob("*")) == before


def test_transformers_reads_what_the_tests_corrupt(copy):
    """The folder that the tests start from is sound: every refusal above is of the corruption."""
    _, info = AutoModelForCausalLM.from_pretrained(copy, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
