"""Result files of the published system: read, ranked, and turned into what the rest of the package works with.

`ablation.json` is a list of configurations with the d′ and the pairwise accuracy of every axis; its layers are indices
of HF's hidden_states tuple (0 the embedding, L the state after the final norm, between them block k − 1), which become
our sites here. `axes_*.npz` holds one vector (D,) an axis, `{axis}_scale` (the IQR of the calibration projections), and
the axes' ids as `_axes`. (method.md, sections 3, 5 and 10.)

An imported calibration has the scale `article` alone: its file has no centre for `iqr` and no pole means for `pole`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import textwrap
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import mood_jax
from mood_jax import artifacts, bank
from mood_jax import readout as readouts
from mood_jax.artifacts import AxisNames, Calibration
from mood_jax.console import table
from mood_jax.errors import UserError
from mood_jax.probes import Scaling
from mood_jax.probes.ranking import Ranked, best_per_reducer, describe_sites, holds, production, ranking

REDUCERS = {"last_token": "last"}  # the published token rules that have another name here
WIDTH = 100  # columns of a report
UNIT = 1e-3  # what the length of a direction may differ from 1 by, as half precision rounds it
ROUNDED = 1e-6  # what float32 rounds it by; a direction that is further off is set to length 1 again
_FLOAT32 = np.finfo(np.float32)
# What a file can raise that is no archive, is truncated, has flipped bits, or holds pickled objects.
_NPZ_ERRORS = (ValueError, EOFError, KeyError, OSError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


# ablation.json


def read_ablation(path: str | Path) -> list[Ranked]:
    """The configurations of a published ablation.json, in the order of the file, with our names of sites and reducers.

    `auc` is the published pairwise accuracy, which counts a tie as wrong where our AUC counts ½. The estimator is the
    trimmed mean difference throughout. A value that is NaN in the file stays NaN.

    Raises UserError: no such file, not JSON, or not such a list; the line names what is wrong with which configuration.
    """
    path = Path(path)
    value = artifacts.read_json(path)
    if not isinstance(value, list) or not value:
        raise UserError(f"{path} is no published ablation (a list of configurations); name an ablation.json")
    where = "the list"
    try:
        top = 0
        for k, record in enumerate(value):
            where = f"configuration {k + 1}"
            layers = record["layers"]
            if not layers or not all(type(i) is int and i >= 0 for i in layers) or len({*layers}) < len(layers):
                raise ValueError(f"layers {layers}")
            top = max(top, *layers)
        rows = []
        for k, record in enumerate(value):
            where = f"configuration {k + 1}"
            rows.append(_ranked(record, top))
            if set(rows[-1].per_axis) != set(rows[0].per_axis):
                raise ValueError(f"its axes are not those of configuration 1: {', '.join(rows[-1].per_axis)}")
        where = "the list"
        if len({row.name for row in rows}) < len(rows):
            raise ValueError("two configurations have the same name")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
        reason = f"no {e.args[0]!r}" if isinstance(e, KeyError) else str(e)
        raise UserError(f"{path} is no published ablation or damaged ({where}: {reason}); restore it") from e
    return rows


def _ranked(record: Mapping[str, Any], top: int) -> Ranked:
    """One configuration of the file; `top` is the highest index of the tuple, that of the final norm."""
    layers, weights = record["layers"], record["layer_weights"]
    raw = [1.0] * len(layers) if weights is None else [_real(w) for w in weights]
    if len(raw) != len(layers) or not math.isfinite(sum(raw)) or not all(w >= 0 for w in raw) or not sum(raw) > 0:
        raise ValueError(f"{len(layers)} layers with the weights {weights}")
    per_axis = {
        axis: {"auc": _real(v["accuracy"]), "dprime": _real(v["dprime"])} for axis, v in record["per_axis"].items()
    }
    if not per_axis:
        raise ValueError("no axes")
    means = {"auc": _real(record["mean_accuracy"]), "dprime": _real(record["mean_dprime"])}
    for measure, mean in means.items():
        values = [v[measure] for v in per_axis.values() if not math.isnan(v[measure])]
        expected = sum(values) / max(len(values), 1)  # the published mean leaves NaN out, and is 0 of nothing
        if math.isfinite(expected) and not abs(mean - expected) <= 1e-6 * max(1.0, abs(expected)):
            raise ValueError(f"its mean {measure} is recorded as {mean:.6g}, and that of its axes is {expected:.6g}")
    strategy = record["strategy"]
    if not isinstance(record["config_name"], str) or not isinstance(strategy, str):
        raise TypeError("config_name and strategy have to be text")
    return Ranked(
        name=record["config_name"],
        estimator="mean_difference",
        reducer=REDUCERS.get(strategy, strategy),
        sites=tuple(site(k, top) for k in layers),
        weights=tuple(w / sum(raw) for w in raw),
        per_axis=per_axis,
        mean_auc=means["auc"],
        mean_dprime=means["dprime"],
    )


def _real(value: Any) -> float:
    """A number of the file; text and true or false are none, though Python would make numbers of them."""
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def site(k: int, n_layers: int) -> str:
    """Our name of entry k of HF's hidden_states tuple of a model of `n_layers` blocks (method.md, section 3)."""
    return "embed" if k == 0 else "final_norm" if k == n_layers else f"resid_post@{k - 1}"


def published_report(path: str | Path, top: int = 20, share: float = 0.85) -> str:
    """What the published file records, at ≤ 100 columns: the best `top`, production, best per token rule, and the list
    of the configurations that order at least `share` of the pairs on every axis.

    The order is the published one, by mean d′; the rank by mean AUC stands beside it.
    """
    path = Path(path)
    rows = read_ablation(path)
    order = ranking(rows, "dprime")
    by_auc = {row.name: k + 1 for k, row in enumerate(ranking(rows, "auc"))}
    made = production(rows)
    lines = [
        f"{_short(f'{path.parent.name}/{path.name}', 50)}: {len(rows)} readouts, {len(rows[0].per_axis)} axes, "
        "mean difference",
        "in the published order, by mean d'; AUC: share of pairs in order, a tie counts as wrong;",
        "worst: the lowest AUC of any axis; by AUC: the rank by mean AUC",
        "",
    ]
    header = ["readout", "rank", "sites", "AUC", "d'", "worst", "by AUC"]

    def cells(k: int, row: Ranked) -> list[str]:
        return [
            _short(row.name, 24) + ("*" if row is made else ""),
            str(k),
            _short(describe_sites(row.sites), 30),
            _number(row.mean_auc, ".3f"),
            _number(row.mean_dprime, ".2f"),
            _number(row.worst_auc, ".2f"),
            str(by_auc[row.name]),
        ]

    lines += [table(header, [cells(k, row) for k, row in enumerate(order[:top], 1)]), ""]
    if made is None:
        lines.append("the production readout (decay_0.9 of four sites weighted .1 .2 .3 .4) is not among them")
    else:
        lines.append(
            f"* production, {_short(made.name, 24)}: rank {order.index(made) + 1} of {len(rows)} by d', "
            f"{by_auc[made.name]} by AUC; AUC {_number(made.mean_auc, '.3f')}, d' {_number(made.mean_dprime, '.2f')}"
        )
        lines.append(f"  {describe_sites(made.sites)}, weights {', '.join(f'{w:g}' for w in made.weights)}")
    best = best_per_reducer(rows, "dprime")
    lines += [
        "",
        "best of each token rule",
        table(header, [cells(order.index(row) + 1, row) for row in best.values()]),
        "",
    ]
    kept = holds(rows, share)
    numbering = " (L0 is embed, Lk resid_post@k-1, the last one final_norm)" if kept else ""
    lines.append(f"at least {share:.0%} on every axis: {len(kept)} of {len(rows)}{numbering}")
    for reducer in best:
        names = [row.name.removesuffix(f"/{row.name.rpartition('/')[2]}") for row in kept if row.reducer == reducer]
        if names:
            text = f"{reducer} ({len(names)}): {', '.join(names)}"
            lines.append(textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# axes_*.npz


@dataclass(frozen=True)
class PublishedAxes:
    """One published axis file: `vectors` float32 [axes, D], unit; `iqr` float64 [axes]; `sha256` of the whole file."""

    path: Path
    axes: tuple[str, ...]
    vectors: np.ndarray
    iqr: np.ndarray
    sha256: str


def read_axes(path: str | Path) -> PublishedAxes:
    """Reads axes_*.npz. No pickle is ever loaded. A vector whose length half precision rounded is set to length 1.

    Raises UserError: no such file, damaged, or something else than axes of unit length with scales that float32 holds.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as e:
        raise UserError(f"no such file: {path}") from e
    except OSError as e:
        raise UserError(f"{path} could not be read ({e.strerror}); name an axes_*.npz") from e

    def refuse(reason: str) -> UserError:
        return UserError(f"{path} is no published axis file ({reason}); name an axes_*.npz")

    try:
        loaded = np.load(io.BytesIO(data))
        found = {} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except _NPZ_ERRORS as e:
        reason = " ".join(str(e).split())[:120] or type(e).__name__
        raise UserError(f"{path} is no .npz file, or damaged ({reason}); restore it or make it again") from e
    listed = found.get("_axes")
    if listed is None or listed.ndim != 1 or listed.dtype.kind not in "US" or not listed.size:
        raise refuse("it has no list of axes called _axes")
    axes = tuple(x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in listed.tolist())
    if len({*axes}) < len(axes):
        raise refuse("an axis is named twice")
    vectors, scales = [], []
    for axis in axes:
        vector, scale = found.get(axis), found.get(f"{axis}_scale")
        if vector is None or vector.ndim != 1 or vector.dtype.kind != "f" or not vector.size:
            raise refuse(f"it has no vector called {axis}")
        if vectors and len(vector) != len(vectors[0]):
            raise refuse(f"{axis} has {len(vector)} numbers and {axes[0]} {len(vectors[0])}")
        exact = vector.astype(np.float64)
        length = np.linalg.norm(exact) if np.isfinite(exact).all() else np.inf
        if abs(length - 1) > UNIT:
            raise refuse(f"the vector of {axis} is not of unit length")
        if abs(length - 1) > ROUNDED:
            exact = exact / length
        if scale is None or scale.size != 1 or scale.dtype.kind not in "fiu":
            raise refuse(f"it has no scale called {axis}_scale")
        size = float(scale.item())
        if not math.isfinite(size) or size < 0:
            raise refuse(f"the scale of {axis} is {size}")
        if size > float(_FLOAT32.max) or 0 < size < float(_FLOAT32.tiny):
            raise refuse(f"the scale of {axis} is {size:.3g}, which float32 cannot hold")
        vectors.append(exact.astype(np.float32))
        scales.append(size)
    digest = hashlib.sha256(data).hexdigest()
    return PublishedAxes(path, axes, np.stack(vectors), np.asarray(scales, np.float64), digest)


def chosen(found: PublishedAxes, names: Sequence[str]) -> PublishedAxes:
    """The axes of these names in this order, all where there are none. Raises UserError for one that is not there."""
    for name in names:
        if name not in found.axes:
            raise UserError(f"unknown axis {name!r}; {found.path} has {', '.join(found.axes)}")
    rows = [found.axes.index(name) for name in names or found.axes]
    axes = tuple(found.axes[k] for k in rows)
    return PublishedAxes(found.path, axes, found.vectors[rows], found.iqr[rows], found.sha256)


def cosines(sets: Sequence[PublishedAxes]) -> np.ndarray:
    """Cosines of each axis between each two files, float64 [pairs, axes]; pairs as `itertools.combinations` has them.

    Raises UserError where the files are not of the same axes and state size.
    """
    first = sets[0]
    for other in sets[1:]:
        if {*other.axes} != {*first.axes} or other.vectors.shape[1] != first.vectors.shape[1]:
            raise UserError(
                f"{other.path} ({len(other.axes)} axes of {other.vectors.shape[1]} numbers) cannot be compared with "
                f"{first.path} ({len(first.axes)} of {first.vectors.shape[1]}); name files of the same model and axes"
            )
    unit = []
    for s in sets:
        v = s.vectors[[s.axes.index(a) for a in first.axes]].astype(np.float64)
        unit.append(v / np.linalg.norm(v, axis=1, keepdims=True))
    pairs = [np.einsum("ad,ad->a", a, b) for a, b in itertools.combinations(unit, 2)]
    return np.asarray(pairs).reshape(len(pairs), len(first.axes))


def axes_report(sets: Sequence[PublishedAxes], names: Sequence[AxisNames]) -> str:
    """One row an axis: its scale in the first file and its cosines between the files, with their means below.

    Args:
        names: of the axes, in the order of the first file.
    """
    values = cosines(sets)
    stems = [s.path.stem for s in sets]
    tags = [stem[len(_common(stems)) :] for stem in stems]
    if len({*tags}) < len(tags) or not all(0 < len(tag) <= 4 for tag in tags):
        tags = [str(k + 1) for k in range(len(sets))]
    pairs = [f"cos {a}·{b}" for a, b in itertools.combinations(tags, 2)]
    shown = list(range(len(pairs))) if len(pairs) <= 3 else []  # more do not fit; their mean does
    header = ["axis", "scale (IQR)", *(pairs[k] for k in shown), *(["mean cos"] if len(sets) > 1 else [])]
    rows = []
    for k, axis in enumerate(names):
        row = [f"{axis.positive}/{axis.negative}", f"{sets[0].iqr[k]:.2f}", *(f"{values[p, k]:.3f}" for p in shown)]
        rows.append([*row, *([f"{values[:, k].mean():.3f}"] if len(sets) > 1 else [])])
    if len(sets) > 1:
        rows.append(["mean", "", *(f"{values[p].mean():.3f}" for p in shown), f"{values.mean():.3f}"])
    lines = [table(header, rows)]
    if len(sets) > 1:
        size = sets[0].vectors.shape[1]
        lines.append("")
        lines += [f"  {tag}: {s.path}" for tag, s in zip(tags, sets, strict=True)]
        floor = math.sqrt(2 / (math.pi * size))
        lines.append(f"  two random directions of {size} numbers: |cos| {floor:.3f} on average")
    return "\n".join(lines)


def _common(names: Sequence[str]) -> str:
    """The longest beginning that all names share."""
    same = itertools.takewhile(lambda column: len({*column}) == 1, zip(*names, strict=False))
    return "".join(column[0] for column in same)


# Calibrations


def pole_names(axes: Sequence[str], source: bank.Bank) -> tuple[AxisNames, ...]:
    """The poles of each axis as the bank has them, else by its id: "direct_evasive" is direct against evasive."""
    known = {a.id: AxisNames(a.id, a.positive.name, a.negative.name) for a in source.axes()}
    found = []
    for axis in axes:
        positive, _, negative = axis.partition("_")
        found.append(known.get(axis) or AxisNames(axis, positive or axis, negative or f"not {axis}"))
    return tuple(found)


def calibration(
    found: PublishedAxes, names: Sequence[AxisNames], n_layers: int, model: Mapping[str, Any] | None
) -> Calibration:
    """A published axis file as a calibration of preset `article`, without evidence.

    Args:
        found: what to import.
        names: of its axes, in its order.
        n_layers: blocks of the model that the file was made with.
        model: identity of the checkpoint (`studies.calibrate.identity`) that it is bound to; None: to any of that size.
    """
    readout = readouts.preset("article", n_layers)
    n = len(found.axes)
    zeros, nowhere = jnp.zeros(n, jnp.float32), jnp.zeros(n, bool)
    return Calibration(
        axes=tuple(names),
        readout=readout,
        directions=found.vectors,
        site_rms=np.ones(len(readout.sites), np.float32),
        scaling=Scaling(
            zeros, jnp.asarray(found.iqr, jnp.float32), zeros, zeros, nowhere, nowhere, zeros, zeros, nowhere
        ),
        evidence=tuple({} for _ in range(n)),
        identity={
            "model": None if model is None else dict(model),
            "axes": list(found.axes),
            # What ties an own calibration to the texts that it was made from; here, to the file.
            "bank": {"imported": found.sha256},
            "protocol": {"readout": readout.describe()},
            "samples": None,
            "versions": {"mood_jax": mood_jax.__version__},
            "imported": {"file": found.path.name, "sha256": found.sha256, "n_layers": n_layers},
        },
    )


def is_imported(found: Calibration) -> bool:
    """Does it come from a published file, so that it has the scale `article` alone and no evidence?"""
    return "imported" in found.identity


def check_size(found: Calibration, n_layers: int, d_model: int, name: str) -> None:
    """Raises UserError when an imported calibration cannot be of a model of this size."""
    made, d = found.identity["imported"], found.directions.shape[1]
    if (made["n_layers"], d) != (n_layers, d_model):
        raise UserError(
            f"{made['file']} was imported for {made['n_layers']} blocks and states of {d} numbers, and {name} has "
            f"{n_layers} and {d_model}; these are the axes of another model"
        )


def notes(found: Calibration) -> tuple[str, ...]:
    """What a measurement with this calibration has to say of it; nothing where it was not imported."""
    if not is_imported(found):
        return ()
    file = found.identity["imported"]["file"]
    unchecked = f"imported from {file}, not checked against this checkpoint: only its size is compared"
    bound = f"imported from {file} for this checkpoint; whether it was made with it, the file does not say"
    return (
        unchecked if found.identity["model"] is None else bound,
        "imported axes come without evidence: no AUC, no verdict; calibrate to have them judged",
    )
