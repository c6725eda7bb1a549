"""The sort-free sampler against a sorting reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from mood_jax.errors import UserError
from mood_jax.generation.sampling import BLOCK, Greedy, TopP, response_keys, sample

DRAWS = 120_000


def nucleus(logits: np.ndarray, p: float, temperature: float) -> np.ndarray:
    """The reference: sort by (probability descending, id ascending), keep while the mass before is below p."""
    z = logits.astype(np.float64) / temperature
    q = np.exp(z - z.max())
    q /= q.sum()
    order = np.lexsort((np.arange(len(q)), -q))
    before = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])
    kept = np.zeros_like(q)
    keep = order[before < p]
    kept[keep] = q[keep]
    return kept / kept.sum()


def draw(logits: np.ndarray, sampler, n: int, seed: int) -> np.ndarray:
    keys = np.random.default_rng(seed).integers(0, 2**32, (n, 2), dtype=np.uint32)
    f = jax.jit(
        lambda k: sample(sampler, jnp.broadcast_to(jnp.asarray(logits), (k.shape[0], len(logits))), k, jnp.int32(3))
    )
    return np.concatenate([np.asarray(f(jnp.asarray(part))) for part in np.array_split(keys, 8)])


def chi_square_p(tokens: np.ndarray, expected: np.ndarray) -> float:
    """p of the observed counts; cells below 5 expected are pooled; a draw outside the support is p = 0."""
    counts = np.bincount(tokens, minlength=len(expected)).astype(np.float64)
    if counts[expected == 0].sum():
        return 0.0
    want = expected * len(tokens)
    rare = want < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    want = np.append(want[~rare], want[rare].sum())
    counts, want = counts[want > 0], want[want > 0]
    if len(want) == 1:
        return 1.0
    return float(chi2.sf(((counts - want) ** 2 / want).sum(), len(want) - 1))


@pytest.mark.parametrize(
    ("p", "temperature", "kind"),
    [
        (0.9, 0.7, "peaked"),
        (0.9, 1.0, "flat"),
        (0.5, 1.3, "peaked"),
        (1.0, 1.0, "peaked"),
        (1.0, 0.7, "flat"),
        (0.05, 1.0, "peaked"),
        (0.6, 1.0, "ties"),
        (0.9, 2.0, "ties"),
        (0.95, 0.7, "odd"),
    ],
)
def test_distribution_equals_the_sorting_reference(p, temperature, kind, fixed_rng):
    rng = fixed_rng  # the p of a chi-square test is itself a draw
    size = {"odd": 3 * BLOCK + 17, "ties": 40}.get(kind, 300)
    logits = rng.normal(size=size).astype(np.float32) * (0.3 if kind == "flat" else 2.0)
    if kind == "ties":
        logits = np.round(logits)  # many equal probabilities, some of them on the nucleus' edge
    tokens = draw(logits, TopP(p, temperature=temperature), DRAWS, seed=2)
    expected = nucleus(logits, p, temperature)
    assert not (np.bincount(tokens, minlength=size)[expected == 0]).any()
    assert chi_square_p(tokens, expected) > 1e-5
    wrong = nucleus(logits, p, temperature * 1.1)  # the test must be able to fail
    if (expected > 0).sum() > 3:
        assert chi_square_p(tokens, wrong) < 1e-5


def test_all_tokens_equal():
    """One tie over everything: the nucleus is the first ⌈p·V⌉ ids."""
    tokens = draw(np.zeros(200, np.float32), TopP(0.5), DRAWS, 0)
    assert set(np.unique(tokens)) == set(range(100))


def test_masked_logits_are_never_drawn(rng):
    logits = np.full(500, -np.inf, np.float32)
    alive = rng.choice(500, 7, replace=False)
    logits[alive] = rng.normal(size=7)
    for p in (1.0, 0.9):
        assert set(np.unique(draw(logits, TopP(p), 20_000, 1))) <= set(alive.tolist())


def test_greedy_takes_the_first_of_equals():
    logits = jnp.asarray([[0.0, 3.0, 3.0], [5.0, 1.0, 5.0]])
    keys = jnp.zeros((2, 2), jnp.uint32)
    assert np.asarray(sample(Greedy(), logits, keys, jnp.int32(0))).tolist() == [1, 0]


def test_a_row_depends_on_seed_id_and_index_alone(rng):
    logits = rng.normal(size=(4, 300)).astype(np.float32)
    keys = response_keys(5, ["a", "b", "c", "d"])
    np.testing.assert_array_equal(keys[[2, 0]], response_keys(5, ["c", "a"]))
    assert (keys != response_keys(6, ["a", "b", "c", "d"])).any(axis=1).all()
    sampler = TopP(0.9, temperature=0.7)
    whole = np.asarray(sample(sampler, jnp.asarray(logits), jnp.asarray(keys), jnp.int32(2)))
    for i in range(4):
        one = sample(sampler, jnp.asarray(logits[i : i + 1]), jnp.asarray(keys[i : i + 1]), jnp.int32(2))
        assert int(one[0]) == whole[i]
    many = [tuple(np.asarray(sample(sampler, jnp.asarray(logits), jnp.asarray(keys), jnp.int32(t)))) for t in range(6)]
    assert len(set(many)) > 1


@pytest.mark.parametrize("bad", [{"p": 0.0}, {"p": 1.1}, {"p": 0.9, "temperature": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UserError):
        TopP(**bad)
