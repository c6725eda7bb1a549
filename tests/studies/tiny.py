"""What the study tests run on: a tiny random checkpoint, a small bank of one axis, and the scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.fixtures.tokenizers import make_tokenizer
from tests.parity.hf_models import save, tiny

ROOT = Path(__file__).parents[2]

QUESTIONS = (
    "How do I boil an egg?",
    "Where does rain come from?",
    "Which book is good for a train ride?",
    "Can I keep tomatoes in the fridge?",
    "Why is the moon not always round?",
    "What do bees do in winter?",
    "Is it far from Rome to Oslo?",
)
BANK = """\
format: 1
axes:
  - id: loud_quiet
    positive: {name: loud, instruction: Shout.}
    negative: {name: quiet, instruction: Hush..}
questions:
"""


def checkpoint(folder: Path, family: str = "llama", seed: int = 0, often_ends: bool = False, **overrides: Any) -> Path:
    """A random four-layer model with its tokenizer and template.

    `often_ends`: every fourth token counts as an end of sequence, so that some responses are short and some empty.
    """
    model, config = tiny(family, seed, num_hidden_layers=4, **overrides)
    save(model, folder)
    make_tokenizer(family, folder)
    if often_ends:
        ids = list(range(0, config.vocab_size, 4))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), encoding="utf-8")
    return folder


def bank_file(path: Path) -> Path:
    """A bank of one axis, loud_quiet: five questions in set A, two in eval. 14 things to ask in all."""
    ids = [f"A/0{n}" for n in range(1, 6)] + ["eval/01", "eval/02"]
    lines = [f'  - {{id: loud_quiet/{i}, text: "{text}"}}\n' for i, text in zip(ids, QUESTIONS, strict=True)]
    path.write_text(BANK + "".join(lines), encoding="utf-8")
    return path


def command(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *flags]


def environment(**more: str) -> dict[str, str]:
    """That of a script: this tree's package, and no network."""
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | more


def run_script(script: str, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *flags), env=environment(**more), capture_output=True, text=True, cwd=ROOT)
