"""One Linen decoder for every family. Axis letters: see `config.py`.

Weights keep the orientation of the HF checkpoints, output axes first ([N,H,D], [F,D], [V,D]): loading is a reshape of
the mapped file and never a transpose. Blocks are unrolled, but traced and lowered once for all layers of a kind. The
cache is an explicit argument and result, one K array [B,J·K,H,C] and one V array [B,K,S,H] a layer, each in the order
in which attention reads it: the key of slot s and head k is column s % C of block (s // C)·K + k, and J·C ≥ S. One
block, J = 1, holds any tokens; of several, one token a call, since two might belong into two blocks. States are sown
into the collection `intermediates` at the sites that were asked for, under their names, and only there: no site, no
cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from mood_jax.errors import UserError
from mood_jax.models import layers
from mood_jax.models.config import DecoderConfig


class LayerCache(NamedTuple):
    k: jax.Array  # [B, J·K, H, C]
    v: jax.Array  # [B, K, S, H]


Cache = tuple[LayerCache, ...]


def init_cache(config: DecoderConfig, batch: int, length: int, dtype: Any) -> Cache:
    """An empty cache of `length` slots, its keys in one block."""
    B, K, S, H = batch, config.n_kv_heads, length, config.head_dim
    return tuple(
        LayerCache(jnp.zeros((B, K, H, S), dtype), jnp.zeros((B, K, S, H), dtype)) for _ in range(config.n_layers)
    )


def grow_cache(cache: Cache, length: int, block: int | None = None) -> Cache:
    """The cache with empty slots appended, `length` in all, its keys in blocks of `block` slots (None: in one)."""
    C = length if block is None else block
    J = -(-length // C)

    def padded(x: jax.Array, axis: int, size: int) -> jax.Array:
        return jnp.pad(x, [(0, size - x.shape[axis] if a == axis else 0) for a in range(4)])

    def keys(k: jax.Array, K: int) -> jax.Array:
        if k.shape[3] == C:
            return padded(k, 1, J * K)
        B, _, H, _ = k.shape
        k = k.reshape(B, -1, K, H, k.shape[3]).transpose(0, 2, 3, 1, 4).reshape(B, K, H, -1)[..., :length]
        return padded(k, 3, J * C).reshape(B, K, H, J, C).transpose(0, 3, 1, 2, 4).reshape(B, J * K, H, C)

    return tuple(LayerCache(keys(c.k, c.v.shape[1]), padded(c.v, 2, length)) for c in cache)


def resolve_sites(config: DecoderConfig, sites: str | Sequence[str]) -> tuple[str, ...]:
    """ "all", "last4", "none", one site or a list of sites → the sites' names in the order asked for.

    Raises UserError for a site that this model does not have.
    """
    if isinstance(sites, str):
        named = {
            "all": config.sites,
            "none": (),
            "last4": tuple(f"resid_post@{k}" for k in range(max(0, config.n_layers - 4), config.n_layers)),
        }
        sites = named.get(sites, (sites,))
    known = set(config.sites)
    for site in sites:
        if site not in known:
            raise UserError(
                f"unknown site {site!r}; this model has embed, resid_post@0 … resid_post@{config.n_layers - 1} "
                "and final_norm, or use the names 'all' and 'last4'"
            )
    if len(set(sites)) != len(sites):
        raise UserError(f"a site is named twice in {list(sites)}; name each once")
    return tuple(sites)


def collect(intermediates: Mapping[str, Any], sites: Sequence[str]) -> tuple[jax.Array, ...]:
    """The sown states [B,T,D] in the order of `sites`."""
    return tuple(intermediates[site] for site in sites)


def _overwrite(_: Any, new: Any) -> Any:
    return new  # Linen's default appends to a tuple, which grows when the collection is fed back


def rotary(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of a model's rotary embedding, float32 [B, T, 1, H/2], at the positions [B, T]."""
    return layers.rotary(positions, jnp.asarray(config.rope.frequencies(config.head_dim)))


class Norm(nn.Module):
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.config.norm_plus_one else nn.initializers.ones
        scale = self.param("scale", init, (self.config.d_model,), self.dtype)
        return layers.rms_norm(x, scale, self.config.norm_eps, self.config.norm_plus_one)


class Attention(nn.Module):
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, rope, mask, cache: LayerCache | None, index):
        c = self.config
        init = nn.initializers.normal(0.02)
        bias = nn.initializers.zeros

        def project(name: str, heads: int) -> jax.Array:
            kernel = self.param(name, init, (heads, c.head_dim, c.d_model), self.dtype)
            b = self.param(f"{name}_bias", bias, (heads, c.head_dim), self.dtype) if c.qkv_bias else None
            return layers.linear(x, kernel, b)

        q = layers.rotate(project("q", c.n_heads), *rope)
        k = layers.rotate(project("k", c.n_kv_heads), *rope).transpose(0, 2, 3, 1)  # B K H T
        v = project("v", c.n_kv_heads).transpose(0, 2, 1, 3)  # B K T H
        if cache is not None:
            K, C = c.n_kv_heads, cache.k.shape[3]
            if cache.k.shape[1] > K and x.shape[1] > 1:
                raise ValueError("only a cache whose keys are in one block takes several tokens at once")
            cache = LayerCache(
                jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), (0, index // C * K, 0, index % C)),
                jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), (0, 0, index, 0)),
            )
            k, v = cache
        out = layers.attention(q, k, v, mask, c.query_scale, c.attn_softcap)
        kernel = self.param("o", init, (c.d_model, c.n_heads, c.head_dim), self.dtype)
        b = self.param("o_bias", bias, (c.d_model,), self.dtype) if c.o_bias else None
        return layers.linear(out, kernel, b, inputs=2), cache


class FeedForward(nn.Module):
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        init = nn.initializers.normal(0.02)

        def project(name: str, y: jax.Array, shape: tuple[int, int]) -> jax.Array:
            kernel = self.param(name, init, shape, self.dtype)
            b = self.param(f"{name}_bias", nn.initializers.zeros, shape[:1], self.dtype) if c.mlp_bias else None
            return layers.linear(y, kernel, b)

        gate = project("gate", x, (c.d_ff, c.d_model))
        up = project("up", x, (c.d_ff, c.d_model))
        return project("down", layers.activate(gate, c.activation) * up, (c.d_model, c.d_ff))


class Block(nn.Module):
    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x, rope, mask, cache: LayerCache | None, index):
        c = self.config

        def norm(name: str, y: jax.Array) -> jax.Array:
            return Norm(c, self.dtype, name=name)(y)

        h, cache = Attention(c, self.dtype, name="attention")(norm("attention_norm", x), rope, mask, cache, index)
        x = x + (norm("post_attention_norm", h) if c.post_norms else h)
        h = FeedForward(c, self.dtype, name="feed_forward")(norm("feed_forward_norm", x))
        x = x + (norm("post_feed_forward_norm", h) if c.post_norms else h)
        return x, cache


@partial(jax.jit, static_argnames=("config", "dtype"))
def block(params, x, rope, mask, cache: LayerCache | None, index, *, config: DecoderConfig, dtype):
    """A block on its own parameters. JAX traces and lowers it once for all layers whose arguments have the same shapes,
    which is most of what tracing a model costs; XLA puts it in place of every call before it optimises anything."""
    return Block(config, dtype).apply({"params": params}, x, rope, mask, cache, index)


class Decoder(nn.Module):
    """tokens → logits, new cache.

    Args of a call:
        tokens: int32 [B, T].
        positions: int32 [B, T], a token's place in its own sequence (0 at its first token).
        valid: bool [B, S], the cache slots that hold a token once `tokens` are written (S = T without a cache).
        cache: the cache to read and extend, or None.
        index: the slot of tokens[:, 0]; the same for all rows, since prompts are padded on the left.
        logits: "all" → float32 [B, T, V]; "last" → [B, V] of the last slot; "none" → None.
        rope: `rotary` of the positions, where the caller has it already.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32
    sites: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        valid: jax.Array,
        cache: Cache | None = None,
        index: jax.Array | int = 0,
        logits: Literal["all", "last", "none"] = "all",
        rope: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array | None, Cache | None]:
        c = self.config
        embedding = self.param("embedding", nn.initializers.normal(0.02), (c.vocab_size, c.d_model), self.dtype)
        head = embedding
        if not c.tied:
            head = self.param("unembedding", nn.initializers.normal(0.02), (c.vocab_size, c.d_model), self.dtype)

        x = jnp.take(embedding, tokens, axis=0)
        if c.embed_scale != 1.0:
            x = x * jnp.asarray(c.embed_scale, self.dtype)  # rounded to the model's dtype first, as the original does
        self._sow("embed", x)

        rope = rotary(c, positions) if rope is None else rope
        masks = {w: layers.attention_mask(valid, index, tokens.shape[1], w) for w in sorted(set(c.windows), key=str)}
        new_cache = []
        for i in range(c.n_layers):
            name, of_layer = f"block_{i}", None if cache is None else cache[i]
            args = (x, rope, masks[c.windows[i]], of_layer, index)
            if self.is_initializing():
                x, of_layer = Block(c, self.dtype, name=name)(*args)
            else:
                x, of_layer = block(self.get_variable("params", name), *args, config=c, dtype=self.dtype)
            self._sow(f"resid_post@{i}", x)
            new_cache.append(of_layer)

        final = Norm(c, self.dtype, name="output_norm")
        out = None
        if logits == "none" or (logits == "last" and "final_norm" in self.sites):
            x = final(x)
        elif logits == "last":
            x = final(x[:, -1:])
        else:
            x = final(x)
        self._sow("final_norm", x)
        if logits != "none":
            x = x[:, -1:] if logits == "last" else x
            out = jnp.einsum(
                "btd,vd->btv", x, head, preferred_element_type=jnp.float32, precision=layers.precision(head.dtype)
            )
            out = layers.softcap(out, c.final_softcap)
            out = out[:, 0] if logits == "last" else out
        return out, (None if cache is None else tuple(new_cache))

    def _sow(self, site: str, x: jax.Array) -> None:
        if site in self.sites:
            self.sow("intermediates", site, x, reduce_fn=_overwrite, init_fn=lambda: None)


def run(
    config: DecoderConfig,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
    *,
    cache: Cache | None = None,
    index: jax.Array | int = 0,
    logits: Literal["all", "last", "none"] = "all",
    sites: tuple[str, ...] = (),
    rope: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array | None, Cache | None, tuple[jax.Array, ...]]:
    """Applies the decoder functionally: (logits, cache, states [B,T,D] in the order of `sites`). For use inside jit."""
    dtype = params["embedding"].dtype
    decoder = Decoder(config, dtype, tuple(sorted(sites)))
    args = (tokens, positions, valid, cache, index, logits, rope)
    if not sites:
        out, new_cache = cast(Any, decoder.apply({"params": params}, *args))
        return out, new_cache, ()
    (out, new_cache), sown = cast(Any, decoder.apply({"params": params}, *args, mutable=["intermediates"]))
    return out, new_cache, collect(sown["intermediates"], sites)


def init_params(config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """Fresh random parameters (normal, 0.02; norms at one)."""
    token = jnp.zeros((1, 1), jnp.int32)
    decoder = Decoder(config, dtype)
    return jax.jit(lambda k: decoder.init(k, token, token, token == 0)["params"])(key)


def param_shapes(config: DecoderConfig, dtype: Any = jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Path ("block_0/attention/q") → shape and dtype of every parameter, without making any."""
    return dict(_param_shapes(config, jnp.dtype(dtype)))


@cache  # tracing a model takes half a second, and a run may load many checkpoints of one shape
def _param_shapes(config: DecoderConfig, dtype: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    token = jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(lambda: Decoder(config, dtype).init(jax.random.key(0), token, token, token == 0)["params"])
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(p.key for p in path): leaf for path, leaf in flat}
