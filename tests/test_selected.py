"""A selected readout: its file, what a model makes of it, and calibrate and measure with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mood_jax as mj
from mood_jax import readout as readouts
from mood_jax.artifacts import Selected, json_bytes, load_readout, read_json, write_json
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.readout import Readout
from mood_jax.studies import calibrate
from mood_jax.studies import config as study
from tests.studies.running import CONFIG, Outcome, in_this_process
from tests.studies.tiny import bank_file, checkpoint

CHOSEN = Readout("resid_post@1, final_norm", ("resid_post@1", "final_norm"), (0.25, 0.75), "mean", "response", True)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("llama"))), dtype="float32")


@pytest.fixture(scope="module")
def selected(model) -> Selected:
    identity = {"model": calibrate.identity(model), "samples": 1}
    return Selected(CHOSEN, "whitened", {"auc": 0.1 + 0.2, "folds": [CHOSEN.name] * 5}, identity)


@pytest.fixture
def path(selected, tmp_path) -> Path:
    selected.save(tmp_path / "ablation" / "selected.json")
    return tmp_path / "ablation" / "selected.json"


def config(named: object = "last4", **changes: Any) -> Any:
    return study.study_config("", readout=str(named), **changes)


# The file


def test_it_comes_back_as_it_was(selected, path):
    assert Selected.load(path) == selected
    record = read_json(path)
    assert set(record) == {"format", "readout", "estimator", "nested", "identity"}
    assert record["format"] == 1
    assert set(record["readout"]) == {"name", "sites", "weights", "reducer", "span", "normalise"}
    before = path.read_bytes()
    Selected.load(path).save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": 2}, r"is not a selected readout of format 1; make one with scripts/ablate\.py"),
        ({"format": None}, "is not a selected readout of format 1"),
        ({"estimator": None}, r"is damaged \(no 'estimator'\)"),
        ({"estimator": 3}, "is damaged"),
        ({"nested": None}, "is damaged"),
        ({"identity": {}}, r"is damaged \(no 'model'\)"),
        ({"identity": {"model": {"fingerprint": 3}}}, "is damaged"),
        ({"readout": None}, "is damaged"),
        ({"readout": {"name": "x"}}, "is damaged"),
        ({"readout.sites": []}, r"is damaged \(0 sites, 2 weights\)"),
        ({"readout.weights": [1.0]}, r"is damaged \(2 sites, 1 weights\)"),
        ({"readout.weights": [0, 0]}, "is damaged"),
        ({"readout.weights": [1, "x"]}, "is damaged"),
        ({"readout.span": "all"}, "is damaged"),
        ({"readout.normalise": "no"}, "is damaged"),
        ({"readout.nonsense": 1}, "is damaged"),
    ],
)
def test_a_file_that_is_none_is_refused(path, fields, said):
    record = read_json(path)
    for field, value in fields.items():
        node, _, key = field.rpartition(".")
        (record[node] if node else record)[key] = value
    write_json(path, {k: v for k, v in record.items() if v is not None})
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} {said}"):
        Selected.load(path)


def test_a_missing_or_broken_file_is_named(path, tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*/none/selected\.json"):
        Selected.load(tmp_path / "none" / "selected.json")
    for text in ("[1]", '{"format": 1', ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"selected\.json is damaged"):
            Selected.load(path)


# What a model makes of it


def test_presets_and_files_are_told_apart(selected, path, monkeypatch):
    for name in readouts.PRESETS:
        assert load_readout(name, 6) == (readouts.preset(name, 6), None)
    assert load_readout(str(path), 4) == (CHOSEN, selected)
    monkeypatch.chdir(path.parent)
    assert load_readout("selected.json", 4) == (CHOSEN, selected)
    said = "unknown readout 'last5'; use one of last4, article, or the path of a selected.json"
    with pytest.raises(UserError, match=re.escape(said)):
        load_readout("last5", 6)
    with pytest.raises(UserError, match="no such file: nowhere/selected"):
        load_readout("nowhere/selected", 6)


def test_sites_that_a_model_does_not_have_are_named(selected, path):
    replace(selected, readout=replace(CHOSEN, sites=("embed", "resid_post@5"))).save(path)
    assert load_readout(str(path), 6)[0].sites == ("embed", "resid_post@5")
    with pytest.raises(UserError, match=r"selected\.json reads resid_post@5, and this model has 5 blocks"):
        load_readout(str(path), 5)


def test_another_readout_under_a_presets_name_is_refused(selected, path):
    replace(selected, readout=readouts.preset("last4", 6)).save(path)
    assert load_readout(str(path), 6)[0] == readouts.preset("last4", 6)
    with pytest.raises(UserError, match=r"calls its readout 'last4', which is another one"):
        load_readout(str(path), 7)


def test_descriptions_tell_selected_readouts_apart():
    """They tie work folders to readouts, and a file may say any name."""
    others = [
        {},
        {"weights": (0.2, 0.8)},
        {"sites": ("resid_post@2", "final_norm")},
        {"reducer": "last"},
        {"span": "article"},
        {"normalise": False},
        {"name": "other"},
    ]
    assert len({replace(CHOSEN, **o).describe() for o in others}) == len(others)
    assert "0.25 resid_post@1" in CHOSEN.describe()


def test_the_config_takes_it_with_its_estimator_unless_another_is_named(model, path, capsys):
    protocol = study.protocol(config(path, seed=4), model, 9)
    assert (protocol.readout, protocol.max_new_tokens, protocol.seed) == (CHOSEN, 9, 4)
    assert study.calibration_options(config(path), model)["estimator"] == "whitened"
    assert study.calibration_options(config(path, estimator="logistic"), model)["estimator"] == "logistic"
    assert study.calibration_options(config(), model)["estimator"] == "mean_difference"
    assert capsys.readouterr().out == ""


def test_one_of_another_checkpoint_is_taken_and_a_line_says_so(model, selected, path, capsys):
    other = selected.identity["model"] | {"name": "other", "fingerprint": "0" * 32}
    replace(selected, identity={"model": other}).save(path)
    assert study.protocol(config(path), model, 9).readout == CHOSEN
    said = capsys.readouterr().out.splitlines()
    assert said == [f"note: {path} was selected on another checkpoint (other) than {model.checkpoint.folder.name}"]


def test_calibrating_with_a_selected_readout(model, selected, path, tmp_path, monkeypatch):
    """Its sites and reducer are read, its weights combine them, its estimator fits: spied on, against a plain loop."""
    seen = {}

    def analyse(axes, collected, protocol, made_from, *, estimator, base):
        assert base == "A"
        seen.update(collected=collected, protocol=protocol, made_from=made_from, estimator=estimator)
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "analyse", analyse)
    source = mj.bank.load(bank_file(tmp_path / "bank.yaml"))
    options = {"source": source, "max_new_tokens": 4, "batch_size": 14, "control": False}
    with pytest.raises(KeyboardInterrupt):
        mj.calibrate(model, [source.axis("loud_quiet")], readout=str(path), **options)
    assert seen["protocol"].readout == CHOSEN
    assert (seen["estimator"], seen["made_from"]["estimator"]) == ("whitened", "whitened")
    assert seen["made_from"]["protocol"]["readout"] == CHOSEN.describe()
    json_bytes(seen["made_from"])
    collected = seen["collected"]
    assert collected.states["in_context"].shape == (14, 2, 1, 64)
    asks = calibrate.asks(source, [source.axis("loud_quiet")])
    tokens = [r["tokens"] for r in collected.records]
    want = mj.read(model, [a.messages for a in asks], tokens, sites=CHOSEN.sites, reducers=["mean"], batch_size=14)
    np.testing.assert_allclose(collected.states["in_context"], want, rtol=1e-3, atol=1e-4)


def test_unknown_estimators_show_before_anything_is_generated(model, selected, path, tmp_path, monkeypatch):
    monkeypatch.setattr(api.Plan, "run", lambda self, k: pytest.fail("a batch was generated"))
    source = mj.bank.load(bank_file(tmp_path / "bank.yaml"))
    said = "unknown estimator 'median'; use one of mean_difference, logistic, whitened"
    with pytest.raises(UserError, match=said):
        mj.calibrate(model, [source.axis("loud_quiet")], source=source, estimator="median")
    replace(selected, estimator="median").save(path)
    with pytest.raises(UserError, match=said):
        mj.calibrate(model, [source.axis("loud_quiet")], source=source, readout=str(path))


# The scripts


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., Outcome]:
    return partial(in_this_process, monkeypatch, capsys)


def test_the_scripts_take_it_and_refuse_a_bad_one_in_one_line(script, model, selected, path, tmp_path, monkeypatch):
    monkeypatch.setattr(api.Plan, "run", lambda self, k: pytest.fail("a batch was generated"))
    folder, workdir = model.checkpoint.folder, tmp_path / "run"
    args = (CONFIG, f"--config.model={folder}", "--config.axes=warm_cold", f"--workdir={workdir}")
    for readout, said in (
        (tmp_path / "none.json", r"no such file: .*none\.json"),
        ("last5", "unknown readout 'last5'; use one of last4, article, or the path of a selected"),
    ):
        assert re.search(said, script("calibrate", *args, f"--config.readout={readout}").line)
    path.write_text(json.dumps(read_json(path) | {"format": 9}))
    assert "is not a selected readout of format 1" in script("calibrate", *args, f"--config.readout={path}").line
    selected.save(path)
    line = script("calibrate", *args, f"--config.readout={path}", "--config.estimator=median").line
    assert "unknown estimator 'median'; use one of mean_difference, logistic, whitened" in line
    line = script("calibrate", *args, "--config.cross_sets=B,D").line
    assert "unknown set 'D' to compare with A; use some of B, C" in line
    assert not workdir.exists()
