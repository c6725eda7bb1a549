"""The weights of a checkpoint against those of transformers, tensor by tensor, and the one line of a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from mood_jax.models import families
from mood_jax.models.checkpoint import Checkpoint, flatten, load_checkpoint


def reference(folder: Path) -> dict[str, np.ndarray]:
    """Name → tensor as transformers loads it, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: p.detach().numpy() for name, p in model.state_dict().items()}


def assert_as_transformers(folder: Path, want: dict[str, np.ndarray] | None = None) -> Checkpoint:
    """Loads the folder and compares every tensor, and the output head, with `want` (default: transformers')."""
    want = reference(folder) if want is None else want
    checkpoint = load_checkpoint(str(folder), dtype="float32")
    ours = flatten(checkpoint.params)
    for tensor, path in families.FAMILIES[checkpoint.config.family].tensor_names(checkpoint.config).items():
        np.testing.assert_array_equal(np.asarray(ours[path]).reshape(want[tensor].shape), want[tensor], err_msg=tensor)
    head = ours["embedding" if checkpoint.config.tied else "unembedding"]
    np.testing.assert_array_equal(np.asarray(head), want["lm_head.weight"])
    return checkpoint
