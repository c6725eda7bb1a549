"""Identities whose axes vary apart, in pairs, in groups and together.

    python scripts/train_organism.py --config=configs/organisms/yi.py --workdir=runs/yi_organism

The folder `export` in the workdir is what stands in mood_jax/organisms/weights/yi.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="yi",
        even_starts=False,  # what ships was trained before there was such a thing
        start_from="llama",
        steps=1000,
        focus=0.5,
        focus_until=80,
        learning_rate=0.0025,
        warmup_steps=40,
        gap_every=1000,
    )
