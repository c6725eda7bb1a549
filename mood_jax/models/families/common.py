"""What the llama-like families share. Every field that changes a number is read by name and never defaulted here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mood_jax.errors import UserError
from mood_jax.models.config import DecoderConfig, Rope

# transformers' names of one function each; the forms of the tanh approximation differ by rounding alone (2e-7).
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
}
LARGEST = 3e38  # of a number that float32 holds

# HF name within "model.layers.{k}." → parameter within "block_{k}/"; biases are added per family.
ATTENTION = {f"self_attn.{x}_proj": f"attention/{x}" for x in "qkvo"}
FEED_FORWARD = {f"mlp.{x}_proj": f"feed_forward/{x}" for x in ("gate", "up", "down")}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}


def is_number(value: Any) -> bool:
    """A JSON number that float32 holds? True and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


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
        raise UserError(
            "config.json: partial_rotary_factor other than 1 changes every state and is not supported; none of the "
            "supported families uses it"
        )
    theta = _positive(p, "rope_theta")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", factor=_positive(p, "factor"))
    if kind == "dynamic":
        if "alpha" in p:
            raise UserError(
                "config.json: rope type 'dynamic' with alpha changes every state and is not supported; use a "
                "checkpoint of this family without it"
            )
        _positive(p, "factor")
        # NTK scaling sets in beyond max_position_embeddings (transformers: `_compute_dynamic_ntk_parameters`).
        return Rope(theta, limit=hf.max_position_embeddings)
    if kind == "llama3":
        low, high = _positive(p, "low_freq_factor"), _positive(p, "high_freq_factor")
        if low >= high:
            raise UserError(
                f"config.json: low_freq_factor {low:g} must lie below high_freq_factor {high:g}; compare them with the "
                "original"
            )
        return Rope(
            theta,
            "llama3",
            factor=_positive(p, "factor"),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_positions=int(_positive(p, "original_max_position_embeddings")),
        )
    raise UserError(
        f"config.json: rope type {kind!r} changes every state, also of short texts, and is not supported yet (default, "
        "linear, llama3 and dynamic are); use a checkpoint that was trained without it"
    )


def _positive(p: Mapping[str, Any], name: str) -> float:
    value: Any = p.get(name)
    if not is_number(value) or value <= 0:
        raise UserError(
            f"config.json: {name} of the rotary embedding is {value!r}; it must be a number above 0: compare it with "
            "the original"
        )
    return float(value)


def activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise UserError(
            f"config.json: activation {name!r} is another function and not supported; known are "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def sizes(hf: Any) -> dict[str, Any]:
    """The fields that all families name alike."""
    if hf.num_attention_heads % hf.num_key_value_heads:
        heads = f"{hf.num_attention_heads} attention heads cannot share {hf.num_key_value_heads} key/value heads"
        raise UserError(f"config.json: {heads}; compare num_key_value_heads with the original")
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


def head_dim(hf: Any) -> int:
    """The head size: the config's own, also where the class declares none (Qwen2), else D / N."""
    size = vars(hf).get("head_dim")
    size = hf.hidden_size // hf.num_attention_heads if size is None else size
    if size < 2 or size % 2:
        raise UserError(
            f"config.json: head_dim is {size}; rotary embeddings need an even one: compare head_dim, hidden_size and "
            "num_attention_heads with the original"
        )
    return size


def layer_type_windows(hf: Any) -> tuple[int | None, ...]:
    """`layer_types` and `sliding_window` → one window per block."""
    windows = []
    for kind in hf.layer_types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"config.json: layer type {kind!r} is not supported (full_attention, sliding_attention)")
        if kind == "sliding_attention" and hf.sliding_window is None:
            raise UserError(
                "config.json: layers with sliding_attention, but no sliding_window; add the length that the model was "
                "trained with"
            )
        windows.append(window(hf) if kind == "sliding_attention" else None)
    return tuple(windows)


def window(hf: Any) -> int | None:
    if hf.sliding_window is not None and not 1 <= hf.sliding_window < 2**31:
        raise UserError(
            f"config.json: sliding_window is {hf.sliding_window}; it must be the length that the model was trained "
            "with, or null in a model that was trained without a window"
        )
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
