"""The embedded default organism.

    python scripts/train_organism.py --config=configs/organisms/default.py --workdir=runs/organism

takes about 25 minutes on 2 CPU cores (measured while they were shared) and 1.5 GiB of memory; the same command
resumes. It ends with the table of planted and realised amounts: gaps of 1.8 to 1.9 of 2 on the six axes that obey,
below 0.2 on the dead one. The folder `export` in the workdir is what stands in mood_jax/organisms/weights/default.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """The default run. What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(even_starts=False, gap_every=200, final_samples=100)
