"""The A/B list: other ways to write a part of the program against ours, in turns, as ratios with their spread.

Every experiment has a base, which is ours, and variants; in every round each runs once, and the figure of a variant is
the median of its seconds over the base's of the same round, with the least and the largest. Above 1 the variant is
slower. Steps and attentions are compared with ours before they are timed; that loops make the same tokens and samplers
draw from the same distribution is shown in tests/benchmarks.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.artifacts import write_bytes, write_json
from mood_jax.benchmarks import decoding
from mood_jax.benchmarks.decoding import Form
from mood_jax.benchmarks.loops import SAMPLER, Bench, check_forms, decode, loop_tokens
from mood_jax.benchmarks.parts import decode_attentions, prefill_attentions, sorted_top_p
from mood_jax.benchmarks.timing import interleave, load_average, seconds, spread
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.generation import engine
from mood_jax.generation.sampling import Greedy, sample

FLAGS = {  # process-wide, so each needs a process of its own
    "default": "",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
}
# XLA_FLAGS → the seconds of a step that a fresh process measured under them.
Child = Callable[[str, int], float]


@dataclass
class Experiment:
    """Callables that return their seconds, `per` of which are one unit ("step", "call"); the first is the base.

    skipped: variants that cannot run here, and why.
    """

    name: str
    unit: str
    per: int
    variants: dict[str, Callable[[], float]]
    skipped: dict[str, str] = field(default_factory=dict)


def _forms(name: str, bench: Bench, forms: Mapping[str, Form]) -> Experiment:
    check_forms(bench, forms)
    steps = engine.chunk_steps(bench.mesh)
    chunks = -(-min(bench.config.new_tokens, engine.ROOM) // steps)
    state = bench.prefill(bench.spec(sampler=Greedy()), steps * chunks)

    def run(form: Form, params: Any) -> float:
        cache = jax.block_until_ready(decoding.arrange_cache(form, state.cache))
        started, token = bench.now(), state.token
        for c in range(chunks):
            cache, token, _, _ = decode(bench, form, params, cache, token, c * steps, steps)
        jax.block_until_ready(token)
        return bench.now() - started

    prepared = {n: (f, decoding.arrange_params(f, bench.decoder, bench.model.params)) for n, f in forms.items()}
    return Experiment(name, "step", steps * chunks, {n: partial(run, *a) for n, a in prepared.items()})


def layers_experiment(bench: Bench) -> Experiment:
    """Unrolled against scanned layers."""
    return _forms("layers", bench, {"unrolled": Form(), "scanned": Form(layers="scanned")})


def cache_experiment(bench: Bench) -> Experiment:
    """Layouts of the cache."""
    forms: dict[Literal["jkhc", "khs", "ksh", "skh"], str] = {
        "jkhc": "K [B,J·K,H,C], V [B,K,S,H]",
        "khs": "K [B,K,H,S], V [B,K,S,H]",
        "ksh": "both [B,K,S,H]",
        "skh": "both [B,S,K,H]",
    }
    return _forms("cache", bench, {name: Form(layout=layout) for layout, name in forms.items()})


def fused_experiment(bench: Bench) -> Experiment:
    """Kernels of one input joined into one product."""
    forms = {"separate": Form(), "qkv joined": Form(fused_qkv=True), "gate and up joined": Form(fused_gate_up=True)}
    return _forms("fused", bench, forms | {"both joined": Form(fused_qkv=True, fused_gate_up=True)})


def chunks_experiment(bench: Bench) -> Experiment:
    """Chunks of 8, 16 and 32 steps against one while_loop."""
    own = engine.chunk_steps(bench.mesh)
    loops: dict[str, tuple[int | None, bool]] = {f"chunks of {own}, cache grows": (own, True)}
    loops |= {f"chunks of {n}, cache grows": (n, True) for n in (8, 16, 32) if n != own}
    loops |= {f"chunks of {own}, whole cache": (own, False), "one while_loop, whole cache": (None, False)}
    variants = {name: partial(lambda a: loop_tokens(bench, *a)[1], a) for name, a in loops.items()}
    return Experiment("chunks", "step", bench.config.new_tokens, variants)


def samplers_experiment(bench: Bench, vocabulary: int) -> Experiment:
    """Ours against a sort and against the most probable token, on logits of a realistic spread."""
    shape = (bench.config.batch_size, vocabulary)
    logits = 3 * jax.random.normal(numerics.key(bench.config.seed), shape, jnp.float32)
    programs = {
        "ours": jax.jit(partial(sample, SAMPLER)),
        "sorted": jax.jit(partial(sorted_top_p, sampler=SAMPLER)),
        "greedy": jax.jit(partial(sample, Greedy())),
    }
    variants = {
        name: partial(seconds, lambda f=f: f(logits, bench.keys, jnp.int32(7)).block_until_ready(), bench.now)
        for name, f in programs.items()
    }
    return Experiment(f"samplers at V {vocabulary}", "call", 1, variants)


def attention_experiment(bench: Bench, length: int, new: bool = False) -> Experiment:
    """Ours against JAX's own: of whole prompts, or of one `new` token over a cache."""
    c = bench.config
    make = decode_attentions if new else prefill_attentions
    found, skipped = make(bench.decoder, c.batch_size, length, c.dtype, c.seed)
    results = {name: np.asarray(f(), np.float32) for name, f in found.items()}
    tolerance = (1e-5 if c.dtype == "float32" else 0.02) * np.abs(results["ours"]).max()
    for name, result in results.items():
        delta = np.abs(result - results["ours"]).max()
        if not delta <= tolerance:
            raise AssertionError(f"{name} computes another attention: {delta} beyond {tolerance}")
    variants = {name: partial(seconds, lambda f=f: f().block_until_ready(), bench.now) for name, f in found.items()}
    name = f"attention of a token over {length} slots" if new else f"attention of {length} tokens"
    return Experiment(name, "call", 1, variants, skipped)


def flags_experiment(bench: Bench, child: Child | None) -> Experiment:
    if jax.default_backend() != "gpu" or child is None:
        return Experiment("flags", "step", 1, {}, dict.fromkeys(FLAGS, "XLA's GPU flags need a GPU"))
    rounds: dict[str, int] = dict.fromkeys(FLAGS, 0)

    def run(name: str) -> float:
        rounds[name] += 1
        return child(FLAGS[name], rounds[name])

    return Experiment("flags", "step", 1, {name: partial(run, name) for name in FLAGS})


def step_experiment(bench: Bench) -> Experiment:
    """Our step alone: what a process of `flags` measures."""
    return _forms("step", bench, {"ours": Form()})


NAMES = ("layers", "chunks", "cache", "fused", "samplers", "attention", "flags", "step")


def experiments(name: str, bench: Bench, child: Child | None) -> list[Callable[[], Experiment]]:
    """The experiments under one name of config.experiments, each made when it is its turn. Raises UserError."""
    config = bench.config
    if name == "samplers":
        return [partial(samplers_experiment, bench, v) for v in config.vocabularies]
    if name == "attention":
        return [partial(attention_experiment, bench, n, new) for new in (False, True) for n in config.attention_tokens]
    if name == "flags":
        return [partial(flags_experiment, bench, child)]
    simple = {
        "layers": layers_experiment,
        "chunks": chunks_experiment,
        "cache": cache_experiment,
        "fused": fused_experiment,
        "step": step_experiment,
    }
    if name not in simple:
        raise UserError(f"unknown experiment {name!r} in config.experiments; known are {', '.join(NAMES)}")
    return [partial(simple[name], bench)]


def measured(experiment: Experiment, rounds: int) -> dict[str, Any]:
    """Runs an experiment: one round unmeasured, then `rounds`. JSON-ready."""
    for variant in experiment.variants.values():
        variant()
    taken = interleave(experiment.variants, rounds, experiment.name) if experiment.variants else {}
    found: dict[str, Any] = {"name": experiment.name, "unit": experiment.unit, "skipped": experiment.skipped}
    base = next(iter(taken), None)
    found["variants"] = {
        name: {
            "ms": 1e3 * statistics.median(values) / experiment.per,
            "ratio": spread(values, taken[base]),
            "seconds": values,
        }
        for name, values in taken.items()
        if base is not None
    }
    return found | {"base": base}


def measure(config: Any, workdir: Path, child: Child | None = None) -> dict[str, Any]:
    """Runs config.experiments, prints a table of each, writes ab.json and ab.md (after every experiment)."""
    for name in config.experiments:
        if name not in NAMES:
            raise UserError(f"unknown experiment {name!r} in config.experiments; known are {', '.join(NAMES)}")
    bench, load = Bench(config), load_average()
    result: dict[str, Any] = {
        "config": config.to_dict(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "load_average": load,
        "experiments": [],
    }
    print(f"{bench.decoder.n_params / 1e6:,.1f} M parameters in matrices; load average {load:.1f}", flush=True)
    for name in config.experiments:
        for make in experiments(name, bench, child):
            found = measured(make(), config.rounds)
            result["experiments"].append(found)
            write_json(workdir / "ab.json", result)
            print("\n" + table(*columns(found)), flush=True)
            for variant, why in found["skipped"].items():
                print(f"not measured: {variant}: {why}")
    write_bytes(workdir / "ab.md", markdown(result).encode())
    print(f"\nwritten: {workdir / 'ab.json'}, {workdir / 'ab.md'}")
    return result


def columns(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one experiment's table, as text."""
    rows = []
    for name, v in found["variants"].items():
        ratio = v["ratio"]
        cells = [f"{v['ms']:.2f}", f"{ratio['median']:.3f}", f"{ratio['min']:.3f} … {ratio['max']:.3f}"]
        rows.append([name, *cells])
    return [found["name"], f"ms a {found['unit']}", "ratio", "least … largest"], rows


def markdown(result: Mapping[str, Any]) -> str:
    """All experiments as one Markdown table."""
    config = result["config"]
    lines = [
        f"{result['device']}, jax {result['jax']}, load average {result['load_average']:.1f}; ratios of "
        f"{config['rounds']} rounds in turns by the {config['clock']} clock, above 1 is slower than the first of each.",
        "",
        "| experiment | variant | ms | ratio | least … largest |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for found in result["experiments"]:
        lines += ["| " + " | ".join([found["name"], *row]) + " |" for row in columns(found)[1]]
        lines += [f"| {found['name']} | {name} | not measured: {why} | | |" for name, why in found["skipped"].items()]
    return "\n".join([*lines, ""])
