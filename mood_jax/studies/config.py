"""The fields of a study's config, shared by calibrate, measure and ablate, and what they resolve to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mood_jax import artifacts, bank, processes, values
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import engine, memory
from mood_jax.generation.model import Model, load_model
from mood_jax.generation.sampling import TopP
from mood_jax.models.checkpoint import DTYPES
from mood_jax.models.sharding import make_mesh
from mood_jax.probes.estimators import ESTIMATORS
from mood_jax.readout import STATE_DTYPES, Readout
from mood_jax.studies import ablate, calibrate, origin
from mood_jax.studies.collect import Protocol, R
from mood_jax.studies.profile import SCALES
from mood_jax.studies.store import StateStore, collect_grid, is_finished, open_store

EMBEDDED = "embedded"
LONGEST_PROMPT = 256  # tokens of a prompt, for the batch size; the bank's have fewer than half


def study_config(model: str, **changes: Any) -> ConfigDict:
    """The default study of a checkpoint; `changes` override fields by name."""
    config = ConfigDict()
    config.model = model  # folder, hub id, or "embedded" for the small model that ships with the package
    config.revision = ""  # branch, tag or commit of a hub id; empty: its main branch
    config.offline = False  # take hub ids from the local cache alone
    config.dtype = "bfloat16"  # of weights and activations: bfloat16 or float32
    config.param_cache = ""  # folder where converted parameters are kept, so that the next start is faster; "": none
    config.plain_text = False  # never use the chat template (base models)
    config.mesh_data = 1  # devices over which batch rows are spread
    config.mesh_model = 1  # devices over which heads, feed-forward and vocabulary are spread
    config.bank = ""  # a YAML file of your own axes and questions, merged over the shipped bank
    config.axes = ()  # ids of the axes to calibrate; empty: all of the bank
    config.readout = "last4"  # last4, article for the published pooling, or a selected.json of scripts/ablate.py
    config.estimator = ""  # mean_difference, logistic or whitened; empty: that of a selected.json, else mean_difference
    config.random_weights = True  # a control with fresh parameters reads all calibration responses; it takes the
    # memory of the weights once more
    config.calibration_set = "A"  # A, B or C: whose instructions and questions the directions are made from
    config.cross_sets = ()  # others of them (paraphrased instructions, other questions), whose directions are compared
    config.seed = 0
    config.samples = 1  # responses per instruction and question
    config.temperature = 0.7
    config.top_p = 0.9
    config.calibration_tokens = 200  # budget of a calibration response
    config.profile_tokens = 384  # budget of a profile response
    config.batch_size = 64  # rows decoded at once; 0: as many as the memory formula allows (generation/memory.py)
    config.scale = "iqr"  # scaling of the printed score: iqr, article, pole or re_read (profile.json has all)
    config.state_dtype = "bfloat16"  # what ablate keeps its states in: bfloat16 or float32
    config.estimators = ESTIMATORS  # that ablate compares
    config.condition = "re_read"  # states that ablate compares readouts on: re_read or in_context
    config.published = ""  # a published ablation.json, which ablate reads instead of asking a model
    config.profile = False  # calibrate and measure write a profiler trace to trace/, for TensorBoard
    config.calibration = ""  # folder of a calibration to measure with; empty: this workdir's, else a shipped one
    config.update(changes)
    return config


# What a field may hold. Whatever needs no model to be seen is refused here, before anything is loaded or written.
_TOKENS = values.ranged(1, what="max_new_tokens")
CHECKS: dict[str, values.Check] = {
    "model": values.text,  # import_calibration may do without one; see `load`
    "revision": values.text,
    "offline": values.flag,
    "dtype": lambda _, dtype: _dtype(dtype),
    "param_cache": values.text,
    "plain_text": values.flag,
    "mesh_data": values.ranged(1),
    "mesh_model": values.ranged(1),
    "bank": values.text,
    "axes": lambda field, named: _list(field, named),
    "readout": lambda _, readout: _readout(readout),
    "estimator": values.one_of(("", *ESTIMATORS)),
    "random_weights": values.flag,
    "calibration_set": values.one_of(calibrate.SETS, "calibration set"),
    "cross_sets": lambda field, named: _list(field, named),
    "seed": lambda _, seed: values.seed(seed),
    "samples": values.ranged(1),
    "temperature": values.number,
    "top_p": values.number,
    "calibration_tokens": _TOKENS,
    "profile_tokens": _TOKENS,
    "batch_size": lambda _, rows: _rows(rows),
    "scale": values.one_of(SCALES),
    "state_dtype": lambda _, dtype: _state_dtype(dtype),
    "estimators": lambda field, named: _list(field, named),
    "condition": values.one_of(ablate.CONDITIONS),
    "published": values.text,
    "profile": values.flag,
    "calibration": values.text,
}


def check(config: Any) -> None:
    """Raises UserError where the config is not one of a study, naming the first field that is wrong."""
    missing = sorted(set(CHECKS) - set(config))
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}; begin it with mood_jax.studies.config.study_config()")
    values.check_fields(config, CHECKS)
    TopP(config.top_p, temperature=config.temperature)
    for field in ("axes", "cross_sets", "estimators"):
        if any(config[field]) and not names(config[field]):
            raise UserError(f"config.{field} names nothing ({config[field]!r}); leave it out, or name some")
    try:
        calibrate.check_sets(config.calibration_set, names(config.cross_sets))
    except UserError as e:
        raise UserError(f"config.cross_sets: {e}") from e
    for name in names(config.estimators):
        values.one_of(ESTIMATORS, "estimator in config.estimators,")("estimators", name)


def _list(field: str, named: Any) -> None:
    """A text, or a list."""
    if not isinstance(named, str):
        values.items(field, named)


def _dtype(dtype: Any) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use {' or '.join(DTYPES)}")


def _state_dtype(dtype: Any) -> None:
    if dtype not in STATE_DTYPES:
        raise UserError(f"states cannot be kept in {dtype!r}; use one of {', '.join(STATE_DTYPES)}")


def _rows(rows: Any) -> None:
    if values.whole("the batch size", rows, -values.LARGEST_COUNT) < 0:
        raise UserError(f"the batch size must be at least 1, not {rows}; 0 takes as many rows as the memory holds")


def _readout(readout: Any) -> None:
    """A preset, or a selected.json that is there and can be read."""
    artifacts.selected(values.named("readout", readout))


def load(config: Any) -> Model:
    """The config's model on its mesh; what a reader of its numbers should know is printed."""
    values.named("config.model", config.model)
    name = str(embedded_folder()) if config.model == EMBEDDED else config.model
    model = processes.together(
        lambda: load_model(
            name,
            dtype=config.dtype,
            mesh=make_mesh(config.mesh_data, config.mesh_model),
            revision=config.revision or None,
            offline=config.offline,
            plain_text=config.plain_text,
            param_cache=config.param_cache,
        )
    )
    for note in model.notes:
        print(f"note: {note}")
    return model


def origin_of(config: Any) -> dict[str, Any] | None:
    """`origin.of_files` of the config's checkpoint."""
    name = str(embedded_folder()) if config.model == EMBEDDED else config.model
    return origin.of_files(name, dtype=config.dtype, revision=config.revision, plain_text=config.plain_text)


def embedded_folder() -> Path:
    """The checkpoint that ships with the package."""
    return Path(__file__).parent.parent / "organisms" / "weights" / "default"


def source_bank(config: Any) -> bank.Bank:
    """The shipped bank, with the user's file merged over it where the config names one.

    Raises UserError where the config is not one of a study: it is the first thing that a study asks of it.
    """
    check(config)
    return bank.load(Path(config.bank)) if config.bank else bank.shipped()


def chosen_axes(config: Any, source: bank.Bank) -> tuple[bank.Axis, ...]:
    """The axes that the config names, all when it names none. Raises UserError for an unknown one.

    A name may hold several with commas between them, which is what --config.axes=warm_cold,formal_casual gives.
    """
    chosen = names(config.axes)
    return tuple(source.axis(name) for name in chosen) if chosen else source.axes()


def names(entries: Any) -> tuple[str, ...]:
    """A config's list of names, each once; an entry may hold several with commas between them."""
    entries = (entries,) if isinstance(entries, str) else entries
    found = [name.strip() for entry in entries for name in str(entry).split(",") if name.strip()]
    return tuple(dict.fromkeys(found))


def protocol(config: Any, model: Model, max_new_tokens: int) -> Protocol[Readout]:
    """The config's protocol with the token budget of one study.

    A readout that was selected on another checkpoint is taken, and a line says so.
    """
    readout, selected = artifacts.load_readout(config.readout, model.config.n_layers)
    if selected is not None:
        made, mine = selected.identity["model"], calibrate.identity(model)
        if made["fingerprint"] != mine["fingerprint"]:
            print(f"note: {config.readout} was selected on another checkpoint ({made.get('name')}) than {mine['name']}")
    return _protocol(config, readout, max_new_tokens, _batch_size(config, model, readout, max_new_tokens))


def _batch_size(config: Any, model: Model, readout: Readout | readouts.Grid, max_new_tokens: int) -> int:
    """That of the config, or the largest that the memory formula allows."""
    if config.batch_size:
        return config.batch_size
    limit = processes.on_first(lambda: memory.device_limit(model.mesh))
    found = memory.largest_batch(
        model.config,
        limit,
        prompt=LONGEST_PROMPT,
        new=max_new_tokens,
        dtype=config.dtype,
        sites=len(readout.sites),
        reducers=len(readout.reducers),
        data=config.mesh_data,
        model=config.mesh_model,
        copies=2 if config.random_weights else 1,
        block=engine.key_block(model.mesh),
    )
    print(f"batch size: {found} rows fit {limit / 2**30:.1f} GiB a device with {memory.MARGIN:.0%} to spare")
    return found


def _protocol(config: Any, readout: R, max_new_tokens: int, batch_size: int) -> Protocol[R]:
    values.whole("samples", config.samples, 1)
    sampler = TopP(config.top_p, temperature=config.temperature)
    return Protocol(readout, max_new_tokens, sampler, config.seed, batch_size)


def calibration_options(config: Any, model: Model) -> dict[str, Any]:
    """What else the config says of a calibration, as arguments of `calibrate.run`."""
    _, selected = artifacts.load_readout(config.readout, model.config.n_layers)
    return {
        "samples": config.samples,
        "estimator": config.estimator or (selected.estimator if selected else calibrate.ESTIMATOR),
        "control": config.random_weights,
        "cross_sets": names(config.cross_sets),
        "base": config.calibration_set,
    }


def grid_store(config: Any, workdir: Path) -> StateStore:
    """The states of the calibration responses at every site under every reducer, collected (resumably) under `workdir`.

    A finished collection of this config is opened as it is, without its model. Raises UserError when the folder belongs
    to other settings.
    """
    source = source_bank(config)
    axes = chosen_axes(config, source)
    folder = workdir / "units" / "ablation"
    store = _opened(folder)
    if store is not None and _fits(config, source, axes, store):
        artifacts.claim_workdir(workdir, "ablate", store.settings)  # again, where it is gone
        made = store.settings["model"]
        print(f"states: {folder}, of {made['name']} ({made['fingerprint'][:8]}…); the model is not loaded")
        return store
    model = load(config)
    grid = readouts.grid(model.config.n_layers, config.state_dtype)
    batch_size = _batch_size(config, model, grid, config.calibration_tokens)
    asking = _protocol(config, grid, config.calibration_tokens, batch_size)
    made_from = calibrate.collected_from(model, source, axes, asking, config.samples)
    artifacts.check_workdir(workdir, "ablate", made_from)

    def claim() -> None:
        artifacts.claim_workdir(workdir, "ablate", made_from)

    asked = calibrate.asks(source, axes, config.samples)
    store = collect_grid(model, asked, asking, folder=folder, claim=claim, settings=made_from, label="ablation")
    claim()  # again, where all units were there and their claim was not
    return store


def _opened(folder: Path) -> StateStore | None:
    """A finished collection; None where there is none, or one with parts missing, which are then made."""
    try:
        return open_store(folder) if is_finished(folder) else None
    except UserError:
        return None


def _fits(config: Any, source: bank.Bank, axes: tuple[bank.Axis, ...], store: StateStore) -> bool:
    """Was the store made from this config and from the checkpoint as its files are now?"""
    made = store.settings
    here = origin_of(config)
    if here is None:
        print(f"note: {config.model} is not on this machine; that it is what the states were made from is not checked")
        name = Path(config.model).name if Path(config.model).is_dir() else config.model
        here = {"model": made["model"] | {"name": name, "dtype": config.dtype}}
    batch_size = config.batch_size or made["protocol"]["batch_size"]
    asking = _protocol(config, replace(store.grid, dtype=config.state_dtype), config.calibration_tokens, batch_size)
    return (
        all(made[k] == v for k, v in here.items())
        and made["protocol"] == asking.describe()
        and (made["axes"], made["samples"]) == ([a.id for a in axes], config.samples)
        and made["bank"] == calibrate.bank_hashes(source, axes)
    )
