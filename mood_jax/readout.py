"""Readouts: which sites, layer weights and reducer make the vector h of a response.

    h = Σ_s w_s · x_s / r_s     x_s: reduced state at site s; r_s: 1, or the site's RMS over the calibration responses

`last4` (default): resid_post of the last four blocks, weights .1 .2 .3 .4, each divided by its RMS, decay_0.9 over the
response tokens. `article`: what the published system pools: HF's hidden_states[L−3 … L], that is resid_post of blocks
L−4 … L−2 and final_norm, no division, decay_0.9 over the article's span. (method.md, section 3.) A readout chosen
among many (`artifacts.Selected`) may be any other. A `Grid` is what the choice is made from: every site under every
reducer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from mood_jax.errors import UserError

WEIGHTS = (0.1, 0.2, 0.3, 0.4)
PRESETS = ("last4", "article")
GRID_REDUCERS = ("mean", "decay_0.9", "decay_0.8", "last", "max_abs")
STATE_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Readout:
    """`weights` are per site, in the order of `sites`; `normalise` divides each site by its calibration RMS."""

    name: str
    sites: tuple[str, ...]
    weights: tuple[float, ...]
    reducer: str
    span: Literal["response", "article"]
    normalise: bool

    @property
    def reducers(self) -> tuple[str, ...]:
        """What is read at each site, as of a `Grid`."""
        return (self.reducer,)

    @property
    def dtype(self) -> str:
        """What the states are kept in, as of a `Grid`."""
        return "float32"

    def describe(self) -> str:
        """One phrase for reports: sites, reducer and span; of other readouts than the presets also the weights."""
        sites, scaled = self.sites, ""
        if self.name not in PRESETS:
            sites = tuple(f"{w:g} {s}" for w, s in zip(self.weights, self.sites, strict=True))
            scaled = ", each divided by its RMS" if self.normalise else ""
        return f"{self.name}: {self.reducer} of {', '.join(sites)} over {self.span} tokens{scaled}"


@dataclass(frozen=True)
class Grid:
    """Every site under every reducer: what readouts are chosen from.

    `dtype` is what the states are kept in. bfloat16 takes half the room; it rounds to the nearest of 8 significant
    bits, so a number is off by at most 2⁻⁸ of its size. Raises UserError for another dtype.
    """

    sites: tuple[str, ...]
    reducers: tuple[str, ...]
    span: Literal["response", "article"] = "response"
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in STATE_DTYPES:
            raise UserError(f"states cannot be kept in {self.dtype!r}; use one of {', '.join(STATE_DTYPES)}")

    def describe(self) -> str:
        """One phrase for reports: reducers, sites, span and dtype."""
        reducers, sites = ", ".join(self.reducers), ", ".join(self.sites)
        return f"grid: {reducers} of {sites} over {self.span} tokens, kept in {self.dtype}"


def grid(n_layers: int, dtype: str = "float32") -> Grid:
    """Every site of a model of `n_layers` blocks under the five reducers of the ablation, over the response tokens."""
    return Grid(("embed", *(f"resid_post@{k}" for k in range(n_layers)), "final_norm"), GRID_REDUCERS, dtype=dtype)


def preset(name: str, n_layers: int) -> Readout:
    """The readout of this name for a model of `n_layers` blocks. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown readout {name!r}; use one of {', '.join(PRESETS)}")
    if n_layers < 4:
        raise UserError(f"the readout {name!r} reads four sites, and this model has only {n_layers} blocks")
    L = n_layers
    if name == "last4":
        sites = tuple(f"resid_post@{k}" for k in range(L - 4, L))
        return Readout(name, sites, WEIGHTS, "decay_0.9", "response", True)
    sites = (*(f"resid_post@{k}" for k in range(L - 4, L - 1)), "final_norm")
    return Readout(name, sites, WEIGHTS, "decay_0.9", "article", False)


def pick(readout: Readout, states: np.ndarray, sites: Sequence[str], reducers: Sequence[str]) -> np.ndarray:
    """The states that a readout needs, [N, its sites, D], out of [N, sites, reducers, D]."""
    missing = [s for s in readout.sites if s not in sites]
    if missing or readout.reducer not in reducers:
        raise UserError(f"these states lack {missing or readout.reducer}, which the readout {readout.name!r} reads")
    columns = [list(sites).index(s) for s in readout.sites]
    return states[:, columns, list(reducers).index(readout.reducer)]


def site_rms(readout: Readout, picked: np.ndarray) -> np.ndarray:
    """The divisor of each site, float32 [sites]: its RMS over responses and dimensions, or 1.

    picked: [N, sites, D] from `pick`, responses without tokens left out by the caller.
    """
    if not readout.normalise:
        return np.ones(len(readout.sites), np.float32)
    if not len(picked):
        raise UserError("there is no response whose states could be scaled; generate some")
    rms = np.sqrt(np.mean(np.square(picked.astype(np.float64)), axis=(0, 2)))
    for site, size in zip(readout.sites, rms, strict=True):
        if not np.isfinite(size):
            raise UserError(f"states at {site} are NaN or infinite; leave those responses out")
        if size < np.finfo(np.float32).tiny:
            raise UserError(f"the states at {site} are all zero, or too small for float32; choose other sites")
    return rms.astype(np.float32)


def combine(readout: Readout, picked: np.ndarray, rms: np.ndarray) -> np.ndarray:
    """h, float32 [N, D], from picked states [N, sites, D] and the divisors [sites]."""
    scale = np.asarray(readout.weights, np.float32) / rms
    return np.einsum("nsd,s->nd", np.asarray(picked, np.float32), scale)
