"""Samplers: greedy, and exact top-p without a sort.

Top-p keeps the smallest set of the most probable tokens whose mass reaches p; equal probabilities are ranked by token
id. A sort of a 150 000-word vocabulary costs more than the model's step at large batch, so the nucleus is never built:
a token is drawn from the whole distribution and kept when the mass ranked before it is below p. A rejected token bounds
the nucleus from below, so the next draw is among the tokens ranked before it. Each draw is exact, and so is their end:
conditional on acceptance the distribution is the nucleus', renormalised. Rounds needed: 1 to 4 in practice.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mood_jax import numerics, values
from mood_jax.errors import UserError

BLOCK = 128  # tokens per block of the two-level inverse CDF
COLDEST, HOTTEST = 1e-6, 1e6  # temperatures; divided by less than that, logits of some size overflow float32


@dataclass(frozen=True)
class Greedy:
    """The most probable token; the lowest id among equals."""


@dataclass(frozen=True)
class TopP:
    """Nucleus sampling at a temperature, and nothing else.

    Raises UserError outside 0 < p ≤ 1 and COLDEST ≤ temperature ≤ HOTTEST.
    """

    p: float
    temperature: float = 1.0

    def __post_init__(self):
        p, temperature = values.number("top-p", self.p), values.number("the temperature", self.temperature)
        if not 0 < p <= 1:
            raise UserError(f"top-p must lie in (0, 1], not {self.p}")
        if temperature <= 0:
            raise UserError(f"the temperature must be above 0, not {self.temperature}; use Greedy() for no randomness")
        if not COLDEST <= temperature <= HOTTEST:
            raise UserError(
                f"the temperature must lie between {COLDEST:g} and {HOTTEST:g}, not {self.temperature}; use Greedy() "
                "for no randomness"
            )
        object.__setattr__(self, "p", p)  # as a float of Python's, which is what the records hold
        object.__setattr__(self, "temperature", temperature)


Sampler = Greedy | TopP


def response_keys(seed: int, ids: Sequence[str]) -> np.ndarray:
    """One base key a response, uint32 [B, 2], from the seed and crc32 of its id alone. Raises as `numerics.key`."""
    key = numerics.key(seed)
    crc = jnp.asarray([zlib.crc32(i.encode()) for i in ids], jnp.uint32)
    return np.asarray(jax.random.key_data(jax.vmap(lambda c: jax.random.fold_in(key, c))(crc)))


def sample(sampler: Sampler, logits: jax.Array, keys: jax.Array, token_index: jax.Array) -> jax.Array:
    """logits float32 [B, V], base keys uint32 [B, 2], index of the token to be drawn → int32 [B], ids below V.

    Whatever the logits hold, it ends, and a row depends on its own logits alone. Where they are not `usable`, the token
    means nothing.
    """
    if isinstance(sampler, Greedy):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    typed = jax.random.wrap_key_data(keys, impl=numerics.IMPLEMENTATION)
    typed = jax.vmap(lambda k: jax.random.fold_in(k, token_index))(typed)
    z = logits / sampler.temperature
    weights = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))  # B V, unnormalised, the largest is 1
    if sampler.p == 1.0:
        return _draw(weights, _uniform(typed, 0))
    return _nucleus(weights, typed, sampler.p)


def usable(sampler: Sampler, logits: jax.Array) -> jax.Array:
    """Which rows of the logits [B, V] can be sampled from, bool [B]: no NaN, no +inf, and not all −inf, also when they
    are divided by the sampler's temperature."""
    z = logits if isinstance(sampler, Greedy) else logits / sampler.temperature
    # NaN is asked for by itself: on a CPU the maximum of NaN and numbers may be a number.
    return jnp.isfinite(jnp.max(z, axis=-1)) & ~jnp.isnan(z).any(axis=-1)


def _uniform(keys: jax.Array, round_: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, round_)))(keys)


def _before(weights: jax.Array, weight: jax.Array, token: jax.Array) -> jax.Array:
    """Which tokens rank strictly before `token`, bool [B, V]."""
    ids = jnp.arange(weights.shape[-1])[None, :]
    tie = (weights == weight[:, None]) & (ids < token[:, None])
    return (weights > weight[:, None]) | tie


def _nucleus(weights: jax.Array, keys: jax.Array, p: float) -> jax.Array:
    bound = p * weights.sum(axis=-1)  # B: a token is in the nucleus when less mass than this ranks before it

    def attempt(round_: jax.Array | int, candidates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        token = _draw(candidates, _uniform(keys, round_))
        weight = jnp.take_along_axis(weights, token[:, None], axis=-1)[:, 0]
        mass = jnp.where(_before(weights, weight, token), weights, 0.0).sum(axis=-1)
        # Rejected where enough mass ranks before the token. Asked in this way a row ends: of NaN neither holds, and
        # what has no mass before it, such as the most probable token, is taken even if the bound rounds to 0.
        return token, weight, ~((mass >= bound) & (mass > 0))

    def body(carry):
        round_, token, weight, accepted = carry
        candidates = jnp.where(_before(weights, weight, token), weights, 0.0)
        again, again_weight, ok = attempt(round_, candidates)
        return (
            round_ + 1,
            jnp.where(accepted, token, again),
            jnp.where(accepted, weight, again_weight),
            accepted | ok,
        )

    token, weight, accepted = attempt(0, weights)
    # A rejected token has candidates of some mass before it, and the next is drawn from those alone: they become fewer
    # in every round, and the most probable token is accepted. So every row ends.
    return lax.while_loop(lambda c: ~c[3].all(), body, (jnp.int32(1), token, weight, accepted))[1]


def _draw(weights: jax.Array, u: jax.Array) -> jax.Array:
    """One draw a row, proportional to `weights` [B, V], by a two-level inverse CDF of u [B] in [0, 1)."""
    B, V = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    sums = blocks.sum(axis=-1)  # B blocks
    cumulative = jnp.cumsum(sums, axis=-1)
    total = cumulative[:, -1]
    target = jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros_like(total)))
    block = jnp.minimum((cumulative <= target[:, None]).sum(axis=-1), sums.shape[-1] - 1)
    # A parallel cumulative sum may rise over an empty block by one rounding: never land there.
    block = jnp.where(jnp.take_along_axis(sums, block[:, None], 1)[:, 0] > 0, block, jnp.argmax(sums, axis=-1))
    start = jnp.where(block > 0, jnp.take_along_axis(cumulative, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # B BLOCK
    offset = (jnp.cumsum(inside, axis=-1) <= (target - start)[:, None]).sum(axis=-1)
    offset = jnp.minimum(offset, BLOCK - 1)
    # Rounding may carry the target past the block's own sum, or onto a token without weight: then its last with any.
    last = BLOCK - 1 - jnp.argmax((inside > 0)[:, ::-1], axis=-1)
    ok = jnp.take_along_axis(inside, offset[:, None], 1)[:, 0] > 0
    # A padded slot has no weight and is never drawn but where all weights are NaN.
    return jnp.minimum(block * BLOCK + jnp.where(ok, offset, last), V - 1).astype(jnp.int32)
