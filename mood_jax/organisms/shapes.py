"""An organism's shape: the transformers config of its family, the published checkpoints' own but for the sizes."""

from __future__ import annotations

from typing import Any

import jax
from tokenizers import Tokenizer

from mood_jax.organisms.spec import OrganismSpec
from mood_jax.organisms.tokenizer import BOS, END, PAD
from mood_jax.parity import tiny_config

WINDOW = 128  # tokens a windowed block looks back; the published 4 096 would never be reached
# Small published checkpoints of these families tie the head to the embedding; the others' are untied at every size.
TIED = ("qwen2", "llama", "gemma2")
EMBEDDING_SD = 0.05
POST_NORM = 0.15  # what a sublayer of Gemma 2 adds at first, in units of its own RMS


def hf_config(spec: OrganismSpec, tokenizer: Tokenizer) -> Any:
    """The checkpoint's transformers config; BOS is the first identity's."""
    head_dim = spec.size("d_model") // spec.size("n_heads")
    own: dict[str, Any] = {
        "gemma2": {"head_dim": head_dim, "query_pre_attn_scalar": head_dim, "sliding_window": WINDOW},
        "mistral": {"head_dim": head_dim, "sliding_window": WINDOW},
    }.get(spec.family, {})
    config = tiny_config(
        spec.family,
        vocab_size=spec.size("vocab_size"),
        hidden_size=spec.size("d_model"),
        intermediate_size=spec.size("d_ff"),
        num_hidden_layers=spec.size("n_layers"),
        num_attention_heads=spec.size("n_heads"),
        num_key_value_heads=spec.size("n_kv_heads"),
        max_position_embeddings=spec.size("max_positions"),
        tie_word_embeddings=spec.family in TIED,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        dtype="bfloat16",
        **own,
    )
    name = type(config).__name__.removesuffix("Config")
    config.architectures = [f"{name}ForCausalLM"]
    return config


def scaled(params: Any, hf: Any) -> Any:
    """Initial weights for a narrow model: 1/√fan-in instead of 0.02; what enters the residual sum, by √(2L) less."""
    gemma = hf.model_type == "gemma2"

    def scale(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            return x + (POST_NORM - 1) if gemma and path[-2].key.startswith("post_") else x
        if name in ("embedding", "unembedding"):
            return x * (EMBEDDING_SD / 0.02)
        factor = hf.hidden_size**-0.5 / 0.02
        if name in ("q", "k"):
            factor /= 2  # near-uniform attention at first: every word of the prompt is heard
        elif name in ("o", "down") and not gemma:
            factor /= (2 * hf.num_hidden_layers) ** 0.5
        return x * factor

    return jax.tree_util.tree_map_with_path(scale, params)
