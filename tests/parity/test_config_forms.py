"""States and logits against transformers for what configs of older versions and of siblings say in other words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

import mood_jax as mj
from mood_jax import parity
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.models import layers
from mood_jax.models.checkpoint import Checkpoint, load_checkpoint
from mood_jax.models.families.common import ACTIVATIONS, activation
from scripts import torch_reference
from tests.models.corrupt import edit_config
from tests.parity.hf_models import save, tiny

LENGTHS = (24, 17, 5)


def agrees(folder: Path, rng: np.random.Generator, lengths: tuple[int, ...] = LENGTHS) -> Checkpoint:
    """Compares every site and the logits, in float32, with what transformers loads from the folder."""
    checkpoint = load_checkpoint(str(folder), dtype="float32")
    prompts = [rng.integers(0, checkpoint.config.vocab_size, n).tolist() for n in lengths]
    ours = parity.states(checkpoint, prompts, jit=False)
    theirs = torch_reference.states(torch_reference.load(folder), prompts)
    found = parity.compare(ours, theirs, parity.left_pad(prompts)[1])
    assert parity.agrees(found, "float32"), found
    return checkpoint


@pytest.mark.parametrize("name", sorted(ACT2FN))
def test_an_activation_is_taken_if_and_only_if_it_is_the_same_function(name):
    """Over [−12, 12]; the exact and the tanh form of GELU differ by 5e-4, two forms of one by 2e-6."""
    if name in ("prelu", "xielu"):  # they have parameters of their own
        assert name not in ACTIVATIONS
        return
    x = np.concatenate([np.linspace(-12, 12, 4001), np.random.default_rng(0).normal(size=999)]).astype(np.float32)
    want = ACT2FN[name](torch.from_numpy(x)).detach().numpy()
    if name in ACTIVATIONS:
        ours = np.asarray(layers.activate(jnp.asarray(x), activation(name)))
        np.testing.assert_allclose(ours, want, atol=2e-6)
        return
    with pytest.raises(UserError, match=name):
        activation(name)
    for kind in set(ACTIVATIONS.values()):
        assert np.abs(np.asarray(layers.activate(jnp.asarray(x), kind)) - want).max() > 1e-5, kind


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2"])
def test_the_forms_of_gelu_in_a_model(family, tmp_path, seed, rng):
    field = "hidden_activation" if family == "gemma2" else "hidden_act"
    folder = save(tiny(family, seed)[0], tmp_path)
    for name in ("gelu_new", "gelu_fast", "gelu_python"):
        agrees(edit_config(folder, **{field: name}), rng)


SCALINGS: list[dict[str, Any] | None] = [
    None,
    {},
    {"type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 3.7},
    {"type": "dynamic", "factor": 1},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_llama_2_without_a_rotary_base(scaling, tmp_path, seed, rng):
    folder = save(tiny("deepseek", seed)[0], tmp_path)
    edit_config(folder, ("rope_parameters",), rope_scaling=scaling, max_position_embeddings=24)
    assert any("10,000" in note for note in agrees(folder, rng).notes)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2"])
@pytest.mark.parametrize("old", [True, False])
def test_dynamic_scaling_up_to_the_context_and_not_beyond(family, old, tmp_path, seed, rng):
    folder = save(tiny(family, seed)[0], tmp_path)
    scaling = {"rope_type": "dynamic", "factor": float(rng.uniform(1, 9))}
    fields: dict[str, Any] = {"rope_theta": 7e3, "rope_scaling": scaling}
    if not old:
        fields = {"rope_parameters": scaling | {"rope_theta": 7e3}}
    edit_config(folder, ("rope_parameters",) if old else (), max_position_embeddings=20, **fields)
    checkpoint = agrees(folder, rng, (20, 19, 3))
    assert any("20 tokens" in note for note in checkpoint.notes)
    ids = rng.integers(0, checkpoint.config.vocab_size, 21).tolist()
    with pytest.raises(UserError, match="longer than 20"):
        parity.states(checkpoint, [ids], jit=False)
    model = Model(checkpoint, None)  # type: ignore[arg-type]
    tokens = jnp.asarray([ids])
    with pytest.raises(UserError, match="longer than 20"):
        mj.forward(model, tokens, tokens >= 0)
    plain = edit_config(folder, ("rope_scaling",), rope_parameters={"rope_type": "default", "rope_theta": 7e3})
    assert load_checkpoint(str(plain), dtype="float32").fingerprint == checkpoint.fingerprint


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    "types", [(SLIDING, FULL, SLIDING), (FULL, SLIDING, SLIDING), (FULL,) * 3, (SLIDING,) * 3, None]
)
@pytest.mark.parametrize("window", [3, 23])
def test_mistral_with_layer_types(types, window, tmp_path, seed, rng):
    """transformers makes a Ministral of it, whose attention differs by the windows alone."""
    folder = save(tiny("mistral", seed)[0], tmp_path)
    edit_config(folder, layer_types=types, sliding_window=window)
    config = agrees(folder, rng).config
    assert config.family == "mistral"
    assert config.windows == tuple(window if t == SLIDING else None for t in types or (SLIDING,) * 3)


def test_attention_that_is_not_causal_would_be_another_model(tmp_path, seed, rng):
    folder = edit_config(save(tiny("llama", seed)[0], tmp_path), is_causal=False)
    with pytest.raises(UserError, match="is_causal"):
        load_checkpoint(str(folder), dtype="float32")
    agrees(edit_config(folder, is_causal=True), rng)
