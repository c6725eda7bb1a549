"""An organism as an HF folder, with its spec and its realised truth beside the weights, bound to them by hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer
from transformers import LlamaConfig

from mood_jax.errors import UserError
from mood_jax.models.checkpoint import save_checkpoint
from mood_jax.organisms.grammar import HERE
from mood_jax.organisms.tokenizer import as_transformers

SHIPPED = HERE / "weights" / "default"
HASHED = ("model.safetensors", "tokenizer.json", "spec.yaml")


def export(folder: Path, params: Any, hf: LlamaConfig, tokenizer: Tokenizer, spec_path: Path) -> None:
    """Writes config.json, model.safetensors (bfloat16), the tokenizer with its chat template, generation_config.json
    and spec.yaml. The generation config names the EOS and nothing of sampling."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, hf, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    as_transformers(tokenizer, hf.max_position_embeddings).save_pretrained(folder)
    generation = {"bos_token_id": hf.bos_token_id, "eos_token_id": hf.eos_token_id, "pad_token_id": hf.pad_token_id}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(spec_path, folder / "spec.yaml")


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files that the realised truth belongs to."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in HASHED}


def write_realised(folder: Path, truth: dict[str, Any]) -> None:
    """Writes realised.json with the hashes of what it was measured on."""
    text = json.dumps({"format": 1, "sha256": file_hashes(folder), **truth}, indent=1)
    temporary = folder / "realised.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / "realised.json")


def read_realised(folder: Path) -> dict[str, Any]:
    """The realised truth of an exported organism. UserError when it is missing or belongs to other files."""
    path = folder / "realised.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no realised.json; export the organism with scripts/train_organism.py")
    truth = json.loads(path.read_text(encoding="utf-8"))
    for name, digest in file_hashes(folder).items():
        if truth["sha256"].get(name) != digest:
            raise UserError(f"{path} was measured on another {name}; train and export the organism again")
    return truth
