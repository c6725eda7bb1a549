"""Holds the instrument against models whose temperament was planted, and says where it is right and where it is not.

python scripts/validate_instrument.py --config=configs/validate.py --workdir=runs/validation
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import artifacts, bank, cli, values
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.reports.figures import validation_figure
from mood_jax.studies import validate, validation
from mood_jax.studies.subjects import Plan

CHECKS: dict[str, values.Check] = {
    "subjects": values.named,
    "samples": values.ranged(1),
    "pole_samples": values.ranged(1),
    "seed": lambda _, seed: values.seed(seed),
    "calibration_tokens": values.ranged(1),
    "profile_tokens": values.ranged(1),
    "null_seeds": values.ranged(),
    "jobs": values.ranged(),
}


def main(config: Any, workdir: Path) -> None:
    """Measures the organisms' identities, prints planted beside measured and the checks; fails when a check does."""
    values.check_fields(config, CHECKS)
    values.seed(config.seed + max(config.null_seeds - 1, 0), "the last of config.null_seeds")
    clock = cli.Clock()
    plan = Plan(config.samples, config.pole_samples, config.seed, config.calibration_tokens, config.profile_tokens)
    found = validate.run(
        [name.strip() for name in config.subjects.split(",") if name.strip()],
        plan,
        workdir,
        null_seeds=config.null_seeds,
        jobs=config.jobs or None,
    )
    clock.mark("measure")
    axes = [a.id for a in bank.axes()]
    header = ["identity, axis", "planted", "realised", "measured", "gap", "shared", "planted to", "said to", "verdict"]
    print("\n" + table(header, validation.format_subjects(found.subjects, axes)))
    print("\ngap: realised, and shared: measured, between the instructed poles, of 2; said to: on the shared scale\n")
    for check in found.checks:
        print(f"{check.name:<20} {check.verdict:<12} {check.reason}")
    artifacts.write_json(workdir / "validation.json", found.as_json())
    artifacts.write_bytes(workdir / "validation.svg", validation_figure(found.subjects, axes).encode())
    print(f"\n{clock.summary()}" + (f", beside what {found.jobs} processes compiled" if found.jobs > 1 else ""))
    print(f"written: {workdir / 'validation.json'}, {workdir / 'validation.svg'}")
    if failed := [c.name for c in found.checks if c.passed is False]:
        raise UserError(f"the instrument failed: {', '.join(failed)}; see validation.json for the figures")


if __name__ == "__main__":
    cli.run(main, "configs/validate.py")
