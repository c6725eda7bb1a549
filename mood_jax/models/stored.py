"""Tensors in safetensors files, read a piece at a time straight to where they are wanted.

A mapped file would stand in memory beside what is made of it, and so would a tensor read whole before it is converted
or cut into shards. Here at most one piece does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mood_jax.errors import UserError

# What a tensor may be in the file, in the words of safetensors.
DTYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
PIECE = 1 << 24  # bytes that are read at once
SAMPLE_BYTES = 1 << 16  # of each tensor, evenly spread, that enter the fingerprint
CHECKED = 1 << 17  # numbers that are checked at once, which a processor's cache holds
ALIGNMENT = 64  # of host memory that a CPU device takes over without a copy
Bounds = tuple[tuple[int, int], ...]  # first and last + 1 of every dimension


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of an open file: `kind` in the words of safetensors, and where its bytes begin."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    size: int
    file: Path
    descriptor: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(DTYPES[self.kind])

    def read(self, start: int, out: np.ndarray) -> None:
        """Bytes from `start` on into a contiguous array. Raises UserError when the file ends before it is full."""
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            n = os.preadv(self.descriptor, [view[done:]], self.begin + start + done)
            if n == 0:
                raise UserError(f"{self.file} has become shorter while it was read; load again")
            done += n

    def parts(self, shape: Sequence[int], dtype: Any, bounds: Sequence[Bounds]) -> list[np.ndarray]:
        """The parts of the tensor, taken as an array of `shape`, within `bounds`, each in `dtype`.

        Only rows (entries of the first dimension) that some part has are read.
        """
        out = [_empty([stop - start for start, stop in b], dtype) for b in bounds]
        row = self.size // shape[0]
        whole_rows = all(b[1:] == tuple((0, n) for n in shape[1:]) for b in bounds)
        if whole_rows and self.dtype == dtype:
            for part, (rows, *_) in zip(out, bounds, strict=True):
                self.read(rows[0] * row, part)
            return out
        step = max(1, PIECE // row)
        buffer = np.empty(min(step, shape[0]) * row, np.uint8)
        for first in range(min(b[0][0] for b in bounds), max(b[0][1] for b in bounds), step):
            last = min(first + step, shape[0])
            wanted = [(max(first, b[0][0]), min(last, b[0][1])) for b in bounds]
            if not any(start < stop for start, stop in wanted):
                continue
            raw = buffer[: (last - first) * row]
            self.read(first * row, raw)
            piece = raw.view(self.dtype).reshape(last - first, *shape[1:])
            for part, b, (start, stop) in zip(out, bounds, wanted, strict=True):
                if start < stop:
                    columns = tuple(slice(*x) for x in b[1:])
                    source = piece[(slice(start - first, stop - first), *columns)]
                    _convert(source, part[start - b[0][0] : stop - b[0][0]])
        return out

    def sample(self) -> list[bytes]:
        """Up to 64 KiB of what is stored, in evenly spaced pieces."""

        def read(start: int, stop: int) -> bytes:
            out = np.empty(stop - start, np.uint8)
            self.read(start, out)
            return out.tobytes()

        return _sample(self.size, read)

    def digest(self, sample: Sequence[bytes] | None = None) -> str:
        """As `digest`, of what is stored; `sample` where it has been read already."""
        return _digest(self.dtype, self.shape, self.sample() if sample is None else sample)

    def equals(self, other: StoredTensor, dtype: Any = np.float32) -> bool:
        """The same shape, and the same numbers once both are in `dtype`? NaN equals NaN."""
        if self.shape != other.shape:
            return False
        count, step = int(np.prod(self.shape)), PIECE // 8
        for start in range(0, count, step):
            a, b = (t._numbers(start, min(step, count - start), dtype) for t in (self, other))
            if not np.array_equal(a, b, equal_nan=True):
                return False
        return True

    def rounds_to(self, other: StoredTensor) -> bool:
        """Is one of the two the other, rounded to its own dtype?"""
        return self.equals(other, self.dtype) or self.equals(other, other.dtype)

    def _numbers(self, start: int, count: int, dtype: Any) -> np.ndarray:
        raw = np.empty(count, self.dtype)
        self.read(start * self.dtype.itemsize, raw)
        with np.errstate(over="ignore", invalid="ignore"):
            return raw.astype(dtype).astype(np.float64)


def _empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Aligned memory, not yet written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _convert(source: np.ndarray, out: np.ndarray) -> None:
    if source.dtype == ml_dtypes.bfloat16 and out.dtype == np.float32:
        # The upper half of the float's bits, several times as fast as a conversion number by number.
        np.left_shift(source.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = source


def is_finite(x: np.ndarray) -> bool:
    """No NaN and no Inf in a contiguous float32 or bfloat16 array? The exponents tell, and nothing is compiled."""
    kind, exponent = (np.uint16, 0x7F80) if x.dtype == ml_dtypes.bfloat16 else (np.uint32, 0x7F800000)
    bits = x.reshape(-1).view(kind)
    masked = np.empty(min(bits.size, CHECKED), kind)
    for start in range(0, bits.size, CHECKED):
        some = bits[start : start + CHECKED]
        if np.bitwise_and(some, kind(exponent), out=masked[: some.size]).max() == exponent:
            return False
    return True


@contextlib.contextmanager
def open_tensors(file: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a file by name. Raises UserError when it is truncated or no safetensors file."""
    try:
        with safe_open(file, framework="numpy"):  # for its checks of header and length
            pass
    except SafetensorError as e:
        raise UserError(f"{file} is truncated or damaged ({e}); download the file again") from e
    with file.open("rb", buffering=0) as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(start - 8))
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            place = (start + begin, end - begin, file, opened.fileno())
            found[name] = StoredTensor(name, entry["dtype"], tuple(entry["shape"]), *place)
        yield found


@contextlib.contextmanager
def open_all(files: Sequence[Path]) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of all files by name. Raises UserError also when a name stands in two of them."""
    found: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as stack:
        for file in files:
            for name, tensor in stack.enter_context(open_tensors(file)).items():
                if name in found:
                    raise UserError(
                        f"tensor {name} stands in both {found[name].file.name} and {file.name}, of one set of files; "
                        "download the checkpoint again"
                    )
                found[name] = tensor
        yield found


def digest(value: np.ndarray) -> str:
    """sha256 of dtype, shape and up to 64 KiB of the tensor's bytes, in 64 evenly spaced pieces."""
    raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return _digest(value.dtype, value.shape, _sample(raw.size, lambda start, stop: raw[start:stop].tobytes()))


def _sample(size: int, read: Callable[[int, int], bytes]) -> list[bytes]:
    if size <= SAMPLE_BYTES:
        return [read(0, size)]
    piece = SAMPLE_BYTES // 64
    return [read(start, start + piece) for start in np.linspace(0, size - piece, 64).astype(np.int64).tolist()]


def _digest(dtype: np.dtype, shape: tuple[int, ...], sample: Sequence[bytes]) -> str:
    h = hashlib.sha256(f"{dtype} {shape} ".encode())
    for piece in sample:
        h.update(piece)
    return h.hexdigest()
