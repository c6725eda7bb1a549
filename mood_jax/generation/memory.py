"""How much device memory a generation takes, by formula, and the batch size that fits.

Bytes of one device, with b bytes a number of the model's dtype; P prompt slots, S = P + new tokens, B rows:

    parameters    Σ size/devices that share it · b
    cache         L · B · K · H · (S + J · C) · b, keys in J blocks of C slots, and one layer's twice while it grows
    logits        LOGITS · B · V · 4: float32, and what sampling makes of them
    accumulators  2 · sites · reducers · B · D · 4 (sums with what is rounded off them)
    prefill       B · P · (ACTIVATIONS · D + 3 · F) · b + 2 · B · N · P² · 4: the widest layer, scores in float32
    reading       the same over S tokens, and sites · B · S · D · b for the states

Prefill and decoding do not overlap, nor does reading given responses with either, so the largest counts. B, K, N, F and
V are of one device. The compiler's own count on a CPU is below it and above .4 of it (tests/generation/test_memory.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from mood_jax.errors import UserError
from mood_jax.generation.batching import bucket
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes
from mood_jax.models.sharding import param_sharding

MARGIN = 0.1  # of the device's memory that is left alone: fragments, the runtime, a compiler's other choice
LOGITS = 3  # copies of the logits that are alive at once
ACTIVATIONS = 6  # arrays of the size of the residual stream that are alive at once
LARGEST = 1024  # rows; more bring nothing once the device computes as fast as it can


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    params: int
    cache: int
    logits: int
    accumulators: int
    prefill: int
    reading: int

    @property
    def generation(self) -> int:
        """The peak of prefill and decoding."""
        return self.params + self.cache + self.accumulators + max(self.logits, self.prefill)

    @property
    def total(self) -> int:
        """The peak of everything."""
        return max(self.generation, self.params + self.accumulators + self.reading)


def estimate(
    config: DecoderConfig,
    *,
    batch: int,
    prompt: int,
    new: int,
    dtype: str = "bfloat16",
    sites: int = 4,
    reducers: int = 3,
    data: int = 1,
    model: int = 1,
    copies: int = 1,
    block: int | None = None,
) -> Memory:
    """The memory of `batch` rows with prompts of at most `prompt` tokens and `new` new ones on a mesh data × model.

    copies: of the parameters, 2 where a control with random weights is on the device too. block: slots a block of the
    keys (`engine.key_block`).
    """
    b = np.dtype(jax.numpy.dtype(dtype)).itemsize

    def share(n: int) -> int:
        return n // model if n % model == 0 else n

    rows = -(-batch // data)
    heads, kv = share(config.n_heads), share(config.n_kv_heads)
    p, slots = bucket(prompt), bucket(prompt) + new
    in_blocks = slots if block is None else -(-slots // block) * block
    layer = rows * kv * config.head_dim * (slots + in_blocks) * b
    t = bucket(prompt + new)

    def passing(length: int, kept: int) -> int:
        numbers = (ACTIVATIONS + kept) * config.d_model + 3 * share(config.d_ff)
        return rows * length * (numbers * b + 2 * heads * length * 4)

    return Memory(
        params=param_bytes(config, dtype, data, model) * copies,
        cache=layer * (config.n_layers + 1),
        logits=LOGITS * rows * share(config.vocab_size) * 4,
        accumulators=2 * sites * reducers * rows * config.d_model * 4,
        prefill=passing(p, 0),
        reading=passing(t, sites),
    )


@functools.cache
def param_bytes(config: DecoderConfig, dtype: str = "bfloat16", data: int = 1, model: int = 1) -> int:
    """Bytes of the parameters that one device of a mesh data × model holds.

    All blocks have the same shapes, so one is traced and counted n_layers times: a search over batch sizes asks often.
    """
    b, mesh = np.dtype(jax.numpy.dtype(dtype)).itemsize, _abstract(data, model)
    numbers = 0
    for path, leaf in param_shapes(replace(config, n_layers=1, windows=config.windows[:1])).items():
        times = config.n_layers if path.startswith("block_0/") else 1
        numbers += times * math.prod(param_sharding(mesh, path, leaf.shape).shard_shape(leaf.shape))
    return numbers * b


def largest_batch(config: DecoderConfig, limit: int, *, data: int = 1, **shape) -> int:
    """The most rows, a multiple of 8 and of `data`, that fit `limit` bytes a device with MARGIN to spare.

    Raises UserError when not even the smallest batch fits, with what it would take.
    """
    step = math.lcm(8, data)
    room = limit * (1 - MARGIN)
    if estimate(config, batch=step, data=data, **shape).total > room:
        needed = estimate(config, batch=step, data=data, **shape)
        raise UserError(
            f"{step} rows would take {needed.total / 2**30:.1f} GiB a device ({needed.params / 2**30:.1f} of them "
            f"weights), and {room / 2**30:.1f} GiB are free for them; use more devices (config.mesh_model), bfloat16, "
            "or config.random_weights=False"
        )
    low, high = 1, -(-LARGEST // step)
    while low < high:  # the largest multiple that fits
        middle = -(-(low + high) // 2)
        if estimate(config, batch=middle * step, data=data, **shape).total <= room:
            low = middle
        else:
            high = middle - 1
    return low * step


def device_limit(mesh: Mesh) -> int:
    """Bytes that a device of the mesh can hold; where it does not say, its share of half of the host's memory.

    Not of what is free just now: the same command has to find the same batch size when it resumes.
    """
    local = mesh.local_devices
    stats = local[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    with open("/proc/meminfo", encoding="ascii") as f:
        whole = next(int(line.split()[1]) for line in f if line.startswith("MemTotal:"))
    return whole * 1024 // 2 // len(local)


def _abstract(data: int, model: int) -> jax.sharding.AbstractMesh:
    """A mesh of devices that need not be here."""
    return jax.sharding.AbstractMesh((data, model), ("data", "model"))
