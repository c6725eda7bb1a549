"""`Model`: a checkpoint together with the way it is spoken to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mood_jax import files, numerics
from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat
from mood_jax.models.checkpoint import Checkpoint, flatten, load_checkpoint, unflatten
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import resolve_sites, run
from mood_jax.models.folder import find_folder
from mood_jax.models.sharding import batch_sharding, put


@dataclass(frozen=True)
class Model:
    """What `generate`, `read` and `forward` take: parameters on their devices, and the chat template."""

    checkpoint: Checkpoint
    chat: Chat

    @property
    def config(self) -> DecoderConfig:
        return self.checkpoint.config

    @property
    def params(self) -> Any:
        return self.checkpoint.params

    @property
    def mesh(self) -> Mesh:
        return self.checkpoint.mesh

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this model's numbers should know, in words; printed at the start and kept in records."""
        return (*self.checkpoint.notes, *self.chat.notes)


def load_model(
    name: str,
    *,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    revision: str | None = None,
    offline: bool = False,
    plain_text: bool = False,
    param_cache: str | Path = "",
) -> Model:
    """A checkpoint folder or hub id, ready to generate.

    Args:
        name: a local folder in Hugging Face form, or a hub id ("Qwen/Qwen2.5-7B-Instruct").
        dtype: "bfloat16" or "float32", for weights and activations; norms, softmax and reduced states are float32.
        mesh: from `make_mesh(data, model)`; the first device when None.
        plain_text: never use a chat template, as for base models.
        param_cache: a folder where converted parameters are kept for the next start; "" for none.

    Raises UserError with one line for everything that can be wrong with a checkpoint.
    """
    numerics.check_flags()
    name = files.expanded(name)
    folder = find_folder(name, revision, offline)
    chat = Chat.from_folder(folder, plain_text=plain_text)  # before the weights, which take longer
    chat.check_template(_published_name(name, folder), folder)
    offline = offline or not Path(name).is_dir()  # what was fetched above is in the local cache
    checkpoint = load_checkpoint(
        name,
        dtype=dtype,
        mesh=mesh,
        revision=revision,
        offline=offline,
        param_cache=files.expanded(param_cache),
    )
    return Model(checkpoint, chat)


def _published_name(name: str, folder: Path) -> str:
    """The name as it was given, or the hub id of a snapshot in a local cache (models--OWNER--NAME/snapshots/COMMIT)."""
    above = folder.absolute().parts[-3:-1]
    return above[0].removeprefix("models--").replace("--", "/") if above[1:] == ("snapshots",) else str(name)


def random_weights(model: Model, seed: int = 0) -> Model:
    """The same architecture, dtype, placement and chat with fresh parameters: what a model knows without training.

    Matrices and the embedding are normal with standard deviation .02, norms the identity and biases 0, as Hugging Face
    initialises these families. They are made on the devices, beside the model's own: twice its memory.
    """
    key = numerics.key(seed)
    params: dict[str, jax.Array] = {}
    for k, (path, like) in enumerate(flatten(model.params).items()):
        kind = _INITIAL.get(path.rpartition("/")[2].rpartition("_")[2], "normal")
        if kind == "identity":
            kind = "zeros" if model.config.norm_plus_one else "ones"
        params[path] = _maker(kind, like.shape, like.dtype, like.sharding)(jax.random.fold_in(key, k))
    c = model.checkpoint
    name, fingerprint = f"{c.name} with random weights", f"{c.fingerprint}/random/{seed}"
    return Model(replace(c, name=name, fingerprint=fingerprint, params=unflatten(params)), model.chat)


_INITIAL = {"scale": "identity", "bias": "zeros"}  # by the end of a parameter's name; all others are normal


@cache
def _maker(kind: str, shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[jax.Array], jax.Array]:
    """Key → a parameter. A small program a shape, which compiles in less time than the whole of `init_params`."""

    def make(key: jax.Array) -> jax.Array:
        if kind == "normal":
            return jax.nn.initializers.normal(0.02)(key, shape, dtype)
        return jnp.full(shape, 1 if kind == "ones" else 0, dtype)

    return jax.jit(make, out_shardings=sharding)


@partial(jax.jit, static_argnames=("config", "sites"))
def _forward(params: Any, tokens: jax.Array, mask: jax.Array, *, config: DecoderConfig, sites: tuple[str, ...]):
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    logits, _, states = run(config, params, tokens, positions, mask, sites=sites)
    return logits, states


def forward(
    model: Model, tokens: Any, mask: Any, sites: str | Sequence[str] = "all"
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """One pass over whole sequences: logits float32 [B, T, V] and the states at `sites`.

    Args:
        tokens: int [B, T]; mask: bool [B, T], True on real tokens; padding may stand on either side, not between.

    Returns:
        logits, and {"embed": [B,T,D], "resid_post": [blocks asked for, B,T,D], "final_norm": [B,T,D]} as asked for.
    """
    config = model.config
    tokens = jnp.asarray(tokens, jnp.int32)
    mask = jnp.asarray(mask, bool)
    if tokens.ndim != 2 or tokens.shape != mask.shape:
        raise UserError(f"tokens and mask must both be [B, T], not {tokens.shape} and {mask.shape}")
    if config.rope.limit is not None:
        config.check_length(int(mask.sum(axis=1).max(initial=0)))
    names = resolve_sites(config, sites)
    placed = [put(x, batch_sharding(model.mesh, x.shape)) for x in (tokens, mask)]
    logits, states = _forward(model.params, *placed, config=config, sites=names)
    found: dict[str, jax.Array] = {}
    blocks = [s for n, s in zip(names, states, strict=True) if n.startswith("resid_post@")]
    if blocks:
        found["resid_post"] = jnp.stack(blocks)
    found |= {n: s for n, s in zip(names, states, strict=True) if "@" not in n}
    return logits, found
