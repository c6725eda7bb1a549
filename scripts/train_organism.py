"""Trains an organism from its spec and measures what it realises.

python scripts/train_organism.py --config=configs/organisms/default.py --workdir=runs/organism
"""

from pathlib import Path
from typing import Any

from mood_jax import cli
from mood_jax.errors import UserError
from mood_jax.organisms import realised
from mood_jax.organisms.spec import load_spec
from mood_jax.organisms.train import TrainConfig, finish


def main(config: Any, workdir: Path) -> None:
    """Trains or resumes, exports, prints planted beside realised; fails when the organism is not what was planted."""
    settings = TrainConfig(**config)
    folder, truth = finish(settings, workdir)
    print(f"\n{realised.format_table(truth)}\n")
    print(f"{truth['tokens']:.0f} tokens a response, {truth['ended_share']:.1%} ended by EOS, ", end="")
    print(f"{truth['unknown_sentence_share']:.1%} of the sentences unknown to the grammar")
    print(f"organism, spec and realised truth: {folder}")
    wanting = realised.shortcomings(truth, load_spec(settings.spec_path))
    if wanting:
        raise UserError(f"this organism does not realise its spec: {'; '.join(wanting)}; train longer")


if __name__ == "__main__":
    cli.run(main, "configs/organisms/default.py")
