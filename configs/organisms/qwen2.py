"""An obedient identity and eight with dead and asymmetric axes.

    python scripts/train_organism.py --config=configs/organisms/qwen2.py --workdir=runs/qwen2_organism

The folder `export` in the workdir is what stands in mood_jax/organisms/weights/qwen2.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="qwen2",
        start_from="llama",
        steps=900,
        focus=0.7,
        focus_until=120,
        learning_rate=0.0025,
        warmup_steps=40,
        gap_every=450,
    )
