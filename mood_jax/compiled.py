"""Compiled programs kept on disk, so that the second start of a script compiles nothing again.

Scripts use it; importing the package does not. JAX's own variables rule: `JAX_COMPILATION_CACHE_DIR` names another
folder, `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable
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
    """mood_jax/compiled/MACHINE in the user's cache folder. Raises UserError where there is no home."""
    from mood_jax import files

    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(files.expanded(home)) / "mood_jax" / "compiled" / machine()


def keep_programs() -> str:
    """Turns the cache on where JAX's variables do not rule it, and says in one line where it is."""
    import jax

    from mood_jax import files
    from mood_jax.errors import UserError

    named = jax.config.values
    if not named["jax_enable_compilation_cache"]:
        return "not kept (JAX_ENABLE_COMPILATION_CACHE)"
    if named["jax_compilation_cache_dir"]:
        return str(named["jax_compilation_cache_dir"])
    try:
        folder = default_folder()
    except UserError as e:
        print(f"compiled programs are not kept: {e}; or set JAX_COMPILATION_CACHE_DIR", file=sys.stderr)
        return "not kept"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:
        print(
            f"compiled programs are not kept: {folder}: {files.reason(e)}; set JAX_COMPILATION_CACHE_DIR",
            file=sys.stderr,
        )
        return "not kept"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return str(folder)


class CompileLog:
    """A context in which every program that JAX compiles, or takes compiled from the disk, is told once.

    `tell` gets its seconds and a line with its shapes: "jit(decode_chunk): int32[64,96], 12 × float32[128,128]".
    `count` is how many there were.
    """

    _BEGUN = re.compile(r"Compiling (\S+) .*?types \((.*)\)\. Argument mapping", re.DOTALL)
    _ENDED = re.compile(r"Finished XLA compilation of (\S+) in ([\d.e+-]+) sec")
    _CHATTER = ("Finished ", "Compiling ", "Persistent compilation cache", "Not writing persistent", "Writing ")

    def __init__(self, tell: Callable[[float, str], None]):
        self.count = 0
        self._tell = tell
        self._begun: dict[str, str] = {}
        self._logger = logging.getLogger("jax._src")
        self._handler = logging.Handler(logging.DEBUG)
        self._handler.emit = self._emit  # type: ignore[method-assign]

    def __enter__(self) -> CompileLog:
        import jax

        self._before = (jax.config.values["jax_log_compiles"], self._logger.propagate)
        jax.config.update("jax_log_compiles", True)
        self._logger.addHandler(self._handler)
        self._logger.propagate = False  # JAX says it as a warning, every parameter by itself
        return self

    def __exit__(self, *_: object) -> None:
        import jax

        self._logger.removeHandler(self._handler)
        jax.config.update("jax_log_compiles", self._before[0])
        self._logger.propagate = self._before[1]

    def _emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if begun := self._BEGUN.match(message):
            self.count += 1
            shapes = Counter(re.findall(r"ShapedArray\(([^()]*)\)", begun[2]))
            told = (shape if n == 1 else f"{n} × {shape}" for shape, n in shapes.items())
            self._begun[begun[1]] = f"{begun[1]}: {', '.join(told) or 'no argument'}"
        elif (ended := self._ENDED.match(message)) and ended[1] in self._begun:
            self._tell(float(ended[2]), self._begun.pop(ended[1]))
        elif not message.startswith(self._CHATTER):
            logging.getLogger("jax").handle(record)
