"""The whole block: noise, planted axes, and every hard case in one ragged call.

Statistical bounds use a fixed seed: a bound that noise breaks once in a hundred runs would otherwise break the suite
so often.
"""

import json

import numpy as np
import pytest
from scipy.stats import kstest

from mood_jax.errors import UserError
from mood_jax.probes import evidence, heldout, length_only_auc, length_residualised, pole_swap_test
from mood_jax.probes.evidence import judge
from mood_jax.probes.resampling import holm

N, D, AXES = 60, 256, 7
SIGN, QUESTION = np.tile([1, -1], N // 2), np.repeat(np.arange(N // 2), 2)


def lengths(rng, draws):
    """Token counts cut at a budget of 200; the positive pole is longer on average."""
    n_tokens = rng.integers(40, 260, (draws, N)) + 30 * (SIGN > 0)
    return np.minimum(n_tokens, 200), n_tokens > 200


def block_of(draws, states, n_tokens, cut, in_context=None):
    return evidence(states, [SIGN] * draws, [QUESTION] * draws, n_tokens, cut, in_context=in_context, n_boot=1000)


@pytest.fixture(scope="module")
def noise():
    """Evidence on 301 draws of pure noise (43 models of 7 axes), with in-context states that encode the instruction."""
    rng = np.random.default_rng(20)
    states = rng.normal(size=(AXES * 43, N, D)).astype(np.float32)
    in_context = states + np.where(np.arange(D) < 4, 2, 0) * SIGN[:, None].astype(np.float32)
    return block_of(len(states), states, *lengths(rng, len(states)), in_context)


def in_models(blocks):
    """The blocks in groups of seven axes, each judged with Holm over its own group."""
    for start in range(0, len(blocks), AXES):
        group = blocks[start : start + AXES]
        for block, p in zip(group, np.asarray(holm(np.array([b["permutation"]["p"] for b in group]))), strict=True):
            block["permutation"]["p_holm"] = float(p)
            judge(block)
        yield group


def test_noise_is_at_chance_held_out_though_not_in_sample(noise):
    for key in ("re_read", "length_residualised"):
        assert abs(np.mean([b[key]["auc"] for b in noise]) - 0.5) < 0.02  # SE .006
        assert abs(np.mean([b[key]["auc_within_folds"] for b in noise]) - 0.5) < 0.02
        assert abs(np.mean([b[key]["accuracy"] for b in noise]) - 0.5) < 0.02
    assert np.mean([b["re_read"]["in_sample_dprime"] for b in noise]) > 3
    assert 35 < np.mean([b["random_direction_percentile"] for b in noise]) < 65


def test_permutation_p_is_uniform_under_noise(noise):
    assert kstest([b["permutation"]["p"] for b in noise], "uniform").pvalue > 0.01
    assert kstest([b["length_residualised"]["p"] for b in noise], "uniform").pvalue > 0.01


def test_noise_is_real_in_at_most_five_percent_with_and_without_holm(noise):
    alone = []
    for block in noise:
        block["permutation"]["p_holm"] = block["permutation"]["p"]
        judge(block)
        alone.append(block["verdict"] == "real")
    assert np.mean(alone) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(alone))
    models = [any(b["verdict"] == "real" for b in group) for group in in_models(noise)]
    assert np.mean(models) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(models))


def test_states_that_only_carry_the_instruction_are_dead_and_the_leak_is_named(noise):
    blocks = [b for group in in_models(noise) for b in group]
    assert np.mean([b["in_context"]["auc"] for b in blocks]) > 0.95
    dead = [b for b in blocks if b["verdict"] == "dead"]
    assert len(dead) > 0.95 * len(blocks)
    assert all("instruction leak" in b["reason"] for b in dead)


def test_intervals_of_noise_cover_chance(noise):
    for key in ("re_read", "length_residualised"):
        for measure, truth in (("auc", 0.5), ("dprime", 0), ("accuracy", 0.5)):
            low, high = np.array([b[key][f"{measure}_ci95"] for b in noise]).T
            assert 0.92 < np.mean((low <= truth) & (truth <= high)) < 0.99, measure  # binomial SE .013


def test_hard_cases_in_one_ragged_call():
    rng = np.random.default_rng(3)
    n_tokens, cut = lengths(rng, 1)
    cases = {}

    def case(name, states, sign=SIGN, question=QUESTION, tokens=n_tokens[0], stopped=cut[0]):
        cases[name] = (states, sign, question, tokens, stopped)

    def noise():
        return rng.normal(size=(N, D))

    planted = noise()
    planted[:, :4] += 2 * SIGN[:, None]
    case("planted", planted)
    trap, counts = 0.1 * noise(), np.where(SIGN > 0, 96, 80) + rng.integers(0, 12, N)
    trap[:, 0] += counts / 2
    case("length trap", trap, tokens=counts, stopped=np.zeros(N))
    case("constant", np.full((N, D), 3.7))
    collinear = (noise()[:, :1] + SIGN[:, None]) * rng.normal(size=D)
    case("collinear", collinear)
    ties = np.round(noise() + np.where(np.arange(D) < 4, 3, 0) * SIGN[:, None])
    ties[:, 100:] = 1.0
    case("ties and constant columns", ties)
    strong = noise() + np.where(np.arange(D) < 4, 3, 0) * SIGN[:, None]
    lone = np.r_[1:N]
    case("missing pole", planted[lone], SIGN[lone], QUESTION[lone], n_tokens[0][lone], cut[0][lone])
    few = slice(0, 4)
    case("two per pole", planted[few], SIGN[few], QUESTION[few], n_tokens[0][few], cut[0][few])
    unequal = np.r_[np.where(SIGN > 0)[0], np.where(SIGN < 0)[0][:15]]
    case("unequal", strong[unequal], SIGN[unequal], QUESTION[unequal], n_tokens[0][unequal], cut[0][unequal])
    one_sided = np.where(SIGN > 0)[0]
    case("one pole only", planted[one_sided], np.ones(30, int), QUESTION[one_sided], n_tokens[0][::2], cut[0][::2])

    columns = list(zip(*cases.values(), strict=True))
    blocks = dict(zip(cases, evidence(*columns, n_boot=500, n_perm=1000, n_random=100), strict=True))
    json.dumps(blocks, allow_nan=False)  # finite, and plain types
    labels = {name: block["verdict"] for name, block in blocks.items()}
    assert labels == {
        "planted": "real",
        "length trap": "length",
        "constant": "no variance",
        "collinear": "real",
        "ties and constant columns": "real",
        "missing pole": "real",
        "two per pole": "dead",  # four swaps cannot reach any p below .5
        "unequal": "real",
        "one pole only": "no variance",
    }
    assert blocks["length trap"]["length_only"]["auc"] > 0.9
    assert blocks["two per pole"]["permutation"] == {
        "p": 0.5, "p_holm": 1.0, "auc": blocks["two per pole"]["permutation"]["auc"], "n": 3, "exact": True
    }  # fmt: skip
    assert blocks["missing pole"]["n_samples"] == N - 1
    assert (blocks["two per pole"]["n_questions"], blocks["planted"]["n_questions"]) == (2, 30)

    # Padding and stacking change nothing: each axis equals the probes run on it alone.
    states, sign, question, tokens, stopped = cases["missing pole"]
    block = blocks["missing pole"]
    for key, alone in (
        ("re_read", heldout(states, sign, question, n_boot=100)),
        ("length_residualised", length_residualised(states, sign, question, tokens, stopped, n_boot=100)),
        ("length_only", length_only_auc(tokens, sign, question, n_boot=100)),
    ):
        for number in ("auc", "dprime", "accuracy", "auc_within_folds"):
            assert block[key][number] == pytest.approx(float(alone[number]), abs=3e-3)
    count = pole_swap_test(tokens[:, None].astype(float), sign, question, n_perm=1000)
    assert block["length_only"]["p"] == pytest.approx(count["p"], abs=0.01)
    adjusted = np.asarray(holm(np.array([b["length_only"]["p"] for b in blocks.values()])))
    assert [b["length_only"]["p_holm"] for b in blocks.values()] == pytest.approx(adjusted.tolist())
    assert blocks["length trap"]["length_only"]["p_holm"] < 0.05


def test_lengths_that_disagree_are_a_clear_error():
    states = np.zeros((1, 6, 4))
    sign, question = np.tile([1, -1], 3), np.repeat(np.arange(3), 2)
    with pytest.raises(UserError, match="n_tokens of axis 0 has 5 rows"):
        evidence(states, [sign], [question], [np.zeros(5)], [np.zeros(6)])
    with pytest.raises(UserError, match="cut has 2 axes"):
        evidence(states, [sign], [question], [np.zeros(6)], [np.zeros(6)] * 2)
