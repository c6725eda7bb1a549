"""scripts/check_parity.py from the outside, and the comparison that it rests on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mood_jax import parity
from mood_jax.errors import UserError
from tests.fixtures.tokenizers import make_tokenizer
from tests.parity.hf_models import save, tiny

ROOT = Path(__file__).parents[2]


def check(*arguments: str, before: str = "") -> subprocess.CompletedProcess:
    start = f"import runpy, sys; {before}sys.path[0] = 'scripts'; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"import sys; sys.argv = sys.argv[1:]; {start}"
    command = [sys.executable, "-c", code, "scripts/check_parity.py", "--config=configs/parity.py", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = save(tiny("gemma2", num_hidden_layers=2)[0], tmp_path_factory.mktemp("gemma2"))
    make_tokenizer("gemma2", folder)
    return folder


def test_pass(folder, tmp_path):
    done = check(f"--config.model={folder}", "--config.dtype=both", f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "PASS"
    assert max(map(len, done.stdout.splitlines())) <= 100
    records = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert [r["dtype"] for r in records] == ["float32", "bfloat16"]
    sites = ["embed", "resid_post@0", "resid_post@1", "final_norm", "logits"]
    for r in records:
        assert [s["site"] for s in r["sites"]] == sites
        assert r["tokens"] > 100  # the built-in texts, through the tokenizer
        for s in r["sites"]:
            assert f"{s['cosine']:.6f}" in done.stdout
    exact, rounded = records
    assert 0 < exact["max_delta"] <= 1e-4 < rounded["max_delta"]
    assert 0 <= exact["kl_mean"] <= exact["kl_max"] < 1e-9 < rounded["kl_mean"] < rounded["kl_max"] < 1e-2


def test_fail(folder):
    done = check(f"--config.model={folder}", "--config.tolerance=0.0")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "FAIL"
    assert done.stderr.count("Traceback") == 0


def test_mistakes_are_one_line_and_status_2():
    no_torch = check(before="sys.modules['torch'] = None; ")
    assert no_torch.returncode == 2, no_torch.stderr
    assert no_torch.stderr.splitlines()[-1].startswith("error: torch is needed for this check only; pip install")
    absent = check("--config.model=/no/such/folder")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1), absent.stderr
    assert "no such folder: /no/such/folder" in absent.stderr


def test_compare_against_loops(rng):
    reference = {"embed": rng.standard_normal((2, 3, 4)), "logits": rng.standard_normal((2, 3, 5))}
    ours = {k: v + 0.1 * rng.standard_normal(v.shape) for k, v in reference.items()}
    real = np.asarray([[False, True, True], [True, True, True]])
    ours["embed"][0, 0] = np.nan  # padding does not count
    for found in parity.compare(ours, reference, real):
        a, b = ours[found.site], reference[found.site]
        rows = [(a[i, t], b[i, t]) for i, t in np.ndindex(2, 3) if real[i, t]]
        delta = max(np.abs(x - y).max() for x, y in rows) / max(np.abs(y).max() for _, y in rows)
        cosine = min(x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in rows)
        np.testing.assert_allclose((found.max_delta, found.cosine), (delta, cosine))
    divergences = []
    for i, t in np.ndindex(2, 3):
        if real[i, t]:
            p, q = (np.exp(x["logits"][i, t]) / np.exp(x["logits"][i, t]).sum() for x in (reference, ours))
            divergences.append(np.sum(p * np.log(p / q)))
    got = parity.kl(ours["logits"] + 50.0, reference["logits"], real)
    np.testing.assert_allclose(got, (np.mean(divergences), np.max(divergences)))


def test_compare_refuses_nan_and_other_sites(rng):
    x = {"embed": rng.standard_normal((1, 2, 3))}
    real = np.ones((1, 2), bool)
    broken = {"embed": np.where(np.arange(3) == 1, np.nan, x["embed"])}
    for ours, reference in ((broken, x), (x, broken)):
        found = parity.compare(ours, reference, real)
        assert not parity.agrees(found, "float32")
        assert not parity.agrees(found, "bfloat16")
    with pytest.raises(UserError, match="different sites"):
        parity.compare(x, x | {"logits": x["embed"]}, real)


def test_left_pad():
    tokens, real, positions = parity.left_pad([[5, 6, 7], [8]], pad=9)
    np.testing.assert_array_equal(tokens, [[5, 6, 7], [9, 9, 8]])
    np.testing.assert_array_equal(real, [[True, True, True], [False, False, True]])
    np.testing.assert_array_equal(positions, [[0, 1, 2], [0, 0, 0]])
