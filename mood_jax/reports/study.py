"""What a calibration and a profile show in TensorBoard.

Each is a run of its own, `calibration` and `profile`, below one log folder; a tag begins with the axis id. n and m
responses of the positive and the negative pole, d state size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mood_jax.reports.tensorboard import Writer

_CONDITIONS = ("in_context", "re_read", "length_residualised", "length_only")
_MEASURES = ("auc", "dprime", "accuracy")


def write_calibration(
    logdir: Path,
    *,
    axes: Sequence[tuple[str, str, str]],
    projections: Mapping[str, tuple[np.ndarray, np.ndarray]],
    states: np.ndarray,
    labels: Mapping[str, Sequence[str]],
    evidence: Mapping[str, Mapping[str, Any]],
    table: str,
) -> Path:
    """Writes the run `calibration`: histograms of the poles, the evidence as scalars, the states in the projector.

    Args:
      logdir: folder of all runs, the one that `tensorboard --logdir` is given.
      axes: (id, name of the positive pole, name of the negative pole).
      projections: axis id → scaled scores of the positive [n] and of the negative [m] pole's calibration responses;
        a pole without responses has no histogram.
      states: [n, d] float32, the vector h of every calibration response.
      labels: column → [n] labels of `states`, such as axis, pole, question, text.
      evidence: axis id → the block that `mood_jax.probes.evidence` returns.
      table: the printed table, plain text.
    Returns:
      The run's folder.
    Raises:
      ValueError: a value that is not finite, with its tag; labels that do not fit `states`.
    """
    folder = Path(logdir) / "calibration"
    with Writer(folder) as writer:
        writer.text("table", _verbatim(table))
        for axis, *poles in axes:
            for pole, scores in zip(poles, projections[axis], strict=True):
                if len(scores):
                    writer.histogram(f"{axis}/calibration/{pole}", scores)
            block = evidence[axis]
            for name, value in evidence_scalars(block).items():
                writer.scalar(f"{axis}/{name}", value)
            if "verdict" in block:
                writer.text(f"{axis}/verdict", f"**{block['verdict']}**: {block['reason']}")
        writer.projector("calibration_states", states, labels)
    return folder


def write_profile(
    logdir: Path,
    *,
    axes: Sequence[tuple[str, str, str]],
    scores: Mapping[str, np.ndarray],
    means: Mapping[str, tuple[float, float, float]],
    table: str,
) -> Path:
    """Writes the run `profile`: per axis the histogram of the scores, and their mean with its interval.

    Args:
      logdir: folder of all runs, the same as the calibration's.
      axes: (id, name of the positive pole, name of the negative pole).
      scores: axis id → scaled scores [n] of the profile's responses.
      means: axis id → mean, lower and upper end of its 95 % confidence interval.
      table: the printed table, plain text.
    Returns:
      The run's folder.
    Raises:
      ValueError: a value that is not finite, with its tag.
    """
    folder = Path(logdir) / "profile"
    with Writer(folder) as writer:
        writer.text("table", _verbatim(table))
        for axis, *_ in axes:
            writer.histogram(f"{axis}/profile", scores[axis])
            for name, value in zip(("mean", "ci95_low", "ci95_high"), means[axis], strict=True):
                writer.scalar(f"{axis}/profile_{name}", value)
    return folder


def evidence_scalars(block: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evidence block under flat names, such as `auc_re_read` and `auc_re_read_ci95_low`.

    What was not measured (`in_context` may be missing, and imported axes have no evidence at all) has no numbers.
    """
    out: dict[str, float] = {}
    for condition in _CONDITIONS:
        if condition not in block:
            continue
        held_out = block[condition]
        for measure in _MEASURES:
            out[f"{measure}_{condition}"] = held_out[measure]
            low, high = held_out[f"{measure}_ci95"]
            out[f"{measure}_{condition}_ci95_low"], out[f"{measure}_{condition}_ci95_high"] = low, high
        out[f"auc_{condition}_in_sample"] = held_out["in_sample_auc"]
    for pole, share in block.get("cutoff_share", {}).items():
        out[f"cutoff_share_{pole}"] = share
    if "permutation" in block:
        out["permutation_p"] = block["permutation"]["p"]
        out["permutation_p_holm"] = block["permutation"]["p_holm"]
    if "random_direction_percentile" in block:
        out["random_direction_percentile"] = block["random_direction_percentile"]
    return out


def _verbatim(table: str) -> str:
    """Plain text as a code block, which keeps its columns under each other."""
    return f"```\n{table.rstrip()}\n```"
