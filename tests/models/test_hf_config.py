"""config.json: every wrong value is one line, what changes nothing is dropped, what is filled in is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mood_jax import parity
from mood_jax.errors import UserError
from mood_jax.models import families, hf_config
from mood_jax.models.config import DecoderConfig

FAMILIES = ("llama", "qwen2", "mistral", "gemma2")
WORDS = ("auto", "float8_e4m3fn", "nonsense", "float32", "torch.bfloat16", "", None, 16, ["float32"], {})
VALUES = (
    None,
    "x",
    "3",
    -1,
    0,
    1,
    2.5,
    True,
    [],
    {},
    float("nan"),
    float("inf"),
    10**40,
    [3],
    {"a": {"b": 1}},
    "\ud800",
)
EXTRA = ("rope_scaling", "rope_theta", "partial_rotary_factor", "layer_types", "is_causal", "num_labels", "auto_map")
CHANGES_NOTHING = ("num_labels", "id2label", "label2id", "problem_type", "torch_dtype", "dtype")


def raw(family: str, **fields: Any) -> dict[str, Any]:
    return parity.tiny_config(family).to_dict() | fields


def read(folder: Path, fields: dict[str, Any]) -> tuple[DecoderConfig, tuple[str, ...]]:
    (folder / "config.json").write_text(json.dumps(fields))
    hf, notes = hf_config.read(folder)
    return families.decoder_config(hf), notes


def refusal(folder: Path, fields: dict[str, Any]) -> str:
    with pytest.raises(UserError) as e:
        read(folder, fields)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_in_any_field_is_taken_or_refused_in_one_line(family, tmp_path):
    good, _ = read(tmp_path, raw(family))
    lines: list[str] = []
    refused: set[str] = set()
    for field in dict.fromkeys([*raw(family), *EXTRA]):
        for value in VALUES:
            try:
                config, _ = read(tmp_path, raw(family, **{field: value}))
            except UserError as e:
                lines.append(str(e))
                refused.add(field)
                continue
            assert isinstance(config, DecoderConfig)
            hash(config)
            if field in CHANGES_NOTHING:
                assert config == good
    assert not any("\n" in line for line in lines)
    assert not refused & set(CHANGES_NOTHING)
    assert {"hidden_size", "rms_norm_eps", "rope_theta", "is_causal"} <= refused


@pytest.mark.parametrize("field", hf_config.SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_integers_above_zero(family, field, tmp_path):
    for value in ("64", -2, 0, 1.5, 64.0, True, [64], float("nan"), float("inf"), 10**40):
        line = refusal(tmp_path, raw(family, **{field: value}))
        assert field in line
        assert "compare it with the original" in line


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_words_change_nothing(family, tmp_path):
    good = read(tmp_path, raw(family))
    for field in ("torch_dtype", "dtype"):
        for word in WORDS:
            assert read(tmp_path, raw(family, **{field: word})) == good


@pytest.mark.parametrize("value", [0, 0.0, -30.0, "30", True, float("nan"), float("inf"), [30.0]])
@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_caps(field, value, tmp_path):
    assert field in refusal(tmp_path, raw("gemma2", **{field: value}))


def old(family: str, scaling: Any = None, **fields: Any) -> dict[str, Any]:
    """A config of the form before 5.x without a rotary base."""
    made = raw(family, rope_scaling=scaling, **fields)
    del made["rope_parameters"]
    return made


def test_llama_2_has_a_base_of_10000_and_a_note(tmp_path):
    for scaling in (None, {}, {"type": "linear", "factor": 4.0}, {"rope_type": "dynamic", "factor": 2.0}):
        config, notes = read(tmp_path, old("deepseek", scaling))
        assert config.rope.theta == 1e4
        assert sum("rotary base" in n and "10,000" in n for n in notes) == 1
        assert read(tmp_path, old("deepseek", scaling, rope_theta=1e4)) == (
            config,
            tuple(n for n in notes if "base" not in n),
        )
    for family in ("qwen2", "mistral", "gemma2"):
        assert "add the rope_theta" in refusal(tmp_path, old(family))
    llama3 = {k: v for k, v in raw("llama")["rope_parameters"].items() if k != "rope_theta"}
    assert "add the rope_theta" in refusal(tmp_path, old("llama", llama3))
    assert "add the rope_theta" in refusal(tmp_path, old("deepseek", rope_theta=None))


UNSUPPORTED = {
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "longrope": {"factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    | {"original_max_position_embeddings": 1024},
    "su": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "mrope": {"mrope_section": [2, 3, 3]},
    "proportional": {},
    "ntk": {"factor": 2.0},
    "nonsense": {},
}  # fmt: skip


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_no_advice_makes_a_wrong_model(family, kind, key, tmp_path):
    """Without its rotary scaling a model computes other numbers, so nothing is to be removed from the file."""
    scaling = {key: kind} | UNSUPPORTED[kind]
    for fields in (old(family, scaling, rope_theta=1e4), raw(family, rope_parameters={"rope_theta": 1e4} | scaling)):
        line = refusal(tmp_path, fields)
        assert kind in line
        assert "remove" not in line
        assert "config.json" in line
    if key == "rope_type":
        assert "changes every state" in line or "could not be read" in line


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_numbers(family, tmp_path):
    for value in ("4.0", 0, -1.0, True, None, [4.0], float("nan"), float("inf"), 10**400):
        for kind in ("linear", "dynamic"):
            assert "factor" in refusal(tmp_path, old(family, {"rope_type": kind, "factor": value}, rope_theta=1e4))
        if value is not None:
            assert "rope_theta" in refusal(tmp_path, old(family, rope_theta=value))
        assert "rope_theta" in refusal(
            tmp_path, raw(family, rope_parameters={"rope_type": "default", "rope_theta": value})
        )
    bands = {"factor": 8.0, "low_freq_factor": 4.0, "original_max_position_embeddings": 64}
    for high in (4.0, 1.0):
        scaling = {"rope_type": "llama3", "high_freq_factor": high} | bands
        assert "low_freq_factor" in refusal(tmp_path, old(family, scaling, rope_theta=1e4))
    nested = {k: {"rope_type": "default", "rope_theta": 1e4} for k in ("full_attention", "sliding_attention")}
    for top in ({}, {"rope_theta": 1e4}):
        assert "layer type" in refusal(tmp_path, raw(family, rope_parameters=nested, **top))


def test_dynamic_scaling_is_the_plain_kind_with_a_limit(tmp_path):
    for family in FAMILIES:
        fields = {"rope_theta": 1e4, "max_position_embeddings": 48}
        plain, _ = read(tmp_path, old(family, **fields))
        config, notes = read(tmp_path, old(family, {"type": "dynamic", "factor": 2.0}, **fields))
        assert replace(config, rope=plain.rope) == plain
        assert repr(config) == repr(plain)  # hence one fingerprint
        assert any("48 tokens" in n for n in notes)
        config.check_length(48)
        with pytest.raises(UserError, match="longer than 48"):
            config.check_length(49)
        plain.check_length(10**6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "fields",
    [
        {"is_causal": False},
        {"is_causal": 0},
        {"is_causal": None},
        {"use_bidirectional_attention": True},
        {"is_encoder_decoder": True},
        {"text_config": {"hidden_size": 32}},
        {"vision_config": {"depth": 2}},
        {"quantization_config": {"bits": 4}},
        {"quantization": {"group_size": 64, "bits": 4}},
        {"compression_config": {"format": "int"}},
        {"configuration_files": ["config.4.0.0.json"]},
        {"transformers_weights": "other.safetensors"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["Qwen2ForRewardModel"]},
        {"architectures": ["Qwen2ForProcessRewardModel"]},
        {"architectures": ["MllamaForConditionalGeneration"]},
        {"architectures": ["MistralForTokenClassification"]},
        {"architectures": "LlamaForCausalLM"},
    ],
    ids=str,
)
def test_properties_of_other_models_are_named(family, fields, tmp_path):
    (field,) = fields
    line = refusal(tmp_path, raw(family, **fields))
    assert field in line or fields[field][0] in line


@pytest.mark.parametrize(
    "name", [None, [], ["LlamaForCausalLM"], ["LlamaModel"], ["LLaMAForCausalLM"], ["YiForCausalLM"]]
)
def test_language_models_are_taken(name, tmp_path):
    assert read(tmp_path, raw("llama", architectures=name)) == read(tmp_path, raw("llama"))


def test_what_is_filled_in_is_said(tmp_path):
    for family, fields in hf_config.UNSEEN.items():
        assert read(tmp_path, raw(family))[1] == ()
        for field in fields:
            made = raw(family)
            del made[field]
            try:
                _, notes = read(tmp_path, made)
            except UserError:  # 32 heads are too many for a tiny model
                assert field == "num_attention_heads"
                continue
            assert any(field in n for n in notes), (family, field)


def test_code_of_its_own_is_said_and_not_run(tmp_path):
    code = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    config, (note,) = read(tmp_path, raw("qwen2", auto_map=code))
    assert config == read(tmp_path, raw("qwen2"))[0]
    assert "never run" in note
    assert "AutoModelForCausalLM" in note
    assert read(tmp_path, raw("qwen2", auto_map={"AutoTokenizer": ["tok.Tok", None]}))[1] == ()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        ("{}".encode("utf-16"), "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "no JSON object"),
        (b'{"model_type": ["llama"]}', "unknown architecture"),
        (b'{"model_type": {}}', "unknown architecture"),
    ],
)
def test_files_that_are_no_config(data, word, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(UserError, match=word):
        hf_config.read(tmp_path)


def test_shipped_and_official_configs_have_no_notes(tmp_path):
    for family in parity.TINY:
        assert read(tmp_path, raw(family))[1] == ()
    shipped = sorted((Path(families.__file__).parents[2] / "organisms" / "weights").glob("*/config.json"))
    assert shipped
    for path in shipped:
        assert hf_config.read(path.parent)[1] == ()
