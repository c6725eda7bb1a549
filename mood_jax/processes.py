"""Several processes that run one script together, each with devices of its own.

Every process runs the same lines in the same order, since a computation over all devices waits for each of them. What
could differ between them, which is what stands on a disk, is asked by process 0 alone and told to the others
(`on_first`), so the work folder need only be there for process 0, which also does all writing and printing. With one
process, which is the usual case, everything here is a plain call.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mood_jax.errors import UserError

R = TypeVar("R")
AUTO = "auto"
MESSAGE = 4096  # bytes that are exchanged at once; longer ones take a second round
HEARTBEAT = 30  # seconds after which a process that has died takes the others with it
MONTH = 30 * 24 * 3600
_alone = False  # process 0 does what the others do not: within `on_first`, or since they have left
_leaving = False


class Elsewhere(Exception):
    """What is left to do needs no other process than the first: the end of every other one."""


class SharedError(UserError):
    """A UserError that all processes raise together; process 0 prints it."""


def start(coordinator: str, number: int, this: int) -> None:
    """Joins the other processes; to be called before jax has any device.

    Args:
        coordinator: host:port of process 0, or "auto" where the cluster says all three (TPU pods, SLURM, Open MPI).
        number, this: how many processes there are, and which of them this is, from 0; unused with "auto".

    Raises UserError when they do not make sense, or the others cannot be found.
    """
    import jax

    named: dict[str, Any] = {}
    if coordinator != AUTO:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--coordinator={coordinator}: write host:port of process 0, or {AUTO}")
        if not 0 <= this < number:
            raise UserError(f"--process_id={this} of --num_processes={number}: it counts from 0; give both")
        named = {"coordinator_address": coordinator, "num_processes": number, "process_id": this}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM; a killed run resumes anyway
    try:
        # Those that leave wait for process 0, whose analysis takes as long as it takes.
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=MONTH, **named)
    except (RuntimeError, ValueError) as e:
        reason = str(e).strip().partition("\n")[0][:160]
        raise UserError(f"--coordinator={coordinator}: the processes could not join ({reason})") from e


def devices() -> list[Any]:
    """All devices, of all processes. Raises UserError where JAX finds none, which ends in many kinds of exception."""
    import jax

    try:
        return list(jax.devices())
    except Exception as e:
        asked = jax.config.values["jax_platforms"]
        if not asked:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise UserError(f"JAX finds no device to compute on ({reason}); install jax for the ones here") from e
        raise UserError(f"JAX_PLATFORMS={asked} names no device of this machine; {_others()}") from e


def _others() -> str:
    """What to do where the platforms that were asked for are not there."""
    import jax

    jax.config.update("jax_platforms", "")
    try:
        there = sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()})
    except Exception as e:
        return f"unset it (and without it: {(str(e).strip() or type(e).__name__).splitlines()[0]})"
    return f"unset it; devices here are {', '.join(there)}"


def count() -> int:
    """How many processes there are."""
    import jax

    # Asked first, so that a single process starts no device for it.
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Is this process 0, or the only one?"""
    import jax

    return count() == 1 or jax.process_index() == 0


def on_first(work: Callable[[], R]) -> R:
    """work() of process 0, in all; a UserError that it raises there is raised in all.

    Its result must survive JSON unchanged (no tuples). Within `work`, other calls of `on_first` are plain calls.
    """
    global _alone
    if count() == 1 or _alone:
        return work()
    said: dict[str, Any] = {}
    if is_first():
        _alone = True
        try:
            said = {"result": work()}
        except UserError as e:
            said = {"error": str(e)}
        finally:
            _alone = False
    told = json.loads(_broadcast(json.dumps(said).encode()))
    if "error" in told:
        raise SharedError(told["error"])
    return told["result"]


def together(work: Callable[[], R]) -> R:
    """work() in every process; when it raises a UserError in any of them, all raise that of the first such process.

    `work` must not compute over the devices of several processes, or the others would wait for the one that failed.
    """
    if count() == 1:
        return work()
    result, line = None, ""
    try:
        result = work()
    except UserError as e:
        line = str(e)
    from jax.experimental import multihost_utils

    lines = multihost_utils.process_allgather(_message(line.encode()[: MESSAGE - 4]))
    for process, row in enumerate(np.asarray(lines)):
        if error := _content(row).decode(errors="replace"):
            raise SharedError(error if process == 0 else f"process {process}: {error}")
    return result  # type: ignore[return-value]


@contextlib.contextmanager
def first_goes_on() -> Iterator[None]:
    """A context in which the other processes may leave as soon as they are not needed: see `leave_others`."""
    global _leaving
    before, _leaving = _leaving, True
    try:
        yield
    finally:
        _leaving = before


def leave_others() -> None:
    """No computation together follows: within `first_goes_on`, raises `Elsewhere` in all processes but the first.

    Elsewhere all stay, and do what process 0 does; what they write goes nowhere.
    """
    global _alone
    if count() > 1 and _leaving:
        if not is_first():
            raise Elsewhere
        _alone = True


def shared(path: Path) -> Path:
    """A file or flat folder of process 0: itself there, a copy of it in the others, which goes when they end.

    Raises UserError where process 0 has neither.
    """
    if count() == 1:
        return path

    def names() -> list[str]:
        if path.is_file():
            return [path.name]
        if not path.is_dir():
            raise UserError(f"no such file: {path}")
        return sorted(p.name for p in path.iterdir() if p.is_file())

    files = on_first(names)
    is_folder = on_first(path.is_dir)
    copies = path
    if not is_first():
        copies = Path(tempfile.mkdtemp(prefix="mood_jax_"))
        atexit.register(shutil.rmtree, copies, ignore_errors=True)
    for name in files:
        source = path / name if is_folder else path
        data = _broadcast(source.read_bytes() if is_first() else b"")
        if not is_first():
            (copies / name).write_bytes(data)
    return path if is_first() else copies if is_folder else copies / path.name


def _message(data: bytes) -> np.ndarray:
    """A message of MESSAGE bytes: its length, then its content as far as it fits."""
    out = np.zeros(MESSAGE, np.uint8)
    out[:4] = np.frombuffer(len(data).to_bytes(4, "little"), np.uint8)
    kept = data[: MESSAGE - 4]
    out[4 : 4 + len(kept)] = np.frombuffer(kept, np.uint8)
    return out


def _content(message: np.ndarray) -> bytes:
    size = int.from_bytes(message[:4].tobytes(), "little")
    return message[4 : 4 + size].tobytes()


def _broadcast(data: bytes) -> bytes:
    """What process 0 gives, in all. A message is of MESSAGE bytes or a power of two, so that few sizes are compiled."""
    from jax.experimental import multihost_utils

    first = np.asarray(multihost_utils.broadcast_one_to_all(_message(data)))
    size = int.from_bytes(first[:4].tobytes(), "little")
    if size <= MESSAGE - 4:
        return _content(first)
    whole = np.zeros(1 << (size - 1).bit_length(), np.uint8)
    if is_first():
        whole[:size] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(whole))[:size].tobytes()


def silence_others() -> None:
    """Process 0 alone prints to stdout."""
    if not is_first():
        sys.stdout.flush()
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays open as stdout does


def is_alone() -> bool:
    """Has process 0 nobody left who waits for it, other than at the end?"""
    return count() == 1 or _alone


def finish() -> None:
    """The end, where all wait for each other."""
    import jax

    if count() > 1:
        jax.distributed.shutdown()


def abandon(status: int) -> None:
    """Ends this process at once, where the others may be waiting for it: they end too when they miss it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
