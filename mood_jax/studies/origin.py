"""What numbers were made from: the one place that says it, with the contents of things and not their names alone.

A unit on disk carries what `of_collection` gives, and a run takes a unit only where its own is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

import mood_jax
from mood_jax import artifacts, numerics
from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat
from mood_jax.generation.model import Model
from mood_jax.models.checkpoint import described
from mood_jax.models.folder import find_folder

if TYPE_CHECKING:
    from mood_jax.studies.collect import Ask, Protocol

DECODED = 256  # tokens whose texts tell how a tokenizer writes


def identity(model: Model) -> dict[str, Any]:
    """The checkpoint and the way it is spoken to."""
    c = model.checkpoint
    return _identity(c.name, c.folder, c.revision, c.fingerprint, c.config.family, c.dtype, model.chat)


def of_files(name: str, *, dtype: str, revision: str, plain_text: bool) -> dict[str, Any] | None:
    """`of_model` without versions, of a folder or hub id as its files lie on this machine: no parameter is placed.

    None where they are not here; nothing is fetched. Raises UserError where they are here and damaged.
    """
    is_folder = Path(name).is_dir()
    try:
        folder = find_folder(name, revision or None, offline=True)
    except UserError:
        if is_folder:
            raise
        return None
    if not any(folder.glob("*.safetensors")):  # a cache may hold the tokenizer alone
        return None
    config, fingerprint = described(folder)
    chat = Chat.from_folder(folder, plain_text=plain_text)
    return {
        "model": _identity(name, folder, revision or None, fingerprint, config.family, dtype, chat),
        "eos_token_ids": list(chat.eos_token_ids),
    }


def _identity(
    name: str, folder: Path, revision: str | None, fingerprint: str, family: str, dtype: str, chat: Chat
) -> dict[str, Any]:
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        # Of a hub id the commit, since a branch moves on.
        "revision": folder.name if folder.parent.name == "snapshots" else revision,
        "fingerprint": fingerprint,
        "family": family,
        "dtype": dtype,
        "tokenizer_hash": chat.tokenizer_hash,
        "template_hash": chat.template_hash,
        "plain_text": not chat.has_template,
    }


def versions(device: Any) -> dict[str, Any]:
    """What else numbers hang on: this package, jax, and the kind of `device` (of jax)."""
    return {"mood_jax": mood_jax.__version__, "jax": jax.__version__, "device": device.device_kind}


def of_model(model: Model) -> dict[str, Any]:
    """The parts that all studies share: the model, the ids that end its responses, versions and settings of JAX."""
    return {
        "model": identity(model),
        "eos_token_ids": list(model.chat.eos_token_ids),
        "versions": versions(model.mesh.devices.flat[0]),
        **numerics.recorded(),
    }


def of_collection(
    model: Model,
    protocol: Protocol,
    asks: Sequence[Ask],
    prompts: Sequence[str],
    bare_prompts: Sequence[str],
    conditions: Sequence[str],
    control: Model | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What all units of a collection were made from, JSON-ready.

    Args:
        prompts, bare_prompts: hashes of the rendered prompts of `asks`, with their system prompt and (where responses
            are read again, else empty) without it.
        conditions: names of the states; control: who reads along.
        settings: in words, what is asked (axes, hashes of the bank's sets, samples), so that a difference has a name.
    """
    readout = protocol.readout
    asking = {k: v for k, v in protocol.describe().items() if not k.startswith("readout")}  # weights come afterwards
    found = of_model(model) | {
        "protocol": asking | {"full": protocol.full, "prompt_slots": protocol.prompt_slots},
        "reading": {
            "sites": list(readout.sites),
            "reducers": list(readout.reducers),
            "span": readout.span,
            "dtype": readout.dtype,
            "conditions": list(conditions),
            "control": None if control is None else control.checkpoint.fingerprint,
        },
        "settings": dict(settings),
        "texts": {
            "responses": len(asks),
            "ids": artifacts.record_digest([a.id for a in asks]),
            "about": artifacts.record_digest([a.about for a in asks]),
            "prompts": artifacts.record_digest([list(prompts), list(bare_prompts)]),
            "decoding": artifacts.record_digest(_decoded(model.chat)),
        },
    }
    return json.loads(artifacts.json_bytes(found))


def _decoded(chat: Chat) -> list[str]:
    """Texts of some tokens: the hash of a tokenizer says how it reads, and not how it writes."""
    ids = list(range(0, chat.vocab_size, max(1, chat.vocab_size // DECODED)))
    return [chat.decode(ids), *(chat.decode([i]) for i in ids)]


def refuse_other(what: object, made_from: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError where `what` was made from other things, naming the first that differs."""
    different = artifacts.first_difference(made_from, wanted)
    if different is not None:
        key, there, here = different
        raise UserError(
            f"{what} was made with {key} = {there}, and this command has {here}; use another --workdir, or the first "
            "command's settings"
        )
