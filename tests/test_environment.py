"""What is around a script: terminal, home, platform, folders, flags. One line and status 2 where it cannot run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import pytest

from mood_jax import cli, processes
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.model import load_model
from tests.studies.running import CONFIG, in_this_process
from tests.studies.tiny import ROOT, checkpoint, environment

TABLE = [str(ROOT / "scripts" / "scale_table.py"), f"--config={ROOT}/configs/scale.py"]


@pytest.fixture
def script(monkeypatch, capsys):
    return partial(in_this_process, monkeypatch, capsys)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def nothing_is_loaded(monkeypatch) -> None:
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mood_jax.studies.config.load_model", load)
    monkeypatch.setattr(api.Plan, "run", load)


# Values


WRONG = {
    "seed": (-1, 2**32, 10**20),
    "samples": (0, -1, 2**31),
    "temperature": ("nan", "inf", "-inf", -0.5, 1e-9, 1e300, 0),
    "top_p": ("nan", "inf", 0, -1, 1.0001),
    "batch_size": (-1, 2**31),
    "calibration_tokens": (0, -5, 2**31),
    "profile_tokens": (0, -5),
    "mesh_data": (0, -1),
    "mesh_model": (0, -1),
    "dtype": ("", "float16", "Float32"),
    "readout": ("", "last", "/nowhere/selected.json"),
    "estimator": ("mean", "whitened,logistic"),
    "calibration_set": ("", "D", "eval"),
    "cross_sets": ("A", "D", "B,eval"),
    "scale": ("", "iqrs"),
    "state_dtype": ("", "int8"),
    "estimators": ("mean", "whitened,mean"),
    "condition": ("", "re-read"),
    "model": ("", " "),
    "bank": ("/nowhere.yaml", "~nobody_of_this_name/bank.yaml"),
    "axes": ("nothing", "warm_cold,nothing"),
}


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", ["calibrate", "measure", "ablate"])
@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in WRONG.items() for v in values])
def test_a_value_that_cannot_be_is_refused_before_the_model_is_loaded(script, good, tmp_path, name, field, value):
    if (name, field) == ("measure", "axes"):
        pytest.skip("a measurement has the axes of its calibration")
    args = [CONFIG, f"--config.model={good}", "--config.axes=warm_cold", f"--config.{field}={value}"]
    line = script(name, *args, f"--workdir={tmp_path}/run").line
    assert re.search(field.replace("_", ".").replace("axes", "axis"), line) or str(value) in line
    assert not (tmp_path / "run").exists()


CODE = """
from mood_jax.studies.config import study_config
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({{**study_config("embedded").to_dict(), {field!r}: {value}}})
"""


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("samples", v) for v in ("1.0", "True", "None", "'1'", "(1,)", "float('nan')")),
        *(("seed", v) for v in ("0.0", "False", "None", "'0'")),
        *(("temperature", v) for v in ("True", "None", "'.7'", "float('nan')", "float('inf')")),
        *(("random_weights", v) for v in ("1", "'yes'", "None")),
        *(("model", v) for v in ("3", "None", "('a',)")),
        *(("axes", v) for v in ("3", "None", "True")),
        *(("dtype", v) for v in ("None", "32", "('float32',)")),
        *(("batch_size", v) for v in ("64.0", "None", "True")),
    ],
)
def test_a_config_file_with_values_of_other_kinds(script, tmp_path, field, value):
    (tmp_path / "odd.py").write_text(CODE.format(field=field, value=value), encoding="utf-8")
    line = script("calibrate", f"--config={tmp_path}/odd.py", f"--workdir={tmp_path}/run").line
    assert field in line
    assert not (tmp_path / "run").exists()


def test_of_a_list_that_is_given_twice_the_last_counts(script, tmp_path):
    args = [
        "--config.models=llama3_1_70b",
        "--config.models=qwen2_5_72b",
        "--config.responses=7",
        "--config.responses=9",
    ]
    got = script("scale_table", TABLE[1], *args, f"--workdir={tmp_path}")
    assert got.status == 0
    assert "  models = ('qwen2_5_72b',)\n" in got.out
    assert "  responses = 9\n" in got.out


# Folders


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("name", ["calibrate", "measure", "ablate", "import_calibration", "scale_table"])
def test_a_workdir_that_is_a_file_or_under_one(script, tmp_path, name):
    (tmp_path / "file").write_text("x")
    config = TABLE[1] if name == "scale_table" else CONFIG
    assert "it is a file; name a folder" in script(name, config, f"--workdir={tmp_path}/file").line
    assert f"{tmp_path}/file is a file; name a folder" in script(name, config, f"--workdir={tmp_path}/file/a").line


def test_home_is_meant_in_every_path(script, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "scale.py").write_bytes((ROOT / "configs" / "scale.py").read_bytes())
    monkeypatch.chdir(tmp_path)
    got = script("scale_table", "--config=~/scale.py", "--workdir=~/run")
    assert got.status == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["scale.json", "table.md"]
    assert not (tmp_path / "~").exists()
    for field in ("model", "bank", "readout", "calibration", "param_cache", "published"):
        line = script("calibrate", CONFIG, f"--config.{field}=~nobody_of_this_name/x", "--workdir=~/run").line
        assert "no home folder is known for ~nobody_of_this_name" in line


# Platforms and settings


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize"), AssertionError(), KeyError("cuda"), OSError(2, "x")]
)
def test_a_platform_that_is_not_there(monkeypatch, error):
    platforms, there = jax.config.values["jax_platforms"], jax.devices()

    def devices():
        if jax.config.values["jax_platforms"] == "cuda":
            raise error
        return there

    monkeypatch.setattr(jax, "devices", devices)
    try:
        jax.config.update("jax_platforms", "cuda")
        with pytest.raises(UserError, match=r"JAX_PLATFORMS=cuda names no device .*; unset it; devices here are cpu"):
            processes.devices()
    finally:
        jax.config.update("jax_platforms", platforms)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_settings_under_which_draws_are_others(script, good, tmp_path):
    with jax.threefry_partitionable(False):
        line = script("calibrate", CONFIG, f"--config.model={good}", f"--workdir={tmp_path}/run").line
        assert "unset JAX_THREEFRY_PARTITIONABLE" in line
        with pytest.raises(UserError, match="JAX_THREEFRY_PARTITIONABLE"):
            load_model(str(good))
    assert not (tmp_path / "run").exists()


# As a user sees it


def run(*args: object, under: str = "", **env: str | None) -> subprocess.CompletedProcess[bytes]:
    """The script that needs no model, below a shell's redirections."""
    full = {k: v for k, v in (environment() | env).items() if v is not None}
    command = [sys.executable, *TABLE, *map(str, args)]
    return subprocess.run(["sh", "-c", f'"$@" {under}', "sh", *command], env=full, cwd=ROOT, capture_output=True)


def test_a_terminal_that_cannot_encode(tmp_path):
    """And a library's files, and the script's own, which are UTF-8 whatever the locale."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run(f"--workdir={tmp_path}", **plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"mood_jax 0.1.0 ? jax")
    assert "×" in (tmp_path / "table.md").read_text(encoding="utf-8")
    wrong = tmp_path / "ü"
    wrong.write_text("x")
    done = run(f"--workdir={wrong}", **plain)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: --workdir=")


def test_output_that_ends_or_is_closed(tmp_path):
    done = run(f"--workdir={tmp_path}/closed", under=">&- 2>&-")
    assert (done.returncode, len(list((tmp_path / "closed").iterdir()))) == (0, 2)
    if Path("/dev/full").exists():
        done = run(f"--workdir={tmp_path}/full", under="> /dev/full")
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        assert b"No space left on device; make room" in done.stderr


def test_a_broken_pipe_is_one_line(monkeypatch, capsys):
    def ended(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("mood_jax.benchmarks.scale.measure", ended)
    got = in_this_process(monkeypatch, capsys, "scale_table", TABLE[1], "--workdir=/tmp")
    assert "Broken pipe; the program that read this one's output has ended" in got.line


def test_the_current_folder_is_gone(script, monkeypatch, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "the current folder has been removed" in script("scale_table", TABLE[1], f"--workdir={tmp_path}/run").line
    os.chdir(tmp_path)


def test_descriptors_that_were_closed_are_taken(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    cli._prepare_streams()
    assert sys.stdout is not None
    print("é · ×")
