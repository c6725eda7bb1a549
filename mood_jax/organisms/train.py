"""Trains an organism from its spec: the same command resumes, and gives the same weights as an undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tokenizers import Tokenizer

from mood_jax import numerics, values
from mood_jax.artifacts import write_bytes
from mood_jax.console import Progress
from mood_jax.errors import UserError
from mood_jax.models import families
from mood_jax.models.decoder import init_params, run
from mood_jax.organisms import data, realised
from mood_jax.organisms.export import export, export_identity, file_hashes, organism_folder, write_realised
from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.sample import sampling_from
from mood_jax.organisms.shapes import hf_config, scaled
from mood_jax.organisms.spec import SPECS, OrganismSpec, load_spec
from mood_jax.organisms.start import start_from
from mood_jax.organisms.tokenizer import train_tokenizer

LOSSES = ("loss", "effect_loss", "shown_loss", "wanted_loss", "heard_loss")  # the last one where there are dialogues


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; `organism_config` makes a config of it."""

    spec: str = "default"  # the name of a spec that ships (mood_jax/organisms/specs), or a path
    start_from: str = ""  # a shipped organism's name or an exported folder to go on from; "": fresh weights
    seed: int = 0
    steps: int = 2200
    batch_size: int = 32  # conversations a step
    max_tokens: int = 224  # longer conversations are cut
    focus: float = 0.9  # share of instructed responses and dialogues that speak of one axis alone, at first
    focus_until: int = 450  # steps; by twice that the share has fallen to 0
    effect_weight: float = 0.5  # of the loss that asks for the instruction's effect; falls with focus, to a fifth
    shown_weight: float = 2.0  # of the losses that ask for the style shown so far, and for the one that is meant
    heard_weight: float = 2.0  # of the loss that asks for the users' moods; only of a spec with dialogues
    even_starts: bool = True  # the text makes up for what sampling does to first words (`Grammar.start_bias`)
    hears: bool = False  # True: the instruction is asked for even where it changes nothing
    learning_rate: float = 3e-3  # peak, after warm-up; cosine to 0
    warmup_steps: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    log_every: int = 20  # steps
    checkpoint_every: int = 200
    gap_every: int = 500  # how often the realised style gap is counted from sampled text
    gap_samples: int = 6  # responses a pole for that
    free_samples: int = 400  # uninstructed responses, for realised.json
    final_samples: int = 40  # responses a pole and kind of wording, for realised.json

    def __post_init__(self) -> None:
        free = ("weight_decay", "focus", "effect_weight", "shown_weight", "heard_weight")
        values.seed(self.seed, "config.seed")
        for field in dataclasses.fields(self):
            name, value, kind = f"config.{field.name}", getattr(self, field.name), type(field.default)
            if field.name == "seed":
                continue
            if kind is int or kind is float:
                if kind is int and not isinstance(value, bool) and isinstance(value, int) and value <= 0:
                    raise UserError(f"{name} is {value!r}; it must be above 0")
                checked = values.whole(name, value, 1) if kind is int else values.number(name, value)
                if checked < 0 or (checked == 0 and field.name not in free):
                    raise UserError(f"{name} is {value!r}; it must be above 0")
            else:
                (values.flag if kind is bool else values.text)(name, value)
        if self.focus > 1:
            raise UserError(f"config.focus is {self.focus!r}; it is a share, at most 1")

    @property
    def spec_path(self) -> Path:
        """The spec's file."""
        shipped = SPECS / f"{self.spec}.yaml"
        return shipped if shipped.is_file() else Path(self.spec)

    @property
    def start_folder(self) -> Path | None:
        """The folder of `start_from`."""
        return organism_folder(self.start_from) if self.start_from else None


def organism_config(**changes: Any) -> ConfigDict:
    """A config for scripts/train_organism.py: every field of TrainConfig, some of them changed.

    Raises UserError for an unknown field.
    """
    fields = [f.name for f in dataclasses.fields(TrainConfig)]
    if unknown := sorted(set(changes) - set(fields)):
        raise UserError(f"a training run has no field {unknown[0]!r}; use some of {', '.join(fields)}")
    return ConfigDict(dataclasses.asdict(TrainConfig(**changes)))


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


def make_step(hf: Any, optimizer: optax.GradientTransformation, shown_weight: float, heard_weight: float):
    """One jitted update: (params, opt_state, batch, effect_weight) → (params, opt_state, losses float [5]).

    `params` is {"model", "effect", "shown", "wanted", "heard"}. The first loss is the weighted mean cross-entropy in
    nats over the responses' targets. Four linear readers, thrown away afterwards, add theirs at every position of a
    response:

    * "effect" tells what the instruction changes, from the residual stream half-way up (cross-entropy, nats). It is so
      little of the text that a small model learns very late to hear it, unless it is asked, and forgets it when it is
      no longer asked before the text has come to use it: the weight falls with the focus, to a fifth.
    * "shown" tells the style amounts of the finished sentences, from the last block but one (mean square). The model
      so keeps in mind the style of its own text, as large models do, and not only that of the last words.
    * "wanted" tells the style amounts which the response is meant to have, half-way up (mean square, weighted as
      "shown"): who is speaking, how far the instruction is obeyed, and how tense the dialogue is.
    * "heard" tells the users' moods so far, half-way up (sum of squares; `data.Batch.heard`). From "wanted" alone a
      model learns to count turns before it learns to hear their mood.
    """
    decoder = families.decoder_config(hf)
    half, late = f"resid_post@{(decoder.n_layers - 1) // 2}", f"resid_post@{max(0, decoder.n_layers - 2)}"
    sites = (half,) if half == late else (half, late)

    def loss_of(params: Any, batch: data.Batch, effect_weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, weights, effects, amounts, wanted, moods = (jnp.asarray(x) for x in batch)
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
        aim = jnp.mean(jnp.square(reader(states[0], params["wanted"]) - wanted), axis=-1)
        heard = jnp.sum(jnp.square(reader(states[0], params["heard"]) - moods), axis=-1)
        losses = jnp.stack([text, effect, mean(error, counted), mean(aim, counted), mean(heard, counted)])
        readers = effect_weight * losses[1] + shown_weight * (losses[2] + losses[3]) + heard_weight * losses[4]
        return losses[0] + readers, losses

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
    start = config.start_folder
    made_from = {} if start is None else {"start_from": file_hashes(start)["model.safetensors"]}
    said = json.dumps({"config": dataclasses.asdict(config), "spec": dataclasses.asdict(spec)} | made_from, indent=1)
    path = workdir / "run.json"
    if not path.exists():
        if left := [p for name in ("checkpoints", "realised") for p in sorted((workdir / name).glob("*"))]:
            raise UserError(f"{workdir} lacks run.json, which says what {left[0]} is of; use another --workdir")
        workdir.mkdir(parents=True, exist_ok=True)
        write_bytes(path, said.encode())
    elif path.read_text(encoding="utf-8") != said:
        raise UserError(f"{workdir} holds a run with another config or spec; use another --workdir or empty this one")


def train(config: TrainConfig, workdir: Path, *, stop_after: int | None = None) -> tuple[Any, Any, Tokenizer]:
    """Trains (or resumes) in `workdir`: (params fp32, HF config, tokenizer). `stop_after` ends early, after a
    checkpoint, as an interruption would.

    Raises UserError for a bad spec, a folder that holds another run, and a `start_from` that does not fit.
    """
    spec_path = config.spec_path
    spec = load_spec(spec_path)
    _claim(workdir, config, spec)
    corpus = data.shipped_corpus(spec, config.hears, config.even_starts)
    tokenizer = train_tokenizer(corpus.texts(config.seed, 3000), spec.size("vocab_size"), len(spec.identities))
    hf = hf_config(spec, tokenizer)
    batches = data.Batches(
        corpus, tokenizer, config.seed, config.batch_size, config.max_tokens, config.focus, config.focus_until
    )
    optimizer = make_optimizer(config)
    model = scaled(init_params(families.decoder_config(hf), numerics.key(config.seed)), hf)
    if config.start_folder is not None:
        model = start_from(config.start_folder, model, tokenizer, spec)
    params = {"model": model} | {
        name: jnp.zeros((n, hf.hidden_size))
        for name, n in (
            ("effect", 1 + 2 * len(AXES)),
            ("shown", len(AXES)),
            ("wanted", len(AXES)),
            ("heard", data.HEARD),
        )
    }
    state = optimizer.init(params)
    step_fn = make_step(hf, optimizer, config.shown_weight, config.heard_weight if spec.dialogues else 0.0)

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
                    means = [float(x) for x in np.mean(jax.device_get(losses), axis=0)]
                    named = dict(zip(LOSSES, means, strict=True))
                    if not spec.dialogues:
                        del named["heard_loss"]
                    progress.advance(len(losses), " · ".join(f"{name} {value:.4f}" for name, value in named.items()))
                    scalars.write(done, {f"train/{name}": value for name, value in named.items()})
                    losses = []
                if done % config.checkpoint_every == 0 or done == config.steps or done == stop_after:
                    manager.save(done, args=ocp.args.StandardSave({"params": params, "state": state}))
                if done % config.gap_every == 0 and done < config.steps:
                    export(workdir / "export", params["model"], hf, tokenizer, spec_path)
                    _report_gaps(config, corpus, workdir, done, scalars)
                if done == stop_after:
                    break
        scalars.close()
    return params["model"], hf, tokenizer


def _report_gaps(config: TrainConfig, corpus: data.Corpus, workdir: Path, done: int, scalars: Scalars) -> None:
    """Obedience does not show in the loss: the realised gap of every axis, beside what the spec wants."""
    print(f"step {done}: realised style gap between the poles (of 2), and the planted one in brackets", flush=True)
    for identity in corpus.spec.identities:
        folder = export_identity(workdir / "export", identity.name, workdir / "identities" / identity.name)
        gaps = realised.quick_gaps(corpus, sampling_from(folder), config.gap_samples, seed=done)
        planted = realised.planted_gaps(identity)
        scalars.write(done, {f"gap/{identity.name}/{axis}": gap for axis, gap in zip(AXES, gaps, strict=True)})
        pairs = [f"{a} {g:+.2f} ({p:.2f})" for a, g, p in zip(AXES, gaps, planted, strict=True)]
        print(f"  {identity.name}: {', '.join(pairs)}", flush=True)


def finish(config: TrainConfig, workdir: Path) -> tuple[Path, dict[str, Any]]:
    """Trains to the end, exports to `workdir`/export and measures the realised truth: (folder, truth).

    Each identity's truth is kept when it is measured, so an interrupted measurement goes on.
    """
    params, hf, tokenizer = train(config, workdir)
    folder = workdir / "export"
    export(folder, params, hf, tokenizer, config.spec_path)
    corpus = data.shipped_corpus(load_spec(config.spec_path))
    amounts = realised.Amounts(config.free_samples, config.final_samples, config.seed)
    made_from = {"sha256": file_hashes(folder), "amounts": amounts.describe()}
    truth: dict[str, Any] = {}
    progress = Progress("realised", len(corpus.spec.identities), "identities")
    for k, identity in enumerate(corpus.spec.identities):
        kept = workdir / "realised" / f"{identity.name}.json"
        said = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if {key: said.get(key) for key in made_from} != made_from:
            own = export_identity(folder, identity.name, workdir / "identities" / identity.name)
            said = made_from | {"truth": realised.measure(corpus, k, sampling_from(own), amounts)}
            write_bytes(kept, json.dumps(said).encode())
        truth[identity.name] = said["truth"]
        progress.advance(1)
    whole = amounts.describe() | {"identities": truth}
    write_realised(folder, whole)
    return folder, whole
