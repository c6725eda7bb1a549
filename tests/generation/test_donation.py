"""The compiled decode step writes into the cache in place: no second cache and no copy of one.

A step that copies turns the check red below. So does a state that is not donated, tried by hand: it aliases 0 bytes,
and every array of the cache is copied once on entry. `test_mesh` checks the same on eight devices.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mood_jax.generation import engine
from mood_jax.generation import reducers as red
from mood_jax.generation.sampling import Greedy
from mood_jax.models.decoder import init_params
from tests.generation.test_memory import shape

MOVES = r"copy|copy-start|transpose|concatenate|convert|pad|select"


def assert_in_place(compiled: Any, cache: Sequence[Sequence[Any]], n_parameters: int) -> None:
    """That a compiled chunk aliases every array of the cache and makes no other of its shape.

    Args:
        cache: its arrays layer by layer, or their shapes on one device.
        n_parameters: of arguments before the state's, whose first are the cache's.
    """
    arrays = [x for layer in cache for x in layer]
    size = sum(x.size * x.dtype.itemsize for x in arrays)
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    aliased = {int(n) for n in re.findall(r"\{\d+\}: \((\d+), \{\}, may-alias\)", text.partition("\n")[0])}
    assert aliased >= set(range(n_parameters, n_parameters + len(arrays)))
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / len(cache)  # less than one layer of it, for all there is beside it
    shapes = "|".join({re.escape(f"[{','.join(map(str, x.shape))}]") for x in arrays})
    made = re.findall(rf"= \w+(?:{shapes})\S* ([\w-]+)\(", text)
    assert "dynamic-update-slice" in made  # the shapes are those of the text
    assert not [op for op in made if re.fullmatch(MOVES, op)]


@pytest.fixture(scope="module", params=[None, 48], ids=["one block", "blocks"])
def asked(request):
    """Shapes of a step whose cache is most of its memory: (parameters, state, the other arguments, spec)."""
    c = shape(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    B, P, new = 24, 48, 208
    sites, kinds = c.sites[-2:-1], red.parse_reducers(("decay_0.9",))
    spec = engine.Spec(c, Greedy(), (1,), new, sites, kinds, block=request.param)

    def array(*size, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(size, dtype)

    params = jax.eval_shape(lambda: init_params(c, jax.random.key(0)))
    keys = array(B, 2, dtype=jnp.uint32)
    first = (params, array(B, P), array(B), array(B, dtype=bool), keys)
    state = jax.eval_shape(lambda *a: engine.prefill(*a, spec=spec, slots=P + new), *first)
    return params, state, (keys, array(B), array(), array()), spec


def compile_chunk(decode_chunk, asked):
    params, state, others, spec = asked
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Some donated buffers were not usable"
        return decode_chunk.lower(params, state, *others, spec=spec).compile()


def n_arguments(asked) -> int:
    return len(jax.tree.leaves(asked[0]))


def test_the_step_copies_no_cache(asked):
    assert_in_place(compile_chunk(engine.decode_chunk, asked), asked[1].cache, n_arguments(asked))


def test_a_step_that_copies_the_cache_is_seen(asked, monkeypatch):
    """One that holds on to the cache it was given, by writing a token only where the row is alive."""
    run = engine.run

    def kept(*args, cache, **options):
        logits, new, states = run(*args, cache=cache, **options)
        assert logits is not None
        wanted = jnp.isfinite(logits).all()
        return logits, jax.tree.map(lambda a, b: jnp.where(wanted, a, b), new, cache), states

    monkeypatch.setattr(engine, "run", kept)
    broken = jax.jit(
        lambda *a, spec: engine.decode_chunk.__wrapped__(*a, spec=spec),  # type: ignore[attr-defined]
        static_argnames=("spec",),
        donate_argnums=1,
    )
    with pytest.raises(AssertionError):
        assert_in_place(compile_chunk(broken, asked), asked[1].cache, n_arguments(asked))
