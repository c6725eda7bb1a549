"""What a calibration may be asked for besides: estimators, further question sets; and the collection of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import mood_jax as mj
from mood_jax import bank, probes
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.probes.estimators import ESTIMATORS
from mood_jax.readout import GRID_REDUCERS
from mood_jax.studies import calibrate
from mood_jax.studies import config as study
from mood_jax.studies.collect import Collected
from mood_jax.studies.store import open_store
from tests.studies.planted import AXES, PROTOCOL, D, calibration_responses
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.fixture
def asked(monkeypatch) -> dict[str, Any]:
    """What the evidence was asked for; there is none."""
    seen: dict[str, Any] = {}

    def spy(re_read, sign, *rest, **options):
        seen.update(options)
        return [{} for _ in sign]

    monkeypatch.setattr(probes, "evidence", spy)
    return seen


def subset(collected: Collected, mask: np.ndarray) -> Collected:
    records = [r for r, kept in zip(collected.records, mask, strict=True) if kept]
    return Collected(records, {c: s[mask] for c, s in collected.states.items()})


# Estimators


@pytest.mark.parametrize("name", ESTIMATORS)
def test_directions_are_fitted_on_set_a_in_context_with_folds_by_question(asked, monkeypatch, name):
    given = []

    def fit(states, sign, *, fold):
        given.append((np.asarray(states), np.asarray(sign), np.asarray(fold)))
        return probes.Direction(jnp.eye(D)[len(given)], jnp.asarray(True))

    def compiled(estimator, n_folds):
        assert (estimator, n_folds) == (name, 5)
        return fit

    monkeypatch.setattr(calibrate, "_compiled", compiled)
    collected = calibration_responses(np.random.default_rng(5))
    collected = subset(collected, collected.column("set") == "A")
    done = calibrate.analyse(AXES, collected, PROTOCOL, {"estimator": name}, estimator=name)
    assert (asked["estimator"], done.calibration.estimator) == (name, name)
    np.testing.assert_array_equal(done.calibration.directions, np.eye(D)[1:3])
    for axis, (states, sign, fold) in zip(AXES, given, strict=True):
        rows = collected.column("axis") == axis.id
        np.testing.assert_array_equal(states, done.h["in_context"][rows])
        used = collected.column("n_tokens")[rows] > 0
        np.testing.assert_array_equal(sign, np.where(used, collected.column("sign")[rows], 0))
        np.testing.assert_array_equal(fold, probes.grouped_folds(collected.column("question")[rows], 5, 3))


@pytest.mark.usefixtures("asked")
def test_a_whitened_direction_is_another_one():
    collected = calibration_responses(np.random.default_rng(5))
    plain, whitened = (
        calibrate.analyse(AXES, collected, PROTOCOL, {}, estimator=e).calibration.directions
        for e in ("mean_difference", "whitened")
    )
    for a, b in zip(plain, whitened, strict=True):
        assert np.linalg.norm(b) == pytest.approx(1, abs=1e-5)
        assert a @ b < 0.999


def test_the_texts_of_the_right_rows_are_passed_on(asked):
    collected = calibration_responses(np.random.default_rng(5))
    calibrate.analyse(AXES, collected, PROTOCOL, {})
    for k, axis in enumerate(AXES):
        own = [r for r in collected.records if (r["axis"], r["set"]) == (axis.id, "A")]
        assert asked["texts"][k] == [r["text"] for r in own]
        assert all(type(t) is str for t in asked["texts"][k])


# Further sets


def test_sets_b_and_c_are_asked_in_their_own_words():
    source = bank.shipped()
    axis = source.axes()[0]
    plain, more = calibrate.asks(source, [axis]), calibrate.asks(source, [axis], 1, ("B", "C"))
    assert [a.id for a in more[: len(plain)]] == [a.id for a in plain]
    added = more[len(plain) :]
    assert {(a.about["set"], a.about["sign"]) for a in added} == set(itertools.product("BC", (1, -1)))
    assert len(added) == sum(2 * len(source.questions(axis.id, set=s)) for s in "BC")
    for a in added:
        pole = axis.positive if a.about["sign"] == 1 else axis.negative
        assert a.messages[0]["content"] == pole.instruction_for(a.about["set"]) != pole.instruction
        assert a.messages[1]["content"] in {q.text for q in source.questions(axis.id, set=a.about["set"])}
    hashes = calibrate.bank_hashes(source, [axis], ("B",))
    assert hashes == {s: source.content_hash(s, axes=[axis.id]) for s in ("A", "eval", "B")}


def test_a_bank_without_them_says_so(tmp_path):
    source = bank.load(bank_file(tmp_path / "bank.yaml"))
    axes = [source.axis("loud_quiet")]
    with pytest.raises(UserError, match="no questions in set 'B' for axis 'loud_quiet'"):
        calibrate.asks(source, axes, 1, ("B",))
    with pytest.raises(UserError, match="unknown set 'profile' to compare with A; use some of B, C"):
        calibrate.asks(source, axes, 1, ("profile",))


def planted_sets(rng: np.random.Generator) -> Collected:
    """Sets B and C are set A and eval of another draw; one pole of the second axis' eval set has no tokens."""
    first, second = calibration_responses(rng), calibration_responses(rng)
    renamed = [
        r | {"set": {"A": "B", "eval": "C"}[r["set"]], "id": f"2/{r['id']}", "question": f"2/{r['question']}"}
        for r in second.records
    ]
    records = [
        r | {"n_tokens": 0} if (r["axis"], r["set"], r["sign"]) == (AXES[1].id, "eval", 1) else r for r in first.records
    ]
    states = {c: np.concatenate([first.states[c], second.states[c]]) for c in first.states}
    return Collected(records + renamed, states)


def test_cosines_across_sets_equal_plain_numpy(asked, rng):
    collected = planted_sets(rng)
    done = calibrate.analyse(AXES, collected, PROTOCOL, {})
    h, use = done.h["in_context"].astype(np.float64), collected.column("n_tokens") > 0

    def plain(axis: str, set_: str) -> np.ndarray:
        own = use & (collected.column("axis") == axis) & (collected.column("set") == set_)
        means = []
        for sign in (1, -1):
            x = np.sort(h[own & (collected.column("sign") == sign)], axis=0)
            cut = len(x) // 10
            means.append(x[cut : len(x) - cut].mean(axis=0))
        return (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])

    for k, axis in enumerate(AXES):
        got = done.calibration.evidence[k]["cross_set_cosine"]
        assert set(got) == {"A-eval", "A-B", "A-C", "B-C"}
        for name, value in got.items():
            if (k, name) == (1, "A-eval"):
                assert value is None
            else:
                first, second = name.split("-")
                assert value == pytest.approx(plain(axis.id, first) @ plain(axis.id, second), abs=1e-4)
    only = subset(collected, collected.column("set") == "A")
    alone = calibrate.analyse(AXES, only, PROTOCOL, {}).calibration
    assert [b["cross_set_cosine"] for b in alone.evidence] == [{"A-eval": None}] * 2
    np.testing.assert_array_equal(alone.directions, done.calibration.directions)
    assert alone.directions.shape == (2, D)


def test_a_run_asks_for_them_and_says_so(tmp_path, monkeypatch):
    """With a checkpoint; the analysis is spied on."""
    model = mj.load_model(str(checkpoint(tmp_path / "llama")), dtype="float32")
    seen = {}

    def collect(model, asks, protocol, **options):
        seen.update(asks=asks, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "collect", collect)
    axes = bank.axes()[:1]
    with pytest.raises(KeyboardInterrupt):
        mj.calibrate(model, axes, cross_sets=("C",), control=False)
    assert {a.about["set"] for a in seen["asks"]} == {"A", "eval", "C"}
    assert seen["control"] is None
    made = calibrate.settings(model, bank.shipped(), axes, PROTOCOL, cross_sets=("C",))
    assert set(made["bank"]) == {"A", "eval", "C"}
    assert (made["estimator"], made["random_weights"]) == ("mean_difference", True)


def test_lists_of_names_may_have_commas():
    assert study.names(()) == ()
    assert study.names(("B,C", "B")) == study.names("B, C,") == ("B", "C")
    config = study.study_config("", cross_sets=("B,C",))
    assert study.names(config.cross_sets) == ("B", "C")


# The collection of a grid


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Callable[..., Any]:
    """A config of the tiny checkpoint and bank, with changes."""
    folder = tmp_path_factory.mktemp("grid")
    model, path = checkpoint(folder / "model"), bank_file(folder / "bank.yaml")
    fields = {"dtype": "float32", "bank": str(path), "axes": ("loud_quiet",), "calibration_tokens": 4, "batch_size": 7}

    def config(**changes: Any) -> Any:
        return study.study_config(str(model), **(fields | changes))

    return config


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> Path:
    """A finished collection."""
    folder = tmp_path_factory.mktemp("run")
    study.grid_store(tiny(), folder)
    return folder


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was loaded, or a batch generated")


def test_a_finished_grid_is_opened_without_its_model(tiny, workdir, monkeypatch, capsys):
    monkeypatch.setattr(study, "load", refuse)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    store = study.grid_store(tiny(), workdir)
    assert "the model is not loaded" in capsys.readouterr().out
    assert store.shape == (14, 6, 5, 64)
    assert (store.reducers, store.dtype, store.conditions) == (GRID_REDUCERS, "bfloat16", ("in_context", "re_read"))
    assert set(store.column("set")) == {"A", "eval"}
    made_from = {"model", "eos_token_ids", "axes", "bank", "protocol", "samples", "versions"}
    assert set(store.settings) == made_from | {"flags"}  # these tests compile with fewer optimisations
    assert store.settings["model"]["name"] == "model"
    # What only the analysis, or another study, asks for does not matter.
    study.grid_store(
        tiny(estimators=("logistic",), condition="in_context", cross_sets=("B",), readout="article"), workdir
    )
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
    assert (workdir / "ablate.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "protocol.seed = 0, and this command has 1"),
        ({"calibration_tokens": 5}, "protocol.max_new_tokens = 4, and this command has 5"),
        ({"samples": 2}, "samples = 1, and this command has 2"),
        ({"state_dtype": "float32"}, "protocol.readout = "),
        ({"axes": ("warm_cold",)}, "axes = "),
        ({"dtype": "bfloat16"}, "model.dtype = "),
        ({"plain_text": True}, "model.plain_text = false"),
    ],
)
def test_a_folder_of_another_collection_is_refused(tiny, workdir, monkeypatch, changes, said):
    monkeypatch.setattr(api.Plan, "run", refuse)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"was made with {said}"):
        study.grid_store(tiny(**changes), workdir)
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_an_unfinished_grid_goes_on_and_a_damaged_one_names_the_command(tiny, workdir, tmp_path):
    folder = tmp_path / "units" / "ablation"
    folder.mkdir(parents=True)
    (folder / "00001.safetensors").write_bytes((workdir / "units/ablation/00001.safetensors").read_bytes())
    study.grid_store(tiny(), tmp_path)
    for path in (workdir / "units" / "ablation").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    (folder / "00000.safetensors").unlink()
    with pytest.raises(UserError, match=r"00000\.safetensors is missing or damaged; run scripts/ablate\.py again"):
        open_store(folder)
    study.grid_store(tiny(), tmp_path)  # which makes what is missing
    for path in (workdir / "units" / "ablation").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_an_unknown_state_dtype_is_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match="states cannot be kept in 'int8'; use one of float32, bfloat16"):
        study.grid_store(tiny(state_dtype="int8"), tmp_path)
    assert list(tmp_path.iterdir()) == []
