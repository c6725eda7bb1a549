"""Nine obedient identities, each axis with every amount from -1 to +1 once: for dose-response curves.

    python scripts/train_organism.py --config=configs/organisms/llama.py --workdir=runs/llama_organism

The folder `export` in the workdir is what stands in mood_jax/organisms/weights/llama.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="llama",
        even_starts=False,  # what ships was trained before there was such a thing
        start_from="default",
        steps=1500,
        focus_until=250,
        warmup_steps=60,
    )
