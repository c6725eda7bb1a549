"""The validation's run over several organisms at the same time, with measuring replaced."""

import threading
import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from mood_jax.errors import UserError
from mood_jax.studies import validate, validation
from mood_jax.studies.subjects import Plan


class Fake(NamedTuple):
    name: str
    identity: object = None


def test_organisms_measured_at_the_same_time_keep_their_order(monkeypatch, tmp_path):
    both = threading.Barrier(2, timeout=20)

    def measure(organism, names, plan, workdir):
        both.wait()
        for name in names:
            yield Fake(f"{organism}/{name}"), None, None

    given = []
    checks = {name: lambda *a: given.append(a[0]) for name in vars(validation) if name.endswith("_check")}
    monkeypatch.setattr(validate, "measure", measure)
    monkeypatch.setattr(validate, "validation", SimpleNamespace(**checks))
    names = ["yi/apart", "yi/rank_1", "llama/dose_3"]
    found = validate.run(names, Plan(), tmp_path, null_seeds=0, at_once=2)
    assert [s.name for s in found.subjects] == names
    assert [s.name for s in given[0]] == names
    with pytest.raises(UserError, match="at_once is 0"):
        validate.run(names, Plan(), tmp_path, at_once=0)


def test_an_error_in_one_organism_stops_the_others_after_their_identity(monkeypatch, tmp_path):
    begun, broken = [], threading.Event()

    def measure(organism, names, plan, workdir):
        if organism == "yi":
            broken.set()
            raise UserError("yi is broken")
        for name in names:
            begun.append(name)
            broken.wait(20)
            time.sleep(0.2)  # so that the error has been seen
            yield Fake(name), None, None

    monkeypatch.setattr(validate, "measure", measure)
    names = ["llama/dose_3", "llama/dose_4", "yi", "qwen2"]
    with pytest.raises(UserError, match="yi is broken"):
        validate.run(names, Plan(), tmp_path, null_seeds=0, at_once=2)
    assert begun == ["dose_3"]
