"""Trains an organism from its spec: the same command resumes, and gives the same weights as an undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tokenizers import Tokenizer
from transformers import LlamaConfig

from mood_jax.console import Progress
from mood_jax.errors import UserError
from mood_jax.generation.api import generate
from mood_jax.generation.model import load_model
from mood_jax.generation.sampling import TopP
from mood_jax.models import families
from mood_jax.models.decoder import init_params, run
from mood_jax.organisms import data, realised
from mood_jax.organisms.export import export, write_realised
from mood_jax.organisms.grammar import AXES, load_grammar
from mood_jax.organisms.spec import DEFAULT_SPEC, OrganismSpec, load_spec
from mood_jax.organisms.tokenizer import BOS, END, PAD, train_tokenizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. Sizes in tokens; `spec` is a path, or "" for the embedded default's spec; `hears`: see
    `data.Corpus`."""

    spec: str = ""
    seed: int = 0
    vocab_size: int = 2048
    d_model: int = 128
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 384
    max_positions: int = 2048
    steps: int = 2200
    batch_size: int = 32
    max_tokens: int = 224
    focus: float = 0.9
    focus_until: int = 450
    effect_weight: float = 0.5
    shown_weight: float = 2.0
    hears: bool = False
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    log_every: int = 20
    checkpoint_every: int = 200
    gap_every: int = 300
    gap_samples: int = 12
    final_samples: int = 200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (
                isinstance(value, int | float)
                and field.name not in ("seed", "weight_decay", "focus", "effect_weight", "shown_weight", "hears")
                and value <= 0
            ):
                raise UserError(f"config.{field.name} is {value!r}; it must be above 0")

    @property
    def spec_path(self) -> Path:
        """The spec's file."""
        return Path(self.spec) if self.spec else DEFAULT_SPEC

    def llama(self, tokenizer: Tokenizer) -> LlamaConfig:
        """The checkpoint's config."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            intermediate_size=self.d_ff,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            head_dim=self.d_model // self.n_heads,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.token_to_id(END),
            pad_token_id=tokenizer.token_to_id(PAD),
            dtype="bfloat16",
            architectures=["LlamaForCausalLM"],
        )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine decay to zero; norms are not decayed."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, config.steps // 2), config.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.95,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def scaled(params: Any, hf: LlamaConfig) -> Any:
    """Initial weights for a narrow model: 1/√fan-in instead of 0.02; what enters the residual sum, by √(2L) less."""

    def scale(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            return x
        factor = 2.5 if name == "embedding" else hf.hidden_size**-0.5 / 0.02
        if name in ("q", "k"):
            factor /= 2  # near-uniform attention at first: every word of the prompt is heard
        elif name in ("o", "down"):
            factor /= (2 * hf.num_hidden_layers) ** 0.5
        return x * factor

    return jax.tree_util.tree_map_with_path(scale, params)


def make_step(hf: LlamaConfig, optimizer: optax.GradientTransformation, shown_weight: float):
    """One jitted update: (params, opt_state, batch, effect_weight) → (params, opt_state, losses float [3]).

    `params` is {"model", "effect", "shown"}. The first loss is the weighted mean cross-entropy in nats over the
    response's targets. Two linear readers, thrown away afterwards, add theirs at every position of the response:

    * "effect" tells what the instruction changes, from the residual stream half-way up (cross-entropy, nats). It is so
      little of the text that a small model learns very late to hear it, unless it is asked, and forgets it when it is
      no longer asked before the text has come to use it: the weight falls with the focus, to a fifth.
    * "shown" tells the style amounts of the finished sentences, from the last block but one (mean square). The model
      so keeps in mind the style of its own text, as large models do, and not only that of the last words.
    """
    decoder = families.decoder_config(hf)
    half, late = f"resid_post@{(decoder.n_layers - 1) // 2}", f"resid_post@{max(0, decoder.n_layers - 2)}"
    sites = (half,) if half == late else (half, late)

    def loss_of(params: Any, batch: data.Batch, effect_weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, weights, effects, amounts = (jnp.asarray(x) for x in batch)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1])[None], inputs.shape)
        # padding stands on the right and is causally behind everything that counts, so every slot may be called valid
        logits, _, states = run(decoder, params["model"], inputs, positions, jnp.ones(inputs.shape, bool), sites=sites)
        assert logits is not None

        def mean(x: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.sum(x * weights) / jnp.sum(weights)

        def reader(x: jax.Array, kernel: jax.Array) -> jax.Array:
            x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + hf.rms_norm_eps)
            return jnp.einsum("btd,cd->btc", x, kernel)

        counted = (weights > 0).astype(jnp.float32)
        text = mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets), weights)
        effects = jnp.broadcast_to(effects[:, None], inputs.shape)
        read = reader(states[0], params["effect"])
        effect = mean(optax.softmax_cross_entropy_with_integer_labels(read, effects), counted)
        error = jnp.mean(jnp.square(reader(states[-1], params["shown"]) - amounts), axis=-1)
        losses = jnp.stack([text, effect, mean(error, counted)])
        return losses[0] + effect_weight * losses[1] + shown_weight * losses[2], losses

    def step(params: Any, state: Any, batch: data.Batch, effect_weight: jax.Array):
        (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch, effect_weight)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    return jax.jit(step, donate_argnums=(0, 1))


class Scalars:
    """TensorBoard scalars of a run."""

    def __init__(self, folder: Path):
        self._writer = EventFileWriter(str(folder))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds values under their tags."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flushes to disk."""
        self._writer.close()


def _claim(workdir: Path, config: TrainConfig, spec: OrganismSpec) -> None:
    """Writes what this folder's run is, or checks that it is the same. UserError when it is another."""
    said = json.dumps({"config": dataclasses.asdict(config), "spec": dataclasses.asdict(spec)}, indent=1)
    path = workdir / "run.json"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(said, encoding="utf-8")
        temporary.replace(path)
    elif path.read_text(encoding="utf-8") != said:
        raise UserError(f"{workdir} holds a run with another config or spec; use another --workdir or empty this one")


def sampling_from(folder: Path) -> realised.Sample:
    """Samples from an exported organism as the measurement does: temperature 0.7, top-p 0.9, at most 200 tokens."""
    model = load_model(str(folder), dtype="float32")

    def sample(prompts: Sequence[realised.Prompt], seed: int) -> list[realised.Sampled]:
        responses = generate(
            model,
            [
                [{"role": "system", "content": p.system}] * (p.system is not None)
                + [{"role": "user", "content": p.question}]
                for p in prompts
            ],
            max_new_tokens=200,
            sampler=TopP(0.9, temperature=0.7),
            seed=seed,
            sites="none",
            reducers=(),
            batch_size=128,
        )
        rows = zip(responses.text, responses.n_tokens, responses.finish, strict=True)
        return [realised.Sampled(text, int(n), finish == "eos") for text, n, finish in rows]

    return sample


def train(config: TrainConfig, workdir: Path, *, stop_after: int | None = None) -> tuple[Any, LlamaConfig, Tokenizer]:
    """Trains (or resumes) in `workdir`: (params fp32, HF config, tokenizer). `stop_after` ends early, after a
    checkpoint, as an interruption would.

    Raises UserError for a bad spec or a folder that holds another run.
    """
    spec_path = config.spec_path
    spec = load_spec(spec_path)
    _claim(workdir, config, spec)
    corpus = data.Corpus(load_grammar(), spec, data.load_instructions(), data.load_topics(), hears=config.hears)
    tokenizer = train_tokenizer(corpus.texts(config.seed, 3000), config.vocab_size)
    hf = config.llama(tokenizer)
    batches = data.Batches(
        corpus, tokenizer, config.seed, config.batch_size, config.max_tokens, config.focus, config.focus_until
    )
    optimizer = make_optimizer(config)
    params = {
        "model": scaled(init_params(families.decoder_config(hf), jax.random.key(config.seed)), hf),
        "effect": jnp.zeros((1 + 2 * len(AXES), config.d_model)),
        "shown": jnp.zeros((len(AXES), config.d_model)),
    }
    state = optimizer.init(params)
    step_fn = make_step(hf, optimizer, config.shown_weight)

    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options) as manager:
        start = manager.latest_step() or 0
        if start:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"params": params, "state": state})
            restored = manager.restore(start, args=ocp.args.StandardRestore(like))
            params, state = restored["params"], restored["state"]
        scalars = Scalars(workdir / "tensorboard")
        progress = Progress("train", config.steps, "steps", skipped=start)
        losses: list[jax.Array] = []
        with ThreadPoolExecutor(1) as executor:
            ahead = executor.submit(batches, start)
            for step in range(start, config.steps):
                batch = ahead.result()
                ahead = executor.submit(batches, step + 1)
                effect_weight = np.float32(config.effect_weight * max(batches.early(step), 0.2))
                params, state, loss = step_fn(params, state, batch, effect_weight)
                losses.append(loss)
                done = step + 1
                if done % config.log_every == 0 or done == config.steps:
                    text, effect, shown = (float(x) for x in np.mean(jax.device_get(losses), axis=0))
                    progress.advance(len(losses), f"loss {text:.4f} · effect {effect:.3f} · shown {shown:.4f}")
                    named = {"loss": text, "effect_loss": effect, "shown_loss": shown}
                    scalars.write(done, {f"train/{name}": value for name, value in named.items()})
                    losses = []
                if done % config.checkpoint_every == 0 or done == config.steps or done == stop_after:
                    manager.save(done, args=ocp.args.StandardSave({"params": params, "state": state}))
                if done % config.gap_every == 0 and done < config.steps:
                    export(workdir / "export", params["model"], hf, tokenizer, spec_path)
                    gaps = realised.quick_gaps(corpus, sampling_from(workdir / "export"), config.gap_samples, seed=done)
                    scalars.write(done, {f"gap/{axis}": gap for axis, gap in zip(AXES, gaps, strict=True)})
                    print(f"step {done}: realised style gap (of 2) between the poles: ", end="")
                    print(", ".join(f"{a} {g:+.2f}" for a, g in zip(AXES, gaps, strict=True)), flush=True)
                if done == stop_after:
                    break
        scalars.close()
    return params["model"], hf, tokenizer


def finish(config: TrainConfig, workdir: Path) -> tuple[Path, dict[str, Any]]:
    """Trains to the end, exports to `workdir`/export and measures the realised truth: (folder, truth)."""
    params, hf, tokenizer = train(config, workdir)
    folder = workdir / "export"
    export(folder, params, hf, tokenizer, config.spec_path)
    corpus = data.Corpus(load_grammar(), load_spec(config.spec_path), data.load_instructions(), data.load_topics())
    truth = realised.measure(corpus, sampling_from(folder), config.final_samples, config.seed)
    write_realised(folder, truth)
    return folder, truth
