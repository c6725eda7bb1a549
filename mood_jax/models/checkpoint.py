"""HF checkpoints: found, checked, and streamed tensor by tensor from the safetensors file to its shard.

Strict: every tensor of the checkpoint fills exactly one parameter, every parameter is filled, shapes agree, nothing is
NaN. Pickle checkpoints are refused and remote code is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
from mood_jax.models import families, stored
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes
from mood_jax.models.sharding import make_mesh, param_sharding
from mood_jax.models.stored import StoredTensor

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HUB_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
]
IN_FLIGHT = 1 << 28  # bytes of host memory that may wait for their way to the devices
# Buffers that old exports carry and that are functions of the config: the only tensors that may be left over.
DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Checkpoint:
    """A decoder's parameters on their devices. `fingerprint` identifies config and weights, however they are stored."""

    name: str
    folder: Path
    revision: str | None
    config: DecoderConfig
    params: Any
    mesh: Mesh
    dtype: str
    fingerprint: str


def find_folder(name: str, revision: str | None = None, offline: bool = False) -> Path:
    """A local folder as it is, or the snapshot of a hub id (downloaded, or from the local cache when `offline`).

    Raises UserError: no such folder or id, gated, offline and not cached.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"{name} is a local folder, which has no revision {revision!r}; leave revision out")
        return Path(name)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path:
        raise UserError(f"no such folder: {name}; give a checkpoint folder or a hub id (owner/name)")
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=offline))
    except errors.GatedRepoError as e:
        raise UserError(f"{name} is gated; accept its licence on the hub, then `hf auth login` or set HF_TOKEN") from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{name} has no revision {revision!r}; see its branches and tags on the hub") from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(
            f"no folder and no hub model named {name}; check the spelling (a private one needs HF_TOKEN)"
        ) from e
    except errors.HFValidationError as e:
        raise UserError(f"{name!r} is neither a folder nor a valid hub id ({e})") from e
    except (errors.HTTPError, OSError) as e:  # the former also for what breaks off in the middle of a download
        reason = str(e).partition("\n")[0][:120]
        raise UserError(
            f"{name} is not in the local hub cache and the hub could not be reached ({reason}); "
            "download it where there is a network, or give a folder"
        ) from e


def read_hf_config(folder: Path) -> Any:
    """The transformers config of a folder. Raises UserError: missing, broken, or of an unknown architecture."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no config.json; is it a Hugging Face checkpoint folder?")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}); download the file again") from e
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in families.FAMILIES:
        raise UserError(
            f"{path}: unknown architecture {kind!r}; supported are {', '.join(sorted(families.FAMILIES))} "
            "(Qwen2/2.5, Llama 3, DeepSeek-LLM, Yi 1.5, Gemma 2, Mistral)"
        )
    # Asked of the file, because transformers fills in a base of its own where the file has none.
    if not any(isinstance(p, dict) and p.get("rope_theta") for p in (raw, raw.get("rope_parameters"))):
        raise UserError(f"{path} gives no rotary base; add the rope_theta that the checkpoint was trained with")
    if raw.get("quantization_config"):
        raise UserError(f"{path} is of a quantised checkpoint, which is not supported; use the float original")
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{path} could not be read as a {kind} config ({reason}); compare it with the original") from e


def tensor_files(folder: Path) -> dict[str, Path]:
    """HF tensor name → the safetensors file that holds it. Raises UserError for pickle-only or damaged folders."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            if not all(isinstance(f, str) and Path(f).name == f for f in weight_map.values()):
                raise ValueError("weight_map must give a file of this folder for each tensor")
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{index} is damaged ({e}); download the file again") from e
        missing = sorted({f for f in weight_map.values() if not (folder / f).is_file()})
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which its index names; download it again")
        return {name: folder / file for name, file in weight_map.items()}
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
        if pickled:
            raise UserError(
                f"{folder} holds only pickle weights ({pickled[0]}), which are never loaded; convert them to "
                "safetensors first (transformers: save_pretrained)"
            )
        raise UserError(f"{folder} holds no model*.safetensors; is the download complete?")
    found: dict[str, Path] = {}
    for file in files:
        with stored.open_tensors(file) as there:
            for name in there:
                if name in found:
                    raise UserError(f"tensor {name} stands in both {found[name].name} and {file.name}; remove one file")
                found[name] = file
    return found


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

    With a folder `param_cache` the parameters are taken from there when the checkpoint's files are still the same, else
    left there for the next time (see `models.param_cache`). Several processes do without it.

    Raises UserError: no such checkpoint, unknown architecture, missing, extra, misshapen, truncated or NaN tensors.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    mesh = make_mesh() if mesh is None else mesh
    folder = find_folder(name, revision, offline)
    hf = read_hf_config(folder)
    config = families.decoder_config(hf)
    names = families.FAMILIES[config.family].tensor_names(config)
    shapes = param_shapes(config, DTYPES[dtype])
    files = tensor_files(folder)
    _check_names(folder, config, names, files)

    def load() -> tuple[dict[str, jax.Array], str]:
        params, digests = _read(files, names, shapes, mesh)
        return params, _fingerprint(config, digests)

    if param_cache and processes.count() == 1:
        from mood_jax.models import param_cache as cached  # Orbax takes a second to import

        place = cached.entry(param_cache, folder, [files[t] for t in names], dtype)
        params, fingerprint = cached.restored(place, shapes, mesh, load)
    else:
        params, fingerprint = load()
    return Checkpoint(
        name=name,
        folder=folder,
        revision=revision,
        config=config,
        params=unflatten(params),
        mesh=mesh,
        dtype=dtype,
        fingerprint=fingerprint,
    )


def fingerprint_of(folder: Path) -> str:
    """The `fingerprint` of the checkpoint in a folder, from its files alone: no parameter is placed on a device.

    Raises UserError as `load_checkpoint` does for what config.json and the files' headers tell.
    """
    config = families.decoder_config(read_hf_config(folder))
    names = families.FAMILIES[config.family].tensor_names(config)
    shapes = param_shapes(config, jnp.float32)
    files = tensor_files(folder)
    _check_names(folder, config, names, files)
    digests = {}
    for file in sorted({files[tensor] for tensor in names}):
        with stored.open_tensors(file) as there:
            for tensor, path in names.items():
                if files[tensor] == file:
                    digests[path] = _checked(file, tensor, there, hf_shape(path, shapes[path].shape)).digest()
    return _fingerprint(config, digests)


def _read(
    files: Mapping[str, Path], names: Mapping[str, str], shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> tuple[dict[str, jax.Array], dict[str, str]]:
    """Every parameter on its devices, and the digest of its tensor, by path."""
    params: dict[str, jax.Array] = {}
    digests: dict[str, str] = {}
    by_file: dict[Path, list[str]] = {}
    for tensor in names:
        by_file.setdefault(files[tensor], []).append(tensor)
    for file, tensors in sorted(by_file.items()):
        waiting = 0
        with stored.open_tensors(file) as there:
            for tensor in tensors:
                path = names[tensor]
                found = _checked(file, tensor, there, hf_shape(path, shapes[path].shape))
                digests[path] = found.digest()
                params[path] = _place(found, shapes[path], mesh, path)
                waiting += found.size
                if waiting > IN_FLIGHT:
                    jax.block_until_ready(params[path])
                    waiting = 0
    return params, digests


def _checked(file: Path, tensor: str, there: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> StoredTensor:
    """The tensor of an open file. Raises UserError where it is not there, misshapen or no float."""
    if tensor not in there:
        raise UserError(f"{file} lacks the tensor {tensor}, which the index puts there; download it again")
    found = there[tensor]
    if found.shape != shape:
        raise UserError(
            f"{file.name}: tensor {tensor} has shape {found.shape}, and the config asks for {shape}; config.json and "
            "weights do not belong together"
        )
    if found.kind not in stored.DTYPES:
        raise UserError(
            f"{file.name}: tensor {tensor} is {found.kind}; quantised checkpoints are not supported, use the float "
            "original"
        )
    return found


def _check_names(folder: Path, config: DecoderConfig, names: Mapping[str, str], files: Mapping[str, Path]) -> None:
    missing = [n for n in names if n not in files]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder} lacks the tensor {missing[0]}{more}; the checkpoint is incomplete")
    extra = [n for n in files if n not in names and not n.endswith(DERIVED_SUFFIXES)]
    if config.tied and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        _check_tied_copy(files)
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{files[extra[0]].name} holds the tensor {extra[0]}{more}, for which a {config.family} decoder with this "
            "config has no place; config.json and weights do not belong together"
        )


def _check_tied_copy(files: Mapping[str, Path]) -> None:
    """A tied head that is stored nevertheless must be the embedding, or a reader would silently ignore it."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    with stored.open_tensors(files[head]) as a, stored.open_tensors(files[embedding]) as b:
        if a[head].kind not in stored.DTYPES or not a[head].equals(b[embedding]):
            raise UserError(
                "config.json ties the output head to the embedding, but the file holds another lm_head.weight; "
                "set tie_word_embeddings to false in config.json"
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
