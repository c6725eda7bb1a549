"""A sweep puts no two models, texts, readouts or versions into one table, whatever its settings are called."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from mood_jax import artifacts, bank, probes
from mood_jax.artifacts import Selected
from mood_jax.errors import UserError
from mood_jax.readout import Readout
from mood_jax.reports import sweeps
from mood_jax.studies import config as study
from mood_jax.studies import origin, sweep
from tests.studies.running import in_this_process
from tests.studies.test_origin import (
    Place,
    changed_json,
    files,
    other_constants,
    other_ends,
    other_template,
    other_text,
    other_weights,
)
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

READOUT = Readout("mine", ("resid_post@1", "resid_post@2"), (1 / 3, 2 / 3), "mean", "response", True)
BLOCK = {"verdict": "real", "reason": "", "re_read": {"auc": 0.9, "auc_ci95": [0.8, 1.0]}}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Without evidence, and with banks that are loaded once."""
    of_text = functools.cache(lambda text, path: bank.load(path))
    with pytest.MonkeyPatch.context() as m:
        m.setattr(study, "source_bank", lambda config: of_text(Path(config.bank).read_text(), Path(config.bank)))
        m.setattr(probes, "evidence", lambda *a, **k: [dict(BLOCK)])
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with checkpoint, bank, selected readout and a finished sweep of two seeds over them."""
    folder = tmp_path_factory.mktemp("sweep")
    checkpoint(folder / "model")
    bank_file(folder / "bank.yaml")
    Selected(READOUT, "mean_difference", {}, {"model": {"name": "m", "fingerprint": "f"}}).save(
        folder / "selected.json"
    )
    assert run(folder) == {}
    return folder


def config_of(folder: Path, **changes: Any) -> ConfigDict:
    fields = {"bank": str(folder / "bank.yaml"), "axes": ("loud_quiet",), "random_weights": False, "batch_size": 14}
    fields |= {"dtype": "float32", "calibration_tokens": 4, "profile_tokens": 4}
    fields |= {"readout": str(folder / "selected.json")}
    return sweep.sweep_config(
        {"m": study.study_config(str(folder / "model"), **fields)}, **({"seeds": (0, 1)} | changes)
    )


def run(folder: Path, said: list[str] | None = None) -> dict:
    config = config_of(folder)
    note = (lambda _: None) if said is None else said.append
    return sweep.run(config, epath.Path(folder / "work"), sweep.units(config), note=note)


def status(folder: Path) -> list:
    config = config_of(folder)
    return list(sweep.status(config, epath.Path(folder / "work"), sweep.units(config)))


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> Path:
    """The folder again, where its config names it: the change happens in one and the same place."""
    kept = tmp_path / "kept"
    shutil.copytree(finished, kept)
    yield finished
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)


def reweighted(weights: tuple[float, ...]) -> Any:
    def change(place: Place) -> None:
        path = place.folder / "selected.json"
        changed_json(path, readout=json.loads(path.read_text())["readout"] | {"weights": list(weights)})

    return change


CHANGES = {
    "weights": (other_weights, r"model\.fingerprint"),
    "constants": (other_constants, r"model\.fingerprint"),
    "template": (other_template, r"model\.template_hash"),
    "ends": (other_ends, "eos_token_ids"),
    "instruction": (other_text("Shout.", "Shout!"), r"bank\.A"),
    "question": (other_text("boil an egg", "boil two eggs"), r"bank\.A"),
    "evaluation": (other_text("Rome", "Bern"), r"bank\.eval"),
    "readout": (reweighted((0.5, 0.5)), r"readout\.weights"),
    "a little": (reweighted((1 / 3, 2 / 3 + 1e-9)), r"readout\.weights"),  # which no phrase shows
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("deleted", [False, True])
def test_what_changed_behind_a_name_is_refused_before_anything_is_loaded(copied, monkeypatch, kind, deleted):
    change, said = CHANGES[kind]
    change(Place(copied))
    if deleted:
        shutil.rmtree(copied / "work" / "units" / "m" / "A" / "seed_0")
    monkeypatch.setattr(study, "load", lambda _: pytest.fail("a model was loaded"))
    before = files(copied)
    unit = "seed_1" if deleted else "seed_0"
    for attempt in (run, status):
        with pytest.raises(UserError, match=rf"units/m/A/{unit} was made with {said} = .*, and now it would be"):
            attempt(copied)
    assert files(copied) == before


def test_nothing_changed_is_nothing_done(finished, monkeypatch):
    monkeypatch.setattr(study, "load", lambda _: pytest.fail("a model was loaded"))
    before, said = files(finished), []
    assert run(finished, said) == {}
    assert said == ["1/2 m/A/seed_0: whole", "2/2 m/A/seed_1: whole"]
    assert files(finished) == before


def test_other_versions_may_look_and_not_add(copied, monkeypatch):
    monkeypatch.setattr(origin, "versions", lambda _: {"mood_jax": "0", "jax": "9", "device": "other"})
    assert [found.state for _, found, _ in status(copied)] == ["whole", "whole"]
    assert run(copied) == {}
    shutil.rmtree(copied / "work" / "units" / "m" / "A" / "seed_1")
    with pytest.raises(
        UserError, match=r"seed_0 was made with versions\.device = \"cpu\", and now it would be \"other\""
    ):
        run(copied)


def test_without_its_checkpoint_a_finished_sweep_says_that_it_was_not_compared(copied):
    shutil.rmtree(copied / "model")
    said: list[str] = []
    assert run(copied, said) == {}
    assert all("its checkpoint is not here" in line for line in said)
    table = sweeps.status_table(status(copied))
    assert table.count("its checkpoint is not here") == 2


def test_another_part_of_the_sweep_with_other_weights_is_seen_when_the_model_is_loaded(copied, monkeypatch):
    """Where the checkpoint could not be compared before."""
    shutil.rmtree(copied / "work" / "units" / "m" / "A" / "seed_1")
    other_weights(Place(copied))
    monkeypatch.setattr(study, "origin_of", lambda _: None)
    config = config_of(copied)
    found = sweep.run(config, epath.Path(copied / "work"), sweep.shard(sweep.units(config), "1/2"), note=lambda _: None)
    assert "seed_0 was made with model.fingerprint" in next(iter(found.values()))


def record_of(folder: Path, seed: int) -> dict[str, Any]:
    return json.loads((folder / "work" / "units" / "m" / "A" / f"seed_{seed}" / "done.json").read_text())


MIXED = [("model", "fingerprint"), ("model", "template_hash"), ("model", "dtype"), ("eos_token_ids",), ("estimator",)]
MIXED += [("versions", "jax"), ("versions", "device"), ("bank", "A"), ("bank", "profile"), ("readout", "weights")]


@pytest.mark.parametrize("path", MIXED, ids=".".join)
def test_no_table_of_two_origins(finished, path):
    """In the table, and where the records on the disk are so."""
    config = config_of(finished)
    units = sweep.units(config)
    whole = [(unit, record_of(finished, unit.seed)) for unit in units]
    assert "loud_quiet" in sweeps.summary_table(whole, ("loud_quiet",))
    made = whole[1][1]["origin"]
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "another"
    name = "bank\\." * (path[0] == "bank") + path[-1] if path[0] == "bank" else r"\.".join(path)
    with pytest.raises(UserError, match=rf"m/A/seed_0 was made with {name} = .*, and m/A/seed_1 with \"another\""):
        sweeps.summary_table(whole, ("loud_quiet",))
    other = sweep.Unit("another model", "A", 1)
    sweeps.summary_table([whole[0], (other, whole[1][1])], ("loud_quiet",))  # models may differ
    of_set_b = made["bank"] | {"B": "b"}
    whole[1][1]["origin"] = record_of(finished, 1)["origin"] | {"bank": {k: v for k, v in of_set_b.items() if k != "A"}}
    sweeps.summary_table(whole, ("loud_quiet",)) if path[0] != "bank" else None  # sets have texts of their own


def test_a_record_that_changed_is_damage(copied, rng):
    """Whatever single bit of done.json: the unit is made again, or reads as it was."""
    path = copied / "work" / "units" / "m" / "A" / "seed_1" / "done.json"
    data = path.read_bytes()
    place, config = epath.Path(path.parent), config_of(copied)
    now = sweep.contents_of(config)(sweep.units(config)[1])
    wanted = sweep.made_from(config, sweep.units(config)[1])
    assert sweep.check(place, wanted, now).state == "whole"
    for at in rng.integers(0, len(data), 150):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        found = sweep.check(place, wanted, now)
        assert found.state == "damaged" or found.record == json.loads(data), chr(data[at])
    record = json.loads(data) | {"format": 1}
    path.write_text(json.dumps(record))
    said: list[str] = []
    assert run(copied, said) == {}
    assert said[1] == "2/2 m/A/seed_1: made again: its record has format 1, not 2"
    assert path.read_bytes() == data


def test_unfinished_units_of_other_weights_are_refused(copied, monkeypatch):
    """Batches in the scratch folder, with and without what ties the folder."""
    shutil.rmtree(copied / "work" / "units")
    collected = sweep.profile.run
    monkeypatch.setattr(sweep.profile, "run", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(copied)
    monkeypatch.setattr(sweep.profile, "run", collected)
    partial = copied / "work" / "partial" / "m" / "A" / "seed_0"
    assert list(partial.glob("units/calibration/*.safetensors"))
    other_weights(Place(copied))
    for _ in range(2):
        said = run(copied)[sweep.Unit("m", "A", 0)]
        assert "was made with model.fingerprint" in said
        assert "another --workdir" in said
        shutil.rmtree(copied / "work" / "units", ignore_errors=True)
        (partial / "calibrate.json").unlink(missing_ok=True)


def test_the_script_says_it_in_one_line(copied, monkeypatch, capsys):
    (copied / "config.py").write_text(
        "from mood_jax.studies.config import study_config\n"
        "from mood_jax.studies.sweep import sweep_config\n"
        "def get_config():\n"
        f"    fields = {dict(config_of(copied).models.m)!r}\n"
        "    return sweep_config({'m': study_config(**fields)}, seeds=(0, 1))\n"
    )
    flags = (f"--config={copied / 'config.py'}", f"--workdir={copied / 'work'}")
    for more in ([], ["--status"]):
        shown = in_this_process(monkeypatch, capsys, "sweep", *flags, *more)
        assert "2 units: 2 whole" in shown.out, shown.err
    other_weights(Place(copied))
    for more in ([], ["--status"], ["--shard=1/2"]):
        line = in_this_process(monkeypatch, capsys, "sweep", *flags, *more).line
        assert "was made with model.fingerprint = " in line


def test_a_selected_readout_is_kept_to_the_last_digit(finished):
    assert record_of(finished, 0)["origin"]["readout"] == json.loads(json.dumps(asdict(READOUT)))
    claim = artifacts.read_json(finished / "work/units/m/A/seed_0/calibration/calibration.json")["identity"]["protocol"]
    assert claim["readout_content"]["weights"] == list(READOUT.weights)
    assert np.isclose(sum(claim["readout_content"]["weights"]), 1)
