"""HF checkpoints: found, checked, and streamed tensor by tensor from the safetensors file to its shard.

Strict: every tensor of the checkpoint fills exactly one parameter, every parameter is filled, shapes agree, nothing is
NaN. Pickle checkpoints are refused and remote code is never run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mood_jax.errors import UserError
from mood_jax.models import families
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes
from mood_jax.models.sharding import make_mesh, param_sharding

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
STORED = ("F64", "F32", "F16", "BF16")  # what a tensor may be in the file, in the words of safetensors
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
SAMPLE_BYTES = 1 << 16  # of each tensor, evenly spread, that enter the fingerprint
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
        with _open(file) as f:
            for name in f.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                if name in found:
                    raise UserError(f"tensor {name} stands in both {found[name].name} and {file.name}; remove one file")
                found[name] = file
    return found


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="numpy") as f:
            yield f
    except SafetensorError as e:
        raise UserError(f"{file} is truncated or damaged ({e}); download the file again") from e


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
) -> Checkpoint:
    """Loads a folder or hub id in `dtype` ("float32" or "bfloat16") onto `mesh` (default: the first device).

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

    params: dict[str, jax.Array] = {}
    digests: dict[str, str] = {}
    broken: dict[str, jax.Array] = {}
    by_file: dict[Path, list[str]] = {}
    for tensor in names:
        by_file.setdefault(files[tensor], []).append(tensor)
    for file, tensors in sorted(by_file.items()):
        with _open(file) as f:
            stored = set(f.keys())
            for tensor in tensors:
                if tensor not in stored:
                    raise UserError(f"{file} lacks the tensor {tensor}, which the index puts there; download it again")
                path = names[tensor]
                want = shapes[path]
                header = f.get_slice(tensor)
                if tuple(header.get_shape()) != hf_shape(path, want.shape):
                    raise UserError(
                        f"{file.name}: tensor {tensor} has shape {tuple(header.get_shape())}, and the config asks for "
                        f"{hf_shape(path, want.shape)}; config.json and weights do not belong together"
                    )
                if header.get_dtype() not in STORED:
                    raise UserError(
                        f"{file.name}: tensor {tensor} is {header.get_dtype()}; quantised checkpoints are not "
                        "supported, use the float original"
                    )
                value = f.get_tensor(tensor)
                digests[path] = _digest(value)
                host = value.astype(want.dtype).reshape(want.shape)
                params[path] = _place(host, mesh, path)
                broken[tensor] = _not_finite(params[path])
        _check_finite(broken)
        broken.clear()
    return Checkpoint(
        name=name,
        folder=folder,
        revision=revision,
        config=config,
        params=unflatten(params),
        mesh=mesh,
        dtype=dtype,
        fingerprint=_fingerprint(config, digests),
    )


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
    with _open(files["lm_head.weight"]) as a, _open(files["model.embed_tokens.weight"]) as b:
        if not np.array_equal(a.get_tensor("lm_head.weight"), b.get_tensor("model.embed_tokens.weight")):
            raise UserError(
                "config.json ties the output head to the embedding, but the file holds another lm_head.weight; "
                "set tie_word_embeddings to false in config.json"
            )


def _place(host: np.ndarray, mesh: Mesh, path: str) -> jax.Array:
    return jax.make_array_from_callback(host.shape, param_sharding(mesh, path, host.shape), lambda i: host[i])


@jax.jit
def _not_finite(x: jax.Array) -> jax.Array:
    return ~jnp.isfinite(x).all()


def _check_finite(broken: Mapping[str, jax.Array]) -> None:
    for tensor, flag in broken.items():
        if bool(flag):
            raise UserError(f"tensor {tensor} holds NaN or infinite values; download the checkpoint again")


def _digest(value: np.ndarray) -> str:
    """sha256 of dtype, shape and up to 64 KiB of the tensor's bytes, in 64 evenly spaced pieces."""
    raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    h = hashlib.sha256(f"{value.dtype} {value.shape} ".encode())
    if raw.size <= SAMPLE_BYTES:
        h.update(raw.data)
    else:
        piece = SAMPLE_BYTES // 64
        for start in np.linspace(0, raw.size - piece, 64).astype(np.int64):
            h.update(raw[start : start + piece].data)
    return h.hexdigest()


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
