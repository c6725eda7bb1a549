"""Work folders: one belongs to the settings that filled it, and a full disk leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mood_jax.artifacts import Calibration
from mood_jax.generation import api
from mood_jax.studies import calibrate as study
from tests.studies.running import CONFIG, SMALL_FILES, Outcome, in_a_process, in_this_process
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

TINY_RUN = ("--config.axes=loud_quiet", "--config.calibration_tokens=4", "--config.batch_size=14")


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., Outcome]:
    return partial(in_this_process, monkeypatch, capsys)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("good"))


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def left_over(folder: Path) -> list[str]:
    """Files that do not have their final form."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith(".") or "tmp" in p.name]


def test_another_runs_workdir_and_a_full_disk(script, good, tmp_path, monkeypatch):
    """The same folder throughout: a full disk ties it to nothing, a later one keeps what was there."""
    workdir, path = tmp_path / "run", bank_file(tmp_path / "bank.yaml")
    args = [CONFIG, f"--config.model={good}", f"--config.bank={path}", *TINY_RUN, f"--workdir={workdir}"]
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        got = script("calibrate", *args)
    errors = [x for x in got.err.splitlines() if not x.startswith("calibration: ")]  # progress was made
    assert len(errors) == 1
    said = r"error: .*/calibrate\.json could not be written \(No space left on device\); make room"
    assert re.search(said, errors[0])
    assert got.status == 2
    assert not [p for p in workdir.rglob("*") if p.is_file()]

    # The disk is full again at the end, after the units.
    save = Calibration.save
    with monkeypatch.context() as m:

        def full_at_the_end(self: Calibration, folder: Path) -> None:
            m.setattr(os, "fsync", full)
            save(self, folder)

        m.setattr(study.probes, "evidence", lambda *a, **k: [{}])
        m.setattr(Calibration, "save", full_at_the_end)
        got = script("calibrate", *args)
    assert "calibration.safetensors could not be written (No space left on device)" in got.err
    assert got.status == 2
    assert left_over(workdir) == []
    files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    assert sorted(p.name for p in files) == ["00000.safetensors", "calibrate.json"]

    # Now it belongs to these settings.
    monkeypatch.setattr(api.Plan, "run", lambda self, k: pytest.fail("a batch was generated"))
    for other, said in (
        ("--config.seed=1", "protocol.seed = 0, and this command has 1"),
        ("--config.axes=warm_cold", "axes = "),  # one more: a flag that is given twice asks for both
        ("--config.samples=2", "samples = 1, and this command has 2"),
        ("--config.dtype=bfloat16", 'model.dtype = "float32", and this command has "bfloat16"'),
    ):
        line = script("calibrate", *args, other).line
        assert f"{workdir} was made with {said}" in line
        assert "use another --workdir, or the first command's settings" in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == files


def test_a_file_system_that_takes_no_more(good, tmp_path):
    """The system's own refusal: no file of this process may grow beyond 2 kB."""
    path = bank_file(tmp_path / "bank.yaml")
    got = in_a_process(
        "calibrate",
        CONFIG,
        f"--config.model={good}",
        f"--config.bank={path}",
        *TINY_RUN,
        f"--workdir={tmp_path}/run",
        under=SMALL_FILES,
    )
    assert got.status == 2
    assert re.search(r"^error: .*/00000\.safetensors could not be written \(File too large\); make room", got.err, re.M)
    assert "Traceback" not in got.err
    assert left_over(tmp_path / "run") == []
    assert [p.name for p in (tmp_path / "run").rglob("*") if p.is_file()] == ["calibrate.json"]
