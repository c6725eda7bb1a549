"""A checkpoint's folder: found, and which of its files are the weights.

The rule is transformers': model.safetensors before model.safetensors.index.json; variants (model.fp16.safetensors) and
consolidated.safetensors are passed over. Where more than one set of weights could be meant, it is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mood_jax.errors import UserError
from mood_jax.models.stored import StoredTensor

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
    "*.jinja",
    "additional_chat_templates/*",
    "processor_config.json",
    # Small files that say the weights are not the model: see `refuse_foreign`.
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "modules.json",
    "config_sentence_transformers.json",
]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
VARIANT = re.compile(r"model\.[^.]+\.safetensors|model-\d+-of-\d+\.[^.]+\.safetensors")
ADAPTER = re.compile(r"(?i)(.*[_.-])?(adapters?|lora)([_.-].*)?\.(json|safetensors|bin|npz|pt|pth|gguf)")
QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
EMBEDDER = ("modules.json", "config_sentence_transformers.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Buffers that old exports carry and that are functions of the config: the only tensors that may be left over.
DERIVED = re.compile(
    r"(.*\.)?(rotary_emb\.(original_)?inv_freq|rotary_emb\._?(cos|sin)_cached|(self_)?attn\.(masked_bias|bias)|"
    r"position_ids|causal_mask)"
)
HEAD = "lm_head.weight"


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


def refuse_foreign(folder: Path) -> None:
    """Raises UserError for files that make another model of the weights: adapters, quantisers, embedding modules."""
    names = sorted(p.name for p in folder.iterdir())
    if adapters := [n for n in names if ADAPTER.fullmatch(n)]:
        raise UserError(
            f"{folder} holds {adapters[0]}, an adapter that is not part of the weights; merge it first (peft: "
            "merge_and_unload(), then save_pretrained()) and give the merged folder"
        )
    if found := [n for n in names if n in QUANTISED]:
        raise UserError(
            f"{folder} holds {found[0]}: a quantised checkpoint, which is not supported; use the float original"
        )
    if found := [n for n in names if n in EMBEDDER]:
        raise UserError(
            f"{folder} holds {found[0]}: an embedding model (sentence-transformers); use the language model that it "
            "was made from"
        )


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None, tuple[str, ...]]:
    """The safetensors files that are the weights, the index they must agree with (tensor → file), and notes.

    Raises UserError: no weights, more than one set of them, shards missing, or a stale or damaged index.
    """
    others = sorted(p.name for p in folder.glob("model*.safetensors") if p.name != SINGLE and p.is_file())
    shards = [n for n in others if not VARIANT.fullmatch(n)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], None, _beside_single(folder, shards)
    if (folder / INDEX).is_file():
        index = read_index(folder / INDEX)
        return _indexed(folder, index, shards)
    if not shards:
        raise UserError(_no_weights(folder, others))
    sets = _sets(shards)
    if len(sets) > 1 or None in sets:
        raise UserError(
            f"{folder} holds {shards[0]} and {shards[-1]}, which are not of one set, and no {INDEX}; keep the files of "
            f"one set alone (a single file is called {SINGLE})"
        )
    ((total, have),) = sets.items()
    if total is not None and len(have) < total:
        lacking = [k for k in range(1, total + 1) if k not in have]
        raise UserError(f"{folder} lacks shard {lacking[0]} of {total}; download it again")
    return [folder / n for n in shards], None, ()


def _beside_single(folder: Path, shards: Sequence[str]) -> tuple[str, ...]:
    """Notes on an index beside model.safetensors. Raises UserError where shards lie there too."""
    if shards:
        raise UserError(
            f"{folder} holds two sets of weights, {SINGLE} and {shards[0]}{_more(shards)}; remove one of them "
            f"(transformers would take {SINGLE})"
        )
    if not (folder / INDEX).is_file():
        return ()
    try:
        files = set(read_index(folder / INDEX).values())
    except UserError:
        return (f"{INDEX} is damaged and not used: {SINGLE} lies beside it",)
    stale = sorted(files - {SINGLE})
    return (f"{INDEX} is stale: it names {stale[0]}, which is not there; {SINGLE} is used",) if stale else ()


def _indexed(
    folder: Path, index: dict[str, str], shards: Sequence[str]
) -> tuple[list[Path], dict[str, str], tuple[str, ...]]:
    named = sorted(set(index.values()))
    if missing := [n for n in named if not (folder / n).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which its index names; download it again")
    totals = _sets(named)
    for total, have in totals.items():
        if total is not None and (len(totals) > 1 or len(have) != total):
            raise UserError(
                f"{folder / INDEX} is stale: it names {len(have)} of {total} shards"
                + (" and files of another set" if len(totals) > 1 else "")
                + "; download the checkpoint again into an empty folder"
            )
    left = [n for n in shards if n not in named]
    for total, have in _sets(left).items():
        if total is not None and len(have) == total:
            raise UserError(
                f"{folder} holds two sets of weights, {named[0]}{_more(named)} of its index and "
                f"{left[0]}{_more(left)}; remove one of them (transformers would take those of the index)"
            )
    notes = (f"{left[0]}{_more(left)} is not in {INDEX} and not used",) if left else ()
    return [folder / n for n in named], index, notes


def read_index(path: Path) -> dict[str, str]:
    """HF tensor name → file name. Raises UserError where the index is damaged or names files of other folders."""
    try:
        weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if not weight_map or not all(isinstance(f, str) and Path(f).name == f for f in weight_map.values()):
            raise ValueError("weight_map must give a file of this folder for each tensor")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path} is damaged ({e}); download the file again") from e
    return weight_map


def check_index(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    """Raises UserError where the files hold other tensors than their index says.

    A tied head and derived buffers, which some exports name and do not store, are let through.
    """
    remedy = "the index is stale: download the checkpoint again"
    for name, file in index.items():
        free = name == HEAD or name.endswith(f".{HEAD}") or DERIVED.fullmatch(name)
        if name in tensors and tensors[name].file.name != file:
            raise UserError(f"{INDEX} puts {name} in {file}, and {tensors[name].file.name} holds it; {remedy}")
        if name not in tensors and not free:
            raise UserError(f"{INDEX} puts {name} in {file}, which lacks it; {remedy}")
    for name, tensor in tensors.items():
        if name not in index and not DERIVED.fullmatch(name):
            raise UserError(f"{tensor.file.name} holds {name}, which {INDEX} does not name; {remedy}")


def _sets(names: Sequence[str]) -> dict[int | None, set[int]]:
    """Total of the set → numbers of its shards; None for names of no set."""
    sets: dict[int | None, set[int]] = {}
    for name in names:
        match = SHARD.fullmatch(name)
        sets.setdefault(int(match[2]) if match else None, set()).add(int(match[1]) if match else 0)
    return sets


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _no_weights(folder: Path, variants: Sequence[str]) -> str:
    """What to say of a folder without weights that could be loaded, by what lies there instead."""
    if variants:
        return (
            f"{folder} holds no {SINGLE}, only the variant {variants[0]}; if it is meant, save it under the plain name "
            "(transformers: from_pretrained(variant=…), then save_pretrained())"
        )
    if (folder / "consolidated.safetensors").is_file():
        return (
            f"{folder} holds only consolidated.safetensors, which names and orders its numbers otherwise; use the "
            "checkpoint in Hugging Face form"
        )
    if pickled := sorted(p.name for pattern in PICKLED for p in folder.glob(pattern)):
        return (
            f"{folder} holds only pickle weights ({pickled[0]}), which are never loaded; convert them to safetensors "
            "first (transformers: save_pretrained)"
        )
    if gguf := sorted(p.name for p in folder.glob("*.gguf")):
        return f"{folder} holds only GGUF weights ({gguf[0]}), which are not supported; use the float original"
    inner = sorted({p.parent for p in folder.glob("*/model*.safetensors")})
    if inner:
        return f"{folder} holds no model*.safetensors, and {inner[0]} does; give that folder, with its config.json"
    if stray := sorted(p.name for p in folder.glob("*.safetensors")):
        return (
            f"{folder} holds no model*.safetensors but {stray[0]}{_more(stray)}; if these are the weights, save the "
            f"model again with transformers, as {SINGLE}"
        )
    return f"{folder} holds no model*.safetensors; is the download complete? (GGUF and pickle are not supported)"
