"""Organisms measured side by side, by processes of their own.

Models as small as these keep one core busy, not several: two processes with a thread each take half the time of one
process with two. A process is this module run with one JSON argument, its share of the organisms; it leaves every
subject as a file and says its name on stdout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from mood_jax import artifacts, bank
from mood_jax.compiled import keep_programs
from mood_jax.errors import UserError
from mood_jax.organisms.export import organism_folder, read_realised
from mood_jax.organisms.spec import load_spec
from mood_jax.studies.obedience import Shared
from mood_jax.studies.subjects import Plan, Subject, measure

MOST = 4  # a process takes some 3 GB


def default() -> int:
    """As many processes as there are cores, at most `MOST`; one where an accelerator does the work, which processes do
    not share."""
    return min(MOST, _cores()) if jax.default_backend() == "cpu" else 1


def _cores() -> int:
    """Those that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measured(
    picked: Mapping[str, Sequence[str]], plan: Plan, workdir: Path, jobs: int, tell: Callable[[str], None]
) -> list[Subject]:
    """The subjects of all organisms, in the order asked for.

    Args:
        picked: organism → identities, as of `subjects.chosen`.
        jobs: processes at once; one: this process does the work.
        tell: called with the name of every subject that is done.

    Raises UserError: what `measure` raises, whichever process it was. The others are ended.
    """
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, not {jobs}")
    if jobs == 1:
        found = []
        for organism, identities in picked.items():
            for subject in measure(organism, identities, plan, workdir):
                found.append(subject)
                tell(subject.name)
        return found
    tasks = [{"picked": share, "plan": dataclasses.asdict(plan), "workdir": str(workdir)}
             for share in shares(picked, jobs)]  # fmt: skip
    done: queue.Queue[tuple[int, str | int]] = queue.Queue()  # a process' number, and a line of it or its exit status
    running: dict[int, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as files:
        complaints = [
            files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")) for _ in tasks
        ]
        try:
            for k, task in enumerate(tasks):
                running[k] = _started(task, complaints[k], max(1, _cores() // jobs))
                threading.Thread(target=_listen, args=(k, running[k], done), daemon=True).start()
            while running:
                k, said = done.get()
                if isinstance(said, str):
                    tell(said)
                elif running.pop(k) and said != 0:
                    complaints[k].seek(0)
                    _fail(", ".join(tasks[k]["picked"]), said, complaints[k].read().strip())
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return [read(organism, name, workdir) for organism, identities in picked.items() for name in identities]


def shares(picked: Mapping[str, Sequence[str]], jobs: int) -> list[dict[str, list[str]]]:
    """The organisms in `jobs` parts of about as many identities: those with most first, each to the least part."""
    parts: list[dict[str, list[str]]] = [{} for _ in range(min(jobs, len(picked)))]
    for organism in sorted(picked, key=lambda organism: -len(picked[organism])):
        least = min(parts, key=lambda part: sum(map(len, part.values())))
        least[organism] = list(picked[organism])
    return parts


def _started(task: dict[str, Any], complaints: IO[str], threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mood_jax.studies.workers", json.dumps(task)],
        env=os.environ
        | {"NPROC": str(threads), "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"},  # NPROC: of XLA
        stdin=subprocess.PIPE,  # says nothing; its end is that of this process, however it came
        stdout=subprocess.PIPE,
        stderr=complaints,
        encoding="utf-8",
        errors="replace",
    )


def _listen(k: int, process: subprocess.Popen[str], done: queue.Queue[tuple[int, str | int]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        done.put((k, line.strip()))
    done.put((k, process.wait()))


def _fail(organisms: str, status: int, said: str) -> None:
    if status == 2 and said:
        raise UserError(said.splitlines()[-1])
    raise RuntimeError(f"the process that measured {organisms} ended with status {status}:\n{said}")


def _path(organism: str, identity: str, workdir: Path) -> Path:
    return workdir / load_spec(organism_folder(organism) / "spec.yaml").name / identity / "subject.json"


def write(subject: Subject, path: Path) -> None:
    """What was measured, as JSON; floats keep all their digits."""
    fields = {f.name: getattr(subject, f.name) for f in dataclasses.fields(subject)}
    kept = {name: value for name, value in fields.items() if name not in ("organism", "identity", "truth")}
    artifacts.write_json(path, json.loads(json.dumps(kept | {"shared": vars(subject.shared)}, default=_plain)))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing to write")


def read(organism: str, identity: str, workdir: Path) -> Subject:
    """A subject from the file that `write` made, with spec and truth from the organism."""
    folder = organism_folder(organism)
    spec, whole = load_spec(folder / "spec.yaml"), read_realised(folder)
    kept = artifacts.read_json(_path(organism, identity, workdir))
    held_out = [(a.id, kept["held_out"][a.id]) for a in bank.axes() if a.id in kept["held_out"]]  # in the bank's order
    return Subject(
        organism=spec.name,
        identity=spec.identities[spec.index(identity)],
        truth=whole["identities"][identity] | {"free_responses": whole["free_responses"]},
        **{name: np.array(kept[name]) for name in ("own", "own_sd", "scores", "own_length_out")},
        length=tuple(kept["length"]),
        evidence=tuple(kept["evidence"]),
        shared=Shared(**{name: np.array(value) for name, value in kept["shared"].items()}),
        held_out={axis: (np.array(pair[0]), np.array(pair[1])) for axis, pair in held_out},
    )


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _main(argument: str) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = json.loads(argument)
    keep_programs()
    workdir = Path(task["workdir"])
    try:
        for organism, identities in task["picked"].items():
            for subject in measure(organism, identities, Plan(**task["plan"]), workdir):
                write(subject, _path(organism, subject.identity.name, workdir))
                print(subject.name, flush=True)
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # as in `cli.run`
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.exit(_main(sys.argv[1]))
