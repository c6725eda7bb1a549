"""Borrowed poles: the axes of a model from the texts of another one that obeys every instruction.

A model's own poles tell nothing on an axis whose instructions it ignores, and little where it follows one of them: ±1
is then wherever the instruction leaves it. But it can read. The responses of an obedient model (of the same family, or
the same before a training) to both instructions are read by it after the bare questions, as its own uninstructed
responses are, and directions and scale are fitted to these states: −1 and +1 are texts that show the two poles, in
this model's eyes. No offset or scale of one model's states is carried to another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from mood_jax import probes
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.model import Model
from mood_jax.probes.folds import grouped_folds
from mood_jax.readout import Readout
from mood_jax.studies.collect import Ask, Collected

FOLDS = 5


@dataclass(frozen=True)
class Borrowed:
    """directions float32 [axes, D]; site_rms [sites]; middle, half [axes]: of the pole means along the directions."""

    readout: Readout
    directions: np.ndarray
    site_rms: np.ndarray
    middle: np.ndarray
    half: np.ndarray

    def scores(self, states: np.ndarray) -> np.ndarray:
        """States [n, sites, D], read without an instruction, to scores [n, axes]: ±1 are the texts of the poles."""
        x = readouts.combine(self.readout, states, self.site_rms) @ self.directions.T
        return (x - self.middle) / self.half


def poles(
    model: Model, asks: Sequence[Ask], collected: Collected, axes: Sequence[str], readout: Readout, batch_size: int
) -> Borrowed:
    """Reads the responses that another model gave to `asks` (`collected`, in the same tokens) and fits all axes.

    Directions are whitened (Ledoit–Wolf): the lender's texts and this model's own differ in their other styles too, and
    a mean difference takes those for its own; on the planted models that halved the error. The distance of the poles is
    that of held-out questions (folds), since along a direction that was fitted to them they are too far apart.

    Raises UserError: what `read` raises, or an axis whose texts do not differ in this model's eyes.
    """
    of_id: Mapping[str, Ask] = {a.id: a for a in asks}
    records = [r for r in collected.records if r["n_tokens"] > 0]
    reading: dict[str, Any] = {"sites": readout.sites, "reducers": readout.reducers, "span": readout.span}
    prompts = [list(of_id[r["id"]].without_system) for r in records]
    states = api.read(model, prompts, [r["tokens"] for r in records], batch_size=batch_size, **reading)[:, :, 0]
    site_rms = readouts.site_rms(readout, states)
    h = readouts.combine(readout, states, site_rms)
    axis, sign = (np.array([r[name] for r in records]) for name in ("axis", "sign"))
    question = np.array([r["question"] for r in records])
    directions, middle, half = [], [], []
    for name in axes:
        rows = axis == name
        x, s = h[rows].astype(np.float64), sign[rows]
        fold = grouped_folds(question[rows], FOLDS, 0)
        whole = _direction(x, s, name)
        apart = []
        for f in range(int(fold.max()) + 1):
            out = fold == f
            if (s[out] > 0).any() and (s[out] < 0).any():
                apart.append(_difference(x[out], s[out]) @ _direction(x, np.where(out, 0, s), name))
        distance = float(np.mean(apart)) / 2
        if not distance > 0:
            raise UserError(f"axis {name}: this model sees no difference between the borrowed texts of its poles")
        directions.append(whole)
        middle.append((x[s > 0].mean(axis=0) + x[s < 0].mean(axis=0)) @ whole / 2)
        half.append(distance)
    return Borrowed(readout, np.array(directions, np.float32), site_rms, np.array(middle), np.array(half))


def _difference(x: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return x[sign > 0].mean(axis=0) - x[sign < 0].mean(axis=0)


def _direction(x: np.ndarray, sign: np.ndarray, name: str) -> np.ndarray:
    found = probes.fit_whitened(jnp.asarray(x, jnp.float32), jnp.asarray(sign))
    if not bool(found.ok):
        raise UserError(f"axis {name}: the borrowed texts of its poles give no direction")
    return np.asarray(found.vector, np.float64)
