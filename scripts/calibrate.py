"""Calibrates a checkpoint: instructed responses → directions, scales and their evidence.

    python scripts/calibrate.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen [--config.batch_size=420 …]

Run again, it resumes; when finished, it prints the same table and writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import cli, processes
from mood_jax.reports import evidence, runs, tables
from mood_jax.studies import calibrate, save
from mood_jax.studies import config as study


def main(config: Any, workdir: Path) -> None:
    clock = cli.Clock()
    source = study.source_bank(config)
    axes = study.chosen_axes(config, source)
    model = study.load(config)
    clock.mark("load")
    protocol = study.protocol(config, model, config.calibration_tokens)
    options = study.calibration_options(config, model)
    with cli.traced(workdir / "trace" if config.profile else None), processes.first_goes_on():
        done = calibrate.run(model, source, axes, protocol, **options, workdir=workdir)
    folder = workdir / "calibration"
    done.calibration.save(folder)
    save.collected(folder, done.collected, protocol.readout)
    text = tables.calibration_table(done.calibration)
    runs.calibration_run(workdir / "tensorboard", done, text)
    clock.mark("calibrate")
    block = evidence.calibration_evidence(done.calibration)
    print(f"\n{block}" if block else "")
    print(f"\n{config.model}: {protocol.readout.describe()}\n\n{text}\n")
    ids, blocks = [a.id for a in done.calibration.axes], list(done.calibration.evidence)
    lines = [x for x in (tables.reasons(ids, blocks), tables.length_warnings(ids, blocks)) if x]
    print("\n".join(lines) + "\n\n" if lines else "", end="")
    print(clock.summary())
    cli.print_paths(workdir, ["calibration", "tensorboard/calibration"])


if __name__ == "__main__":
    cli.run(main, processes_allowed=True)
