"""Smaller batches where a device has not the memory for those that were asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np

from mood_jax import processes
from mood_jax.errors import UserError
from mood_jax.generation.batching import Batch, halves

R = TypeVar("R", bound=tuple | np.ndarray)


@dataclass
class Rows:
    """How many rows may run at once: as many as a batch has, until the device has once run out of memory.

    divisor: of the number of rows, the mesh's devices along `data`.
    """

    divisor: int = 1
    most: int | None = None

    def smaller_when_out_of_memory(self, batch: Batch, run: Callable[[Batch], R]) -> R:
        """run(batch), or of its halves in turn, joined: tuples field by field, arrays along their first axis.

        Says so on stderr, and begins later batches with the size that went through. A response depends on the size of
        its batch by rounding alone. Raises UserError when the smallest batch does not fit.
        """
        size = len(batch.real)
        if self.most is None or size <= self.most:
            try:
                return run(batch)
            except jax.errors.JaxRuntimeError as e:
                if "RESOURCE_EXHAUSTED" not in str(e) and "out of memory" not in str(e).lower():
                    raise
                if processes.count() > 1:
                    raise UserError(
                        f"the device runs out of memory with {size} rows, and several processes cannot halve a batch "
                        "together; set config.batch_size to fewer rows"
                    ) from e
                if size <= self.divisor:
                    raise UserError(
                        f"the device runs out of memory with {size} row(s) of {batch.tokens.shape[1]} tokens; use more "
                        "devices (config.mesh_model), bfloat16, fewer new tokens, or config.random_weights=False"
                    ) from e
            half = -(-size // 2 // self.divisor) * self.divisor
            self.most = max(half, self.divisor)
            print(f"out of memory with {size} rows: going on with {self.most}", file=sys.stderr, flush=True)
        # outside the except clause, which would keep the failed attempt's arrays alive
        return _joined([self.smaller_when_out_of_memory(part, run) for part in halves(batch, self.divisor)])


def _joined(parts: list[R]) -> R:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)  # type: ignore[return-value]
    fields = []
    for values in zip(*parts, strict=True):
        if isinstance(values[0], list):
            fields.append([x for part in values for x in part])
        else:
            fields.append(np.concatenate(values))
    return type(first)(*fields)
