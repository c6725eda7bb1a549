"""A sweep: models × calibration sets × seeds, each unit a calibration and a profile, whole or not there.

A unit is made in a local scratch folder, where it resumes batch by batch, and then copied to its place in the work
folder, a bucket or a local one. Its `done.json`, written last, holds what it was made from and the size and sha256 of
every file: a unit without one, or with a file that differs, is made again. So no rename is asked of a bucket, and a
process that is killed at any moment leaves nothing that looks whole and is not.

What a unit was made from are its settings, which name things, and its origin, which holds their contents: fingerprint
of the weights, hashes of texts and template, the readout itself, versions. Units of a model have one origin: a sweep
compares it with the checkpoint and the bank as they lie there now, and refuses to put two of them into one table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mood_jax import artifacts, bank, numerics, processes, values
from mood_jax.errors import UserError
from mood_jax.generation.model import Model
from mood_jax.readout import PRESETS
from mood_jax.studies import calibrate, origin, profile, save
from mood_jax.studies import config as study

DONE = "done.json"
FORMAT = 2  # 2: the origin
STATES = ("whole", "begun", "damaged", "missing")
# What may differ between two runs that give the same numbers, and so does not belong to what a unit was made from.
FREE = ("offline", "param_cache", "profile")


@dataclass(frozen=True)
class Unit:
    """One model under one calibration set and one seed; `name` is its folder in the sweep."""

    model: str
    set: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.set}/seed_{self.seed}"


@dataclass(frozen=True)
class Check:
    """What stands in a unit's place: one of STATES, and why where it is damaged; its record where it is whole.

    `reason` of a whole unit: what could not be compared.
    """

    state: str
    reason: str = ""
    record: Mapping[str, Any] | None = None


def sweep_config(models: Mapping[str, ConfigDict], **changes: Any) -> ConfigDict:
    """A sweep over these studies (name → `study_config`); `changes` override fields by name."""
    config = ConfigDict()
    config.models = ConfigDict(dict(models))
    config.seeds = (0,)
    config.sets = ("A",)  # calibration sets: A, B, C
    config.states = False  # keep the reduced states of all responses beside the numbers
    config.scratch = ""  # folder of unfinished units; empty: partial/ in a local workdir. A bucket needs one
    config.profile = False  # write a profiler trace of the first unit that is made
    config.update(changes)
    return config


def units(config: Any) -> tuple[Unit, ...]:
    """All units, those of one model together. Raises UserError for a sweep without any, or with one twice."""
    seeds, sets = tuple(config.seeds), study.names(config.sets)
    if unknown := [s for s in sets if s not in calibrate.SETS]:
        raise UserError(f"unknown calibration set {unknown[0]!r}; use some of {', '.join(calibrate.SETS)}")
    for seed in seeds:
        try:
            values.seed(seed)
        except UserError as e:
            raise UserError(f"seeds must be whole numbers from 0 to {values.LARGEST_SEED}, not {seed!r}") from e
    if bad := [m for m in config.models if not m or m.startswith(".") or "/" in m]:
        raise UserError(f"{bad[0]!r} cannot name a model of a sweep: it names a folder; leave out slashes")
    found = tuple(Unit(m, s, seed) for m in sorted(config.models) for s in sets for seed in seeds)
    if not found:
        raise UserError("the sweep has no unit; give it at least one model, one set and one seed")
    if len(set(found)) < len(found):
        raise UserError("a seed is named twice in the sweep; name each once")
    for model in config.models:  # before the first of them is loaded
        try:
            study.check(unit_config(config, next(unit for unit in found if unit.model == model)))
        except UserError as e:
            raise UserError(f"models.{model}: {e}") from e
    return found


def shard(all_units: Sequence[Unit], text: str) -> tuple[Unit, ...]:
    """The part "i/n" of the units, i from 0: neighbours, so that a part has few models. All for "".

    Raises UserError for anything else.
    """
    if not text:
        return tuple(all_units)
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 0 <= int(first) < int(last)):
        raise UserError(f"--shard={text}: write i/n with 0 ≤ i < n, such as 0/4 … 3/4 for four parts")
    i, n = int(first), int(last)
    return tuple(all_units[i * len(all_units) // n : (i + 1) * len(all_units) // n])


def unit_config(config: Any, unit: Unit) -> ConfigDict:
    """The study of one unit. Raises UserError where the model's config is not one of a study."""
    found = config.models[unit.model].copy_and_resolve_references()
    missing = [f for f in ("seed", "calibration_set") if f not in found]
    if missing:
        raise UserError(f"models.{unit.model} lacks {missing[0]}; make it with mood_jax.studies.config.study_config()")
    found.seed, found.calibration_set = unit.seed, unit.set
    return found


def made_from(config: Any, unit: Unit) -> dict[str, Any]:
    """What a unit's numbers hang on, JSON-ready."""
    fields = {k: v for k, v in unit_config(config, unit).items() if k not in FREE}
    return json.loads(artifacts.json_bytes({**fields, "states_kept": bool(config.states)}))


def contents_of(config: Any) -> Callable[[Unit], dict[str, Any]]:
    """Unit → the origin that it would have now, as far as that is known without its model.

    "model" and "eos_token_ids" are missing where the checkpoint is not on this machine, "versions" always.
    """

    @functools.cache
    def files_of(model: str) -> dict[str, Any]:
        return study.origin_of(config.models[model]) or {}

    sources: dict[str, bank.Bank] = {}  # by file: a bank takes half a second to check

    @functools.cache
    def asked(model: str, set_: str) -> dict[str, Any]:
        own = unit_config(config, Unit(model, set_, 0))
        path = str(own.bank)
        source = sources[path] = sources.get(path) or study.source_bank(own)
        axes = study.chosen_axes(own, source)
        hashes = calibrate.bank_hashes(source, axes, study.names(own.cross_sets), set_)
        found: dict[str, Any] = {"bank": hashes | {"profile": source.content_hash("profile")}}
        if own.readout not in PRESETS:
            selected = artifacts.Selected.load(str(own.readout))
            found |= {"readout": asdict(selected.readout), "estimator": own.estimator or selected.estimator}
        return json.loads(artifacts.json_bytes(found))

    return lambda unit: asked(unit.model, unit.set) | files_of(unit.model)


def made_origin(made: artifacts.Calibration, measured: artifacts.Profile) -> dict[str, Any]:
    """The origin of a unit that was made."""
    by = made.identity
    return {
        **{key: by[key] for key in ("model", "eos_token_ids", "versions", "estimator")},
        "flags": by.get("flags", {}),
        "bank": by["bank"] | measured.identity["bank"],
        "readout": asdict(made.readout),
    }


def check(place: epath.Path, wanted: Mapping[str, Any], now: Mapping[str, Any]) -> Check:
    """Reads a unit's files and compares them with its record.

    Raises UserError when it is whole but was made with other settings, or from another origin than `now` (see
    `contents_of`): the sweep's config has changed, or the checkpoint, the bank or the readout that it names.
    """
    done = place / DONE
    if not done.exists():
        return Check("begun" if place.exists() else "missing")
    try:
        record = json.loads(done.read_bytes())
        files, there, made = record["files"], record["settings"], record.get("origin", {})
        if record["format"] != FORMAT:
            return Check("damaged", f"its record has format {record['format']}, not {FORMAT}")
        if not artifacts.is_sealed(record):
            return Check("damaged", f"the checksum of {DONE} differs")
        for name, about in files.items():
            path = place / name
            if not path.exists():
                return Check("damaged", f"{name} is missing")
            data = path.read_bytes()
            if len(data) != about["bytes"]:
                return Check("damaged", f"{name} has {len(data)} bytes instead of {about['bytes']}")
            if hashlib.sha256(data).hexdigest() != about["sha256"]:
                return Check("damaged", f"the checksum of {name} differs")
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        return Check("damaged", f"{DONE} cannot be read ({type(e).__name__})")
    for key in sorted({*there, *wanted}):
        if there.get(key) != wanted.get(key):
            raise UserError(
                f"{place} was made with {key} = {there.get(key)!r}, and this sweep has {wanted.get(key)!r}; use "
                "another --workdir, or the first sweep's settings"
            )
    refuse_other(place, made, now)
    unknown = "" if "model" in now else "its checkpoint is not here, to see whether it is the same"
    return Check("whole", unknown, record)


def refuse_other(place: epath.Path | str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises UserError where a unit's origin `there` differs in anything that `here` has."""
    different = artifacts.first_difference({key: there.get(key) for key in here}, here)
    if different is not None:
        key, first, second = different
        raise UserError(
            f"{place} was made with {key} = {first}, and now it would be {second}; put back what was changed "
            "(checkpoint folder, bank file, readout or software), or use another --workdir"
        )


def refuse_mixed(whole: Sequence[tuple[Unit, Mapping[str, Any]]]) -> None:
    """Raises UserError where units of one model have more than one origin, of all that they have in common."""
    first: dict[str, tuple[Unit, dict[str, Any]]] = {}
    for unit, record in whole:
        own = dict(record["origin"])
        for name, value in own.pop("bank").items():  # a set of the bank has one content, whoever is asked it
            own[f"bank.{name}"] = value
        other, known = first.setdefault(unit.model, (unit, {}))
        for key, value in own.items():
            different = artifacts.first_difference({key: known.setdefault(key, value)}, {key: value})
            if different is not None:
                name, there, here = different
                raise UserError(
                    f"the units of {unit.model} do not belong together: {other.name} was made with {name} = {there}, "
                    f"and {unit.name} with {here}; delete the folders of one kind and run the same command again"
                )


def publish(scratch: Path, place: epath.Path, about: Mapping[str, Any]) -> None:
    """Copies what a unit has made to its place, its record last. Raises UserError when it cannot be written.

    `about`: the record's settings, origin and summary.
    """
    files = {}
    try:
        if place.exists():
            place.rmtree()  # of a damaged or killed attempt; its record goes with it
        for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
            name = path.relative_to(scratch).as_posix()
            if name.split("/")[0] not in ("calibration", "profile"):
                continue  # batches and what ties the scratch folder to its run
            data = path.read_bytes()
            _write(place / name, data)
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = artifacts.sealed({"format": FORMAT, "files": files, **about})
        _write(place / DONE, artifacts.json_bytes(record))
    except OSError as e:
        raise UserError(f"{place} could not be written ({e.strerror or e}); run the same command again") from e


def _write(path: epath.Path, data: bytes) -> None:
    """A local file is written under another name first; an object of a bucket appears whole or not at all."""
    if is_local(path):
        artifacts.write_bytes(Path(path), data)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def is_local(path: epath.Path | str) -> bool:
    """Is it no bucket?"""
    return "://" not in str(path)


def run_unit(model: Model, config: Any, folder: Path, keep_states: bool) -> dict[str, Any]:
    """Calibration and profile of one unit (resumably) in a local folder; its origin and summary, JSON-ready."""
    source = study.source_bank(config)
    axes = study.chosen_axes(config, source)
    protocol = study.protocol(config, model, config.calibration_tokens)
    made = calibrate.run(
        model, source, axes, protocol, **study.calibration_options(config, model), workdir=folder, label=None
    )
    made.calibration.save(folder / "calibration")
    artifacts.write_jsonl(folder / "calibration" / "responses.jsonl", made.collected.records)
    measured, collected = profile.run(
        model,
        made.calibration,
        study.protocol(config, model, config.profile_tokens),
        source=source,
        samples=config.samples,
        scale=config.scale,
        workdir=folder,
        label=None,
    )
    measured.save(folder / "profile" / "profile.json")
    artifacts.write_jsonl(folder / "profile" / "responses.jsonl", collected.records)
    if keep_states:
        save.collected(folder / "calibration", made.collected, protocol.readout)
        save.collected(folder / "profile", collected, protocol.readout)
    summary = {
        "scale": config.scale,
        "model": made.calibration.identity["model"]["name"],
        "axes": {
            a.axis.id: {
                "mean": a.mean,
                "ci95": list(a.ci95),
                "auc": e["re_read"]["auc"],
                "auc_ci95": e["re_read"]["auc_ci95"],
                "verdict": e["verdict"],
            }
            for a, e in zip(measured.axes, made.calibration.evidence, strict=True)
        },
    }
    return {"origin": made_origin(made.calibration, measured), "summary": summary}


def scratch_folder(config: Any, workdir: epath.Path) -> Path:
    """Where unfinished units are. Raises UserError for a bucket without `config.scratch`."""
    if config.scratch:
        return Path(config.scratch)
    if not is_local(workdir):
        raise UserError(f"{workdir} is a bucket; name a local folder for unfinished units: --config.scratch=/tmp/sweep")
    return Path(workdir) / "partial"


def run(
    config: Any,
    workdir: epath.Path,
    chosen: Sequence[Unit],
    *,
    note: Callable[[str], None] = print,
    around: Callable[[Unit], contextlib.AbstractContextManager] = lambda _: contextlib.nullcontext(),
) -> dict[Unit, str]:
    """Makes what is not whole of these units; a failure of one is noted and the next is made.

    Args:
        note: is told one line a unit.
        around: a context in which a unit that is not there yet is made.

    Returns the reason for every unit that could not be made. Raises UserError as `check` and `refuse_mixed` do, before
    any is made.
    """
    scratch = scratch_folder(config, workdir)
    checks = _checks(config, workdir, chosen)
    failed: dict[Unit, str] = {}
    loaded: tuple[str, Model] | None = None
    for number, unit in enumerate(chosen, 1):
        at = f"{number}/{len(chosen)} {unit.name}"
        if checks[unit].state == "whole":
            note(f"{at}: whole" + (f"; {checks[unit].reason}" if checks[unit].reason else ""))
            continue
        if checks[unit].state == "damaged":
            note(f"{at}: made again: {checks[unit].reason}")
        own = unit_config(config, unit)
        try:
            if loaded is None or loaded[0] != unit.model:
                loaded = None  # the one before has to go first
                model = study.load(own)
                _refuse_others(config, workdir, unit.model, model)
                loaded = (unit.model, model)
            folder = scratch / unit.name
            with around(unit):
                made = run_unit(loaded[1], own, folder, config.states)
            _hand_over(folder, workdir / "units" / unit.name, {"settings": made_from(config, unit), **made})
            axes = made["summary"]["axes"].values()
            note(f"{at}: done, {sum(a['verdict'] == 'real' for a in axes)} of {len(axes)} axes real")
        except UserError as e:
            failed[unit] = str(e)
            note(f"{at}: failed: {e}")
    return failed


def looked_at(config: Any, workdir: epath.Path, chosen: Sequence[Unit]) -> list[Check]:
    """`check` of these units. Raises UserError as `check` and `refuse_mixed` do."""
    now, found = contents_of(config), []
    for unit in chosen:
        place = workdir / "units" / unit.name
        found.append(check(place, made_from(config, unit), now(unit) if (place / DONE).exists() else {}))
    refuse_mixed([(unit, c.record) for unit, c in zip(chosen, found, strict=True) if c.record is not None])
    return found


def _checks(config: Any, workdir: epath.Path, chosen: Sequence[Unit]) -> dict[Unit, Check]:
    """The states of all units, without their records, as process 0 finds them.

    Raises UserError as `looked_at`, and where a model's finished units are of other versions than those to be made.
    """

    def look() -> list[list[str]]:
        found = looked_at(config, workdir, chosen)
        short = {unit.model for unit, c in zip(chosen, found, strict=True) if c.record is None}
        for unit, c in zip(chosen, found, strict=True):
            if unit.model in short and c.record is not None:
                here = {"versions": origin.versions(jax.devices()[0]), "flags": numerics.flags()}
                refuse_other(workdir / "units" / unit.name, c.record["origin"], here)
        return [[c.state, c.reason] for c in found]

    found = processes.on_first(look)
    return {unit: Check(state, reason) for unit, (state, reason) in zip(chosen, found, strict=True)}


def _refuse_others(config: Any, workdir: epath.Path, model: str, loaded: Model) -> None:
    """Raises UserError where finished units of this model, in whichever part of the sweep, have another origin."""
    here = origin.of_model(loaded) | {"flags": numerics.flags()}

    def look() -> None:
        now = contents_of(config)
        for unit in units(config):
            place = workdir / "units" / unit.name
            if unit.model != model or not (place / DONE).exists():
                continue
            try:
                record = json.loads((place / DONE).read_bytes())
                is_sound = record["format"] == FORMAT and artifacts.is_sealed(record)
            except (AttributeError, KeyError, TypeError, ValueError):
                is_sound = False  # it is named when its part of the sweep is looked at
            if is_sound:
                refuse_other(place, record["origin"], now(unit) | here)

    processes.on_first(look)


def _hand_over(scratch: Path, place: epath.Path, about: Mapping[str, Any]) -> None:
    """Publishes a unit and clears its scratch folder, in process 0."""

    def work() -> None:
        publish(scratch, place, about)
        shutil.rmtree(scratch)

    processes.on_first(work)


def status(config: Any, workdir: epath.Path, chosen: Sequence[Unit]) -> Iterator[tuple[Unit, Check, int]]:
    """Of every unit: what stands in its place, and how many batches are finished in the scratch folder.

    Raises UserError as `check` and `refuse_mixed` do.
    """
    scratch = scratch_folder(config, workdir)
    for unit, found in zip(chosen, looked_at(config, workdir, chosen), strict=True):
        batches = len(list((scratch / unit.name).glob("units/*/*.safetensors"))) if found.state != "whole" else 0
        if batches and found.state == "missing":
            found = Check("begun")
        yield unit, found, batches


def axes_of(config: Any) -> tuple[str, ...]:
    """The ids of the axes of all models, in the order of the bank."""
    found: dict[str, None] = {}
    for own in config.models.values():
        source: bank.Bank = study.source_bank(own)
        found |= dict.fromkeys(a.id for a in study.chosen_axes(own, source))
    return tuple(found)
