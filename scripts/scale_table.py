"""Large models on many devices, on paper: the memory formula and the arithmetic bound as one table.

python scripts/scale_table.py --config=configs/scale.py --workdir=runs/scale
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import cli
from mood_jax.benchmarks import scale
from mood_jax.values import check_numbers


def main(config: Any, workdir: Path) -> None:
    """Prints the table; nothing is measured."""
    check_numbers(config)
    workdir.mkdir(parents=True, exist_ok=True)
    scale.measure(config, workdir)


if __name__ == "__main__":
    cli.run(main, "configs/scale.py")
