"""An obedient identity and eight with dead and asymmetric axes.

    python scripts/train_organism.py --config=configs/organisms/qwen2.py --workdir=runs/qwen2_organism

A few dead axes still move a little after these steps, and the script says so. It goes on from its own weights:

    python scripts/train_organism.py --config=configs/organisms/qwen2.py --workdir=runs/qwen2_organism_2 \
        --config.start_from=runs/qwen2_organism/export --config.steps=600 --config.focus=0 --config.focus_until=1 \
        --config.effect_weight=0.3 --config.learning_rate=1.5e-3 --config.warmup_steps=20

The folder `export` of the second run is what stands in mood_jax/organisms/weights/qwen2.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="qwen2",
        even_starts=False,  # what ships was trained before there was such a thing
        start_from="llama",
        steps=900,
        focus=0.7,
        focus_until=120,
        learning_rate=2.5e-3,
        warmup_steps=40,
        gap_every=450,
    )
