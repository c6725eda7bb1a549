"""Seconds, ratios and memory. What is compared takes turns, so that a machine which slows down slows all of it."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from mood_jax.console import Progress

# "cpu" counts what this process computed, on all of its threads: beside other work it says more than the wall.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """What one call takes by one of CLOCKS. The call itself has to wait for the device."""
    started = clock()
    work()
    return clock() - started


def interleave(paths: Mapping[str, Callable[[], float]], repeats: int, label: str | None) -> dict[str, list[float]]:
    """The seconds that every path returns in every round; each second round runs them in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in paths}
    progress = Progress(label, repeats, "rounds")
    for k in range(repeats):
        for name in list(paths)[:: 1 if k % 2 == 0 else -1]:
            found[name].append(paths[name]())
        progress.advance(1)
    return found


def paired(over: Sequence[float], under: Sequence[float]) -> float:
    """The median over rounds of the ratio of two paths."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median, least and largest ratio of two paths over rounds."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def resident(field: str) -> float:
    """MiB of this process: "VmHWM" at its peak, "VmRSS" now. Where /proc is missing, the peak for both."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text(encoding="utf-8").splitlines() if x.startswith(field))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_bytes() -> tuple[int, str]:
    """The most memory so far, and of what: the device's own count where there is one, else this process."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "device"
    return int(resident("VmHWM") * 2**20), "process"


def load_average() -> float:
    """Processes that wanted a core in the last minute; other work on the machine shows here."""
    return os.getloadavg()[0]
