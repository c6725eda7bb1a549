"""What holds for every test: the CPU, strict broadcasting, few threads, no downloads' noise, and seeds.

`rng` and `seed` are for what correct code passes whatever is drawn, as equality with a reference: see SEED.
`fixed_rng` never changes: for statistical claims and bounds near float noise, which some draws break by chance.
"""

from __future__ import annotations

import gc
import os
import runpy
import zlib
from collections.abc import Iterator
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

# Compiled programs are shared by the workers and the scripts they start: each is compiled once, or by the run before.
# The module is run from its file, since importing the package imports jax, which reads its variables then.
ROOT = Path(__file__).parent.parent
_COMPILED = ROOT / ".pytest_cache" / "compiled" / runpy.run_path(str(ROOT / "mood_jax" / "compiled.py"))["machine"]()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# The files that take longest, which go first: whichever worker is free takes the next, and none is left with a long one
# at the end. (pytest-xdist's own order, most tests first, would do the opposite; see the Makefile.)
LONG = (
    "studies/test_validate_wills.py",
    "organisms/test_train.py",
    "generation/test_engine.py",
    "probes/test_power.py",
    "studies/test_validate_doses.py",
    "probes/test_evidence.py",
    "generation/test_mesh.py",
    "models/test_decoder.py",
    "studies/test_sweep.py",
    "generation/test_memory.py",
    "generation/test_dialogue.py",
    "generation/test_processes.py",
    "studies/test_sweep_survives.py",
    "studies/test_nulls.py",
    "studies/test_planted.py",
    "studies/test_random_weights.py",
    "studies/test_resume.py",
)

# Changed by hand now and then, which gives every test new inputs; it stays until the whole suite has passed with it.
# So what passed here passes there.
SEED = 2438519643


# Every compiled program holds some memory maps, of which Linux gives a process 65 530; the compiler aborts at the last.
MOST_MAPS = 25_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; tests marked `slow` only with MOOD_JAX_SLOW=1."""
    if os.environ.get("MOOD_JAX_SLOW") != "1":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; set MOOD_JAX_SLOW=1"))
    place = {str(ROOT / "tests" / name): k for k, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Lets go of compiled programs after a module that leaves many; the cache on disk still has them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def unoptimised() -> Iterator[None]:
    """XLA's optimisation level 0, here and in the scripts that a module starts.

    For modules that compile many small programs and hardly run them: they test our program, not XLA's optimiser, and
    take two thirds of the time. Parity, planted truth and validation are compiled as users' runs are.
    """
    import jax

    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as m:
        m.setenv(name.upper(), "1")
        jax.config.update(name, True)
        yield
    jax.config.update(name, False)
    jax.clear_caches()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own; pytest shows the line when it fails. MOOD_JAX_TEST_SEED tries others."""
    own = zlib.crc32(request.node.nodeid.encode(), SEED) & 0x7FFFFFFF
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
