"""What is kept on disk: written whole or not at all, the same bytes again, and one clear line for a damaged file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mood_jax import artifacts
from mood_jax.artifacts import AxisNames, AxisProfile, Calibration, Profile
from mood_jax.errors import UserError
from mood_jax.probes import Scaling
from mood_jax.readout import preset

MODEL = {"name": "tiny", "fingerprint": "f" * 32}


@pytest.fixture
def calibration(rng) -> Calibration:
    values = [rng.standard_normal(2).astype(np.float32) for _ in range(4)]
    flags = [np.array([True, False]), np.array([True, True])]
    again = [*(rng.standard_normal(2).astype(np.float32) for _ in range(2)), np.array([False, True])]
    return Calibration(
        axes=(AxisNames("warm_cold", "warm", "cold"), AxisNames("formal_casual", "formal", "casual")),
        readout=preset("last4", 9),
        directions=rng.standard_normal((2, 6)).astype(np.float32),
        site_rms=rng.uniform(1, 2, 4).astype(np.float32),
        scaling=Scaling(*values, *flags, *again),
        evidence=({"re_read": {"auc": 0.1 + 0.2}, "verdict": "real"}, {"re_read": {"auc": 1 / 3}, "verdict": "dead"}),
        identity={"model": MODEL, "protocol": {"seed": 3, "readout": "last4: … of é"}},
    )


@pytest.fixture
def profile(rng, calibration) -> Profile:
    def axis(k: int) -> AxisProfile:
        scores = {s: rng.standard_normal(5).astype(np.float32) for s in ("raw", "iqr", "article", "pole")}
        summary = {s: {"mean": 0.1 * k, "sd": 1 / 3, "ci95": [-0.5, 0.7], "clip_rate": 0.2} for s in scores}
        return AxisProfile(calibration.axes[k], "pole", scores, summary, 0.01, 0.02, calibration.evidence[k])

    return Profile(
        axes=(axis(0), axis(1)),
        question_ids=("profile/01", "profile/01", "profile/02", "profile/03", "profile/04"),
        n_tokens=(3, 1, 4, 1, 5),
        cut_share=0.4,
        notes=("one note",),
        identity={"model": MODEL},
    )


def same_calibration(a: Calibration, b: Calibration) -> None:
    assert (a.axes, a.readout, a.evidence, a.identity) == (b.axes, b.readout, b.evidence, b.identity)
    arrays = [(a.directions, b.directions), (a.site_rms, b.site_rms), *zip(a.scaling, b.scaling, strict=True)]
    for x, y in arrays:
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Writing


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    artifacts.write_bytes(path, b"one")
    artifacts.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["a.json"]


class FullFile:
    """A file on a full disk: takes half of what is written."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_fsync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_which(tmp_path, monkeypatch, where):
    path = tmp_path / "a.json"
    artifacts.write_bytes(path, b"the old content")
    if where == "write":
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda self, *a, **k: FullFile(opened(self, *a, **k)))
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", full_fsync)
    else:
        monkeypatch.setattr(Path, "replace", lambda self, target: full_fsync(0))
    with pytest.raises(UserError, match=r"a\.json could not be written \(No space left on device\)"):
        artifacts.write_bytes(path, b"something new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"the old content"
    assert names(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.json could not be written"):
        artifacts.write_bytes(tmp_path / "file" / "a.json", b"")


def test_what_a_killed_process_left_is_removed_with_the_next_write(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "a[1].json"  # not a pattern
    left = [f".a[1].json.{pid}.tmp" for pid in (dead.pid, os.getpid(), 10**30)]
    kept = [".a[1].json.1.tmp", f".b.json.{dead.pid}.tmp", f".a1.json.{dead.pid}.tmp"]  # process 1 lives
    for name in (*left, *kept):
        (tmp_path / name).write_bytes(b"half")
    artifacts.write_bytes(path, b"whole")
    assert names(tmp_path) == sorted([*kept, "a[1].json"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_json_never_holds_nan(tmp_path, bad):
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a.json", {"x": [bad]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_jsonl(tmp_path / "a.jsonl", [{"x": bad}])
    assert names(tmp_path) == []


def test_json_bytes_do_not_depend_on_the_order_of_keys():
    a, b = {"x": 1, "y": {"b": "é", "a": 0.1}}, {"y": {"a": 0.1, "b": "é"}, "x": 1}
    assert artifacts.json_bytes(a) == artifacts.json_bytes(b)
    assert json.loads(artifacts.json_bytes(a)) == a


def test_jsonl_keeps_every_text(tmp_path):
    texts = ["", "a\nb\r\nc", "é 漢 🙂", '"\\', "\u2028 \u2029 \x85 \x0b \x0c \x1c", "\x00 �"]
    records = [{"id": str(i), "text": t, "n": i} for i, t in enumerate(texts)]
    artifacts.write_jsonl(tmp_path / "a.jsonl", records)
    assert artifacts.read_jsonl(tmp_path / "a.jsonl") == records
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == len(records)
    artifacts.write_jsonl(tmp_path / "none.jsonl", [])
    assert artifacts.read_jsonl(tmp_path / "none.jsonl") == []


def test_tensors_keep_their_bits(tmp_path, rng):
    tensors = {
        "a": rng.standard_normal((3, 4)).astype(np.float32).T,  # not contiguous
        "b": np.array([True, False]),
        "c": np.frombuffer(b"bytes", np.uint8),
        "d": np.zeros((0, 2), np.float32),
    }
    artifacts.write_tensors(tmp_path / "a.safetensors", tensors)
    got = artifacts.read_tensors(tmp_path / "a.safetensors")
    assert set(got) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(got[name], value)
        assert got[name].dtype == value.dtype


# Reading what is damaged


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (artifacts.read_json, "a.json"),
        (artifacts.read_jsonl, "a.jsonl"),
        (artifacts.read_tensors, "a.safetensors"),
        (Profile.load, "profile.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path, read, name):
    with pytest.raises(UserError, match=rf"no such file: .*{name}"):
        read(tmp_path / name)


def test_a_truncated_file_is_named_whatever_is_missing(tmp_path):
    artifacts.write_tensors(tmp_path / "a.safetensors", {"x": np.arange(6, dtype=np.float32)})
    artifacts.write_json(tmp_path / "a.json", {"x": {"y": [1, 2]}})
    for name, read in (("a.safetensors", artifacts.read_tensors), ("a.json", artifacts.read_json)):
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole) - 2):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(UserError, match=rf"{name} is .*damaged"):
                read(tmp_path / name)


def test_a_damaged_line_is_named_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: not valid JSON"):
        artifacts.read_jsonl(path)
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl is damaged \(not UTF-8 at byte 7\)"):
        artifacts.read_jsonl(path)


# Work folders


def test_a_work_folder_belongs_to_the_settings_that_claimed_it(tmp_path):
    settings = {"seed": 0, "axes": ("warm_cold",), "protocol": {"tokens": 8}}
    artifacts.check_workdir(tmp_path, "calibrate", settings)
    assert names(tmp_path) == []
    artifacts.claim_workdir(tmp_path, "calibrate", settings)
    bytes_ = (tmp_path / "calibrate.json").read_bytes()
    artifacts.claim_workdir(tmp_path, "calibrate", settings)
    assert (tmp_path / "calibrate.json").read_bytes() == bytes_
    artifacts.claim_workdir(tmp_path, "measure", {"seed": 1})  # another study has a file of its own
    for other in (settings | {"protocol": {"tokens": 9}}, settings | {"new": 1}, {"seed": 0}):
        for refuse in (artifacts.check_workdir, artifacts.claim_workdir):
            with pytest.raises(UserError, match=r"was made with .* = .*, and this command has .*; use another --work"):
                refuse(tmp_path, "calibrate", other)
    assert (tmp_path / "calibrate.json").read_bytes() == bytes_
    (tmp_path / "calibrate.json").write_text("[]")
    with pytest.raises(UserError, match=r"calibrate\.json is damaged"):
        artifacts.check_workdir(tmp_path, "calibrate", settings)


# Calibrations


def test_a_calibration_comes_back_bit_for_bit(tmp_path, calibration):
    calibration.save(tmp_path / "a")
    loaded = Calibration.load(tmp_path / "a")
    same_calibration(calibration, loaded)
    loaded.save(str(tmp_path / "b"))
    for name in ("calibration.json", "calibration.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert names(tmp_path / "a") == ["calibration.json", "calibration.safetensors"]


def test_index_finds_an_axis_by_its_id(calibration):
    assert calibration.index("formal_casual") == 1
    with pytest.raises(UserError, match="unknown axis 'formal'; this calibration has warm_cold, formal_casual"):
        calibration.index("formal")


def test_no_calibration_in_a_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"holds no calibration\.json; make one with"):
            Calibration.load(folder)


def test_json_and_tensors_of_two_calibrations_do_not_go_together(tmp_path, calibration):
    calibration.save(tmp_path / "a")
    replace(calibration, directions=calibration.directions + 1).save(tmp_path / "b")
    os.replace(tmp_path / "b" / "calibration.safetensors", tmp_path / "a" / "calibration.safetensors")
    with pytest.raises(UserError, match="are of different runs; calibrate again"):
        Calibration.load(tmp_path / "a")
    with pytest.raises(UserError, match=r"no such file: .*calibration\.safetensors"):
        Calibration.load(tmp_path / "b")


def test_a_truncated_calibration_is_refused(tmp_path, calibration):
    calibration.save(tmp_path)
    for name in ("calibration.json", "calibration.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=rf"{name} is .*damaged"):
            Calibration.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    same_calibration(Calibration.load(tmp_path), calibration)


def damaged(record: dict) -> list[dict]:
    """The record without one of its fields, and with every field of another kind, at the first two levels."""
    found = []
    for key, value in record.items():
        if key == "format":
            continue
        found += [{k: v for k, v in record.items() if k != key}, record | {key: 3}]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found.append(record | {key: [3, *value[1:]]})
    return found


def test_a_calibration_with_a_part_missing_is_refused(tmp_path, calibration):
    calibration.save(tmp_path)
    path = tmp_path / "calibration.json"
    record = json.loads(path.read_text())
    spoilt = [*damaged(record), record | {"axes": record["axes"][:1]}, record | {"evidence": []}]
    kept = [r for r in spoilt if r.get("evidence") != [3, record["evidence"][1]]]  # a block is anything that JSON says
    assert len(kept) > 10
    for bad in kept:
        path.write_text(json.dumps(bad))
        with pytest.raises(UserError):
            Calibration.load(tmp_path)
    for bad in ("[]", "3", '"text"'):
        path.write_text(bad)
        with pytest.raises(UserError, match="damaged"):
            Calibration.load(tmp_path)
    path.write_text(json.dumps(record | {"format": artifacts.CALIBRATION_FORMAT - 1}))
    with pytest.raises(UserError, match="has format 1, not 2; calibrate again"):
        Calibration.load(tmp_path)


def test_a_failed_save_leaves_a_calibration_that_says_so(tmp_path, calibration, monkeypatch):
    calibration.save(tmp_path)
    other = replace(calibration, directions=calibration.directions + 1)
    write = artifacts.write_bytes

    def full_at_json(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            monkeypatch.setattr(os, "fsync", full_fsync)
        write(path, data)

    monkeypatch.setattr(artifacts, "write_bytes", full_at_json)
    with pytest.raises(UserError, match=r"calibration\.json could not be written"):
        other.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="of different runs"):  # never the directions of one with the axes of another
        Calibration.load(tmp_path)
    other.save(tmp_path)
    same_calibration(Calibration.load(tmp_path), other)


# Profiles


def test_a_profile_comes_back_bit_for_bit(tmp_path, profile):
    profile.save(tmp_path / "profile.json")
    loaded = Profile.load(str(tmp_path / "profile.json"))
    assert replace(loaded, axes=()) == replace(profile, axes=())
    for a, b in zip(loaded.axes, profile.axes, strict=True):
        assert replace(a, scores={}) == replace(b, scores={})
        assert a.scores.keys() == b.scores.keys()
        for scale, scores in b.scores.items():
            assert a.scores[scale].dtype == np.float32
            assert a.scores[scale].tobytes() == scores.tobytes()
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "profile.json").read_bytes()


def test_a_profile_is_asked_by_axis(profile):
    found = profile["formal_casual"]
    assert found.axis.positive == "formal"
    assert found.mean == found.summary["pole"]["mean"] == 0.1
    assert found.ci95 == (-0.5, 0.7)
    with pytest.raises(UserError, match="unknown axis 'warm'; this profile has warm_cold, formal_casual"):
        profile["warm"]


def test_a_damaged_profile_is_refused(tmp_path, profile):
    path = tmp_path / "profile.json"
    profile.save(path)
    record = json.loads(path.read_text())
    spoilt = damaged(record)
    spoilt += [record | {"axes": [a, record["axes"][1]]} for a in damaged(record["axes"][0]) if len(a) == 6]
    for bad in spoilt:
        path.write_text(json.dumps(bad))
        if bad.get("cut_share") == 3:
            continue  # a number as good as another
        with pytest.raises(UserError):
            Profile.load(path)
    path.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(UserError, match="is not a profile of format 1; measure again"):
        Profile.load(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        Profile.load(path)


def test_a_profile_with_nan_is_never_written(tmp_path, profile):
    first = profile.axes[0]
    bad = replace(first, scores=first.scores | {"raw": np.full(5, np.nan, np.float32)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(profile, axes=(bad, profile.axes[1])).save(tmp_path / "profile.json")
    assert names(tmp_path) == []
