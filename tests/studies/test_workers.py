"""Organisms measured by processes of their own: what passes between them, in which order, and what of a failure.

That a process measures what this one would is in test_validate_wills.py.
"""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mood_jax import artifacts
from mood_jax.errors import UserError
from mood_jax.organisms.export import organism_folder, read_realised
from mood_jax.organisms.spec import load_spec
from mood_jax.studies import workers
from mood_jax.studies.subjects import Plan, measure
from tests.studies.test_validation import subject


def made_up(organism, name, rng):
    """A subject of a shipped identity with numbers of every kind."""
    folder = organism_folder(organism)
    spec, whole = load_spec(folder / "spec.yaml"), read_realised(folder)
    who = spec.identities[spec.index(name)]
    return dataclasses.replace(
        subject(who, measured=rng.normal(size=7), scores=rng.normal(size=(7, 5)).astype(np.float32)),
        organism=organism,
        truth=whole["identities"][name] | {"free_responses": whole["free_responses"]},
        length=({"r": 0.1, "ci95": [-0.2, 1 / 3], "p_holm": 1e-300},) * 7,
        held_out={"warm_cold": (rng.normal(size=3), np.zeros(0))},
    )


def test_a_subject_comes_back_from_its_file_to_the_last_digit(tmp_path, rng):
    before = made_up("yi", "apart", rng)
    workers.write(before, tmp_path / "yi" / "apart" / "subject.json")
    after = workers.read("yi", "apart", tmp_path)
    assert (after.name, after.identity, after.truth) == (before.name, before.identity, before.truth)
    assert (after.length, after.evidence) == (before.length, before.evidence)
    for name in ("own", "own_sd", "scores", "own_length_out", "measured", "realised", "halves"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for name, values in vars(before.shared).items():
        np.testing.assert_array_equal(getattr(after.shared, name), values)
    assert after.said == before.said
    np.testing.assert_array_equal(after.held_out["warm_cold"][0], before.held_out["warm_cold"][0])
    assert after.held_out["warm_cold"][1].shape == (0,)


PICKED = {"yi": ["apart"], "qwen2": ["willed_1", "obedient"], "mistral": ["warm_0"]}


@pytest.fixture
def started(monkeypatch):
    """Processes that run given Python text in place of measuring; what they were started with, in order."""
    tasks, code = [], {}

    def start(task, complaints, threads):
        tasks.append((set(task["picked"]), threads))
        names = [f"{organism}/{name}" for organism, of in task["picked"].items() for name in of]
        text = next((code[o] for o in task["picked"] if o in code), "print(*names, sep='\\n')")
        return subprocess.Popen(
            [sys.executable, "-c", f"import sys, time\nnames = {names}\n{text}"],
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )

    monkeypatch.setattr(workers, "_started", start)
    monkeypatch.setattr(workers, "_cores", lambda: 4)
    return tasks, code


@pytest.mark.parametrize("jobs", [2, 3])
def test_every_organism_is_measured_once_and_subjects_come_in_the_order_asked_for(tmp_path, rng, started, jobs):
    tasks, _ = started
    for organism, names in PICKED.items():
        for name in names:
            workers.write(made_up(organism, name, rng), tmp_path / organism / name / "subject.json")
    told = []
    found = workers.measured(PICKED, Plan(), tmp_path, jobs, told.append)
    assert [s.name for s in found] == ["yi/apart", "qwen2/willed_1", "qwen2/obedient", "mistral/warm_0"]
    assert sorted(told) == sorted(s.name for s in found)
    parts = [{"qwen2"}, {"yi", "mistral"}] if jobs == 2 else [{"qwen2"}, {"yi"}, {"mistral"}]
    assert tasks == [(part, 4 // jobs) for part in parts]


def test_shares_are_about_equal_and_no_more_than_there_are_organisms():
    picked = {"a": ["1"] * 2, "b": ["1"] * 9, "c": ["1"] * 3, "d": ["1"] * 4, "e": ["1"] * 3}
    assert [{o: len(n) for o, n in part.items()} for part in workers.shares(picked, 2)] == [
        {"b": 9, "a": 2},
        {"d": 4, "c": 3, "e": 3},
    ]
    assert workers.shares({"a": ["1"]}, 4) == [{"a": ["1"]}]


def test_a_mistake_in_one_process_is_the_callers_and_ends_the_others(tmp_path, started):
    tasks, code = started
    code["qwen2"] = "print('a warning\\nthe disk is full', file=sys.stderr); sys.exit(2)"
    code["yi"] = "time.sleep(120)"
    before = time.monotonic()
    with pytest.raises(UserError, match=r"^the disk is full$"):
        workers.measured(PICKED, Plan(), tmp_path, 2, lambda _: None)
    assert time.monotonic() - before < 60  # nobody waited for the sleeper
    assert [part for part, _ in tasks] == [{"qwen2"}, {"yi", "mistral"}]


def test_a_defect_in_one_process_is_told_whole(tmp_path, started):
    _, code = started
    code["qwen2"] = "raise ValueError('seven')"
    with pytest.raises(RuntimeError, match=r"(?s)measured qwen2 ended with status 1.*ValueError: seven"):
        workers.measured(PICKED, Plan(), tmp_path, 3, lambda _: None)


def test_what_a_process_refuses_is_what_this_one_does(tmp_path):
    """A real one: the folder belongs to a run with other settings."""
    artifacts.claim_workdir(tmp_path / "yi" / "apart", "calibrate", {"samples": 9})
    with pytest.raises(UserError) as here:
        list(measure("yi", ["apart"], Plan(), tmp_path))
    (tmp_path / "mistral" / "warm_0").mkdir(parents=True)
    artifacts.claim_workdir(tmp_path / "mistral" / "warm_0", "calibrate", {"samples": 9})
    with pytest.raises(UserError) as there:
        workers.measured({"yi": ["apart"], "mistral": ["warm_0"]}, Plan(), tmp_path, 2, lambda _: None)
    assert str(there.value) in (str(here.value), str(here.value).replace("yi/apart", "mistral/warm_0"))


def test_a_process_ends_when_the_one_that_started_it_is_killed(tmp_path):
    """Else the same command, run again, would write into the folders that an orphan still writes into."""
    code = (
        "import time, sys\nfrom pathlib import Path\nfrom mood_jax.studies import workers\n"
        f"task = {{'picked': {{'yi': ['apart']}}, 'plan': {{'samples': 1}}, 'workdir': {str(tmp_path)!r}}}\n"
        "print(workers._started(task, sys.stderr, 1).pid, flush=True)\ntime.sleep(120)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _lives(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_are_as_many_as_cores_and_one_on_an_accelerator(tmp_path, monkeypatch):
    for cores, backend, want in ((1, "cpu", 1), (2, "cpu", 2), (64, "cpu", workers.MOST), (64, "tpu", 1)):
        monkeypatch.setattr(workers, "_cores", lambda cores=cores: cores)
        monkeypatch.setattr(workers.jax, "default_backend", lambda backend=backend: backend)
        assert workers.default() == want
    with pytest.raises(UserError, match="jobs must be at least 1, not 0"):
        workers.measured(PICKED, Plan(), tmp_path, 0, lambda _: None)
