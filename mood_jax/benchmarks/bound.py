"""The arithmetic bound of a generation: no program on these devices can be faster, whatever it does.

A device reads W bytes and computes R floating-point operations a second. B rows with prompts of P tokens and N new
ones, b bytes a number; of one device of a mesh data × model each of B, K, query heads, F and V is its share.

    prefill     FLOPs  2 · B · P · M + 2 · B · V · D + Σ_layers 4 · B · heads · H · pairs(P)
                bytes  weights
    step t      FLOPs  2 · B · (M + V · D) + Σ_layers 4 · B · heads · H · seen(P + t + 1)
                bytes  weights + Σ_layers 2 · B · K · H · b · seen(P + t + 1)
    seconds     max(bytes / W, FLOPs / R) of prefill and of each step t = 0 … N − 1, summed

M counts the numbers in all matrices of the blocks, so a token costs 2 M in products. The head is applied to the last
position alone. A query at position i sees seen(i) = i slots, or those of its layer's window where that is shorter;
pairs(P) sums seen(1) … seen(P). Weights are all parameters that are read whole: the embedding table is not, unless it
is also the head (tied). The cache is read as far as it is filled, with no padding. Left out, all of which only adds to
the time of a real program: writing the cache, activations, norms, sampling, and what devices send to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.benchmarks.timing import seconds
from mood_jax.generation import memory
from mood_jax.models import layers
from mood_jax.models.config import DecoderConfig


@dataclass(frozen=True)
class Rates:
    """What one device can do: bytes/s (reading, or copying counted in both directions) and FLOP/s in one dtype."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class Work:
    """Bytes read and floating-point operations, of one device."""

    bytes: float
    flops: float

    def seconds(self, rates: Rates) -> float:
        return max(self.bytes / rates.bytes_per_second, self.flops / rates.flops_per_second)


@dataclass(frozen=True)
class Bound:
    """Seconds of prefill and of all decode steps together."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


@dataclass(frozen=True)
class _Device:
    """The share of a model and a batch that one device of a mesh data × model has."""

    config: DecoderConfig
    batch: float
    itemsize: int
    weights: int
    matrices: int
    head: int
    heads: int
    kv_heads: int

    def attention(self, seen: float) -> Work:
        c = self.config
        return Work(2 * self.batch * self.kv_heads * c.head_dim * self.itemsize * seen, self._flops(seen))

    def _flops(self, pairs: float) -> float:
        return 4 * self.batch * self.heads * self.config.head_dim * pairs

    def prefill(self, prompt: int) -> Work:
        pairs = sum(sum(_seen(i, w) for i in range(1, prompt + 1)) for w in self.config.windows)
        return Work(self.weights, 2 * self.batch * (prompt * self.matrices + self.head) + self._flops(pairs))

    def step(self, length: int) -> Work:
        """A step whose query sees `length` tokens, itself counted."""
        read = self.attention(sum(_seen(length, w) for w in self.config.windows))
        return Work(self.weights + read.bytes, 2 * self.batch * (self.matrices + self.head) + read.flops)


def _seen(position: int, window: int | None) -> int:
    return position if window is None else min(position, window)


def _device(config: DecoderConfig, batch: int, dtype: str, data: int, model: int) -> _Device:
    def share(n: int) -> int:
        return n // model if n % model == 0 else n

    c, b = config, np.dtype(jnp.dtype(dtype)).itemsize
    table = share(c.vocab_size) * c.d_model
    heads, kv_heads = share(c.n_heads), share(c.n_kv_heads)
    block = c.d_model * c.head_dim * (2 * heads + 2 * kv_heads) + 3 * c.d_model * share(c.d_ff)
    return _Device(
        config=c,
        batch=batch / data,
        itemsize=b,
        weights=memory.param_bytes(c, dtype, data, model) - (0 if c.tied else table * b),
        matrices=c.n_layers * block,
        head=table,
        heads=heads,
        kv_heads=kv_heads,
    )


def prefill_work(
    config: DecoderConfig, *, batch: int, prompt: int, dtype: str = "bfloat16", data: int = 1, model: int = 1
) -> Work:
    """Reading `batch` prompts of `prompt` tokens, on one device of a mesh data × model."""
    return _device(config, batch, dtype, data, model).prefill(prompt)


def step_work(
    config: DecoderConfig, *, batch: int, length: int, dtype: str = "bfloat16", data: int = 1, model: int = 1
) -> Work:
    """One decode step whose query sees `length` tokens, itself counted, on one device of a mesh data × model."""
    return _device(config, batch, dtype, data, model).step(length)


def bound(
    config: DecoderConfig,
    rates: Rates,
    *,
    batch: int,
    prompt: int,
    new: int,
    dtype: str = "bfloat16",
    data: int = 1,
    model: int = 1,
) -> Bound:
    """The least seconds of a batch of `batch` prompts of `prompt` tokens and `new` new tokens each."""
    device = _device(config, batch, dtype, data, model)
    steps = (device.step(prompt + t + 1).seconds(rates) for t in range(new))
    return Bound(device.prefill(prompt).seconds(rates), sum(steps))


# By platform: bytes of the array that is copied, far beyond any cache; rows of the matrices; and how often each is done
# in one program, so that starting it does not count (with a barrier, or an unrolled loop would copy once).
COPY_BYTES = {"cpu": 2**27, "gpu": 2**28, "tpu": 2**28}
MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
TIMES = {"cpu": (1, 1), "gpu": (32, 4), "tpu": (32, 4)}


class Probe:
    """Measures the two rates of a device: copying a large array, and multiplying two large square matrices.

    Each of `paths` is one measurement, which returns its seconds, so that they take turns with what is measured beside
    them. The rates are those of the best so far: the bound is what the device could do, and other work on the machine
    only lowers it. A small model whose weights stay in a processor's cache is read faster than memory can be copied.
    """

    def __init__(self, dtype: str, platform: str):
        kind: Any = jnp.dtype(dtype)
        platform = platform if platform in TIMES else "gpu"
        self._array, self._size = jnp.zeros(COPY_BYTES[platform] // 4, jnp.float32), MATRIX[platform]
        rng = np.random.default_rng(0)
        values = rng.standard_normal((self._size, self._size), np.float32) * self._size**-0.5
        self._matrix, self._times = jnp.asarray(values, kind), TIMES[platform]
        copies, products = self._times
        self._copy = jax.jit(lambda x: lax.fori_loop(0, copies, lambda _, y: lax.optimization_barrier(y + 1.0), x))
        multiply = partial(jnp.matmul, precision=layers.precision(kind))
        self._product = jax.jit(lambda a: lax.fori_loop(0, products, lambda _, y: multiply(y, a), a))
        self._best = {"copy": math.inf, "product": math.inf}
        for work in (self._copy(self._array), self._product(self._matrix)):  # compiles
            work.block_until_ready()

    @property
    def paths(self) -> dict[str, Callable[[], float]]:
        return {
            "copy": lambda: self._measured("copy", lambda: self._copy(self._array)),
            "product": lambda: self._measured("product", lambda: self._product(self._matrix)),
        }

    def _measured(self, name: str, work: Callable[[], jax.Array]) -> float:
        taken = min(seconds(lambda: work().block_until_ready()) for _ in range(3))
        self._best[name] = min(self._best[name], taken)
        return taken

    @property
    def rates(self) -> Rates:
        """Raises ValueError before the first measurement."""
        if math.inf in self._best.values():
            raise ValueError("nothing was measured yet; call both paths")
        copies, products = self._times
        copied, multiplied = 2 * self._array.nbytes * copies, 2 * self._size**3 * products
        return Rates(copied / self._best["copy"], multiplied / self._best["product"])
