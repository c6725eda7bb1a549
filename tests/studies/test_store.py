"""The store of a grid: what it holds, that it is read a slice at a time, and that an interrupted collection goes on."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mood_jax as mj
from mood_jax import artifacts
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.readout import GRID_REDUCERS, Grid
from mood_jax.studies import unit
from mood_jax.studies.collect import Ask, Protocol
from mood_jax.studies.store import StateStore, collect_grid, open_store
from tests.studies.tiny import QUESTIONS, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

L, D, NEW = 4, 64, 6
SITES = ("embed", "resid_post@0", "resid_post@1", "resid_post@2", "resid_post@3", "final_norm")
SETTINGS = {"model": {"name": "tiny", "fingerprint": "f" * 32}, "samples": 1}
COMMAND = "run scripts/ablate.py again with its --config and --workdir"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("llama"), often_ends=True)), dtype="float32")


def asks() -> list[Ask]:
    """Eight: four questions under two instructions, all in one length bucket but the last, whose batch is the first."""
    found = []
    for k, question in enumerate(QUESTIONS[:4]):
        for pole in ("Be brief, please.", "Be long, please."):
            messages = ({"role": "system", "content": pole}, {"role": "user", "content": question})
            found.append(Ask(f"q{k}|{pole[3:7]}", messages, {"axis": "a", "sign": 1 if k else -1}))
    found[-1] = Ask(
        found[-1].id,
        ({"role": "system", "content": "Hi"}, {"role": "user", "content": "Why?"}),
        {"axis": "a", "sign": 0},
    )
    return found


def protocol(readout: Any = None, **changes: Any) -> Protocol:
    defaults = {"max_new_tokens": NEW, "sampler": mj.TopP(0.95, temperature=1.5), "seed": 5, "batch_size": 3}
    return Protocol(readout or readouts.grid(L), **(defaults | changes))


def collected(model: mj.Model, folder: Path | None = None, dtype: str = "float32", **options: Any) -> StateStore:
    options = {"settings": SETTINGS, "label": None} | options
    return collect_grid(model, asks(), protocol(readouts.grid(L, dtype)), folder=folder, **options)


@pytest.fixture(scope="module")
def in_memory(model) -> StateStore:
    return collected(model)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory) -> dict[str, Path]:
    """The folder of a finished collection, by dtype."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in readouts.STATE_DTYPES}
    for dtype, folder in folders.items():
        collected(model, folder, dtype)
    return folders


@pytest.fixture
def never(monkeypatch) -> None:
    def run(self, k):
        raise AssertionError(f"batch {k} was generated")

    monkeypatch.setattr(api.Plan, "run", run)


def copied(folder: Path, to: Path, *leave_out: str) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.name not in leave_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def same_files(a: Path, b: Path) -> None:
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes(), path.name


def same(a: StateStore, b: StateStore) -> None:
    assert (a.records, a.conditions, a.grid, a.settings, a.shape) == (
        b.records,
        b.conditions,
        b.grid,
        b.settings,
        b.shape,
    )
    for condition in a.conditions:
        np.testing.assert_array_equal(a.states(condition), b.states(condition))


# What is in it


def test_a_grid_names_every_site_and_reducer(model):
    found = readouts.grid(L, "bfloat16")
    assert found == Grid(SITES, ("mean", "decay_0.9", "decay_0.8", "last", "max_abs"), "response", "bfloat16")
    assert found.sites == model.config.sites
    said = {g.describe() for g in (found, readouts.grid(L), readouts.grid(5), Grid(SITES, ("mean",)))}
    assert len(said) == 4
    with pytest.raises(UserError, match="states cannot be kept in 'int8'; use one of float32, bfloat16"):
        readouts.grid(L, "int8")


def test_it_holds_what_generate_and_read_give_for_every_site(model, in_memory):
    p = protocol()
    options = {"sites": "all", "reducers": GRID_REDUCERS, "batch_size": 3}
    r = api.generate(
        model,
        [a.messages for a in asks()],
        ids=[a.id for a in asks()],
        max_new_tokens=NEW,
        sampler=p.sampler,
        seed=p.seed,
        **options,
    )
    again = mj.read(model, [a.messages[1:] for a in asks()], r, **options)
    assert (in_memory.conditions, in_memory.shape) == (("in_context", "re_read"), (8, 6, 5, D))
    assert (in_memory.sites, in_memory.reducers) == (SITES, GRID_REDUCERS)
    assert (in_memory.span, in_memory.dtype) == ("response", "float32")
    np.testing.assert_allclose(in_memory.states("in_context"), r.states, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(in_memory.states("re_read"), again, rtol=1e-4, atol=1e-4)
    assert np.abs(again - r.states).max() > 0.05
    assert [x["id"] for x in in_memory.records] == [a.id for a in asks()]
    assert list(in_memory.column("n_tokens")) == r.n_tokens.tolist()
    assert [x["text"] for x in in_memory.records] == list(r.text)
    assert list(in_memory.column("sign")) == [a.about["sign"] for a in asks()]


def test_an_empty_response_has_states_of_zeros(in_memory):
    empty = in_memory.column("n_tokens") == 0
    assert empty.any()
    assert not empty.all()
    for condition in in_memory.conditions:
        assert (in_memory.states(condition, empty) == 0).all()
        assert (np.abs(in_memory.states(condition, ~empty)).max(axis=3) > 0).all()


def test_on_disk_it_holds_the_same_bits(in_memory, finished):
    same(open_store(finished["float32"]), in_memory)


def test_in_bfloat16_it_holds_them_rounded(model, in_memory, finished):
    found = open_store(finished["bfloat16"])
    same(found, collected(model, dtype="bfloat16"))
    for condition in found.conditions:
        got, want = found.states(condition), in_memory.states(condition)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want.astype(ml_dtypes.bfloat16).astype(np.float32))
        assert (np.abs(got - want) <= 2.0**-8 * np.abs(want)).all()
        assert (got != want).any()
    sizes = {d: sum(p.stat().st_size for p in f.glob("*.safetensors")) for d, f in finished.items()}
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


# Slices


def test_a_slice_is_what_was_asked_for_in_the_order_asked_for(finished, in_memory, rng):
    store = open_store(finished["float32"])
    for condition in store.conditions:
        whole = in_memory.states(condition)
        for _ in range(10):
            rows = rng.integers(0, 8, rng.integers(1, 12))
            s = rng.permutation(6)[: rng.integers(1, 7)]
            r = rng.permutation(5)[: rng.integers(1, 6)]
            got = store.states(condition, rows, [SITES[k] for k in s], [GRID_REDUCERS[k] for k in r])
            assert (got.dtype, got.shape) == (np.float32, (len(rows), len(s), len(r), D))
            np.testing.assert_array_equal(got, whole[rows][:, s][:, :, r])
            mask = rng.random(8) < 0.5
            np.testing.assert_array_equal(store.states(condition, mask), whole[mask])
        np.testing.assert_array_equal(store.states(condition, [-1]), whole[-1:])
        assert store.states(condition, []).shape == (0, 6, 5, D)


def test_names_that_are_not_there_are_named(in_memory):
    with pytest.raises(UserError, match="no condition 'random_re_read'; they have in_context, re_read"):
        in_memory.states("random_re_read")
    with pytest.raises(UserError, match="no site 'resid_post@4'; they have embed, resid_post@0"):
        in_memory.states("re_read", sites=["embed", "resid_post@4"])
    with pytest.raises(UserError, match="no reducer 'median'; they have mean, decay_"):
        in_memory.states("re_read", reducers=["median"])


def test_only_what_is_asked_for_is_read(tmp_path):
    """A store of 60 MB: a slice of one site takes about its own room, and opening takes next to none."""
    grid, n, d = readouts.grid(L), 250, 1000
    per_unit = n // 2
    ids = [f"{k}/{i}" for i in range(per_unit) for k in range(2)]
    index = {"sites": list(SITES), "reducers": list(grid.reducers), "span": "response", "dtype": "float32"}
    index |= {"conditions": ["in_context", "re_read"]}
    made_from = {"reading": index, "settings": {}, "texts": {"ids": artifacts.record_digest(ids)}}
    for k in range(2):
        records = [{"id": f"{k}/{i}"} for i in range(per_unit)]
        states = {c: np.full((per_unit, 6, 5, d), k + 1, np.float32) for c in ("in_context", "re_read")}
        unit.write(tmp_path / f"{k:05d}.safetensors", records, states, made_from)
    files = [
        {"file": p.name, "bytes": p.stat().st_size, "sha256": unit.checksum(p)} for p in sorted(tmp_path.iterdir())
    ]
    artifacts.write_json(tmp_path / "index.json", index | {"format": 2, "settings": {}, "ids": ids, "units": files})
    assert sum(f["bytes"] for f in files) > 59e6
    tracemalloc.start()
    store = open_store(tmp_path)
    opened = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    got = store.states("re_read", sites=["resid_post@2"], reducers=["last"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got[:, 0, 0, 0], [1, 2] * per_unit)
    assert got.nbytes == 1e6
    assert opened < 1e6
    assert peak < 3e6


def test_units_on_disk_are_mapped_and_read_only(model, finished, tmp_path):
    folder = copied(finished["float32"], tmp_path / "units", "00001.safetensors")
    for store in (open_store(finished["float32"]), collected(model, folder)):  # a new unit like a finished one
        for views in store.units:
            for states in views.values():
                assert isinstance(states, np.memmap)
                assert not states.flags.writeable


def test_a_readouts_own_states_are_picked(in_memory, finished):
    readout = replace(readouts.preset("last4", L), reducer="last")
    for store in (in_memory, open_store(finished["float32"])):
        got = store.collected(readout)
        assert got.records == in_memory.records
        assert list(got.states) == ["in_context", "re_read"]
        for condition, states in got.states.items():
            np.testing.assert_array_equal(states, in_memory.states(condition)[:, 1:5, 3:4])
    some = in_memory.collected(readout, [6, 2])
    assert [r["id"] for r in some.records] == [asks()[k].id for k in (6, 2)]
    np.testing.assert_array_equal(some.states["re_read"], in_memory.collected(readout).states["re_read"][[6, 2]])
    with pytest.raises(UserError, match="read over response tokens, and the readout 'article' reads article tokens"):
        in_memory.collected(readouts.preset("article", L))


# Interrupted, damaged, not whole


@pytest.mark.usefixtures("never")
def test_a_finished_collection_generates_nothing_and_keeps_its_bytes(model, finished, in_memory, tmp_path):
    folder = copied(finished["float32"], tmp_path / "units", "index.json")
    same(collected(model, folder), in_memory)
    same_files(folder, finished["float32"])


@pytest.mark.parametrize("dtype", list(readouts.STATE_DTYPES))
def test_an_interrupted_collection_goes_on_with_the_same_bytes(model, finished, tmp_path, monkeypatch, dtype):
    folder, run, made = tmp_path / "units", api.Plan.run, []

    def interrupted(self, k):
        made.append(k)
        if len(made) == 2:
            raise KeyboardInterrupt
        return run(self, k)

    monkeypatch.setattr(api.Plan, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collected(model, folder, dtype)
    assert [p.name for p in folder.iterdir()] == ["00000.safetensors"]
    with pytest.raises(UserError, match=f"{folder} holds no finished collection of states; {COMMAND}"):
        open_store(folder)
    collected(model, folder, dtype)
    assert made == [0, 1, 1, 2]
    same_files(folder, finished[dtype])


@pytest.mark.parametrize("damage", ["empty", "half", "one byte short", "another unit", "no records", "not JSON"])
def test_a_damaged_unit_is_named_and_done_again(model, finished, tmp_path, capsys, damage):
    folder = copied(finished["bfloat16"], tmp_path / "units")
    path = folder / "00001.safetensors"
    content, tensors = path.read_bytes(), artifacts.map_tensors(path)
    if damage == "another unit":
        path.write_bytes((folder / "00000.safetensors").read_bytes())
    elif damage == "no records":
        artifacts.write_tensors(path, {k: v for k, v in tensors.items() if k != "records"})
    elif damage == "not JSON":
        artifacts.write_tensors(path, tensors | {"records": np.frombuffer(b"[1", np.uint8)})
    else:
        path.write_bytes(content[: {"empty": 0, "half": len(content) // 2, "one byte short": len(content) - 1}[damage]])
    with pytest.raises(UserError, match=rf"^{folder}.*; {COMMAND}"):
        open_store(folder)
    collected(model, folder, "bfloat16")
    assert capsys.readouterr().err.startswith("00001.safetensors is done again: ")
    same_files(folder, finished["bfloat16"])


def test_a_unit_of_other_states_is_done_again(model, finished, tmp_path, capsys):
    """Without a condition; with other sites; in another dtype. All say of themselves that they are this run's."""
    folder = copied(finished["bfloat16"], tmp_path / "units")

    def changed(k: int, change: Any) -> None:
        path = folder / f"0000{k}.safetensors"
        records, states = unit.read(path)
        unit.write(path, records, change(dict(states)), unit.verify(path))

    changed(0, lambda states: {c: s.astype(np.float32) for c, s in states.items()})
    changed(1, lambda states: states | {"re_read": states["re_read"][:, :5]})
    changed(2, lambda states: {"in_context": states["in_context"]})
    collected(model, folder, "bfloat16")
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in said] == [f"0000{k}.safetensors" for k in range(3)]
    assert all("holds other states than this run's" in line for line in said)
    same_files(folder, finished["bfloat16"])


@pytest.mark.usefixtures("never")
def test_a_unit_of_another_collection_is_refused_and_stays(model, finished, tmp_path):
    folder = copied(finished["bfloat16"], tmp_path / "units")
    (folder / "00001.safetensors").write_bytes((finished["float32"] / "00001.safetensors").read_bytes())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    said = 'was made with reading.dtype = "float32", and this command has "bfloat16"; use another --workdir, or'
    with pytest.raises(UserError, match=said):
        collected(model, folder, "bfloat16")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    index = artifacts.read_json(folder / "index.json")
    path = folder / "00001.safetensors"
    index["units"][1] |= {"bytes": path.stat().st_size, "sha256": unit.checksum(path)}
    artifacts.write_json(folder / "index.json", index)
    with pytest.raises(UserError, match=r"00001\.safetensors was made with reading\.dtype"):
        open_store(folder)


def spoil(folder: Path, **fields: Any) -> None:
    record = artifacts.read_json(folder / "index.json") | fields
    artifacts.write_json(folder / "index.json", {k: v for k, v in record.items() if v is not None})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 1}, "is not an index of format 2"),
        ({"ids": None}, "does not fit the files beside it"),
        ({"ids": ["q9|x"]}, "does not fit the files beside it"),
        ({"sites": ["embed"]}, "does not fit the files beside it"),
        ({"dtype": "float32"}, "does not fit the files beside it"),
        ({"conditions": ["in_context"]}, "does not fit the files beside it"),
        ({"units": [{"file": "00007.safetensors", "bytes": 1}]}, "00007.safetensors is missing or damaged"),
        ({"units": 3}, "does not fit the files beside it"),
        ({"units": []}, "does not fit the files beside it"),
        ({"sites": list(SITES[::-1])}, "does not fit the files beside it"),
        ({"reducers": list(GRID_REDUCERS[::-1])}, "does not fit the files beside it"),
        ({"span": "article"}, "does not fit the files beside it"),
        ({"ids": [a.id for a in asks()][1:]}, "made for other responses"),
        ({"ids": [a.id for a in asks()][::-1]}, "made for other responses"),
        ({"settings": SETTINGS | {"samples": 2}}, "made from other settings"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(finished, tmp_path, fields, said):
    folder = copied(finished["bfloat16"], tmp_path / "units")
    spoil(folder, **fields)
    with pytest.raises(UserError, match=rf"{said}.*; {COMMAND}"):
        open_store(folder)


def test_a_missing_unit_and_a_missing_folder_are_refused(finished, tmp_path):
    folder = copied(finished["bfloat16"], tmp_path / "units", "00002.safetensors")
    with pytest.raises(UserError, match=r"00002\.safetensors is missing or damaged; run scripts/other\.py again"):
        open_store(folder, command="scripts/other.py")
    with pytest.raises(UserError, match="nowhere holds no finished collection"):
        open_store(tmp_path / "nowhere")
    (folder / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        open_store(folder)


def test_the_folder_is_claimed_before_the_first_unit_is_written(model, tmp_path):
    then = []
    collected(model, tmp_path / "units", claim=lambda: then.append(len(list(tmp_path.glob("units/*")))))
    assert then[0] == 0
