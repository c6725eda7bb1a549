"""Sound checkpoint folders, which the tests of loading copy and corrupt."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parity.hf_models import save, tiny


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return save(tiny("llama")[0], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory) -> Path:
    return save(tiny("gemma2")[0], tmp_path_factory.mktemp("gemma2"))  # tied


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))
