"""Responses of an exported organism, sampled as the measurement samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mood_jax.generation.api import generate
from mood_jax.generation.dialogue import Dialogue
from mood_jax.generation.model import load_model
from mood_jax.generation.sampling import TopP
from mood_jax.organisms import realised

MAX_NEW_TOKENS = 200
BATCH = 128


def sampling_from(folder: Path) -> realised.Sample:
    """Samples from a checkpoint: temperature 0.7, top-p 0.9, at most MAX_NEW_TOKENS.

    Dialogues that go on from call to call carry their cache.
    """
    model = load_model(str(folder), dtype="float32")
    options = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "sampler": TopP(0.9, temperature=0.7),
        "sites": "none",
        "reducers": (),
        "batch_size": BATCH,
    }
    dialogue = Dialogue(model, **options)

    def sample(prompts: Sequence[realised.Prompt], seed: int) -> list[realised.Sampled]:
        messages = [p.messages() for p in prompts]
        if any(p.before for p in prompts):
            responses = dialogue.generate(messages, seed=seed)
        else:
            responses = generate(model, messages, seed=seed, **options)
        rows = zip(responses.text, responses.n_tokens, responses.finish, strict=True)
        return [realised.Sampled(text, int(n), finish == "eos") for text, n, finish in rows]

    return sample
