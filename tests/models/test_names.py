"""Tensor names that differ by a wrapper's prefix, two tensors of one place, old buffers, and tied heads."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mood_jax import parity
from mood_jax.models.checkpoint import load_checkpoint
from mood_jax.models.folder import SINGLE
from scripts import torch_reference
from tests.models.corrupt import EMBEDDING, HEAD, QUERY, edit, edit_config, refusal
from tests.models.same import assert_as_transformers, reference

WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "language_model.", "transformer.", "_fsdp_wrapped_module.")
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


@pytest.fixture(params=["llama", "gemma"])
def folder(request, tmp_path) -> Path:
    """An untied and a tied checkpoint."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "copy"))


def renamed(folder: Path, rename) -> Path:
    held = {rename(n): x for n, x in load_file(folder / SINGLE).items()}
    save_file(held, folder / SINGLE, {"format": "pt"})
    return folder


def test_every_prefix_and_pair_of_prefixes(folder):
    want = reference(folder)
    plain = load_file(folder / SINGLE)
    fingerprint = load_checkpoint(str(folder), dtype="float32").fingerprint
    for a, b, inner in product(("", *WRAPPERS), ("", "module.", "_orig_mod."), (False, True)):
        save_file(plain, folder / SINGLE, {"format": "pt"})
        renamed(folder, lambda n, w=a + b, i=inner: w + (n.removeprefix("model.") if i else n))
        checkpoint = assert_as_transformers(folder, want)
        assert checkpoint.fingerprint == fingerprint
        (note,) = checkpoint.notes or (None,)
        assert (note is None) == (a + b == "" and not inner)
    # words of a wrapper within a name, as torch.compile and FSDP leave them
    save_file(plain, folder / SINGLE, {"format": "pt"})
    renamed(
        folder, lambda n: n.replace("self_attn.", "_orig_mod.self_attn.").replace("mlp.", "_fsdp_wrapped_module.mlp.")
    )
    assert assert_as_transformers(folder, want).fingerprint == fingerprint


def test_an_inner_model_is_what_transformers_loads(folder):
    """Saved without its prefix; without its head as well, it is complete only where the head is tied."""
    want = reference(folder)
    tied = HEAD not in load_file(folder / SINGLE)
    renamed(folder, lambda n: n.removeprefix("model."))
    assert_as_transformers(folder)
    edit(folder, **{HEAD: None} if not tied else {})
    if tied:
        assert_as_transformers(folder, want)
    else:
        line = refusal(folder)
        assert HEAD in line
        assert "tie_word_embeddings" in line


@pytest.mark.parametrize("second", [QUERY.removeprefix("model."), f"_orig_mod.{QUERY}", f"module.{QUERY}"])
def test_two_tensors_of_one_place_are_both_named(folder, second):
    line = refusal(edit(folder, **{second: load_file(folder / SINGLE)[QUERY]}))
    assert QUERY in line
    assert second in line


def test_prefixes_of_two_models(folder):
    renamed(folder, lambda n: n.replace("model.layers.1.", "language_model.layers.1."))
    assert "more than one way" in refusal(folder)


BUFFERS = (
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "rotary_emb._cos_cached",
    "self_attn.masked_bias",
    "self_attn.bias",
)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_old_buffers_are_passed_over(folder, prefix):
    want = load_checkpoint(str(folder), dtype="float32").fingerprint
    renamed(folder, lambda n: prefix + n)
    places = [f"{prefix}model.layers.{i}.self_attn." for i in range(3)] + [
        f"{prefix}model.layers.0.",
        f"{prefix}model.",
    ]
    kinds = (np.float32, ml_dtypes.bfloat16, np.uint8, np.bool_)
    names = [p + b.removeprefix("self_attn.") for p, b in product(places, BUFFERS) if "bias" not in b or "attn" in p]
    edit(folder, **{n: np.ones((1, 4), kinds[k % 4]) for k, n in enumerate(names)})
    assert load_checkpoint(str(folder), dtype="float32").fingerprint == want


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "merge_and_unload"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "merge_and_unload"),
        ("model.layers.0.mlp.up_proj.qweight", "quantised"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "quantised"),
        ("score.weight", "reward"),
        ("v_head.summary.weight", "reward"),
        ("vision_tower.blocks.0.weight", "multimodal"),
        ("model.layers.0.self_attn.qkv_proj.weight", "another layout"),
        ("model.layers.0.self_attn.q_norm.weight", "no place"),
    ],
)
def test_what_has_no_place_is_named_for_what_it_is(copy, name, word):
    line = refusal(edit(copy, **{name: np.ones((2, 2), np.float32)}))
    assert name in line
    assert word in line


@pytest.mark.parametrize("stored", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("head", ["float64", "float32", "float16", "bfloat16"])
def test_a_tied_head_of_another_dtype_is_what_transformers_reads(gemma, tmp_path, stored, head):
    folder = Path(shutil.copytree(gemma, tmp_path / "copy"))
    embedding = load_file(folder / SINGLE)[EMBEDDING].astype(np.dtype(stored))
    value = embedding.astype(np.dtype(head))
    edit(folder, **{EMBEDDING: embedding, HEAD: value})
    checkpoint = assert_as_transformers(folder)
    equal = np.array_equal(value.astype(np.float32), embedding.astype(np.float32))
    assert checkpoint.config.tied == equal
    assert bool(checkpoint.notes) == (not equal)
    for dtype in ("float32", "bfloat16"):
        assert load_checkpoint(str(folder), dtype=dtype).fingerprint == checkpoint.fingerprint
    value[3, 5] += 1
    line = refusal(edit(folder, **{HEAD: value}))
    assert "tie_word_embeddings to false" in line
    assert_as_transformers(edit_config(folder, tie_word_embeddings=False))  # the remedy


def test_a_tied_model_that_stores_its_head_alone(gemma, tmp_path):
    folder = Path(shutil.copytree(gemma, tmp_path / "copy"))
    renamed(folder, lambda n: HEAD if n == EMBEDDING else n)
    checkpoint = assert_as_transformers(folder)
    ours = parity.states(checkpoint, PROMPTS, jit=False)
    theirs = torch_reference.states(torch_reference.load(folder), PROMPTS)
    assert parity.agrees(parity.compare(ours, theirs, parity.left_pad(PROMPTS)[1]), "float32")
