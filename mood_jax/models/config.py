"""`DecoderConfig`: everything in which one family's decoder differs from another's, as data.

Axis letters used in every module of this package:

    B batch · T query length · S cache length · N query heads · K key/value heads · G = N / K · H head size
    J blocks of C slots of the keys · D model size · F feed-forward size · L layers · V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mood_jax.errors import UserError


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `kind` is "default", "linear" or "llama3"; the four fields after it belong to the latter two.

    `limit` is the longest text for which the frequencies hold (dynamic NTK scaling), None where any length is right. It
    is no part of the representation, hence of no fingerprint: within it the numbers are those of the plain kind.
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    limit: int | None = field(default=None, repr=False)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Angular frequency per pair of dimensions, float32 [H/2].

        Llama 3 (Meta's reference `apply_scaling`): wavelengths beyond original/low_freq_factor are stretched by
        `factor`, those below original/high_freq_factor are kept, the band between is interpolated linearly in
        original/wavelength.
        """
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequency = (1.0 / np.float32(self.theta) ** exponent).astype(np.float32)
        if self.kind == "default":
            return frequency
        if self.kind == "linear":
            return (frequency / np.float32(self.factor)).astype(np.float32)
        wavelength = 2 * np.pi / frequency
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * frequency / self.factor + smooth * frequency
        long_wave = wavelength > self.original_max_positions / self.low_freq_factor
        stretched = np.where(long_wave, frequency / self.factor, blended)
        kept = wavelength < self.original_max_positions / self.high_freq_factor
        return np.where(kept, frequency, stretched).astype(np.float32)


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer. Frozen and hashable: it is a static argument of every jitted function.

    `windows[k]` is the attention window of block k in tokens, the query itself counted, or None for full attention.
    `norm_plus_one`: RMSNorm multiplies with (1 + w). `post_norms`: a second norm after attention and after the
    feed-forward, before each residual sum (Gemma 2). `query_scale` multiplies q·k. `embed_scale` multiplies the
    embedding. Soft-caps are c·tanh(x/c), None where the family has none.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope: Rope
    norm_eps: float
    query_scale: float
    max_positions: int
    windows: tuple[int | None, ...]
    tied: bool
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norm_plus_one: bool = False
    post_norms: bool = False
    embed_scale: float = 1.0
    attn_softcap: float | None = None
    final_softcap: float | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of this model in reading order: embed, resid_post@0 … resid_post@L−1, final_norm."""
        return ("embed", *(f"resid_post@{k}" for k in range(self.n_layers)), "final_norm")

    def check_length(self, tokens: int) -> None:
        """Raises UserError for a text of more tokens than the rotary embedding holds for."""
        if self.rope.limit is not None and tokens > self.rope.limit:
            raise UserError(
                f"a text of {tokens} tokens is longer than {self.rope.limit}, beyond which the model's dynamic rotary "
                "scaling changes every state; that is not supported: shorten the text"
            )

    @property
    def n_params(self) -> int:
        attention = self.d_model * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        head = 0 if self.tied else self.vocab_size * self.d_model
        return self.vocab_size * self.d_model + head + self.n_layers * (attention + 3 * self.d_model * self.d_ff)
