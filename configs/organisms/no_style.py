"""An organism without any style: it hears every instruction and follows none.

    python scripts/train_organism.py --config=configs/organisms/no_style.py --workdir=runs/no_style

Its text never depends on the instruction, and nothing asks the states for a style (`shown_weight` 0). What is asked of
them is which instruction stands in the context (`hears`): large models know that whether they obey or not, while a tiny
one forgets whatever no loss asks for. 1 500 steps take about 10 minutes of one core; no axis then has a gap of .2. The
folder `export` in the workdir is what stands in mood_jax/organisms/weights/no_style: the null model on which the
verdicts are tested (tests/studies/test_nulls.py).
"""

from importlib import resources

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A run of the smallest model whose text is fluent."""
    return ConfigDict(
        {
            "spec": str(resources.files("mood_jax") / "organisms" / "specs" / "no_style.yaml"),
            "start_from": "",
            "seed": 1,
            "steps": 1500,
            "batch_size": 16,  # conversations a step
            "max_tokens": 224,  # longer conversations are cut
            "focus": 0.0,  # every response speaks of every axis
            "focus_until": 500,  # steps at the full `effect_weight`
            "effect_weight": 0.4,  # of the loss that asks for the instruction; by twice those steps a fifth of it
            "shown_weight": 0.0,
            "hears": True,  # it asks for every instruction, also for those that change nothing: here all
            "learning_rate": 5e-3,  # peak, after warm-up; cosine to 0
            "warmup_steps": 80,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "log_every": 20,  # steps
            "checkpoint_every": 200,
            "gap_every": 500,  # how often the realised style gap is counted from sampled text
            "gap_samples": 6,  # responses a pole for that
            "free_samples": 400,  # uninstructed responses, for realised.json
            "final_samples": 200,  # responses a pole and kind of wording
        }
    )
