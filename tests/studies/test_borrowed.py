"""Borrowed poles: scores between the texts of another model, whatever the reader's own offset and scale."""

import numpy as np
import pytest

from mood_jax import probes
from mood_jax.errors import UserError
from mood_jax.generation import api
from mood_jax.readout import preset
from mood_jax.studies import borrowed
from mood_jax.studies.collect import Ask, Collected

D, N_QUESTIONS = 24, 30
READOUT = preset("last4", 6)
AXES = ("warm_cold", "formal_casual")


def texts():
    """A lender's responses to both poles of two axes, and what was asked."""
    asks, records = [], []
    for axis in AXES:
        for q in range(N_QUESTIONS):
            for sign in (1, -1):
                id_ = f"{axis}/{q}|{sign}"
                messages = ({"role": "system", "content": "Be so."}, {"role": "user", "content": f"Question {q}?"})
                asks.append(Ask(id_, messages, {}))
                about = {"id": id_, "axis": axis, "sign": sign, "question": f"{axis}/{q}"}
                records.append(about | {"tokens": [1, 2, 3], "n_tokens": 3})
    records.append(records[0] | {"id": "unknown", "tokens": [], "n_tokens": 0})  # without a word: never read
    return asks, Collected(records, {})


class Reader:
    """Stands in for `api.read`: states [n, 4, 1, D] with one direction an axis, another style mixed in, and noise."""

    def __init__(self, rng, shift=1.5, offset=0.0, size=1.0):
        self.rng, self.shift, self.offset, self.size = rng, shift, offset, size
        self.directions = np.linalg.qr(rng.normal(size=(D, 3)))[0].T
        self.asked = []

    def state(self, amounts):
        """amounts [n, 2] → [n, 4, D]; the third direction is a style that comes and goes."""
        n = len(amounts)
        h = self.shift * amounts @ self.directions[:2] + 3 * self.rng.normal(size=(n, 1)) * self.directions[2]
        h = self.size * (h + 0.5 * self.rng.normal(size=(n, D))) + self.offset
        return np.repeat(h[:, None], 4, axis=1).astype(np.float32)

    def __call__(self, model, prompts, responses, **reading):
        self.asked = [(p[0]["role"], tuple(r)) for p, r in zip(prompts, responses, strict=True)]
        sign = np.tile([1.0, -1.0], len(prompts) // 2)
        first = np.arange(len(prompts)) < len(prompts) // 2
        return self.state(np.stack([sign * first, sign * ~first], axis=1))[:, :, None]


@pytest.mark.parametrize(("offset", "size"), [(0.0, 1.0), (4.0, 1.0), (-2.0, 30.0)])
def test_amounts_come_out_whatever_the_readers_offset_and_scale(fixed_rng, monkeypatch, offset, size):
    reader = Reader(fixed_rng, offset=offset, size=size)
    monkeypatch.setattr(api, "read", reader)
    asks, collected = texts()
    found = borrowed.poles(None, asks, collected, AXES, READOUT, 8)  # pyright: ignore[reportArgumentType]
    assert len(reader.asked) == 4 * N_QUESTIONS
    assert set(reader.asked) == {("user", (1, 2, 3))}  # without the instruction
    assert np.linalg.norm(found.directions, axis=1) == pytest.approx(1, abs=1e-5)
    for amount in (-0.8, 0.0, 0.5):
        for axis in range(2):
            amounts = np.tile(np.where(np.arange(2) == axis, amount, 0.0), (2000, 1))
            assert found.scores(reader.state(amounts))[:, axis].mean() == pytest.approx(amount, abs=0.15)


def test_the_distance_of_the_poles_is_that_of_held_out_questions(fixed_rng, monkeypatch):
    """By a loop over folds with the whitened estimator, which has references of its own (tests/probes)."""
    reader = Reader(fixed_rng, shift=0.4)
    kept = []
    monkeypatch.setattr(api, "read", lambda *a, **k: kept.append(reader(*a, **k)) or kept[0])
    asks, collected = texts()
    found = borrowed.poles(None, asks, collected, AXES, READOUT, 8)  # pyright: ignore[reportArgumentType]
    h = sum(w * kept[0][:, s, 0] / found.site_rms[s] for s, w in enumerate(READOUT.weights))
    rows, sign = np.arange(2 * N_QUESTIONS), np.tile([1, -1], N_QUESTIONS)
    x = np.asarray(h)[rows]
    whole = np.asarray(probes.fit_whitened(x, sign).vector)
    assert found.directions[0] == pytest.approx(whole, abs=1e-4)
    fold = probes.grouped_folds([collected.records[i]["question"] for i in rows], 5, 0)
    apart = []
    for f in range(5):
        v = np.asarray(probes.fit_whitened(x[fold != f], sign[fold != f]).vector)
        out = (fold == f, sign > 0)
        apart.append((x[out[0] & out[1]] @ v).mean() - (x[out[0] & ~out[1]] @ v).mean())
    assert found.half[0] == pytest.approx(np.mean(apart) / 2, rel=1e-3)
    in_sample = ((x[sign > 0] @ whole).mean() - (x[sign < 0] @ whole).mean()) / 2
    assert found.half[0] < 0.9 * in_sample


def test_texts_that_a_model_cannot_tell_apart_are_refused(fixed_rng, monkeypatch):
    monkeypatch.setattr(api, "read", lambda *a, **k: np.ones((4 * N_QUESTIONS, 4, 1, D), np.float32))
    asks, collected = texts()
    with pytest.raises(UserError, match="axis warm_cold: the borrowed texts of its poles give no direction"):
        borrowed.poles(None, asks, collected, AXES, READOUT, 8)  # pyright: ignore[reportArgumentType]
