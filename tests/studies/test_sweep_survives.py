"""A sweep that is killed at any moment, again and again, ends with the bytes of an undisturbed one.

Real processes, ended by SIGKILL: by their own hand while they prefill, decode, or write, and from outside at random.
MOOD_JAX_KILLS says how often (20 for the whole test; a few by default, to keep the suite short).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.studies.running import SMALL_FILES
from tests.studies.test_resume import KILLED_AT_WRITE
from tests.studies.tiny import ROOT, bank_file, checkpoint, command, environment

KILLS = int(os.environ.get("MOOD_JAX_KILLS", "4"))

# Runs a script, and ends it with SIGKILL in its n-th call of the engine's function `where`, a moment after it began.
KILLED_IN_ENGINE = """\
import os, runpy, signal, sys, threading
from mood_jax.generation import engine
n, where, script, *args = sys.argv[1:]
inner, calls = getattr(engine, where), 0
def outer(*a, **k):
    global calls
    calls += 1
    if calls == int(n):
        threading.Timer(0.002, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        inner(*a, **k)
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*a, **k)
setattr(engine, where, outer)
sys.argv = [script, *args]
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""
CONFIG = """\
from mood_jax.studies.config import study_config
from mood_jax.studies.sweep import sweep_config
def get_config():
    model = study_config({model!r}, bank={bank!r}, axes=("loud_quiet",), dtype="float32", calibration_tokens=6,
                         profile_tokens=6, batch_size=8, random_weights=False)
    return sweep_config({{"tiny": model}}, seeds=(0, 1))
"""


def flags_of(tmp_path: Path, workdir: str) -> list[str]:
    return [f"--config={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / workdir}"]


def start(tmp_path: Path, workdir: str, under: tuple[str, ...] = ()) -> subprocess.Popen:
    """`under`: Python code that starts the script, and its arguments."""
    env = environment(
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # compiles faster, and all starts alike
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    python, *rest = command("sweep", *flags_of(tmp_path, workdir))
    full = [python, "-c", *under, *rest] if under else [python, *rest]
    return subprocess.Popen(full, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_once(tmp_path: Path, dice: random.Random, how: str) -> bool:
    """Starts the sweep and ends it; False when it had come to its end before."""
    if how == "outside":
        process, wait = start(tmp_path, "killed"), dice.uniform(0, 2)
        assert process.stdout is not None
        process.stdout.readline()  # jax has started
        time.sleep(wait)
        process.kill()
    elif how == "write":
        where = dice.choice(("before", "within", "unnamed"))
        process = start(tmp_path, "killed", (KILLED_AT_WRITE, str(dice.randint(1, 12)), where))
    else:
        process = start(tmp_path, "killed", (KILLED_IN_ENGINE, str(dice.randint(1, 3)), how))
    out, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), out + err
    return process.returncode != 0


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sweep_that_is_killed_ends_with_the_same_bytes(tmp_path, seed):
    dice = random.Random(seed)
    model, bank = checkpoint(tmp_path / "model"), bank_file(tmp_path / "bank.yaml")
    (tmp_path / "sweep.py").write_text(CONFIG.format(model=str(model), bank=str(bank)), encoding="utf-8")
    undisturbed = start(tmp_path, "whole")
    out, err = undisturbed.communicate()  # the others then find its programs compiled
    assert undisturbed.returncode == 0, out + err

    ways = ["prefill", "write", "decode_chunk", "outside"]
    killed = 0
    for k in range(KILLS):
        killed += kill_once(tmp_path, dice, ways[k % len(ways)])
        units = tmp_path / "killed" / "units"
        for place in units.glob("*/*/*/done.json"):  # what looks whole is whole
            assert len(files(place.parent)) == 6
    assert killed > KILLS // 2

    # a full disk: one clear line, and nothing lost
    limited = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, *command("sweep", *flags_of(tmp_path, "killed"))],
        env=environment(JAX_ENABLE_COMPILATION_CACHE="0", JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if limited.returncode:  # else everything was there already
        assert limited.returncode == 2, limited.stderr
        assert limited.stderr.strip().splitlines()[-1].startswith("error: ")
    last = start(tmp_path, "killed")
    out, err = last.communicate()
    assert last.returncode == 0, out + err
    assert "2 units: 2 whole" in out
    assert files(tmp_path / "killed" / "units") == files(tmp_path / "whole" / "units")
    assert not any(p.is_file() for p in (tmp_path / "killed" / "partial").rglob("*"))

    # a unit that a broken machine has cut
    cut = tmp_path / "killed" / "units" / "tiny" / "A" / f"seed_{dice.randrange(2)}" / "profile" / "profile.json"
    os.truncate(cut, dice.randrange(cut.stat().st_size))
    last = start(tmp_path, "killed")
    out, err = last.communicate()
    assert last.returncode == 0, out + err
    assert "made again: profile/profile.json has" in out
    assert files(tmp_path / "killed" / "units") == files(tmp_path / "whole" / "units")
