"""A sweep is whole or says what is missing; what is damaged is made again; nothing compiles twice."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import fsspec
import pytest
from etils import epath
from fsspec.implementations.local import LocalFileSystem
from ml_collections import ConfigDict

from mood_jax.compiled import CompileLog
from mood_jax.errors import UserError
from mood_jax.reports import sweeps
from mood_jax.studies import sweep
from mood_jax.studies.config import study_config
from tests.studies.running import in_this_process
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    return checkpoint(folder / "model"), bank_file(folder / "bank.yaml")


def tiny_study(files: tuple[Path, Path], **changes) -> ConfigDict:
    model, bank = files
    options = {"bank": str(bank), "dtype": "float32", "calibration_tokens": 6, "profile_tokens": 6, "batch_size": 8}
    return study_config(str(model), **(options | changes))


def tiny_sweep(files: tuple[Path, Path], **changes) -> ConfigDict:
    model = tiny_study(files, axes=("loud_quiet",), random_weights=False)
    return sweep.sweep_config({"tiny": model}, **({"seeds": (4, 5)} | changes))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_parts_of_a_sweep_are_disjoint_and_complete(files):
    config = tiny_sweep(files, sets=("A", "C"), seeds=(0, 3, 5))
    units = sweep.units(config)
    assert [u.name for u in units[:3]] == ["tiny/A/seed_0", "tiny/A/seed_3", "tiny/A/seed_5"]
    assert len(units) == 6
    for n in (1, 2, 4, 6, 7):
        parts = [sweep.shard(units, f"{i}/{n}") for i in range(n)]
        assert [u for part in parts for u in part] == list(units)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sweep.shard(units, "") == units


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "has no unit"),
        ({"seeds": (1, 1)}, "twice"),
        ({"seeds": ("x",)}, "whole numbers"),
        ({"sets": ("A", "D")}, "unknown calibration set 'D'"),
        ({"models": ConfigDict({"a/b": study_config("m")})}, "leave out slashes"),
    ],
)
def test_a_sweep_that_cannot_be(files, changes, message):
    config = tiny_sweep(files)
    with config.unlocked():
        for name, value in changes.items():
            config[name] = value
    with pytest.raises(UserError, match=message):
        sweep.units(config)


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/0", "1/2/3"])
def test_a_part_that_cannot_be(files, text):
    with pytest.raises(UserError, match="write i/n"):
        sweep.shard(sweep.units(tiny_sweep(files)), text)


def test_damage_is_found_and_made_again_to_the_same_bytes(files, tmp_path):
    """Also: a steady sweep compiles nothing after its first unit."""
    config, workdir = tiny_sweep(files), epath.Path(tmp_path)
    units = sweep.units(config)
    compiled: list[int] = []
    lines: list[str] = []

    @contextlib.contextmanager
    def counted(_):
        before = log.count
        yield
        compiled.append(log.count - before)

    with CompileLog(lambda _, line: lines.append(line)) as log:
        assert sweep.run(config, workdir, units, note=lambda _: None, around=counted) == {}
    assert compiled[1:] == [0], lines[compiled[0] :]
    assert any(line.startswith("jit(decode_chunk): ") and "float32[" in line for line in lines)
    assert not (tmp_path / "partial" / units[0].name).exists()
    before = everything(tmp_path / "units")
    names = {name.removeprefix("tiny/A/seed_4/") for name in before if name.startswith("tiny/A/seed_4/")}
    assert names == {
        "done.json",
        "calibration/calibration.json",
        "calibration/calibration.safetensors",
        "calibration/responses.jsonl",
        "profile/profile.json",
        "profile/responses.jsonl",
    }

    # whole units are left alone
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "units").rglob("*") if p.is_file()}
    assert sweep.run(config, workdir, units, note=lambda _: None) == {}
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "units").rglob("*") if p.is_file()} == stamps

    def states() -> list[str]:
        return [found.state for _, found, _ in sweep.status(config, workdir, units)]

    assert states() == ["whole", "whole"]
    places = [tmp_path / "units" / unit.name for unit in units]
    (places[0] / "profile/profile.json").write_bytes(before["tiny/A/seed_4/profile/profile.json"][:-1])
    (places[1] / sweep.DONE).unlink()
    assert states() == ["damaged", "begun"]
    said: list[str] = []
    assert sweep.run(config, workdir, units, note=said.append) == {}
    assert "tiny/A/seed_4: made again: profile/profile.json has" in said[0]
    assert everything(tmp_path / "units") == before

    flipped = bytearray(before["tiny/A/seed_5/calibration/calibration.safetensors"])
    flipped[-1] ^= 1
    (places[1] / "calibration/calibration.safetensors").write_bytes(flipped)
    (places[0] / sweep.DONE).write_text("{}")
    assert states() == ["damaged", "damaged"]
    reasons = [found.reason for _, found, _ in sweep.status(config, workdir, units)]
    assert "checksum of calibration/calibration.safetensors" in reasons[1]
    assert "done.json" in reasons[0]
    table = sweeps.status_table(list(sweep.status(config, workdir, units)))
    assert table.endswith("2 units: 2 damaged")
    assert sweep.run(config, workdir, units, note=said.append) == {}
    assert everything(tmp_path / "units") == before

    # another config is not mixed in
    config.models.tiny.profile_tokens = 5
    with pytest.raises(UserError, match="was made with profile_tokens = 6, and this sweep has 5"):
        sweep.run(config, workdir, units)
    assert everything(tmp_path / "units") == before


class Bucket(LocalFileSystem):
    """A stand-in of the backend of gs://: objects are files of a folder, and there is no rename."""

    folder = ""
    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path)
        return cls.folder + "/" + path.removeprefix("gs://") if path.startswith("gs://") else path

    def mv(self, *_, **__):
        raise AssertionError("a bucket has no rename")

    rename = move = mv_file = mv


def test_a_bucket_gets_what_a_folder_gets(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "folder", str(tmp_path / "cloud"))
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    bucket = epath.Path("gs://ours/sweeps/one")
    config = tiny_sweep(files, seeds=(0,), scratch=str(tmp_path / "scratch"), states=True)
    units = sweep.units(config)
    assert [found.state for _, found, _ in sweep.status(config, bucket, units)] == ["missing"]
    assert sweep.run(config, bucket, units, note=lambda _: None) == {}
    ((_, found, _),) = sweep.status(config, bucket, units)
    assert found.state == "whole"
    config.scratch = ""
    assert sweep.run(config, epath.Path(tmp_path / "local"), units, note=lambda _: None) == {}
    there = everything(tmp_path / "cloud/ours/sweeps/one/units")
    assert there == everything(tmp_path / "local" / "units")
    assert any(name.endswith("calibration/states.safetensors") for name in there)

    (tmp_path / "cloud/ours/sweeps/one/units" / units[0].name / "profile/profile.json").write_bytes(b"{}")
    config.scratch = str(tmp_path / "scratch")
    said: list[str] = []
    assert sweep.run(config, bucket, units, note=said.append) == {}
    assert "made again" in said[0]
    assert everything(tmp_path / "cloud/ours/sweeps/one/units") == there
    config.scratch = ""
    with pytest.raises(UserError, match=r"--config\.scratch="):
        sweep.run(config, bucket, units)


def test_the_script(files, tmp_path, monkeypatch, capsys):
    """One model that cannot be loaded does not keep the others from being measured; --status makes nothing."""
    model, bank = files
    (tmp_path / "config.py").write_text(
        "from mood_jax.studies.config import study_config\n"
        "from mood_jax.studies.sweep import sweep_config\n"
        "def get_config():\n"
        f"    options = dict(bank={str(bank)!r}, dtype='float32', calibration_tokens=6, profile_tokens=6,\n"
        "                   axes=('loud_quiet',), random_weights=False)\n"
        f"    return sweep_config({{'broken': study_config({str(tmp_path / 'nothing')!r}, **options),\n"
        f"                          'tiny': study_config({str(model)!r}, **options)}})\n"
    )
    flags = (f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'work'}")
    shown = in_this_process(monkeypatch, capsys, "sweep", *flags, "--status")
    assert (shown.status, shown.err) == (0, "")
    assert "2 units: 2 missing" in shown.out
    assert not (tmp_path / "work").exists()

    made = in_this_process(monkeypatch, capsys, "sweep", *flags)
    assert made.status == 2
    assert made.err.strip().splitlines()[-1].startswith("error: 1 of 2 units could not be made; broken/A/seed_0: ")
    assert "2/2 tiny/A/seed_0: done" in made.out
    assert (tmp_path / "work" / "compiled.txt").read_text().count("jit(read_prompts)") > 0

    part = in_this_process(monkeypatch, capsys, "sweep", *flags, "--shard=1/2")
    assert (part.status, part.err) == (0, "")
    assert "1/1 tiny/A/seed_0: whole" in part.out
    assert "1 units: 1 whole" in part.out
    assert "tiny loud_quiet" in part.out
    record = json.loads((tmp_path / "work/units/tiny/A/seed_0/done.json").read_text())
    assert record["settings"]["model"] == str(model)
    assert set(record["summary"]["axes"]) == {"loud_quiet"}


def test_other_scripts_refuse_a_bucket(monkeypatch, capsys):
    outcome = in_this_process(monkeypatch, capsys, "calibrate", "--config=configs/embedded.py", "--workdir=gs://a/b")
    assert "--workdir=gs://a/b is a bucket" in outcome.line
