"""Compares readouts: every site × token rule × estimator on one collection of states, nested cross-validation.

    python scripts/ablate.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen [--config.condition=in_context …]
    python scripts/ablate.py --config=configs/qwen2_5_7b.py --workdir=runs/qwen --config.published=FILE

The first collects (resumably) and analyses; run again on a finished collection it analyses alone and loads no model.
--config.readout=runs/qwen/ablation/selected.json then calibrates and measures with the recommended readout. The second
prints the same rankings of a published ablation.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mood_jax import cli
from mood_jax.published import published_report
from mood_jax.reports import ablation as report
from mood_jax.studies import ablate
from mood_jax.studies import config as study


def main(config: Any, workdir: Path) -> None:
    if config.published:
        print(f"\n{published_report(config.published)}")
        return
    clock = cli.Clock()
    store = study.grid_store(config, workdir)
    clock.mark("collect")
    axes = [a.id for a in study.chosen_axes(config, study.source_bank(config))]
    estimators = study.names(config.estimators)
    found = ablate.run(store, axes, condition=config.condition, estimators=estimators, seed=config.seed)
    text = report.report(found)
    folder = workdir / "ablation"
    report.save(folder, found, store.settings)
    report.tensorboard(workdir / "tensorboard", found, store.sites, text)
    clock.mark("analyse")
    print(f"\n{config.model}: {text}\n")
    print(clock.summary())
    cli.print_paths(workdir, ["ablation", "tensorboard/ablation"])


if __name__ == "__main__":
    cli.run(main)
