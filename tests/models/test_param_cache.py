"""The cache of converted parameters: the same bytes and fingerprint, or an entry made again (meshes: test_sharding)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mood_jax.models import checkpoint as ckpt
from mood_jax.models import param_cache
from mood_jax.models.checkpoint import Checkpoint, load_checkpoint
from mood_jax.models.stored import digest
from tests.models.corrupt import QUERY, edit, edit_config
from tests.parity.hf_models import save, tiny


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """One entry each time that HF files are read."""
    calls, inner = [], ckpt._read
    monkeypatch.setattr(ckpt, "_read", lambda *a: (calls.append(1), inner(*a))[1])
    return calls


def same(a: Checkpoint, b: Checkpoint) -> None:
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    jax.tree.map(lambda x, y: np.testing.assert_equal((x.dtype, x.sharding), (y.dtype, y.sharding)), a.params, b.params)
    assert (a.fingerprint, a.dtype, a.config) == (b.fingerprint, b.dtype, b.config)


def entries(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir())


def test_an_entry_per_checkpoint_and_dtype(copy, tmp_path, read, capsys):
    cache = tmp_path / "cache"
    for n, dtype in enumerate(("float32", "bfloat16"), 1):
        plain = load_checkpoint(str(copy), dtype=dtype)
        for _ in range(2):
            same(plain, load_checkpoint(str(copy), dtype=dtype, param_cache=cache))
        assert len(read) == 2 * n
        assert len(entries(cache)) == n

    # other weights, the same weights written later, and another config
    before = load_checkpoint(str(copy), dtype="float32", param_cache=str(cache))
    query = load_file(copy / "model.safetensors")[QUERY]
    changed = load_checkpoint(str(edit(copy, **{QUERY: query + 1})), dtype="float32", param_cache=str(cache))
    assert changed.fingerprint != before.fingerprint
    np.testing.assert_array_equal(changed.params["block_1"]["attention"]["q"].reshape(query.shape), query + 1)
    os.utime(copy / "model.safetensors", ns=(0, 1))
    edit_config(copy, rms_norm_eps=2e-5)
    assert load_checkpoint(str(copy), dtype="float32", param_cache=cache).config.norm_eps == 2e-5
    assert len(entries(cache)) == 4
    assert capsys.readouterr().err == ""


def keeping_times(file: Path, change) -> None:
    """Changes a file and sets size and time of the last change back, as rsync -t and reproducible images do."""
    before = file.stat()
    change()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["replaced", "one number", "a row that no sample sees", "another shard"])
def test_other_weights_of_equal_size_and_time_are_read(tmp_path, how, dtype, rng):
    """Against loading without a cache; "a row" also keeps the fingerprint, which is of a sample."""
    shards = 2 if how == "another shard" else 1
    folder = save(tiny("llama", seed=0, hidden_size=128)[0], tmp_path / "folder", shards)
    file = sorted(folder.glob("model*.safetensors"))[-1]
    before = load_checkpoint(str(folder), dtype=dtype, param_cache=tmp_path / "cache")
    tensors = load_file(file)

    def change() -> None:
        if how in ("replaced", "another shard"):
            other = save(tiny("llama", seed=1, hidden_size=128)[0], tmp_path / "other", shards)
            shutil.copyfile(other / file.name, file)
            return
        if how == "one number":
            tensors["model.norm.weight"][int(rng.integers(128))] += 1
        else:
            value = tensors["model.embed_tokens.weight"]
            rows = [r for r in range(len(value)) if digest(_with_row(value, r)) == digest(value)]
            tensors["model.embed_tokens.weight"] = _with_row(value, int(rng.choice(rows)))
        save_file(tensors, file, {"format": "pt"})

    keeping_times(file, change)
    want = load_checkpoint(str(folder), dtype=dtype)
    found = load_checkpoint(str(folder), dtype=dtype, param_cache=tmp_path / "cache")
    same(want, found)
    assert (found.fingerprint == before.fingerprint) == (how == "a row that no sample sees")
    same(want, load_checkpoint(str(folder), dtype=dtype, param_cache=tmp_path / "cache"))


def _with_row(value: np.ndarray, row: int) -> np.ndarray:
    changed = value.copy()
    changed[row] += 1
    return changed


def test_an_entry_is_found_by_content(llama, tmp_path, read, capsys):
    """Files written again are read again, and their entry is replaced; a config of the same numbers changes nothing."""
    folder = Path(shutil.copytree(llama, tmp_path / "copy"))
    cache = tmp_path / "cache"
    first = load_checkpoint(str(folder), dtype="float32", param_cache=cache)
    edit_config(folder, torch_dtype="auto", transformers_version="4.0.0")
    same(first, load_checkpoint(str(folder), dtype="float32", param_cache=cache))
    assert len(read) == 1
    (folder / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    for _ in range(2):
        same(first, load_checkpoint(str(folder), dtype="float32", param_cache=cache))
    assert len(read) == 2
    assert len(entries(cache)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the checkpoint's files were written again" in line


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flipped(folder: Path) -> None:
    """One bit in the middle of the largest file."""
    path = largest(folder)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 64
    path.write_bytes(raw)


DAMAGES = {
    "flipped": flipped,
    "truncated": lambda folder: os.truncate(largest(folder), 1000),
    "missing": lambda folder: largest(folder).unlink(),
    "no record": lambda folder: (folder / "about.json").unlink(),
    "half a record": lambda folder: os.truncate(folder / "about.json", 50),
    "empty": lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(llama, tmp_path, read, capsys, damage):
    first = load_checkpoint(str(llama), dtype="float32", param_cache=tmp_path)
    (name,) = entries(tmp_path)
    DAMAGES[damage](tmp_path / name)
    for _ in range(2):
        same(first, load_checkpoint(str(llama), dtype="float32", param_cache=tmp_path))
    assert len(read) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / name} is made again: ")


def test_an_entry_of_other_files_is_not_used(llama, gemma, tmp_path, read, capsys):
    """Even under its very name."""
    for folder in (llama, gemma):
        load_checkpoint(str(folder), dtype="float32", param_cache=tmp_path / folder.name)
    (ours,), (theirs,) = (list((tmp_path / f.name).iterdir()) for f in (llama, gemma))
    shutil.rmtree(ours)
    theirs.rename(ours)
    same(
        load_checkpoint(str(llama), dtype="float32", param_cache=tmp_path / llama.name),
        load_checkpoint(str(llama), dtype="float32"),
    )
    assert "is made again: " in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_stops_nothing(llama, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = load_checkpoint(str(llama), dtype="float32", param_cache=tmp_path / "file")
    same(found, load_checkpoint(str(llama), dtype="float32"))
    assert "the parameters are not kept in " in capsys.readouterr().err


def test_a_checksum_sees_every_bit(rng):
    for dtype in ("float32", "bfloat16"):
        x = np.asarray(rng.standard_normal((7, 5)), jax.numpy.dtype(dtype))
        want = param_cache._checksums({"x": jax.numpy.asarray(x)})["x"]
        y = x.copy()
        bits = y.reshape(-1).view(np.uint16 if dtype == "bfloat16" else np.uint32)
        bits[rng.integers(35)] ^= bits.dtype.type(1 << rng.integers(bits.itemsize * 8))
        assert param_cache._checksums({"x": jax.numpy.asarray(y)})["x"] != want


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_host_adds_up_what_the_device_does(rng, dtype):
    x = jax.numpy.asarray(rng.standard_normal((37, 3, 50)) * 1e3, dtype)
    bits = np.asarray(x).view(np.uint16 if dtype == "bfloat16" else np.uint32)
    want = int(bits.astype(np.uint64).sum()) & 0xFFFFFFFF
    assert param_cache._on_this_host(x)
    assert param_cache._host_sum(x) == int(param_cache._device_sum(x)) == want
