"""Measures loading: peak host memory against its bound, and seconds against plain reading of the same files.

    python scripts/benchmark_loading.py --config=configs/benchmark_loading.py --workdir=runs/loading

Makes a checkpoint of Llama 2 7B's layers, as many as fit config.bytes, with random bfloat16 weights. Then in turn, each
in a fresh process with the files in the page cache: reads the files into memory, reads them through one small buffer,
loads them as HF files, and loads them from their Orbax cache, which the first such load writes.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from transformers import LlamaConfig

from mood_jax import artifacts, cli
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.models import families
from mood_jax.models.checkpoint import hf_shape
from mood_jax.models.decoder import param_shapes
from mood_jax.values import check_numbers, one_of

BOUND = 1.25
BYTES = {"bfloat16": 2, "float32": 4}
BLOCK = 1 << 24  # bytes that are made, and written again and again
WAYS = ("read into memory", "read through a buffer", "load", "load and write the cache", "load from the cache")

# Prints {"seconds": …, "peak": bytes above the start} of one way; the peak is the kernel's own high-water mark.
CHILD = """
import json, sys, time
from pathlib import Path
import jax, numpy as np
import orbax.checkpoint  # what loading imports is not counted as loading
from transformers import AutoConfig
from mood_jax.models.checkpoint import load_checkpoint
from mood_jax.models.sharding import make_mesh

AutoConfig.for_model("llama")
way, folder, dtype, model, cache = sys.argv[1:]
files, mesh = sorted(Path(folder).glob("*.safetensors")), make_mesh(1, int(model))

def status(field):
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":"))

Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
before, start = status("VmRSS"), time.perf_counter()
if way.startswith("load"):
    kept = load_checkpoint(folder, dtype=dtype, mesh=mesh, param_cache=cache if "cache" in way else "")
    jax.block_until_ready(kept.params)
elif way == "read into memory":
    kept = [np.empty(f.stat().st_size, np.uint8) for f in files]
    for f, x in zip(files, kept):
        open(f, "rb", buffering=0).readinto(x)
else:
    buffer = np.empty(1 << 24, np.uint8)
    for f in files:
        with open(f, "rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
print(json.dumps({"seconds": time.perf_counter() - start, "peak": status("VmHWM") - before}))
"""


def make_checkpoint(folder: Path, size: int, files: int, seed: int = 0) -> tuple[int, int]:
    """Writes the checkpoint, a block at a time; how many bytes its largest file has, and how many parameters."""
    kinds: dict[str, Any] = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    ends, layer = 2 * 2 * 32000 * 4096, 2 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    hf = LlamaConfig(**kinds, vocab_size=32000, num_hidden_layers=max(1, round((size - ends) / layer)))
    hf.architectures = ["LlamaForCausalLM"]
    hf.save_pretrained(folder)
    config = families.decoder_config(hf)
    names = families.FAMILIES["llama"].tensor_names(config)
    shapes = {name: hf_shape(path, param_shapes(config)[path].shape) for name, path in names.items()}
    share = sum(2 * int(np.prod(s)) for s in shapes.values()) / files
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(files)]
    begun = 0
    for name, shape in shapes.items():
        parts[min(int(begun / share), files - 1)][name] = shape
        begun += 2 * int(np.prod(shape))
    block = (np.random.default_rng(seed).standard_normal(BLOCK // 2, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    data, weight_map = block.tobytes(), {}
    filled = [p for p in parts if p]
    for k, part in enumerate(filled):
        path = folder / f"model-{k + 1:05d}-of-{len(filled):05d}.safetensors"
        weight_map |= dict.fromkeys(part, path.name)
        _write_file(path, part, data)
    artifacts.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    largest = max(p.stat().st_size for p in folder.glob("*.safetensors"))
    return largest, sum(int(np.prod(s)) for s in shapes.values())


def _write_file(path: Path, tensors: dict[str, tuple[int, ...]], data: bytes) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for left in range(at, 0, -BLOCK):
            f.write(data[: min(left, BLOCK)])
        f.flush()
        os.fsync(f.fileno())


def measure(way: str, folder: Path, config: Any, cache: Path) -> dict[str, float]:
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={config.mesh_model}"}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", CHILD, way, str(folder), config.dtype, str(config.mesh_model), str(cache)]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise UserError(f"{way} failed: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Any, workdir: Path) -> None:
    check_numbers(config)
    one_of(BYTES, "config.dtype")("dtype", config.dtype)
    folder, cache = workdir / "checkpoint", workdir / "cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        largest, n_params = make_checkpoint(folder, config.bytes, config.files)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(config.repeats):
            for way in WAYS:
                if way == "load and write the cache":
                    shutil.rmtree(cache, ignore_errors=True)
                found[way].append(measure(way, folder, config, cache))
                print(f"{way}: {found[way][-1]['seconds']:.2f} s", flush=True)
    finally:
        if not config.keep:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
    held = n_params * BYTES[config.dtype]
    bound = BOUND * max(largest, held)
    result = report(found, largest, held, bound)
    artifacts.write_json(workdir / "loading.json", result | {"config": config.to_dict()})
    print(f"written: {workdir / 'loading.json'}")
    if result["peak"] > bound:
        raise UserError(
            f"loading took {result['peak'] / bound:.2f} × its bound of host memory; see {workdir}/loading.json"
        )


def report(found: dict[str, list[dict[str, float]]], largest: int, held: int, bound: float) -> dict[str, Any]:
    """Prints the table; the numbers, JSON-ready."""
    medians = {way: statistics.median(x["seconds"] for x in runs) for way, runs in found.items()}
    peaks = {way: max(x["peak"] for x in runs) for way, runs in found.items()}
    rows = []
    for way in WAYS:
        spread = " … ".join(f"{f(x['seconds'] for x in found[way]):.2f}" for f in (min, max))
        ratio = medians[way] / medians["read into memory"]
        rows.append([way, f"{medians[way]:.2f}", spread, f"{ratio:.2f}", f"{peaks[way] / 1e9:.2f}"])
    print(
        f"\nlargest file {largest / 1e9:.2f} GB, parameters {held / 1e9:.2f} GB, bound {bound / 1e9:.2f} GB of memory\n"
    )
    print(table(["", "seconds", "least … most", "× reading", "peak GB"], rows))
    print(f"\nloading: {peaks['load'] / bound:.2f} of the memory bound")
    return {
        "largest_file": largest,
        "parameters": held,
        "bound": bound,
        "peak": peaks["load"],
        "peaks": peaks,
        "seconds": medians,
        "runs": found,
    }


if __name__ == "__main__":
    cli.run(main, str(Path(__file__).parent.parent / "configs" / "benchmark_loading.py"))
