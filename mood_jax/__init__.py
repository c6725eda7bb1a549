"""mood_jax: the temperament of language models, read from their hidden states.

import mood_jax as mj
model = mj.load_model("Qwen/Qwen2.5-7B-Instruct")
calibration = mj.calibrate(model, axes=mj.bank.axes(), seed=0)
profile = mj.profile(model, calibration)
profile["warm_cold"].mean, profile["warm_cold"].ci95
"""

from __future__ import annotations

__version__ = "0.1.0"

from mood_jax import bank
from mood_jax.artifacts import Calibration, Profile
from mood_jax.errors import UserError
from mood_jax.generation.api import Responses, generate, read
from mood_jax.generation.dialogue import converse
from mood_jax.generation.model import Model, forward, load_model
from mood_jax.generation.sampling import Greedy, TopP
from mood_jax.models.sharding import make_mesh
from mood_jax.studies.calibrate import calibrate
from mood_jax.studies.profile import profile

__all__ = [
    "Calibration",
    "Greedy",
    "Model",
    "Profile",
    "Responses",
    "TopP",
    "UserError",
    "bank",
    "calibrate",
    "converse",
    "forward",
    "generate",
    "load_model",
    "make_mesh",
    "profile",
    "read",
]
