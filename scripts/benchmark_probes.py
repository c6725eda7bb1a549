"""Times the probes against what one would otherwise write: ratios in one run, not seconds to be proud of.

    python scripts/benchmark_probes.py --config=configs/benchmark_probes.py --workdir=runs/benchmark

1. The published ablation grid by mean difference: every readout of a 32-layer model with 4 096 numbers a state, one
   15/5 split, against a numpy/scipy loop over readouts and samples.
2. Logistic regression over axes × readouts × folds, against scikit-learn's lbfgs at the same objective, with the gap of
   the objective, both evaluated in float64.
3. 1 000 permutations and 1 000 bootstrap draws of one readout of seven axes.

The references run on a sample of the readouts (`references`) and are scaled to all. It needs scipy and scikit-learn
(the extra `test`), Linux, about 2 GB of memory and a quiet machine; twenty seconds on two cores.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import artifacts, cli
from mood_jax.console import table
from mood_jax.probes.folds import encode, grouped_folds
from mood_jax.probes.grid import split_scores
from mood_jax.probes.logistic import logistic_projections
from mood_jax.probes.permutation import pole_swaps, swap_p
from mood_jax.probes.resampling import bootstrap_counts, bootstrap_indices, cross_validated_projections, evaluate
from mood_jax.probes.spans import centred_gram
from mood_jax.values import check_numbers


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """The fastest of `repeats` runs after one that compiles."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_growth(function: Callable[[], Any]) -> int:
    """Bytes by which a run raises this process' resident memory at its highest, above what it holds before (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs have freed goes back, or this one would hide in it
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def mixes(sites: int) -> np.ndarray:
    """The eight mixes of the last layers, [8, sites]."""
    weights = [[1] * k for k in (2, 3, 4, 6, 8)] + [[1, 2, 3, 4], [4, 3, 2, 1], [1, 4, 9, 16]]
    return np.array([[0.0] * (sites - len(w)) + [x / sum(w) for x in w] for w in weights], np.float32)


def grid(config: Any, rng: np.random.Generator) -> dict[str, float]:
    """All readouts of all axes and rules by mean difference, one split."""
    from scipy.stats import trim_mean

    S, D, n = config.sites, config.d_model, 2 * config.questions
    sign, question = np.tile([1, -1], config.questions), np.repeat(np.arange(config.questions), 2)
    split = 3 * config.questions // 4
    test = question >= split
    pos, neg = ~test & (sign > 0), ~test & (sign < 0)
    mix = mixes(S)
    cells = [rng.normal(size=(S, n, D)).astype(np.float32) for _ in range(config.axes)]

    def ours() -> None:
        for states in cells:  # one rule; the others have the same shapes
            parts = (jnp.asarray(states[:, rows]) for rows in (pos, neg, test))
            jax.block_until_ready(split_scores(*parts, jnp.asarray(sign[test]), jnp.asarray(mix)))

    mine = seconds(ours) * config.rules
    extra = peak_growth(ours)  # compiled by now

    weights = np.concatenate([np.eye(S, dtype=np.float32), mix])
    chosen = rng.choice(len(weights), min(config.references, len(weights)), replace=False)

    def loop() -> list[tuple[float, float]]:
        states, found = cells[0], []
        for w in weights[chosen]:
            h = np.stack([sum(w[s] * states[s, i] for s in np.flatnonzero(w)) for i in range(n)])
            v = trim_mean(h[pos], 0.1) - trim_mean(h[neg], 0.1)
            x = h[test] @ (v / np.linalg.norm(v))
            a, b = x[sign[test] > 0], x[sign[test] < 0]
            found.append(
                (np.mean(a[:, None] > b[None, :]), (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
            )
        return found

    theirs = seconds(loop) * len(weights) / len(chosen) * config.axes * config.rules
    held = sum(c.nbytes for c in cells)
    return {"seconds": mine, "reference": theirs, "memory_share": 1 + extra / held}


def logistic(config: Any, rng: np.random.Generator) -> dict[str, float]:
    """Fits of axes × readouts × folds at one penalty."""
    from sklearn.linear_model import LogisticRegression

    n, D, k = 60, config.d_model, 5
    sign, question = np.tile([1, -1], n // 2), np.repeat(np.arange(n // 2), 2)
    fold = grouped_folds(question, k)
    training = jnp.asarray(np.stack([np.where(fold == f, 0, sign) for f in range(k)]))
    states = [rng.normal(size=(n, D)).astype(np.float32) for _ in range(config.references)]
    for h in states:
        h[:, :8] += 0.3 * sign[:, None]
    fit = jax.jit(lambda h: logistic_projections(h, training, jnp.ones(1), vectors=False))

    def ours() -> None:
        for h in states:
            jax.block_until_ready(fit(jnp.asarray(h)))

    fits = config.logistic_axes * config.readouts * k
    mine = seconds(ours) / (len(states) * k) * fits

    def objective(w: np.ndarray, b: float, z: np.ndarray, y: np.ndarray) -> float:
        return 0.5 * w @ w + np.logaddexp(0, -y * (z @ w + b)).sum()

    gaps, spent = [], 0.0
    for h in states:
        path = fit(jnp.asarray(h))
        for f in range(k):
            rows = fold != f
            x = h[rows].astype(np.float64)
            z = (x - x.mean(0)) / x.std(0)
            start = time.perf_counter()
            sk = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(z, sign[rows])
            spent += time.perf_counter() - start
            a = np.asarray(path.coefficients[f, 0], np.float64)[rows]
            own = objective(z.T @ a, float(path.intercept[f, 0]), z, sign[rows])
            best = objective(sk.coef_[0], sk.intercept_[0], z, sign[rows])
            gaps.append((own - best) / best)
    return {"seconds": mine, "reference": spent / (len(states) * k) * fits, "gap": float(max(gaps))}


def resampling(config: Any, rng: np.random.Generator) -> dict[str, float]:
    """1 000 permutations and 1 000 bootstrap draws of seven axes, every one refitting all folds where it has to."""
    n, k = 60, 5
    sign, question = np.tile([1, -1], n // 2), np.repeat(np.arange(n // 2), 2)
    fold, code = jnp.asarray(grouped_folds(question, k)), jnp.asarray(encode(question))
    swaps = pole_swaps(sign, encode(question), 1000)
    states = jnp.asarray(rng.normal(size=(7, n, config.d_model)), jnp.float32)

    @jax.jit
    def both(states: jax.Array) -> Any:
        def one(h: jax.Array) -> Any:
            gram = centred_gram(h, jnp.asarray(sign))
            p = swap_p(gram, jnp.asarray(sign), code, fold, jnp.asarray(swaps), jnp.ones(len(swaps), bool), k)
            held = cross_validated_projections(h, jnp.asarray(sign), fold, n_folds=k)
            counts = bootstrap_counts(bootstrap_indices(jax.random.key(0), 1000, n // 2))
            return p, evaluate(held.x, jnp.asarray(sign), code, fold, counts, gram, k)

        return jax.vmap(one)(states)

    return {"seconds": seconds(lambda: jax.block_until_ready(both(states)))}


def main(config: Any, workdir: Path) -> None:
    check_numbers(config)
    rng = np.random.default_rng(config.seed)
    found = {"grid": grid(config, rng), "logistic": logistic(config, rng), "resampling": resampling(config, rng)}
    rows = []
    for name, target in (("grid", "≥ 5 ×"), ("logistic", "≥ 10 ×"), ("resampling", "≤ 2 s")):
        f = found[name]
        ratio = f"{f['reference'] / f['seconds']:.1f} ×" if "reference" in f else "–"
        reference = f"{f['reference']:.1f} s" if "reference" in f else "–"
        rows.append([name, f"{f['seconds']:.2f} s", reference, ratio, target])
    print("\n" + table(["", "ours", "reference", "ratio", "target"], rows))
    print(f"\nmemory of the grid: {found['grid']['memory_share']:.2f} × the states")
    print(f"logistic: the objective is above scikit-learn's by at most {found['logistic']['gap']:.1e} of it")
    artifacts.write_json(workdir / "benchmark_probes.json", found)


if __name__ == "__main__":
    cli.run(main, default_config=str(Path(__file__).parent.parent / "configs" / "benchmark_probes.py"))
