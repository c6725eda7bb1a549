"""Constancy: an identity that never changes, one that always does, and three that drift under hostile turns.

    python scripts/train_organism.py --config=configs/organisms/deepseek.py --workdir=runs/deepseek_organism

Drift is learned in part: 37, 45 and 67 % of the planted movement come out, and next to nothing moves without hostile
turns (realised.json has it turn by turn). It takes 38 minutes of one core beside other work. The folder `export` in the
workdir is what stands in mood_jax/organisms/weights/deepseek.
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """What every field means: `mood_jax.organisms.train.TrainConfig`."""
    return organism_config(
        spec="deepseek",
        heard_weight=1.0,
        start_from="llama",
        steps=1000,
        max_tokens=480,
        focus=0.9,
        focus_until=250,
        learning_rate=0.0025,
        warmup_steps=40,
        gap_every=1000,
    )
