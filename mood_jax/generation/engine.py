"""Batched generation whose states are reduced inside the decode loop, and the same reduction of given text.

A batch is prefilled once, then decoded in chunks of a fixed number of steps, each chunk one jitted `lax.scan` whose
whole state (cache, accumulators, tokens) is donated. A step takes the token y_t, runs the decoder, folds the states at
the chosen sites into the accumulators, and samples y_{t+1}: the state of y_t is the one at the position where y_t is
the *input*, so a response that the budget stops has its last token read too. Nothing per token leaves the device but
its id.

Spans (method.md, section 3): "response" reads y_0 … y_{n−1}. "article" reads what a loop over HF's `generate` hidden
states pools: the last prompt position, then every sampled token but the last (EOS counts as sampled and is the last).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from mood_jax.generation import prefix
from mood_jax.generation import reducers as red
from mood_jax.generation.batching import Batch
from mood_jax.generation.model import Model
from mood_jax.generation.sampling import Sampler, response_keys, sample, usable
from mood_jax.models import sharding as placing
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import Cache, grow_cache, init_cache, rotary, run
from mood_jax.models.sharding import batch_sharding, spans_processes, to_host

Span = Literal["response", "article"]
# Decode steps a jitted call. A batch that has ended computes up to a chunk for nothing; a call costs some dispatching,
# which is nothing on a CPU. Elsewhere nothing was measured.
CHUNK = {"cpu": 8, "gpu": 16, "tpu": 16}
ROOM = (
    64  # new tokens that the first cache of a batch holds; a full cache is replaced by one with GROWTH times the room
)
GROWTH = 4
# Rows from which a step's time grows with them, rather than being that of reading the weights: a batch larger than this
# is halved when half of its rows have ended. On a CPU that is from 32 rows on, but each size compiles two or three
# programs of 4 to 5 s, which a batch of the usual size never earns back.
KNEE = {"cpu": 160, "gpu": 128, "tpu": 128}
# Slots a block of the keys while decoding; all are in one elsewhere than on a CPU, where nothing was measured.
BLOCK = {"cpu": 64}


def key_block(mesh: Mesh) -> int | None:
    """BLOCK of a mesh's devices; None where they share the heads, which several blocks do not keep together."""
    return BLOCK.get(mesh.devices.flat[0].platform) if mesh.shape["model"] == 1 else None


def chunk_steps(mesh: Mesh) -> int:
    """CHUNK of a mesh's devices."""
    return CHUNK.get(mesh.devices.flat[0].platform, CHUNK["gpu"])


@dataclass(frozen=True)
class Spec:
    """The static part of a generation: one compiled decode loop per Spec and shape."""

    config: DecoderConfig
    sampler: Sampler
    eos: tuple[int, ...]
    max_new_tokens: int
    sites: tuple[str, ...]
    reducers: tuple[red.Reducer, ...]
    span: Span = "response"
    cache_sharding: NamedSharding | None = None  # on a mesh of several devices
    block: int | None = None  # slots a block of the keys while decoding; None: all in one
    steps: int = 16  # decode steps a jitted call, at most

    @property
    def n_chunks(self) -> int:
        return -(-self.max_new_tokens // self.steps)

    @property
    def chunk(self) -> int:
        """Steps a chunk, evened out so that the last one is not mostly idle."""
        return -(-self.max_new_tokens // self.n_chunks)

    @property
    def slots(self) -> int:
        """Decode steps in all, at least `max_new_tokens`."""
        return self.n_chunks * self.chunk

    def room(self, chunk: int) -> int:
        """Slots for new tokens in the cache that this chunk runs with.

        A step reads the whole cache, filled or not, and most responses end well before their budget, so the cache
        grows. Each size is one more compilation, of the sizes that are reached.
        """
        room = ROOM
        while room < (chunk + 1) * self.chunk:
            room *= GROWTH
        return min(room, self.slots)


class State(NamedTuple):
    """Everything that a decode step changes; donated from chunk to chunk."""

    cache: Cache
    token: jax.Array  # int32 [B], y_t, the next input
    tokens: jax.Array  # int32 [B, slots], the response so far
    alive: jax.Array  # bool [B], no EOS yet
    eos: jax.Array  # bool [B], ended by EOS
    n: jax.Array  # int32 [B], response tokens
    read: jax.Array  # int32 [B], states folded in
    bad: jax.Array  # bool [B], a NaN or Inf was seen
    sums: tuple[tuple[red.Accumulator, ...], ...]  # [sites][reducers]


class BatchResult(NamedTuple):
    """A finished batch on the host, filler rows dropped."""

    tokens: list[np.ndarray]
    eos: np.ndarray  # bool [rows]
    read: np.ndarray  # int32 [rows]
    states: np.ndarray  # float32 [rows, sites, reducers, D]
    bad: np.ndarray  # bool [rows]


def prefill(
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    real: jax.Array,
    keys: jax.Array,
    past: Cache | None = None,
    *,
    spec: Spec,
    slots: int,
) -> State:
    """Reads left-padded prompts [B, P] and samples y_0. The cache of the result has `slots` slots.

    With a `past`, the cache of the first W slots of these prompts, `tokens` are the other P − W.
    """
    state, logits = read_prompts(params, tokens, lengths, real, past, spec=spec, slots=slots)
    return state._replace(token=_first(logits, keys, sampler=spec.sampler))


# A program of its own: a batch size has many lengths of prompts, and half of the time to compile them went into this.
@partial(jax.jit, static_argnames="sampler")
def _first(logits: jax.Array, keys: jax.Array, *, sampler: Sampler) -> jax.Array:
    return sample(sampler, logits, keys, jnp.int32(0))


@partial(jax.jit, static_argnames=("spec", "slots"))
def read_prompts(
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    real: jax.Array,
    past: Cache | None = None,
    *,
    spec: Spec,
    slots: int,
) -> tuple[State, jax.Array]:
    """`prefill` up to y_0, and the logits [B, V] that it is sampled from."""
    B, U = tokens.shape
    config = spec.config
    W = 0 if past is None else past[0].v.shape[2]
    P = W + U
    article = spec.span == "article"
    slot = jnp.arange(P)[None, :]
    valid = slot >= (P - lengths)[:, None]
    positions = jnp.maximum(slot[:, W:] - (P - lengths)[:, None], 0)
    dtype = params["embedding"].dtype
    logits, cache, states = run(
        config,
        params,
        tokens,
        positions,
        valid,
        cache=init_cache(config, B, P, dtype) if past is None else grow_cache(_placed(spec, past), P),
        index=W,
        logits="last",
        sites=spec.sites if article else (),
    )
    assert logits is not None
    assert cache is not None
    sums = tuple(tuple(red.start(r, B, config.d_model) for r in spec.reducers) for _ in spec.sites)
    if article:
        sums = _fold(spec, sums, tuple(s[:, -1] for s in states), real)
    return State(
        cache=_placed(spec, grow_cache(cache, slots, spec.block)),
        token=jnp.zeros(B, jnp.int32),
        tokens=jnp.zeros((B, spec.slots), jnp.int32),
        alive=real,
        eos=jnp.zeros(B, bool),
        n=jnp.zeros(B, jnp.int32),
        read=real.astype(jnp.int32) if article else jnp.zeros(B, jnp.int32),
        bad=real & ~usable(spec.sampler, logits),
        sums=sums,
    ), logits


def _placed(spec: Spec, cache: Cache) -> Cache:
    """Left to itself, the compiler may split key/value heads in the loop that the mesh does not divide, and gather the
    whole cache again at the end of every chunk."""
    return cache if spec.cache_sharding is None else lax.with_sharding_constraint(cache, spec.cache_sharding)


def _fold(spec: Spec, sums, states: Sequence[jax.Array], active: jax.Array):
    return tuple(
        tuple(red.update(r, s, h, active) for r, s in zip(spec.reducers, of_site, strict=True))
        for of_site, h in zip(sums, states, strict=True)
    )


@partial(jax.jit, static_argnames=("spec",), donate_argnames=("state",))
def decode_chunk(
    params: Any,
    state: State,
    keys: jax.Array,
    lengths: jax.Array,
    prompt_slots: jax.Array,
    t0: jax.Array,
    *,
    spec: Spec,
) -> tuple[State, jax.Array]:
    """`spec.chunk` decode steps from step t0; the new state, and how many rows are still alive and have budget left.

    `prompt_slots` is P, the padded prompt length: y_t goes into slot P + t.
    """
    config = spec.config
    eos_ids = jnp.asarray(spec.eos or (-1,), jnp.int32)
    slots = state.cache[0].v.shape[2]
    valid = jnp.arange(slots)[None, :] >= (prompt_slots - lengths)[:, None]

    times = t0 + jnp.arange(spec.chunk)
    # Outside the loop, or every layer of every step computes the cosines and sines once more.
    cos, sin = rotary(config, lengths[:, None] + times[None, :])  # B chunk 1 H/2
    ropes = (cos.transpose(1, 0, 2, 3)[:, :, None], sin.transpose(1, 0, 2, 3)[:, :, None])  # chunk B 1 1 H/2

    def step(s: State, x: tuple[jax.Array, tuple[jax.Array, jax.Array]]) -> tuple[State, None]:
        t, rope = x
        in_budget = t < spec.max_new_tokens
        is_eos = (s.token[:, None] == eos_ids[None, :]).any(axis=-1)
        eos = s.eos | (s.alive & is_eos & in_budget)
        alive = s.alive & ~is_eos
        active = alive & in_budget
        tokens = lax.dynamic_update_slice(s.tokens, jnp.where(active, s.token, 0)[:, None], (0, t))
        with jax.named_scope("model"):
            logits, cache, states = run(
                config,
                params,
                s.token[:, None],
                (lengths + t)[:, None],
                valid,
                cache=s.cache,
                index=prompt_slots + t,
                logits="last",
                sites=spec.sites,
                rope=rope,
            )
        assert logits is not None
        assert cache is not None
        # The article's span ends one short of the last sampled token: EOS is never active, the budget's last is.
        folded = active & (t < spec.max_new_tokens - 1) if spec.span == "article" else active
        with jax.named_scope("sampling"):
            token = sample(spec.sampler, logits, keys, t + 1)
        with jax.named_scope("reducers"):
            sums = _fold(spec, s.sums, tuple(h[:, 0] for h in states), folded)
        return State(
            cache=_placed(spec, cache),
            token=token,
            tokens=tokens,
            alive=alive,
            eos=eos,
            n=s.n + active,
            read=s.read + folded,
            bad=s.bad | (active & ~usable(spec.sampler, logits)),
            sums=sums,
        ), None

    state, _ = lax.scan(step, state, (times, ropes))
    return state, (state.alive & (t0 + spec.chunk < spec.max_new_tokens)).sum()


_grow = jax.jit(grow_cache, static_argnames=("length", "block"))


def grow(state: State, slots: int, spec: Spec) -> State:
    """The state with a cache of `slots` slots. Layer by layer, so that old and new are never both there in full."""
    layers = list(state.cache)
    state = state._replace(cache=())
    for i, layer in enumerate(layers):
        layers[i] = _grow((layer,), length=slots, block=spec.block)[0]
    return state._replace(cache=tuple(layers))


@jax.jit
def _take(x: Any, rows: jax.Array) -> Any:
    return jax.tree.map(lambda a: a[rows], x)


def take(state: State, rows: jax.Array) -> State:
    """The state of some rows. Layer by layer, as `grow`."""
    layers = list(state.cache)
    state = _take(state._replace(cache=()), rows)
    for i, layer in enumerate(layers):
        layers[i] = _take(layer, rows)
    return state._replace(cache=tuple(layers))


@partial(jax.jit, static_argnames=("spec",))
def finish(state: State, *, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """Accumulators → reduced states [B, sites, reducers, D], and which rows hold a NaN or Inf."""
    out = jnp.stack(
        [
            jnp.stack([red.finish(r, s, state.read) for r, s in zip(spec.reducers, of_site, strict=True)], axis=1)
            for of_site in state.sums
        ],
        axis=1,
    )
    return out, ~jnp.isfinite(out).all(axis=(1, 2, 3))


class _Rows:
    """What has been brought to the host of a batch's rows, some at a time."""

    def __init__(self, n: int, spec: Spec):
        self.spec = spec
        self.tokens: list[np.ndarray] = [np.zeros(0, np.int32)] * n
        self.eos, self.bad, self.read = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.int32)
        shape = (n, len(spec.sites), len(spec.reducers), spec.config.d_model)
        self.states = np.zeros(shape, np.float32)

    def fetch(self, state: State, rows: np.ndarray, places: np.ndarray) -> None:
        """Takes the rows `places` of a state, which are the batch's rows `rows`."""
        bad = to_host(state.bad)
        if self.spec.sites and self.spec.reducers:
            states, broken = finish(state._replace(cache=()), spec=self.spec)
            self.states[rows], bad = to_host(states)[places], bad | to_host(broken)
        n, tokens = to_host(state.n), to_host(state.tokens)
        for row, k in zip(rows, places, strict=True):
            self.tokens[row] = tokens[k, : n[k]]
        self.eos[rows], self.read[rows] = to_host(state.eos)[places], to_host(state.read)[places]
        self.bad[rows] = bad[places]


def run_batch(
    model: Model,
    batch: Batch,
    ids: Sequence[str],
    seed: int,
    spec: Spec,
    prompt_slots: int,
    carry: prefix.Carry | None = None,
) -> BatchResult:
    """One batch from prompt to host. `prompt_slots` ≥ the batch's length fixes the cache sizes for all batches of a
    run, so that decoding compiles once a size."""
    mesh = model.mesh
    B, P = batch.tokens.shape
    row_ids = [ids[r] for r in batch.rows]
    row_ids += row_ids[:1] * (B - len(row_ids))

    def put(x: np.ndarray) -> jax.Array:
        return placing.put(x, batch_sharding(mesh, x.shape))

    keys, lengths = put(response_keys(seed, row_ids)), put(batch.lengths)
    room = spec.room(0)
    past = None if carry is None else carry.past(batch)
    if past is None:
        past = prefix.of(model.params, batch, put, spec.config, spec.cache_sharding)
    W = 0 if past is None else past[0].v.shape[2]
    prompts = (put(batch.tokens[:, W:]), lengths, put(batch.real), keys)
    state = prefill(model.params, *prompts, past, spec=spec, slots=prompt_slots + room)
    del past
    # On accelerators the question "how many are alive?" is asked one chunk late, so that the device never waits for
    # Python.
    platform = mesh.devices.flat[0].platform
    lag = 0 if platform == "cpu" else 1
    # Rows are not left behind where those that go on would have to change processes, their cache with them.
    knee = B if spans_processes(mesh) else KNEE.get(platform, KNEE["gpu"])
    found, rows = _Rows(B, spec), np.arange(B)
    flags: list[jax.Array] = []
    for c in range(spec.n_chunks):
        if spec.room(c) > room:
            room = spec.room(c)
            state = grow(state, prompt_slots + room, spec)
        state, alive = decode_chunk(
            model.params, state, keys, lengths, jnp.int32(P), jnp.int32(c * spec.chunk), spec=spec
        )
        flags.append(alive)
        left = len(rows) if len(flags) <= lag else int(to_host(flags[-1 - lag]))
        if left == 0:
            break
        size = -(-len(rows) // 2 // mesh.shape["data"]) * mesh.shape["data"]
        if left <= size < len(rows) and len(rows) > knee:
            order = np.argsort(~np.asarray(state.alive), kind="stable")  # the living first
            found.fetch(state, rows[order[size:]], order[size:])
            if carry is not None:
                carry.keep(batch, rows[order[size:]], take(state, put(order[size:].astype(np.int32))).cache)
            kept = put(order[:size].astype(np.int32))
            state, keys, lengths = take(state, kept), _take(keys, kept), _take(lengths, kept)
            rows = rows[order[:size]]
    found.fetch(state, rows, np.arange(len(rows)))
    if carry is not None:
        carry.keep(batch, rows, state.cache)
    n = len(batch.rows)
    return BatchResult(found.tokens[:n], found.eos[:n], found.read[:n], found.states[:n], found.bad[:n])


@partial(jax.jit, static_argnames=("config", "sites", "reducers"))
def read_batch(
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    first: jax.Array,
    count: jax.Array,
    *,
    config: DecoderConfig,
    sites: tuple[str, ...],
    reducers: tuple[red.Reducer, ...],
) -> jax.Array:
    """Teacher-forced: left-padded sequences [B, T], and per row the position of the first state read and how many.

    Returns float32 [B, sites, reducers, D].
    """
    T = tokens.shape[1]
    slot = jnp.arange(T)[None, :]
    start = (T - lengths)[:, None]
    positions = jnp.maximum(slot - start, 0)
    rank = slot - start - first[:, None]
    rank = jnp.where((rank >= 0) & (rank < count[:, None]), rank, -1)
    _, _, states = run(config, params, tokens, positions, slot >= start, logits="none", sites=sites)
    return jnp.stack([jnp.stack([red.reduce(r, h, rank, count) for r in reducers], axis=1) for h in states], axis=1)
