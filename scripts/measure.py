"""Measures a checkpoint's temperament: neutral questions, no system prompt, scored along its calibrated directions.

    python scripts/measure.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen [--config.scale=pole …]

The calibration is --config.calibration=DIR, else the one in this workdir, else the one that ships for this checkpoint.
Run again, it resumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import cli, processes
from mood_jax.artifacts import Calibration
from mood_jax.organisms.export import planted_truth
from mood_jax.organisms.grammar import AXES
from mood_jax.reports import evidence, runs, tables
from mood_jax.studies import config as study
from mood_jax.studies import find, profile, save

SHIPPED = Path(__file__).parent.parent / "calibrations"


def main(config: Any, workdir: Path) -> None:
    clock = cli.Clock()
    source = study.source_bank(config)
    if config.calibration:  # whether it fits the model is seen when that is there
        processes.on_first(lambda: len(Calibration.load(config.calibration).axes))
    model = study.load(config)
    clock.mark("load")
    folder, calibration = find.calibration(model, config.calibration, workdir, SHIPPED)
    print(f"calibration: {folder}")
    protocol = study.protocol(config, model, config.profile_tokens)
    with cli.traced(workdir / "trace" if config.profile else None), processes.first_goes_on():
        measured, collected = profile.run(
            model, calibration, protocol, source=source, samples=config.samples, scale=config.scale, workdir=workdir
        )
    measured.save(workdir / "profile" / "profile.json")
    save.collected(workdir / "profile", collected, protocol.readout)
    text = tables.profile_table(measured)
    runs.profile_run(workdir / "tensorboard", measured, text)
    clock.mark("measure")
    block = evidence.profile_evidence(measured, calibration)
    print(f"\n{block}" if block else "")
    print(f"\n{config.model}: {protocol.readout.describe()}; scores scaled by {config.scale}\n\n{text}\n")
    ids, blocks = [a.axis.id for a in measured.axes], [a.evidence for a in measured.axes]
    length = tables.length_warnings(ids, blocks, [a.length for a in measured.axes])
    lines = [x for x in (tables.reasons(ids, blocks), length, *(f"  note: {n}" for n in measured.notes)) if x]
    print("\n".join(lines) + "\n\n" if lines else "", end="")
    truth = planted_truth(Path(model.checkpoint.name))
    if (
        truth is not None
        and tuple(a.axis.id for a in measured.axes) == AXES
        and measured.axes[0].summary.get("re_read")
    ):
        print(f"an organism: planted beside measured (scale re_read)\n\n{tables.planted_table(measured, *truth)}\n")
    print(clock.summary())
    cli.print_paths(workdir, ["profile", "tensorboard/profile"])


if __name__ == "__main__":
    cli.run(main, processes_allowed=True)
