"""Bad input to calibrate and measure: one line that names the thing and the remedy, status 2, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mood_jax as mj
from mood_jax import bank
from mood_jax.artifacts import Calibration
from mood_jax.generation import api
from mood_jax.readout import preset
from mood_jax.studies import calibrate as study
from mood_jax.studies.collect import Protocol
from tests.studies.planted import made_calibration
from tests.studies.running import CONFIG, Outcome, in_a_process, in_this_process
from tests.studies.tiny import ROOT, checkpoint, environment


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., Outcome]:
    return partial(in_this_process, monkeypatch, capsys)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


@pytest.fixture
def nothing_runs(monkeypatch) -> None:
    """A mistake must show before the first batch, which on a real model takes minutes."""

    def run(self, k):
        raise AssertionError("a batch was generated")

    monkeypatch.setattr(api.Plan, "run", run)


@pytest.fixture
def workdir(tmp_path) -> Path:
    return tmp_path / "run"


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# Checkpoints


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="mamba")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def nan(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan

    edit_weights(folder, change)


def missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.__delitem__("model.norm.weight"))


def extra_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.layers.9.extra.weight": np.zeros(3, np.float32)}))


def misshapen_tensor(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}))


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("chat_template*")]:
        path.unlink()


def short_context(folder: Path) -> None:
    edit_json(folder / "config.json", max_position_embeddings=40)


def three_layers(folder: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if ".layers.3." in n]:
            del tensors[name]

    edit_weights(folder, change)
    edit_json(folder / "config.json", num_hidden_layers=3)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", ["calibrate", "measure"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_folder, "no such folder: {}; give a checkpoint folder or a hub id"),
        (pickle_only, r"{} holds only pickle weights \(pytorch_model\.bin\).*convert them to safetensors"),
        (unknown_architecture, r"config\.json: unknown architecture 'mamba'; supported are"),
        (truncated, r"model\.safetensors is truncated or damaged .*; download the file again"),
        (nan, r"tensor model\.layers\.2\.mlp\.up_proj\.weight holds NaN or infinite values; download"),
        (missing_tensor, r"{} lacks the tensor model\.norm\.weight; the checkpoint is incomplete"),
        (extra_tensor, r"holds the tensor model\.layers\.9\.extra\.weight, for which .* has no place"),
        (misshapen_tensor, r"tensor model\.norm\.weight has shape \(63,\), and the config asks for \(64,\)"),
        (no_tokenizer, "{}: no tokenizer in the folder"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(script, copy, workdir, name, spoil, said):
    spoil(copy)
    line = script(name, CONFIG, f"--config.model={copy}", f"--workdir={workdir}").line
    assert re.search(said.replace("{}", re.escape(str(copy))), line), line
    assert not workdir.exists()


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            short_context,
            r"warm_cold/A/01\|warm\|0 needs \d+ tokens \(with 96 new tokens\), .* context holds 40; shorten",
        ),
        (three_layers, "the readout 'last4' reads four sites, and this model has only 3 blocks"),
    ],
)
def test_a_checkpoint_that_is_too_small(script, copy, workdir, spoil, said):
    spoil(copy)
    line = script("calibrate", CONFIG, f"--config.model={copy}", f"--workdir={workdir}").line
    assert re.search(said, line), line
    assert not workdir.exists()


def test_a_hub_id_without_a_network():
    """In a process of its own, since the hub client reads its environment when it is imported."""
    got = in_a_process("calibrate", CONFIG, "--config.model=nobody/no-such-model", "--workdir=/nowhere/run")
    assert "nobody/no-such-model is not in the local hub cache and the hub could not be reached" in got.line


# Config and flags


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.axes=warm_hot", "unknown axis 'warm_hot'; use one of: warm_cold, "),
        ("--config.axes=warm_cold,hot", "unknown axis 'hot'; use one of: warm_cold, "),
        ("--config.axes=(3,)", "unknown axis '3'"),
        ("--config.readout=last5", "unknown readout 'last5'; use one of last4, article"),
        ("--config.calibration_tokens=0", "max_new_tokens must be at least 1, not 0"),
        ("--config.calibration_tokens=-3", "max_new_tokens must be at least 1, not -3"),
        ("--config.samples=0", "samples must be at least 1, not 0"),
        ("--config.batch_size=-1", "the batch size must be at least 1, not -1"),
        ("--config.top_p=1.5", r"top-p must lie in \(0, 1\], not 1\.5"),
        ("--config.temperature=0", "the temperature must be above 0, not 0"),
        ("--config.dtype=int8", "dtype 'int8' is unknown; use float32 or bfloat16"),
        ("--config.revision=main", "is a local folder, which has no revision 'main'"),
        ("--config.mesh_data=64", "64"),
        ("--config.mesh_model=0", "mesh"),
        ("--config.bank=/nowhere/bank.yaml", r"/nowhere/bank\.yaml: there is no such file"),
        ("--config.nonsense=3", "the config has no field 'nonsense'; it has axes, bank, batch_size, "),
        ("--config.axess=warm_cold", "the config has no field 'axess'"),
        ("--config.model.name=3", r"the config has no field 'model\.name'; it has axes, "),
        ("--config.seed=abc", "--config.seed=abc: .*'abc'"),
        ("--config.batch_size=2.5", "--config.batch_size=2.5: .*'2.5'"),
        ("--nonsense=3", "Unknown command line flag 'nonsense'; the options are --config=FILE"),
        ("--workdirs=x", "Unknown command line flag 'workdirs'"),
        ("surplus", "unexpected argument 'surplus'"),
    ],
)
def test_a_config_that_cannot_be(script, good, workdir, flag, said):
    line = script(
        "calibrate", CONFIG, f"--config.model={good}", "--config.axes=warm_cold", flag, f"--workdir={workdir}"
    ).line
    assert re.search(said, line), line
    assert not workdir.exists()


def test_no_config_and_no_workdir(script, good, workdir, tmp_path):
    assert "no --config given; name one of configs/*.py" in script("calibrate", f"--workdir={workdir}").line
    assert "no --workdir given; name a folder" in script("calibrate", CONFIG, f"--config.model={good}").line
    assert not workdir.exists()
    for more in ([], ["--config.seed=1"]):
        line = script("calibrate", f"--config={tmp_path}/none.py", *more, f"--workdir={workdir}").line
        assert f"the config file could not be read ([Errno 2] No such file or directory: '{tmp_path}/none.py')" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:\n", "the config file could not be read (invalid syntax (broken.py, line 1))"),
        ("x = 1\n", "has no attribute 'get_config'"),
        ("import no_such_module\n", "the config file could not be read (No module named 'no_such_module')"),
        (
            "def get_config():\n    raise ValueError('unknown model')\n",
            "broken.py: Error whilst parsing config file: Val",
        ),
        ("def get_config():\n    return {}\n", "get_config() of the config file returns no ConfigDict"),
        ("from ml_collections import ConfigDict as get_config\n", "the config lacks axes, bank, batch_size, "),
    ],
)
def test_a_config_file_that_is_none(script, workdir, tmp_path, text, said):
    (tmp_path / "broken.py").write_text(text)
    line = script("calibrate", f"--config={tmp_path}/broken.py", f"--workdir={workdir}").line
    assert said in line


MALFORMED = {
    "format: 1\naxes: [\n": r"bank\.yaml:\d: YAML: ",
    "format: 1\nquestions:\n  - id: warm_cold/A/77\n    txt: a\n": r"bank\.yaml:4: questions\[0\]\.txt: unknown field",
    "format: 1\nquestions:\n  - {id: nothing/A/01, text: What?}\n": r"bank\.yaml:3: .*unknown axis 'nothing'",
    'format: 1\nquestions:\n  - {id: warm_cold/A/01, text: " "}\n': r"bank\.yaml:3: .*\.text: the text is empty",
    "format: 2\n": r"bank\.yaml:1: format: ",
    "": r"bank\.yaml:1: ",
}


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("name", ["calibrate", "measure"])
@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_bank_is_named_with_file_and_line(script, good, workdir, tmp_path, name, text):
    path = tmp_path / "bank.yaml"
    path.write_text(text)
    line = script(name, CONFIG, f"--config.model={good}", f"--config.bank={path}", f"--workdir={workdir}").line
    assert re.search(re.escape(str(tmp_path)) + "/" + MALFORMED[text], line), line
    assert not workdir.exists()


# Calibrations


@pytest.fixture(scope="module")
def fitting(good) -> Calibration:
    """A calibration that says of itself that it was made for the good checkpoint."""
    model = mj.load_model(str(good), dtype="float32")
    source = bank.shipped()
    made_from = study.settings(model, source, source.axes()[:2], Protocol(preset("last4", 4), 8))
    return made_calibration(np.random.default_rng(4), model.config.d_model, made_from)


def foreign(c: Calibration) -> Calibration:
    return replace(c, identity=c.identity | {"model": c.identity["model"] | {"fingerprint": "0" * 32, "name": "other"}})


def half_precision(c: Calibration) -> Calibration:
    return replace(c, identity=c.identity | {"model": c.identity["model"] | {"dtype": "bfloat16"}})


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (
            foreign,
            [],
            r"made for another checkpoint \(other, 00000000…\) than .*; run scripts/calibrate\.py on this one",
        ),
        (half_precision, [], r"made with another dtype \(bfloat16\) than this run's \(float32\)"),
        (None, ["--config.readout=article"], r"made with another readout \(last4: .*\) than this run's \(article: "),
        (None, ["--config.plain_text=True"], "made with another chat template"),
        (None, ["--config.scale=iqrs"], "unknown scale 'iqrs'; use one of iqr, article, pole"),
        (None, ["--config.profile_tokens=0"], "max_new_tokens must be at least 1, not 0"),
    ],
)
def test_a_calibration_that_does_not_fit(script, good, fitting, workdir, change, more, said):
    (change(fitting) if change else fitting).save(workdir / "calibration")
    before = sorted(workdir.rglob("*"))
    line = script("measure", CONFIG, f"--config.model={good}", *more, f"--workdir={workdir}").line
    assert re.search(said, line), line
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.usefixtures("nothing_runs")
def test_no_calibration_or_a_damaged_one(script, good, fitting, workdir, tmp_path):
    model = f"--config.model={good}"
    line = script("measure", CONFIG, model, f"--workdir={workdir}").line
    assert re.search(r"no calibration for .*; run scripts/calibrate\.py with the same --config and --workdir", line)
    assert not workdir.exists()
    line = script("measure", CONFIG, model, f"--config.calibration={tmp_path}/none", f"--workdir={workdir}").line
    assert "holds no calibration.json; make one with scripts/calibrate.py" in line
    fitting.save(tmp_path / "c")
    os.truncate(tmp_path / "c" / "calibration.safetensors", 100)
    line = script("measure", CONFIG, model, f"--config.calibration={tmp_path}/c", f"--workdir={workdir}").line
    assert re.search(r"calibration\.safetensors is truncated or damaged", line)
    assert not workdir.exists()


# As a user sees it


def test_a_process_ends_with_status_2_and_one_line(good, tmp_path):
    for args, said in (
        (
            [CONFIG, f"--config.model={good}", "--config.axes=nothing", f"--workdir={tmp_path}/run"],
            "unknown axis 'nothing'",
        ),
        ([CONFIG, f"--config.model={good}", "--config.nonsense=1", f"--workdir={tmp_path}/run"], "nonsense"),
    ):
        assert said in in_a_process("calibrate", *args).line
    assert not (tmp_path / "run").exists()


WITHOUT_TORCH = """
import runpy, sys
import mood_jax
sys.argv = sys.argv[1:]
assert "transformers" not in sys.modules, "import mood_jax takes transformers with it"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as e:
    assert not e.code, e.code
assert "transformers" in sys.modules and sys.modules["torch"] is None
"""


def test_a_script_starts_without_torch(tmp_path):
    script = ROOT / "scripts" / "scale_table.py"
    full = [sys.executable, "-c", WITHOUT_TORCH, str(script), f"--workdir={tmp_path}"]
    done = subprocess.run(full, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
