"""config.json, read strictly: every field that changes a number is checked before transformers makes a config of it.

Fields that change nothing for us (`torch_dtype`) are dropped, since transformers cannot read every word that stands
there. What transformers would fill in is either known to be right, and then said in a note, or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mood_jax.errors import UserError
from mood_jax.models import families
from mood_jax.models.families.common import is_number

# Fields that must be integers above 0, and those of them that may also be null.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
MOST_LAYERS = 10_000
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
# Fields that no shape shows: where the file lacks one, transformers' value is taken and a note says so.
UNSEEN = {
    "llama": ("num_attention_heads", "rms_norm_eps", "hidden_act"),
    "qwen2": ("num_attention_heads", "rms_norm_eps", "hidden_act"),
    "mistral": ("num_attention_heads", "rms_norm_eps", "hidden_act", "sliding_window"),
    "gemma2": (
        "num_attention_heads",
        "rms_norm_eps",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ),
}
# The rotary base of the checkpoints that were published before the field existed: Llama 1 and 2 and what is made of
# them. No other family has such checkpoints.
OLD_ROPE_THETA = {"llama": 10_000.0}
MULTIMODAL = ("text_config", "vision_config", "audio_config", "llm_config")
QUANTISED = ("quantization_config", "quantization", "compression_config")
# Words that torch may lack, and labels of classes, of which transformers makes a table of any size.
DROPPED = ("torch_dtype", "dtype", "num_labels", "id2label", "label2id", "problem_type", "pruned_heads")
LANGUAGE_MODEL = re.compile(r"(?!.*For[A-Z]).*Model|.*ForCausalLM")


def read_hf_config(folder: Path) -> Any:
    """The transformers config of a folder. Raises UserError: missing, broken, or of an unknown architecture."""
    return read(folder)[0]


def read(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The transformers config of a folder, and notes on what was filled in or left out, one sentence each.

    Raises UserError: missing, broken, of an unknown architecture, or with a property that the decoder lacks.
    """
    path = folder / "config.json"
    raw = _raw(path)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in families.FAMILIES:
        raise UserError(
            f"{path}: unknown architecture {kind!r}; supported are {', '.join(sorted(families.FAMILIES))} "
            "(Qwen2/2.5, Llama 3, DeepSeek-LLM, Yi 1.5, Gemma 2, Mistral)"
        )
    _check_properties(path, raw)
    _check_values(path, raw)
    notes = [*_code_note(raw, kind), *_rope_base(path, raw, kind)]
    from transformers import CONFIG_MAPPING

    fields = {k: v for k, v in raw.items() if k not in DROPPED}
    try:
        # The class itself and not AutoConfig, which makes a Ministral of a Mistral with layer types.
        hf = CONFIG_MAPPING[kind].from_dict(fields)
    except Exception as e:  # whatever a field makes of transformers' checks
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"[:200]
        raise UserError(f"{path} could not be read as a {kind} config ({reason}); compare it with the original") from e
    for name in UNSEEN[kind]:
        if name not in raw:
            notes.append(
                f"config.json does not give {name}: {getattr(hf, name)!r} is taken, as transformers does for {kind}"
            )
    if isinstance(rope := vars(hf).get("rope_parameters"), dict) and rope.get("rope_type") == "dynamic":
        notes.append(
            f"dynamic rotary scaling changes nothing up to {hf.max_position_embeddings} tokens; longer texts are "
            "refused"
        )
    return hf, tuple(notes)


def _raw(path: Path) -> dict[str, Any]:
    if not path.is_file():
        inner = sorted(p.parent for pattern in ("*", "snapshots/*") for p in path.parent.glob(f"{pattern}/config.json"))
        hint = f"; {inner[0]} does: give that folder" if inner else "; is it a Hugging Face checkpoint folder?"
        raise UserError(f"{path.parent} holds no config.json{hint}")
    data = path.read_bytes()
    if data.startswith(b"\xef\xbb\xbf"):
        raise UserError(f"{path} begins with a byte-order mark; save it as UTF-8 without one")
    try:
        raw = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON ({e}); download the file again") from e
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no JSON object (unknown architecture None); download the file again")
    return raw


def _check_properties(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuses what makes another model of the weights."""
    if found := [k for k in QUANTISED if raw.get(k)]:
        raise UserError(
            f"{path} is of a quantised checkpoint ({found[0]}), which is not supported; use the float original"
        )
    if found := [k for k in MULTIMODAL if raw.get(k) is not None]:
        raise UserError(
            f"{path} holds {found[0]}, so it describes a multimodal model; only text models are supported: give the "
            "language model alone"
        )
    if "is_causal" in raw and not raw["is_causal"]:
        raise UserError(f"{path}: is_causal is {raw['is_causal']}; only models with causal attention are supported")
    if raw.get("use_bidirectional_attention"):
        raise UserError(f"{path}: use_bidirectional_attention is set; only causal models are supported")
    if raw.get("is_encoder_decoder"):
        raise UserError(f"{path}: is_encoder_decoder is set; only decoder-only models are supported")
    if raw.get("configuration_files"):
        raise UserError(
            f"{path} names configuration_files, of which transformers reads the one for its version; save the config "
            "again with transformers, as one file"
        )
    if raw.get("transformers_weights"):
        raise UserError(
            f"{path} names its weights itself (transformers_weights: {raw['transformers_weights']!r}), which is not "
            "supported; save the model again with transformers, as model.safetensors"
        )
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise UserError(f"{path}: architectures is {architectures!r}; it must be a list of class names")
    other = [a for a in architectures if not LANGUAGE_MODEL.fullmatch(a)]
    if other:
        raise UserError(
            f"{path} describes {other[0]}, which is no causal language model (a classifier, a reward or an embedding "
            "model); use the language model that it was made from"
        )


def _check_values(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuses wrong JSON types and values out of range, of which transformers takes some and computes NaN."""

    def fail(name: str, must: str) -> None:
        raise UserError(f"{path}: {name} is {raw[name]!r}; it must be {must}: compare it with the original")

    for name in SIZES:
        value = raw.get(name, 1)
        if value is None and name in OPTIONAL_SIZES:
            continue
        most = MOST_LAYERS if name == "num_hidden_layers" else 2**31 - 1
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            fail(name, "an integer above 0" + (f" and at most {most}" if name == "num_hidden_layers" else ""))
    if "rms_norm_eps" in raw and not (is_number(raw["rms_norm_eps"]) and raw["rms_norm_eps"] >= 0):
        fail("rms_norm_eps", "a number of at least 0")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if raw.get(name) is not None and not (is_number(raw[name]) and raw[name] > 0):
            fail(name, "a number above 0 (a cap of 0 gives NaN), or null in a model that was trained without one")
    if raw.get("rope_theta") is not None and not (is_number(raw["rope_theta"]) and raw["rope_theta"] > 0):
        fail("rope_theta", "a number above 0, the rotary base that the checkpoint was trained with")


def _rope_base(path: Path, raw: dict[str, Any], kind: str) -> list[str]:
    """Asks the file for its rotary base, since transformers fills in 10 000 for every family where it has none.

    Only a llama config of the old form may lack it, and gets a note.
    """
    scaling, parameters = raw.get("rope_scaling"), raw.get("rope_parameters")
    forms = [p for p in (raw, parameters, scaling) if isinstance(p, dict)]
    if any(isinstance(value, dict) for p in forms[1:] for value in p.values()):
        raise UserError(
            f"{path} gives each layer type rotary parameters of its own, which is not supported; use a checkpoint with "
            "one rotary embedding"
        )
    if any(p.get("rope_theta") for p in forms):
        return []
    scaled = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind not in OLD_ROPE_THETA or "rope_parameters" in raw or "rope_theta" in raw or scaled == "llama3":
        raise UserError(f"{path} gives no rotary base; add the rope_theta that the checkpoint was trained with")
    base = raw["rope_theta"] = OLD_ROPE_THETA[kind]
    return [f"config.json gives no rotary base: {base:,.0f} is taken, which Llama 1 and 2 were trained with"]


def _code_note(raw: Mapping[str, Any], kind: str) -> list[str]:
    code = raw.get("auto_map")
    named = sorted(k for k in code if k.startswith("AutoModel")) if isinstance(code, dict) else []
    if not named:
        return []
    return [
        f"config.json names model code of its own (auto_map: {', '.join(named)}), which is never run: the decoder is "
        f"transformers' {kind}"
    ]
