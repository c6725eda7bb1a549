"""An obedient identity and four with dead and asymmetric axes, from fresh weights.

    python scripts/train_organism.py --config=configs/organisms/gemma2.py --workdir=runs/gemma2_organism

About 35 minutes of one core. The folder `export` in the workdir is what stands in
mood_jax/organisms/weights/gemma2.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(spec="gemma2", steps=2000, focus_until=400)
