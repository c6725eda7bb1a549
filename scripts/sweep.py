"""Calibrates and profiles models × calibration sets × seeds, unit by unit, and survives whatever ends it.

    python scripts/sweep.py --config=configs/sweeps/embedded.py --workdir=runs/sweep
    python scripts/sweep.py --config=configs/sweeps/embedded.py --workdir=runs/sweep --status
    python scripts/sweep.py --config=configs/sweeps/embedded.py --workdir=runs/sweep --shard=$SLURM_ARRAY_TASK_ID/8

The same command resumes; units that are whole (their checksums are compared) are left alone. --shard=i/n makes the
i-th of n parts (i from 0), each in a process of its own; --status shows all units and makes nothing. The work folder
may be a bucket (gs://…) with --config.scratch=DIR for unfinished units.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath

from mood_jax import cli, files, processes, values
from mood_jax.compiled import CompileLog
from mood_jax.errors import UserError
from mood_jax.reports import sweeps
from mood_jax.studies import sweep

STATUS = flags.DEFINE_bool("status", False, "Show what is done and what is not, and make nothing.")
SHOWN = 0.5  # seconds
CHECKS: dict[str, values.Check] = {
    "seeds": values.each(lambda name, seed: values.seed(seed, name), 1),
    "states": values.flag,
    "scratch": values.text,
    "profile": values.flag,
}
SHARD = flags.DEFINE_string("shard", "", "i/n: make the i-th of n parts of the units, i from 0.")


def main(config: Any, _: Path) -> None:
    values.check_fields(config, {"models": lambda *_: None} | CHECKS)
    workdir = epath.Path(flags.FLAGS.workdir)
    every = sweep.units(config)
    chosen = sweep.shard(every, SHARD.value)
    if not STATUS.value:
        failed = make(config, workdir, chosen)
        if failed:
            unit, reason = next(iter(failed.items()))
            raise UserError(f"{len(failed)} of {len(chosen)} units could not be made; {unit.name}: {reason}")
    if not processes.is_first():
        return
    rows = list(sweep.status(config, workdir, every if STATUS.value else chosen))
    print(f"\n{sweeps.status_table(rows)}")
    whole = [(unit, found.record) for unit, found, _ in rows if found.record is not None]
    if whole:
        print(f"\n{sweeps.summary_table(whole, sweep.axes_of(config))}")


def make(config: Any, workdir: epath.Path, chosen: tuple[sweep.Unit, ...]) -> dict[sweep.Unit, str]:
    """Makes the units. Every program that is compiled goes to compiled.txt, those of SHOWN seconds to the terminal."""
    local = Path(workdir) if sweep.is_local(workdir) else sweep.scratch_folder(config, workdir)
    processes.on_first(lambda: files.check_folder(local, "--workdir" if local == Path(workdir) else "config.scratch"))
    if processes.is_first():
        local.mkdir(parents=True, exist_ok=True)
    trace = [local / "trace"] if config.profile else []

    told = local / "compiled.txt" if processes.is_first() else Path(os.devnull)
    with told.open("a", encoding="utf-8") as file:

        def tell(seconds: float, line: str) -> None:
            print(f"{seconds:.2f} s {line}", file=file, flush=True)
            if seconds >= SHOWN:
                print(f"    compiled in {seconds:.1f} s: {line}", flush=True)

        @contextlib.contextmanager
        def around(unit: sweep.Unit):
            before = log.count
            with cli.traced(trace.pop() if trace else None):
                yield
            print(f"    {unit.name}: {log.count - before} programs compiled", flush=True)

        with CompileLog(tell) as log:
            return sweep.run(config, workdir, chosen, note=lambda line: print(line, flush=True), around=around)


if __name__ == "__main__":
    cli.run(main, bucket=True, processes_allowed=True)
