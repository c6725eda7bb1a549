import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax.probes.folds import encode, grouped_folds
from mood_jax.probes.nested import inner_signs, nested_projections, training_sets, training_signs

pytestmark = pytest.mark.usefixtures("unoptimised")

K = 4


@pytest.fixture
def problem(rng):
    """Ragged: 11 questions, one of them without its negative pole, several samples of some, one sample left out."""
    question = np.repeat(np.arange(11), rng.integers(2, 5, 11))
    sign = np.where(np.arange(len(question)) % 2, 1, -1)
    sign[question == 3] = 1
    sign[5] = 0
    return sign.astype(np.int32), encode(question), grouped_folds(question, K, seed=1)


def test_every_fold_and_every_pair_is_left_out_once():
    sets = training_sets(K)
    excluded = [tuple(np.flatnonzero(row)) for row in sets.excluded[:-2]]
    expected = [(), *((i,) for i in range(K)), *itertools.combinations(range(K), 2)]
    assert sorted(excluded) == sorted(expected)
    for i, j in itertools.product(range(K), repeat=2):
        assert excluded[sets.inner[i, j]] == tuple(sorted({i, j}))
        assert excluded[sets.outer[i]] == (i,)
    with pytest.raises(ValueError, match="3 folds"):
        training_sets(2)


def test_training_signs_leave_out_folds_and_halves_share_no_question(problem):
    sign, question, fold = problem
    sets = training_sets(K)
    training = np.asarray(jax.jit(lambda *a: training_signs(sets, *a))(*problem))
    for row, excluded in zip(training[:-2], sets.excluded[:-2], strict=True):
        np.testing.assert_array_equal(row, np.where(excluded[fold], 0, sign))
    halves = [set(question[(row == sign) & (sign != 0)]) for row in training[-2:]]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(question[sign != 0])
    for f in range(K):
        of_fold = set(question[fold == f])
        assert abs(len(halves[0] & of_fold) - len(halves[1] & of_fold)) <= 1


def reference(x, training, sign, fold, choice):
    """The same by loops over folds, [K+1, n]; checks that every choice has the smallest loss, to rounding."""
    sets = training_sets(K)

    def standardised(row, penalty):
        t = training[row]
        value = x[row, penalty]
        centre = 0.5 * (value[t > 0].mean() + value[t < 0].mean())
        return (value - centre) / np.sqrt(np.mean((value[t != 0] - centre) ** 2))

    def check_best(pairs, chosen):
        losses = []
        for p in range(x.shape[1]):
            terms = [np.log1p(np.exp(-x[row, p, s] * sign[s])) for row, f in pairs for s in np.flatnonzero(fold == f)
                     if sign[s]]  # fmt: skip
            losses.append(np.mean(terms))
        assert losses[chosen] <= min(losses) * (1 + 2e-5)

    out = np.zeros((K + 1, len(sign)))
    for i in range(K):
        others = [j for j in range(K) if j != i]
        check_best([(sets.inner[i, j], j) for j in others], choice[i])
        for j in others:
            test = (fold == j) & (sign != 0)
            out[i, test] = standardised(sets.inner[i, j], choice[i])[test]
        test = (fold == i) & (sign != 0)
        out[K, test] = standardised(sets.outer[i], choice[i])[test]
    check_best([(sets.outer[i], i) for i in range(K)], choice[K])
    return out


@pytest.mark.parametrize("penalties", [1, 3])
def test_nested_projections_equal_loops_over_folds(rng, problem, penalties):
    sign, _, fold = problem
    sets = training_sets(K)
    training = np.asarray(training_signs(sets, *problem))
    x = rng.normal(size=(len(training), penalties, len(sign))) + sign * rng.normal(size=(1, penalties, 1))
    ok = np.ones((len(training), penalties), bool)
    nested = jax.jit(lambda *a: nested_projections(*a, sets))(jnp.asarray(x, jnp.float32), ok, training, sign, fold)
    expected = reference(x, training, sign, fold, nested.choice.tolist())
    np.testing.assert_allclose(nested.x, expected, atol=2e-4)
    assert bool(nested.ok)
    counts = np.asarray(inner_signs(jnp.asarray(sign), jnp.asarray(fold), K))
    np.testing.assert_array_equal(counts != 0, [(fold != i) & (sign != 0) for i in range(K)] + [sign != 0])
    assert (np.asarray(nested.x)[counts == 0] == 0).all()


def test_what_a_fit_has_seen_never_scores_it(problem):
    """Values that mark the training samples of each fit: none of them may come out."""
    sign, _, fold = problem
    sets = training_sets(K)
    training = np.asarray(training_signs(sets, *problem))
    values = np.where(training != 0, 100.0 * sign, np.linspace(-1, 1, len(sign)))[:, None, :]
    x = nested_projections(
        jnp.asarray(values, jnp.float32), jnp.ones(len(training), bool), training, sign, fold, sets
    ).x
    assert np.abs(np.asarray(x)).max() < 0.02  # a sample that was seen stands at ±1 once standardised
    without_direction = nested_projections(
        jnp.zeros((len(training), 1, len(sign))), jnp.arange(len(training)) > 0, training, sign, fold, sets
    )
    assert not bool(without_direction.ok)
    assert (np.asarray(without_direction.x) == 0).all()
