"""Published models' shapes, and models of such a shape whose random parameters are made on the device.

`SHAPES` holds the fields of each model's config.json that decide its arithmetic, under their names there, so that
`--config.shape.num_hidden_layers=4` changes one. Nothing is downloaded, and no file is written or read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mood_jax.errors import UserError
from mood_jax.generation import engine, memory
from mood_jax.generation.chat import Chat, RenderedPrompt
from mood_jax.generation.model import Model, random_weights
from mood_jax.models import families
from mood_jax.models.checkpoint import Checkpoint, unflatten
from mood_jax.models.config import DecoderConfig
from mood_jax.models.decoder import param_shapes
from mood_jax.models.sharding import param_sharding


def _shape(model_type: str, sizes: tuple[int, ...], **others: Any) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads")
    return {"model_type": model_type, **dict(zip(names, sizes, strict=True)), **others}


def _llama3_1(sizes: tuple[int, ...]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return _shape(
        "llama",
        sizes,
        rope_parameters=rope,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )


def _plain(model_type: str, sizes: tuple[int, ...], theta: float, eps: float, positions: int, **others: Any):
    return _shape(
        model_type,
        sizes,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        rms_norm_eps=eps,
        max_position_embeddings=positions,
        tie_word_embeddings=others.pop("tied", False),
        **others,
    )


# name → fields of config.json; sizes are V, D, F, L, query heads, key/value heads.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2_5_7b": _plain("qwen2", (152064, 3584, 18944, 28, 28, 4), 1e6, 1e-6, 32768),
    "deepseek_llm_7b": _plain("llama", (102400, 4096, 11008, 30, 32, 32), 1e4, 1e-6, 4096),
    "llama3_1_8b": _llama3_1((128256, 4096, 14336, 32, 32, 8)),
    "yi1_5_9b": _plain("llama", (64000, 4096, 11008, 48, 32, 4), 5e6, 1e-6, 4096),
    "gemma2_9b": _plain(
        "gemma2",
        (256000, 3584, 14336, 42, 16, 8),
        1e4,
        1e-6,
        8192,
        tied=True,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "mistral_7b": _plain(
        "mistral", (32768, 4096, 14336, 32, 32, 8), 1e6, 1e-5, 32768, sliding_window=None, head_dim=128
    ),
    "llama3_1_70b": _llama3_1((128256, 8192, 28672, 80, 64, 8)),
    "qwen2_5_72b": _plain("qwen2", (152064, 8192, 29568, 80, 64, 8), 1e6, 1e-6, 32768),
    "llama3_1_405b": _llama3_1((128256, 16384, 53248, 126, 128, 8)),
    "tiny": _plain("qwen2", (4096, 256, 688, 4, 8, 4), 1e6, 1e-6, 4096),
    "small": _plain("llama", (4096, 256, 688, 8, 8, 4), 1e4, 1e-5, 4096),
}


def shape_config(name: str, **changes: Any) -> ConfigDict:
    """The config of `scripts/benchmark_throughput.py` for one of SHAPES. Raises UserError for an unknown name."""
    config = ConfigDict(
        {
            "name": name,
            "shape": fields(name),  # as in the model's config.json
            "dtype": "bfloat16",  # or float32
            "batch_sizes": (64, 256, 420),  # those that do not fit the device are left out, and said to be
            "prompt_tokens": 60,
            "new_tokens": 200,  # of every response: there is no end of sequence
            "repeats": 5,  # rounds in which the paths take turns; medians are of these
            "mesh_data": 1,  # devices over which batch rows are spread
            "mesh_model": 1,  # devices over which heads, feed-forward and vocabulary are spread
            "seed": 0,
            "hf": False,  # transformers beside it, with random weights of its own: needs torch and the memory for both
            "single_responses": 1,  # a round, for transformers at batch 1
            "torch_threads": 0,  # 0: torch's own choice
        }
    )
    config.update(changes)
    return config


def fields(name: str) -> dict[str, Any]:
    """The fields of config.json of one of SHAPES. Raises UserError for an unknown name."""
    if name not in SHAPES:
        raise UserError(f"unknown shape {name!r}; known are {', '.join(SHAPES)}")
    return dict(SHAPES[name])


def hf_config(shape: Mapping[str, Any]) -> Any:
    """Fields of a config.json → its transformers config. Raises UserError for a model type that is not supported."""
    given = ConfigDict(shape).to_dict()
    kind = given.pop("model_type", None)
    if kind not in families.FAMILIES:
        raise UserError(f"unknown model_type {kind!r} in the shape; use one of {', '.join(sorted(families.FAMILIES))}")
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **given)


def decoder_config(shape: Mapping[str, Any] | str) -> DecoderConfig:
    """Fields of a config.json, or the name of one of SHAPES → DecoderConfig."""
    return families.decoder_config(hf_config(fields(shape) if isinstance(shape, str) else shape))


class TokenChat:
    """Stands in for a chat where there are only token ids: no template, no text, and no end of sequence."""

    eos_token_ids: tuple[int, ...] = ()

    def render(self, prompt: Sequence[int]) -> RenderedPrompt:
        digest = hashlib.sha256(np.asarray(prompt, np.int32).tobytes()).hexdigest()[:16]
        return RenderedPrompt(None, tuple(int(i) for i in prompt), digest)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def random_model(name: str, config: DecoderConfig, mesh: Mesh, dtype: str = "bfloat16", seed: int = 0) -> Model:
    """A model of this shape on the devices of `mesh`, its parameters normal with standard deviation .02."""
    kind: Any = jnp.dtype(dtype)
    like = {
        path: jax.ShapeDtypeStruct(leaf.shape, kind, sharding=param_sharding(mesh, path, leaf.shape))
        for path, leaf in param_shapes(config).items()
    }
    empty = Checkpoint(name, Path(), None, config, unflatten(cast(Any, like)), mesh, dtype, f"shape/{name}")
    return random_weights(Model(empty, cast(Chat, TokenChat())), seed)


def random_prompts(config: DecoderConfig, batch: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """`batch` prompts of `tokens` random ids."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, config.vocab_size, (batch, tokens)).tolist()


def batches_that_fit(
    name: str, config: DecoderConfig, mesh: Mesh, sizes: Sequence[int], **about: Any
) -> tuple[list[int], list[str]]:
    """Those of the batch sizes that fit a device of the mesh, and a line for each of the others.

    about: prompt, new, dtype, sites, reducers, as of `memory.estimate`. Raises UserError when none of them fits, before
    anything is made.
    """
    room = memory.device_limit(mesh) * (1 - memory.MARGIN)
    fit, lines = [], []
    for size in sorted(sizes):
        on = {"data": mesh.shape["data"], "model": mesh.shape["model"], "block": engine.key_block(mesh)}
        m = memory.estimate(config, batch=size, **on, **about)
        if m.generation <= room:
            fit.append(size)
            continue
        lines.append(
            f"{name} at batch {size} takes {m.generation / 2**30:.1f} GiB a device ({m.params / 2**30:.1f} of them "
            f"weights, {m.cache / 2**30:.1f} cache), and {room / 2**30:.1f} GiB are free for it"
        )
    if not fit:
        raise UserError(
            f"{lines[0] if lines else 'config.batch_sizes is empty'}; take a GPU or TPU with the memory for it, more "
            "devices (config.mesh_model), smaller config.batch_sizes, or --config=configs/shapes/tiny.py"
        )
    return fit, lines
