"""The quick validation (configs/validate_quick.py), organism by organism, so that two test files share the work."""

import runpy
from pathlib import Path

from mood_jax.studies import validate
from mood_jax.studies.subjects import Plan

CONFIG = Path(__file__).parents[2] / "configs" / "validate_quick.py"


def validated(folder: Path, *organisms: str, jobs: int = 1) -> validate.Validation:
    """The config's identities of these organisms, measured and checked."""
    config = runpy.run_path(str(CONFIG))["get_config"]()
    names = [name for name in config.subjects.split(",") if name.split("/")[0] in organisms]
    return validate.run(names, planned(config), folder, null_seeds=config.null_seeds, jobs=jobs)


def planned(config) -> Plan:
    return Plan(config.samples, config.pole_samples, config.seed, config.calibration_tokens, config.profile_tokens)


def check(found: validate.Validation, number: int):
    """A check by its number."""
    return found.checks[number - 1]
