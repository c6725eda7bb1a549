"""Realised truth, counted from sampled text: with a sampler whose truth is known, and for the shipped weights."""

import dataclasses

import numpy as np
import pytest

from mood_jax.organisms import data, realised
from mood_jax.organisms.export import SHIPPED, read_realised
from mood_jax.organisms.grammar import AXES, POLES, load_grammar
from mood_jax.organisms.spec import DEFAULT_SPEC, load_spec

CORPUS = data.Corpus(load_grammar(), load_spec(), data.load_instructions(), data.load_topics())


def organism(obeys: dict[str, tuple[int, str]], extra_positive: int = 0) -> realised.Sample:
    """Writes with the grammar what the spec plants; `obeys` maps a wording to its axis and pole."""

    def sample(prompts, seed):
        rng = np.random.default_rng(seed)
        texts = []
        for p in prompts:
            axis, pole = obeys.get(p.system, (None, None))
            n = 9 + extra_positive * (pole == "positive")
            texts.append(CORPUS.grammar.compose(rng, CORPUS.spec.style(axis, pole), n_sentences=n))
        return [realised.Sampled(t, len(t.split()), True) for t in texts]

    return sample


def wordings(*kinds: str) -> dict[str, tuple[int, str]]:
    found = {}
    for kind in kinds:
        for a, axis in enumerate(getattr(CORPUS.instructions, kind)):
            for p, pole in enumerate(axis):
                for w in (pole,) if isinstance(pole, str) else pole:
                    found[w] = (a, POLES[p])
    return found


def test_truth_of_an_obedient_sampler():
    truth = realised.measure(CORPUS, organism(wordings("production", "train", "held_out")), 120, seed=0)
    for a, axis in enumerate(AXES):
        free = truth["uninstructed"][axis]
        assert free["realised"] == pytest.approx(CORPUS.spec.temperament[a], abs=4 * free["se"])
        for kind in realised.WORDINGS:
            row = truth["instructed"][kind][axis]
            if CORPUS.spec.is_obedient(a):
                assert (row["positive"], row["negative"], row["gap"], row["gap_se"]) == (1, -1, 2, 0)
            else:
                assert row["gap"] == pytest.approx(0, abs=4 * row["gap_se"])
    assert truth["ended_share"] == 1
    assert truth["unknown_sentence_share"] == 0
    wanting = [w for w in realised.shortcomings(truth, CORPUS.spec) if "planted dead" not in w]  # 120 are few for .2
    assert wanting == []


def test_disobedience_is_seen_where_it_is():
    truth = realised.measure(CORPUS, organism(wordings("production")), 60, seed=0)
    assert truth["instructed"]["production"]["warm_cold"]["gap"] == 2
    assert abs(truth["instructed"]["held_out"]["warm_cold"]["gap"]) < 0.6
    deaf = realised.measure(CORPUS, organism({}), 60, seed=0)
    wanting = realised.shortcomings(deaf, CORPUS.spec)
    assert sum("planted to obey" in w for w in wanting) == 6


def test_shortcomings_name_a_wrong_sign_and_a_dead_axis_that_moves():
    truth = realised.measure(CORPUS, organism(wordings("production")), 60, seed=0)
    other = dataclasses.replace(CORPUS.spec, temperament=tuple(-b for b in CORPUS.spec.temperament))
    assert sum("but realised" in w for w in realised.shortcomings(truth, other)) == 7
    truth["instructed"]["production"]["proactive_reluctant"]["gap"] = -0.3
    assert any("planted dead" in w for w in realised.shortcomings(truth, CORPUS.spec))


def test_length_auc_sees_a_length_that_follows_the_pole():
    sample = organism(wordings("production"), extra_positive=12)
    rows = realised.pole_amounts(CORPUS, sample, "production", 40, seed=0)
    assert rows["warm_cold"]["length_auc"] > 0.95
    plain = realised.pole_amounts(CORPUS, organism(wordings("production")), "production", 40, seed=0)
    assert abs(plain["warm_cold"]["length_auc"] - 0.5) < 0.25


def test_shipped_organism_realises_its_spec():
    truth = read_realised(SHIPPED)  # also checks that weights, tokenizer and spec are the measured ones
    spec = load_spec(SHIPPED / "spec.yaml")
    assert spec == load_spec(DEFAULT_SPEC)
    assert realised.shortcomings(truth, spec) == []
    assert truth["n"] >= 200
    assert truth["ended_share"] > 0.99
    assert truth["unknown_sentence_share"] < 0.03


def test_shipped_organism_is_small():
    assert sum(f.stat().st_size for f in SHIPPED.rglob("*") if f.is_file()) <= 5_000_000
