"""generate, read and converse take lists, arrays and generators alike, and refuse what is of another kind in a line."""

from __future__ import annotations

import numpy as np
import pytest

import mood_jax as mj
from mood_jax.errors import UserError
from mood_jax.generation import api
from tests.studies.tiny import checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

IDS = ((5, 6, 7), (8, 9, 10))
NO_COUNT = (3.5, 3.0, np.float32(3), "3", None, True, np.bool_(True), np.nan, [3], 0, -1, 2**40)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("model"))), dtype="float32")


def kinds(rows):
    """The same rows of numbers in every form that is taken."""
    yield [list(r) for r in rows]
    yield tuple(tuple(r) for r in rows)
    for dtype in (np.int8, np.uint16, np.int64):
        yield np.asarray(rows, dtype)
        yield [np.asarray(r, dtype) for r in rows]
    yield (r for r in rows)
    yield (iter(r) for r in rows)
    yield [[np.int32(x) for x in r] for r in rows]
    yield [range(r[0], r[-1] + 1) for r in rows]


def test_prompts_and_responses_of_every_form_are_one(model):
    plans = [api.plan(model, given, max_new_tokens=2) for given in kinds(IDS)]
    assert len({tuple(r.token_ids for r in p.rendered) for p in plans}) == 1
    assert len({p.ids for p in plans}) == 1
    reads = [api.plan_read(model, ["a", "b"], given) for given in kinds(IDS)]
    assert all((r.batches[0].tokens == reads[0].batches[0].tokens).all() for r in reads)
    texts = ["Hi there", "And you?"]
    forms = [texts, tuple(texts), np.asarray(texts), iter(texts), (t for t in texts), dict.fromkeys(texts).keys()]
    assert len({api.plan(model, f).ids for f in forms}) == 1
    named = [api.plan(model, texts, ids=f).ids for f in (["x", "y"], ("x", "y"), iter("xy"), np.asarray(["x", "y"]))]
    assert set(named) == {("x", "y")}


@pytest.mark.parametrize(
    "prompts",
    [
        *(None, 3, True, "Hi", b"Hi", {"role": "user"}, [None], [3], [True], [b"Hi"], [[5.9, 6.2]], [[5, None]]),
        *([[True, False]], [np.asarray([5.0, 6.0])], np.asarray([[5.0, 6.0]]), [["5"]], [[5, "6"]], [], [[]], [[-1]]),
    ],
)
def test_prompts_of_another_kind(model, prompts):
    with pytest.raises(UserError):
        api.plan(model, prompts)


@pytest.mark.parametrize(
    "responses",
    [
        *(None, 3, "ab", [None, None], [[5.9, 6.2], [5]], [[True], [5]], [["5"], [6]], [3, 4], [[-1], [5]]),
        *(np.asarray([[5.0], [6.0]]), [{"a": 1}, [5]], [[np.nan], [5]], [[5], [10**9]], [b"ab", b"c"]),
    ],
)
def test_responses_of_another_kind(model, responses):
    with pytest.raises(UserError):
        api.plan_read(model, ["a", "b"], responses)


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size"])
@pytest.mark.parametrize("value", NO_COUNT)
def test_counts_of_another_kind(model, name, value):
    with pytest.raises(UserError, match=r"must be (a whole number|at (least|most))"):
        api.plan(model, ["Hi"], **{name: value})
    if name == "batch_size":
        with pytest.raises(UserError, match="batch size must be"):
            api.plan_read(model, ["Hi"], ["you"], batch_size=value)
        with pytest.raises(UserError, match="batch size must be"):
            mj.converse(model, [["Hi"]], batch_size=value)


@pytest.mark.parametrize(
    "options",
    [
        *({"ids": ids} for ids in ((1, 2), [None, None], 3, "ab", [b"a", b"b"], ["a"], ["a", "a"], ["a", "\ud800"])),
        *({"seed": seed} for seed in (-1, 2**32, 1.0, None, "0", True)),
        *({"sampler": sampler} for sampler in ("greedy", 0.7, mj.TopP, True)),
        *({"span": span} for span in (None, "", 3)),
    ],
)
def test_other_arguments_of_another_kind(model, options):
    with pytest.raises(UserError):
        api.plan(model, ["Hi there", "And you?"], **options)


@pytest.mark.parametrize(
    "scripts", [None, 3, "Hi", ["Hi"], [None], [[None]], [[3]], [["Hi", 3]], [[b"Hi"]], [[["Hi"]]]]
)
def test_scripts_of_another_kind(model, scripts):
    with pytest.raises(UserError):
        mj.converse(model, scripts)


@pytest.mark.parametrize("system", [3, [3], [b"x"], ["a", "b"], True, {"a": "b"}])
def test_system_prompts_of_another_kind(model, system):
    with pytest.raises(UserError):
        mj.converse(model, [["Hi"]], system=system)
