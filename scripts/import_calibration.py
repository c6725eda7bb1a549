"""Turns published axes (axes_*.npz) into a calibration of preset `article`, for measure.py to use.

    python scripts/import_calibration.py --config=configs/import.py --config.axes_file=FILE --workdir=DIR
        [--config.compare=FILE,FILE] [--config.axes=warm_cold,…] [--config.model= --config.n_layers=28]

A published file has directions and scales, but no centre, no pole means and no evidence; measure.py says so. With
several files, their cosines are printed, axis by axis; the one named axes_file is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import artifacts, cli, published, values
from mood_jax.errors import UserError
from mood_jax.studies import calibrate
from mood_jax.studies import config as study

CHECKS: dict[str, values.Check] = {"axes_file": values.text, "compare": values.text, "n_layers": values.ranged()}


def main(config: Any, workdir: Path) -> None:
    clock = cli.Clock()
    source = study.source_bank(config)
    check(config)
    files = [config.axes_file, *study.names(config.compare)]
    chosen = study.names(config.axes)
    sets = [published.chosen(published.read_axes(file), chosen) for file in files]
    names = published.pole_names(sets[0].axes, source)
    text = published.axes_report(sets, names)
    model = study.load(config) if config.model else None
    n_layers = config.n_layers if model is None else model.config.n_layers
    made_for = None if model is None else calibrate.identity(model)
    calibration = published.calibration(sets[0], names, n_layers, made_for)
    if model is not None:
        published.check_size(calibration, n_layers, model.config.d_model, config.model)
    artifacts.claim_workdir(workdir, "calibrate", calibration.identity)
    calibration.save(workdir / "calibration")
    clock.mark("import")
    print(f"\n{sets[0].path}\n{calibration.readout.describe()}\n\n{text}\n")
    print("\n".join(f"  note: {note}" for note in published.notes(calibration)) + "\n")
    print(clock.summary())
    cli.print_paths(workdir, ["calibration"])


def check(config: Any) -> None:
    """Raises UserError where the config does not say what is to be imported, or for what."""
    missing = [field for field in CHECKS if field not in config]
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}; use --config=configs/import.py")
    values.check_fields(config, CHECKS)
    if not config.axes_file:
        raise UserError("no axes to import; name a file: --config.axes_file=axes_set_A.npz")
    if config.readout != "article":
        raise UserError(f"published axes have the readout article, not {config.readout!r}; leave --config.readout out")
    if not config.model and config.n_layers < 1:
        raise UserError("no model named; name one (--config.model) or say how many blocks it has (--config.n_layers)")


if __name__ == "__main__":
    cli.run(main)
