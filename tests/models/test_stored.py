"""Reading parts of stored tensors against NumPy's slices of the whole, and the memory that loading takes."""

from __future__ import annotations

import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mood_jax.models import stored
from mood_jax.models.checkpoint import load_checkpoint
from tests.parity.hf_models import save, tiny

KINDS = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: np.dtype(k).name)
def test_parts_are_slices_of_the_whole(kind, tmp_path, rng, monkeypatch):
    shape = (11, 6, 4)
    whole = rng.standard_normal(shape).astype(kind)
    file = tmp_path / "model.safetensors"
    save_file({"first": rng.standard_normal(3), "x": whole.reshape(66, 4)}, file)
    monkeypatch.setattr(stored, "PIECE", int(rng.integers(1, 4 * whole.nbytes)))  # from one row to all of them
    with stored.open_tensors(file) as there:
        x = there["x"]
        assert (x.shape, x.dtype, x.digest()) == ((66, 4), whole.dtype, stored.digest(whole.reshape(66, 4)))
        for dtype in (np.float32, ml_dtypes.bfloat16):
            rows = sorted(rng.choice(12, 4, replace=False))
            bounds = [((rows[0], rows[1]), (0, 6), (0, 4)), ((rows[2], rows[3]), (0, 6), (0, 4))]
            columns = [((0, 11), (0, 3), (0, 4)), ((0, 11), (3, 6), (1, 3)), ((rows[1], rows[3]), (2, 5), (0, 4))]
            for chosen in (bounds, columns, [((0, 11), (0, 6), (0, 4))]):
                parts = x.parts(shape, np.dtype(dtype), chosen)
                for part, b in zip(parts, chosen, strict=True):
                    want = whole[tuple(slice(*r) for r in b)].astype(dtype)
                    np.testing.assert_array_equal(part, want)
                    assert part.dtype == dtype
                    assert part.ctypes.data % stored.ALIGNMENT == 0


def test_two_tensors_are_compared_number_by_number(tmp_path, rng, monkeypatch):
    x = rng.standard_normal((5, 7), dtype=np.float32)
    y = x.copy()
    y[rng.integers(5), rng.integers(7)] += 1
    save_file({"x": x, "same": x.copy(), "other": y, "turned": x.reshape(7, 5)}, tmp_path / "a")
    monkeypatch.setattr(stored, "PIECE", 16)
    with stored.open_tensors(tmp_path / "a") as there:
        assert there["x"].equals(there["same"])
        assert not there["x"].equals(there["other"])
        assert not there["x"].equals(there["turned"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_that_are_not_finite(dtype, rng, monkeypatch):
    monkeypatch.setattr(stored, "CHECKED", 8)
    x = (rng.standard_normal((7, 5)) * 1e30).astype(jax.numpy.dtype(dtype))
    x[0, 0], x[0, 1] = jax.numpy.finfo(dtype).max, jax.numpy.finfo(dtype).min
    assert stored.is_finite(x)
    for value in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y.reshape(-1)[rng.integers(35)] = value
        assert not stored.is_finite(y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_host_memory_holds_the_parameters_once(dtype, tmp_path, monkeypatch):
    """What NumPy allocates while a checkpoint of 32 MB in float32 is loaded; scripts/benchmark_loading.py asks the
    system, with gigabytes."""
    model, _ = tiny("llama", hidden_size=512, intermediate_size=1024, num_hidden_layers=4)
    save(model, tmp_path, shards=2)
    largest = max(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(stored, "PIECE", 1 << 19)
    load_checkpoint(str(tmp_path), dtype=dtype)  # what is compiled stays
    tracemalloc.start()
    try:
        found = load_checkpoint(str(tmp_path), dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = found.config.n_params * np.dtype(found.params["embedding"].dtype).itemsize
    assert largest > 10e6
    assert peak <= 1.25 * max(held, largest)
