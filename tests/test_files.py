"""Paths as users write them, and a remedy for every way in which the file system refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mood_jax import artifacts, files
from mood_jax.errors import UserError


def test_a_home_is_expanded_at_the_beginning_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, wanted in {
        "~": "/home/me",
        "~/a/~b": "/home/me/a/~b",
        "a/~": "a/~",
        "": "",
        "gs://b/~x": "gs://b/~x",
    }.items():
        assert files.expanded(given) == wanted


@pytest.mark.parametrize("path", ["~nobody_of_this_name/x", "~nobody_of_this_name"])
def test_a_home_that_is_not_there(path):
    with pytest.raises(UserError, match=r"no home folder is known for ~nobody_of_this_name"):
        files.expanded(path)


def test_no_home_at_all(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"~/x: no home folder is known for ~; write the path without it, or set HOME"):
        files.expanded("~/x")


REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "quota",
    errno.EFBIG: "ulimit",
    errno.EROFS: "read-only",
    errno.EACCES: "permissions",
    errno.EPERM: "permissions",
    errno.ENOTDIR: "a file stands where a folder",
    errno.EEXIST: "a file stands where a folder",
    errno.EISDIR: "a folder stands where a file",
    errno.ENAMETOOLONG: "too long",
    errno.EMFILE: "ulimit -n",
    errno.EIO: "the disk fails",
    errno.ENXIO: "check the file and its disk",
}


@pytest.mark.parametrize("number", REMEDIES)
def test_every_reason_has_its_remedy(monkeypatch, tmp_path, number):
    """In a failed write too, which leaves nothing behind."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError) as caught:
        artifacts.write_bytes(tmp_path / "a.json", b"x")
    assert f"a.json could not be written ({os.strerror(number)}); " in str(caught.value)
    assert REMEDIES[number] in str(caught.value)
    assert not list(tmp_path.iterdir())


def blocked(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return {
        "file": (tmp_path / "file", "it is a file; name a folder"),
        "below a file": (tmp_path / "file" / "x" / "y", "file is a file; name a folder"),
        "broken link": (tmp_path / "link", "is a link to nothing"),
        "below a broken link": (tmp_path / "link" / "x", "is a link to nothing"),
        "circle": (tmp_path / "a" / "x", "link to nothing|circle"),
        "long": (tmp_path / ("x" * 300) / "y", "File name too long.*shorter path"),
    }


@pytest.mark.parametrize("kind", ["file", "below a file", "broken link", "below a broken link", "circle", "long"])
def test_a_folder_that_cannot_be_written_to(tmp_path, kind):
    folder, said = blocked(tmp_path)[kind]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=said):
        files.check_folder(folder)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_refuses(monkeypatch, tmp_path, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match=REMEDIES[number]):
        files.check_folder(tmp_path / "run")


def test_a_good_folder_is_left_as_it_is(tmp_path):
    files.check_folder(tmp_path)
    files.check_folder(tmp_path / "x" / "y")
    assert not list(tmp_path.iterdir())
