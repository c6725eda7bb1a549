"""Holds the decoder against transformers on one checkpoint: every site and the logits.

    python scripts/check_parity.py --config=configs/parity.py --config.model=FOLDER_OR_HUB_ID [--workdir=DIR]

Ends in PASS (exit status 0) or FAIL (1); parity.json goes to the workdir if one is given. See configs/parity.py.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mood_jax import artifacts, cli, parity, values
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat
from mood_jax.models import families
from mood_jax.models.checkpoint import DTYPES, Checkpoint, find_folder, load_checkpoint, save_checkpoint

TEXTS = (
    "Hi!",
    "What should I cook tonight?",
    "My neighbour plays the piano until midnight, and I have to get up at five. How do I bring it up?",
    "Explain in a few sentences why the sky is blue, why sunsets are red, and what both have to do with the distance "
    "that light travels through the air. Then name one thing about it that people usually get wrong.",
)
LENGTHS = (24, 17, 5)  # of random ids, where there is no tokenizer


def main(config: Any, _: Path) -> None:
    import torch_reference  # raises UserError where torch is missing

    values.check_numbers(config, may_be_zero=("tolerance",))
    if config.dtype not in (*DTYPES, "both"):
        raise UserError(f"config.dtype is {config.dtype!r}; use {', '.join(DTYPES)} or both")
    dtypes = list(DTYPES) if config.dtype == "both" else [config.dtype]
    rng = np.random.default_rng(config.seed)
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in folders(config, Path(scratch), rng):
            ours, prompts = {}, None
            for dtype in dtypes:
                checkpoint = load_checkpoint(str(folder), dtype=dtype)
                prompts = prompts or prompts_for(checkpoint, rng)
                ours[dtype] = parity.states(checkpoint, prompts)
                del checkpoint  # before the next one is loaded
            assert prompts is not None
            model = torch_reference.load(folder)
            for dtype in dtypes:  # float32 first: rounding is for good
                if dtype == "bfloat16":
                    torch_reference.round_to_bfloat16(model)
                reference = torch_reference.states(model, prompts)
                records.append(record(config, name, dtype, ours[dtype], reference, parity.left_pad(prompts)[1]))
    report(config, records)


def folders(config: Any, scratch: Path, rng: np.random.Generator) -> Iterator[tuple[str, Path]]:
    """(name, folder) of the checkpoint, or of each tiny random model as it is made."""
    if config.model != "tiny":
        yield config.model, find_folder(config.model, config.revision, config.offline)
        return
    for name in parity.TINY:
        hf = parity.tiny_config(name)
        save_checkpoint(scratch / name, hf, parity.random_params(families.decoder_config(hf), rng))
        yield name, scratch / name


def prompts_for(checkpoint: Checkpoint, rng: np.random.Generator) -> list[list[int]]:
    if any(checkpoint.folder.glob("tokenizer*")):
        chat = Chat.from_folder(checkpoint.folder)
        return [list(chat.render(text).token_ids) for text in TEXTS]
    return [rng.integers(0, checkpoint.config.vocab_size, n).tolist() for n in LENGTHS]


def record(config: Any, name: str, dtype: str, ours: Any, reference: Any, real: np.ndarray) -> dict[str, Any]:
    found = parity.compare(ours, reference, real)
    mean, largest = parity.kl(ours[parity.LOGITS], reference[parity.LOGITS], real)
    return {
        "model": name,
        "dtype": dtype,
        "passed": parity.agrees(found, dtype, config.tolerance, config.min_cosine),
        "max_delta": max(a.max_delta for a in found),
        "min_cosine": min(a.cosine for a in found),
        "kl_mean": mean,
        "kl_max": largest,
        "tokens": int(real.sum()),
        "sites": [dataclasses.asdict(a) for a in found],
    }


def report(config: Any, records: list[dict[str, Any]]) -> None:
    if config.model != "tiny":
        for r in records:
            rows = [[s["site"], f"{s['max_delta']:.1e}", f"{s['cosine']:.6f}"] for s in r["sites"]]
            print(f"\n{r['model']} in {r['dtype']}, {r['tokens']} tokens")
            print(table(["site", "max|Δ| / max|ref|", "min cosine"], rows))
    header = ["model", "dtype", "max|Δ| / max|ref|", "min cosine", "KL mean", "KL max", "verdict"]
    rows = []
    for r in records:
        figures = [f"{r['max_delta']:.1e}", f"{r['min_cosine']:.6f}", f"{r['kl_mean']:.1e}", f"{r['kl_max']:.1e}"]
        name = r["model"].rstrip("/").rpartition("/")[2]
        rows.append([name, r["dtype"], *figures, "pass" if r["passed"] else "fail"])
    print(f"\n{table(header, rows)}\n")
    if flags.FLAGS.workdir:
        path = Path(flags.FLAGS.workdir) / "parity.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, records)
        print(path)
    passed = all(r["passed"] for r in records)
    print(f"float32: max|Δ| ≤ {config.tolerance:g} · max|reference|, bfloat16: cosine ≥ {config.min_cosine:g},")
    print("at every site and in the logits; the reference is torch in float32; KL in nats a token")
    print("PASS" if passed else "FAIL")
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, needs_workdir=False)
