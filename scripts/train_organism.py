"""Trains an organism from its spec and measures what its identities realise.

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
    """Trains or resumes, exports, prints planted beside realised; fails when an identity is not what was planted."""
    settings = TrainConfig(**config)
    folder, whole = finish(settings, workdir)
    wanting = []
    for identity in load_spec(settings.spec_path).identities:
        truth = whole["identities"][identity.name]
        print(f"\n{identity.name}\n{realised.format_table(truth)}")
        print(f"{truth['tokens']:.0f} tokens a response, {truth['ended_share']:.1%} ended by EOS, ", end="")
        print(f"{truth['unknown_sentence_share']:.1%} of the sentences unknown to the grammar")
        if drift := realised.format_drift(truth, identity):
            print(drift)
        wanting += [f"{identity.name}: {w}" for w in realised.shortcomings(truth, identity)]
    print(f"\norganism, spec and realised truth: {folder}")
    if wanting:
        raise UserError(f"this organism does not realise its spec: {'; '.join(wanting)}; train longer")


if __name__ == "__main__":
    cli.run(main, "configs/organisms/default.py")
