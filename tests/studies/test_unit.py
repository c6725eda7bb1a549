"""The file of a unit: no bit of it can change, and no byte be lost or added, without being seen. No model is needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from mood_jax import artifacts
from mood_jax.errors import UserError
from mood_jax.studies import origin, unit

MADE_FROM = {
    "model": {"fingerprint": "0" * 64, "name": "é 漢字"},
    "protocol": {"seed": 0, "sampler": {"kind": "top_p", "p": 0.9}},
    "settings": {"axes": ["a", "b"]},
}


def written(path: Path, rng: np.random.Generator, dtype=np.float32, n: int = 3, conditions=unit.CONDITIONS) -> bytes:
    records = [{"id": f"q{k}|x|0", "text": "said 漢字\u2028", "tokens": [k, 2], "seed": 0} for k in range(n)]
    states = {c: rng.standard_normal((n, 2, 1, 5)).astype(dtype) for c in conditions}
    unit.write(path, records, states, MADE_FROM)
    return path.read_bytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("conditions", [unit.CONDITIONS[:1], unit.CONDITIONS[:2], unit.CONDITIONS])
def test_it_comes_back_and_the_same_content_is_the_same_bytes(tmp_path, seed, dtype, conditions):
    path = tmp_path / "a.safetensors"
    data = written(path, np.random.default_rng(seed), dtype, conditions=conditions)
    assert written(tmp_path / "b.safetensors", np.random.default_rng(seed), dtype, conditions=conditions) == data
    assert unit.verify(path) == MADE_FROM
    records, states = unit.read(path)
    assert [r["id"] for r in records] == ["q0|x|0", "q1|x|0", "q2|x|0"]
    assert (tuple(states), {s.dtype for s in states.values()}) == (tuple(conditions), {np.dtype(dtype)})
    rng = np.random.default_rng(seed)
    for values in states.values():
        np.testing.assert_array_equal(values, rng.standard_normal((3, 2, 1, 5)).astype(dtype))


def test_the_checksum_is_that_of_the_file_with_its_own_digits_as_zeros(tmp_path, rng):
    """Computed here as the format is described, by other means."""
    data = written(tmp_path / "a.safetensors", rng)
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert list(metadata) == ["unit"]
    about = json.loads(metadata["unit"])
    said = about["sha256"]
    assert data.count(said.encode()) == 1
    assert hashlib.sha256(data.replace(said.encode(), b"0" * 64)).hexdigest() == said


def test_every_byte_counts(tmp_path, rng):
    """One bit of every byte."""
    path = tmp_path / "a.safetensors"
    data = written(path, rng, ml_dtypes.bfloat16, n=1, conditions=unit.CONDITIONS[:1])
    assert len(data) < 1000
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"a\.safetensors"):
            unit.verify(path)


def test_every_length_counts(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    data = written(path, rng)
    shorter = [data[:n] for n in (*range(12), *rng.integers(12, len(data), 100), len(data) - 1)]
    for changed in [*shorter, data + b"\0", data + data, data[1:], data[8:], bytes(len(data)), b"\xff" * len(data)]:
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"a\.safetensors"):
            unit.verify(path)


def test_parts_of_two_units_do_not_make_one(tmp_path, rng):
    """Header of one and data of the other, whatever the size."""
    a, b = (written(tmp_path / name, rng) for name in ("a", "b"))
    start = 8 + int.from_bytes(a[:8], "little")
    assert len(a) == len(b)
    for mixed in (a[:start] + b[start:], b[:start] + a[start:], a[: start + 16] + b[start + 16 :]):
        (tmp_path / "c").write_bytes(mixed)
        with pytest.raises(UserError, match="checksum differs"):
            unit.verify(tmp_path / "c")


def test_earlier_versions_and_other_files_are_no_units(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    states = rng.standard_normal((1, 2)).astype(np.float32)
    records = np.frombuffer(b'[{"id": "x"}]', np.uint8)
    for metadata in (None, {"format": "pt"}):
        artifacts.write_tensors(path, {"states.in_context": states, "records": records}, metadata)
        with pytest.raises(UserError, match="does not say what it was made from"):
            unit.verify(path)
    for text in (
        "3",
        "[]",
        "{}",
        "{",
        '{"sha256": 3, "made_from": {}}',
        '{"sha256": "", "made_from": {}, "format": 2}',
    ):
        artifacts.write_tensors(path, {"states.in_context": states, "records": records}, {"unit": text})
        with pytest.raises(UserError, match="is damaged"):
            unit.verify(path)
    with pytest.raises(UserError, match="no such file"):
        unit.verify(tmp_path / "nothing")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_states_that_are_not_finite_are_found(tmp_path, rng, bad, dtype):
    states = rng.standard_normal((4, 3, 2, 7)).astype(dtype)
    unit.check_finite(tmp_path, {"re_read": states, "in_context": states[:0]})
    states[tuple(rng.integers(states.shape))] = bad
    with pytest.raises(UserError, match="holds re_read states that are not finite"):
        unit.check_finite(tmp_path, {"re_read": states})


def paths_of(value: dict, prefix: tuple = ()) -> list[tuple]:
    found = []
    for key, inner in value.items():
        found += paths_of(inner, (*prefix, key)) if isinstance(inner, dict) else [(*prefix, key)]
    return found


def changed_at(value: dict, path: tuple, to: object) -> dict:
    first, *rest = path
    return value | {first: changed_at(value[first], tuple(rest), to) if rest else to}


@pytest.mark.parametrize("path", paths_of(MADE_FROM), ids=".".join)
@pytest.mark.parametrize("to", [1, "another", None, ["a"], {"x": 1}], ids=str)
def test_whatever_differs_is_named(path, to):
    origin.refuse_other("unit", MADE_FROM, json.loads(json.dumps(MADE_FROM)))
    other = changed_at(MADE_FROM, path, to)
    with pytest.raises(UserError) as caught:
        origin.refuse_other("unit", MADE_FROM, other)
    assert str(caught.value).startswith(f"unit was made with {'.'.join(path)}")
    assert str(caught.value).endswith("use another --workdir, or the first command's settings")
