"""What the A/B experiments run: a prefilled batch, its decode step in other forms, and the loop around the step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.benchmarks import decoding, shapes
from mood_jax.benchmarks.decoding import Form
from mood_jax.benchmarks.timing import CLOCKS
from mood_jax.errors import UserError
from mood_jax.generation import engine
from mood_jax.generation.batching import bucket
from mood_jax.generation.model import Model
from mood_jax.generation.sampling import Greedy, Sampler, TopP, response_keys
from mood_jax.models.decoder import run
from mood_jax.models.sharding import make_mesh

SAMPLER = TopP(0.9, temperature=0.7)


class Bench:
    """A model of config.shape and a batch of prompts, prefilled."""

    def __init__(self, config: Any):
        if config.clock not in CLOCKS:
            raise UserError(f"unknown config.clock {config.clock!r}; use one of {', '.join(CLOCKS)}")
        self.config, self.now = config, CLOCKS[config.clock]
        self.decoder = shapes.decoder_config(config.shape)
        self.mesh = make_mesh()
        about = {"prompt": config.prompt_tokens, "new": config.new_tokens, "dtype": config.dtype}
        shapes.batches_that_fit(
            "the shape with a second copy of its weights",
            self.decoder,
            self.mesh,
            [config.batch_size],
            **about,
            sites=0,
            reducers=0,
            copies=2,
        )
        self.model: Model = shapes.random_model("ab", self.decoder, self.mesh, config.dtype, config.seed)
        B, n, P = config.batch_size, config.prompt_tokens, bucket(config.prompt_tokens)
        prompts = np.asarray(shapes.random_prompts(self.decoder, B, n, config.seed), np.int32)
        self.tokens = jnp.asarray(np.pad(prompts, ((0, 0), (P - n, 0))))
        self.lengths, self.real = jnp.full(B, n, jnp.int32), jnp.ones(B, bool)
        self.keys, self.slots = jnp.asarray(response_keys(config.seed, [str(i) for i in range(B)])), P

    def spec(self, steps: int | None = None, sampler: Sampler = SAMPLER) -> engine.Spec:
        about = {"block": engine.key_block(self.mesh), "steps": steps or engine.chunk_steps(self.mesh)}
        return engine.Spec(self.decoder, sampler, (), self.config.new_tokens, (), (), "response", **about)

    def prefill(self, spec: engine.Spec, room: int) -> engine.State:
        state = engine.prefill(
            self.model.params, self.tokens, self.lengths, self.real, self.keys, spec=spec, slots=self.slots + room
        )
        return jax.block_until_ready(state)

    def chunk(self, state: engine.State, start: int, spec: engine.Spec) -> tuple[engine.State, jax.Array]:
        return engine.decode_chunk(
            self.model.params,
            state,
            self.keys,
            self.lengths,
            jnp.int32(self.slots),
            jnp.int32(start),
            spec=spec,
        )


def first_logits(bench: Bench, form: Form | None) -> np.ndarray:
    """The logits [B, V] of the first step: of a form, or of the decoder itself with None."""
    state = bench.prefill(bench.spec(sampler=Greedy()), 8)
    if form is None:
        valid = jnp.arange(bench.slots + 8)[None, :] >= (bench.slots - bench.lengths)[:, None]
        out = decoder_step(
            bench.model.params, state, bench.lengths[:, None], valid, jnp.int32(bench.slots), config=bench.decoder
        )
        return np.asarray(out)
    params = decoding.arrange_params(form, bench.decoder, bench.model.params)
    cache = decoding.arrange_cache(form, state.cache)
    return np.asarray(decode(bench, form, params, cache, state.token, 0, 1)[3])


@partial(jax.jit, static_argnames=("config",))
def decoder_step(params: Any, state: engine.State, positions, valid, index, *, config):
    arguments = (config, params, state.token[:, None], positions, valid)
    return run(*arguments, cache=state.cache, index=index, logits="last")[0]


def decode(bench: Bench, form: Form, params: Any, cache: Any, token: jax.Array, start: int, steps: int):
    where = (bench.lengths, jnp.int32(bench.slots), jnp.int32(start))
    return decoding.decode(params, cache, token, *where, form=form, config=bench.decoder, steps=steps)


def check_forms(bench: Bench, forms: Mapping[str, Form]) -> None:
    """Every form computes the decoder's logits. Anything else is a defect, not a user's mistake."""
    reference = first_logits(bench, None)
    tolerance = (1e-4 if bench.config.dtype == "float32" else 0.05) * np.abs(reference).max()
    for name, form in forms.items():
        delta = np.abs(first_logits(bench, form) - reference).max()
        if not delta <= tolerance:
            raise AssertionError(f"{name} computes other logits than the decoder: {delta} beyond {tolerance}")


@partial(jax.jit, static_argnames=("spec",), donate_argnames=("state",))
def while_loop(params: Any, state: engine.State, keys, lengths, prompt_slots, *, spec: engine.Spec) -> engine.State:
    """The whole budget in one program, which asks after every step whether a row is alive. spec.steps is 1."""

    def more(carry):
        _, t, alive = carry
        return (alive > 0) & (t < spec.max_new_tokens)

    def body(carry):
        state, t, _ = carry
        state, alive = engine.decode_chunk(params, state, keys, lengths, prompt_slots, t, spec=spec)
        return state, t + 1, alive

    return lax.while_loop(more, body, (state, jnp.int32(0), jnp.int32(1)))[0]


def loop_tokens(
    bench: Bench, steps: int | None, grows: bool = True, sampler: Sampler = SAMPLER
) -> tuple[np.ndarray, float]:
    """The tokens [B, new] of chunks of `steps` (None: one while_loop) and the seconds from prefill to the host."""
    spec, new = bench.spec(steps or 1, sampler), bench.config.new_tokens
    room = spec.room(0) if grows and steps else spec.slots
    state = bench.prefill(spec, room)
    started = bench.now()
    if steps is None:
        state = while_loop(bench.model.params, state, bench.keys, bench.lengths, jnp.int32(bench.slots), spec=spec)
    else:
        lag = 0 if jax.default_backend() == "cpu" else 1  # as in `engine.run_batch`
        flags: list[jax.Array] = []
        for c in range(spec.n_chunks):
            if grows and spec.room(c) > room:
                room = spec.room(c)
                state = engine.grow(state, bench.slots + room, spec)
            state, alive = bench.chunk(state, c * spec.chunk, spec)
            flags.append(alive)
            if len(flags) > lag and int(flags[-1 - lag]) == 0:
                break
    tokens = np.asarray(state.tokens)[:, :new]
    return tokens, bench.now() - started
