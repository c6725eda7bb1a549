"""What holds for every test: the CPU, strict broadcasting, few threads, no downloads' noise, and seeds.

`rng` and `seed` are fresh after every change of the code: for what correct code passes whatever is drawn, as equality
with a reference.
`fixed_rng` never changes: for statistical claims and bounds near float noise, which some draws break by chance.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path

# Environment variables, which subprocesses inherit, rather than jax.config; set before jax and torch are imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@functools.cache
def _state_of_the_code() -> int:
    """A checksum of the package and its tests: another one after every change."""
    total = 0
    for path in sorted([*ROOT.glob("mood_jax/**/*.py"), *ROOT.glob("tests/**/*.py")]):
        total = zlib.crc32(path.read_bytes(), total)
    return total


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Another seed for every test and every state of the code; pytest shows the line when the test fails.

    MOOD_JAX_TEST_SEED sets it, to repeat a failure or to try others: the same code gets the same seeds elsewhere, so
    that what passed here passes there.
    """
    own = zlib.crc32(request.node.nodeid.encode(), _state_of_the_code()) & 0x7FFFFFFF
    value = int(os.environ.get("MOOD_JAX_TEST_SEED", own))
    print(f"MOOD_JAX_TEST_SEED={value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def fixed_rng() -> np.random.Generator:
    """The same draws in every run, for an assertion that correct code fails with a probability above 1e-6."""
    return np.random.default_rng(0)
