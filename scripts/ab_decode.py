"""Other ways to write the decode loop against ours, as ratios with their spread (`mood_jax/benchmarks/ab.py`).

python scripts/ab_decode.py --config=configs/ab_decode.py --workdir=runs/ab
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mood_jax import cli
from mood_jax.artifacts import read_json
from mood_jax.benchmarks import ab
from mood_jax.errors import UserError
from mood_jax.values import check_numbers


def main(config: Any, workdir: Path) -> None:
    """Runs the experiments of the config."""
    check_numbers(config)
    workdir.mkdir(parents=True, exist_ok=True)

    def child(flags: str, round_: int) -> float:
        """This script in a process of its own, with these XLA flags, measuring our step alone."""
        folder = workdir / "flags" / f"{list(ab.FLAGS.values()).index(flags)}_{round_}"
        same = [a for a in sys.argv if not a.startswith("--workdir")]
        command = [sys.executable, *same, f"--workdir={folder}", "--config.experiments=('step',)", "--config.rounds=3"]
        inherited = os.environ.get("XLA_FLAGS", "")
        env = os.environ | {"XLA_FLAGS": f"{inherited} {flags}".strip(), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise UserError(
                f"the process with XLA_FLAGS={flags!r} failed ({last}); leave 'flags' out of the experiments"
            )
        (found,) = read_json(folder / "ab.json")["experiments"]
        return found["variants"]["ours"]["ms"] / 1e3

    ab.measure(config, workdir, child)


if __name__ == "__main__":
    cli.run(main, "configs/ab_decode.py")
