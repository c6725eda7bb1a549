"""Finding and loading checkpoints: the ways in that must work, what comes out, and what the hub may answer."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors as hub_errors
from safetensors.numpy import load_file

from mood_jax import parity
from mood_jax.errors import UserError
from mood_jax.models import checkpoint as ckpt
from mood_jax.models import families
from mood_jax.models.checkpoint import flatten, load_checkpoint, save_checkpoint
from mood_jax.models.decoder import param_shapes
from mood_jax.models.stored import SAMPLE_BYTES, digest
from scripts import torch_reference
from tests.models.corrupt import EMBEDDING, HEAD, QUERY, edit, edit_config, refusal
from tests.parity.hf_models import save, tiny

ROOT = Path(__file__).parents[2]
# httpx or httpx2, whichever the installed hub client stands on.
HTTP = importlib.import_module(hub_errors.HTTPError.__module__.partition(".")[0])
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1]]


# What must work


def test_shards_change_nothing(llama, tmp_path):
    model, _ = tiny("llama")
    save(model, tmp_path, shards=4)
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3
    one, many = (load_checkpoint(str(f), dtype="float32") for f in (llama, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
    assert one.fingerprint == many.fingerprint
    assert one.config == many.config
    (tmp_path / "model.safetensors.index.json").unlink()  # the shards alone say as much
    assert load_checkpoint(str(tmp_path), dtype="float32").fingerprint == one.fingerprint


def test_every_tensor_lands_in_its_parameter_unchanged(llama):
    checkpoint = load_checkpoint(str(llama), dtype="float32")
    stored = load_file(llama / "model.safetensors")
    ours = flatten(checkpoint.params)
    names = families.FAMILIES["llama"].tensor_names(checkpoint.config)
    assert set(names) == set(stored)
    assert sorted(names.values()) == sorted(ours)
    for tensor, path in names.items():
        np.testing.assert_array_equal(np.asarray(ours[path]).reshape(stored[tensor].shape), stored[tensor])
    assert {p: x.shape for p, x in ours.items()} == {p: x.shape for p, x in param_shapes(checkpoint.config).items()}
    assert checkpoint.config.n_params <= sum(x.size for x in stored.values()) <= checkpoint.config.n_params + 64 * 7


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stored_and_loaded_dtypes(llama, copy, stored, dtype):
    kinds = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
    original = load_file(llama / "model.safetensors")
    edit(copy, **{k: v.astype(kinds[stored]) for k, v in original.items()})
    checkpoint = load_checkpoint(str(copy), dtype=dtype)
    assert checkpoint.dtype == dtype
    assert {str(x.dtype) for x in jax.tree.leaves(checkpoint.params)} == {dtype}
    want = original[EMBEDDING].astype(kinds[stored]).astype(kinds[dtype])
    np.testing.assert_array_equal(np.asarray(checkpoint.params["embedding"]), want)


def test_default_dtype_is_bfloat16(llama):
    assert load_checkpoint(str(llama)).dtype == "bfloat16"
    assert "int4" in refusal(llama, dtype="int4")


def test_saved_checkpoints_are_read_by_transformers_with_the_same_logits(tmp_path, rng):
    for family in ("qwen2", "gemma2"):
        hf = parity.tiny_config(family)
        folder = tmp_path / family
        save_checkpoint(folder, hf, parity.random_params(families.decoder_config(hf), rng))
        ours = parity.states(load_checkpoint(str(folder), dtype="float32"), PROMPTS, jit=False)
        theirs = torch_reference.states(torch_reference.load(folder), PROMPTS)
        found = parity.compare(ours, theirs, parity.left_pad(PROMPTS)[1])
        assert parity.agrees(found, "float32"), (family, found)


def test_saving_a_parameter_without_a_place_is_refused(tmp_path, rng):
    hf = parity.tiny_config("gemma2")
    params = parity.random_params(families.decoder_config(hf), rng) | {"unembedding": np.zeros((2, 2))}
    with pytest.raises(UserError, match="unembedding"):
        save_checkpoint(tmp_path / "folder", hf, params)
    assert not (tmp_path / "folder").exists()


def test_a_saved_checkpoint_has_the_fingerprint_of_its_original(llama, tmp_path):
    original = load_checkpoint(str(llama), dtype="float32")
    save_checkpoint(tmp_path, ckpt.read_hf_config(llama), original.params)
    assert load_checkpoint(str(tmp_path), dtype="float32").fingerprint == original.fingerprint


def test_config_files_of_transformers_4(tmp_path):
    """Published checkpoints carry `rope_theta` and `rope_scaling`, and lack fields that came later."""
    for family in parity.TINY:
        hf = parity.tiny_config(family)
        raw = hf.to_dict()
        p = raw.pop("rope_parameters")
        raw["rope_theta"] = p.pop("rope_theta")
        raw["rope_scaling"] = p if p["rope_type"] != "default" else None
        for later in ("layer_types", "dtype", *(() if family in ("gemma2", "mistral_nemo") else ("head_dim",))):
            raw.pop(later, None)
        (tmp_path / "config.json").write_text(json.dumps(raw))
        assert families.decoder_config(ckpt.read_hf_config(tmp_path)) == families.decoder_config(hf), family
    scaling = {"type": "linear", "factor": 4.0}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": scaling}))
    rope = families.decoder_config(ckpt.read_hf_config(tmp_path)).rope
    assert (rope.kind, rope.factor, rope.theta) == ("linear", 4.0, 1e6)


def test_the_rotary_buffers_of_old_exports_are_passed_over(llama, copy):
    edit(copy, model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(8, np.float32))
    want = load_checkpoint(str(llama), dtype="float32").fingerprint
    assert load_checkpoint(str(copy), dtype="float32").fingerprint == want


def test_a_tied_head_that_is_stored_must_be_the_embedding(gemma, tmp_path):
    folder = Path(shutil.copytree(gemma, tmp_path / "copy"))
    embedding = load_file(gemma / "model.safetensors")[EMBEDDING]
    want = load_checkpoint(str(gemma), dtype="float32").fingerprint
    assert load_checkpoint(str(edit(folder, lm_head__weight=embedding)), dtype="float32").fingerprint == want
    line = refusal(edit(folder, lm_head__weight=embedding + 1e-3))
    assert HEAD in line
    assert "tie_word_embeddings" in line


# The fingerprint


def test_any_change_of_a_small_tensor_changes_the_fingerprint(llama, copy, rng):
    """Tensors of up to 64 KiB count whole, whatever the size of the change and wherever it is."""
    stored = load_file(llama / "model.safetensors")
    want = load_checkpoint(str(llama), dtype="float32").fingerprint
    small = [name for name, value in stored.items() if value.nbytes <= SAMPLE_BYTES]
    assert QUERY in small
    for name in (QUERY, "model.norm.weight", *rng.choice(small, 3)):
        value = stored[name].copy()
        at = rng.integers(0, value.size)
        value.reshape(-1)[at] = np.nextafter(value.reshape(-1)[at], np.float32(9))
        edit(copy, **{name: value})
        assert load_checkpoint(str(copy), dtype="float32").fingerprint != want, name
        edit(copy, **{name: stored[name]})
    assert load_checkpoint(str(copy), dtype="float32").fingerprint == want
    edit_config(copy, rms_norm_eps=2e-5)
    assert load_checkpoint(str(copy), dtype="float32").fingerprint != want


def test_large_tensors_are_sampled(rng):
    """Above 64 KiB a digest reads 64 pieces of 1 KiB. It sees training; its limit is one changed row."""
    value = rng.standard_normal((2048, 256), dtype=np.float32)  # 2 MiB
    want = digest(value)
    for rank in (1, 2048):  # a whole update, and one of low rank as LoRA makes them
        a, b = rng.standard_normal((2048, rank)), rng.standard_normal((rank, 256))
        assert digest(value + (1e-4 * a @ b).astype(np.float32)) != want
    seen = [digest(_with_row_changed(value, row)) != want for row in range(0, 2048, 67)]
    assert any(seen)
    assert not all(seen)
    assert digest(_with_row_changed(value, 0)) != want
    assert digest(_with_row_changed(value, 2047)) != want
    assert digest(value.reshape(256, 2048)) != want
    assert digest(value.view(np.int32)) != want


def _with_row_changed(value: np.ndarray, row: int) -> np.ndarray:
    changed = value.copy()
    changed[row] += 1
    return changed


def test_the_fingerprint_does_not_depend_on_the_loaded_dtype_or_name(llama, copy):
    prints = {load_checkpoint(str(f), dtype=d).fingerprint for f in (llama, copy) for d in ckpt.DTYPES}
    assert len(prints) == 1


# Hub and cache


def hub_cache(root: Path, folder: Path, name: str = "some-org/tiny-llama", revision: str = "main") -> str:
    """Lays a checkpoint into a cache as huggingface_hub does; returns the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / revision).write_text(commit)
    return commit


LOAD = """
import sys
sys.modules["torch"] = None  # importing it is an ImportError from here on
from mood_jax.errors import UserError
from mood_jax.models.checkpoint import find_folder, load_checkpoint
found = load_checkpoint("some-org/tiny-llama", dtype="float32", offline=True)
print(found.folder, found.fingerprint)
print(load_checkpoint("some-org/tiny-llama", dtype="float32", revision="main").fingerprint)  # the hub does not answer
for arguments in (("some-org/other",), ("some-org/other", None, True), ("some-org/tiny-llama", "v2"),
                  ("some-org/tiny-llama", "v2", True)):
    try:
        find_folder(*arguments)
    except UserError as e:
        print("refused:", e)
assert sys.modules["torch"] is None
"""


def test_the_local_cache_serves_without_network_and_without_torch(llama, tmp_path):
    commit = hub_cache(tmp_path, llama)
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=os.environ | unreachable, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, *refused = done.stdout.splitlines()
    want = load_checkpoint(str(llama), dtype="float32").fingerprint
    assert first.split() == [str(tmp_path / "models--some-org--tiny-llama" / "snapshots" / commit), want]
    assert second == want
    assert len(refused) == 4, refused
    for line in refused:
        assert line.startswith("refused: some-org/")
        assert "not in the local hub cache" in line


def hub_error(kind: type[Exception], message: str = "Client Error") -> Exception:
    if issubclass(kind, hub_errors.HfHubHTTPError):
        request = HTTP.Request("GET", "https://huggingface.co/api/models/some-org/m")
        return kind(message, response=HTTP.Response(403, request=request))
    return kind(message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (hub_error(hub_errors.GatedRepoError), ["some-org/m is gated", "hf auth login"]),
        (hub_error(hub_errors.RepositoryNotFoundError), ["no hub model named some-org/m", "spelling"]),
        (hub_error(hub_errors.RevisionNotFoundError), ["some-org/m has no revision 'v9'"]),
        (hub_error(hub_errors.HfHubHTTPError, "503\nService Unavailable"), ["could not be reached (503)", "network"]),
        (hub_error(hub_errors.LocalEntryNotFoundError, "no snapshot"), ["not in the local hub cache"]),
        (hub_error(hub_errors.OfflineModeIsEnabled), ["not in the local hub cache"]),
        (HTTP.ConnectError("no route to host"), ["could not be reached (no route to host)"]),
        (HTTP.ReadTimeout("timed out"), ["could not be reached (timed out)"]),
        (ConnectionError("refused"), ["could not be reached (refused)"]),
        (PermissionError("cache is read-only"), ["cache is read-only"]),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_hub_errors_become_one_line(monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    line = refusal("some-org/m", revision="v9")
    for word in words:
        assert word in line


def test_the_hub_is_asked_for_the_revision_and_never_for_pickle(monkeypatch, llama):
    asked = {}

    def download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = load_checkpoint("some-org/m", revision="abc", dtype="float32")
    assert (checkpoint.name, checkpoint.revision, checkpoint.folder) == ("some-org/m", "abc", llama)
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("some-org/m", "abc", False)
    from fnmatch import fnmatch

    wanted = ["config.json", "generation_config.json", "model.safetensors", "model-00001-of-00004.safetensors"]
    wanted += ["model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    wanted += ["special_tokens_map.json", "chat_template.jinja", "chat_template.json", "tool_use.jinja"]
    wanted += ["additional_chat_templates/rag.jinja", "adapter_config.json", "modules.json", "hf_quant_config.json"]
    unwanted = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth"]
    unwanted += [
        "adapter_model.safetensors",
        "adapter_model.bin",
        "consolidated.safetensors",
        "modeling_custom.py",
        "original/params.json",
        "model.gguf",
    ]
    for file in wanted + unwanted:
        assert any(fnmatch(file, p) for p in asked["allow_patterns"]) == (file in wanted), file


def test_names_that_cannot_be(llama):
    assert "no such folder: /no/such/folder" in refusal("/no/such/folder")
    assert "no such folder: no-such-folder" in refusal("no-such-folder")
    assert "no such folder: ./a/b" in refusal("./a/b")
    assert "is neither a folder nor a valid hub id" in refusal("some org/with space")
    line = refusal(llama, revision="v2")
    assert "local folder" in line
    assert "leave revision out" in line
