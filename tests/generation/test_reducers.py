"""Reducers against float64: every γ, thousands of tokens, one at a time and as a whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.generation.reducers import Reducer, finish, parse_reducers, reduce, start, update

GAMMAS = ("1e-300", "1e-30", "0.000001", "0.5", "0.500001", "0.9", "0.999", "0.99999", "0.9999999")
GAMMAS += ("0.999999999999", "0.9999999999999999")
NAMES = ("mean", *(f"decay_{gamma}" for gamma in GAMMAS))


def exact(reducer: Reducer, h: np.ndarray) -> np.ndarray:
    """h [n, D] in float64."""
    weight = np.exp(np.arange(len(h) - 1, -1, -1) * np.log(reducer.gamma))
    return weight @ h.astype(np.float64) / weight.sum()


def one_by_one(reducer: Reducer, h: np.ndarray) -> np.ndarray:
    """h [B, T, D] as the decode loop folds it, in a jitted scan."""
    B, T, D = h.shape

    @jax.jit
    def run(h):
        def step(state, x):
            return update(reducer, state, x, jnp.ones(B, bool)), None

        return finish(reducer, jax.lax.scan(step, start(reducer, B, D), h.swapaxes(0, 1))[0], jnp.full(B, T))

    return np.asarray(run(h))


def at_once(reducer: Reducer, h: np.ndarray) -> np.ndarray:
    B, T, _ = h.shape
    return np.asarray(jax.jit(reduce, static_argnums=0)(reducer, h, np.tile(np.arange(T), (B, 1)), np.full(B, T)))


def assert_exact(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [2, pytest.param(60, marks=pytest.mark.slow), 3000])
def test_every_gamma_over_long_responses_equals_float64(rng, name, n):
    (reducer,) = parse_reducers([name])
    # Dimensions of noise, with offsets of either sign, and one that is large and hardly moves, as real ones are.
    h = (rng.normal(size=(2, n, 16)) + 5 * rng.normal(size=16)).astype(np.float32)
    h[..., 0] = 40 + 0.01 * h[..., 0]
    expected = np.stack([exact(reducer, row) for row in h])
    assert_exact(one_by_one(reducer, h), expected)
    assert_exact(at_once(reducer, h), expected)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_states_of_any_dtype_and_size_are_summed_in_float32(rng, dtype, scale):
    h = np.asarray(scale * (1 + rng.normal(size=(1, 700, 8)))).astype(dtype)
    for reducer in parse_reducers(["mean", "decay_0.9", "decay_0.999999"]):
        expected = exact(reducer, h[0])
        assert_exact(one_by_one(reducer, h)[0], expected)
        assert_exact(at_once(reducer, h)[0], expected)


def test_rows_that_end_at_different_tokens_keep_what_they_had(rng):
    """One batch of spans of many lengths, among padding, in more than one part of the sequence."""
    T, counts = 600, [0, 1, 7, 255, 256, 257, 511, 600]
    rank, h = np.full((len(counts), T), -1), rng.normal(size=(len(counts), T, 4)).astype(np.float32)
    for row, n in enumerate(counts):
        first = rng.integers(T - n + 1)
        rank[row, first : first + n] = np.arange(n)
    for reducer in parse_reducers(["mean", "decay_0.3", "decay_0.99", "decay_0.9999999", "last", "max_abs"]):

        def step(state, x, reducer=reducer):
            return update(reducer, state, *x), None

        state, _ = jax.lax.scan(step, start(reducer, len(counts), 4), (h.swapaxes(0, 1), (rank >= 0).T))
        folded = np.asarray(finish(reducer, state, jnp.asarray(counts)))
        whole = np.asarray(reduce(reducer, jnp.asarray(h), jnp.asarray(rank), jnp.asarray(counts)))
        np.testing.assert_allclose(folded, whole, rtol=0, atol=1e-6)
        for row, n in enumerate(counts):
            if n and reducer.summed:
                np.testing.assert_allclose(whole[row], exact(reducer, h[row][rank[row] >= 0]), rtol=0, atol=1e-6)
        assert (whole[0] == 0).all()


@pytest.mark.parametrize("gamma", ["0", "1", "1.5", "-0.5", "nan", "inf", "1e-400", "0.99999999999999999999", "0_9"])
@pytest.mark.parametrize("spelling", ["decay_{}", "decay_ {}", "decay_{}_1"])
def test_a_gamma_outside_0_and_1_is_refused(gamma, spelling):
    with pytest.raises(UserError, match="unknown reducer"):
        parse_reducers([spelling.format(gamma)])


@pytest.mark.parametrize(
    "name", ["decay_٠.٩", "decay_ 0.9", "decay_0.9_9", "decay_", "decay", "Mean", None, 0.9, b"mean"]
)
def test_what_python_would_read_as_a_number_is_refused(name):
    with pytest.raises(UserError, match="unknown reducer"):
        parse_reducers([name])


def test_names_come_from_any_sequence():
    assert parse_reducers(name for name in ("mean", "decay_.9")) == parse_reducers(["mean", "decay_.9"])
    assert parse_reducers("decay_9e-1")[0].gamma == 0.9
