"""One table: logical axis → mesh axis. Everything that is placed on devices is placed from here.

The mesh has two axes, `data` (batch rows) and `model` (heads, feed-forward, vocabulary). A dimension that its mesh axis
does not divide is replicated: six heads on four devices stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mood_jax import processes
from mood_jax.errors import UserError

RULES: dict[str, str | None] = {
    "batch": "data",
    "heads": "model",
    "kv_heads": "model",
    "ff": "model",
    "vocab": "model",
    "embed": None,
    "head": None,
}

# A parameter's last path element → its logical axes.
PARAM_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "embed"),
    "unembedding": ("vocab", "embed"),
    "scale": ("embed",),
    "q": ("heads", "head", "embed"),
    "k": ("kv_heads", "head", "embed"),
    "v": ("kv_heads", "head", "embed"),
    "o": ("embed", "heads", "head"),
    "q_bias": ("heads", "head"),
    "k_bias": ("kv_heads", "head"),
    "v_bias": ("kv_heads", "head"),
    "o_bias": ("embed",),
    "gate": ("ff", "embed"),
    "up": ("ff", "embed"),
    "down": ("embed", "ff"),
    "gate_bias": ("ff",),
    "up_bias": ("ff",),
    "down_bias": ("embed",),
}

CACHE_AXES = ("batch", "kv_heads", None, None)  # K and V differ in the order of the last two


def make_mesh(data: int = 1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of data × model devices, those of one process next to each other along `model`.

    Raises UserError when there are not as many, or when a process would have no device in it.
    """
    devices = processes.devices() if devices is None else list(devices)
    if data * model > len(devices) or data < 1 or model < 1:
        raise UserError(f"a mesh of {data} × {model} needs {data * model} devices, and {len(devices)} are here")
    taking_part = {d.process_index for d in devices[: data * model]}
    if len(taking_part) < processes.count():
        raise UserError(
            f"a mesh of {data} × {model} leaves out all devices of {processes.count() - len(taking_part)} of the "
            f"{processes.count()} processes; set config.mesh_data and config.mesh_model so that their product is "
            f"{len(devices)}, or start fewer processes"
        )
    return Mesh(np.asarray(devices[: data * model]).reshape(data, model), ("data", "model"))


def sharding(mesh: Mesh | AbstractMesh, shape: Sequence[int], axes: Sequence[str | None]) -> NamedSharding:
    """The placement of an array whose dimensions have these logical names."""
    spec = []
    for size, axis in zip(shape, axes, strict=True):
        mesh_axis = RULES[axis] if axis is not None else None
        spec.append(mesh_axis if mesh_axis is not None and size % mesh.shape[mesh_axis] == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def param_sharding(mesh: Mesh | AbstractMesh, path: str, shape: Sequence[int]) -> NamedSharding:
    """The placement of the parameter at `path` ("block_0/attention/q")."""
    return sharding(mesh, shape, PARAM_AXES[path.rpartition("/")[2]])


def cache_sharding(n_kv_heads: int, mesh: Mesh) -> NamedSharding | None:
    """The placement of every array of a cache whose rows the mesh divides; None on a mesh of one device."""
    return None if mesh.size == 1 else sharding(mesh, (mesh.shape["data"], n_kv_heads, 1, 1), CACHE_AXES)


def batch_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Rows over `data`, everything else whole."""
    return sharding(mesh, shape, ("batch", *(None,) * (len(shape) - 1)))


def put(x: np.ndarray | jax.Array, placement: NamedSharding) -> jax.Array:
    """An array of the host, which every process has whole, to its devices; each takes its own part."""
    if placement.is_fully_addressable:
        return jax.device_put(x, placement)
    return jax.make_array_from_callback(x.shape, placement, lambda index: x[index])


def to_host(x: jax.Array) -> np.ndarray:
    """A device array as NumPy's, whole in every process. For tokens, counts and reduced states, which are small: parts
    that other processes hold travel over the network."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def spans_processes(mesh: Mesh) -> bool:
    """Are there devices of other processes in it?"""
    return len({d.process_index for d in mesh.devices.flat}) > 1
