"""Which calibration a measurement uses."""

from __future__ import annotations

from pathlib import Path

from mood_jax import processes
from mood_jax.artifacts import Calibration
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.studies.profile import check_calibration


def calibration(model: Model, named: str, workdir: Path, shipped: Path) -> tuple[Path, Calibration]:
    """The calibration in the folder `named`, else this workdir's, else the shipped one of this very checkpoint.

    Raises UserError when there is none, or when the one named or in the workdir is of another checkpoint.
    """
    folder = Path(processes.on_first(lambda: str(_folder(model, named, workdir, shipped))))
    found = Calibration.load(processes.shared(folder))
    check_calibration(model, found)
    return folder, found


def _folder(model: Model, named: str, workdir: Path, shipped: Path) -> Path:
    if named:
        Calibration.load(named)
        return Path(named)
    if (workdir / "calibration" / "calibration.json").is_file():
        return workdir / "calibration"
    for path in sorted(shipped.glob("*/calibration.json")):
        made = Calibration.load(path.parent).identity["model"]  # None: imported and bound to no checkpoint
        if made is not None and made["fingerprint"] == model.checkpoint.fingerprint:
            return path.parent
    raise UserError(
        f"no calibration for {model.checkpoint.name}: none in {workdir / 'calibration'} and none ships with it; "
        "run scripts/calibrate.py with the same --config and --workdir first"
    )
