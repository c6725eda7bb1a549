"""Parameters as they lie on their devices, kept with Orbax, so that the next start converts nothing.

An entry belongs to a fingerprint (config and sampled digest of every tensor, which loading makes anyway) and a dtype,
and may be restored onto any mesh. Since a digest is of a sample, the entry also knows the files it was made of: where
they were written again, it is made again, even if the sample is the same. Its record, about.json, is written last: the
size of every file of Orbax' and a checksum of every parameter. An entry without it, or with anything that differs, is
named on stderr and made again, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.sharding import Mesh

from mood_jax.models.sharding import param_sharding

RECORD = "about.json"
FORMAT = 2  # of the entries, and of how HF tensors become parameters: other numbers, other entries


@dataclass(frozen=True)
class Entry:
    """A place in the cache, and what belongs there."""

    folder: Path
    key: dict[str, Any]


def entry(cache: str | Path, fingerprint: str, files: Iterable[Path], dtype: str) -> Entry:
    """The place of the parameters of a fingerprint in `dtype`, and what is known of the files they come from."""
    key = {"format": FORMAT, "dtype": dtype, "fingerprint": fingerprint}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    written = [_written(f) for f in sorted(set(files))]
    return Entry(Path(cache).expanduser().absolute() / name, key | {"files": written})


def _written(file: Path) -> list[Any]:
    """What changes when a file is written: no tool can set the time of the last change of its inode back."""
    about = file.stat()
    return [file.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def restored(
    place: Entry,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
    load: Callable[[], dict[str, jax.Array]],
) -> dict[str, jax.Array]:
    """The parameters by path from their entry, or as `load` gives them, which then makes it."""
    found = restore(place, shapes, mesh)
    if found is None:
        found = load()
        save(place, found)
    return found


def restore(place: Entry, shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.Array] | None:
    """The parameters by path, straight to their shards; None where there are none."""
    if not place.folder.is_dir():
        return None
    wanted = {
        path: jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=param_sharding(mesh, path, like.shape))
        for path, like in shapes.items()
    }
    try:
        about = json.loads((place.folder / RECORD).read_text(encoding="utf-8"))
        if about["key"] != place.key:
            raise ValueError("the checkpoint's files were written again")
        if about["sizes"] != _sizes(place.folder):
            raise ValueError("a file is missing or has another size")
        arguments = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted))
        with _checkpointer() as orbax:
            params = dict(orbax.restore(place.folder, arguments))
        sums = _checksums(params)
        if broken := [path for path in shapes if sums[path] != about["checksums"][path]]:
            raise ValueError(f"the checksum of {broken[0]} differs")
        return params
    except Exception as e:  # whatever Orbax and TensorStore make of a damaged entry
        reason = " ".join(str(e).split())[:160]
        print(f"{place.folder} is made again: {type(e).__name__}: {reason}", file=sys.stderr, flush=True)
        shutil.rmtree(place.folder, ignore_errors=True)
        return None


def save(place: Entry, params: Mapping[str, jax.Array]) -> None:
    """Makes the entry; where it cannot be written, a line on stderr says so."""
    about = {"key": place.key, "checksums": _checksums(params)}
    try:
        with _checkpointer() as orbax:
            orbax.save(place.folder, ocp.args.PyTreeSave(dict(params)))
        record = json.dumps(about | {"sizes": _sizes(place.folder)}, sort_keys=True)
        temporary = place.folder / f".{RECORD}"
        with temporary.open("w", encoding="utf-8") as f:
            f.write(record)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(place.folder / RECORD)
    except Exception as e:  # a full disk, or another process that was faster; the parameters are there in any case
        reason = " ".join(str(e).split())[:160]
        print(f"the parameters are not kept in {place.folder}: {reason}", file=sys.stderr, flush=True)


def _sizes(folder: Path) -> dict[str, int]:
    """Of all files but the record."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name.removeprefix(".") != RECORD)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _checkpointer() -> ocp.Checkpointer:
    # Trained weights hardly compress, and it takes longer than reading them.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _checksums(params: Mapping[str, jax.Array]) -> dict[str, int]:
    """Of every parameter, the sum of its bits in 32 bits; a number changed, lost or set to 0 shows. The order of
    summation does not matter, so any mesh gives the same."""
    sums = {path: (_host_sum if _on_this_host(x) else _device_sum)(x) for path, x in params.items()}
    return {path: int(np.asarray(x)) for path, x in sums.items()}


def _on_this_host(x: jax.Array) -> bool:
    return x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())


def _host_sum(x: jax.Array) -> int:
    """As `_device_sum`, of a CPU's memory as it lies there: at the speed of reading it, and nothing to compile."""
    kind = np.uint16 if x.dtype.itemsize == 2 else np.uint32
    shards = (np.asarray(s.data) for s in x.addressable_shards if s.replica_id == 0)
    total = sum(int(np.ascontiguousarray(s).reshape(-1).view(kind).sum(dtype=np.uint32)) for s in shards)
    return total & 0xFFFFFFFF


@jax.jit
def _device_sum(x: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)
    return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)
