"""The benchmark of a shape, end to end at a tiny size, and what it refuses; the table of large models on paper."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from mood_jax.benchmarks import bound, scale, shapes, throughput
from mood_jax.errors import UserError
from mood_jax.generation import memory
from mood_jax.generation.sampling import Greedy
from mood_jax.models.sharding import make_mesh
from tests.studies.running import in_this_process
from tests.studies.tiny import ROOT

SMALLER = {
    "shape.vocab_size": 32,
    "shape.hidden_size": 32,
    "shape.intermediate_size": 32,
    "shape.num_hidden_layers": 1,
    "shape.num_attention_heads": 4,
    "shape.num_key_value_heads": 4,
    "batch_sizes": "(3,)",
    "prompt_tokens": 5,
    "new_tokens": 6,
    "repeats": 2,
}


def test_a_shape_is_measured_beside_its_bound(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bound.COPY_BYTES, "cpu", 2**16)
    monkeypatch.setitem(bound.MATRIX, "cpu", 64)
    for options in throughput.PATHS.values():  # compiles faster than top-p
        monkeypatch.setitem(options, "sampler", Greedy())
    changes = [f"--config.{k}={v}" for k, v in SMALLER.items()]
    done = in_this_process(
        monkeypatch,
        capsys,
        "benchmark_throughput",
        f"--config={ROOT}/configs/shapes/tiny.py",
        f"--workdir={tmp_path}",
        *changes,
    )
    assert done.status == 0, done.err
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert result["config"]["shape"]["num_hidden_layers"] == 1
    assert {"name", "device", "devices", "jax", "load_average", "left_out"} < set(result)
    (row,) = result["batches"]
    assert row["batch"] == 3
    assert set(row["step_ms"]) == {"model", "sampling", "last4", "all"}
    assert set(row["cost_of_sites"]) == {"last4", "all"}
    rounds = row["rounds"]
    assert set(rounds) == {"copy", "product", "model", "none", "last4", "all", "prefill"}
    assert all(len(x) == 2 and min(x) > 0 for x in rounds.values())
    # derived figures, from the rounds
    assert row["seconds"] == pytest.approx(np.median(rounds["last4"]))
    assert row["prefill_tokens_per_second"] == pytest.approx(3 * 5 / np.median(rounds["prefill"]))
    decode = np.median(np.subtract(rounds["last4"], rounds["prefill"]))
    assert row["decode_tokens_per_second"] == pytest.approx(3 * 6 / decode)
    sampling = np.median(np.subtract(rounds["none"], rounds["model"])) * 1e3 / 6
    assert row["step_ms"]["sampling"] == pytest.approx(sampling)
    assert row["cost_of_sites"]["all"] == pytest.approx(np.median(np.divide(rounds["all"], rounds["none"])) - 1)
    config = shapes.decoder_config(result["config"]["shape"])
    least = bound.bound(config, bound.Rates(**row["rates"]), batch=3, prompt=5, new=6, dtype="float32")
    assert row["share_of_bound"] == pytest.approx(least.total / row["seconds"])
    about = {"batch": 3, "prompt": 5, "new": 6, "dtype": "float32", "sites": 3, "reducers": 5, "block": 64}
    assert row["formula_bytes"] == memory.estimate(config, **about).generation
    assert row["peak_bytes"] > 2**20
    assert row["compile_seconds"] > 0
    table = (tmp_path / "table.md").read_text()
    assert "| 3 | " in table
    assert "--config=configs/shapes/tiny.py" in table


def test_a_model_that_the_device_cannot_hold_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "device_limit", lambda _: 12 * 2**30)
    config = f"--config={ROOT}/configs/shapes/qwen2_5_7b.py"
    done = in_this_process(monkeypatch, capsys, "benchmark_throughput", config, f"--workdir={tmp_path}")
    assert "qwen2_5_7b at batch 64 takes 16.1 GiB a device (14.2 of them weights" in done.line
    assert "configs/shapes/tiny.py" in done.line
    assert not list(tmp_path.iterdir())


def test_batch_sizes_that_do_not_fit_are_left_out(monkeypatch):
    config, mesh = shapes.decoder_config("llama3_1_8b"), make_mesh()
    about = {"prompt": 60, "new": 200, "dtype": "bfloat16", "sites": 34, "reducers": 5}
    needed = memory.estimate(config, batch=256, block=64, **about).generation
    monkeypatch.setattr(memory, "device_limit", lambda _: int(needed / (1 - memory.MARGIN)) + 1)
    fit, lines = shapes.batches_that_fit("llama3_1_8b", config, mesh, (420, 64, 256), **about)
    assert fit == [64, 256]
    assert len(lines) == 1
    assert "at batch 420" in lines[0]
    with pytest.raises(UserError, match="at batch 420 takes"):
        shapes.batches_that_fit("llama3_1_8b", config, mesh, (420,), **about)


def test_unknown_shapes_are_refused():
    with pytest.raises(UserError, match=r"unknown shape 'gpt'.*qwen2_5_7b"):
        shapes.fields("gpt")
    with pytest.raises(UserError, match=r"unknown model_type 'gpt2'.*llama"):
        shapes.hf_config({"model_type": "gpt2"})


def test_large_models_on_paper(tmp_path, capsys):
    fleet = {"devices": 8, "gigabytes": 80.0, "terabytes_per_second": 3.0, "teraflops": 1000.0}
    config = ConfigDict(
        {
            "models": ("qwen2_5_72b", "llama3_1_405b"),
            "responses": 420,
            "prompt_tokens": 60,
            "new_tokens": 200,
            "fleets": ({"name": "eight", **fleet}, {"name": "one", **fleet, "devices": 1}),
        }
    )
    rows = scale.measure(config, tmp_path)
    assert rows[1:] == [("qwen2_5_72b", "one"), ("llama3_1_405b", "eight"), ("llama3_1_405b", "one")]
    row = rows[0]
    assert isinstance(row, scale.Row)
    decoder, mesh = shapes.decoder_config("qwen2_5_72b"), {"data": row.data, "model": row.model_axis}
    assert row.data * row.model_axis == 8
    about = {"prompt": 60, "new": 200, "sites": 4, "reducers": 1, **mesh}
    room = 80e9 * (1 - memory.MARGIN)
    assert memory.estimate(decoder, batch=row.largest, **about).total <= room
    more = row.largest + 8
    assert row.largest == memory.LARGEST or memory.estimate(decoder, batch=more, **about).total > room
    assert row.batch * row.batches >= 420
    least = bound.bound(decoder, bound.Rates(3e12, 1e15), batch=row.batch, prompt=60, new=200, **mesh).total
    assert row.seconds == pytest.approx(least * row.batches)
    assert row.params_bytes == pytest.approx(72.7e9 * 2 / row.model_axis, rel=0.01)
    out = capsys.readouterr().out
    assert "nothing measured" in out
    assert "does not fit" in out
    assert json.loads((tmp_path / "scale.json").read_text())["rows"][1]["fits"] is False
    with pytest.raises(UserError, match="has the fields name, devices, gigabytes"):
        scale.measure(ConfigDict(config.to_dict() | {"fleets": ({"name": "x"},)}), tmp_path)
