"""Published result files: what they record comes out as recorded, and what is none of them is refused in one line."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mood_jax import bank, published
from mood_jax.errors import UserError
from mood_jax.probes.ranking import best_per_reducer, holds, production, ranking
from mood_jax.readout import preset

PUBLISHED = Path(__file__).parents[2] / "shared" / "published"
LAYERS = {"qwen_7b": 28, "llama_8b": 32}
# method.md, section 10: AUC and d′ of the production readout; mean cosine of sets A, B, C.
RECORDED = {"qwen_7b": (0.980, 3.46, 0.755), "llama_8b": (1.000, 5.28, 0.789)}
NAN = float("nan")

with_files = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
each_model = pytest.mark.parametrize("model", LAYERS)


def tuple_names(n_layers: int) -> list[str]:
    """Our names of HF's hidden_states tuple, entry by entry."""
    return ["embed", *(f"resid_post@{k}" for k in range(n_layers - 1)), "final_norm"]


# Published ablations


@with_files
@each_model
def test_every_configuration_is_read(model):
    path = PUBLISHED / model / "ablation.json"
    raw, rows, sites = json.loads(path.read_text()), published.read_ablation(path), tuple_names(LAYERS[model])
    assert len(rows) == 4 * (LAYERS[model] + 9)
    for record, row in zip(raw, rows, strict=True):
        assert row.name == record["config_name"]
        assert row.estimator == "mean_difference"
        assert row.reducer == ("last" if record["strategy"] == "last_token" else record["strategy"])
        assert row.sites == tuple(sites[k] for k in record["layers"])
        weights = np.ones(len(record["layers"])) if record["layer_weights"] is None else record["layer_weights"]
        np.testing.assert_allclose(row.weights, np.asarray(weights) / np.sum(weights))
        assert {a: (v["accuracy"], v["dprime"]) for a, v in record["per_axis"].items()} == {
            a: (v["auc"], v["dprime"]) for a, v in row.per_axis.items()
        }
        assert (row.mean_auc, row.mean_dprime) == (record["mean_accuracy"], record["mean_dprime"])


@with_files
@each_model
def test_the_rankings_are_those_of_a_plain_loop(model):
    """The published order is by mean d′."""
    path = PUBLISHED / model / "ablation.json"
    raw, rows = json.loads(path.read_text()), published.read_ablation(path)
    left, names = list(raw), []
    while left:
        best = left[0]
        for record in left:
            if record["mean_dprime"] > best["mean_dprime"]:
                best = record
        left.remove(best)
        names.append(best["config_name"])
    assert [r.name for r in ranking(rows, "dprime")] == names
    best = {}
    for name in names:
        best.setdefault(name.rpartition("/")[2], name)
    found = best_per_reducer(rows, "dprime")
    assert {("last_token" if k == "last" else k): r.name for k, r in found.items()} == best

    left, names = list(raw), []
    while left:
        best = left[0]
        for record in left:
            a, b = record["mean_accuracy"], best["mean_accuracy"]
            if a > b or (a == b and record["mean_dprime"] > best["mean_dprime"]):
                best = record
        left.remove(best)
        names.append(best["config_name"])
    assert [r.name for r in ranking(rows, "auc")] == names


@with_files
@each_model
def test_the_production_row(model):
    rows = published.read_ablation(PUBLISHED / model / "ablation.json")
    made = production(rows)
    assert made is not None
    article = preset("article", LAYERS[model])
    assert (made.name, made.sites, made.reducer) == ("last4_prod/decay_0.9", article.sites, article.reducer)
    assert made.weights == pytest.approx(article.weights)
    auc, dprime, _ = RECORDED[model]
    assert (round(made.mean_auc, 3), round(made.mean_dprime, 2)) == (auc, dprime)
    better = [r for r in rows if r.mean_dprime > made.mean_dprime]
    assert ranking(rows, "dprime").index(made) == len(better) == {"qwen_7b": 21, "llama_8b": 51}[model]


@with_files
@each_model
def test_what_holds_on_every_axis(model):
    path = PUBLISHED / model / "ablation.json"
    want = []
    for record in json.loads(path.read_text()):
        kept = True
        for numbers in record["per_axis"].values():
            if numbers["accuracy"] < 0.85:
                kept = False
        if kept:
            want.append(record["config_name"])
    assert [r.name for r in holds(published.read_ablation(path))] == want
    assert len(want) == {"qwen_7b": 19, "llama_8b": 101}[model]


@with_files
@each_model
def test_the_report(model):
    path = PUBLISHED / model / "ablation.json"
    rows = published.read_ablation(path)
    text = published.published_report(path)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    start = next(k for k, line in enumerate(lines) if line.startswith("----")) + 1
    for k, row in enumerate(ranking(rows, "dprime")[:20]):
        assert lines[start + k].split()[0].rstrip("*") == row.name
        assert lines[start + k].split()[1] == str(k + 1)
        assert f"{row.mean_auc:.3f}" in lines[start + k]
    assert not lines[start + 20]
    auc, dprime, _ = RECORDED[model]
    (line,) = [x for x in lines if x.startswith("* production, last4_prod/decay_0.9: rank ")]
    rank = {"qwen_7b": "22 of 148", "llama_8b": "52 of 164"}[model]
    assert f"rank {rank} by d'" in line
    assert f"AUC {auc:.3f}, d' {dprime:.2f}" in line
    listed = text.partition("at least 85% on every axis: ")[2]
    groups: dict[str, list[str]] = {}
    for row in holds(rows):
        groups.setdefault(row.reducer, []).append(row.name.partition("/")[0])
    assert listed.startswith(f"{len(holds(rows))} of {len(rows)}")
    words = " ".join(listed.split())
    for reducer, names in groups.items():
        assert f" {reducer} ({len(names)}): {', '.join(names)}" in words


# Ablations made here


def record(name: str, layers: list[int], accuracy: list[float], weights: Any = None, **changes: Any) -> dict[str, Any]:
    axes = [f"a{k}_b{k}" for k in range(len(accuracy))]
    dprimes = [3 * a - 1 for a in accuracy]
    return {
        "config_name": name,
        "strategy": name.partition("/")[2],
        "layers": layers,
        "layer_weights": weights,
        "per_axis": {x: {"dprime": d, "accuracy": a} for x, d, a in zip(axes, dprimes, accuracy, strict=True)},
        "mean_dprime": float(np.nanmean(dprimes)),
        "mean_accuracy": float(np.nanmean(accuracy)),
    } | changes


def made(path: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Six tuple entries, two token rules; one configuration has no number on one axis."""
    records = [
        record(f"L{k}/{s}", [k], rng.uniform(0.5, 1, 3).tolist()) for s in ("mean", "last_token") for k in range(6)
    ]
    records.append(record("last4_prod/decay_0.9", [2, 3, 4, 5], [0.9, 0.85, 1.0], [0.1, 0.2, 0.3, 0.4]))
    records.append(record("last4_quad/decay_0.9", [2, 3, 4, 5], [NAN, 0.85, 1.0], [1, 4, 9, 16]))
    path.write_text(json.dumps(records))
    return records


def test_a_small_file(tmp_path, rng):
    records = made(tmp_path / "ablation.json", rng)
    rows = published.read_ablation(tmp_path / "ablation.json")
    assert [r.sites for r in rows[:6]] == [(s,) for s in tuple_names(5)]
    assert rows[-2].sites == preset("article", 5).sites
    assert rows[-1].weights == pytest.approx((1 / 30, 4 / 30, 9 / 30, 16 / 30))
    assert math.isnan(rows[-1].per_axis["a0_b0"]["auc"])
    assert rows[-1].mean_auc == pytest.approx(0.925)
    assert production(rows) is rows[-2]
    assert rows[-2] in holds(rows)
    assert rows[-1] not in holds(rows)
    text = published.published_report(tmp_path / "ablation.json", top=3)
    assert f"of {len(records)} by d'" in text
    assert "nan" not in text
    no_production = [r for r in records if r["config_name"] != "last4_prod/decay_0.9"]
    (tmp_path / "ablation.json").write_text(json.dumps(no_production))
    assert "is not among them" in published.published_report(tmp_path / "ablation.json")


def test_long_names_do_not_widen_the_report(tmp_path):
    records = [record(f"{'x' * 60}{k}/mean", [0, 300, 400 + k], [0.9, 0.95]) for k in range(3)]
    (tmp_path / "ablation.json").write_text(json.dumps(records))
    assert max(map(len, published.published_report(tmp_path / "ablation.json").splitlines())) <= 100


ONE = record("L0/mean", [0], [0.9, 0.8])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "a list of configurations"),
        ([], "a list of configurations"),
        ([3], "configuration 1: "),
        ([ONE, {}], "configuration 2: no 'layers'"),
        ([{k: v for k, v in ONE.items() if k != "per_axis"}], "configuration 1: no 'per_axis'"),
        ([ONE | {"layers": []}], r"layers \[\]"),
        ([ONE | {"layers": [-1]}], r"layers \[-1\]"),
        ([ONE | {"layers": [1.5]}], r"layers \[1.5\]"),
        ([ONE | {"layers": [True]}], r"layers \[True\]"),
        ([ONE | {"layers": [2, 2]}], r"layers \[2, 2\]"),
        ([ONE | {"layer_weights": [0.5, 0.5]}], r"1 layers with the weights \[0.5, 0.5\]"),
        ([ONE | {"layer_weights": [0]}], r"weights \[0\]"),
        ([ONE | {"layer_weights": [NAN]}], r"weights \[nan\]"),
        ([ONE | {"per_axis": {}}], "no axes"),
        ([ONE | {"per_axis": {"a0_b0": {"accuracy": 1.0}}}], "no 'dprime'"),
        ([ONE | {"mean_accuracy": "high"}], "'high' is no number"),
        ([ONE | {"mean_accuracy": "0.85"}], "'0.85' is no number"),
        ([ONE | {"mean_dprime": True}], "True is no number"),
        ([ONE | {"mean_dprime": 10**400}], "too large"),
        ([ONE | {"layer_weights": ["1"]}], "'1' is no number"),
        ([ONE | {"mean_accuracy": 0.84}], "its mean auc is recorded as 0.84, and that of its axes is 0.85"),
        ([ONE | {"mean_dprime": NAN}], "its mean dprime is recorded as nan"),
        ([record("L0/mean", [0], [NAN, 0.8], mean_accuracy=0.4)], "recorded as 0.4, and that of its axes is 0.8"),
        ([record("L0/mean", [0], [NAN, 0.8], mean_accuracy=0.8), ONE], "two configurations have the same name"),
        ([ONE | {"strategy": 3}], "have to be text"),
        ([ONE, ONE], "two configurations have the same name"),
        ([ONE, record("L1/mean", [1], [0.9])], "configuration 2: its axes are not those of configuration 1: a0_b0"),
    ],
)
def test_what_is_no_ablation_is_refused(tmp_path, value, said):
    (tmp_path / "ablation.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=said) as e:
        published.read_ablation(tmp_path / "ablation.json")
    assert "\n" not in str(e.value)
    assert str(tmp_path / "ablation.json") in str(e.value)


def test_a_damaged_or_missing_ablation(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        published.read_ablation(tmp_path / "none.json")
    (tmp_path / "half.json").write_text(json.dumps([ONE])[:40])
    with pytest.raises(UserError, match="is damaged"):
        published.read_ablation(tmp_path / "half.json")


# Published axes


def axes_file(
    path: Path, rng: np.random.Generator, axes: tuple[str, ...] = ("warm_cold", "direct_evasive"), **more: Any
):
    """A file of random unit vectors of 48 numbers; `more` replaces entries, None takes one away."""
    vectors = rng.standard_normal((len(axes), 48))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries: dict[str, Any] = {"_axes": np.array(axes)}
    for axis, vector in zip(axes, vectors, strict=True):
        entries |= {axis: vector.astype(np.float32), f"{axis}_scale": np.array(rng.uniform(0.01, 50))}
    entries |= more
    np.savez(path, **{k: v for k, v in entries.items() if v is not None})
    return vectors, entries


@with_files
@each_model
def test_cosines_of_the_published_sets(model):
    files = [PUBLISHED / model / f"axes_set_{s}.npz" for s in "ABC"]
    sets = [published.read_axes(f) for f in files]
    values = published.cosines(sets)
    plain = []
    for pair, (a, b) in enumerate(itertools.combinations(files, 2)):
        with np.load(a, allow_pickle=False) as x, np.load(b, allow_pickle=False) as y:
            for k, axis in enumerate(x["_axes"].tolist()):
                u, v = x[axis].astype(np.float64), y[axis].astype(np.float64)
                plain.append(u @ v / math.sqrt((u @ u) * (v @ v)))
                assert values[pair, k] == pytest.approx(plain[-1], abs=1e-12)
    assert values.size == len(plain) == 21
    assert round(float(np.mean(plain)), 3) == round(float(values.mean()), 3) == RECORDED[model][2]
    text = published.axes_report(sets, published.pole_names(sets[0].axes, bank.shipped()))
    assert f"{RECORDED[model][2]:.3f}" in next(line for line in text.splitlines() if line.startswith("mean"))
    assert "cos A·B" in text


def test_axes_are_read_as_they_are(tmp_path, rng):
    vectors, entries = axes_file(tmp_path / "a.npz", rng)
    found = published.read_axes(tmp_path / "a.npz")
    assert found.axes == ("warm_cold", "direct_evasive")
    np.testing.assert_array_equal(found.vectors, vectors.astype(np.float32))
    assert found.iqr.tolist() == [float(entries[f"{a}_scale"]) for a in found.axes]
    one = published.chosen(found, ["direct_evasive"])
    assert one.axes == ("direct_evasive",)
    np.testing.assert_array_equal(one.vectors, found.vectors[1:])
    assert one.iqr.tolist() == found.iqr.tolist()[1:]
    assert published.chosen(found, []).axes == found.axes
    with pytest.raises(UserError, match=r"unknown axis 'warm'; .*a\.npz has warm_cold, direct_evasive"):
        published.chosen(found, ["warm"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("d", [48, 3584])
def test_vectors_of_any_precision_are_of_length_one(tmp_path, rng, dtype, d):
    vector = rng.standard_normal(d)
    vector = (vector / np.linalg.norm(vector)).astype(dtype)
    scale = np.array(rng.choice([0.0, 1e-30, 1e-3, 1e30]))
    np.savez(tmp_path / "a.npz", _axes=np.array(["warm_cold"]), warm_cold=vector, warm_cold_scale=scale)
    found = published.read_axes(tmp_path / "a.npz")
    exact = vector.astype(np.float64)
    np.testing.assert_allclose(found.vectors[0], exact / np.linalg.norm(exact), rtol=3e-6)
    assert np.linalg.norm(found.vectors[0].astype(np.float64)) == pytest.approx(1, abs=1e-6)
    assert found.iqr.tolist() == [float(scale)]


def test_cosines_go_by_the_names_of_the_axes(tmp_path, rng):
    a, _ = axes_file(tmp_path / "a.npz", rng)
    b, _ = axes_file(tmp_path / "b.npz", rng, ("direct_evasive", "warm_cold"))
    got = published.cosines([published.read_axes(tmp_path / "a.npz"), published.read_axes(tmp_path / "b.npz")])
    np.testing.assert_allclose(got, [[a[0] @ b[1], a[1] @ b[0]]], atol=1e-6)
    axes_file(tmp_path / "c.npz", rng, ("warm_cold", "other_axis"))
    with pytest.raises(UserError, match=r"c\.npz \(2 axes of 48 numbers\) cannot be compared with .*a\.npz"):
        published.cosines([published.read_axes(tmp_path / "a.npz"), published.read_axes(tmp_path / "c.npz")])


def test_poles_come_from_the_bank_or_from_the_id():
    found = published.pole_names(("warm_cold", "direct_evasive", "humour"), bank.shipped())
    assert [(a.id, a.positive, a.negative) for a in found] == [
        ("warm_cold", "warm", "cold"),
        ("direct_evasive", "direct", "evasive"),
        ("humour", "humour", "not humour"),
    ]


@pytest.mark.parametrize(("n", "columns"), [(1, 2), (2, 4), (3, 6), (5, 3)])
def test_the_table_of_axes(tmp_path, rng, n, columns):
    files = [tmp_path / f"axes_set_{s}.npz" for s in "ABCDE"[:n]]
    for f in files:
        axes_file(f, rng)
    sets = [published.read_axes(f) for f in files]
    text = published.axes_report(sets, published.pole_names(sets[0].axes, bank.shipped()))
    assert max(len(line) for line in text.splitlines() if ".npz" not in line) <= 100
    assert len(text.splitlines()[1].split()) == columns
    assert f"{sets[0].iqr[1]:.2f}" in text
    if n > 1:
        assert f"{published.cosines(sets).mean():.3f}" in text


class Touch:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"_axes": None}, "no list of axes called _axes"),
        ({"_axes": np.arange(2)}, "no list of axes called _axes"),
        ({"_axes": np.array("warm_cold")}, "no list of axes called _axes"),
        ({"_axes": np.array([], "U1")}, "no list of axes called _axes"),
        ({"_axes": np.array(["warm_cold", "warm_cold"])}, "an axis is named twice"),
        ({"_axes": np.array(["warm_cold", "humour"])}, "no vector called humour"),
        ({"warm_cold": None}, "no vector called warm_cold"),
        ({"warm_cold": np.ones((2, 24), np.float32)}, "no vector called warm_cold"),
        ({"warm_cold": np.ones(48, int)}, "no vector called warm_cold"),
        ({"direct_evasive": np.eye(40)[0]}, "direct_evasive has 40 numbers and warm_cold 48"),
        ({"warm_cold": np.zeros(48)}, "the vector of warm_cold is not of unit length"),
        ({"warm_cold": np.ones(48)}, "the vector of warm_cold is not of unit length"),
        ({"warm_cold": np.full(48, NAN)}, "the vector of warm_cold is not of unit length"),
        ({"warm_cold_scale": None}, "no scale called warm_cold_scale"),
        ({"warm_cold_scale": np.ones(3)}, "no scale called warm_cold_scale"),
        ({"warm_cold_scale": np.array("3")}, "no scale called warm_cold_scale"),
        ({"warm_cold_scale": np.array(NAN)}, "the scale of warm_cold is nan"),
        ({"warm_cold_scale": np.array(-1.0)}, "the scale of warm_cold is -1"),
        ({"warm_cold_scale": np.array(1e39)}, "the scale of warm_cold is 1e.39, which float32 cannot hold"),
        ({"warm_cold_scale": np.array(1e-39)}, "the scale of warm_cold is 1e-39, which float32 cannot hold"),
        ({"warm_cold_scale": np.array(5e-324)}, "which float32 cannot hold"),
        ({"warm_cold_scale": np.longdouble("1e4000")}, "the scale of warm_cold is inf"),
    ],
)
def test_what_is_no_axis_file_is_refused(tmp_path, rng, more, said):
    axes_file(tmp_path / "a.npz", rng, **more)
    with pytest.raises(UserError, match=said) as e:
        published.read_axes(tmp_path / "a.npz")
    assert "\n" not in str(e.value)
    assert "name an axes_*.npz" in str(e.value)


def test_no_pickle_is_loaded(tmp_path, rng):
    trace = tmp_path / "trace"
    objects = np.array([Touch(trace), Touch(trace)], object)
    axes_file(tmp_path / "a.npz", rng, _axes=objects)
    with pytest.raises(UserError, match=r"no \.npz file, or damaged \(Object arrays cannot be loaded"):
        published.read_axes(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(UserError, match=r"no \.npz file, or damaged"):
        published.read_axes(tmp_path / "b.npz")
    assert not trace.exists()


def test_damaged_files(tmp_path, rng):
    path = tmp_path / "a.npz"
    axes_file(path, rng)
    data, good = path.read_bytes(), published.read_axes(path)
    with pytest.raises(UserError, match="no such file"):
        published.read_axes(tmp_path / "none.npz")
    with pytest.raises(UserError, match="could not be read"):
        published.read_axes(tmp_path)
    np.save(tmp_path / "bare.npy", np.ones(3))
    with pytest.raises(UserError, match="no list of axes called _axes"):
        published.read_axes(tmp_path / "bare.npy")
    for cut in [0, 1, 4, 100, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"no \.npz file, or damaged \(.+\); restore it") as e:
            published.read_axes(path)
        assert "\n" not in str(e.value)
    for bit in rng.choice(8 * len(data), 300, replace=False):  # a flipped bit is named, or is one that says nothing
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            found = published.read_axes(path)
        except UserError:
            pass
        else:
            assert found.axes == good.axes
            np.testing.assert_array_equal(found.vectors, good.vectors)
            assert found.iqr.tolist() == good.iqr.tolist()
