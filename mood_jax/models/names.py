"""Stored tensor names → the names that the families know.

Saving a wrapped or an inner model changes names by words that stand for no layer of ours (`model.`, `_orig_mod.`).
A tensor whose name differs by such words alone is taken; two that then share a name, and whatever has no place, are
named for what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from mood_jax.errors import UserError
from mood_jax.models import families, stored
from mood_jax.models.config import DecoderConfig
from mood_jax.models.folder import DERIVED, HEAD
from mood_jax.models.stored import StoredTensor

EMBEDDING = "model.embed_tokens.weight"
# Words of a name that stand for a wrapper and no layer: inner models, torch.compile, DataParallel, PEFT, FSDP,
# DeepSpeed, activation checkpointing, and the language part of a larger model.
WRAPPERS = frozenset(
    (
        "model",
        "_orig_mod",
        "module",
        "base_model",
        "language_model",
        "text_model",
        "transformer",
        "llm",
        "_fsdp_wrapped_module",
        "_forward_module",
        "_checkpoint_wrapped_module",
    )
)
# What else a tensor may be, by its name.
FOREIGN = (
    (
        r"\b(lora_\w+|base_layer|modules_to_save)\b",
        "belongs to an adapter that is not merged; merge it first (peft: merge_and_unload(), then save_pretrained())",
    ),
    (
        r"\b(qweight|qzeros|g_idx|scales|absmax|quant_map|quant_state\S*|SCB|weight_scale\w*|weight_packed|input_scale)\b",
        "belongs to a quantised checkpoint, which is not supported; use the float original",
    ),
    (
        r"\b(score|v_head|value_head|reward_head|regression_head|classifier)\b",
        "belongs to a classifier or reward model; use the language model that it was made from",
    ),
    (
        r"\b(vision_tower|vision_model|visual|multi_modal_projector|mm_projector|audio_tower|image_newline)\b",
        "belongs to a multimodal model; give the language model alone",
    ),
    (
        r"\b(tok_embeddings|attention\.w[qkvo]|feed_forward\.w[123]|wqkv|W_pack|qkv_proj|gate_up_proj|query_key_value)\b",
        "is of another layout of the same layers; convert the checkpoint to Hugging Face form with its family's script",
    ),
)


def canonical(
    tensors: Mapping[str, StoredTensor], config: DecoderConfig
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors by the family's own names, derived buffers left out, and a note where names were changed.

    Names without a place stay as they are. Raises UserError where two tensors have one place, or where the layers do
    not share one prefix.
    """
    names = families.FAMILIES[config.family].tensor_names(replace(config, tied=False))
    known = {_key(n): n for n in names}
    found: dict[str, StoredTensor] = {}
    prefixes: dict[str, str] = {}  # of the inner model's tensors → the first that has it
    for name, tensor in tensors.items():
        if DERIVED.fullmatch(name):
            continue
        place = known.get(_key(name), name)
        if place in found:
            raise UserError(
                f"{tensor.file.name} holds {found[place].name} and {name}, which have one place ({place}); keep the "
                "one that is meant"
            )
        found[place] = tensor
        if place in names and place != HEAD:
            wrapper = "".join(f"{word}." for word in takewhile(WRAPPERS.__contains__, name.split(".")))
            prefixes.setdefault(wrapper, name)
    if len(prefixes) > 1:
        a, b = list(prefixes.values())[:2]
        raise UserError(f"tensor names begin in more than one way ({a}, {b}); keep the tensors of one model alone")
    prefix = next(iter(prefixes), "model.")
    if prefix == "model.":
        return found, ()
    said = f"begin with {prefix!r} and not 'model.'" if prefix else "lack the prefix 'model.'"
    return found, (f"the tensor names {said}, and are read all the same",)


def _key(name: str) -> tuple[str, ...]:
    return tuple(word for word in name.split(".") if word not in WRAPPERS)


def resolve_head(
    config: DecoderConfig, tensors: dict[str, StoredTensor]
) -> tuple[DecoderConfig, dict[str, StoredTensor], tuple[str, ...]]:
    """Tied embeddings as transformers ties them: the tensor that is stored serves both; of two, equal numbers do.

    A head that is the embedding rounded to another dtype is read as stored, by a config that is not tied. Raises
    UserError for a head of other numbers.
    """
    if not config.tied or HEAD not in tensors:
        return config, tensors, ()
    head = tensors[HEAD]
    rest = {n: t for n, t in tensors.items() if n != HEAD}
    if EMBEDDING not in rest:
        return config, rest | {EMBEDDING: head}, ()
    embedding = rest[EMBEDDING]
    if all(t.kind in stored.DTYPES for t in (head, embedding)):
        if head.equals(embedding):
            return config, rest, ()
        if head.rounds_to(embedding):
            kinds = f"{head.name} ({head.kind}) and the embedding ({embedding.kind}) differ by rounding"
            return replace(config, tied=False), tensors, (f"{kinds}; the head is read as it is stored",)
    raise UserError(
        f"config.json ties the output head to the embedding, but {head.file.name} holds another {HEAD}; if the model "
        "was trained with a head of its own, set tie_word_embeddings to false in config.json (as transformers 5 "
        "reads it)"
    )


def check(folder: Path, config: DecoderConfig, names: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Raises UserError for tensors that are missing or have no place, named for what they are where that is known."""
    missing = [n for n in names if n not in tensors]
    extra = [n for n in tensors if n not in names]
    for name in extra:
        for pattern, what in FOREIGN:
            if re.search(pattern, name):
                raise UserError(f"{tensors[name].file.name} holds the tensor {name}, which {what}")
    if missing == [HEAD] and not extra:
        raise UserError(
            f"{folder} lacks the tensor {HEAD}, and config.json does not tie the output head to the embedding; "
            "compare tie_word_embeddings with the original config.json, or, where this is an inner model saved without "
            "its head, use the full checkpoint"
        )
    if missing:
        raise UserError(f"{folder} lacks the tensor {missing[0]}{_more(missing)}; the checkpoint is incomplete")
    if extra:
        raise UserError(
            f"{tensors[extra[0]].file.name} holds the tensor {extra[0]}{_more(extra)}, for which a {config.family} "
            "decoder with this config has no place; config.json and weights do not belong together"
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
