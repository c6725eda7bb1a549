"""Keys and values that are not computed twice: of beginnings that prompts share, and of a dialogue's earlier turns.

A row's n tokens end at slot P, as in every batch. Its last U are computed, and the first n − U are copied from where
they are known, into the W = P − U slots before. All rows of a batch compute U tokens, one that knows more of itself
too, so that there is no hole between the two parts: a row's slots and positions differ by a constant, which attention
windows are counted by, and decoding goes on as behind any prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from mood_jax.generation.batching import BUCKET_STEPS, Batch, Shared
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import Cache, LayerCache, grow_cache, init_cache, run

PAYS = 0.7  # share of a batch's tokens that may be left to compute, for sharing to be worth a second program


def share(batches: Sequence[Batch]) -> list[Batch]:
    """The batches, with `shared` set where rows have so much in common that computing it once pays.

    All batches of a length share in the same way, U and the number of beginnings rounded up to a power of two, so that
    there are no more compiled shapes than lengths.
    """
    how = {}
    for P in {b.tokens.shape[1] for b in batches}:
        alike = [b for b in batches if b.tokens.shape[1] == P]
        B = len(alike[0].real)
        least = PAYS * B * P
        for U in BUCKET_STEPS:
            most = max(len(_beginnings(b, U)[0]) for b in alike) if U < P else B
            G = 1 << (most - 1).bit_length()
            cost = G * (P - U) + B * U
            if U < P and cost <= least:
                least, how[P] = cost, (U, G)
    return [_shared(b, *how[b.tokens.shape[1]]) if b.tokens.shape[1] in how else b for b in batches]


def _beginnings(batch: Batch, U: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """What a batch's rows know of themselves when U tokens each are left: the beginnings that hold all others, and
    which of them each row's is a beginning of, int32 [B]."""
    P = batch.tokens.shape[1]
    own = [tuple(t[P - n : max(P - U, P - n)].tolist()) for t, n in zip(batch.tokens, batch.lengths, strict=True)]
    found: list[tuple[int, ...]] = []
    source = np.zeros(len(own), np.int32)
    # Sorted, the sequences that begin with another follow it directly; so from behind the longest comes first.
    for k in sorted(range(len(own)), key=lambda k: own[k], reverse=True):
        if not found or found[-1][: len(own[k])] != own[k]:
            found.append(own[k])
        source[k] = len(found) - 1
    return found, source


def _shared(batch: Batch, U: int, G: int) -> Batch:
    found, source = _beginnings(batch, U)
    tokens = np.zeros((G, batch.tokens.shape[1] - U), np.int32)
    for g, ids in enumerate(found):
        tokens[g, : len(ids)] = ids
    return replace(batch, shared=Shared(tokens, source))


class Carry(Protocol):
    """What holds caches that outlive their batch: see `dialogue`."""

    def past(self, batch: Batch) -> Cache | None:
        """The cache of the batch's first slots, if so much of its rows is known."""

    def keep(self, batch: Batch, rows: np.ndarray, cache: Cache) -> None:
        """Takes the cache of the batch's rows `rows`, whose responses have ended."""


@partial(jax.jit, static_argnames=("config",))
def compute(params: Any, tokens: jax.Array, *, config: DecoderConfig) -> Cache:
    """The cache of beginnings [G, W], padded on the right: position and slot are the same."""
    G, W = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(W)[None, :], (G, W))
    empty = init_cache(config, G, W, params["embedding"].dtype)
    _, cache, _ = run(config, params, tokens, positions, jnp.ones((G, W), bool), cache=empty, logits="none")
    assert cache is not None
    return cache


@partial(jax.jit, static_argnames=("width", "sharding"))
def place(
    cache: Cache,
    source: jax.Array,
    first: jax.Array,
    into: Cache | None = None,
    mine: jax.Array | None = None,
    *,
    width: int,
    sharding: NamedSharding | None,
) -> Cache:
    """A cache [B, width] in one block whose row b is row source[b] of `cache`, slot s being its slot first[b] + s.

    Slots that the old cache does not have hold zeros. With `into`, rows that are not `mine` (bool [B]) are those of
    `into`.
    """

    def moved(x: jax.Array, axis: int) -> jax.Array:
        # one slice a row, from an array with room for slots before its first and behind its last
        x = jnp.pad(x, [(0, 0), *((width, width) if a == axis else (0, 0) for a in (1, 2, 3))])
        start = jnp.clip(first + width, 0, x.shape[axis] - width)
        size = tuple(width if a == axis else n for a, n in enumerate(x.shape))[1:]

        def row(r: jax.Array, s: jax.Array) -> jax.Array:
            place = [jnp.where(a == axis, s, 0) for a in (1, 2, 3)]
            return lax.dynamic_slice(x, (r, *place), (1, *size))[0]

        return jax.vmap(row)(source, start)

    cache = grow_cache(cache, cache[0].v.shape[2])  # any blocks become one
    found = tuple(LayerCache(moved(c.k, 3), moved(c.v, 2)) for c in cache)
    if into is not None and mine is not None:
        own = mine[:, None, None, None]
        found = jax.tree.map(lambda new, old: jnp.where(own, new, old), found, into)
    return found if sharding is None else lax.with_sharding_constraint(found, sharding)


def of(
    params: Any,
    batch: Batch,
    put: Callable[[np.ndarray], jax.Array],
    config: DecoderConfig,
    sharding: NamedSharding | None,
) -> Cache | None:
    """The cache of a batch's first W slots, computed once a shared beginning; None where nothing is shared.

    put: places an array's rows on the devices.
    """
    if batch.shared is None:
        return None
    W, P = batch.shared.tokens.shape[1], batch.tokens.shape[1]
    beginnings = compute(params, put(batch.shared.tokens), config=config)
    # a row's token 0 is in slot 0 of its beginning, and goes into slot P − length
    first = (batch.lengths - P).astype(np.int32)
    return place(beginnings, put(batch.shared.source), put(first), width=W, sharding=sharding)
