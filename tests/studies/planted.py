"""Collected responses without a model: styles planted along known directions of the states."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

from mood_jax import bank
from mood_jax import readout as readouts
from mood_jax.artifacts import AxisNames, Calibration
from mood_jax.probes import Scaling
from mood_jax.studies.collect import Collected, Protocol

READOUT = readouts.preset("last4", 4)
PROTOCOL = Protocol(READOUT, 20, seed=3)
D = 12
AXES = tuple(
    bank.Axis(f"{a}_{b}", bank.Pole(a, f"Be {a}."), bank.Pole(b, f"Be {b}."))
    for a, b in (("warm", "cold"), ("formal", "casual"))
)
WORDS = ("one", "two", "three", "four", "five")
SIZES = np.array([1.0, 3.0, 10.0, 30.0])[:, None]  # of the sites: residual streams grow


def calibration_responses(rng: np.random.Generator, empty: int = 3, n: int = 10, n_eval: int = 4) -> Collected:
    """Two axes × n + n_eval questions × two poles; the first axis shows in both conditions, the second in context.

    Shuffled; `empty` responses of each axis' set A, at most one a question, have no tokens and states of zeros.
    """
    records, states = [], {"in_context": [], "re_read": []}
    axes = [a.id for a in AXES]
    planted = np.linalg.qr(rng.standard_normal((D, 2)))[0].T
    offset = 5 * rng.standard_normal((4, D))
    for k, axis in enumerate(AXES):
        without = rng.choice(n, empty, replace=False)
        for set_, count in (("A", n), ("eval", n_eval)):
            for q in range(count):
                topic = rng.standard_normal(D)
                for sign, pole in ((1, axis.positive), (-1, axis.negative)):
                    n_tokens = int(rng.integers(2, 21))
                    if set_ == "A" and q in without and sign == (1 if q % 2 else -1):
                        n_tokens = 0
                    records.append(
                        {
                            "id": f"{axis.id}/{set_}/{q:02d}|{pole.name}|0",
                            "axis": axis.id,
                            "pole": pole.name,
                            "sign": sign,
                            "question": f"{axis.id}/{set_}/{q:02d}",
                            "set": set_,
                            "sample": 0,
                            "text": " ".join(rng.choice(WORDS, n_tokens)),
                            "n_tokens": n_tokens,
                            "finish": "length" if n_tokens == 20 else "eos",
                        }
                    )
                    for condition, found in states.items():
                        strength = 3.0 if axis.id == axes[0] or condition == "in_context" else 0.0
                        h = offset + topic + strength * sign * planted[k] + rng.standard_normal((4, D))
                        found.append(SIZES * h * (n_tokens > 0))
    order = rng.permutation(len(records))
    arrays = {c: np.asarray(s, np.float32)[order][:, :, None] for c, s in states.items()}
    return Collected([records[i] for i in order], arrays)


def profile_responses(rng: np.random.Generator, questions: int = 9, samples: int = 3) -> Collected:
    """Questions × samples; one sample of the first question is empty, so that questions weigh unequally."""
    records = []
    states = rng.standard_normal((questions * samples, 4, 1, D)) + 0.3 * rng.standard_normal((4, 1, D))
    for q, sample in itertools.product(range(questions), range(samples)):
        n = 0 if (q, sample) == (0, 1) else int(rng.integers(1, 9))
        records.append({"question": f"profile/{q:02d}", "n_tokens": n, "finish": "length" if n == 8 else "eos"})
        states[len(records) - 1] += 0.1 * q * (n > 0)
    return Collected(records, {"in_context": states.astype(np.float32)})


def made_calibration(rng: np.random.Generator, d: int = D, identity: dict | None = None) -> Calibration:
    """Directions, divisors and scales that no model gave; the article's floor counts on the second axis."""
    vectors = rng.standard_normal((2, d))
    return Calibration(
        axes=tuple(AxisNames(a.id, a.positive.name, a.negative.name) for a in AXES),
        readout=READOUT,
        directions=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        site_rms=rng.uniform(0.5, 2, 4).astype(np.float32),
        scaling=Scaling(
            *(jnp.asarray(v, jnp.float32) for v in ([0.3, -0.2], [0.8, 0.05], [1.5, 0.4], [-0.5, -0.9])),
            *(jnp.asarray([True, True]) for _ in range(2)),
            *(jnp.asarray(v, jnp.float32) for v in ([0.9, 0.35], [-0.4, -0.6])),
            jnp.asarray([True, True]),
        ),
        evidence=({"verdict": "real"}, {"verdict": "dead"}),
        identity=identity or {},
    )
