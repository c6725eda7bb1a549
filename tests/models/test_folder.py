"""Which files are the weights: what transformers would load, or a refusal that names both candidates."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mood_jax.models.checkpoint import load_checkpoint
from mood_jax.models.folder import HUB_FILES, INDEX, SINGLE
from tests.models.corrupt import QUERY, edit, edit_config, refusal
from tests.models.same import assert_as_transformers
from tests.parity.hf_models import save, tiny


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Folders of one architecture with different weights: single files and shards, with their index."""
    made = {}
    for name, seed, shards in (("single", 0, 1), ("two", 1, 2), ("three", 2, 3)):
        made[name] = save(tiny("llama", seed, num_hidden_layers=2)[0], tmp_path_factory.mktemp(name), shards)
    return made


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def merged(target: Path, *sources: Path) -> Path:
    """A folder with the files of all; later ones win."""
    for source in sources:
        shutil.copytree(source, target, dirs_exist_ok=True)
    return target


def changed(folder: Path, **weight_map: str | None) -> dict[str, str]:
    """Changes entries of the index; "." in a name is written "__"."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {k.replace("__", "."): v for k, v in weight_map.items()}
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not None}
    (folder / INDEX).write_text(json.dumps(index))
    return index["weight_map"]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("first", ["two", "three"])
def test_two_sets_are_refused_by_name(sets, tmp_path, first, with_index):
    folder = merged(tmp_path / "both", sets[first], sets["single"])
    if not with_index:
        (folder / INDEX).unlink()
    line = refusal(folder)
    assert SINGLE in line
    assert shards(sets[first])[0].name in line
    assert "remove one of them" in line
    for file in shards(folder):  # the remedy, one way
        file.unlink()
    checkpoint = assert_as_transformers(folder)
    assert any("stale" in n for n in checkpoint.notes) == with_index


def test_two_sets_of_shards(sets, tmp_path):
    folder = merged(tmp_path / "both", sets["two"], sets["three"])  # the index is of three
    line = refusal(folder)
    assert shards(sets["two"])[0].name in line
    assert shards(sets["three"])[0].name in line
    (folder / INDEX).unlink()
    line = refusal(folder)
    assert "not of one set" in line
    (folder / shards(sets["two"])[0].name).unlink()
    shutil.copy(sets["three"] / INDEX, folder)
    assert any("not used" in n for n in assert_as_transformers(folder).notes)  # half a set beside the index's own


def test_every_stale_index_is_named(sets, tmp_path):
    """Each of several changes of index or files, on each of two sets of shards."""
    for k, (name, kind) in enumerate(product(("two", "three"), ("moved", "gone", "extra", "unnamed", "total", "swap"))):
        folder = merged(tmp_path / str(k), sets[name])
        files = shards(folder)
        there = json.loads((folder / INDEX).read_text())["weight_map"]
        other = next(f.name for f in files if f.name != there[QUERY])
        if kind == "moved":
            changed(folder, **{QUERY: other})
        elif kind == "gone":
            held = load_file(folder / there[QUERY])
            held.pop(QUERY)
            save_file(held, folder / there[QUERY], {"format": "pt"})
        elif kind == "extra":
            changed(folder, **{"model.layers.9.mlp.up_proj.weight": other})
        elif kind == "unnamed":
            changed(folder, **{QUERY: None})
        elif kind == "total":  # a shard of another total, under which its tensors lie
            renamed = folder / "model-00001-of-00009.safetensors"
            files[0].rename(renamed)
            changed(folder, **{t: renamed.name for t, f in there.items() if f == files[0].name})
        else:  # the files of the two numbers, exchanged
            files[0].rename(folder / "x")
            files[1].rename(files[0])
            (folder / "x").rename(files[1])
        line = refusal(folder)
        assert "stale" in line, (name, kind, line)
        assert "download the checkpoint again" in line


def test_a_tensor_in_two_shards(sets, tmp_path):
    folder = merged(tmp_path / "a", sets["two"])
    first, *_, last = shards(folder)
    held = load_file(first) | dict(list(load_file(last).items())[:1])
    save_file(held, first, {"format": "pt"})
    for _ in range(2):
        line = refusal(folder)
        assert first.name in line
        assert last.name in line
        (folder / INDEX).unlink(missing_ok=True)


def test_shards_of_no_index(sets, tmp_path):
    folder = merged(tmp_path / "a", sets["three"])
    (folder / INDEX).unlink()
    want = load_checkpoint(str(sets["three"]), dtype="float32").fingerprint
    assert load_checkpoint(str(folder), dtype="float32").fingerprint == want
    shards(folder)[1].unlink()
    assert "lacks shard 2 of" in refusal(folder)


def test_variants_and_consolidated_files_are_passed_over(sets, tmp_path):
    other = load_file(sets["single"] / SINGLE)
    other[QUERY] = other[QUERY] + 1
    for base in ("single", "two"):
        folder = merged(tmp_path / base, sets[base])
        for name in (
            "model.fp16.safetensors",
            "model.fp16-00001-of-00001.safetensors",
            "model-00001-of-00002.fp16.safetensors",
            "consolidated.safetensors",
        ):
            save_file(other, folder / name, {"format": "pt"})
        assert assert_as_transformers(folder).notes == ()
        for file in [folder / SINGLE, folder / INDEX, *shards(folder)]:
            if ".fp16" not in file.name:
                file.unlink(missing_ok=True)
        assert "variant model" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("consolidated.safetensors", "consolidated.safetensors"),
        ("pytorch_model.bin", "pickle"),
        ("weights.pth", "pickle"),
        ("last.ckpt", "pickle"),
        ("model-Q4_K_M.gguf", "GGUF"),
        ("inner/model.safetensors", "inner does; give that folder"),
        ("weights.safetensors", "weights.safetensors"),
    ],
)
def test_other_weights_are_named(copy, file, word):
    (copy / SINGLE).unlink()
    (copy / file).parent.mkdir(exist_ok=True)
    (copy / file).write_bytes(b"x")
    assert word in refusal(copy)


ADAPTERS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapters.safetensors",
    "my-lora.safetensors",
)


@pytest.mark.parametrize("instead", [False, True])
@pytest.mark.parametrize("file", ADAPTERS)
def test_an_adapter_beside_or_instead_of_weights(copy, file, instead):
    if instead:
        for path in copy.iterdir():
            path.unlink()
    (copy / file).write_bytes(b"{}")
    line = refusal(copy)
    assert file in line
    assert "merge it first" in line
    assert "merge_and_unload" in line


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("quantize_config.json", "quantised"),
        ("quant_config.json", "quantised"),
        ("hf_quant_config.json", "quantised"),
        ("modules.json", "embedding model"),
        ("config_sentence_transformers.json", "embedding model"),
    ],
)
def test_files_that_make_another_model(copy, file, word):
    (copy / file).write_text("{}")
    line = refusal(copy)
    assert file in line
    assert word in line
    assert file in HUB_FILES


def test_a_folder_around_the_checkpoint(copy, tmp_path):
    outer = tmp_path / "outer"
    for inner in (outer / "final", outer / "snapshots" / "abc"):
        shutil.copytree(copy, inner)
        assert f"{inner} does: give that folder" in refusal(outer)
        shutil.rmtree(inner)


def test_a_config_that_names_its_weights(copy):
    (copy / SINGLE).rename(copy / "other.safetensors")
    assert "transformers_weights" in refusal(edit_config(copy, transformers_weights="other.safetensors"))


@pytest.mark.parametrize("part", ["half a matrix", "half the layers", "embedding"])
def test_long_stretches_of_zeros_are_said(tmp_path, part):
    """A download that broke off leaves zeros where nothing was written; padded words of an embedding are no sign."""
    model, config = tiny("llama", num_hidden_layers=2, hidden_size=128, intermediate_size=512)
    folder = save(model, tmp_path)
    assert load_checkpoint(str(folder), dtype="float32").notes == ()
    held = load_file(folder / SINGLE)
    embedding, up = held["model.embed_tokens.weight"], held["model.layers.0.mlp.up_proj.weight"]
    embedding[config.vocab_size * 2 // 3 :] = 0
    assert load_checkpoint(str(edit(folder, **{"model.embed_tokens.weight": embedding})), dtype="float32").notes == ()
    zeroed = {
        "half a matrix": {"model.layers.0.mlp.up_proj.weight": np.concatenate([up[:256], np.zeros_like(up[256:])])},
        "half the layers": {n: np.zeros_like(x) for n, x in held.items() if "layers.1" in n and x.ndim == 2},
        "embedding": {"model.embed_tokens.weight": np.zeros_like(embedding)},
    }[part]
    (note,) = load_checkpoint(str(edit(folder, **zeroed)), dtype="float32").notes
    assert "zeros" in note
    assert next(iter(zeroed)) in note or "more tensors" in note
