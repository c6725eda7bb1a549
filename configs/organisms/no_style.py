"""An organism without any style: it hears every instruction and follows none.

    python scripts/train_organism.py --config=configs/organisms/no_style.py --workdir=runs/no_style

Its text never depends on the instruction, and nothing asks the states for a style (`shown_weight` 0). What is asked of
them is which instruction stands in the context (`hears`): large models know that whether they obey or not, while a tiny
one forgets whatever no loss asks for. 1 500 steps take about 10 minutes of one core; no axis then has a gap of .2. The
folder `export` in the workdir is what stands in mood_jax/organisms/weights/no_style: the null model on which the
verdicts are tested (tests/studies/test_nulls.py).
"""

from mood_jax.organisms.train import organism_config


def get_config():
    """A run of the smallest model whose text is fluent."""
    return organism_config(
        spec="no_style",
        even_starts=False,  # what ships was trained before there was such a thing
        seed=1,
        steps=1500,
        batch_size=16,
        focus=0.0,
        focus_until=500,
        effect_weight=0.4,
        shown_weight=0.0,
        hears=True,
        learning_rate=5e-3,
        warmup_steps=80,
        final_samples=50,
    )
