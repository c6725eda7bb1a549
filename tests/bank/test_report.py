"""scripts/check_bank.py: what it prints, and its exit status."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from mood_jax import bank
from mood_jax.bank import report
from tests.fixtures.tokenizers import make_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_bank.py"
EXAMPLE = ROOT / "mood_jax" / "bank" / "examples" / "direct_evasive.yaml"
RANK = 1 + max(place.rank for place in bank.shipped().places.values())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_bank_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return module


@pytest.fixture
def check_bank(script, capsys):
    """Runs the script's main in this process: (exit status, stdout, stderr)."""

    def check_bank(*paths, tokenizer=None):
        status = 0
        with flagsaver.flagsaver(tokenizer=tokenizer):
            try:
                script.main(["check_bank.py", *map(str, paths)])
            except SystemExit as stop:
                status = stop.code
        return status, *capsys.readouterr()

    return check_bank


def row(output, name):
    return next(line.split() for line in output.splitlines() if line.startswith(name))


def test_the_shipped_bank_passes_and_its_counts_are_printed():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "warm_cold") == ["warm_cold", "30", "20", "20", "10", "3", "2", "5", "104", "/", "104"]
    assert row(done.stdout, "conflict") == ["conflict", "accusation", "5", "12", "+", "4"]
    assert row(done.stdout, "control ") == ["control", "control", "10", "16"]
    assert row(done.stdout, "conflict turns")[2] == "600"
    assert "no duplicate, no near duplicate" in done.stdout


def test_a_bad_bank_is_listed_and_fails(check_bank, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "format: 1\nquestions:\n"
        "- {id: warm_cold/A/31, text: How do bees find the way back to their hive?}\n"
        "- {id: warm_cold/A/32, text: Is a cold bath good for anyone?}\n"
    )
    status, out, err = check_bank(path, EXAMPLE)
    assert status == 2
    assert "mine.yaml:3: text: 'warm_cold/A/31' is nearly the same" in out
    assert "mine.yaml:4: text: 'warm_cold/A/32' holds 'cold'" in out
    assert err == "error: 2 problems in the texts, listed above; mend those lines\n"
    assert row(out, "direct_evasive")[1:5] == ["30", "20", "20", "10"]

    path.write_text("format: 1\nquestion: []\n")
    status, _, err = check_bank(path)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {path}:2: question: unknown field; use one of: ")


def test_tokens_per_question(check_bank, tmp_path):
    make_tokenizer("qwen2", save_to=tmp_path)
    status, out, err = check_bank(EXAMPLE, tokenizer=str(tmp_path))
    assert (status, err) == (0, "")
    tokenizer = make_tokenizer("qwen2")
    counts = [len(tokenizer.encode(q.text)) for q in bank.load(EXAMPLE).questions("direct_evasive", set="eval")]
    printed = row(out, "eval")
    assert (printed[1], int(printed[2]), int(printed[-1])) == ("10", min(counts), max(counts))
    status, _, err = check_bank(tokenizer=str(tmp_path / "none"))
    assert (status, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("since", [0, RANK])
def test_counts_of_a_users_file_leave_out_the_shipped(since, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("format: 1\nprompts:\n- {id: anchor/gravity/01, text: How heavy is the heart of a mountain?}\n")
    own = bank.load(path)
    _, rows = report.other_counts(own, since)
    assert ["anchor", "gravity", "1", ""] in rows
    assert (len(rows) == 1) == (since == RANK)
    assert len(report.axis_counts(own, since)[1]) == (0 if since else 7)
