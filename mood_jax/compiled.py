"""Compiled programs kept on disk, so that the second start of a script compiles nothing again.

Scripts use it; importing the package does not. JAX's own variables rule: `JAX_COMPILATION_CACHE_DIR` names another
folder, `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

LEAST_SECONDS = 0.5  # programs that compile faster are not kept


def machine() -> str:
    """16 hexadecimal digits of what a compiled CPU program depends on: no two kinds of processor share programs, which
    XLA would load with a warning and run into instructions that the processor lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = [platform.processor()]
    telling = {line for line in lines if line.partition(":")[0].strip() in ("model name", "flags", "Features")}
    return hashlib.sha256("\n".join([platform.machine(), *sorted(telling)]).encode()).hexdigest()[:16]


def default_folder() -> Path:
    """mood_jax/compiled/MACHINE in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "mood_jax" / "compiled" / machine()


def keep_programs() -> str:
    """Turns the cache on where JAX's variables do not rule it, and says in one line where it is."""
    import jax

    named = jax.config.values
    if not named["jax_enable_compilation_cache"]:
        return "not kept (JAX_ENABLE_COMPILATION_CACHE)"
    if named["jax_compilation_cache_dir"]:
        return str(named["jax_compilation_cache_dir"])
    folder = default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as e:
        print(f"compiled programs are not kept: {folder}: {e.strerror}; set JAX_COMPILATION_CACHE_DIR", file=sys.stderr)
        return "not kept"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return str(folder)
