"""Whatever happens to a work folder between two runs, the second gives the bytes of an undisturbed run or refuses.

A family of changes (model, texts, ways of asking) and one of damages (units, claims, index), each tried on calibrate,
measure and ablate. The analysis' evidence, which takes seconds and hangs on nothing here, is left out.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mood_jax import artifacts, bank, probes
from mood_jax.artifacts import Calibration
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.readout import preset
from mood_jax.studies import calibrate, profile, save, unit
from mood_jax.studies import config as study
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

STUDIES = ("calibrate", "measure", "ablate")
UNITS = {"calibrate": "units/calibration", "measure": "units/profile", "ablate": "units/ablation"}
FIELDS = {"dtype": "float32", "axes": ("loud_quiet",), "calibration_tokens": 4, "profile_tokens": 4, "batch_size": 7}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Without evidence, and with models and banks that are loaded once."""
    load, loaded = study.load, {}
    of_text = functools.cache(lambda text, path: bank.load(path))

    def once(config: Any) -> Any:
        folder = Path(config.model)
        content = [(p.name, p.read_bytes()) for p in sorted(folder.iterdir()) if p.is_file()]
        key = (str(content), config.dtype, config.plain_text)
        if key not in loaded:
            loaded[key] = load(config)
        return loaded[key]

    with pytest.MonkeyPatch.context() as m:
        m.setattr(study, "load", once)
        m.setattr(study, "source_bank", lambda config: of_text(Path(config.bank).read_text(), Path(config.bank)))
        m.setattr(probes, "evidence", lambda *a, **k: [{"verdict": "real", "reason": ""}])
        yield


@dataclass(frozen=True)
class Place:
    """A checkpoint, a bank of the profile's first ten questions, and a folder of selected readouts."""

    folder: Path

    def config(self, **changes: Any) -> Any:
        fields = FIELDS | {"bank": str(self.folder / "bank.yaml"), "random_weights": False}
        return study.study_config(str(self.folder / "model"), **(fields | changes))

    def run(self, name: str, workdir: Path, **changes: Any) -> None:
        """The study as its script runs it; what it leaves is in `workdir`/final."""
        config = self.config(**changes)
        final = workdir / "final"
        if name == "ablate":
            store = study.grid_store(config, workdir)
            store_states = {c: store.states(c) for c in store.conditions}
            artifacts.write_tensors(final / "ablate.safetensors", store_states)
            artifacts.write_jsonl(final / "ablate.jsonl", store.records)
            return
        source = study.source_bank(config)
        model = study.load(config)
        protocol = study.protocol(config, model, config.calibration_tokens)
        if name == "calibrate":
            options = study.calibration_options(config, model)
            axes = study.chosen_axes(config, source)
            done = calibrate.run(model, source, axes, protocol, **options, workdir=workdir, label=None)
            done.calibration.save(final)
            save.collected(final, done.collected, protocol.readout)
            return
        made = Calibration.load(self.folder / "calibration")
        options = {"source": source, "samples": config.samples, "workdir": workdir, "label": None}
        measured, collected = profile.run(model, made, protocol, **options)
        measured.save(final / "profile.json")
        save.collected(final, collected, protocol.readout)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("first")
    checkpoint(folder / "model")
    bank_file(folder / "bank.yaml")
    place = Place(folder)
    config = place.config()
    model, source = study.load(config), study.source_bank(config)
    axes, protocol = study.chosen_axes(config, source), study.protocol(config, model, 4)
    calibrate.run(model, source, axes, protocol, control=False, label=None).calibration.save(folder / "calibration")
    return place


@pytest.fixture(scope="module")
def finished(first, tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in STUDIES}
    for name, folder in folders.items():
        first.run(name, folder)
    return folders


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def never(monkeypatch) -> None:
    def run(self, k):
        raise AssertionError(f"batch {k} was generated")

    monkeypatch.setattr(api.Plan, "run", run)


# Changes


def changed_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")


def other_weights(place: Place) -> None:
    path = place.folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if "mlp" in n)
    tensors[name] = tensors[name] * np.asarray(1.3, tensors[name].dtype)
    save_file(tensors, path, {"format": "pt"})


def other_template(place: Place) -> None:
    named = [p for p in (place.folder / "model").glob("*template*") if p.is_file()]
    if named:
        named[0].write_text(named[0].read_text() + "{# changed #}!")
    else:
        path = place.folder / "model" / "tokenizer_config.json"
        changed_json(path, chat_template=json.loads(path.read_text())["chat_template"] + "!")


def other_ends(place: Place) -> None:
    (place.folder / "model" / "generation_config.json").write_text('{"eos_token_id": [3, 5, 7]}')


def other_constants(place: Place) -> None:
    changed_json(place.folder / "model" / "config.json", rms_norm_eps=1e-3)


def other_text(old: str, new: str) -> Callable[[Place], None]:
    def change(place: Place) -> None:
        path = place.folder / "bank.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


OF_THE_FOLDER = {
    "weights": (other_weights, STUDIES, "fingerprint|another checkpoint"),
    "constants": (other_constants, STUDIES, "fingerprint|another checkpoint"),
    "template": (other_template, STUDIES, "template_hash|another chat template"),
    "ends": (other_ends, STUDIES, "eos_token_ids|other end-of-sequence ids"),
    "instruction": (other_text("Shout.", "Shout!"), ("calibrate", "ablate"), r"bank\.A"),
    "pole": (other_text("name: loud", "name: noisy"), ("calibrate", "ablate"), r"bank\.A"),
    "question": (other_text("boil an egg", "boil two eggs"), ("calibrate", "ablate"), r"bank\.A"),
    "evaluation": (other_text("Rome", "Bern"), ("calibrate", "ablate"), r"bank\.eval"),
}
OF_THE_CONFIG = {
    "seed": ({"seed": 1}, STUDIES, r"protocol\.seed"),
    "tokens": ({"calibration_tokens": 5}, STUDIES, r"protocol\.max_new_tokens"),
    "samples": ({"samples": 2}, STUDIES, "samples"),
    "temperature": ({"temperature": 0.8}, STUDIES, r"protocol\.sampler\.temperature"),
    "top_p": ({"top_p": 0.8}, STUDIES, r"protocol\.sampler\.p"),
    "batch size": ({"batch_size": 5}, STUDIES, r"protocol\.batch_size"),
    "plain text": ({"plain_text": True}, ("calibrate", "ablate"), "plain_text|template_hash|eos_token_ids"),
    "dtype": ({"dtype": "bfloat16"}, ("calibrate", "ablate"), r"model\.dtype"),
    "readout": ({"readout": "article"}, ("calibrate",), "reading|protocol.readout"),
    "control": ({"random_weights": True}, ("calibrate",), r"reading\.con|random_weights"),
    "state dtype": ({"state_dtype": "float32"}, ("ablate",), r"reading\.dtype|protocol\.readout"),
    "set": ({"cross_sets": ("B",), "axes": ("warm_cold",)}, ("calibrate",), "axes"),
    "axes": ({"axes": ("warm_cold",)}, ("ablate",), "axes"),
}


def cases(family: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(family[kind], study_, id=f"{kind}-{study_}")
        for kind in family
        for study_ in STUDIES
        if study_ in family[kind][1]
    ]


CLAIMS = {"calibrate": "calibrate.json", "measure": "measure.json", "ablate": "ablate.json"}


def refused(place: Place, name: str, workdir: Path, said: str, **changes: Any) -> None:
    """With its claim, and without claim and index: one line, and no file is touched."""
    for gone in ([], [CLAIMS[name], f"{UNITS[name]}/index.json"]):
        for file in gone:
            (workdir / file).unlink(missing_ok=True)
        before = files(workdir)
        with pytest.raises(UserError, match=said) as caught:
            place.run(name, workdir, **changes)
        assert "\n" not in str(caught.value)
        assert files(workdir) == before


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("change", "name"), cases(OF_THE_FOLDER))
def test_a_folder_whose_model_or_texts_changed_is_refused(first, finished, tmp_path, change, name):
    shutil.copytree(first.folder, tmp_path / "first")
    shutil.copytree(finished[name], tmp_path / "work")
    place = Place(tmp_path / "first")
    make, _, said = change
    make(place)
    refused(place, name, tmp_path / "work", said)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("change", "name"), cases(OF_THE_CONFIG))
def test_another_way_of_asking_is_refused(first, finished, tmp_path, change, name):
    shutil.copytree(finished[name], tmp_path / "work")
    changes, _, said = change
    refused(first, name, tmp_path / "work", said, **changes)


def test_a_tokenizer_that_writes_otherwise_is_refused(first, finished, tmp_path, monkeypatch):
    """Its hash says how it reads."""
    from mood_jax.generation.chat import Chat

    shutil.copytree(finished["calibrate"], tmp_path / "work")
    decode = Chat.decode
    monkeypatch.setattr(Chat, "decode", lambda self, ids: decode(self, ids).replace("a", "b"))
    (tmp_path / "work" / "calibrate.json").unlink()
    with pytest.raises(UserError, match=r"was made with texts\.decoding"):
        first.run("calibrate", tmp_path / "work")


# Damages


def some_unit(workdir: Path, name: str, k: int = 1) -> Path:
    return workdir / UNITS[name] / f"{k:05d}.safetensors"


def flip(at: Callable[[bytes], int]) -> Callable[[Path, str], None]:
    def damage(workdir: Path, name: str) -> None:
        path = some_unit(workdir, name)
        data = bytearray(path.read_bytes())
        data[at(bytes(data))] ^= 4
        path.write_bytes(data)

    return damage


def rewritten(change: Callable[[list, dict, dict], tuple[list, dict, dict]]) -> Callable[[Path, str], None]:
    """The unit's content changed, and written as a unit is: its checksum is right."""

    def damage(workdir: Path, name: str) -> None:
        path = some_unit(workdir, name)
        records, states = unit.read(path)
        unit.write(path, *change(records, {c: np.array(s) for c, s in states.items()}, unit.verify(path)))

    return damage


def with_record(**fields: Any) -> Callable[[Path, str], None]:
    return rewritten(lambda records, states, by: ([records[0] | fields, *records[1:]], states, by))


def poisoned(value: float) -> Callable[[Path, str], None]:
    def change(records: list, states: dict, by: dict) -> tuple:
        states["in_context"][1, 0, 0, 3] = value
        return records, states, by

    return rewritten(change)


def swap(workdir: Path, name: str) -> None:
    a, b = some_unit(workdir, name, 0), some_unit(workdir, name, 1)
    a.rename(a.with_suffix(".x"))
    b.rename(a)
    a.with_suffix(".x").rename(b)


def earlier_version(workdir: Path, name: str) -> None:
    path = some_unit(workdir, name)
    artifacts.write_tensors(path, dict(artifacts.map_tensors(path)))


def header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def without(*names: str) -> Callable[[Path, str], None]:
    def damage(workdir: Path, name: str) -> None:
        for file in names or (CLAIMS[name], f"{UNITS[name]}/index.json"):
            (workdir / file).unlink(missing_ok=True)

    return damage


def left_over(workdir: Path, name: str) -> None:
    path = some_unit(workdir, name)
    path.with_name(f".{path.name}.1.tmp").write_bytes(path.read_bytes()[:50])
    (workdir / UNITS[name] / "00099.safetensors").write_bytes(path.read_bytes())


DAMAGES = {
    "length": flip(lambda data: 1),
    "header": flip(lambda data: 40),
    "origin": flip(lambda data: data.index(b"fingerprint") + 20),
    "its digits": flip(lambda data: data.index(b'sha256') + 20),
    "a tensor's place": flip(lambda data: data.rindex(b"data_offsets", 0, header(data)) + 15),
    "states": flip(lambda data: header(data) + 100),
    "more states": flip(lambda data: (header(data) + len(data)) // 2),
    "records": flip(lambda data: data.rindex(b"n_tokens") + 10),
    "the last byte": flip(lambda data: len(data) - 1),
    "swapped": swap,
    "earlier version": earlier_version,
    "no claim": without(),
    "not finite": poisoned(np.nan),
    "infinite": poisoned(np.inf),
    "another seed in a record": with_record(seed=1),
    "another prompt in a record": with_record(prompt_hash="0" * 16),
    "another id in a record": with_record(id="x"),
    "another pole in a record": with_record(sign=7),
    "another text in a record": with_record(text="what it never said"),
    "another length in a record": with_record(n_tokens=99),
    "left over": left_over,
}  # fmt: skip
MADE_AGAIN = {"swapped": 2, "no claim": 0, "left over": 0}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", STUDIES)
def test_a_damaged_folder_gives_the_same_bytes(first, finished, tmp_path, capsys, monkeypatch, kind, name):
    workdir = tmp_path / "work"
    shutil.copytree(finished[name], workdir)
    before = files(workdir)
    DAMAGES[kind](workdir, name)
    made, run = [], api.Plan.run
    monkeypatch.setattr(api.Plan, "run", lambda self, k: made.append(k) or run(self, k))
    first.run(name, workdir)
    assert len(made) == MADE_AGAIN.get(kind, 1)
    said = [line for line in capsys.readouterr().err.splitlines() if "is done again: " in line]
    assert len(said) == len(made)
    after = files(workdir)
    assert {path: after[path] for path in before} == before  # claims and index too
    assert set(after) - set(before) <= {f"{UNITS[name]}/00099.safetensors"} | {p for p in after if p.endswith(".tmp")}


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("name", STUDIES)
def test_a_unit_of_another_run_is_refused_and_nothing_is_touched(first, finished, tmp_path, name, monkeypatch):
    """One that is sound, and says of itself that it is of another seed."""
    for k in range(2):  # the other one is this run's
        workdir = tmp_path / f"work{k}"
        shutil.copytree(finished[name], workdir)
        path = some_unit(workdir, name, k)
        records, states = unit.read(path)
        by = unit.verify(path)
        other = by | {"protocol": by["protocol"] | {"seed": 1}}
        unit.write(path, records, {c: np.array(s) for c, s in states.items()}, other)
        refused(first, name, workdir, rf"{path.name} was made with protocol\.seed = 1, and this command has 0")


@pytest.mark.usefixtures("never")
def test_a_store_of_several_origins_or_another_index_is_not_opened(first, finished, tmp_path):
    """The analysis without a model trusts the index no more than the units."""
    from mood_jax.studies.store import open_store

    folder = tmp_path / "units"
    shutil.copytree(finished["ablate"] / UNITS["ablate"], folder)
    path = folder / "00001.safetensors"
    records, states = unit.read(path)
    by = unit.verify(path)
    whole = path.read_bytes()
    other = by | {"model": by["model"] | {"fingerprint": "0" * 32}}
    unit.write(path, records, {c: np.array(s) for c, s in states.items()}, other)
    with pytest.raises(UserError, match="is another one than was written here"):
        open_store(folder)
    index = artifacts.read_json(folder / "index.json")
    units = [index["units"][0], index["units"][1] | {"sha256": unit.checksum(path)}]
    artifacts.write_json(folder / "index.json", index | {"units": units})
    with pytest.raises(UserError, match=r"00001\.safetensors was made with model\.fingerprint"):
        open_store(folder)
    artifacts.write_json(folder / "index.json", index)
    flipped = bytearray(whole)
    flipped[-200] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match="checksum differs"):
        open_store(folder)
    path.write_bytes(whole)
    open_store(folder)
    artifacts.write_json(folder / "index.json", index | {"settings": index["settings"] | {"samples": 2}})
    with pytest.raises(UserError, match="made from other settings"):
        open_store(folder)


# A calibration's own two files


def test_no_bit_of_a_calibration_changes_unseen(first, tmp_path, rng):
    shutil.copytree(first.folder / "calibration", tmp_path / "c")
    sound = Calibration.load(tmp_path / "c")
    assert sound.readout == preset("last4", 4)
    for path in (tmp_path / "c").iterdir():
        data = path.read_bytes()
        for at in rng.integers(0, len(data), 150):
            changed = bytearray(data)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            try:
                assert artifacts.read_json(tmp_path / "c" / "calibration.json")["sha256"]
                found = Calibration.load(tmp_path / "c")
            except (UserError, KeyError):
                continue
            assert (found.digest, found.evidence, found.identity) == (sound.digest, sound.evidence, sound.identity)
        path.write_bytes(data)


def test_shipped_calibrations_still_load():
    shipped = sorted((Path(__file__).parents[2] / "calibrations").glob("*/calibration.json"))
    assert len(shipped) > 5
    for path in shipped:
        assert Calibration.load(path.parent).axes


def test_a_profile_names_the_numbers_of_its_calibration(first, finished, tmp_path):
    """Another calibration of the same settings is another one."""
    shutil.copytree(first.folder, tmp_path / "first")
    shutil.copytree(finished["measure"], tmp_path / "work")
    made = Calibration.load(tmp_path / "first" / "calibration")
    made.directions[0] *= -1
    made.save(tmp_path / "first" / "calibration")
    with pytest.raises(UserError, match=r"was made with calibration\.digest"):
        Place(tmp_path / "first").run("measure", tmp_path / "work")
