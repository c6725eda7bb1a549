"""The file of a unit: safetensors that holds states, records, what they were made from, and a checksum of it all.

The header's metadata have one entry (the order of several is not fixed), JSON with "format", "made_from" and "sha256".
That is the sha256 of the whole file with its own 64 digits as zeros, so no byte is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors.numpy import save

from mood_jax import artifacts
from mood_jax.errors import UserError
from mood_jax.models import stored

FORMAT = 2  # 1: without metadata
KEY = "unit"
DIGITS = 64
LONGEST = 1 << 26  # bytes of a header; a longer one is damage
PIECE = 1 << 18  # bytes that are read at once
CONDITIONS = ("in_context", "re_read", "random_in_context", "random_re_read")  # in the order in which they are made
Contents = tuple[list[dict[str, Any]], dict[str, np.ndarray]]


def write(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    states: Mapping[str, np.ndarray],
    made_from: Mapping[str, Any],
) -> None:
    """Writes a unit, atomically.

    Args:
        records: one a response. states: by condition, each [responses, …]. made_from: see `origin.of_collection`.
    """
    lines = json.dumps(records, sort_keys=True, ensure_ascii=False).encode()
    tensors = {f"states.{c}": np.ascontiguousarray(s) for c, s in states.items()}
    tensors["records"] = np.frombuffer(lines, np.uint8)
    about = {"format": FORMAT, "made_from": made_from, "sha256": "0" * DIGITS}
    data = bytearray(save(tensors, {KEY: json.dumps(about, sort_keys=True)}))
    at = data.rindex(b"0" * DIGITS, 8, _header_end(data))
    data[at : at + DIGITS] = hashlib.sha256(data).hexdigest().encode()
    artifacts.write_bytes(path, data)


def verify(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What a unit was made from, once its checksum has been found right; it is read piece by piece.

    Args:
        sha256: what its checksum has to be, where that is known.

    Raises UserError when it is missing, damaged, of an earlier version, or another one.
    """
    with _reading(path), path.open("rb") as file:
        start, header, about = _header(path, file)
        said, made_from = about["sha256"], about["made_from"]
        at = header.rindex(said.encode())
        found = hashlib.sha256(start + header[:at] + b"0" * DIGITS + header[at + len(said) :])
        while piece := file.read(PIECE):
            found.update(piece)
        if found.hexdigest() != said:
            raise ValueError("its checksum differs")
        if about["format"] != FORMAT or not isinstance(made_from, dict):
            raise ValueError(f"it has format {about['format']}, not {FORMAT}")
        if sha256 is not None and said != sha256:
            raise ValueError("it is another one than was written here")
        return made_from


def checksum(path: Path) -> str:
    """The checksum that a unit says it has. Raises UserError as `verify`."""
    with _reading(path), path.open("rb") as file:
        return str(_header(path, file)[2]["sha256"])


def _header(path: Path, file: IO[bytes]) -> tuple[bytes, bytes, dict[str, Any]]:
    """The first 8 bytes, the header, and what a unit says of itself; the file then stands behind them."""
    start = file.read(8)
    size = int.from_bytes(start, "little")
    if len(start) < 8 or size > LONGEST:
        raise ValueError("it has no header")
    header = file.read(size)
    metadata = json.loads(header).get("__metadata__", {})
    if KEY not in metadata:
        raise UserError(f"{path} does not say what it was made from (it is of an earlier version, or damaged)")
    return start, header, json.loads(metadata[KEY])


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What the reading of a damaged file raises → UserError."""
    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}); make it again or restore it") from e


def read(path: Path) -> Contents:
    """A unit's records, and its states by condition as views of the file; see `verify` for its checksum.

    Raises UserError when it is missing or damaged.
    """
    tensors = artifacts.map_tensors(path)
    with _reading(path):
        records = json.loads(tensors.pop("records").tobytes())
        if not all(isinstance(r["id"], str) for r in records):
            raise ValueError("a record without an id")
        # In the order in which they were made; the file has an order of its own.
        states = {c: tensors.pop(f"states.{c}") for c in CONDITIONS if f"states.{c}" in tensors}
        if tensors or not states:
            raise ValueError(f"tensors {', '.join(tensors) or 'none'}")
        if any(s.shape[:1] != (len(records),) for s in states.values()):
            raise ValueError(f"{len(records)} records and states of another number")
    return records, states


def check_finite(path: Path, states: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for states that are not finite."""
    for condition, values in states.items():
        if values.size and not stored.is_finite(values):
            raise UserError(f"{path} holds {condition} states that are not finite; make it again or restore it")


def _header_end(data: bytearray) -> int:
    return 8 + int.from_bytes(data[:8], "little")
