"""Settings of JAX: those that change draws are refused by name, those that change numbers by rounding are recorded."""

from __future__ import annotations

import re
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.generation.sampling import response_keys
from tests.studies.tiny import ROOT

OTHERS = {
    "jax_threefry_partitionable": [False],
    "jax_enable_x64": [True],
    "jax_random_seed_offset": [1, -7, 2**20],
    "jax_numpy_dtype_promotion": ["strict"],
    "jax_explicit_x64_dtypes": ["allow"],
}


@contextmanager
def setting(name, value):
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def test_every_setting_that_is_fixed_has_its_test():
    assert set(OTHERS) == {*numerics.FIXED, *numerics.FIXED_ALLOWED}
    numerics.check_flags()


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in OTHERS.items() for v in values])
def test_draws_under_another_setting_are_refused_by_its_name(name, value):
    before = response_keys(3, ["a", "b"])
    with setting(name, value):
        for call in (numerics.check_flags, lambda: numerics.key(3), lambda: response_keys(3, ["a", "b"])):
            with pytest.raises(UserError, match=rf"^{name} is .*unset {name.upper()}, or call jax\.config\.update"):
                call()
    np.testing.assert_array_equal(response_keys(3, ["a", "b"]), before)


@pytest.mark.parametrize("context", [jax.enable_x64(True), jax.threefry_partitionable(False)])
def test_a_context_counts_as_a_setting(context):
    with context, pytest.raises(UserError, match="unset JAX_"):
        numerics.key(0)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_the_default_kind_of_key_changes_nothing(implementation):
    before = jax.random.key_data(numerics.key(5)), response_keys(5, ["a"])
    with setting("jax_default_prng_impl", implementation):
        after = jax.random.key_data(numerics.key(5)), response_keys(5, ["a"])
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "seed", [-1, -(2**63), 2**32, 2**32 + 1, 2**63, 10**30, 1.0, np.nan, True, "1", None, [1], b"1"]
)
def test_a_seed_that_jax_would_cut_or_convert_is_refused(seed):
    with pytest.raises(UserError, match=r"seed is .*; use a whole number from 0 to 4294967295"):
        numerics.key(seed)


def test_seeds_of_every_integer_type_are_one(rng):
    for seed in (0, 2**31, 2**32 - 1, *rng.integers(0, 2**32, 20)):
        same = [jax.random.key_data(numerics.key(kind(seed))) for kind in (int, np.int64, np.uint64, np.uint32)]
        assert all((np.asarray(k) == np.asarray(same[0])).all() for k in same)
    assert len({bytes(np.asarray(jax.random.key_data(numerics.key(s)))) for s in (0, 1, 2**31, 2**32 - 1)}) == 4


def test_keys_are_made_in_one_place():
    for path in (ROOT / "mood_jax").rglob("*.py"):
        if path.name != "numerics.py":
            text = path.read_text(encoding="utf-8")
            made = re.findall(r"jax\.random\.(?:key|PRNGKey)\((?!0\))", text)
            assert not made, f"{path}: make keys with numerics.key"


def test_nothing_is_recorded_under_the_usual_settings(monkeypatch):
    for name in numerics.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert numerics.recorded() == {}
    for idle in ("--xla_dump_to=/tmp/x", "--xla_force_host_platform_device_count=8 --xla_dump_hlo_as_text", "  "):
        monkeypatch.setenv("XLA_FLAGS", idle)
        assert numerics.recorded() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_default_matmul_precision", "highest"),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_disable_most_optimizations", True),
        ("jax_allow_f16_reductions", False),
        ("jax_exec_time_optimization_effort", -0.5),
        ("jax_disable_jit", True),
    ],
)
def test_a_setting_that_changes_rounding_is_recorded(monkeypatch, name, value):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with setting(name, value):
        assert numerics.recorded() == {"flags": {name: value}}
    assert numerics.recorded() == {}


def test_flags_of_xla_are_recorded_whatever_their_order(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=2 --xla_dump_to=x --xla_a=1 --xla_b=3")
    first = numerics.recorded()
    assert first == {"flags": {"XLA_FLAGS": "--xla_a=1 --xla_b=3"}}
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_b=3 --xla_force_host_platform_device_count=2")
    assert numerics.recorded() == first
    monkeypatch.setenv("XLA_FLAGS", "--xla_a='1")
    assert numerics.recorded() == {"flags": {"XLA_FLAGS": "--xla_a='1"}}
