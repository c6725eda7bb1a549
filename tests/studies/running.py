"""Runs the scripts for tests: their mains in this process, flags and all, or as a user does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass

import pytest
from absl import app, flags

from mood_jax import cli
from tests.studies.tiny import ROOT, command, environment

CONFIG = f"--config={ROOT}/configs/embedded.py"
app.define_help_flags()


@dataclass(frozen=True)
class Outcome:
    """What a script's end looks like from outside."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a user's mistake."""
        lines = [x for x in self.err.splitlines() if x.strip()]
        assert len(lines) == 1, self.err
        assert self.status == 2
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        assert len(lines[0]) < 700
        return lines[0]


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, *args: object
) -> Outcome:
    """Runs a script's main, and forgets its flags."""
    module = importlib.import_module(f"scripts.{name}")
    before, status = set(flags.FLAGS), 0
    capsys.readouterr()
    with monkeypatch.context() as m:
        m.setenv("HF_HUB_OFFLINE", "1")
        m.setattr(sys, "argv", [f"scripts/{name}.py", *map(str, args)])
        try:
            cli.run(module.main)
        except SystemExit as e:
            status = int(e.code or 0)
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            sys.modules.pop("config_config", None)  # the config file, which a second load would only add to
    return Outcome(status, *capsys.readouterr())


SMALL_FILES = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); " + (
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def in_a_process(name: str, *args: object, under: str = "") -> Outcome:
    """Runs a script as a user does; `under`: Python code that starts its arguments as a command."""
    full = [*([sys.executable, "-c", under] if under else []), *command(name, *map(str, args))]
    done = subprocess.run(full, env=environment(), cwd=ROOT, capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)
