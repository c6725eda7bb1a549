"""The fields of a study's config, shared by calibrate and measure, and what they resolve to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mood_jax import bank
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation.model import Model, load_model
from mood_jax.generation.sampling import TopP
from mood_jax.models.sharding import make_mesh
from mood_jax.studies.collect import Protocol

EMBEDDED = "embedded"


def study_config(model: str, **changes: Any) -> ConfigDict:
    """The default study of a checkpoint; `changes` override fields by name."""
    config = ConfigDict()
    config.model = model  # folder, hub id, or "embedded" for the small model that ships with the package
    config.revision = ""  # branch, tag or commit of a hub id; empty: its main branch
    config.offline = False  # take hub ids from the local cache alone
    config.dtype = "bfloat16"  # of weights and activations: bfloat16 or float32
    config.plain_text = False  # never use the chat template (base models)
    config.mesh_data = 1  # devices over which batch rows are spread
    config.mesh_model = 1  # devices over which heads, feed-forward and vocabulary are spread
    config.bank = ""  # a YAML file of your own axes and questions, merged over the shipped bank
    config.axes = ()  # ids of the axes to calibrate; empty: all of the bank
    config.readout = "last4"  # last4, or article for the published pooling
    config.seed = 0
    config.samples = 1  # responses per instruction and question
    config.temperature = 0.7
    config.top_p = 0.9
    config.calibration_tokens = 200  # budget of a calibration response
    config.profile_tokens = 384  # budget of a profile response
    config.batch_size = 64  # rows decoded at once
    config.scale = "iqr"  # scaling of the printed score: iqr, article or pole (profile.json has all three)
    config.calibration = ""  # folder of a calibration to measure with; empty: this workdir's, else a shipped one
    config.update(changes)
    return config


def _check(config: Any) -> None:
    """Raises UserError where the config is not one of a study, naming the fields that it lacks."""
    missing = sorted(set(study_config("")) - set(config))
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}; begin it with mood_jax.studies.config.study_config()")


def load(config: Any) -> Model:
    """The config's model on its mesh."""
    name = str(embedded_folder()) if config.model == EMBEDDED else config.model
    return load_model(
        name,
        dtype=config.dtype,
        mesh=make_mesh(config.mesh_data, config.mesh_model),
        revision=config.revision or None,
        offline=config.offline,
        plain_text=config.plain_text,
    )


def embedded_folder() -> Path:
    """The checkpoint that ships with the package."""
    return Path(__file__).parent.parent / "organisms" / "weights" / "default"


def source_bank(config: Any) -> bank.Bank:
    """The shipped bank, with the user's file merged over it where the config names one.

    Raises UserError where the config is not one of a study: it is the first thing that a study asks of it.
    """
    _check(config)
    return bank.load(Path(config.bank)) if config.bank else bank.shipped()


def chosen_axes(config: Any, source: bank.Bank) -> tuple[bank.Axis, ...]:
    """The axes that the config names, all when it names none. Raises UserError for an unknown one.

    A name may hold several with commas between them, which is what --config.axes=warm_cold,formal_casual gives.
    """
    names = [name.strip() for entry in config.axes for name in str(entry).split(",") if name.strip()]
    return tuple(source.axis(name) for name in dict.fromkeys(names)) if names else source.axes()


def protocol(config: Any, model: Model, max_new_tokens: int) -> Protocol:
    """The config's protocol with the token budget of one study."""
    if config.samples < 1:
        raise UserError(f"samples must be at least 1, not {config.samples}")
    return Protocol(
        readouts.preset(config.readout, model.config.n_layers),
        max_new_tokens,
        TopP(config.top_p, temperature=config.temperature),
        config.seed,
        config.batch_size,
    )
