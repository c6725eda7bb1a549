"""Changes to a checkpoint folder, and the line with which it is then refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mood_jax.errors import UserError
from mood_jax.models.checkpoint import load_checkpoint

EMBEDDING, HEAD, QUERY = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"


def edit(folder: Path, **tensors: np.ndarray | None) -> Path:
    """Replaces, adds or (None) removes tensors of model.safetensors; "." in a name is written "__"."""
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name, value in tensors.items():
        stored[name.replace("__", ".")] = value
    save_file({k: np.ascontiguousarray(v) for k, v in stored.items() if v is not None}, file, {"format": "pt"})
    return folder


def edit_config(folder: Path, remove: tuple[str, ...] = (), **fields) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))
    return folder


def refusal(*args, **kwargs) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(UserError) as e:
        load_checkpoint(*map(str, args), **({"dtype": "float32"} | kwargs))
    line = str(e.value)
    assert "\n" not in line
    assert len(line) < 700
    return line
