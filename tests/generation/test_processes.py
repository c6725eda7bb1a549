"""Two processes with one device each, as on two hosts, against one: the same responses, states, calibration and scores.

They share a mesh and no folder: the second is given a work folder of its own, which it never makes.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mood_jax import probes
from mood_jax.artifacts import Calibration, read_jsonl, read_tensors
from tests.studies.running import CONFIG, in_this_process
from tests.studies.tiny import ROOT, bank_file, checkpoint, command, environment

pytestmark = pytest.mark.usefixtures("unoptimised")

# Runs a script whose evidence, process 0's work alone, is that of the file `block`; tries the parts when all have met.
RUN = """
import json, os, runpy, sys
from pathlib import Path
import jax, numpy as np
from mood_jax import probes, processes
from mood_jax.errors import UserError
from mood_jax.models import sharding

def refused(kind, work):
    try:
        work()
    except kind as e:
        return str(e)

def fail(line):
    raise UserError(line)

def try_parts(block):
    first = jax.process_index() == 0
    assert processes.count() == 2 and processes.is_first() == first
    long = "ä" * processes.MESSAGE
    assert processes.on_first(lambda: [processes.on_first(processes.is_first), long]) == [True, long]
    assert refused(processes.SharedError, lambda: processes.on_first(lambda: fail("one"))) == "one"
    assert processes.together(lambda: first) == first
    lone = lambda: None if first else fail("two")
    assert refused(processes.SharedError, lambda: processes.together(lone)) == "process 1: two"
    for path in (block, block.parent):
        there = processes.shared(path)
        assert (there == path) == first
        assert (there if path is block else there / block.name).read_bytes() == block.read_bytes()
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    for mesh, axes in (((2, 1), ("batch", None)), ((1, 2), ("ff", None))):
        mesh = sharding.make_mesh(*mesh)
        placed = sharding.put(x, sharding.sharding(mesh, x.shape, axes))
        assert sharding.spans_processes(mesh) and placed.addressable_shards[0].data.shape == (3, 5)
        np.testing.assert_array_equal(sharding.to_host(placed), x)
    assert "leaves out all devices of 1 of the 2 processes" in refused(UserError, lambda: sharding.make_mesh(1, 1))

block, script, *args = sys.argv[1:]
probes.evidence = lambda *a, **k: [json.load(open(block))]
start = processes.start
processes.start = lambda *named: (start(*named), try_parts(Path(block)))
sys.argv, sys.path[0] = [script, *args], os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


def run_two(block: Path, script: str, *flags: object, workdirs: list[Path]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of both."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started = []
    for k, workdir in enumerate(workdirs):
        joining = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={k}")
        _, *rest = command(script, *map(str, flags), f"--workdir={workdir}", *joining)
        full = [sys.executable, "-c", RUN, str(block), *rest]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # What spans processes is compiled by each of them, whatever the cache on disk holds.
        env = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")
        started.append(subprocess.Popen(full, env=env, cwd=ROOT, text=True, **pipes))
    try:
        said = [p.communicate(timeout=600) for p in started]
    finally:
        for p in started:
            p.kill()
    return [(p.returncode, *x) for p, x in zip(started, said, strict=True)]


@pytest.fixture
def block(tmp_path, monkeypatch) -> Path:
    """A file with the evidence that all runs have, since compiling it would take longer than everything else."""
    shipped = next(iter(sorted((ROOT / "calibrations").glob("*/calibration.json"))))
    path = tmp_path / "block" / "evidence.json"
    path.parent.mkdir()
    path.write_text(json.dumps(json.loads(shipped.read_text(encoding="utf-8"))["evidence"][0]), encoding="utf-8")
    monkeypatch.setattr(probes, "evidence", lambda *a, **k: [json.loads(path.read_text(encoding="utf-8"))])
    return path


def test_two_processes_calibrate_and_measure_as_one(tmp_path, monkeypatch, capsys, block):
    model, bank = checkpoint(tmp_path / "model", often_ends=True), bank_file(tmp_path / "bank.yaml")
    flags = [CONFIG, f"--config.model={model}", f"--config.bank={bank}", "--config.axes=loud_quiet"]
    flags += ["--config.calibration_tokens=6", "--config.batch_size=8", "--config.random_weights=False"]
    flags += ["--config.profile_tokens=6"]
    one = in_this_process(monkeypatch, capsys, "calibrate", *flags, f"--workdir={tmp_path}/one")
    assert one.status == 0, one.err

    # Of the two batches the second is there already, in the folder of process 0 alone.
    unit = "units/calibration/00001.safetensors"
    (tmp_path / "two" / unit).parent.mkdir(parents=True)
    shutil.copy(tmp_path / "one" / unit, tmp_path / "two" / unit)
    kept = (tmp_path / "two" / unit).stat().st_mtime_ns
    folders = [tmp_path / "two", tmp_path / "nowhere"]
    (status, out, err), other = run_two(block, "calibrate", *flags, "--config.mesh_data=2", workdirs=folders)
    assert status == 0, err + other[2]
    assert "2 × cpu of 2 processes" in out
    assert "1 of 2 batches were there already" in err
    assert (other[0], "calibration" in other[1] + other[2]) == (0, False), other
    assert not folders[1].exists()
    assert (tmp_path / "two" / unit).stat().st_mtime_ns == kept

    a, b = (Calibration.load(tmp_path / n / "calibration") for n in ("one", "two"))
    assert a.identity == b.identity
    records = [read_jsonl(tmp_path / n / "calibration" / "responses.jsonl") for n in ("one", "two")]
    assert records[0] == records[1]
    assert sum(r["n_tokens"] for r in records[0]) > 20
    states = [read_tensors(tmp_path / n / "calibration" / "states.safetensors") for n in ("one", "two")]
    for condition, want in states[0].items():
        assert np.abs(states[1][condition] - want).max() <= 1e-5 * np.abs(want).max()
    assert np.abs(a.directions - b.directions).max() <= 1e-4
    for x, y in zip((a.site_rms, *a.scaling), (b.site_rms, *b.scaling), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-5)

    # And the profile. The calibrations differ by rounding, so both are measured with the same.
    flags += [f"--config.calibration={tmp_path}/one/calibration"]
    one = in_this_process(monkeypatch, capsys, "measure", *flags, f"--workdir={tmp_path}/one")
    assert one.status == 0, one.err
    (status, out, err), other = run_two(block, "measure", *flags, "--config.mesh_data=2", workdirs=folders)
    assert status == 0, err + other[2]
    assert (other[0], "written" in other[1] + other[2]) == (0, False), other
    assert not folders[1].exists()
    records = [read_jsonl(tmp_path / n / "profile" / "responses.jsonl") for n in ("one", "two")]
    assert records[0] == records[1]
    assert sum(r["n_tokens"] for r in records[0]) > 20
    (x,), (y,) = (json.loads((tmp_path / n / "profile" / "profile.json").read_text())["axes"] for n in ("one", "two"))
    assert x["summary"].keys() == y["summary"].keys() > {"iqr", "pole"}
    for scale, found in x["summary"].items():
        for name in ("mean", "sd"):
            assert y["summary"][scale][name] == pytest.approx(found[name], rel=1e-3, abs=1e-3), (scale, name)


SWEEP = """
from mood_jax.studies.config import study_config
from mood_jax.studies.sweep import sweep_config

def get_config():
    options = {{"bank": "{bank}", "axes": ("loud_quiet",), "dtype": "float32", "random_weights": False}}
    options |= {{"calibration_tokens": 6, "profile_tokens": 6, "batch_size": 16, "mesh_data": {devices}}}
    return sweep_config({{"tiny": study_config("{model}", **options)}}, seeds=(4, 5))
"""


def test_two_processes_sweep_as_one(tmp_path, monkeypatch, capsys, block):
    model, bank = checkpoint(tmp_path / "model"), bank_file(tmp_path / "bank.yaml")
    for devices, name in ((1, "one"), (2, "two")):
        text = SWEEP.format(bank=bank, model=model, devices=devices)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    one = in_this_process(monkeypatch, capsys, "sweep", f"--config={tmp_path}/one.py", f"--workdir={tmp_path}/one")
    assert one.status == 0, one.err

    folders = [tmp_path / "two", tmp_path / "nowhere"]
    (status, out, err), other = run_two(block, "sweep", f"--config={tmp_path}/two.py", workdirs=folders)
    assert (status, other[0]) == (0, 0), err + other[2]
    assert "2/2 tiny/A/seed_5: done" in out
    assert list((tmp_path / "two" / "partial").rglob("*.safetensors")) == []
    assert not list(folders[1].rglob("done.json"))

    for seed in (4, 5):
        place = [tmp_path / name / "units" / "tiny" / "A" / f"seed_{seed}" for name in ("one", "two")]
        a, b = (json.loads((p / "done.json").read_text(encoding="utf-8")) for p in place)
        assert a["files"].keys() == b["files"].keys()
        for part in ("calibration", "profile"):
            x, y = (read_jsonl(p / part / "responses.jsonl") for p in place)
            assert x == y
        (x,), (y,) = (record["summary"]["axes"].values() for record in (a, b))
        assert y["mean"] == pytest.approx(x["mean"], rel=1e-3, abs=1e-3)
        assert y["ci95"] == pytest.approx(x["ci95"], rel=1e-3, abs=1e-3)
