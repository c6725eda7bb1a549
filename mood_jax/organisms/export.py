"""An organism as an HF folder, with its spec and its realised truth beside the weights, bound to them by hashes.

All identities of a run share the weights: the folder is a checkpoint of the first of them, and `export_identity` makes
one of any other, which differs in the begin-of-sequence token alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from mood_jax.artifacts import write_bytes
from mood_jax.errors import UserError
from mood_jax.models.checkpoint import save_checkpoint
from mood_jax.organisms.grammar import HERE
from mood_jax.organisms.spec import Identity, load_spec
from mood_jax.organisms.tokenizer import as_transformers, identity_mark

WEIGHTS = HERE / "weights"
SHIPPED = WEIGHTS / "default"
HASHED = ("model.safetensors", "tokenizer.json", "spec.yaml")
FORMAT = 2


def organism_folder(name: str) -> Path:
    """The folder of a shipped organism by its name, or any exported organism's. UserError where there is none."""
    shipped = sorted(p.name for p in WEIGHTS.iterdir() if (p / "spec.yaml").is_file())
    folder = WEIGHTS / name if name in shipped else Path(name)
    if not (folder / "spec.yaml").is_file():
        raise UserError(
            f"{name} is no organism: it holds no spec.yaml; give an exported folder or one of {', '.join(shipped)}"
        )
    return folder


def export(folder: Path, params: Any, hf: Any, tokenizer: Tokenizer, spec_path: Path) -> None:
    """Writes config.json, model.safetensors (bfloat16), the tokenizer with its chat template, generation_config.json
    and spec.yaml. The generation config names the EOS and nothing of sampling."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, hf, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    as_transformers(tokenizer, hf.max_position_embeddings).save_pretrained(folder)
    generation = {"bos_token_id": hf.bos_token_id, "eos_token_id": hf.eos_token_id, "pad_token_id": hf.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(spec_path, folder / "spec.yaml")


def export_identity(organism: Path, identity: str, folder: Path) -> Path:
    """One identity of an exported organism as a checkpoint of its own: (folder). UserError for an unknown identity."""
    spec = load_spec(organism / "spec.yaml")
    index = spec.index(identity)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(organism / "tokenizer.json"))
    as_transformers(tokenizer, spec.size("max_positions"), index).save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((organism / name).read_text(encoding="utf-8"))
        content["bos_token_id"] = tokenizer.token_to_id(identity_mark(index))
        write_bytes(folder / name, (json.dumps(content, indent=2) + "\n").encode())
    write_bytes(folder / "model.safetensors", (organism / "model.safetensors").read_bytes())
    return folder


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files that the realised truth belongs to."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in HASHED}


def write_realised(folder: Path, truth: dict[str, Any]) -> None:
    """Writes realised.json with the hashes of what it was measured on."""
    text = json.dumps({"format": FORMAT, "sha256": file_hashes(folder), **truth}, indent=1)
    write_bytes(folder / "realised.json", (text + "\n").encode())


def planted_truth(folder: Path) -> tuple[Identity, dict[str, Any]] | None:
    """The first identity of an exported organism, whose checkpoint the folder is, and its realised truth; None where
    the folder is no organism's. UserError as of `read_realised`."""
    if not (folder / "spec.yaml").is_file():
        return None
    identity = load_spec(folder / "spec.yaml").identities[0]
    return identity, read_realised(folder)["identities"][identity.name]


def read_realised(folder: Path) -> dict[str, Any]:
    """The realised truth of an exported organism. UserError when it is missing or belongs to other files."""
    path = folder / "realised.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no realised.json; export the organism with scripts/train_organism.py")
    truth = json.loads(path.read_text(encoding="utf-8"))
    if truth.get("format") != FORMAT:
        raise UserError(f"{path} is of format {truth.get('format')!r}; train and export the organism again")
    for name, digest in file_hashes(folder).items():
        if truth["sha256"].get(name) != digest:
            raise UserError(f"{path} was measured on another {name}; train and export the organism again")
    return truth
