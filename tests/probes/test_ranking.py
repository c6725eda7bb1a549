"""Rankings of readouts against plain loops, with ties, NaN and thresholds met exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mood_jax.errors import UserError
from mood_jax.probes.ranking import Ranked, best_per_reducer, describe_sites, holds, production, ranking

NAN = float("nan")
LAST4 = ("resid_post@4", "resid_post@5", "resid_post@6", "final_norm")


def row(name: str, aucs: list[float], dprimes: list[float], reducer: str = "mean") -> Ranked:
    per_axis = {f"axis{k}": {"auc": a, "dprime": d} for k, (a, d) in enumerate(zip(aucs, dprimes, strict=True))}
    return Ranked(
        name, "mean_difference", reducer, ("embed",), (1.0,), per_axis, float(np.mean(aucs)), float(np.mean(dprimes))
    )


def random_rows(rng: np.random.Generator, n: int = 60) -> list[Ranked]:
    """Coarse numbers, so that there are ties in one measure and in both."""
    rows = []
    for k in range(n):
        aucs = np.round(rng.uniform(0.7, 1, 3) * 10) / 10
        rows.append(
            row(f"r{k}", aucs.tolist(), [float(rng.integers(0, 4))] * 3, rng.choice(["mean", "last", "max_abs"]))
        )
    return rows


def plain_ranking(rows: list[Ranked], better) -> list[str]:
    """Insertion sort: each row goes behind all that it does not beat."""
    out: list[Ranked] = []
    for candidate in rows:
        place = 0
        while place < len(out) and not better(candidate, out[place]):
            place += 1
        out.insert(place, candidate)
    return [r.name for r in out]


def test_both_orders_equal_an_insertion_sort(rng):
    rows = random_rows(rng)
    by_dprime = plain_ranking(rows, lambda a, b: a.mean_dprime > b.mean_dprime)
    by_auc = plain_ranking(
        rows,
        lambda a, b: a.mean_auc > b.mean_auc or (a.mean_auc == b.mean_auc and a.mean_dprime > b.mean_dprime),
    )
    assert [r.name for r in ranking(rows, "dprime")] == by_dprime
    assert [r.name for r in ranking(rows)] == by_auc
    assert by_auc != by_dprime


def test_what_was_not_measured_ranks_last_and_holds_nothing():
    rows = [
        row("nan", [NAN, 1.0], [NAN, 2.0]),
        row("low", [0.1, 0.1], [-3.0, -5.0]),
        row("inf", [1, 1], [math.inf] * 2),
    ]
    assert [r.name for r in ranking(rows, "dprime")] == ["low", "nan", "inf"]
    assert [r.name for r in ranking(rows, "auc")] == ["inf", "low", "nan"]
    assert [r.name for r in holds(rows, 0.0)] == ["low", "inf"]
    assert math.isnan(rows[0].worst_auc)


def test_holds_on_every_axis_and_exactly_at_the_bar(rng):
    rows = random_rows(rng)
    for share in (0.7, 0.85, 0.9):
        want = [r.name for r in rows if all(v["auc"] > share - 1e-6 for v in r.per_axis.values())]
        assert [r.name for r in holds(rows, share)] == want
    at = row("at", [float(np.float32(0.85)), 0.85, 17 / 20], [1.0] * 3)
    just_below = row("below", [0.85, 0.849, 0.9], [1.0] * 3)
    low_in_float32 = row("below in float32", [1 - float(np.float32(0.15)), 1.0], [1.0] * 2)
    assert low_in_float32.worst_auc < 0.85
    assert holds([at, just_below, low_in_float32]) == [at, low_in_float32]


@pytest.mark.parametrize("by", ["auc", "dprime"])
def test_best_of_each_reducer(rng, by):
    rows = random_rows(rng)
    best = best_per_reducer(rows, by)
    assert list(best) == list(dict.fromkeys(r.reducer for r in rows))
    for reducer, found in best.items():
        assert found is ranking([r for r in rows if r.reducer == reducer], by)[0]


def test_the_production_row():
    other = row("other", [1.0], [1.0], "decay_0.9")
    made = replace(other, name="made", sites=LAST4, weights=(0.1, 0.2, 0.3, 0.4))
    wrong = [
        replace(made, name="last", reducer="last"),
        replace(made, name="inverse", weights=(0.4, 0.3, 0.2, 0.1)),
        replace(made, name="logistic", estimator="logistic"),
        replace(made, name="three", sites=LAST4[1:], weights=(0.2, 0.3, 0.5)),
    ]
    assert production([other, *wrong]) is None
    assert production([*wrong, made, other]) is made
    rounded = replace(made, weights=(1 / 10, 2 / 10, 3 / (1 + 2 + 3 + 4), 4 / 10))
    assert production([rounded]) is rounded
    second = replace(made, name="second", sites=("resid_post@4", "resid_post@5", "resid_post@6", "resid_post@7"))
    with pytest.raises(UserError, match="several rows are the production readout: made, second"):
        production([made, second])
    assert production([made, second], LAST4) is made
    assert production([made, second], list(second.sites)) is second


def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="unknown order 'name'"):
        ranking([], "name")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (("embed",), "embed"),
        (LAST4, "resid_post@4…6, final_norm"),
        (("embed", "resid_post@0", "resid_post@1"), "embed, resid_post@0…1"),
        (("resid_post@9", "resid_post@10", "resid_post@12"), "resid_post@9…10, resid_post@12"),
        (("resid_post@2", "resid_post@1"), "resid_post@2, resid_post@1"),
        ((), ""),
    ],
)
def test_sites_in_words(sites, said):
    assert describe_sites(sites) == said
