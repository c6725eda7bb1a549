"""Whatever the logits hold, every sampler ends, says which rows it could use, and leaves the other rows alone."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mood_jax as mj
from mood_jax.errors import UserError
from mood_jax.generation.sampling import Greedy, TopP, response_keys, sample, usable
from tests.studies.tiny import checkpoint

V = 300
SAMPLERS = (
    Greedy(),
    TopP(1.0),
    TopP(0.9, temperature=0.7),
    TopP(1e-300),
    TopP(1e-46, temperature=1e-6),
    TopP(1 - 1e-16, temperature=1e6),
    TopP(0.5, temperature=1e-6),
)
KINDS = ("nan", "all nan", "+inf", "all +inf", "-inf", "all -inf", "mixed", "largest", "equal", "denormal", "steep")


def row(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One row of logits, float32 [V]."""
    x = rng.normal(size=V).astype(np.float32) * 3
    some = rng.choice(V, 5, replace=False)
    if kind.startswith("all "):
        x[:] = np.float32(kind.removeprefix("all "))
    elif kind in ("nan", "+inf", "-inf"):
        x[some] = np.float32(kind)
    elif kind == "mixed":
        x[some] = np.asarray([np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32)
    elif kind == "largest":
        x[some] = 3e38
    elif kind == "equal":
        x[:] = -2
    elif kind == "denormal":  # of its weights
        x = np.where(np.arange(V) == some[0], 0, -95 - rng.random(V)).astype(np.float32)
    elif kind == "steep":
        x = -np.abs(x) * 1e30
    return x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_every_sampler_ends_on_whatever_there_is(rng, dtype):
    """Each kind of row between two sound ones, whose tokens are those that they have alone."""
    sound = rng.normal(size=(2, V)).astype(np.float32)
    rows = [row(kind, rng) for kind in KINDS for _ in range(3)]
    logits = jnp.asarray(np.stack([sound[0], *rows, sound[1]])).astype(dtype).astype(jnp.float32)
    keys = response_keys(1, [str(i) for i in range(len(logits))])
    for sampler in SAMPLERS:
        tokens = np.asarray(jax.jit(sample, static_argnums=0)(sampler, logits, keys, jnp.int32(3)))
        assert ((tokens >= 0) & (tokens < V)).all()
        ends = [0, len(logits) - 1]
        alone = sample(sampler, logits[jnp.asarray(ends)], keys[ends], jnp.int32(3))
        np.testing.assert_array_equal(tokens[ends], alone)
        z = np.asarray(logits, np.float32)
        with np.errstate(all="ignore"):
            z = z if isinstance(sampler, Greedy) else z / np.float32(sampler.temperature)
            good = np.isfinite([r.max() if not np.isnan(r).any() else np.nan for r in z])
        np.testing.assert_array_equal(usable(sampler, logits), good)
        for i in np.flatnonzero(good):
            assert np.isfinite(z[i, tokens[i]]), "a token of weight 0 was drawn"


def test_a_nucleus_of_one_token_is_the_most_probable(rng):
    logits = jnp.asarray(rng.normal(size=(8, 5000)).astype(np.float32))
    keys = response_keys(0, [str(i) for i in range(8)])
    for p in (1e-320, 1e-45, 1e-30, 1e-9):
        np.testing.assert_array_equal(sample(TopP(p), logits, keys, jnp.int32(0)), jnp.argmax(logits, -1))


@pytest.mark.parametrize(
    ("p", "temperature"),
    [
        *itertools.product((np.nan, np.inf, -np.inf, 0, -1, 1.0001, True, "0.9", None), (1.0,)),
        *itertools.product((0.9,), (np.nan, np.inf, -np.inf, 0, -1, 1e-7, 1e-320, 1e300, True, "1", None)),
    ],
)
def test_impossible_settings_are_refused(p, temperature):
    with pytest.raises(UserError, match=r"top-p|temperature"):
        TopP(p, temperature)


def test_settings_are_pythons_floats():
    made = TopP(np.float32(0.5), np.int64(1))
    assert json.dumps([made.p, made.temperature]) == "[0.5, 1.0]"
    assert made == TopP(0.5, 1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> mj.Model:
    """Its feed-forward overflows float32, so that every logit is NaN."""
    from safetensors.numpy import load_file, save_file

    folder = checkpoint(tmp_path_factory.mktemp("broken"))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "up_proj" in name:
            tensors[name] = tensors[name] * np.float32(1e38)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return mj.load_model(str(folder), dtype="float32")


@pytest.mark.parametrize("sampler", [Greedy(), TopP(0.9, temperature=0.7)])
def test_the_refusal_names_the_response(broken, sampler):
    with pytest.raises(UserError, match="response mine and 1 more are not finite"):
        mj.generate(broken, ["Hi there", "And you?"], max_new_tokens=2, sampler=sampler, ids=["mine", "yours"])
