"""Conversations of several turns, whose cache is carried from turn to turn.

A turn's prompt is the whole conversation, rendered anew, and its tokens are compared with those in the cache: what they
begin with in common is taken from there. So a template that renders earlier turns in another way, an answer whose text
has other tokens than those sampled, or another conversation altogether, cost time and change nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mood_jax import values
from mood_jax.errors import UserError
from mood_jax.generation import api, prefix
from mood_jax.generation.batching import Batch, bucket, check_ids, default_ids
from mood_jax.generation.model import Model
from mood_jax.models.decoder import Cache
from mood_jax.models.sharding import batch_sharding, cache_sharding
from mood_jax.models.sharding import put as put_on


@dataclass(frozen=True)
class _Held:
    """Where a conversation's keys and values are: token 0 in slot `start` of a cache's row `row`."""

    cache: Cache
    row: int
    start: int


class Dialogue:
    """Asks the same conversations again and again, each time with more in them.

    `generate` gives what `mood_jax.generate` gives, but for rounding. Prompt i is compared with prompt i of the call
    before and its response, all of whose keys and values stay on the device in between.

    carried, computed: prompt tokens whose keys and values were there, and others.
    """

    def __init__(self, model: Model, **options: Any):
        """options: those of `generate`, but for seed, ids and on_batch."""
        self.model, self.options = model, options
        self.carried = self.computed = 0
        self._held: dict[int, _Held] = {}
        self._said: dict[int, np.ndarray] = {}  # the tokens behind _held
        self._begun: set[int] = set()
        self._forgetful = False

    def generate(self, prompts: Sequence[Any], *, seed: int = 0, ids: Sequence[str] | None = None) -> api.Responses:
        """One response a prompt; the arguments and errors are those of `generate`."""
        work = api.plan(self.model, prompts, seed=seed, ids=ids, **self.options)
        self._begun = set()
        parts = []
        for k, batch in enumerate(work.batches):
            parts.append(work.run(k, self))
            for row, tokens in zip(batch.rows, parts[-1].tokens, strict=True):
                self._said[row] = np.concatenate([np.asarray(work.rendered[row].token_ids), tokens])
        return api.assemble(work.ids, parts)

    def past(self, batch: Batch) -> Cache | None:
        """See `prefix.Carry`."""
        B, P = batch.tokens.shape
        if self._begun & set(batch.rows) and not self._forgetful:
            # The batch comes back in halves. What is held needs memory too: let it go for good.
            print("out of memory: dialogues are computed anew at every turn from here on", file=sys.stderr, flush=True)
            self._forgetful = True
            self._held.clear()
            self._said.clear()
        self._begun |= set(batch.rows)
        conversations = [*batch.rows, *batch.rows[:1] * (B - len(batch.rows))]
        rows = zip(conversations, batch.tokens, batch.lengths, strict=True)
        U = min(bucket(max(1, *(n - self._known(c, tokens[P - n :]) for c, tokens, n in rows))), P)
        held = [self._held.get(c) for c in conversations]
        for c in batch.rows:  # their old caches are let go as soon as the new one is filled
            self._held.pop(c, None)
            self._said.pop(c, None)
        own = batch.lengths[batch.real]
        self.carried += int(np.maximum(own - U, 0).sum())
        self.computed += int(np.minimum(own, U).sum())
        if U == P:
            return None
        mesh = self.model.mesh

        def put(x: np.ndarray) -> jax.Array:
            return put_on(x, batch_sharding(mesh, x.shape))

        shared = {"width": P - U, "sharding": cache_sharding(self.model.config.n_kv_heads, mesh)}
        past = None
        for cache in {id(h.cache): h.cache for h in held if h is not None}.values():
            mine = [h if h is not None and h.cache is cache else None for h in held]
            source = np.asarray([0 if h is None else h.row for h in mine], np.int32)
            start = np.asarray([0 if h is None else h.start for h in mine], np.int32)
            first = (start + batch.lengths - P).astype(np.int32)
            into = () if past is None else (past, put(np.asarray([h is not None for h in mine])))
            past = prefix.place(cache, put(source), put(first), *into, **shared)
        return past

    def keep(self, batch: Batch, rows: np.ndarray, cache: Cache) -> None:
        """See `prefix.Carry`."""
        if self._forgetful:
            return
        for k, row in enumerate(rows):
            if row < len(batch.rows):
                start = int(batch.tokens.shape[1] - batch.lengths[row])
                self._held[batch.rows[row]] = _Held(cache, k, start)

    def _known(self, conversation: int, tokens: np.ndarray) -> int:
        """How many of the conversation's first tokens are in the cache."""
        if conversation not in self._said or conversation not in self._held:
            return 0
        n = min(len(tokens), len(self._said[conversation]))
        other = np.flatnonzero(self._said[conversation][:n] != tokens[:n])
        return int(other[0]) if len(other) else n


def _scripts(given: Any) -> list[list[str]]:
    """Conversations, each a list of texts. Raises UserError for anything else."""
    wanted = "scripts must be a list of conversations, each a list of user turns; write [[turn, turn]]"
    if isinstance(given, str):
        raise UserError(wanted)
    found = values.items("scripts", given)
    if any(isinstance(script, str) for script in found):
        raise UserError(wanted)
    return [
        [values.text(f"scripts[{i}][{t}]", turn) for t, turn in enumerate(values.items(f"scripts[{i}]", script))]
        for i, script in enumerate(found)
    ]


def converse(
    model: Model,
    scripts: Sequence[Sequence[str]],
    *,
    system: str | Sequence[str | None] | None = None,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    batch_size: int = 64,
    on_turn: Callable[[int], None] | None = None,
    **options: Any,
) -> list[api.Responses]:
    """Speaks through scripted conversations: the responses to the first user turns, to the second ones, and so on.

    Turn k of a conversation is answered as `generate` answers the list of messages so far, but for rounding: the user's
    turns, and the model's own responses. What was said before is not computed again.

    Args:
        scripts: the user's turns of each conversation, the same number in all.
        system: one system prompt for all, or one (or None) a conversation.
        seed, ids: as for `generate`; turn 1 of the conversation "a" has the id "a/1". Default ids are a hash of the
            script and the system prompt, and its occurrence.
        batch_size: conversations that are held at once (default 64): their keys and values stay on the device.
        on_turn: called with the number of responses after each turn of each batch.
        options: `max_new_tokens`, `sampler`, `sites`, `reducers` and `span` of `generate`, for every turn.

    Returns one `Responses` a turn, each in the order of the scripts.

    Raises UserError: what `generate` raises, no scripts, and scripts of different lengths.
    """
    scripts = _scripts(scripts)
    lengths = {len(s) for s in scripts}
    if not lengths or lengths == {0}:
        raise UserError("there are no turns; give at least one conversation of one user turn")
    if len(lengths) > 1:
        raise UserError(f"the conversations have {min(lengths)} to {max(lengths)} turns; give all the same number")
    one = system is None or isinstance(system, str)
    systems = [system] * len(scripts) if one else values.items("system", system)
    for i, s in enumerate(systems):
        if s is not None:
            values.text(f"system[{i}]", s)
    if len(systems) != len(scripts):
        raise UserError(f"{len(systems)} system prompts for {len(scripts)} conversations; give one a conversation")
    if ids is None:
        whole = [json.dumps([s, *script]).encode() for s, script in zip(systems, scripts, strict=True)]
        ids = default_ids([hashlib.sha256(text).hexdigest()[:16] for text in whole])
    ids = check_ids(ids, len(scripts))
    batch_size, seed = values.whole("the batch size", batch_size, 1), values.seed(seed)
    turns: list[list[api.Responses]] = [[] for _ in range(lengths.pop())]
    for start in range(0, len(scripts), batch_size):
        chosen = range(start, min(start + batch_size, len(scripts)))
        full = len(scripts) > batch_size
        dialogue = Dialogue(model, batch_size=batch_size, full=full, **options)
        said = [[] if systems[i] is None else [{"role": "system", "content": systems[i]}] for i in chosen]
        for t in range(len(turns)):
            for i, messages in zip(chosen, said, strict=True):
                messages.append({"role": "user", "content": scripts[i][t]})
            r = dialogue.generate(said, seed=seed, ids=[f"{ids[i]}/{t + 1}" for i in chosen])
            for text, messages in zip(r.text, said, strict=True):
                messages.append({"role": "assistant", "content": text})
            turns[t].append(r)
            if on_turn is not None:
                on_turn(len(r))
    names = [[f"{i}/{t + 1}" for i in ids] for t in range(len(turns))]
    return [api.assemble(wanted, parts) for wanted, parts in zip(names, turns, strict=True)]
