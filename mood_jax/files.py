"""Paths as users write them, and what to do when the file system refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from mood_jax.errors import UserError

AGAIN = "then run the same command again"
_REMEDIES = {
    errno.ENOSPC: f"make room on that disk, {AGAIN}",
    errno.EDQUOT: f"make room within your quota, {AGAIN}",
    errno.EFBIG: f"make room: the limit on a file's size is reached (ulimit -f); raise it, {AGAIN}",
    errno.EROFS: "the file system is read-only; name a folder on another one",
    errno.EACCES: "you may not write or read there; name a folder of your own, or change its permissions",
    errno.EPERM: "you may not write or read there; name a folder of your own, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is wanted; name another folder",
    errno.EEXIST: "a file stands where a folder is wanted; name another folder",
    errno.EISDIR: "a folder stands where a file is wanted; name another one, or move it away",
    errno.ENAMETOOLONG: "the name is too long; name a shorter path",
    errno.ELOOP: "its links lead in a circle; name another path",
    errno.ENOENT: "check the path",
    errno.EMFILE: f"too many files are open; raise the limit (ulimit -n), {AGAIN}",
    errno.ENFILE: f"too many files are open on this machine; close some, {AGAIN}",
    errno.ENOMEM: f"the memory is full; free some, {AGAIN}",
    errno.EBUSY: f"another program holds it; wait for it, {AGAIN}",
    errno.ETXTBSY: f"another program holds it; wait for it, {AGAIN}",
    errno.EIO: f"the disk fails; check it, {AGAIN}",
    errno.ESTALE: f"the network folder has gone; mount it again, {AGAIN}",
    errno.EPIPE: "the program that read this one's output has ended; write to a file instead",
}


def reason(e: OSError) -> str:
    """What the system says, in words: the text of the error itself, since a library may say more than its number."""
    return e.strerror or str(e) or type(e).__name__


def remedy(e: OSError) -> str:
    """What to do about it."""
    return _REMEDIES.get(e.errno or 0, f"check the file and its disk, {AGAIN}")


def expanded(path: str | os.PathLike[str]) -> str:
    """`~` and `~name` at the beginning of a path → the home folder; every other text as it is.

    Raises UserError where there is no such home: the path would be a folder called `~` in the current one.
    """
    path = os.fspath(path)
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        whose = path.partition("/")[0]
        raise UserError(f"{path}: no home folder is known for {whose}; write the path without it, or set HOME")
    return found


def check_folder(folder: Path, flag: str = "--workdir") -> None:
    """Raises UserError where a run could not write to this folder, before it has done anything.

    The folder may be missing, and is not made: the nearest one above it that is there is tried with an empty file.
    """
    try:
        there = folder.absolute()
        while not _is_there(there):
            there = there.parent
        if not there.exists():
            raise UserError(f"{flag}={folder}: {there} is a link to nothing; remove it or name another folder")
        if not there.is_dir():
            what = "it" if there == folder.absolute() else str(there)
            raise UserError(f"{flag}={folder}: {what} is a file; name a folder")
        descriptor, name = tempfile.mkstemp(prefix=".mood_jax_", dir=there)
        try:
            os.write(descriptor, b"\0")
        finally:
            os.close(descriptor)
            os.unlink(name)
    except OSError as e:
        raise UserError(f"{flag}={folder} cannot be written to ({reason(e)}); {remedy(e)}") from e


def _is_there(path: Path) -> bool:
    """As os.path.lexists, which takes a name that is too long for one that is missing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def own_streams() -> None:
    """File descriptors 0, 1 and 2 are there: where one was closed, the next file that is opened would get its number,
    and what libraries print would be written into it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
