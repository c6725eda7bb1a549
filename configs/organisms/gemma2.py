"""An obedient identity and four with dead and asymmetric axes, from fresh weights.

    python scripts/train_organism.py --config=configs/organisms/gemma2.py --workdir=runs/gemma2_organism

Not shipped yet: after these steps two of 35 cells miss their plan (BUILD_NOTES.md), and the script says which.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(spec="gemma2", steps=2000, focus_until=400)
