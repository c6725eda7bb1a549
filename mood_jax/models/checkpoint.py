"""HF checkpoints: found, checked, and streamed tensor by tensor from the safetensors file to its shard.

Strict: every tensor of the checkpoint fills exactly one parameter, every parameter is filled, shapes agree, nothing is
NaN. Pickle checkpoints are refused and remote code is never run.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from mood_jax import processes
from mood_jax.errors import UserError
from mood_jax.models import families, hf_config, stored
from mood_jax.models import names as tensor_names
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes
from mood_jax.models.folder import HUB_FILES as HUB_FILES
from mood_jax.models.folder import check_index, find_folder, refuse_foreign, weight_files
from mood_jax.models.hf_config import read_hf_config as read_hf_config
from mood_jax.models.sharding import make_mesh, param_sharding
from mood_jax.models.stored import StoredTensor

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
IN_FLIGHT = 1 << 28  # bytes of host memory that may wait for their way to the devices
# A matrix of a layer with so large a share of zeros, or an embedding, is said to be odd.
ZEROS, ZEROS_OF_EMBEDDING = 1 / 8, 1 / 2


@dataclass(frozen=True)
class Checkpoint:
    """A decoder's parameters on their devices. `fingerprint` identifies config and weights, however they are stored.

    `notes` say in plain words, one sentence each, what was filled in, left out or is odd about the files.
    """

    name: str
    folder: Path
    revision: str | None
    config: DecoderConfig
    params: Any
    mesh: Mesh
    dtype: str
    fingerprint: str
    notes: tuple[str, ...] = ()


def hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a parameter in the HF file: heads and head size are one axis there."""
    leaf = path.rpartition("/")[2]
    if leaf in ("q", "k", "v"):
        return (shape[0] * shape[1], shape[2])
    if leaf == "o":
        return (shape[0], shape[1] * shape[2])
    return (int(np.prod(shape)),) if leaf.endswith("_bias") else shape


def load_checkpoint(
    name: str,
    *,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    revision: str | None = None,
    offline: bool = False,
    param_cache: str | Path = "",
) -> Checkpoint:
    """Loads a folder or hub id in `dtype` ("float32" or "bfloat16") onto `mesh` (default: the first device).

    With a folder `param_cache` the parameters are taken from there when the checkpoint is still the same, else left
    there for the next time (see `models.param_cache`). Several processes do without it.

    Raises UserError: no such checkpoint, unknown architecture, missing, extra, misshapen, truncated or NaN tensors.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    mesh = make_mesh() if mesh is None else mesh
    folder = find_folder(name, revision, offline)
    with _opened(folder) as found:
        shapes = param_shapes(found.config, DTYPES[dtype])
        if param_cache and processes.count() == 1:
            from mood_jax.models import param_cache as cached  # Orbax takes a second to import

            place = cached.entry(param_cache, found.fingerprint, found.files, dtype)
            params = cached.restored(place, shapes, mesh, lambda: _read(found.tensors, shapes, mesh))
        else:
            params = _read(found.tensors, shapes, mesh)
    return Checkpoint(
        name=name,
        folder=folder,
        revision=revision,
        config=found.config,
        params=unflatten(params),
        mesh=mesh,
        dtype=dtype,
        fingerprint=found.fingerprint,
        notes=found.notes,
    )


def described(folder: Path) -> tuple[DecoderConfig, str]:
    """The config and the `fingerprint` of the checkpoint in a folder, from its files: nothing is placed on a device.

    Raises UserError as `load_checkpoint` does for all but numbers that are not finite.
    """
    with _opened(folder) as found:
        return found.config, found.fingerprint


@dataclass(frozen=True)
class _Opened:
    """The tensors of an open checkpoint by parameter path, in `files`, each with its one place."""

    config: DecoderConfig
    files: list[Path]
    tensors: dict[str, StoredTensor]
    fingerprint: str
    notes: tuple[str, ...]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[_Opened]:
    """The checkpoint in a folder, checked but for its numbers. Raises UserError as `load_checkpoint`."""
    refuse_foreign(folder)
    hf, notes = hf_config.read(folder)
    config = families.decoder_config(hf)
    files, index, more = weight_files(folder)
    notes += more
    with stored.open_all(files) as held:
        if index is not None:
            check_index(index, held)
        tensors, more = tensor_names.canonical(held, config)
        notes += more
        config, tensors, more = tensor_names.resolve_head(config, tensors)
        notes += more
        names = families.FAMILIES[config.family].tensor_names(config)
        tensor_names.check(folder, config, names, tensors)
        shapes = param_shapes(config, jnp.float32)
        wanted = {
            path: _checked(tensor, tensors[tensor], hf_shape(path, shapes[path].shape))
            for tensor, path in names.items()
        }
        digests, more = _digests(wanted)
        yield _Opened(config, files, wanted, _fingerprint(config, digests), notes + more)


def _read(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, jax.Array]:
    """Every parameter on its devices, by path; a file at a time, in the order of its bytes."""
    params: dict[str, jax.Array] = {}
    waiting = 0
    for path, tensor in sorted(tensors.items(), key=lambda item: (item[1].file, item[1].begin)):
        params[path] = _place(tensor, shapes[path], mesh, path)
        waiting += tensor.size
        if waiting > IN_FLIGHT:
            jax.block_until_ready(params[path])
            waiting = 0
    return params


def _checked(name: str, found: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """The tensor. Raises UserError where it is misshapen or no float."""
    if found.shape != shape:
        raise UserError(
            f"{found.file.name}: tensor {name} has shape {found.shape}, and the config asks for {shape}; config.json "
            "and weights do not belong together"
        )
    if found.kind not in stored.DTYPES:
        raise UserError(
            f"{found.file.name}: tensor {name} is {found.kind}; quantised checkpoints are not supported, use the float "
            "original"
        )
    return found


def _digests(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The digest of every tensor by path, and a note on matrices of which much is 0, as after a broken download."""
    digests: dict[str, str] = {}
    odd: list[StoredTensor] = []
    for path, tensor in tensors.items():
        sample = tensor.sample()
        digests[path] = tensor.digest(sample)
        share = sum(not piece.strip(b"\0") for piece in sample) / len(sample)
        if len(tensor.shape) == 2 and share >= (ZEROS if path.startswith("block_") else ZEROS_OF_EMBEDDING):
            odd.append(tensor)
    if not odd:
        return digests, ()
    more = f" and {len(odd) - 1} more tensors hold" if len(odd) > 1 else " holds"
    return digests, (
        f"{odd[0].name} ({odd[0].file.name}){more} long stretches of zeros, as after a broken download: compare the "
        "file's checksum with the original's",
    )


def _place(tensor: StoredTensor, like: jax.ShapeDtypeStruct, mesh: Mesh, path: str) -> jax.Array:
    """The parameter on its devices. A part that several devices hold is read once, and one that none of this process'
    holds not at all. Raises UserError for a number that is not finite."""
    placement = param_sharding(mesh, path, like.shape)
    of_device = {
        device: tuple((s.start or 0, s.stop or n) for s, n in zip(index or (), like.shape, strict=True))
        for device, index in placement.addressable_devices_indices_map(like.shape).items()
        if index is not None
    }
    bounds = list(dict.fromkeys(of_device.values()))
    parts = dict(zip(bounds, tensor.parts(like.shape, like.dtype, bounds), strict=True))
    if not all(stored.is_finite(part) for part in parts.values()):
        raise UserError(f"tensor {tensor.name} holds NaN or infinite values; download the checkpoint again")
    arrays = [jax.device_put(parts[bounds], device) for device, bounds in of_device.items()]
    return jax.make_array_from_single_device_arrays(like.shape, placement, arrays)


def _fingerprint(config: DecoderConfig, digests: Mapping[str, str]) -> str:
    h = hashlib.sha256(repr(config).encode())
    for path in sorted(digests):
        h.update(f"{path} {digests[path]}\n".encode())
    return h.hexdigest()[:32]


def unflatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"block_0/attention/q": x} → {"block_0": {"attention": {"q": x}}}."""
    tree: dict[str, Any] = {}
    for path, value in params.items():
        node = tree
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `unflatten`."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(p.key for p in path): leaf for path, leaf in flat}


def save_checkpoint(folder: Path, hf: Any, params: Mapping[str, Any]) -> None:
    """Writes config.json and model.safetensors in HF form; `hf` is the transformers config that describes `params`."""
    config = families.decoder_config(hf)
    ours = flatten(params)
    tensors = {}
    for tensor, path in families.FAMILIES[config.family].tensor_names(config).items():
        value = np.asarray(ours.pop(path))
        tensors[tensor] = np.ascontiguousarray(value.reshape(hf_shape(path, value.shape)))
    if ours:
        raise UserError(f"parameters without a place in a {config.family} checkpoint: {', '.join(sorted(ours))}")
    folder.mkdir(parents=True, exist_ok=True)
    hf.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
