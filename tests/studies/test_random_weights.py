"""The control with random weights: what its parameters are, what it reads, and what a calibration makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

import mood_jax as mj
from mood_jax import bank, probes
from mood_jax import readout as readouts
from mood_jax.generation import engine
from mood_jax.generation.model import random_weights
from mood_jax.models.checkpoint import flatten
from mood_jax.models.decoder import init_params
from mood_jax.studies import calibrate
from mood_jax.studies.collect import Ask, Collected, Protocol, collect
from mood_jax.studies.store import collect_grid, open_store
from tests.studies.planted import AXES, PROTOCOL, calibration_responses
from tests.studies.tiny import QUESTIONS, ROOT, bank_file, checkpoint, environment

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
def test_parameters_are_those_of_a_fresh_decoder(tmp_path, family):
    """As `init_params` makes them: the same constants (Gemma's norms store w − 1), the same spread of the others."""
    model = mj.load_model(str(checkpoint(tmp_path, family)), dtype="bfloat16")
    got, like = flatten(random_weights(model, 0).params), flatten(model.params)
    want = flatten(init_params(model.config, jax.random.key(0)))
    assert set(got) == set(like) == set(want)
    constants = 0
    for path, x in got.items():
        assert (x.shape, x.dtype, x.sharding) == (like[path].shape, like[path].dtype, like[path].sharding)
        values, fresh = np.asarray(x, np.float32), np.asarray(want[path])
        if fresh.std() == 0:
            np.testing.assert_array_equal(values, fresh)
            constants += 1
        else:  # seed 0: the spread of 1 000 and more numbers
            assert values.std() == pytest.approx(0.02, rel=0.1)
            assert abs(values.mean()) < 0.002
            assert fresh.std() == pytest.approx(0.02, rel=0.1)
    norms = 17 if family == "gemma2" else 9
    assert constants == norms + (12 if family == "qwen2" else 0)


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
import json, sys
import jax, numpy as np
import mood_jax as mj
from mood_jax.generation.model import random_weights
from mood_jax.models.checkpoint import flatten

first = None
for data, model in ((1, 1), (2, 2)):
    m = mj.load_model(sys.argv[1], dtype="float32", mesh=mj.make_mesh(data, model))
    found, like = flatten(random_weights(m, 0).params), flatten(m.params)
    alike = all(x.sharding == like[p].sharding for p, x in found.items())
    spread = sum(len(x.sharding.device_set) > 1 and not x.is_fully_replicated for x in found.values())
    values = {p: np.asarray(x) for p, x in found.items()}
    first = values if first is None else first
    print(json.dumps([alike, spread, all(np.array_equal(x, first[p]) for p, x in values.items())]))
"""


def test_on_a_mesh_it_is_spread_like_the_model_and_has_the_same_numbers(model):
    env = environment(XLA_FLAGS="--xla_force_host_platform_device_count=4")
    folder = str(model.checkpoint.folder)
    done = subprocess.run([sys.executable, "-c", SHARDED, folder], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (alike, spread, same), (alike_4, spread_4, same_4) = (json.loads(line) for line in done.stdout.splitlines())
    assert alike and alike_4 and same and same_4  # noqa: PT018
    assert (spread, spread_4 > 0) == (0, True)


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
    without = collect(model, asks(), protocol(), **options)
    assert list(without.states) == CONDITIONS[:2]
    assert "00000.safetensors is done again: " in capsys.readouterr().err


def test_a_grid_may_have_it_too(model, control, tmp_path):
    grid = readouts.Grid(("embed", "final_norm"), ("mean",), dtype="bfloat16")
    p = replace(protocol(), readout=grid)
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


def test_the_evidence_says_what_random_weights_separate():
    """Noise: the intervals hold .5 in both conditions. The seed is fixed, since of such intervals 1 in 20 does not."""
    done = calibrate.analyse(AXES, planted(), PROTOCOL, {}).calibration
    for block in done.evidence:
        for name in ("random_in_context", "random_re_read"):
            low, high = block[name]["auc_ci95"]
            assert low < 0.5 < high
    assert [b["verdict"] for b in done.evidence] == ["real", "dead"]
    json.dumps(done.evidence, allow_nan=False)


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
