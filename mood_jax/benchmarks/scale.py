"""Large models on paper: what the memory formula and the arithmetic bound say of devices that need not be here.

Nothing in this table is measured. Bandwidth and FLOP rate are data-sheet numbers, which no program reaches; devices
that send to each other, which a mesh with `model` > 1 does after every half of a block, take time that the bound leaves
out. What it tells is which fleets hold a model at all, and how far apart they are at best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mood_jax.artifacts import write_bytes, write_json
from mood_jax.benchmarks import bound, shapes
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.generation import memory
from mood_jax.models.config import DecoderConfig


@dataclass(frozen=True)
class Fleet:
    """Devices of one kind; memory, bandwidth and bfloat16 rate of one of them, from its data sheet."""

    name: str
    devices: int
    gigabytes: float
    terabytes_per_second: float
    teraflops: float

    @property
    def rates(self) -> bound.Rates:
        return bound.Rates(self.terabytes_per_second * 1e12, self.teraflops * 1e12)


@dataclass(frozen=True)
class Row:
    """A model on a fleet. `data` × `model` is the mesh that the bound is least on; bytes are of one device.

    largest: the most rows that fit at once, over all devices; batch: the rows of one of the `batches` that make up all
    responses; cache_bytes: of such a batch.
    """

    model: str
    fleet: str
    data: int
    model_axis: int
    params_bytes: int
    cache_bytes: int
    largest: int
    batch: int
    batches: int
    seconds: float


def best(
    name: str, config: DecoderConfig, fleet: Fleet, *, responses: int, prompt: int, new: int, sites: int, reducers: int
) -> Row | None:
    """The mesh of the fleet with the least bound for this many responses; None when the model fits none of them."""
    found = None
    for model in (m for m in range(1, fleet.devices + 1) if fleet.devices % m == 0):
        data = fleet.devices // model
        limit = int(fleet.gigabytes * 1e9)
        mesh: dict[str, Any] = {"data": data, "model": model}
        shape = {"prompt": prompt, "new": new, "sites": sites, "reducers": reducers}
        try:
            largest = memory.largest_batch(config, limit, **mesh, **shape)
        except UserError:
            continue
        batches = math.ceil(responses / largest)
        batch = math.ceil(responses / batches / data) * data
        least = bound.bound(config, fleet.rates, batch=batch, prompt=prompt, new=new, **mesh).total * batches
        if found is None or least < found.seconds:
            m = memory.estimate(config, dtype="bfloat16", batch=batch, **mesh, **shape)
            found = Row(name, fleet.name, data, model, m.params, m.cache, largest, batch, batches, least)
    return found


HEADER = [
    "model",
    "devices",
    "mesh",
    "weights GiB",
    "cache GiB",
    "largest batch",
    "batches",
    "bound s",
    "tok/s at most",
]


def columns(rows: Sequence[Row | tuple[str, str]], responses: int, new: int) -> list[list[str]]:
    """The table's rows as text."""
    found = []
    for row in rows:
        if not isinstance(row, Row):
            found.append([*row, *["does not fit"], *[""] * (len(HEADER) - 3)])
            continue
        largest = f"{row.largest}" if row.largest < memory.LARGEST else f"{memory.LARGEST} or more"
        found.append(
            [
                row.model,
                row.fleet,
                f"{row.data} × {row.model_axis}",
                f"{row.params_bytes / 2**30:.1f}",
                f"{row.cache_bytes / 2**30:.1f}",
                largest,
                f"{row.batches} of {row.batch}",
                f"{row.seconds:.1f}",
                f"{responses * new / row.seconds:,.0f}",
            ]
        )
    return found


def measure(config: Any, workdir: Path) -> list[Row | tuple[str, str]]:
    """Computes and prints the table of a config like configs/scale.py, and writes scale.json and table.md."""
    rows: list[Row | tuple[str, str]] = []
    about = {"responses": config.responses, "prompt": config.prompt_tokens, "new": config.new_tokens}
    for name in config.models:
        decoder = shapes.decoder_config(name)
        for fields in config.fleets:
            fleet = _fleet(fields)
            about_sites = {"sites": min(4, decoder.n_layers), "reducers": 1}
            rows.append(best(name, decoder, fleet, **about, **about_sites) or (name, fleet.name))
    text = columns(rows, config.responses, config.new_tokens)
    print("\n" + table(HEADER, text))
    note = (
        f"On paper, from data-sheet rates, nothing measured: {config.responses} responses of {config.prompt_tokens} + "
        f"{config.new_tokens} tokens in bfloat16; weights and cache of one device; mesh data × model."
    )
    print(note)
    lines = [note, "", "| " + " | ".join(HEADER) + " |", "| --- | --- |" + " ---: |" * (len(HEADER) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in text]
    records = [asdict(r) if isinstance(r, Row) else {"model": r[0], "fleet": r[1], "fits": False} for r in rows]
    write_json(workdir / "scale.json", {"config": config.to_dict(), "rows": records})
    write_bytes(workdir / "table.md", "\n".join([*lines, ""]).encode())
    print(f"written: {workdir / 'scale.json'}, {workdir / 'table.md'}")
    return rows


def _fleet(fields: Mapping[str, Any]) -> Fleet:
    try:
        return Fleet(**fields)
    except TypeError as e:
        names = ", ".join(Fleet.__dataclass_fields__)
        raise UserError(f"a fleet of config.fleets has the fields {names}; this one has {', '.join(fields)}") from e
