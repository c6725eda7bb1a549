"""Published axes through import_calibration into measure, on a tiny model and on the published files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mood_jax as mj
from mood_jax import artifacts, bank, published
from mood_jax.artifacts import Calibration, Profile
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.readout import WEIGHTS, preset
from mood_jax.studies import find
from mood_jax.studies import profile as study
from mood_jax.studies.calibrate import identity
from mood_jax.studies.collect import Protocol
from tests.studies.planted import profile_responses
from tests.studies.running import Outcome, in_this_process
from tests.studies.tiny import ROOT, checkpoint

PUBLISHED = ROOT.parent / "shared" / "published"
CONFIG = f"--config={ROOT}/configs/import.py"
AXES = ("formal_casual", "direct_evasive")
SCALES = (2.5, 0.004)  # the floor of 0.1 counts on the second


def axes_file(path: Path, seed: int = 0, d: int = 64) -> np.ndarray:
    """Writes two unit axes of d numbers; returns them, float32 [2, d]."""
    vectors = np.random.default_rng(seed).standard_normal((2, d))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    entries: dict[str, Any] = {"_axes": np.array(AXES)} | dict(zip(AXES, vectors, strict=True))
    entries |= {f"{axis}_scale": np.array(scale) for axis, scale in zip(AXES, SCALES, strict=True)}
    np.savez(path, **entries)
    return vectors


@pytest.fixture
def script(monkeypatch, capsys) -> Callable[..., Outcome]:
    return partial(in_this_process, monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder) -> mj.Model:
    return mj.load_model(str(folder), dtype="float32")


@pytest.fixture
def nothing_runs(monkeypatch) -> None:
    def run(self, k):
        raise AssertionError("a batch was generated")

    monkeypatch.setattr(api.Plan, "run", run)


def imported(path: Path, n_layers: int = 4, model: dict | None = None) -> Calibration:
    found = published.read_axes(path)
    return published.calibration(found, published.pole_names(found.axes, bank.shipped()), n_layers, model)


def small(folder: Path) -> list[str]:
    return [CONFIG, f"--config.model={folder}", "--config.dtype=float32", "--config.profile_tokens=6"]


# From a file to a profile


@pytest.mark.parametrize("bound", [True, False])
def test_import_then_measure(script, folder, tmp_path, bound):
    vectors = axes_file(tmp_path / "axes.npz")
    workdir = f"--workdir={tmp_path}/run"
    source = ["--config.model=", "--config.n_layers=4"] if not bound else []
    got = script("import_calibration", *small(folder), *source, f"--config.axes_file={tmp_path}/axes.npz", workdir)
    assert (got.status, got.err) == (0, "")
    assert "imported from axes.npz" in got.out
    saved = Calibration.load(tmp_path / "run" / "calibration")
    assert [(a.id, a.positive, a.negative) for a in saved.axes] == [
        ("formal_casual", "formal", "casual"),
        ("direct_evasive", "direct", "evasive"),
    ]
    assert (saved.readout, saved.evidence) == (preset("article", 4), ({}, {}))
    assert (saved.identity["model"] is not None) == bound
    np.testing.assert_array_equal(saved.directions, vectors)

    got = script("measure", *small(folder), workdir)
    assert got.status == 0, got.err
    note = "for this checkpoint; whether it was made with it" if bound else "not checked against this checkpoint"
    assert f"note: imported from axes.npz{' ' if bound else ', '}{note}" in got.out
    assert "imported axes come without evidence" in got.out
    (line,) = [x for x in got.out.splitlines() if x.startswith("formal/casual")]
    assert line.split()[-4:] == ["–"] * 4

    # The published scoring: h from the pooled states, x = h·v, x / max(IQR, 0.1).
    states = artifacts.read_tensors(tmp_path / "run" / "profile" / "states.safetensors")["in_context"]
    names = json.loads((tmp_path / "run" / "profile" / "states.json").read_text())
    assert (names["sites"], names["reducer"], names["span"]) == (
        ["resid_post@0", "resid_post@1", "resid_post@2", "final_norm"],
        "decay_0.9",
        "article",
    )
    found = Profile.load(tmp_path / "run" / "profile" / "profile.json")
    records = artifacts.read_jsonl(tmp_path / "run" / "profile" / "responses.jsonl")
    some = states[[r["n_tokens"] > 0 for r in records]].astype(np.float64)
    h = sum(w * some[:, s] for s, w in enumerate(WEIGHTS))
    for k, axis in enumerate(found.axes):
        assert (axis.scale, set(axis.scores), set(axis.summary)) == ("article", {"raw", "article"}, {"article"})
        x = h @ vectors[k].astype(np.float64)
        np.testing.assert_allclose(axis.scores["article"], x / max(SCALES[k], 0.1), rtol=1e-4, atol=1e-5)
        assert axis.evidence == {}


def test_the_same_command_writes_the_same_bytes(script, tmp_path):
    axes_file(tmp_path / "axes.npz")
    args = [CONFIG, "--config.model=", "--config.n_layers=4", f"--config.axes_file={tmp_path}/axes.npz"]
    written = []
    for _ in range(2):
        assert script("import_calibration", *args, f"--workdir={tmp_path}/run").status == 0
        written.append([(p.name, p.read_bytes()) for p in sorted((tmp_path / "run").rglob("*.*")) if p.is_file()])
    assert written[0] == written[1]
    axes_file(tmp_path / "axes.npz", seed=1)
    line = script("import_calibration", *args, f"--workdir={tmp_path}/run").line
    assert "was made with bank.imported = " in line
    assert "use another --workdir" in line


def test_some_axes_and_several_files(script, tmp_path):
    a = axes_file(tmp_path / "set_A.npz")
    b = axes_file(tmp_path / "set_B.npz", seed=1)
    got = script(
        "import_calibration",
        CONFIG,
        "--config.model=",
        "--config.n_layers=4",
        "--config.axes=direct_evasive",
        f"--config.axes_file={tmp_path}/set_A.npz",
        f"--config.compare={tmp_path}/set_B.npz,{tmp_path}/set_A.npz",
        f"--workdir={tmp_path}/run",
    )
    assert got.status == 0, got.err
    assert [x.id for x in Calibration.load(tmp_path / "run" / "calibration").axes] == ["direct_evasive"]
    cosine = float(a[1].astype(np.float64) @ b[1])
    (line,) = [x for x in got.out.splitlines() if x.startswith("direct/evasive")]
    assert line.split()[2:] == [f"{cosine:.3f}", "1.000", f"{cosine:.3f}", f"{(2 * cosine + 1) / 3:.3f}"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(("name", "n_layers", "mean"), [("qwen_7b", 28, ".755"), ("llama_8b", 32, ".789")])
def test_the_published_files(script, tmp_path, name, n_layers, mean):
    files = [PUBLISHED / name / f"axes_set_{s}.npz" for s in "ABC"]
    got = script(
        "import_calibration",
        CONFIG,
        "--config.model=",
        f"--config.n_layers={n_layers}",
        f"--config.axes_file={files[0]}",
        f"--config.compare={files[1]},{files[2]}",
        f"--workdir={tmp_path}/run",
    )
    assert got.status == 0, got.err
    (line,) = [x for x in got.out.splitlines() if x.startswith("mean ")]
    assert line.endswith(f" 0{mean}")
    saved = Calibration.load(tmp_path / "run" / "calibration")
    with np.load(files[0], allow_pickle=False) as raw:
        x = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32) * 300
        iqr = np.array([float(raw[f"{a.id}_scale"]) for a in saved.axes])
        np.testing.assert_allclose(saved.scores(x, "article"), x / np.maximum(iqr, 0.1), rtol=1e-6)
        for k, axis in enumerate(saved.axes):
            np.testing.assert_array_equal(saved.directions[k], raw[axis.id])
    assert saved.readout.sites == (*(f"resid_post@{k}" for k in range(n_layers - 4, n_layers - 1)), "final_norm")


# What such a calibration does not have


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("scale", ["iqr", "pole", "re_read"])
def test_measure_refuses_the_scales_that_the_file_does_not_have(script, folder, tmp_path, scale):
    axes_file(tmp_path / "axes.npz")
    imported(tmp_path / "axes.npz").save(tmp_path / "run" / "calibration")
    line = script("measure", *small(folder), f"--config.scale={scale}", f"--workdir={tmp_path}/run").line
    assert f"the scale '{scale}' cannot be computed: axes.npz" in line
    assert "no centre and no pole means; use scale article" in line
    assert not (tmp_path / "run" / "measure.json").exists()


def test_analyse_scores_with_article_alone(tmp_path):
    vectors = axes_file(tmp_path / "axes.npz", d=12)
    made = imported(tmp_path / "axes.npz")
    collected = profile_responses(np.random.default_rng(1), questions=30, samples=1)
    for scale in ("iqr", "pole", "re_read"):
        with pytest.raises(UserError, match="use scale article"):
            study.analyse(made, collected, {}, scale=scale)
    found = study.analyse(made, collected, {}, scale="article")
    h = sum(w * collected.states["in_context"][:, s, 0].astype(np.float64) for s, w in enumerate(WEIGHTS))
    for k, axis in enumerate(found.axes):
        want = h @ vectors[k] / max(SCALES[k], 0.1)
        np.testing.assert_allclose(axis.scores["article"], want, rtol=1e-4, atol=1e-4)
        assert axis.mean == pytest.approx(want.mean(), rel=1e-4, abs=1e-4)
        assert axis.ci95[0] < axis.mean < axis.ci95[1]
        assert axis.summary["article"]["clip_rate"] == pytest.approx(np.mean(np.abs(want) > 1))


def test_the_profile_in_memory(model, tmp_path):
    axes_file(tmp_path / "axes.npz")
    made = imported(tmp_path / "axes.npz")
    with pytest.raises(UserError, match="the scale 'iqr' cannot be computed"):
        mj.profile(model, made)
    found = mj.profile(model, made, max_new_tokens=6, batch_size=128, scale="article")  # shapes as of the script
    assert found.notes[:2] == published.notes(made)
    assert found.identity["calibration"]["bank"] == {"imported": made.identity["imported"]["sha256"]}


# Which model it is for


@pytest.mark.usefixtures("nothing_runs")
def test_a_model_of_another_size_is_refused(script, folder, model, tmp_path):
    axes_file(tmp_path / "wide.npz", d=128)
    axes_file(tmp_path / "axes.npz")
    line = script("import_calibration", *small(folder), f"--config.axes_file={tmp_path}/wide.npz", "--workdir=/x").line
    assert "wide.npz was imported for 4 blocks and states of 128 numbers, and " in line
    assert "has 4 and 64; these are the axes of another model" in line
    for made in (imported(tmp_path / "wide.npz"), imported(tmp_path / "axes.npz", n_layers=5)):
        made.save(tmp_path / "made")
        line = script(
            "measure", *small(folder), f"--config.calibration={tmp_path}/made", f"--workdir={tmp_path}/run"
        ).line
        assert "these are the axes of another model" in line
        with pytest.raises(UserError, match="these are the axes of another model"):
            mj.profile(model, made, scale="article")


def test_a_bound_one_is_of_its_checkpoint(model, tmp_path):
    axes_file(tmp_path / "axes.npz")
    bound = imported(tmp_path / "axes.npz", model=identity(model))
    study.check_calibration(model, bound)
    other = mj.load_model(str(checkpoint(tmp_path / "other", seed=1)), dtype="float32")
    with pytest.raises(UserError, match="made for another checkpoint"):
        study.check_calibration(other, bound)
    study.check_calibration(other, imported(tmp_path / "axes.npz"))
    assert published.notes(bound) != published.notes(imported(tmp_path / "axes.npz"))


def test_an_unbound_one_that_lies_among_the_shipped_is_passed_over(model, tmp_path):
    axes_file(tmp_path / "axes.npz")
    imported(tmp_path / "axes.npz").save(tmp_path / "shipped" / "a")
    imported(tmp_path / "axes.npz", model=identity(model)).save(tmp_path / "shipped" / "b")
    assert find.calibration(model, "", tmp_path / "run", tmp_path / "shipped")[0] == tmp_path / "shipped" / "b"


def test_another_readout_is_refused(model, tmp_path):
    axes_file(tmp_path / "axes.npz")
    protocol = Protocol(preset("last4", 4), 4)
    with pytest.raises(UserError, match=r"another readout \(article: .*\) than this run's \(last4: "):
        study.run(model, imported(tmp_path / "axes.npz"), protocol, scale="article", label=None)


# Mistakes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no axes to import; name a file: --config.axes_file=axes_set_A.npz"),
        (["--config.axes_file=/nowhere/a.npz"], "no such file: /nowhere/a.npz"),
        (["--config.axes_file={}", "--config.compare=/nowhere/b.npz"], "no such file: /nowhere/b.npz"),
        (["--config.axes_file={}", "--config.axes=warm_cold"], "unknown axis 'warm_cold'; "),
        (["--config.axes_file={}", "--config.n_layers=0"], "no model named; name one (--config.model) or say how many"),
        (["--config.axes_file={}", "--config.n_layers=3"], "this model has only 3 blocks"),
        (["--config.axes_file={}", "--config.readout=last4"], "published axes have the readout article, not 'last4'"),
        (["--config.axes_file={}.half"], "is no .npz file, or damaged"),
        (["--config.axes_file={}", "--config.nonsense=1"], "the config has no field 'nonsense'"),
    ],
)
def test_mistakes_are_one_line(script, tmp_path, flags, said):
    path = tmp_path / "axes.npz"
    axes_file(path)
    (tmp_path / "axes.npz.half").write_bytes(path.read_bytes()[:300])
    flags = [f.replace("{}", str(path)) for f in flags]
    line = script(
        "import_calibration", CONFIG, "--config.model=", "--config.n_layers=4", *flags, f"--workdir={tmp_path}/run"
    ).line
    assert said in line
    assert not (tmp_path / "run").exists()


def test_another_config_and_a_workdir_that_is_taken(script, tmp_path):
    axes_file(tmp_path / "axes.npz")
    line = script("import_calibration", f"--config={ROOT}/configs/embedded.py", f"--workdir={tmp_path}/run").line
    assert "the config lacks axes_file, compare, n_layers; use --config=configs/import.py" in line
    artifacts.write_json(tmp_path / "run" / "calibrate.json", {"axes": ["warm_cold"], "samples": 1})
    args = ["--config.model=", "--config.n_layers=4", f"--config.axes_file={tmp_path}/axes.npz"]
    line = script("import_calibration", CONFIG, *args, f"--workdir={tmp_path}/run").line
    assert "was made with axes = " in line
    assert not (tmp_path / "run" / "calibration").exists()
