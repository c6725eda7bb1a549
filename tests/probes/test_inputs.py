"""What public functions take, over kinds of containers, dtypes and values; and what they refuse, in one line."""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.probes import inputs

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint64)
CONTAINERS = {
    "array": lambda x: x,
    "jax": jnp.asarray,
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "generator": lambda x: (v for v in x.tolist()),
    "scalars": list,
    "view": lambda x: np.repeat(x, 2)[::2],
}
ODD = {
    "none": None,
    "none inside": [1.0, None],
    "nan": [1.0, math.nan],
    "inf": np.array([1.0, -math.inf], np.float16),
    "nan of jax": jnp.array([1.0, jnp.nan]),
    "text": "12",
    "texts": ["1", "2"],
    "number and text": [1, "2"],
    "array of texts": np.array(["1", "2"]),
    "bool": [True, False],
    "bool inside": [1.0, True],
    "array of bool": np.array([True, False]),
    "jax bool": jnp.array([True, False]),
    "complex": [1j, 2.0],
    "object": np.array([1, 2], object),
    "ragged": [[1, 2], [3]],
    "nested": [[1, 2], [3, 4]],
    "scalar": 3.0,
    "set": {1, 2},
    "mapping": {1: 2, 3: 4},
    "dates": np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "huge": [10**400, 1],
    "key": jax.random.key(0),
    "too few": [],
}


@pytest.mark.parametrize(("dtype", "container"), list(itertools.product(DTYPES, CONTAINERS)))
def test_numbers_are_taken_exactly(dtype, container):
    x = np.array([3, 0, 1, 7, 100], dtype)
    for take in (inputs.numbers, inputs.floats, inputs.floats32):
        got = take("x", CONTAINERS[container](x), least=5, rows=5)
        np.testing.assert_array_equal(got.astype(np.float64), x.astype(np.float64))
    assert inputs.floats("x", CONTAINERS[container](x)).dtype == np.float64
    assert inputs.floats32("x", CONTAINERS[container](x)).dtype == np.float32


def test_numbers_keep_their_own_digits():
    x = np.array([2**62, 2**62 + 1])
    np.testing.assert_array_equal(inputs.numbers("x", x), x)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("take", [inputs.numbers, inputs.floats, inputs.floats32, inputs.relative32])
def test_what_is_no_number_is_refused_in_one_line(odd, take):
    with pytest.raises(UserError, match=r"^x ") as error:
        take("x", ODD[odd], least=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("odd", [*ODD, "two", "half", "zero and one", "ones"])
def test_signs_are_minus_one_zero_and_one(odd):
    more = {"two": [1, -1, 2], "half": [-1, 1, 0.5], "zero and one": [0, 1, 1], "ones": [1, 1]}
    with pytest.raises(UserError, match=r"^sign "):
        inputs.signs({**ODD, **more}[odd])


def test_signs():
    for x in ([1, -1, 0], np.array([1.0, -1, 0], np.float16), jnp.array([1, -1, 0]), (v for v in (1, -1, 0))):
        got = inputs.signs(x, 3)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, [1, -1, 0])
    np.testing.assert_array_equal(inputs.signs([1, 0], both=False), [1, 0])
    with pytest.raises(UserError, match="no −1"):
        inputs.signs([0, 1])
    with pytest.raises(UserError, match="3 rows"):
        inputs.signs([1, -1, 0], 4)


@pytest.mark.parametrize("scale", [1e-290, 1e-20, 1.0, 1e20, 1e290])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e9])
def test_relative_numbers_keep_their_digits(scale, offset, rng):
    x = rng.normal(size=(6, 4))
    got = inputs.relative32("x", (x + offset) * scale, ndim=2)
    expected = (x + offset) * scale
    expected = (expected - expected[0]) / np.abs(expected - expected[0]).max()
    assert 0.5 < np.abs(got).max() <= 1
    np.testing.assert_allclose(got / np.abs(got).max(), expected, atol=2e-7)


def test_what_float32_cannot_hold_is_refused():
    for x in ([1e39], [-4e38, 1.0], [1e-40], [1e-300, 0.0]):
        with pytest.raises(UserError, match="float32"):
            inputs.floats32("x", x)
    np.testing.assert_array_equal(inputs.floats32("x", [0.0, 0.0]), [0, 0])
    np.testing.assert_array_equal(inputs.floats32("x", [1.0, 1e-60]), [1, 0])


def test_groups():
    for ids, codes in (
        (["b", "a", "b"], [1, 0, 1]),
        (np.array(["b", "a", "b"]), [1, 0, 1]),
        ([10, -3, 10], [1, 0, 1]),
        ([2**70, 1, 2**70], [1, 0, 1]),
        ([2**53, 2**53 + 1, 2**53], [0, 1, 0]),
        (jnp.array([5, 2, 5]), [1, 0, 1]),
        ((q for q in ("a\0", "a", "a\0")), [1, 0, 1]),
        ([np.int64(5), 2, jnp.int32(5)], [1, 0, 1]),
        (np.array([0.5, 0.25, 0.5]), [1, 0, 1]),
    ):
        np.testing.assert_array_equal(inputs.groups("question", ids, 3), codes)


@pytest.mark.parametrize(
    "ids",
    [[1, "1"], [1, None], [None, None], [1.0, math.nan], [1, 2.5], [True, 1], [[1], [2]], "ab", None, 3, [1, 2, 3],
     np.array([1, None], object), {"a": 1, "b": 2}, {1, 2}, [b"a", "a"], [(1, 2), (3, 4)], [1j, 2j]],
)  # fmt: skip
def test_ids_that_would_be_coerced_are_refused(ids):
    with pytest.raises(UserError, match=r"^question "):
        inputs.groups("question", ids, 2)


def test_scalars():
    for n in (3, np.int64(3), np.uint8(3), jnp.int32(3), np.array(3)):
        assert inputs.count("n", n, 1, 3) == 3
    for n in (3.0, True, "3", None, 0, 4, math.nan, [3], np.array([3])):
        with pytest.raises(UserError, match=r"^n is"):
            inputs.count("n", n, 1, 3)
    assert inputs.seed(0) == 0
    assert inputs.seed(2**32 - 1) == 2**32 - 1
    for n in (-1, 2**32, 0.5, None):
        with pytest.raises(UserError, match=r"^seed is"):
            inputs.seed(n)
    assert inputs.number("share", np.float16(0.5), 0, 1) == 0.5
    for x in (1.5, -0.1, math.nan, "0.5", None, True, [0.5]):
        with pytest.raises(UserError, match=r"^share "):
            inputs.number("share", x, 0, 1)
    np.testing.assert_array_equal(inputs.probabilities("p", (v for v in (0, 0.5, 1))), [0, 0.5, 1])
    for p in ([1.1], [-1e-9], 0.03, [[0.1, 0.2]], [math.nan], [True]):
        with pytest.raises(UserError, match=r"^p "):
            inputs.probabilities("p", p)


def test_flags():
    for x in ([True, False], [1, 0.0], np.array([True, False]), jnp.array([True, False]), (v for v in (True, 0))):
        got = inputs.flags("cut", x, 2)
        assert got.dtype == bool
        np.testing.assert_array_equal(got, [True, False])
    for x in ([2, 0], ["True", "False"], [None, True], [math.nan, 1], "10", [True]):
        with pytest.raises(UserError, match=r"^cut "):
            inputs.flags("cut", x, 2)


def test_traced_values_pass_in_float32_at_least():
    def inside(x, s):
        assert inputs.traced(x)
        return inputs.floats("x", x), inputs.signs(s), inputs.floats("x", [x[0], 1.0])

    x, s, listed = jax.jit(inside)(jnp.array([1.0, jnp.nan], jnp.bfloat16), jnp.array([1, 1]))
    assert x.dtype == jnp.float32
    assert listed.shape == (2,)
    np.testing.assert_array_equal(s, [1, 1])
