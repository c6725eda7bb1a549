"""Compiled programs kept on disk: where, by whose word, and with the same results."""

import subprocess
import sys

from mood_jax.compiled import machine
from tests.studies.tiny import ROOT, environment

PROGRAM = """
from mood_jax import compiled
print(compiled.keep_programs())
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
x = jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x) @ x.T)[0])(jnp.arange(120.0).reshape(10, 12))
print(bytes(x.tobytes()).hex())
"""


def run(**more: str | None) -> tuple[str, str, str]:
    """(where programs are kept, result, stderr) in a process of its own."""
    env = {k: v for k, v in environment().items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    env |= {k: v for k, v in more.items() if v is not None}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, result = done.stdout.splitlines()
    return where, result, done.stderr


def test_the_second_start_finds_the_first_ones_programs_and_gives_the_same_bytes(tmp_path):
    where, first, _ = run(XDG_CACHE_HOME=str(tmp_path))
    assert where == str(tmp_path / "mood_jax" / "compiled" / machine())
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "mood_jax").rglob("*-cache")}
    assert kept
    again, second, errors = run(XDG_CACHE_HOME=str(tmp_path))
    assert (again, second, errors) == (where, first, "")
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "mood_jax").rglob("*-cache")}
    assert run(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="0")[1] == first


def test_the_variables_of_jax_rule(tmp_path):
    where, _, _ = run(XDG_CACHE_HOME=str(tmp_path / "a"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "b"))
    assert where == str(tmp_path / "b")
    where, _, _ = run(XDG_CACHE_HOME=str(tmp_path / "a"), JAX_ENABLE_COMPILATION_CACHE="0")
    assert where.startswith("not kept")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_one_line_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    where, _, errors = run(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert where == "not kept"
    assert errors.count("\n") == 1
    assert "set JAX_COMPILATION_CACHE_DIR" in errors


def test_processors_of_another_kind_have_another_folder(monkeypatch):
    here = machine()
    assert machine() == here
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert machine() != here
