"""Readouts: the presets as method.md defines them, and h = Σ w·x/r against a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mood_jax import readout as readouts
from mood_jax.errors import UserError

SITES = ("embed", *(f"resid_post@{k}" for k in range(6)), "final_norm")
REDUCERS = ("mean", "decay_0.9")


@pytest.fixture
def states(rng) -> np.ndarray:
    """[N, sites, reducers, D], every site with a size of its own."""
    size = np.arange(1, len(SITES) + 1)[None, :, None, None]
    return (rng.standard_normal((7, len(SITES), len(REDUCERS), 5)) * size).astype(np.float32)


def test_last4_reads_the_last_four_blocks():
    r = readouts.preset("last4", 6)
    assert r.sites == ("resid_post@2", "resid_post@3", "resid_post@4", "resid_post@5")
    assert r.weights == (0.1, 0.2, 0.3, 0.4)
    assert (r.reducer, r.span, r.normalise) == ("decay_0.9", "response", True)


def test_article_reads_the_last_four_entries_of_hidden_states():
    # HF's hidden_states[L-3 … L]: entry k is the output of block k-1, and the last one is behind the final norm.
    r = readouts.preset("article", 6)
    hf = ["embed", *(f"resid_post@{k}" for k in range(5)), "final_norm"]
    assert r.sites == tuple(hf[-4:])
    assert r.weights == (0.1, 0.2, 0.3, 0.4)
    assert (r.reducer, r.span, r.normalise) == ("decay_0.9", "article", False)


@pytest.mark.parametrize("name", readouts.PRESETS)
def test_four_layers_are_enough_and_three_are_not(name):
    assert len(set(readouts.preset(name, 4).sites)) == 4
    with pytest.raises(UserError, match="only 3 blocks"):
        readouts.preset(name, 3)


def test_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="unknown readout 'last3'; use one of last4, article"):
        readouts.preset("last3", 8)


def test_a_description_tells_the_presets_apart():
    a, b = (readouts.preset(name, 6).describe() for name in readouts.PRESETS)
    assert a != b
    assert "decay_0.9" in a
    assert "resid_post@5" in a


def test_pick_takes_the_readouts_own_columns(states):
    r = readouts.preset("article", 6)
    picked = readouts.pick(r, states, SITES, REDUCERS)
    assert picked.shape == (7, 4, 5)
    for s, site in enumerate(r.sites):
        np.testing.assert_array_equal(picked[:, s], states[:, SITES.index(site), 1])


def test_pick_names_what_is_missing(states):
    r = readouts.preset("article", 6)
    with pytest.raises(UserError, match="final_norm"):
        readouts.pick(r, states[:, :-1], SITES[:-1], REDUCERS)
    with pytest.raises(UserError, match=r"decay_0\.9"):
        readouts.pick(r, states[:, :, :1], SITES, REDUCERS[:1])


def test_site_rms_is_the_root_mean_square_over_responses_and_dimensions(states):
    r = readouts.preset("last4", 6)
    picked = readouts.pick(r, states, SITES, REDUCERS)
    got = readouts.site_rms(r, picked)
    assert got.dtype == np.float32
    for s in range(4):
        squares = [float(x) ** 2 for row in picked[:, s] for x in row]
        assert got[s] == pytest.approx((sum(squares) / len(squares)) ** 0.5, rel=1e-6)


def test_site_rms_does_not_overflow_where_float32_squares_would():
    r = readouts.preset("last4", 4)
    np.testing.assert_allclose(readouts.site_rms(r, np.full((2, 4, 3), 1e25, np.float32)), 1e25, rtol=1e-6)


def test_site_rms_of_article_is_one(states):
    r = readouts.preset("article", 6)
    np.testing.assert_array_equal(readouts.site_rms(r, readouts.pick(r, states, SITES, REDUCERS)), np.ones(4))


def test_a_site_of_zeros_is_named():
    r = readouts.preset("last4", 6)
    picked = np.ones((3, 4, 2), np.float32)
    picked[:, 1] = 0
    with pytest.raises(UserError, match="resid_post@3 are all zero"):
        readouts.site_rms(r, picked)


@pytest.mark.parametrize("name", readouts.PRESETS)
def test_combine_equals_a_plain_loop(states, rng, name):
    r = readouts.preset(name, 6)
    picked = readouts.pick(r, states, SITES, REDUCERS)
    rms = rng.uniform(0.5, 3, 4).astype(np.float32)
    got = readouts.combine(r, picked, rms)
    assert got.dtype == np.float32
    for i in range(len(picked)):
        want = np.zeros(5)
        for s in range(4):
            want += r.weights[s] * picked[i, s].astype(np.float64) / float(rms[s])
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-6)


def test_weights_are_told_apart(states):
    r = readouts.preset("last4", 6)
    picked = readouts.pick(r, states, SITES, REDUCERS)
    turned = replace(r, weights=r.weights[::-1])
    assert not np.allclose(readouts.combine(r, picked, np.ones(4)), readouts.combine(turned, picked, np.ones(4)))
