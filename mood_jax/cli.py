"""What every script's main shares: the flags --config and --workdir, the header, and one line for a user's mistake."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from mood_jax import files, numerics, processes, values
from mood_jax.compiled import keep_programs
from mood_jax.errors import UserError

_CONFIG_ERRORS = (AttributeError, ImportError, KeyError, NameError, OSError, SyntaxError, TypeError, ValueError)
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def run(
    main: Callable[[Any, Path], None],
    default_config: str | None = None,
    needs_workdir: bool = True,
    bucket: bool = False,
    processes_allowed: bool = False,
    torch_allowed: bool = False,
) -> None:
    """Parses flags, prints the resolved config, and calls main(config, workdir). `bucket`: the workdir may be one, and
    main reads the flag itself. `processes_allowed`: main may run in several processes (see `mood_jax.processes`).
    `torch_allowed`: main compares with torch; in other scripts' processes it cannot be imported, since transformers
    would do so wherever it is installed, for seconds and hundreds of megabytes, and tokenizers have no need of it.

    `~` is expanded in every field of the config, in the workdir and in the config's path. Before main a workdir is
    tried: it must be possible to write there.

    Exit status: 0 when main returns, 2 with one line on stderr for a UserError, 1 and a traceback for a defect.
    """
    _prepare_streams()
    if main.__module__ == "__main__" and not torch_allowed:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that it is not there
    config_flag = config_flags.DEFINE_config_file(
        "config", default_config, "A configs/*.py file with get_config(); override fields with --config.field=value."
    )
    workdir_flag = flags.DEFINE_string("workdir", None, "Folder for everything that is written; made when missing.")
    coordinator = flags.DEFINE_string(
        "coordinator", "", "One of several processes: host:port of process 0, or auto on a TPU pod and under SLURM."
    )
    number = flags.DEFINE_integer("num_processes", 0, "How many processes there are; not with --coordinator=auto.")
    this = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0; not with --coordinator=auto.")

    def call(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # jax tells at INFO which backends are not there
        try:
            if not _has_folder():
                raise UserError("the current folder has been removed; change to one that is there (cd)")
            if len(argv) > 1:
                raise UserError(
                    f"unexpected argument {argv[1]!r}; every option is --config.field=value or --workdir=DIR"
                )
            if not config_flag.present and default_config is None:
                raise UserError("no --config given; name one of configs/*.py")
            if needs_workdir and not workdir_flag.value:
                raise UserError("no --workdir given; name a folder for what this run writes")
            workdir = workdir_flag.value and files.expanded(workdir_flag.value)
            flags.FLAGS.workdir = workdir
            if not bucket and "://" in (workdir or ""):
                raise UserError(
                    f"--workdir={workdir} is a bucket, and this script writes to local folders; name one "
                    "(scripts/sweep.py writes to buckets)"
                )
            config = _expanded(_locked(config_flag.value))
            numerics.check_flags()
            if coordinator.value and not processes_allowed:
                raise UserError("this script runs in one process; leave --coordinator out")
            if coordinator.value:
                processes.start(coordinator.value, number.value, this.value)
                processes.silence_others()
            elif number.present or this.present:
                raise UserError("--num_processes and --process_id need --coordinator=host:port of process 0")
            print_header(config, keep_programs())
            if workdir and not bucket:
                processes.on_first(lambda: files.check_folder(Path(workdir)))
            main(config, Path(workdir or "."))
            sys.stdout.flush()  # a full disk or a closed pipe shows here, and not when the interpreter ends
            processes.finish()
        except processes.Elsewhere:
            processes.finish()
        except processes.SharedError as e:
            first = processes.is_first()
            processes.finish()  # all are here
            if first:
                fail(str(e))
            sys.exit(2)
        except UserError as e:
            fail(str(e))
        except OSError as e:
            if e.errno is None:
                raise
            where = "" if isinstance(e, BrokenPipeError) or not e.filename else f": {e.filename}"
            fail(f"{files.reason(e)}{where}; {files.remedy(e)}")

    def call_and_end(argv: list[str]) -> None:
        """A process that fails alone ends at once, since the others may never come to the place where it waits."""
        try:
            call(argv)
        except SystemExit as e:
            if processes.is_alone():
                processes.finish()
            elif not isinstance(e.__context__, processes.SharedError):
                processes.abandon(int(e.code or 0))
            raise
        except BaseException:
            if processes.count() > 1:
                traceback.print_exc()
                processes.abandon(1)
            raise

    try:
        app.run(call_and_end, flags_parser=_parse)
    except UserError as e:
        fail(str(e))


def _prepare_streams() -> None:
    """Output that always finds a place: a terminal that cannot encode a character shows another one for it."""
    files.own_streams()
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _has_folder() -> bool:
    """Is the current folder there? Relative paths, and some libraries, need one."""
    try:
        return Path.cwd().exists()
    except OSError:
        return False


def _arguments(argv: list[str]) -> list[str]:
    """The command line with `~` expanded in the config's path. Of a field that is given several times the last counts:
    ml_collections would add the items of lists up, and replace all other values."""
    names = [a.lstrip("-").partition("=")[0] if a.startswith("-") and "=" in a else "" for a in argv]
    last = {name: k for k, name in enumerate(names) if name.startswith("config.")}
    kept = [a for k, a in enumerate(argv) if last.get(names[k], k) == k]
    return [f"--config={files.expanded(a.partition('=')[2])}" if a.startswith("--config=~") else a for a in kept]


def _parse(argv: list[str]) -> list[str]:
    """Flags from the command line; every way in which they, or the config file, can be wrong as a UserError."""
    argv = _arguments(argv)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as e:
        raise UserError(f"{e}; the options are --config=FILE, --config.field=value and --workdir=DIR") from e
    except flags.Error as e:
        lines = (
            str(e).strip().splitlines()
        )  # the first names the flag, the last the reason; a traceback may lie between
        raise UserError(f"{' '.join(dict.fromkeys((lines[0], lines[-1])))}; see the config file") from e
    except _CONFIG_ERRORS as e:
        raise UserError(_unknown_field(argv) or _unreadable(e)) from e


def _unknown_field(argv: list[str]) -> str | None:
    """Which of the overrides --config.field=value names no field of the config, in words."""
    flag = flags.FLAGS["config"]
    named = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    try:
        config: Any = flag.parser.parse(named[-1]) if named else flag.default
        for a in argv:
            if a.startswith("--config."):
                field = a.removeprefix("--config.").partition("=")[0]
                node = config
                for part in field.split("."):
                    if not isinstance(node, ConfigDict) or part not in node:
                        return f"the config has no field {field!r}; it has {', '.join(sorted(config))}"
                    node = node[part]
    except _CONFIG_ERRORS:
        pass  # the file itself is at fault
    return None


def _unreadable(e: BaseException) -> str:
    lines = str(e.__cause__ or e).strip().splitlines() or [""]
    return f"the config file could not be read ({lines[-1].strip() or type(e).__name__}); name one of configs/*.py"


def _locked(config: Any) -> ConfigDict:
    """The config, against mistyped fields in our own code. Raises UserError where there is none."""
    try:
        config.lock()
    except OSError as e:  # what stands in place of a config whose file could not be opened
        raise UserError(_unreadable(e)) from e
    except AttributeError as e:
        raise UserError("get_config() of the config file returns no ConfigDict; see configs/*.py") from e
    return config


def _expanded(config: ConfigDict) -> ConfigDict:
    """The config with `~` expanded in every text, so in whatever is a path. In lists, and between commas, too.

    Raises UserError for a home that is not known, and for a text that no file could hold.
    """

    def expand(name: str, value: Any) -> Any:
        if isinstance(value, str):
            return ",".join(files.expanded(part) for part in values.text(f"config.{name}", value).split(","))
        if isinstance(value, (list, tuple)):
            return type(value)(expand(name, item) for item in value)
        return value

    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _expanded(value)
        elif (wanted := expand(name, value)) != value:
            config[name] = wanted
    return config


def fail(message: str) -> None:
    """Says what the user can do, on one line, and ends with status 2."""
    try:
        sys.stdout.flush()
    except OSError:  # its reader has ended, or its disk is full: what is left in it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with contextlib.suppress(OSError):  # there is nobody left to say it to
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def print_header(config: Any, programs: str = "not kept") -> None:
    """The resolved config, the devices, and where compiled programs are kept."""
    import jax

    import mood_jax

    devices = processes.devices()
    kind = devices[0].device_kind
    of = f" of {processes.count()} processes" if processes.count() > 1 else ""
    print(f"mood_jax {mood_jax.__version__} · jax {jax.__version__} · {len(devices)} × {kind}{of}")
    for key, value in sorted(_fields(config)):
        print(f"  {key} = {value}")
    print(f"compiled programs: {programs}")
    sys.stdout.flush()


def traced(folder: Path | None) -> contextlib.AbstractContextManager:
    """A context whose work the profiler writes to `folder`, for TensorBoard's profile page; nothing with None."""
    import jax

    if folder is None or not processes.is_first():
        return contextlib.nullcontext()
    print(f"profiling: tensorboard --logdir={folder} (with the package xprof)", flush=True)
    return jax.profiler.trace(str(folder))


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as it is overridden, ("models.qwen.seed", 0)."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class Clock:
    """Seconds a phase, with the compiler's share of each apart."""

    def __init__(self):
        import jax

        self.compiling = 0.0
        self.phases: list[tuple[str, float, float]] = []
        self._last = (time.perf_counter(), 0.0)

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            if event in COMPILE_EVENTS:
                self.compiling += duration_secs

        jax.monitoring.register_event_duration_secs_listener(listen)

    def mark(self, name: str) -> None:
        """Ends the phase `name`, which began with the mark before."""
        now = (time.perf_counter(), self.compiling)
        self.phases.append((name, now[0] - self._last[0], now[1] - self._last[1]))
        self._last = now

    def summary(self) -> str:
        """ "load 1.2 s · calibrate 30.4 s, of which 8.1 s compiling"."""
        parts = []
        for name, seconds, compiling in self.phases:
            share = f", of which {compiling:.1f} s compiling" if compiling >= 0.05 else ""
            parts.append(f"{name} {seconds:.1f} s{share}")
        return " · ".join(parts)


def print_paths(workdir: Path, names: list[str]) -> None:
    """What was written: every file under these folders of the workdir, with its size."""
    if not processes.is_first():
        return
    print("written:")
    for name in names:
        for path in sorted((workdir / name).rglob("*")):
            if path.is_file():
                print(f"  {path} ({path.stat().st_size:,} bytes)")
