"""The names and call forms that notebooks rely on, as the README writes them, on a tiny model; and a light import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import mood_jax as mj
from tests.studies.tiny import ROOT, bank_file, checkpoint, environment

pytestmark = pytest.mark.usefixtures("unoptimised")

L, D, V = 4, 64, 404
PROMPTS = [
    "How do I boil an egg?",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    [5, 17, 300, 8],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder) -> mj.Model:
    return mj.load_model(str(folder), dtype="float32", mesh=mj.make_mesh(1, 1), revision=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return mj.bank.load(bank_file(tmp_path_factory.mktemp("bank") / "bank.yaml"))


@pytest.fixture(scope="module")
def calibration(model, source) -> mj.Calibration:
    axes = [source.axis("loud_quiet")]
    return mj.calibrate(model, axes=axes, seed=0, source=source, max_new_tokens=6, batch_size=14)


def test_every_public_name_is_there():
    for name in mj.__all__:
        assert getattr(mj, name) is not None
    assert sorted(mj.__all__) == mj.__all__
    assert len(mj.bank.axes()) == 7
    assert mj.__version__


def test_forward_gives_logits_and_the_states_of_every_site(model):
    tokens = np.array([[5, 9, 300, 17, 2], [0, 0, 44, 3, 8]])
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    logits, states = mj.forward(model, tokens, mask)
    assert logits.shape == (2, 5, V)
    assert logits.dtype == jnp.float32
    assert {k: v.shape for k, v in states.items()} == {
        "embed": (2, 5, D),
        "resid_post": (L, 2, 5, D),
        "final_norm": (2, 5, D),
    }
    _, some = mj.forward(model, tokens, mask, sites=["resid_post@3"])
    assert list(some) == ["resid_post"]
    np.testing.assert_allclose(some["resid_post"][0], states["resid_post"][3], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def responses(model) -> mj.Responses:
    return mj.generate(
        model,
        PROMPTS,
        max_new_tokens=6,
        sampler=mj.TopP(0.9, temperature=0.7),
        seed=0,
        sites="last4",
        reducers=("decay_0.9", "mean", "last"),
    )


def test_generate_answers_every_kind_of_prompt(model, responses):
    assert len(responses) == 3
    for i in range(3):
        assert isinstance(responses.text[i], str)
        assert responses.n_tokens[i] == len(responses.tokens[i]) <= 6
        assert responses.finish[i] in ("eos", "length")
        assert responses.text[i] == model.chat.decode(list(responses.tokens[i]))
    assert responses.sites == tuple(f"resid_post@{k}" for k in range(L))
    assert responses.reducers == ("decay_0.9", "mean", "last")
    assert responses.states.shape == (3, 4, 3, D)
    assert responses.states.dtype == np.float32
    assert np.isfinite(responses.states).all()


def test_sites_and_reducers_come_in_the_order_asked_for(model):
    options = {"max_new_tokens": 2, "sampler": mj.Greedy()}
    all_ = mj.generate(model, PROMPTS[:1], sites="all", reducers=("mean", "max_abs"), **options)
    assert all_.sites == ("embed", *(f"resid_post@{k}" for k in range(L)), "final_norm")
    turned = mj.generate(model, PROMPTS[:1], sites=["final_norm", "embed"], reducers=("max_abs", "mean"), **options)
    assert turned.sites == ("final_norm", "embed")
    np.testing.assert_allclose(turned.states, all_.states[:, [5, 0]][:, :, [1, 0]], rtol=1e-5, atol=1e-5)
    assert mj.generate(model, PROMPTS[:1], sites="none", reducers=(), **options).states.size == 0


def test_read_takes_responses_texts_and_token_lists(model, responses):
    options = {"sites": "last4", "reducers": ("decay_0.9", "mean", "last")}
    again = mj.read(model, PROMPTS, responses, **options)
    np.testing.assert_allclose(again, responses.states, rtol=1e-3, atol=1e-4)
    as_tokens = mj.read(model, PROMPTS, [t.tolist() for t in responses.tokens], **options)
    np.testing.assert_array_equal(as_tokens, again)
    other = mj.read(model, PROMPTS, ["Gladly.", "Because it is.", "No."], **options)
    assert other.shape == again.shape
    assert np.isfinite(other).all()


def test_calibrate_save_load_profile(model, source, calibration, tmp_path):
    assert [a.id for a in calibration.axes] == ["loud_quiet"]
    calibration.save(tmp_path / "my-calibration")
    loaded = mj.Calibration.load(tmp_path / "my-calibration")
    np.testing.assert_array_equal(loaded.directions, calibration.directions)
    profile = mj.profile(model, loaded, max_new_tokens=6, batch_size=30)
    found = profile["loud_quiet"]
    low, high = found.ci95
    assert low <= found.mean <= high
    assert set(found.scores) == {"raw", "iqr", "article", "pole", "re_read"}
    assert {len(s) for s in found.scores.values()} == {len(profile.question_ids)}
    assert len(set(profile.question_ids)) in (29, 30)  # a random model may end at once
    assert found.mean == pytest.approx(float(np.mean(found.scores["iqr"])), rel=1e-4, abs=1e-5)
    profile.save(tmp_path / "profile.json")
    assert mj.Profile.load(tmp_path / "profile.json")["loud_quiet"].ci95 == (low, high)
    with pytest.raises(mj.UserError, match="unknown axis 'warm'"):
        profile["warm"]


def test_an_untrained_model_has_no_real_axis(calibration):
    block = calibration.evidence[0]
    assert block["verdict"] != "real"
    assert {"re_read", "in_context", "length_only", "permutation", "cutoff_share", "evaluation"} <= set(block)


# What an import brings along

WITHOUT = """\
import importlib.machinery, socket, sys

found = importlib.machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name in {absent} else found(name, path, target)

importlib.machinery.PathFinder.find_spec = find_spec

def refuse(*args, **kwargs):
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
USE = """
import numpy as np
import mood_jax as mj
from mood_jax import cli, parity
from mood_jax.organisms import export, realised
from mood_jax.reports import runs, tables
from mood_jax.studies import config, find, save
model = mj.load_model({folder!r}, dtype="float32")
model.chat.render("Hello there.")
print("done")
"""


def test_torch_pickle_loaders_and_the_network_are_never_needed(folder):
    """As if they were not installed, and no sockets: everything imports and a model loads."""
    absent = ("torch", "joblib", "cloudpickle", "dill", "sklearn", "pytest", "sentencepiece")
    code = WITHOUT.replace("{absent}", repr(absent)) + USE.format(folder=str(folder))
    environ = environment()
    environ.pop("HF_HUB_OFFLINE")
    done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_no_source_file_loads_pickles_or_torch():
    """Neither the package nor the configs name a loader that runs code, or torch."""
    words = ("pickle", "torch.load", "import torch", "from torch", "allow_pickle=True", "joblib", "flax.nnx", "nnx.")
    for path in [*(ROOT / "mood_jax").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.partition("#")[0].strip()
            if code.startswith(("import ", "from ")) or "allow_pickle" in code or ".load(" in code:
                assert not [w for w in words if w in code], f"{path}:{number}"
