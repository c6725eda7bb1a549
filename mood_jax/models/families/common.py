"""What the llama-like families share. Every field that changes a number is read by name and never defaulted here."""

from __future__ import annotations

from typing import Any

from mood_jax.errors import UserError
from mood_jax.models.config import DecoderConfig, Rope

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# HF name within "model.layers.{k}." → parameter within "block_{k}/"; biases are added per family.
ATTENTION = {f"self_attn.{x}_proj": f"attention/{x}" for x in "qkvo"}
FEED_FORWARD = {f"mlp.{x}_proj": f"feed_forward/{x}" for x in ("gate", "up", "down")}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}


def rope(hf: Any) -> Rope:
    """The rotary embedding of a transformers config: `rope_parameters` (5.x), or `rope_theta` + `rope_scaling` (4.x).

    Raises UserError when neither form is there (a default would be a silently wrong model) or the kind is unknown.
    """
    known = vars(hf)
    if known.get("rope_parameters"):
        p = dict(known["rope_parameters"])
    elif "rope_theta" in known:
        p = {"rope_theta": known["rope_theta"], **(known.get("rope_scaling") or {})}
    else:
        raise UserError("the config has neither rope_parameters nor rope_theta; add the checkpoint's rotary base to it")
    kind = p.get("rope_type", p.get("type", "default"))
    if "rope_theta" not in p:
        raise UserError("rope_parameters of the config lacks rope_theta; add the checkpoint's rotary base to it")
    if p.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise UserError("partial_rotary_factor other than 1 is not supported; none of the supported families uses it")
    theta = float(p["rope_theta"])
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", factor=float(p["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            factor=float(p["factor"]),
            low_freq_factor=float(p["low_freq_factor"]),
            high_freq_factor=float(p["high_freq_factor"]),
            original_max_positions=int(p["original_max_position_embeddings"]),
        )
    raise UserError(f"rope type {kind!r} is not supported (default, linear and llama3 are); remove it from config.json")


def activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def sizes(hf: Any) -> dict[str, Any]:
    """The fields that all families name alike."""
    if hf.num_attention_heads % hf.num_key_value_heads:
        heads = f"{hf.num_attention_heads} attention heads cannot share {hf.num_key_value_heads} key/value heads"
        raise UserError(f"config.json: {heads}; mend num_key_value_heads")
    return {
        "vocab_size": hf.vocab_size,
        "d_model": hf.hidden_size,
        "n_layers": hf.num_hidden_layers,
        "n_heads": hf.num_attention_heads,
        "n_kv_heads": hf.num_key_value_heads,
        "d_ff": hf.intermediate_size,
        "rope": rope(hf),
        "norm_eps": hf.rms_norm_eps,
        "max_positions": hf.max_position_embeddings,
        "tied": bool(hf.tie_word_embeddings),
    }


def layer_type_windows(hf: Any) -> tuple[int | None, ...]:
    """`layer_types` and `sliding_window` → one window per block."""
    windows = []
    for kind in hf.layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"config.json: layer type {kind!r} is not supported (full_attention, sliding_attention)")
        if kind == "sliding_attention" and hf.sliding_window is None:
            raise UserError("config.json: layers with sliding_attention, but no sliding_window; add its length")
        windows.append(window(hf) if kind == "sliding_attention" else None)
    return tuple(windows)


def window(hf: Any) -> int | None:
    if hf.sliding_window is not None and hf.sliding_window < 1:
        raise UserError(f"config.json: sliding_window is {hf.sliding_window}; use null for no window")
    return hf.sliding_window


def tensor_names(config: DecoderConfig, norms: dict[str, str]) -> dict[str, str]:
    """HF tensor name → parameter path, for every tensor of the checkpoint."""
    names = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "output_norm/scale"}
    if not config.tied:
        names["lm_head.weight"] = "unembedding"
    biased = {x for x in "qkv" if config.qkv_bias} | ({"o"} if config.o_bias else set())
    if config.mlp_bias:
        biased |= {"gate", "up", "down"}
    for i in range(config.n_layers):
        hf, ours = f"model.layers.{i}.", f"block_{i}/"
        for theirs, path in (ATTENTION | FEED_FORWARD).items():
            names[f"{hf}{theirs}.weight"] = ours + path
            if path.rpartition("/")[2] in biased:
                names[f"{hf}{theirs}.bias"] = f"{ours}{path}_bias"
        for theirs, path in norms.items():
            names[f"{hf}{theirs}.weight"] = f"{ours}{path}/scale"
    return names
