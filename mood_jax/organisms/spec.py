"""What is planted in an organism: temperament, compliance, coherence, length. Read from YAML and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES, HERE, POLES, read_yaml

DEFAULT_SPEC = HERE / "default.yaml"


@dataclass(frozen=True)
class Compliance:
    """How far an instruction for a pole moves the style from the temperament to that pole, 0 … 1."""

    positive: float
    negative: float


@dataclass(frozen=True)
class OrganismSpec:
    """One identity. Tuples are in the order of AXES; see `default.yaml` for what a field means."""

    name: str
    temperament: tuple[float, ...]
    compliance: tuple[Compliance, ...]
    sampling_temperature: float
    coherence: float
    least_sentences: int
    most_sentences: int

    def style(self, axis: int | None = None, pole: str | None = None) -> np.ndarray:
        """Style amounts [axes] as sampled: the temperament, or under an instruction for one pole of one axis."""
        s = np.array(self.temperament)
        if axis is not None and pole is not None:
            target = 1.0 if pole == "positive" else -1.0
            s[axis] += getattr(self.compliance[axis], pole) * (target - s[axis])
        return s

    def training_style(self, axis: int | None = None, pole: str | None = None) -> np.ndarray:
        """The amounts [axes] of the training text that come out as `style` when sampled.

        Sampling at temperature τ raises the odds (1+s)/(1−s) of the poles to the power 1/τ; the text has them at the
        power τ, which for the amounts reads tanh(τ·artanh(s)).
        """
        s = self.style(axis, pole)
        inner = np.clip(s, -1 + 1e-9, 1 - 1e-9)
        return np.where(np.abs(s) < 1, np.tanh(self.sampling_temperature * np.arctanh(inner)), s)

    def is_dead(self, axis: int) -> bool:
        """Neither instruction has any effect."""
        return self.compliance[axis] == Compliance(0.0, 0.0)

    def is_obedient(self, axis: int) -> bool:
        """Both instructions have their full effect."""
        return self.compliance[axis] == Compliance(1.0, 1.0)


def _number(path: Path, field: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{path}: {field}: {value!r} is not a number from {least:g} to {most:g}")
    return float(value)


def _keys(path: Path, field: str, value: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {field}: needs a mapping with the keys {', '.join(wanted)}")
    for key in value:
        if key not in wanted:
            raise UserError(f"{path}: {field}: unknown key {key!r}; known are {', '.join(wanted)}")
    for key in wanted:
        if key not in value:
            raise UserError(f"{path}: {field}: {key!r} is missing")
    return value


def load_spec(path: Path | None = None) -> OrganismSpec:
    """Reads a spec (the embedded default's without a path). Raises UserError naming file and field."""
    path = path or DEFAULT_SPEC
    top = ("format", "name", "sampling_temperature", "temperament", "compliance", "coherence", "sentences")
    data = _keys(path, "spec", read_yaml(path), top)
    if data["format"] != 1:
        raise UserError(f"{path}: format: {data['format']!r} is unknown; this version reads format 1")
    if not isinstance(data["name"], str) or not data["name"]:
        raise UserError(f"{path}: name: needs a word")
    temperament = _keys(path, "temperament", data["temperament"], AXES)
    compliance = _keys(path, "compliance", data["compliance"], AXES)
    both = []
    for axis in AXES:
        entry = _keys(path, f"compliance.{axis}", compliance[axis], POLES)
        both.append(Compliance(*(_number(path, f"compliance.{axis}.{p}", entry[p], 0, 1) for p in POLES)))
    sentences = _keys(path, "sentences", data["sentences"], ("least", "most"))
    counts = []
    for key in ("least", "most"):
        count = sentences[key]
        if isinstance(count, bool) or not isinstance(count, int) or not len(AXES) <= count <= 3 * len(AXES):
            raise UserError(f"{path}: sentences.{key}: {count!r} is not a whole number from 7 to 21")
        counts.append(count)
    if counts[0] > counts[1]:
        raise UserError(f"{path}: sentences: least {counts[0]} is more than most {counts[1]}")
    return OrganismSpec(
        name=data["name"],
        temperament=tuple(_number(path, f"temperament.{a}", temperament[a], -1, 1) for a in AXES),
        compliance=tuple(both),
        sampling_temperature=_number(path, "sampling_temperature", data["sampling_temperature"], 0.1, 1),
        coherence=_number(path, "coherence", data["coherence"], 0, 1),
        least_sentences=counts[0],
        most_sentences=counts[1],
    )
