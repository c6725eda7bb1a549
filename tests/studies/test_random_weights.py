"""The control with random weights: what its parameters are, what it reads, and what a calibration makes of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import mood_jax as mj
from mood_jax import bank, probes
from mood_jax import readout as readouts
from mood_jax.errors import UserError
from mood_jax.generation import engine
from mood_jax.generation.model import random_weights
from mood_jax.models import families
from mood_jax.models.checkpoint import flatten
from mood_jax.studies import calibrate
from mood_jax.studies.collect import Ask, Collected, Protocol, collect
from mood_jax.studies.store import collect_grid, open_store
from tests.studies.planted import AXES, PROTOCOL, calibration_responses
from tests.studies.tiny import QUESTIONS, ROOT, bank_file, checkpoint, environment

pytestmark = pytest.mark.usefixtures("unoptimised")

NEW = 6
CONDITIONS = ["in_context", "re_read", "random_in_context", "random_re_read"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("llama"), often_ends=True)), dtype="float32")


@pytest.fixture(scope="module")
def control(model) -> mj.Model:
    return random_weights(model, 3)


# The parameters


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_parameters_are_initialised_as_transformers_initialises_them(tmp_path, family):
    """The same constants (norms, of which Gemma stores w − 1, and biases), the same spread of all others."""
    model = mj.load_model(str(checkpoint(tmp_path, family)), dtype="bfloat16")
    got, like = flatten(random_weights(model, 0).params), flatten(model.params)
    hf = AutoConfig.from_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_config(hf, dtype=torch.float32).state_dict()
    names = families.FAMILIES[family].tensor_names(model.config)
    assert set(got) == set(like) == set(names.values())
    constants = 0
    for name, path in names.items():
        x, fresh = got[path], reference[name].numpy()
        assert (x.shape, x.dtype, x.sharding) == (like[path].shape, like[path].dtype, like[path].sharding)
        values = np.asarray(x, np.float32)
        if fresh.std() == 0:
            np.testing.assert_array_equal(values.ravel(), fresh.ravel())
            constants += 1
        else:  # seed 0 of ours, and 2 048 numbers and more: 10 % are 6 standard errors
            assert values.std() == pytest.approx(0.02, rel=0.1)
            assert fresh.std() == pytest.approx(0.02, rel=0.1)
            assert abs(values.mean()) < 0.003
    assert constants == {"llama": 9, "qwen2": 9 + 12, "gemma2": 17}[family]


def test_every_parameter_and_every_seed_has_numbers_of_its_own(model, control):
    drawn = [np.asarray(x).ravel() for p, x in flatten(control.params).items() if not p.endswith("scale")]
    assert len({x[:5].tobytes() for x in drawn}) == len(drawn)
    again, other = flatten(random_weights(model, 3).params), flatten(random_weights(model, 4).params)
    for path, x in flatten(control.params).items():
        np.testing.assert_array_equal(x, again[path])
        assert path.endswith("scale") or not np.array_equal(x, other[path])


def test_it_is_spoken_to_alike_and_never_taken_for_the_checkpoint(model, control):
    assert control.chat is model.chat
    assert control.config == model.config
    assert control.checkpoint.dtype == model.checkpoint.dtype
    prints = {m.checkpoint.fingerprint for m in (model, control, random_weights(model, 4))}
    assert len(prints) == 3
    assert "random weights" in control.checkpoint.name


SHARDED = """
import sys
import mood_jax as mj
from mood_jax.generation.model import random_weights
from mood_jax.models.checkpoint import flatten
from tests.studies.test_random_weights import digest

m = mj.load_model(sys.argv[1], dtype="float32", mesh=mj.make_mesh(2, 2))
found, like = flatten(random_weights(m, 3).params), flatten(m.params)
assert all(x.sharding == like[p].sharding for p, x in found.items())
assert any(len(x.sharding.device_set) == 4 and not x.is_fully_replicated for x in found.values())
print(digest(found))
"""


def digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(b"".join(np.asarray(params[p]).tobytes() for p in sorted(params))).hexdigest()


def test_on_a_mesh_it_is_spread_like_the_model_and_has_the_same_numbers(model, control):
    env = environment(XLA_FLAGS="--xla_force_host_platform_device_count=4")
    folder = str(model.checkpoint.folder)
    done = subprocess.run([sys.executable, "-c", SHARDED, folder], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [digest(flatten(control.params))]


# What it reads


def asks() -> list[Ask]:
    return [
        Ask(
            f"q{k}",
            ({"role": "system", "content": "Be brief, please."}, {"role": "user", "content": question}),
            {"sign": 1},
        )
        for k, question in enumerate(QUESTIONS[:5])
    ]


def protocol() -> Protocol:
    return Protocol(readouts.preset("last4", 4), NEW, sampler=mj.TopP(0.95, temperature=1.5), seed=5, batch_size=5)


@pytest.fixture(scope="module")
def found(model, control) -> Collected:
    return collect(model, asks(), protocol(), re_read=True, control=control, label=None)


def test_the_same_responses_are_read_with_and_without_the_instruction(model, control, found):
    assert list(found.states) == CONDITIONS
    p = protocol()
    options = {"sites": p.readout.sites, "reducers": p.readout.reducers, "batch_size": 5}
    tokens = [r["tokens"] for r in found.records]
    for condition, prompts in (
        ("random_in_context", [a.messages for a in asks()]),
        ("random_re_read", [a.without_system for a in asks()]),
    ):
        want = mj.read(control, prompts, tokens, **options)
        np.testing.assert_allclose(found.states[condition], want, rtol=1e-4, atol=1e-5)
    read_by_model = mj.read(model, [a.messages for a in asks()], tokens, **options)
    assert np.abs(found.states["random_in_context"] - read_by_model).max() > 0.1
    assert np.abs(found.states["random_in_context"] - found.states["random_re_read"]).max() > 1e-3


def test_it_changes_nothing_for_the_model(model, found):
    plain = collect(model, asks(), protocol(), re_read=True, label=None)
    assert plain.records == found.records
    for condition, states in plain.states.items():
        np.testing.assert_array_equal(states, found.states[condition])


def test_it_reads_with_the_programs_that_the_model_reads_with(model, control, found):
    p = protocol()
    options = {"sites": p.readout.sites, "reducers": p.readout.reducers, "batch_size": 5}
    arguments = ([a.without_system for a in asks()], [r["tokens"] for r in found.records])
    mj.read(model, *arguments, **options)
    before = engine.read_batch._cache_size()
    mj.read(control, *arguments, **options)
    assert engine.read_batch._cache_size() == before


def test_units_hold_it_and_a_run_without_it_does_not_take_them(model, control, found, tmp_path, capsys):
    options = {"re_read": True, "folder": tmp_path, "label": None}
    first = collect(model, asks(), protocol(), control=control, **options)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    again = collect(model, asks(), protocol(), control=control, **options)
    assert capsys.readouterr().err == ""
    for condition in CONDITIONS:
        np.testing.assert_array_equal(first.states[condition], found.states[condition])
        np.testing.assert_array_equal(again.states[condition], found.states[condition])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    with pytest.raises(UserError, match=r"00000\.safetensors was made with reading\.conditions = "):
        collect(model, asks(), protocol(), **options)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert capsys.readouterr().err == ""


def test_a_grid_may_have_it_too(model, control, tmp_path):
    readout = protocol().readout  # whose programs are compiled
    p = replace(protocol(), readout=readouts.Grid(readout.sites, readout.reducers, dtype="bfloat16"))
    store = collect_grid(model, asks(), p, control=control, folder=tmp_path, label=None)
    assert list(store.conditions) == CONDITIONS
    opened = open_store(tmp_path)
    for condition in CONDITIONS:
        np.testing.assert_array_equal(opened.states(condition), store.states(condition))


# What a calibration makes of it


def planted() -> Collected:
    """The second model's states are other numbers, 100 times as large."""
    rng = np.random.default_rng(7)
    collected = calibration_responses(rng)
    some = (collected.column("n_tokens") > 0)[:, None, None, None]
    for name in ("in_context", "re_read"):
        noise = rng.standard_normal(collected.states[name].shape).astype(np.float32)
        collected.states[f"random_{name}"] = 100 * noise * some
    return collected


def test_evidence_is_given_its_states_each_site_divided_by_their_own_rms(monkeypatch):
    asked = {}

    def spy(re_read, sign, *rest, **options):
        asked.update(options)
        return [{} for _ in sign]

    monkeypatch.setattr(probes, "evidence", spy)
    collected = planted()
    done = calibrate.analyse(AXES, collected, PROTOCOL, {})
    use = (collected.column("n_tokens") > 0) & (collected.column("set") == "A")
    context = collected.states["random_in_context"][:, :, 0].astype(np.float64)
    rms = np.sqrt((context[use] ** 2).mean(axis=(0, 2)))
    for name in ("in_context", "re_read"):
        states = collected.states[f"random_{name}"][:, :, 0]
        want = sum(w * states[:, s] / rms[s] for s, w in enumerate((0.1, 0.2, 0.3, 0.4)))
        for k, axis in enumerate(AXES):
            rows = (collected.column("axis") == axis.id) & (collected.column("set") == "A")
            np.testing.assert_allclose(asked["random_weights"][name][k], want[rows], rtol=1e-4, atol=1e-5)
    without = Collected(collected.records, {c: s for c, s in collected.states.items() if not c.startswith("random")})
    plain = calibrate.analyse(AXES, without, PROTOCOL, {})
    assert asked["random_weights"] is None
    np.testing.assert_array_equal(plain.calibration.site_rms, done.calibration.site_rms)
    np.testing.assert_array_equal(plain.calibration.directions, done.calibration.directions)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> bank.Bank:
    return bank.load(bank_file(tmp_path_factory.mktemp("bank") / "bank.yaml"))


def test_calibrate_has_it_unless_told_otherwise(model, source, monkeypatch):
    seen = []

    def spy(*args, **options):
        seen.append((options["control"], args[1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "collect", spy)
    axes = [source.axis("loud_quiet")]
    for options in ({"seed": 8}, {"seed": 8, "control": False}):
        with pytest.raises(KeyboardInterrupt):
            mj.calibrate(model, axes, source=source, **options)
    assert seen[1][0] is None
    want = random_weights(model, 8)
    assert seen[0][0].checkpoint.fingerprint == want.checkpoint.fingerprint
    for path, x in flatten(seen[0][0].params).items():
        np.testing.assert_array_equal(x, flatten(want.params)[path])
    with_it, alone = (calibrate.settings(model, source, axes, PROTOCOL, control=c) for c in (True, False))
    assert (with_it["random_weights"], alone["random_weights"]) == (True, False)
    assert {k for k in with_it if with_it[k] != alone[k]} == {"random_weights"}
