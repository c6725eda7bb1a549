"""Collecting: what a record holds, what is read again, and how units of an interrupted run are used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mood_jax as mj
from mood_jax import artifacts
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.studies import save
from mood_jax.studies.collect import Ask, Collected, Protocol, collect
from tests.studies.tiny import QUESTIONS, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

NEW = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("llama"), often_ends=True)), dtype="float32")


def asks() -> list[Ask]:
    """Eight: four questions under two instructions. The first is long enough for a bucket behind all others'."""
    found = []
    for k, question in enumerate(QUESTIONS[:4]):
        for pole in ("Be brief. " * (1 if k else 8), "Be long."):
            messages = ({"role": "system", "content": pole}, {"role": "user", "content": question})
            found.append(Ask(f"q{k}|{pole[3:7]}", messages, {"axis": "a", "pole": pole[:7], "question": f"q{k}"}))
    return found


def protocol(**changes: Any) -> Protocol:
    defaults = {
        "readout": readouts.preset("last4", 4),
        "max_new_tokens": NEW,
        "sampler": mj.TopP(0.95, temperature=1.5),
        "seed": 5,
        "batch_size": 3,
    }
    return Protocol(**(defaults | changes))


@pytest.fixture(scope="module")
def whole(model) -> Collected:
    return collect(model, asks(), protocol(), re_read=True, label=None)


@pytest.fixture(scope="module")
def responses(model) -> api.Responses:
    """The same, asked of `generate` itself."""
    p = protocol()
    return api.generate(
        model,
        [a.messages for a in asks()],
        ids=[a.id for a in asks()],
        max_new_tokens=NEW,
        sampler=p.sampler,
        seed=p.seed,
        sites=p.readout.sites,
        reducers=[p.readout.reducer],
        batch_size=p.batch_size,
    )


def same(a: Collected, b: Collected) -> None:
    assert a.records == b.records
    assert a.states.keys() == b.states.keys()
    for condition in a.states:
        np.testing.assert_array_equal(a.states[condition], b.states[condition])


def test_a_record_says_everything_of_its_response(model, whole, responses):
    assert [r["id"] for r in whole.records] == [a.id for a in asks()]
    for i, (record, ask) in enumerate(zip(whole.records, asks(), strict=True)):
        tokens = responses.tokens[i].tolist()
        assert record == {
            "id": ask.id,
            **ask.about,
            "seed": 5,
            "prompt_hash": model.chat.render(ask.messages).hash,
            "text": model.chat.decode(tokens),
            "tokens": tokens,
            "n_tokens": len(tokens),
            "finish": responses.finish[i],
        }
    lengths = whole.column("n_tokens")
    assert 0 in lengths  # the fixture has all three kinds, or the tests below would prove little
    assert NEW in lengths
    assert {"eos", "length"} == set(whole.column("finish"))


def test_states_in_context_are_those_of_generate(whole, responses):
    assert whole.states["in_context"].shape == (8, 4, 1, 64)
    np.testing.assert_allclose(whole.states["in_context"], responses.states, rtol=1e-4, atol=1e-4)


def test_states_read_again_are_those_of_the_question_alone(model, whole, responses):
    p = protocol()
    options = {"sites": p.readout.sites, "reducers": [p.readout.reducer], "batch_size": p.batch_size}
    alone = [[{"role": "user", "content": a.messages[-1]["content"]}] for a in asks()]
    want = mj.read(model, alone, responses, **options)
    np.testing.assert_allclose(whole.states["re_read"], want, rtol=1e-4, atol=1e-4)
    with_system = mj.read(model, [a.messages for a in asks()], responses, **options)
    some = whole.column("n_tokens") > 0
    assert np.abs(want - with_system)[some].max() > 0.05  # which is not the same thing


def test_an_empty_response_has_no_states(whole):
    empty = whole.column("n_tokens") == 0
    for states in whole.states.values():
        assert (states[empty] == 0).all()
        assert (np.abs(states[~empty]).max(axis=(1, 2, 3)) > 0).all()


def test_only_what_is_asked_for_is_read_again(model):
    found = collect(model, asks()[:3], protocol(), re_read=False, label=None)
    assert list(found.states) == ["in_context"]


def test_the_article_span_is_passed_on(model, whole):
    """The article's span holds the last prompt token, so that not even an empty response is without states."""
    p = protocol(readout=readouts.preset("article", 4))
    some = [ask for ask, n in zip(asks(), whole.column("n_tokens"), strict=True) if n == 0][:3]
    found = collect(model, some, p, re_read=True, label=None)
    assert set(found.column("n_tokens")) == {0}
    for states in found.states.values():
        assert (np.abs(states).max(axis=(1, 2, 3)) > 0).all()
    options = {"sites": p.readout.sites, "reducers": ["decay_0.9"], "span": "article", "batch_size": 3}
    want = mj.read(model, [a.without_system for a in some], [[]] * len(some), **options)
    np.testing.assert_allclose(found.states["re_read"], want, rtol=1e-4, atol=1e-4)


# Units


class Claims:
    """Counts claims; a claim must come before any unit is on the disk."""

    def __init__(self, folder: Path):
        self.folder, self.units_then = folder, []

    def __call__(self) -> None:
        self.units_then.append(len(list(self.folder.glob("*"))))


@pytest.fixture
def never(monkeypatch) -> None:
    def run(self, k):
        raise AssertionError(f"batch {k} was generated")

    monkeypatch.setattr(api.Plan, "run", run)


@pytest.fixture(scope="module")
def units(model, tmp_path_factory, whole) -> Path:
    """The units of a finished run."""
    folder = tmp_path_factory.mktemp("units")
    claim = Claims(folder)
    same(collect(model, asks(), protocol(), re_read=True, folder=folder, claim=claim, label=None), whole)
    assert sorted(p.name for p in folder.iterdir()) == [f"0000{k}.safetensors" for k in range(3)]
    assert claim.units_then[0] == 0
    return folder


def copied(units: Path, to: Path, leave_out: tuple[int, ...] = ()) -> Path:
    to.mkdir()
    for path in units.iterdir():
        if int(path.stem) not in leave_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


def collect_again(model: mj.Model, folder: Path, **options: Any) -> Collected:
    return collect(model, asks(), protocol(), re_read=True, folder=folder, **({"label": None} | options))


@pytest.mark.usefixtures("never")
def test_a_finished_run_generates_nothing(model, whole, units, capsys):
    claim = Claims(units)
    same(collect_again(model, units, claim=claim, label="responses"), whole)
    assert claim.units_then == []
    assert "3 of 3 batches were there already" in capsys.readouterr().err


def test_missing_units_are_made_and_the_others_kept(model, whole, units, tmp_path, monkeypatch):
    folder = copied(units, tmp_path / "units", leave_out=(1,))
    run, made = api.Plan.run, []
    monkeypatch.setattr(api.Plan, "run", lambda self, k: made.append(k) or run(self, k))
    same(collect_again(model, folder), whole)
    assert made == [1]
    for path in units.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", ["empty", "half", "one byte short", "another unit", "no records", "not JSON"])
def test_a_damaged_unit_is_done_again_and_named(model, whole, units, tmp_path, capsys, damage):
    folder = copied(units, tmp_path / "units")
    path = folder / "00001.safetensors"
    content = path.read_bytes()
    tensors = artifacts.read_tensors(path)
    if damage == "another unit":
        path.write_bytes((folder / "00000.safetensors").read_bytes())
    elif damage == "no records":
        artifacts.write_tensors(path, {k: v for k, v in tensors.items() if k != "records"})
    elif damage == "not JSON":
        artifacts.write_tensors(path, tensors | {"records": np.frombuffer(b"[1", np.uint8)})
    else:
        path.write_bytes(content[: {"empty": 0, "half": len(content) // 2, "one byte short": len(content) - 1}[damage]])
    same(collect_again(model, folder), whole)
    assert path.read_bytes() == content
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("00001.safetensors is done again: ")


@pytest.mark.usefixtures("never")
def test_what_is_wrong_shows_before_anything_is_claimed_or_written(model, tmp_path):
    folder = tmp_path / "units"
    claim = Claims(folder)
    long = Ask("long", ({"role": "user", "content": "word " * 5000},), {})
    for bad, options, message in (
        ([], {}, "no prompts"),
        ([Ask("x", ({"role": "user", "content": " "},), {})], {}, "empty prompt"),
        ([*asks(), asks()[0]], {}, "given twice"),
        (asks(), {"batch_size": 0}, "batch size"),
        (asks(), {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        (asks(), {"readout": readouts.Readout("x", ("resid_post@9",), (1.0,), "mean", "response", True)}, "resid_post"),
        ([*asks(), long], {"max_new_tokens": 200_000}, "context holds"),
    ):
        with pytest.raises(UserError, match=message):
            collect(model, bad, protocol(**options), re_read=True, folder=folder, claim=claim, label=None)
    assert claim.units_then == []
    assert not folder.exists()


@pytest.mark.usefixtures("never")
def test_a_question_that_does_not_fit_when_read_again_shows_before_the_first_batch(model, monkeypatch):
    """A template's own system prompt, added when ours is gone, may be the longer one."""
    render = type(model.chat).render

    def padded(self, prompt, system=None):
        found = render(self, prompt, system)
        if prompt[0]["role"] == "system":
            return found
        return SimpleNamespace(token_ids=(1,) * model.config.max_positions, hash=found.hash)

    monkeypatch.setattr(type(model.chat), "render", padded)
    with pytest.raises(UserError, match="this model's context holds"):
        collect(model, asks(), protocol(), re_read=True, label=None)


# What is left behind


def test_saved_files_hold_the_records_and_the_states(whole, tmp_path):
    readout = protocol().readout
    save.collected(tmp_path, whole, readout)
    assert artifacts.read_jsonl(tmp_path / "responses.jsonl") == whole.records
    states = artifacts.read_tensors(tmp_path / "states.safetensors")
    assert set(states) == {"in_context", "re_read"}
    for condition, values in states.items():
        np.testing.assert_array_equal(values, whole.states[condition][:, :, 0])
    assert artifacts.read_json(tmp_path / "states.json") == {
        "axes": ["responses", "sites", "D"],
        "responses": [r["id"] for r in whole.records],
        "sites": list(readout.sites),
        "reducer": "decay_0.9",
        "span": "response",
        "conditions": ["in_context", "re_read"],
    }


def test_a_protocol_describes_what_decides_the_numbers():
    changes = [
        {},
        {"readout": readouts.preset("article", 4)},
        {"max_new_tokens": 9},
        {"sampler": mj.Greedy()},
        {"sampler": mj.TopP(0.95, temperature=1.4)},
        {"sampler": mj.TopP(0.9, temperature=1.5)},
        {"seed": 6},
        {"batch_size": 4},
    ]
    assert len({artifacts.json_bytes(protocol(**c).describe()) for c in changes}) == len(changes)
