"""The embedded default organism.

    python scripts/train_organism.py --config=configs/organisms/default.py --workdir=runs/organism

takes about 25 minutes on 2 CPU cores (measured while they were shared) and 1.5 GiB of memory; the same command
resumes. It ends with the table of planted and realised amounts: gaps of 1.8 to 1.9 of 2 on the six axes that obey,
below 0.2 on the dead one. The folder `export` in the workdir is what stands in mood_jax/organisms/weights/default.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The default run."""
    return ConfigDict(
        {
            "spec": "",  # a spec's path; "" is mood_jax/organisms/specs/default.yaml
            "start_from": "",  # a shipped organism's name or an exported folder to go on from; "": fresh weights
            "seed": 0,
            "steps": 2200,
            "batch_size": 32,  # conversations a step
            "max_tokens": 224,  # longer conversations are cut
            "focus": 0.9,  # share of instructed responses that speak of the instructed axis alone, at first
            "focus_until": 450,  # steps; by twice that the share has fallen to 0
            "effect_weight": 0.5,  # of the loss that asks for the instruction's effect; falls with focus, to a fifth
            "shown_weight": 2.0,  # of the losses that ask for the style shown so far, and for the tension
            "hears": False,  # True: the instruction is asked for even where it changes nothing
            "learning_rate": 3e-3,  # peak, after warm-up; cosine to 0
            "warmup_steps": 100,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "log_every": 20,  # steps
            "checkpoint_every": 200,
            "gap_every": 200,  # how often the realised style gap is counted from sampled text
            "gap_samples": 6,  # responses a pole for that
            "free_samples": 400,  # uninstructed responses, for realised.json
            "final_samples": 40,  # responses a pole and kind of wording, for realised.json
        }
    )
