import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mood_jax.probes import grouped_folds, pole_swap_test
from mood_jax.probes.permutation import pole_swaps


def held_out_auc(states, sign, fold) -> float:
    """The statistic refitted from the states, in float64."""
    x = np.zeros(len(sign))
    for f in range(fold.max() + 1):
        train = fold != f
        pos, neg = train & (sign > 0), train & (sign < 0)
        projected = states @ (states[pos].mean(axis=0) - states[neg].mean(axis=0))
        middle = (projected[pos].mean() + projected[neg].mean()) / 2
        x[~train] = ((projected - middle) / np.sqrt(np.mean((projected[train] - middle) ** 2)))[~train]
    return roc_auc_score(sign > 0, x)


@pytest.mark.parametrize("hard", ["even", "missing pole", "collinear"])
def test_exact_p_equals_refitting_every_swap(fixed_rng, hard):
    rng, questions = fixed_rng, 6  # fixed: float32 may order two of 64 × 36 pairs of projections otherwise
    sign, question = np.tile([1, -1], questions), np.repeat(np.arange(questions), 2)
    states = rng.normal(size=(12, 9)) + 5
    states[:, 0] += 0.7 * sign
    if hard == "missing pole":
        sign, question, states = sign[1:], question[1:], states[1:]
    elif hard == "collinear":
        states = states[:, :1] * np.ones((1, 9)) + 1e-3 * states  # one dimension carries nearly everything
    fold = grouped_folds(question, 3, seed=2)
    out = pole_swap_test(states, sign, question, n_perm=100, seed=2, k=3)
    free = [q for q in range(questions) if np.sum(question == q) == 2]
    values = []
    for flips in itertools.product([1, -1], repeat=len(free)):
        by_question = np.ones(questions)
        by_question[free] = flips
        values.append(held_out_auc(states.astype(np.float64), sign * by_question[question], fold))
    assert out["exact"]
    assert out["n"] == 2 ** len(free) - 1
    assert out["auc"] == pytest.approx(values[0], abs=1e-4)
    assert out["p"] == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-9), abs=1e-6)


def test_swaps_enumerate_or_draw_and_never_touch_a_lone_pole():
    sign, question = np.array([1, -1, 1, -1, 1]), np.array([0, 0, 1, 1, 2])
    swaps = pole_swaps(sign, question, n_perm=4)
    assert {tuple(row) for row in swaps} == {(a, b, 1) for a in (1, -1) for b in (1, -1)}
    drawn = pole_swaps(np.tile([1, -1], 30), np.repeat(np.arange(30), 2), n_perm=2000, seed=1)
    assert drawn.shape == (2001, 30)
    assert (drawn[0] == 1).all()
    assert len(np.unique(drawn, axis=0)) > 1990
    np.testing.assert_allclose(drawn[1:].mean(axis=0), 0, atol=0.12)  # SE .022


def test_a_planted_axis_is_found_and_the_p_has_its_smallest_value(rng):
    sign, question = np.tile([1, -1], 15), np.repeat(np.arange(15), 2)
    states = rng.normal(size=(30, 64))
    states[:, 5] += 6 * sign
    out = pole_swap_test(jnp.asarray(states, jnp.float32), sign, question, n_perm=500)
    assert not out["exact"]
    assert out["auc"] == 1.0
    assert out["p"] == pytest.approx(1 / 501)


def test_constant_states_have_no_p_below_one():
    out = pole_swap_test(np.full((12, 4), 2.0), np.tile([1, -1], 6), np.repeat(np.arange(6), 2), n_perm=100)
    assert (out["p"], out["auc"]) == (1.0, 0.5)
