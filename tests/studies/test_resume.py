"""Killed at any moment and started again, calibrate and measure leave the bytes of an undisturbed run.

Real processes, ended by SIGKILL: from outside while they generate, and by their own hand in the middle of a write.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.studies.tiny import ROOT, bank_file, checkpoint, command, environment

FINAL = {
    "calibrate": [
        f"calibration/{name}"
        for name in (
            "responses.jsonl",
            "calibration.safetensors",
            "calibration.json",
            "states.safetensors",
            "states.json",
        )
    ],
    "measure": [f"profile/{name}" for name in ("responses.jsonl", "profile.json", "states.safetensors", "states.json")],
}
UNITS = {"calibrate": "units/calibration", "measure": "units/profile"}

# Runs a script, and ends it with SIGKILL in its n-th write: before the file, within it, or before it gets its name.
KILLED_AT_WRITE = """\
import os, runpy, signal, sys
from mood_jax import artifacts
n, where, script, *args = sys.argv[1:]
write, done = artifacts.write_bytes, 0
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
class Half:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data): self.file.write(data[: len(data) // 2]); self.file.flush(); kill()
def write_bytes(path, data):
    global done
    done += 1
    if done == int(n):
        if where == "before": kill()
        if where == "within":
            opened = artifacts.Path.open
            artifacts.Path.open = lambda self, *a, **k: Half(opened(self, *a, **k))
        if where == "unnamed": artifacts.Path.replace = kill
    write(path, data)
artifacts.write_bytes = write_bytes
sys.argv = [script, *args]
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""


class Runs:
    """The same two commands, in as many work folders as are asked for."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        model, bank = checkpoint(folder / "model"), bank_file(folder / "bank.yaml")
        self.flags = [
            f"--config={ROOT}/configs/embedded.py",
            f"--config.model={model}",
            f"--config.bank={bank}",
            "--config.axes=loud_quiet",
            "--config.calibration_tokens=6",
            "--config.profile_tokens=6",
        ]

    def start(self, script: str, workdir: str, under: tuple[str, ...] = (), cached: bool = True) -> subprocess.Popen:
        """`cached`: compiled programs are kept from start to start, which the undisturbed run does without."""
        batch = {"calibrate": 4, "measure": 8}[script]
        flags = [*self.flags, f"--config.batch_size={batch}", f"--workdir={self.folder / workdir}"]
        env = environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # every start compiles, and all alike
        if cached:
            env |= {
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
        python, *rest = command(script, *flags)
        full = [python, "-c", KILLED_AT_WRITE, *under, *rest] if under else [python, *rest]
        return subprocess.Popen(full, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, script: str, workdir: str, **options) -> str:
        """Runs to the end; what it said on stderr."""
        out, err = (process := self.start(script, workdir, **options)).communicate()
        assert process.returncode == 0, out + err
        assert "written:" in out
        return err

    def kill_in_write(self, script: str, workdir: str, n: int) -> None:
        where = self.random.choice(("before", "within", "unnamed"))
        print(f"{script}: killed {where} its write {n}")
        process = self.start(script, workdir, under=(str(n), where))
        out, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, out + err

    def kill_after_units(self, script: str, workdir: str, more: int) -> None:
        """SIGKILL from outside, a moment after so many units more than now are there, the last one never awaited."""
        folder, wait = self.folder / workdir / UNITS[script], self.random.uniform(0, 0.3 if more else 3)
        units = min(len(list(folder.glob("*.safetensors"))) + more, 3)
        print(f"{script}: killed {wait:.3f} s after unit {units}")
        process = self.start(script, workdir)
        assert process.stdout is not None
        process.stdout.readline()  # jax has started
        while process.poll() is None and len(list(folder.glob("*.safetensors"))) < units:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.communicate()

    def files(self, workdir: str) -> list[str]:
        """All but TensorBoard's logs, which have the time in their names and in themselves."""
        folder = self.folder / workdir
        names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        return sorted(name for name in names if "tfevents" not in name)

    def unit(self, script: str, workdir: str, k: int) -> Path:
        return self.folder / workdir / UNITS[script] / f"{k:05d}.safetensors"

    def same(self, script: str) -> None:
        for name in FINAL[script]:
            assert (self.folder / "killed" / name).read_bytes() == (self.folder / "whole" / name).read_bytes(), name
        assert self.files("killed") == self.files("whole")


@pytest.fixture
def runs(tmp_path, seed) -> Runs:
    return Runs(tmp_path, seed)


def test_a_killed_run_is_finished_by_the_same_command_with_the_same_bytes(runs):
    undisturbed = runs.start("calibrate", "whole", cached=False)
    # Meanwhile, the same with interruptions: in the first batch, …
    runs.kill_after_units("calibrate", "killed", 0)
    # … in the writing of the settings or of the first units, …
    runs.kill_in_write("calibrate", "killed", runs.random.randint(1, 3))
    # … between or in the units, …
    runs.kill_after_units("calibrate", "killed", runs.random.randint(1, 2))
    out, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, out + err
    assert len(list((runs.folder / "whole" / UNITS["calibrate"]).iterdir())) == 4

    # … with a unit that a broken machine has cut and what another killed write has left, …
    k = runs.random.randrange(4)
    unit, whole = runs.unit("calibrate", "killed", k), runs.unit("calibrate", "whole", k).read_bytes()
    unit.write_bytes(whole[: runs.random.randrange(len(whole))])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    unit.with_name(f".{unit.name}.{ended.pid}.tmp").write_bytes(whole[:100])
    # … and in the writing of the final files.
    missing = 1 + sum(not runs.unit("calibrate", "killed", other).exists() for other in range(4))
    runs.kill_in_write("calibrate", "killed", missing + runs.random.randint(1, 5))
    assert unit.read_bytes() == whole
    err = runs.finish("calibrate", "killed")
    assert "4 of 4 batches were there already" in err
    runs.same("calibrate")

    # The same for the profile. A finished calibration stays what it is.
    before = {name: (runs.folder / "killed" / name).stat().st_mtime_ns for name in FINAL["calibrate"]}
    undisturbed = runs.start("measure", "whole", cached=False)
    runs.kill_after_units("measure", "killed", runs.random.randint(0, 2))
    there = sum(runs.unit("measure", "killed", k).exists() for k in range(4))
    claim = 0 if (runs.folder / "killed" / "measure.json").exists() else 1
    runs.kill_in_write("measure", "killed", claim + 4 - there + runs.random.randint(1, 4))
    unit = runs.unit("measure", "killed", runs.random.randrange(4))
    os.truncate(unit, runs.random.randrange(unit.stat().st_size))
    err = runs.finish("measure", "killed")
    assert f"{unit.name} is done again: " in err
    out, err = undisturbed.communicate()
    assert undisturbed.returncode == 0, out + err
    runs.same("measure")
    assert {name: (runs.folder / "killed" / name).stat().st_mtime_ns for name in FINAL["calibrate"]} == before
