"""`generate` and `read`: prompts in, responses and reduced states out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import jax
import numpy as np

from mood_jax import numerics, values
from mood_jax.errors import UserError
from mood_jax.generation import engine
from mood_jax.generation.batching import (
    Batch,
    check_ids,
    default_ids,
    make_batches,
    make_read_batches,
    render_all,
    token_ids,
)
from mood_jax.generation.model import Model
from mood_jax.generation.prefix import Carry, share
from mood_jax.generation.reducers import parse_reducers
from mood_jax.generation.rows import Rows
from mood_jax.generation.sampling import Greedy, Sampler, TopP
from mood_jax.models import sharding
from mood_jax.models.decoder import resolve_sites
from mood_jax.models.sharding import batch_sharding, cache_sharding, to_host

DEFAULT_REDUCERS = ("decay_0.9", "mean", "last")

# Slots a data device reads at once: on a CPU as few as keep the attention's scores in its caches (measured), elsewhere
# far above the few hundred from which a step's time is that of its products, and enough to hide its launching.
READ_TOKENS = {"cpu": 2048, "gpu": 8192, "tpu": 8192}


@dataclass(frozen=True)
class Responses:
    """N responses in the order of their prompts.

    `states` is float32 [N, sites, reducers, D]; `sites` and `reducers` name its axes. `read[i]` counts the states that
    were folded into it (0 for an empty response, whose states are zeros). `finish[i]` is "eos" or "length".
    """

    ids: tuple[str, ...]
    prompt_hashes: tuple[str, ...]
    text: tuple[str, ...]
    tokens: tuple[np.ndarray, ...]
    finish: tuple[str, ...]
    read: np.ndarray
    states: np.ndarray
    sites: tuple[str, ...]
    reducers: tuple[str, ...]

    @property
    def n_tokens(self) -> np.ndarray:
        """Response tokens, EOS excluded, int [N]."""
        return np.asarray([len(t) for t in self.tokens])

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> Responses:
        """The responses of these rows, in this order."""
        return Responses(
            ids=tuple(self.ids[r] for r in rows),
            prompt_hashes=tuple(self.prompt_hashes[r] for r in rows),
            text=tuple(self.text[r] for r in rows),
            tokens=tuple(self.tokens[r] for r in rows),
            finish=tuple(self.finish[r] for r in rows),
            read=self.read[list(rows)],
            states=self.states[list(rows)],
            sites=self.sites,
            reducers=self.reducers,
        )


@dataclass(frozen=True)
class Plan:
    """Prompts rendered and cut into batches, so that a study can run them one by one and resume."""

    model: Model
    ids: tuple[str, ...]
    rendered: tuple[Any, ...]
    batches: tuple[Batch, ...]
    spec: engine.Spec
    seed: int
    prompt_slots: int
    rows: Rows

    def run(self, k: int, carry: Carry | None = None) -> Responses:
        """Generates batch k; its rows are `self.batches[k].rows`. Raises UserError when states are not finite."""
        batch = self.batches[k]
        how = (self.ids, self.seed, self.spec, self.prompt_slots, carry)
        result = self.rows.smaller_when_out_of_memory(batch, lambda part: engine.run_batch(self.model, part, *how))
        ids = tuple(self.ids[r] for r in batch.rows)
        _check_finite(ids, result.bad)
        return Responses(
            ids=ids,
            prompt_hashes=tuple(self.rendered[r].hash for r in batch.rows),
            text=tuple(self.model.chat.decode(t.tolist()) for t in result.tokens),
            tokens=tuple(result.tokens),
            finish=tuple("eos" if e else "length" for e in result.eos),
            read=result.read,
            states=result.states,
            sites=self.spec.sites,
            reducers=tuple(r.name for r in self.spec.reducers),
        )


def plan(
    model: Model,
    prompts: Sequence[Any],
    *,
    max_new_tokens: int = 200,
    sampler: Sampler | None = None,
    seed: int = 0,
    sites: str | Sequence[str] = "last4",
    reducers: Sequence[str] = DEFAULT_REDUCERS,
    span: engine.Span = "response",
    batch_size: int = 64,
    ids: Sequence[str] | None = None,
    full: bool = False,
    prompt_slots: int = 0,
) -> Plan:
    """Checks and prepares what `generate` runs; the arguments are the same.

    full: batches have `batch_size` rows even where there are fewer prompts.
    prompt_slots: the cache has room for prompts of so many tokens even where all are shorter, so that runs of shorter
        and longer ones share their compiled decode steps; the rest is masked.
    """
    numerics.check_flags()
    max_new_tokens, seed = values.whole("max_new_tokens", max_new_tokens, 1), values.seed(seed)
    prompt_slots = values.whole("prompt_slots", prompt_slots)
    _check_span(span)
    if not isinstance(sampler, (Greedy, TopP, NoneType)):
        raise UserError(f"the sampler must be Greedy() or TopP(p, temperature=…), not {sampler!r}")
    rendered = render_all(model.chat, prompts)
    names = check_ids(default_ids([r.hash for r in rendered]) if ids is None else ids, len(rendered))
    lengths = [len(r.token_ids) for r in rendered]
    _check_context(model, names, [n + max_new_tokens for n in lengths], f" (with {max_new_tokens} new tokens)")
    _check_token_ids(model, names, [r.token_ids for r in rendered])
    batches = share(make_batches([r.token_ids for r in rendered], batch_size, model.mesh.shape["data"], full))
    spec = engine.Spec(
        config=model.config,
        sampler=Greedy() if sampler is None else sampler,
        eos=tuple(model.chat.eos_token_ids),
        max_new_tokens=max_new_tokens,
        sites=resolve_sites(model.config, sites),
        reducers=parse_reducers(reducers),
        span=span,
        cache_sharding=cache_sharding(model.config.n_kv_heads, model.mesh),
        block=engine.key_block(model.mesh),
        steps=engine.chunk_steps(model.mesh),
    )
    longest = max(prompt_slots, *(b.tokens.shape[1] for b in batches))
    rows = Rows(model.mesh.shape["data"])
    return Plan(model, tuple(names), tuple(rendered), tuple(batches), spec, seed, longest, rows)


def generate(
    model: Model,
    prompts: Sequence[Any],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Responses:
    """Generates one response a prompt and reduces its hidden states on the way.

    Args:
        prompts: each a string (one user message), a list of chat messages, or a list of token ids. Arrays, tuples and
            generators are taken as lists are.
        max_new_tokens: the budget of a response, at least 1 (default 200).
        sampler: `Greedy()` (default) or `TopP(p, temperature=)`; the checkpoint's own sampling defaults are not used.
        seed, ids: a response's random numbers depend on the seed, its id and the token's index, and on nothing else.
            Default ids are the prompt's hash and its occurrence. A seed is one of 0 … 2³² − 1, an id a text.
        sites: "last4" (default), "all", "none", or a list such as ["embed", "resid_post@3", "final_norm"].
        reducers: any of "mean", "decay_0.9" (any γ), "last", "max_abs".
        span: "response" (default), or "article" for the published pooling (see `engine`).
        batch_size: rows a batch (default 64). Results do not depend on it beyond rounding.
        on_batch: called with the number of rows after each batch.

    Raises UserError: no prompts, an empty one, one that does not fit the context, unknown site or reducer, a value of
    another kind than it should be (3.5 tokens, an id that is a number), settings of JAX under which draws would be
    others, and logits or states that are not finite.
    """
    work = plan(model, prompts, **options)
    parts = []
    for k, batch in enumerate(work.batches):
        parts.append(work.run(k))
        if on_batch is not None:
            on_batch(len(batch.rows))
    return assemble(work.ids, parts)


def assemble(ids: Sequence[str], parts: Sequence[Responses]) -> Responses:
    """Batches' responses → one record in the order of `ids`."""
    joined = Responses(
        ids=tuple(i for p in parts for i in p.ids),
        prompt_hashes=tuple(h for p in parts for h in p.prompt_hashes),
        text=tuple(t for p in parts for t in p.text),
        tokens=tuple(t for p in parts for t in p.tokens),
        finish=tuple(f for p in parts for f in p.finish),
        read=np.concatenate([p.read for p in parts]),
        states=np.concatenate([p.states for p in parts]),
        sites=parts[0].sites,
        reducers=parts[0].reducers,
    )
    row = {name: k for k, name in enumerate(joined.ids)}
    return joined.select([row[i] for i in ids])


def read(
    model: Model,
    prompts: Sequence[Any],
    responses: Responses | Sequence[Any],
    *,
    sites: str | Sequence[str] = "last4",
    reducers: Sequence[str] = DEFAULT_REDUCERS,
    span: engine.Span = "response",
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Reads given responses after given prompts, teacher-forced and batched: float32 [N, sites, reducers, D].

    With the prompts that the responses were generated from, this equals the states of the decode loop. With others
    (the question without its system prompt) it is the condition `re_read`. `responses` may be a `Responses`, texts, or
    lists of token ids. Under span "article" a bare text or token list counts as ended by EOS. `batch_size` is the most
    rows that are read at once; long ones are read fewer at a time (`READ_TOKENS`), which is faster.

    Raises UserError like `generate`, and when prompts and responses differ in number.
    """
    work = plan_read(model, prompts, responses, sites=sites, reducers=reducers, span=span, batch_size=batch_size)
    out = np.zeros((len(work.ids), len(work.sites), len(work.reducers), model.config.d_model), np.float32)
    for batch, states in work.run_all():
        out[list(batch.rows)] = states
        if on_batch is not None:
            on_batch(len(batch.rows))
    return out


@dataclass(frozen=True)
class ReadPlan:
    """`read`, cut into batches."""

    model: Model
    ids: tuple[str, ...]
    batches: tuple[Batch, ...]
    first: np.ndarray  # int32 [N], position of the first state read
    count: np.ndarray  # int32 [N], states read
    sites: tuple[str, ...]
    reducers: tuple[Any, ...]
    limit: Rows

    def run(self, k: int) -> np.ndarray:
        """The states of batch k, float32 [rows, sites, reducers, D]."""
        return self.limit.smaller_when_out_of_memory(self.batches[k], self._read)

    def _read(self, batch: Batch) -> np.ndarray:
        B, rows = batch.tokens.shape[0], list(batch.rows)
        filled = rows + rows[:1] * (B - len(rows))

        def put(x: np.ndarray) -> jax.Array:
            return sharding.put(x, batch_sharding(self.model.mesh, x.shape))

        states = engine.read_batch(
            self.model.params,
            put(batch.tokens),
            put(batch.lengths),
            put(self.first[filled]),
            put(self.count[filled]),
            config=self.model.config,
            sites=self.sites,
            reducers=self.reducers,
        )
        found = to_host(states)[: len(rows)]
        finite = np.isfinite(found).reshape(len(rows), -1).all(axis=1)
        _check_finite([self.ids[r] for r in rows], ~np.asarray(finite))
        return found

    def run_all(self) -> Iterator[tuple[Batch, np.ndarray]]:
        for k, batch in enumerate(self.batches):
            yield batch, self.run(k)


def plan_read(
    model: Model,
    prompts: Sequence[Any],
    responses: Responses | Sequence[Any],
    *,
    sites: str | Sequence[str] = "last4",
    reducers: Sequence[str] = DEFAULT_REDUCERS,
    span: engine.Span = "response",
    batch_size: int = 64,
) -> ReadPlan:
    """Checks and prepares what `read` runs; the arguments are the same."""
    numerics.check_flags()
    _check_span(span)
    names, kinds = resolve_sites(model.config, sites), parse_reducers(reducers)
    if not names or not kinds:
        raise UserError("read needs at least one site and one reducer")
    rendered = render_all(model.chat, prompts)
    tokens, cut, ids = _response_tokens(model, responses)
    if len(rendered) != len(tokens):
        raise UserError(f"{len(rendered)} prompts for {len(tokens)} responses; give one prompt a response")
    sequences = [(*r.token_ids, *t) for r, t in zip(rendered, tokens, strict=True)]
    _check_context(model, ids, [len(s) for s in sequences], " (with its response)")
    _check_token_ids(model, ids, sequences)
    prompt = np.asarray([len(r.token_ids) for r in rendered], np.int32)
    n = np.asarray([len(t) for t in tokens], np.int32)
    first, count = (prompt - 1, n + 1 - cut) if span == "article" else (prompt, n)
    devices = model.mesh.shape["data"]
    platform = model.mesh.devices.flat[0].platform
    most = devices * READ_TOKENS.get(platform, READ_TOKENS["gpu"])
    batches = make_read_batches(sequences, batch_size, most, devices)
    spans = (first.astype(np.int32), count.astype(np.int32))
    return ReadPlan(model, ids, tuple(batches), *spans, names, kinds, Rows(devices))


def _response_tokens(
    model: Model, responses: Responses | Sequence[Any]
) -> tuple[list[tuple[int, ...]], np.ndarray, tuple[str, ...]]:
    if isinstance(responses, Responses):
        tokens = [tuple(int(x) for x in t) for t in responses.tokens]
        return tokens, np.asarray([f == "length" for f in responses.finish], np.int32), responses.ids
    tokens = [
        tuple(model.chat.encode(r)) if isinstance(r, str) else token_ids(f"responses[{i}]", r)
        for i, r in enumerate(values.items("responses", responses))
    ]
    return tokens, np.zeros(len(tokens), np.int32), tuple(f"response {i}" for i in range(len(tokens)))


def _check_span(span: Any) -> None:
    if span not in ("response", "article"):
        raise UserError(f"unknown span {span!r}; use 'response' or 'article'")


def _check_context(model: Model, ids: Sequence[str], lengths: Sequence[int], what: str) -> None:
    limit = model.config.max_positions
    for name, length in zip(ids, lengths, strict=True):
        if length > limit:
            raise UserError(
                f"{name} needs {length} tokens{what}, and this model's context holds {limit}; shorten the prompt or "
                "lower max_new_tokens"
            )


def _check_token_ids(model: Model, ids: Sequence[str], sequences: Sequence[Sequence[int]]) -> None:
    for name, sequence in zip(ids, sequences, strict=True):
        if sequence and not 0 <= min(sequence) <= max(sequence) < model.config.vocab_size:
            raise UserError(f"{name} holds a token id outside 0 … {model.config.vocab_size - 1}; wrong tokenizer?")


def _check_finite(ids: Sequence[str], bad: np.ndarray) -> None:
    broken = [i for i, b in zip(ids, bad, strict=True) if b]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise UserError(
            f"the states of response {broken[0]}{more} are not finite; load the model in float32, or check its weights"
        )
