"""One shape at several batch sizes: tokens a second, the share of the bound, and what each part of a step costs.

Whole runs, from prompts to reduced states on the host, take turns in every round:

    model        the decoder alone: no sampler, no site; the next token is fixed, the logits' maximum is taken
    none         top-p, no site
    last4        top-p, the last four blocks, one reducer
    all          top-p, every site, five reducers
    prefill      the prompts alone

A part's milliseconds a step are differences of whole runs, round by round, over the number of steps: sampling is none −
model, the reducers of the last four sites last4 − none, those of all sites all − none. Decode tokens/s are those of
last4 less prefill, and the share of the bound is bound / last4, both with all that the host does between the chunks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax.artifacts import write_bytes, write_json
from mood_jax.benchmarks import bound, shapes
from mood_jax.benchmarks.timing import interleave, load_average, paired, peak_bytes, seconds
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.generation import api, engine, memory
from mood_jax.generation.model import Model
from mood_jax.generation.sampling import TopP, response_keys
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import Cache, run
from mood_jax.models.sharding import batch_sharding, make_mesh

SAMPLER = TopP(0.9, temperature=0.7)
REDUCERS = ("decay_0.9", "decay_0.99", "mean", "last", "max_abs")
PATHS: dict[str, dict[str, Any]] = {
    "none": {"sampler": SAMPLER, "sites": "none", "reducers": REDUCERS[:1]},
    "last4": {"sampler": SAMPLER, "sites": "last4", "reducers": REDUCERS[:1]},
    "all": {"sampler": SAMPLER, "sites": "all", "reducers": REDUCERS},
}


class CompileClock(Protocol):
    """Counts the seconds that JAX has spent compiling, in `compiling` (`mood_jax.cli.Clock` does)."""

    compiling: float


# A batch size → transformers' runs of the same work, by name ("hf_single", "hf_batched"), and their responses.
Others = Callable[[int], Mapping[str, tuple[Callable[[], None], int]]]


@partial(jax.jit, static_argnames=("config", "steps"), donate_argnames=("cache",))
def model_chunk(
    params: Any,
    cache: Cache,
    token: jax.Array,
    lengths: jax.Array,
    prompt_slots: jax.Array,
    t0: jax.Array,
    *,
    config: DecoderConfig,
    steps: int,
) -> tuple[Cache, jax.Array]:
    """`steps` decode steps of the decoder alone with the same tokens [B] throughout; the logits' maxima [B], summed."""
    valid = jnp.arange(cache[0].v.shape[2])[None, :] >= (prompt_slots - lengths)[:, None]

    def step(carry, t):
        logits, new_cache, _ = run(
            config,
            params,
            token[:, None],
            (lengths + t)[:, None],
            valid,
            cache=carry[0],
            index=prompt_slots + t,
            logits="last",
        )
        assert logits is not None
        assert new_cache is not None
        return (new_cache, carry[1] + logits.max(axis=-1)), None

    start = (cache, jnp.zeros(token.shape[0], jnp.float32))
    (cache, total), _ = lax.scan(step, start, t0 + jnp.arange(steps))
    return cache, total


class Runs:
    """What is measured at one batch size. Every run waits until its result is on the host."""

    def __init__(self, model: Model, batch: int, prompt: int, new: int, seed: int):
        self.model, self.new = model, new
        prompts = shapes.random_prompts(model.config, batch, prompt, seed)
        about = {"max_new_tokens": new, "seed": seed, "batch_size": batch}
        self.plans = {name: api.plan(model, prompts, **about, **options) for name, options in PATHS.items()}
        self.plan = self.plans["none"]

    def paths(self) -> dict[str, Callable[[], None]]:
        whole = {name: partial(self._whole, plan) for name, plan in self.plans.items()}
        return {"model": self._model_alone, **whole, "prefill": self._prefill}

    def _whole(self, plan: api.Plan) -> None:
        responses = plan.run(0)
        if (responses.n_tokens != self.new).any():
            raise UserError("a response ended early, so its tokens cannot be counted as made; change config.seed")

    def _start(self) -> tuple[engine.State, jax.Array, int]:
        plan, (batch,) = self.plan, self.plan.batches
        mesh = self.model.mesh
        ids = [plan.ids[r] for r in batch.rows]
        ids += ids[:1] * (len(batch.real) - len(ids))

        def put(x: np.ndarray) -> jax.Array:
            return jax.device_put(x, batch_sharding(mesh, x.shape))

        lengths, keys = put(batch.lengths), put(response_keys(plan.seed, ids))
        state = engine.prefill(
            self.model.params,
            put(batch.tokens),
            lengths,
            put(batch.real),
            keys,
            spec=plan.spec,
            slots=plan.prompt_slots + plan.spec.room(0),
        )
        return state, lengths, batch.tokens.shape[1]

    def _prefill(self) -> None:
        np.asarray(self._start()[0].token)

    def _model_alone(self) -> None:
        state, lengths, slots = self._start()
        spec, room = self.plan.spec, self.plan.spec.room(0)
        total = None
        for c in range(spec.n_chunks):
            if spec.room(c) > room:
                room = spec.room(c)
                state = engine.grow(state, self.plan.prompt_slots + room, spec)
            cache, total = model_chunk(
                self.model.params,
                state.cache,
                state.token,
                lengths,
                jnp.int32(slots),
                jnp.int32(c * spec.chunk),
                config=spec.config,
                steps=spec.chunk,
            )
            state = state._replace(cache=cache)
        np.asarray(total)


def measure_batch(model: Model, batch: int, config: Any, probe: bound.Probe, clock: CompileClock) -> dict[str, Any]:
    """The figures of one batch size; its fields are those of a row of benchmark.json."""
    c, prompt, new = model.config, config.prompt_tokens, config.new_tokens
    paths = Runs(model, batch, prompt, new, config.seed).paths()
    before = clock.compiling
    for path in paths.values():
        path()
    compiling = clock.compiling - before
    timed = {n: partial(seconds, p) for n, p in paths.items()}
    rounds = interleave(probe.paths | timed, config.repeats, f"batch {batch}")
    rates = probe.rates
    mesh = {"data": config.mesh_data, "model": config.mesh_model}
    least = bound.bound(c, rates, batch=batch, prompt=prompt, new=new, dtype=config.dtype, **mesh)
    peak, of = peak_bytes()
    about = {"sites": len(c.sites), "reducers": len(REDUCERS), "block": engine.key_block(model.mesh)}
    formula = memory.estimate(c, batch=batch, prompt=prompt, new=new, dtype=config.dtype, **about, **mesh)
    whole, read_prompts = statistics.median(rounds["last4"]), statistics.median(rounds["prefill"])
    decode = statistics.median(a - b for a, b in zip(rounds["last4"], rounds["prefill"], strict=True))

    def step_ms(over: str, under: str) -> float:
        pairs = zip(rounds[over], rounds[under], strict=True)
        return 1e3 * statistics.median(a - b for a, b in pairs) / new

    return {
        "batch": batch,
        "seconds": whole,
        "prefill_seconds": read_prompts,
        "prefill_tokens_per_second": batch * prompt / read_prompts,
        "decode_tokens_per_second": batch * new / decode,
        "rates": {"bytes_per_second": rates.bytes_per_second, "flops_per_second": rates.flops_per_second},
        "bound_seconds": least.total,
        "bound_prefill_seconds": least.prefill,
        "share_of_bound": least.total / whole,
        "step_ms": {
            "model": step_ms("model", "prefill"),
            "sampling": step_ms("none", "model"),
            "last4": step_ms("last4", "none"),
            "all": step_ms("all", "none"),
        },
        "cost_of_sites": {name: paired(rounds[name], rounds["none"]) - 1 for name in ("last4", "all")},
        "compile_seconds": compiling,
        "peak_bytes": peak,
        "peak_bytes_of": of,
        "formula_bytes": formula.generation,
        "rounds": rounds,
    }


def measure(config: Any, workdir: Path, clock: CompileClock, others: Others | None = None) -> dict[str, Any]:
    """Measures a config of `shapes.shape_config`, prints the table, writes benchmark.json and table.md.

    clock: counts compile seconds. others: transformers' runs of the same work, where they are asked for.
    Raises UserError when no batch size fits the devices, before anything is made.
    """
    c = shapes.decoder_config(config.shape)
    mesh = make_mesh(config.mesh_data, config.mesh_model)
    about = {"prompt": config.prompt_tokens, "new": config.new_tokens, "dtype": config.dtype}
    about |= {"sites": len(c.sites), "reducers": len(REDUCERS)}
    sizes, left_out = shapes.batches_that_fit(config.name, c, mesh, config.batch_sizes, **about)
    for line in left_out:
        print(f"left out: {line}")
    device = mesh.devices.flat[0]
    load = load_average()
    print(f"{memory.param_bytes(c, 'bfloat16') / 2e9:.3f} B parameters; load average {load:.1f}", flush=True)
    probe = bound.Probe(config.dtype, device.platform)
    model = shapes.random_model(config.name, c, mesh, config.dtype, config.seed)
    result: dict[str, Any] = {
        "name": config.name,
        "config": config.to_dict(),
        "device": device.device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "load_average": load,
        "left_out": left_out,
        "batches": [],
    }
    for size in sizes:
        row = measure_batch(model, size, config, probe, clock)
        if others is not None:
            row["others"] = _beside(others(size), row["seconds"], size, config)
        result["batches"].append(row)
        # after every batch size: a machine that is taken away in the middle leaves those that are done
        write_json(workdir / "benchmark.json", result)
    header, rows = columns(result)
    print("\n" + table(header, rows))
    write_bytes(workdir / "table.md", markdown(result).encode())
    print(f"written: {workdir / 'benchmark.json'}, {workdir / 'table.md'}")
    return result


def _beside(paths: Mapping[str, tuple[Callable[[], None], int]], ours: float, batch: int, config: Any) -> dict:
    """Seconds and rates of other programs that do the same for some number of responses."""
    found = {}
    for name, (path, responses) in paths.items():
        path()
        taken = statistics.median(seconds(path) for _ in range(config.repeats))
        rate = responses * config.new_tokens / taken
        found[name] = {"seconds": taken, "responses": responses, "tokens_per_second": rate}
        found[name]["ours_is"] = taken / responses * batch / ours
        print(f"batch {batch}: ours is {found[name]['ours_is']:.2f} × {name} ({rate:,.0f} tokens/s)")
    return found


def columns(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text."""
    header = ["batch", "prefill tok/s", "decode tok/s", "seconds", "bound s", "share"]
    header += ["model ms", "sampling ms", "last 4", "all × 5", "compile s", "peak GiB", "formula"]
    rows = []
    for b in result["batches"]:
        ms, cost = b["step_ms"], b["cost_of_sites"]
        rows.append(
            [
                str(b["batch"]),
                f"{b['prefill_tokens_per_second']:,.0f}",
                f"{b['decode_tokens_per_second']:,.0f}",
                f"{b['seconds']:.2f}",
                f"{b['bound_seconds']:.2f}",
                f"{b['share_of_bound']:.0%}",
                f"{ms['model']:.2f}",
                f"{ms['sampling']:.2f}",
                f"{cost['last4']:+.1%}",
                f"{cost['all']:+.1%}",
                f"{b['compile_seconds']:.0f}",
                f"{b['peak_bytes'] / 2**30:.1f}",
                f"{b['formula_bytes'] / 2**30:.1f}",
            ]
        )
    return header, rows


def markdown(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with the command and the machine above it."""
    config, rates = result["config"], result["batches"][-1]["rates"]
    header, rows = columns(result)
    lines = [
        f"`{result['name']}` in {config['dtype']} on {result['devices']} × {result['device']} (jax {result['jax']}; "
        f"copies {rates['bytes_per_second'] / 1e9:,.0f} GB/s, multiplies {rates['flops_per_second'] / 1e12:,.2f} "
        f"TFLOP/s; load average {result['load_average']:.1f}): {config['prompt_tokens']} + {config['new_tokens']} "
        "tokens, random parameters. `last 4` and `all × 5` are what reading those sites adds to the whole.",
        "",
        f"    python scripts/benchmark_throughput.py --config=configs/shapes/{result['name']}.py",
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---:" for _ in header) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    for b in result["batches"]:
        for name, other in b.get("others", {}).items():
            rate, ratio = other["tokens_per_second"], other["ours_is"]
            lines += ["", f"Batch {b['batch']}: ours is {ratio:.2f} × `{name}` ({rate:,.0f} tokens/s)."]
    return "\n".join([*lines, *(f"\nLeft out: {line}." for line in result["left_out"]), ""])
