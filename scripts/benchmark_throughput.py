"""Tokens per second beside Hugging Face's `generate`, the cost of reading states, compile seconds and peak memory.

python scripts/benchmark_throughput.py --config=configs/benchmark.py --workdir=runs/benchmark
python scripts/benchmark_throughput.py --config=configs/shapes/qwen2_5_7b.py --workdir=runs/shapes/qwen2_5_7b

The second form takes a published model's shape with random parameters, at several batch sizes, beside the arithmetic
bound (`mood_jax/benchmarks/throughput.py`). The first takes a checkpoint, by default a small random one, and is this:

Three ways from the same prompts to one reduced state a response, on the same checkpoint, in the same precision:
    hf_single    transformers, batch 1, hidden states and scores of every step, pooled afterwards (the published way)
    hf_batched   transformers at our batch size, hidden states of every step, pooled afterwards
    ours         the decode loop that reduces the last four blocks' states as it goes
and ours_none, ours_all: the same loop without any site, and with every site and three reducers. All sample at
temperature 0.7, top-p 0.9, with the end of sequence switched off. Paths take turns in every round and ratios are
medians over rounds, so that a machine which slows down slows all of them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mood_jax import cli, readout
from mood_jax.benchmarks import shapes, throughput
from mood_jax.benchmarks.timing import interleave, paired, resident, seconds
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.generation.model import Model, load_model
from mood_jax.generation.sampling import TopP
from mood_jax.models import families
from mood_jax.models.checkpoint import find_folder, save_checkpoint
from mood_jax.models.sharding import make_mesh
from mood_jax.parity import random_params
from mood_jax.values import check_numbers, one_of

TEMPERATURE, TOP_P = 0.7, 0.9
OURS: dict[str, dict[str, Any]] = {
    "ours": {"sites": "last4", "reducers": ("decay_0.9",)},
    "ours_none": {"sites": "none", "reducers": ("decay_0.9",)},
    "ours_all": {"sites": "all", "reducers": ("decay_0.9", "mean", "last")},
}
HF = ("hf_single", "hf_batched")


def write_llama(config: Any, folder: Path) -> Path:
    """A random Llama in HF form, with a tokenizer of one word an id. Random, but of normal size at every site."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    hf = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    save_checkpoint(folder, hf, random_params(families.decoder_config(hf), np.random.default_rng(config.seed)))
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w0").save_pretrained(folder)
    return folder


def make_prompts(config: Any, vocab_size: int) -> list[list[int]]:
    """`batch_size` prompts of `prompt_tokens` random ids."""
    rng = np.random.default_rng(config.seed)
    return rng.integers(2, vocab_size, (config.batch_size, config.prompt_tokens)).tolist()


class OurSide:
    """The decode loop on one batch, one compiled plan per row of OURS."""

    def __init__(self, config: Any, folder: Path):
        self.config = config
        self.model: Model = load_model(
            str(folder), dtype=config.dtype, mesh=make_mesh(config.mesh_data, config.mesh_model)
        )
        self.model.chat.eos_token_ids = ()
        self.prompts = make_prompts(config, self.model.config.vocab_size)

    def path(self, name: str) -> Callable[[], None]:
        work = api.plan(
            self.model,
            self.prompts,
            max_new_tokens=self.config.new_tokens,
            sampler=TopP(TOP_P, temperature=TEMPERATURE),
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            **OURS[name],
        )

        def go() -> None:
            responses = work.run(0)
            if (responses.n_tokens != self.config.new_tokens).any():
                raise UserError("a response ended early; the paths would not have made the same number of tokens")

        return go

    def pooled(self, tokens: np.ndarray) -> np.ndarray:
        """The article's readout of given responses [B, T], read by us: float32 [B, D]."""
        preset = readout.preset("article", self.model.config.n_layers)
        options = {"sites": preset.sites, "reducers": (preset.reducer,), "span": preset.span}
        # One token more than was pooled: the last sampled token is not read, and what stands there cannot matter.
        states = api.read(
            self.model, self.prompts, tokens[:, :-1].tolist(), batch_size=self.config.batch_size, **options
        )
        picked = readout.pick(preset, states, preset.sites, (preset.reducer,))
        return readout.combine(preset, picked, readout.site_rms(preset, picked))


class HuggingFace:
    """`generate` of transformers and the published pooling of its hidden states. Raises UserError without torch.

    source: a checkpoint's folder, or a transformers config, for random weights of that shape.
    """

    def __init__(self, config: Any, source: Any):
        try:
            import torch
        except ImportError as e:
            raise UserError("torch is not installed; pip install 'mood_jax[test]' to measure Hugging Face too") from e
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch, self.config = torch, config
        gpu = jax.default_backend() == "gpu"
        if gpu and not torch.cuda.is_available():
            raise UserError("torch sees no GPU where JAX has one; install torch with CUDA to measure Hugging Face too")
        if config.torch_threads:
            torch.set_num_threads(config.torch_threads)
        self.device = "cuda" if gpu else "cpu"
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        if isinstance(source, Path):
            model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True)
        else:
            with torch.device(self.device):
                model = AutoModelForCausalLM.from_config(source, dtype=dtype)
        self.model = model.to(self.device).eval()
        self.model.generation_config.eos_token_id = None  # None in the call would mean: the checkpoint's own
        self.prompts = make_prompts(config, model.config.vocab_size)

    def generate(self, prompts: list[list[int]], scores: bool) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [B, T], pooled states [B, D]): entries L−3 … L weighted .1 … .4, decay 0.9 over the steps."""
        torch = self.torch
        tokens = torch.tensor(prompts, device=self.device)
        torch.manual_seed(self.config.seed)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=self.config.new_tokens,
                pad_token_id=0,
                output_hidden_states=True,
                output_scores=scores,
                return_dict_in_generate=True,
            )
            new = out.sequences[:, tokens.shape[1] :]
            if new.shape[1] != self.config.new_tokens:
                raise UserError(
                    f"Hugging Face made {new.shape[1]} tokens, not {self.config.new_tokens}; not comparable"
                )
            weights = readout.WEIGHTS
            steps = torch.stack(
                [
                    torch.stack([w * h[:, -1].float() for w, h in zip(weights, step[-4:], strict=True)]).sum(0)
                    for step in out.hidden_states
                ]
            )
            decay = 0.9 ** torch.arange(len(steps) - 1, -1, -1, device=self.device, dtype=torch.float32)
            pooled = (steps * (decay / decay.sum())[:, None, None]).sum(0)
        return new.cpu().numpy(), pooled.cpu().numpy()

    def path(self, name: str) -> Callable[[], None]:
        if name == "hf_batched":
            return lambda: (self.generate(self.prompts, scores=False), None)[1]

        def single() -> None:
            for prompt in self.prompts[: self.config.single_responses]:
                self.generate([prompt], scores=True)

        return single


def memory_of(name: str, settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """One run of one path in a process of its own: MiB resident before the run and at the peak, compiler included."""
    config = ConfigDict(settings | {"single_responses": 1})
    side = HuggingFace(config, folder) if name in HF else OurSide(config, folder)
    loaded = resident("VmRSS")
    side.path(name)()
    return {"loaded_mib": loaded, "peak_mib": resident("VmHWM")}


def measure_memory(names: list[str], config: Any, folder: Path, hf: HuggingFace | None) -> dict[str, dict[str, float]]:
    """Peak memory per path. On the CPU each in a fresh process. On a GPU the device's own count, where ours is one
    peak for all of our paths."""
    stats = jax.devices()[0].memory_stats()
    if jax.default_backend() == "cpu" or stats is None:
        found = {}
        for name in names:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[name] = pool.submit(memory_of, name, config.to_dict(), folder).result()
        return found
    found = {"ours": {"peak_mib": stats["peak_bytes_in_use"] / 2**20}}
    for name in HF if hf is not None else ():
        assert hf is not None
        hf.torch.cuda.reset_peak_memory_stats()
        hf.path(name)()
        found[name] = {"peak_mib": hf.torch.cuda.max_memory_allocated() / 2**20}
    return found


def agreement(ours: OurSide, hf: HuggingFace) -> float:
    """The smallest cosine between HF's pooled states and ours of the same tokens: do both sides do the same work?"""
    tokens, theirs = hf.generate(hf.prompts, scores=False)
    mine = ours.pooled(tokens)
    return float((np.sum(mine * theirs, 1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)).min())


def timed(paths: dict[str, Callable[[], None]]) -> dict[str, Callable[[], float]]:
    return {name: partial(seconds, path) for name, path in paths.items()}


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, path in result["paths"].items():
        memory = result["memory"].get(name, {})
        rows.append(
            [
                name,
                f"{path['tokens_per_second']:,.0f}",
                f"{path['seconds']:.3f}",
                f"{path['compile_seconds']:.1f}" if "compile_seconds" in path else "",
                *(f"{memory[k]:,.0f}" if k in memory else "" for k in ("loaded_mib", "peak_mib")),
            ]
        )
    print("\n" + table(["path", "tokens/s", "run s", "compile s", "loaded MiB", "peak MiB"], rows))
    for name, ratio in result["ratios"].items():
        print(f"ours is {ratio:.2f} × {name}")
    costs = result["cost_of_sites"]
    print(f"reading costs {costs['ours']:+.1%} (last four) and {costs['ours_all']:+.1%} (every site, three reducers)")
    if "smallest_cosine" in result:
        print(f"pooled states of the same tokens, theirs and ours: smallest cosine {result['smallest_cosine']:.7f}")


def beside_shape(config: Any) -> throughput.Others:
    """transformers with random weights of a shape: the published way, and at a batch size of ours."""
    settings = config.to_dict() | {"batch_size": max(config.batch_sizes)}
    hf = HuggingFace(ConfigDict(settings), shapes.hf_config(config.shape))
    prompts = hf.prompts

    def batched(batch: int) -> Callable[[], None]:
        return lambda: (hf.generate(prompts[:batch], scores=False), None)[1]

    single = (hf.path("hf_single"), config.single_responses)
    return lambda batch: {"hf_single": single, "hf_batched": (batched(batch), batch)}


def main(config: Any, workdir: Path) -> None:
    """Measures every path, prints the table, writes benchmark.json."""
    check_numbers(config, ("torch_threads", "n_layers"))
    one_of(("float32", "bfloat16"))("dtype", config.dtype)
    workdir.mkdir(parents=True, exist_ok=True)
    if "shape" in config:
        throughput.measure(config, workdir, cli.Clock(), beside_shape(config) if config.hf else None)
        return
    if config.model:
        folder = find_folder(config.model, config.revision or None)
    else:
        folder = write_llama(config, workdir / "random_llama")
    ours = OurSide(config, folder)
    load = os.getloadavg()[0]
    print(f"{ours.model.config.n_params / 1e6:.1f} M parameters; load average {load:.1f} on {os.cpu_count()} cores")
    hf = None
    try:
        hf = HuggingFace(config, folder)
    except UserError as e:
        print(f"only mood_jax is measured: {e}")

    paths = {name: ours.path(name) for name in OURS}
    clock = cli.Clock()
    compiling = {}
    for name, go in paths.items():
        before = clock.compiling
        go()
        compiling[name] = clock.compiling - before
    result: dict[str, Any] = {"config": config.to_dict(), "device": jax.devices()[0].device_kind, "load_average": load}
    times: dict[str, list[float]] = {}
    result["ratios"] = {}
    if hf is not None:
        beside = {**{name: hf.path(name) for name in HF}, "ours": paths["ours"]}
        result["smallest_cosine"] = agreement(ours, hf)
        for name in HF:
            beside[name]()
        times = interleave(timed(beside), config.repeats, "hf and ours")
        scale = {"hf_single": config.batch_size / config.single_responses, "hf_batched": 1.0}
        result["ratios"] = {name: scale[name] * paired(times[name], times["ours"]) for name in HF}
        result["torch_threads"] = hf.torch.get_num_threads()
    sites = interleave(timed(paths), config.site_repeats, "sites")
    result["cost_of_sites"] = {n: paired(sites[n], sites["ours_none"]) - 1 for n in ("ours", "ours_all")}
    result["site_rounds"] = sites
    # Ours keeps its rounds beside Hugging Face, where there are any: those that the ratios are of.
    times |= {name: values for name, values in sites.items() if name not in times}

    result["paths"] = {}
    for name, values in times.items():
        responses = config.single_responses if name == "hf_single" else config.batch_size
        median = statistics.median(values)
        row = {"tokens_per_second": responses * config.new_tokens / median, "seconds": median, "rounds": values}
        if name in compiling:
            row["compile_seconds"] = compiling[name]
        result["paths"][name] = row
    result["memory"] = measure_memory(list(times), config, folder, hf)
    show(result)
    temporary = workdir / "benchmark.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(workdir / "benchmark.json")
    print(f"written: {workdir / 'benchmark.json'}")


if __name__ == "__main__":
    cli.run(main, "configs/benchmark.py", torch_allowed=True)
