"""The decoder as a module: sites cost nothing unasked, padding is inert, the cache is the sequence."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mood_jax import parity
from mood_jax.errors import UserError
from mood_jax.models import families, layers
from mood_jax.models.decoder import (
    Decoder,
    LayerCache,
    collect,
    grow_cache,
    init_cache,
    init_params,
    param_shapes,
    resolve_sites,
    run,
)

pytestmark = pytest.mark.usefixtures("unoptimised")

CONFIG = families.decoder_config(parity.tiny_config("gemma2", num_hidden_layers=2))
LENGTHS = (9, 6, 2)


@pytest.fixture
def params(rng):
    return jax.tree.map(jnp.asarray, parity.random_params(CONFIG, rng))


@pytest.fixture
def inputs(rng):
    tokens, real, positions = parity.left_pad([rng.integers(1, CONFIG.vocab_size, n).tolist() for n in LENGTHS])
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(real)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


# Sites


def test_a_site_that_is_not_asked_for_costs_nothing(params, inputs):
    plain = jax.jit(lambda p, *x: Decoder(CONFIG, sites=()).apply({"params": p}, *x)[0])
    through_run = jax.jit(lambda p, *x: run(CONFIG, p, *x)[0])
    sown = jax.jit(lambda p, *x: run(CONFIG, p, *x, sites=CONFIG.sites)[::2])

    def text(f):
        return f.lower(params, *inputs).as_text().replace("jit__lambda_", "f")

    assert text(plain) == text(through_run)
    # Sown, but not made mutable: Linen drops it.
    dropped = jax.jit(lambda p, *x: Decoder(CONFIG, sites=CONFIG.sites).apply({"params": p}, *x)[0])
    assert text(dropped) == text(plain)
    compiled = [f.lower(params, *inputs).compile() for f in (plain, sown)]
    flops, with_sites = (c.cost_analysis()["flops"] for c in compiled)
    assert with_sites <= 1.01 * flops  # XLA may repeat an elementwise sum to fuse it; a matrix product it may not
    results = [len(jax.tree.leaves(f.eval_shape(params, *inputs))) for f in (plain, sown)]
    assert results == [1, 1 + len(CONFIG.sites)]


def test_prefill_pays_for_one_position_of_logits(params, inputs):
    def flops(logits):
        f = jax.jit(lambda p, *x: run(CONFIG, p, *x, logits=logits, sites=("resid_post@1",))[::2])
        return f.lower(params, *inputs).compile().cost_analysis()["flops"]

    B, T = inputs[0].shape
    product = 2 * CONFIG.d_model * CONFIG.vocab_size  # of one position
    assert flops("all") - flops("last") >= 0.9 * B * (T - 1) * product
    assert flops("last") - flops("none") >= 0.9 * B * product


@pytest.mark.parametrize("sites", [("embed",), ("resid_post@1", "embed"), ("final_norm", "resid_post@0")])
def test_chosen_sites_are_the_ones_of_all_in_the_order_asked_for(params, inputs, sites):
    logits, _, every = run(CONFIG, params, *inputs, sites=CONFIG.sites)
    some_logits, _, some = run(CONFIG, params, *inputs, sites=sites)
    assert len(some) == len(sites)
    _, sown = Decoder(CONFIG, sites=sites).apply({"params": params}, *inputs, mutable=["intermediates"])
    assert len(jax.tree.leaves(sown)) == len(sites)
    for site, state in zip(sites, some, strict=True):
        np.testing.assert_array_equal(state, every[CONFIG.sites.index(site)])
    np.testing.assert_array_equal(logits, some_logits)
    assert not np.array_equal(every[1], every[2])


def test_logits_all_last_none(params, inputs):
    every, _, states = run(CONFIG, params, *inputs, sites=CONFIG.sites)
    last, _, same = run(CONFIG, params, *inputs, sites=CONFIG.sites, logits="last")
    assert last.shape == (3, CONFIG.vocab_size)
    assert last.dtype == every.dtype == jnp.float32
    close(last, every[:, -1])
    close(run(CONFIG, params, *inputs, logits="last")[0], every[:, -1])
    nothing, _, also = run(CONFIG, params, *inputs, sites=CONFIG.sites, logits="none")
    assert nothing is None
    for a, b, c in zip(states, same, also, strict=True):
        close(b, a)
        close(c, a)


def test_states_do_not_grow_when_the_collection_is_fed_back(params, inputs):
    decoder = Decoder(CONFIG, sites=CONFIG.sites)
    variables = {"params": params}
    sizes = []
    for _ in range(3):
        _, sown = decoder.apply(variables, *inputs, mutable=["intermediates"])
        sizes.append([x.shape for x in jax.tree.leaves(sown)])
        variables = {"params": params, **sown}
    assert sizes[0] == sizes[1] == sizes[2] == [(*inputs[0].shape, CONFIG.d_model)] * len(CONFIG.sites)
    # The second application's states are its own, not the first's.
    other = (inputs[0] * 0 + 5, *inputs[1:])
    _, sown = decoder.apply(variables, *other, mutable=["intermediates"])
    fresh = run(CONFIG, params, *other, sites=CONFIG.sites)[2]
    for a, b in zip(collect(sown["intermediates"], CONFIG.sites), fresh, strict=True):
        np.testing.assert_array_equal(a, b)


def test_resolve_sites():
    deep = replace(CONFIG, n_layers=6, windows=(None,) * 6)
    assert resolve_sites(CONFIG, "all") == ("embed", "resid_post@0", "resid_post@1", "final_norm")
    assert resolve_sites(CONFIG, "none") == ()
    assert resolve_sites(deep, "last4") == tuple(f"resid_post@{k}" for k in (2, 3, 4, 5))
    assert resolve_sites(CONFIG, "last4") == ("resid_post@0", "resid_post@1")
    assert resolve_sites(CONFIG, "resid_post@1") == ("resid_post@1",)
    assert resolve_sites(CONFIG, ["final_norm", "embed"]) == ("final_norm", "embed")
    assert resolve_sites(CONFIG, []) == ()
    for wrong in ("resid_post@2", "resid_post", "resid_post@-1", "Embed", "", ["embed", "attention"], ["all", "embed"]):
        with pytest.raises(UserError, match=r"unknown site .*resid_post@0 … resid_post@1"):
            resolve_sites(CONFIG, wrong)
    with pytest.raises(UserError, match="named twice"):
        resolve_sites(CONFIG, ["embed", "embed"])


# Padding and the cache


def test_the_amount_of_left_padding_changes_nothing(params, rng):
    ids = rng.integers(1, CONFIG.vocab_size, 9).tolist()
    want = run(CONFIG, params, *_inputs([ids], 0), sites=CONFIG.sites)
    for extra, pad in ((1, 7), (15, CONFIG.vocab_size - 1)):
        got = run(CONFIG, params, *_inputs([ids], extra, pad), sites=CONFIG.sites)
        for a, b in zip((got[0], *got[2]), (want[0], *want[2]), strict=True):
            close(a[:, extra:], b)


def test_a_row_does_not_see_its_neighbours(params, rng):
    rows = [rng.integers(1, CONFIG.vocab_size, n).tolist() for n in LENGTHS]
    together = run(CONFIG, params, *_inputs(rows, 0), sites=CONFIG.sites)
    for i, row in enumerate(rows):
        alone = run(CONFIG, params, *_inputs([row], 0), sites=CONFIG.sites)
        for a, b in zip((together[0], *together[2]), (alone[0], *alone[2]), strict=True):
            close(a[i : i + 1, -len(row) :], b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_padding_is_never_nan_and_reaches_no_token(params, inputs, dtype):
    tokens, positions, real = inputs
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    for valid in (real, real.at[2].set(False)):  # the second: a row of nothing but padding, as a last batch has
        logits, _, states = run(CONFIG, params, tokens, positions, valid, sites=CONFIG.sites)
        assert all(bool(jnp.isfinite(x).all()) for x in (logits, *states))
    other = jnp.where(real, tokens, 11)
    a, b = (run(CONFIG, params, t, positions, real, sites=CONFIG.sites) for t in (tokens, other))
    for x, y in zip((a[0], *a[2]), (b[0], *b[2]), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[real], np.asarray(y)[real])


def test_slots_that_are_not_valid_are_not_read(params, inputs):
    """What stands in a cache's unwritten or padded slots cannot matter, even NaN-free garbage of any size."""
    tokens, positions, real = inputs
    B, T = tokens.shape
    valid = jnp.pad(real, ((0, 0), (0, 4)))
    clean = init_cache(CONFIG, B, T + 4, jnp.float32)
    dirty = jax.tree.map(lambda x: x + 1e4, clean)
    a, b = (run(CONFIG, params, tokens, positions, valid, cache=c, sites=CONFIG.sites) for c in (clean, dirty))
    for x, y in zip((a[0], *a[2]), (b[0], *b[2]), strict=True):
        np.testing.assert_array_equal(np.asarray(x)[real], np.asarray(y)[real])


def test_the_cache_gives_the_states_of_one_pass(params, inputs):
    """Prefill of any length, then chunks of any length; the mask and the positions decide, not the split."""
    tokens, positions, real = inputs
    B, T = tokens.shape
    want = run(CONFIG, params, tokens, positions, real, sites=CONFIG.sites)
    for splits in ((0, 5, T), (0, 1, 5, T)):
        cache = init_cache(CONFIG, B, T + 2, jnp.float32)
        parts = []
        for start, end in itertools.pairwise(splits):
            valid = jnp.zeros((B, T + 2), bool).at[:, :end].set(real[:, :end])
            at = slice(start, end)
            logits, cache, states = run(
                CONFIG, params, tokens[:, at], positions[:, at], valid, cache=cache, index=start, sites=CONFIG.sites
            )
            parts.append((logits, *states))
        for whole, *pieces in zip((want[0], *want[2]), *parts, strict=True):
            close(np.concatenate(pieces, axis=1)[np.asarray(real)], np.asarray(whole)[np.asarray(real)])


def _inputs(rows, extra, pad=0):
    tokens, real, positions = parity.left_pad(rows, pad)
    widths = ((0, 0), (extra, 0))
    return (
        jnp.asarray(np.pad(tokens, widths, constant_values=pad)),
        jnp.asarray(np.pad(positions, widths)),
        jnp.asarray(np.pad(real, widths)),
    )


# Parameters and pure functions


def test_parameters():
    shapes = param_shapes(CONFIG, jnp.bfloat16)
    fresh = init_params(CONFIG, jax.random.key(0))
    assert {x.dtype for x in shapes.values()} == {jnp.dtype(jnp.bfloat16)}
    norms = sum(x.size for p, x in shapes.items() if p.endswith("scale"))
    assert sum(x.size for x in shapes.values()) == CONFIG.n_params + norms
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_flatten_with_path(fresh)[0]}
    assert {p: x.shape for p, x in flat.items()} == {p: x.shape for p, x in shapes.items()}
    assert not np.any(flat["output_norm/scale"])  # (1 + w)


def test_attention_against_loops(rng):
    """Grouped queries, mask, scale and soft-cap, written out one query at a time."""
    B, T, N, K, H = 2, 5, 4, 2, 3
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((B, T, N, H), (B, K, T, H), (B, K, T, H)))
    valid = np.asarray([[False, True, True, True, True], [True] * 5])
    for window, cap in ((None, None), (2, 1.5)):
        mask = layers.attention_mask(jnp.asarray(valid), 0, T, window)
        keys_last = jnp.asarray(k).swapaxes(2, 3)  # B K H S, as the cache holds them
        ours = np.asarray(layers.attention(jnp.asarray(q), keys_last, jnp.asarray(v), mask, 0.7, cap))
        in_blocks, _ = grow_cache((LayerCache(keys_last, jnp.asarray(v)),), T, 2)[0]  # three of two slots, for five
        in_blocks = in_blocks.at[:, -K:, :, -1].set(jnp.nan)  # the sixth is nobody's
        blocks = np.asarray(layers.attention(jnp.asarray(q), in_blocks, jnp.asarray(v), mask, 0.7, cap))
        np.testing.assert_allclose(blocks, ours, rtol=1e-5, atol=1e-6)
        for b, t, n in np.ndindex(B, T, N):
            if not valid[b, t]:
                continue
            first = 0 if window is None else max(0, t - window + 1)
            keys = [s for s in range(first, t + 1) if valid[b, s]]
            scores = np.asarray([0.7 * q[b, t, n] @ k[b, n // (N // K), s] for s in keys])
            scores = scores if cap is None else cap * np.tanh(scores / cap)
            weights = np.exp(scores) / np.exp(scores).sum()
            want = sum(w * v[b, n // (N // K), s] for w, s in zip(weights, keys, strict=True))
            np.testing.assert_allclose(ours[b, t, n], want, rtol=1e-4, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_alone(fixed_rng):
    # Fixed: some vectors have nearly the same product at two distances.
    q, k = (jnp.asarray(fixed_rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))
    frequencies = jnp.asarray([1.0, 0.3, 0.05, 0.001])

    def turn(x, position):
        return layers.rotate(x, *layers.rotary(jnp.asarray([[position]]), frequencies))

    products = [float(jnp.vdot(turn(q, p + 4), turn(k, p))) for p in (0, 3, 50)]
    np.testing.assert_allclose(products, products[0], rtol=1e-4, atol=1e-4)
    assert abs(products[0] - float(jnp.vdot(turn(q, 9), turn(k, 0)))) > 1e-3
    np.testing.assert_allclose(jnp.linalg.norm(turn(q, 77)), jnp.linalg.norm(q), rtol=1e-5)
    np.testing.assert_allclose(turn(q, 0), q, rtol=1e-6)


def test_bfloat16_norms_and_softmax_are_computed_in_float32(rng):
    x = jnp.asarray(rng.standard_normal((1, 1, 4096)) * 1e-3, jnp.bfloat16)
    scale = jnp.full((4096,), 2.296875, jnp.bfloat16)
    want = np.asarray(x, np.float64)
    want = want / np.sqrt((want**2).mean() + 1e-6) * 3.296875
    got = np.asarray(layers.rms_norm(x, scale, 1e-6, plus_one=True), np.float64)
    np.testing.assert_allclose(got, want, rtol=1.01 * 2**-8)  # one rounding, at the end
    f = partial(layers.attention, scale=1.0, cap=None)
    q = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    jaxpr = str(jax.make_jaxpr(f)(q, q.transpose(0, 2, 3, 1), q.transpose(0, 2, 1, 3), jnp.ones((1, 2, 2), bool)))
    assert "exp" in jaxpr
    assert not [line for line in jaxpr.splitlines() if " exp " in line and "bf16" in line]
