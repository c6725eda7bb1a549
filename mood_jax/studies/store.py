"""States of a whole grid on disk: every site under every reducer, read back a slice at a time.

A grid is large (560 responses of an 8B model: 0.8 GB a condition in bfloat16), so the units of `collect` stay where
they are, one safetensors file a batch, and are mapped; `index.json` beside them says that they are all there, and an
analysis needs nothing else: no model and no bank. It says nothing that the units, whose checksums are compared when a
store is opened, do not say too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax import artifacts
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.readout import STATE_DTYPES, Grid, Readout
from mood_jax.studies import origin, unit
from mood_jax.studies.collect import Ask, Collected, Protocol, open_unit, units

INDEX = "index.json"
FORMAT = 2  # 2: units say what they were made from


@dataclass(frozen=True)
class StateStore:
    """N responses and their states at every site of `grid` under every reducer, in the order of the asks.

    `conditions` are "in_context", "re_read" and, with a control, "random_in_context" and "random_re_read".
    `settings` is what the collection was made from. `units` hold the states, `place` int [N, 2] the unit and the row
    in it of each response.
    """

    records: list[dict[str, Any]]
    conditions: tuple[str, ...]
    grid: Grid
    settings: dict[str, Any]
    units: tuple[Mapping[str, np.ndarray], ...]
    place: np.ndarray

    @property
    def sites(self) -> tuple[str, ...]:
        return self.grid.sites

    @property
    def reducers(self) -> tuple[str, ...]:
        return self.grid.reducers

    @property
    def span(self) -> str:
        return self.grid.span

    @property
    def dtype(self) -> str:
        """What the states are kept in; `states` gives float32 whatever it is."""
        return self.grid.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, sites, reducers, D) of every condition."""
        d_model = self.units[0][self.conditions[0]].shape[-1]
        return len(self.records), len(self.sites), len(self.reducers), d_model

    def column(self, name: str) -> np.ndarray:
        """One field of all records, [N]."""
        return np.asarray([r[name] for r in self.records])

    def states(
        self,
        condition: str,
        rows: Sequence[int] | np.ndarray | None = None,
        sites: Sequence[str] | None = None,
        reducers: Sequence[str] | None = None,
    ) -> np.ndarray:
        """States in the order asked for, float32 [rows, sites, reducers, D]; nothing else is read.

        Args:
            rows: indices, or a bool mask [N]; None: all.
            sites, reducers: names; None: all.

        A response without tokens has states of zeros. Raises UserError for a name that this store does not have.
        """
        if condition not in self.conditions:
            raise UserError(f"these states have no condition {condition!r}; they have {', '.join(self.conditions)}")
        s, r = _numbers("site", self.sites, sites), _numbers("reducer", self.reducers, reducers)
        place = self.place if rows is None else self.place[_row_numbers(rows)]
        out = np.empty((len(place), len(s), len(r), self.shape[-1]), np.float32)
        for k, states in enumerate(self.units):
            here = np.flatnonzero(place[:, 0] == k)
            if len(here):
                out[here] = states[condition][np.ix_(place[here, 1], s, r)]
        return out

    def collected(self, readout: Readout, rows: Sequence[int] | np.ndarray | None = None) -> Collected:
        """What `collect` would have given for this readout alone: states [rows, its sites, 1, D].

        Raises UserError where the store lacks its sites or reducer, or was read over another span.
        """
        if readout.span != self.span:
            raise UserError(
                f"these states were read over {self.span} tokens, and the readout {readout.name!r} reads "
                f"{readout.span} tokens; collect with it alone"
            )
        chosen = range(len(self.records)) if rows is None else np.arange(len(self.records))[_row_numbers(rows)]
        states = {c: self.states(c, rows, readout.sites, readout.reducers) for c in self.conditions}
        return Collected([self.records[k] for k in chosen], states)


def _row_numbers(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    found = np.asarray(rows)
    return found if found.dtype == bool else found.astype(np.int64)  # no rows at all would be floats


def _numbers(what: str, there: Sequence[str], names: Sequence[str] | None) -> np.ndarray:
    """The places of `names` in `there`."""
    names = there if names is None else names
    missing = [n for n in names if n not in there]
    if missing:
        raise UserError(f"these states have no {what} {missing[0]!r}; they have {', '.join(there)}")
    return np.asarray([list(there).index(n) for n in names], np.int64)


def collect_grid(
    model: Model,
    asks: Sequence[Ask],
    protocol: Protocol[Grid],
    *,
    re_read: bool = True,
    control: Model | None = None,
    folder: Path | None = None,
    claim: Callable[[], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    label: str | None = "responses",
) -> StateStore:
    """`collect` for a `Grid`: one generation pass reads every site under every reducer.

    Under a `folder` one batch is in memory at a time, and the same call goes on where an interrupted one stopped;
    without one, all states stay in memory. `settings` (JSON-ready) is kept with them; other arguments as of `collect`.
    """
    grid = protocol.readout
    settings = dict(settings or {})
    options = {"re_read": re_read, "control": control, "folder": folder, "claim": claim, "label": label}
    parts = list(units(model, asks, protocol, settings=settings, **options))
    store = _store([a.id for a in asks], parts, grid, settings)
    if folder is not None:
        files = [folder / f"{k:05d}.safetensors" for k in range(len(parts))]
        record = {
            "format": FORMAT,
            "sites": list(grid.sites),
            "reducers": list(grid.reducers),
            "span": grid.span,
            "dtype": grid.dtype,
            "conditions": list(store.conditions),
            "ids": [a.id for a in asks],
            "units": [
                {"file": path.name, "bytes": path.stat().st_size, "sha256": unit.checksum(path)} for path in files
            ],
            "settings": store.settings,
        }
        artifacts.write_json(folder / INDEX, record)
    return store


def is_finished(folder: Path) -> bool:
    """Has a collection in this folder come to its end?"""
    return (folder / INDEX).is_file()


def open_store(folder: Path, command: str = "scripts/ablate.py") -> StateStore:
    """A finished collection, without its model.

    Raises UserError when it is not whole; the message names `command`, which makes what is missing.
    """
    again = f"run {command} again with its --config and --workdir, which makes what is missing"
    path = folder / INDEX
    if not is_finished(folder):
        raise UserError(f"{folder} holds no finished collection of states; {again}")
    record = artifacts.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not an index of format {FORMAT}; {again}")
    try:
        grid = Grid(tuple(record["sites"]), tuple(record["reducers"]), record["span"], record["dtype"])
        parts, origins = [], []
        for entry in record["units"]:
            file = folder / entry["file"]
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise UserError(f"{file} is missing or damaged; {again}")
            try:
                origins.append(unit.verify(file, entry["sha256"]))
                parts.append(open_unit(file))
            except UserError as e:
                raise UserError(f"{str(e).partition(';')[0]}; {again}") from e
        for entry, made_from in zip(record["units"], origins, strict=True):
            origin.refuse_other(folder / entry["file"], made_from, origins[0])
        found = _store(record["ids"], parts, grid, record["settings"])
        _check_index(record, found, origins[0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path} does not fit the files beside it ({e}); {again}") from e
    return found


def _check_index(record: Mapping[str, Any], found: StateStore, made_from: Mapping[str, Any]) -> None:
    """Raises ValueError where an index says other things than the units' own origin."""
    ids, reading = record["ids"], made_from["reading"]
    for name in ("sites", "reducers", "span", "dtype", "conditions"):
        if record[name] != reading[name]:
            raise ValueError(f"the units' {name} are {reading[name]}")
    if list(found.conditions) != record["conditions"]:
        raise ValueError(f"the states are {', '.join(found.conditions)}")
    rows = sum(len(states[found.conditions[0]]) for states in found.units)
    if (len(ids), artifacts.record_digest(ids)) != (rows, made_from["texts"]["ids"]):
        raise ValueError("the units were made for other responses")
    if artifacts.first_difference(record["settings"], made_from["settings"]) is not None:
        raise ValueError("the units were made from other settings")


def _store(ids: Sequence[str], parts: Sequence[Collected], grid: Grid, settings: dict[str, Any]) -> StateStore:
    """Raises KeyError or ValueError where the units do not hold these responses and this grid."""
    at = {r["id"]: (k, row) for k, p in enumerate(parts) for row, r in enumerate(p.records)}
    place = np.asarray([at[i] for i in ids], np.int64)
    for part in parts:
        for states in part.states.values():
            of_one = (len(grid.sites), len(grid.reducers))
            if states.shape[1:3] != of_one or states.dtype != STATE_DTYPES[grid.dtype]:
                raise ValueError(f"states {states.shape} of {states.dtype}")
    return StateStore(
        records=[parts[k].records[row] for k, row in place],
        conditions=tuple(parts[0].states),
        grid=grid,
        settings=settings,
        units=tuple(p.states for p in parts),
        place=place,
    )
