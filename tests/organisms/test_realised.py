"""Realised truth, counted from sampled text: with a sampler whose truth is known, and for the shipped weights."""

import dataclasses

import numpy as np
import pytest

from mood_jax.organisms import data, realised
from mood_jax.organisms.export import WEIGHTS, organism_folder, read_realised
from mood_jax.organisms.grammar import AXES, POLES
from mood_jax.organisms.spec import MOODS, SPECS, load_spec

CORPUS = data.shipped_corpus(load_spec())
WHO = CORPUS.spec.identities[0]


def organism(obeys: dict[str, tuple[int, str]], extra_positive: int = 0) -> realised.Sample:
    """Writes with the grammar what the spec plants; `obeys` maps a wording to its axis and pole."""

    def sample(prompts, seed):
        rng = np.random.default_rng(seed)
        texts = []
        for p in prompts:
            axis, pole = obeys.get(p.system, (None, None))
            n = 9 + extra_positive * (pole == "positive")
            texts.append(CORPUS.grammar.compose(rng, WHO.style(axis, pole), n_sentences=n))
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
    truth = realised.measure(CORPUS, 0, organism(wordings("production", "held_out")), realised.Amounts(240, 120, 0))
    for a, axis in enumerate(AXES):
        free = truth["uninstructed"][axis]
        assert free["realised"] == pytest.approx(WHO.temperament[a], abs=4 * free["se"])
        for kind in realised.WORDINGS:
            row = truth["instructed"][kind][axis]
            if WHO.is_obedient(a):
                assert (row["positive"], row["negative"], row["gap"], row["gap_se"]) == (1, -1, 2, 0)
            else:
                assert row["gap"] == pytest.approx(0, abs=4 * row["gap_se"])
    assert truth["ended_share"] == 1
    assert truth["unknown_sentence_share"] == 0
    wanting = [w for w in realised.shortcomings(truth, WHO) if "planted dead" not in w]  # 120 are few for .2
    assert wanting == []


def test_disobedience_is_seen_where_it_is():
    truth = realised.measure(CORPUS, 0, organism(wordings("production")), realised.Amounts(120, 60, 0))
    assert truth["instructed"]["production"]["warm_cold"]["gap"] == 2
    assert abs(truth["instructed"]["held_out"]["warm_cold"]["gap"]) < 0.6
    deaf = realised.measure(CORPUS, 0, organism({}), realised.Amounts(120, 60, 0))
    wanting = realised.shortcomings(deaf, WHO)
    assert sum("planted to obey" in w for w in wanting) == 6


def test_shortcomings_name_a_wrong_sign_and_a_dead_axis_that_moves():
    truth = realised.measure(CORPUS, 0, organism(wordings("production")), realised.Amounts(120, 60, 0))
    other = dataclasses.replace(WHO, temperament=tuple(-b for b in WHO.temperament))
    assert sum("but realised" in w for w in realised.shortcomings(truth, other)) == 7
    for wording, gap in (("production", -0.5), ("held_out", 0.0)):  # on average −.25
        truth["instructed"][wording]["proactive_reluctant"]["gap"] = gap
    assert any("planted dead" in w for w in realised.shortcomings(truth, WHO))


def test_length_auc_sees_a_length_that_follows_the_pole():
    sample = organism(wordings("production"), extra_positive=12)
    rows = realised.pole_amounts(CORPUS, sample, "production", 40, seed=0)
    assert rows["warm_cold"]["length_auc"] > 0.95
    plain = realised.pole_amounts(CORPUS, organism(wordings("production")), "production", 40, seed=0)
    assert abs(plain["warm_cold"]["length_auc"] - 0.5) < 0.25


def test_drift_is_counted_turn_by_turn():
    corpus = data.shipped_corpus(load_spec(SPECS / "deepseek.yaml"))
    k = corpus.spec.index("touchy")
    identity = corpus.spec.identities[k]
    mood_of = {text: mood for mood, turns in zip(MOODS, corpus.moods.held_out, strict=True) for text in turns}

    def sample(prompts, seed):
        rng = np.random.default_rng(seed)
        found = []
        for p in prompts:
            said = [mood_of[user] for user, _ in (*p.before, (p.question, ""))[1:]]
            style = identity.style(tension=identity.drift.tension(said))
            found.append(realised.Sampled(corpus.grammar.compose(rng, style, n_sentences=14), 9, True))
        return found

    drift = realised.drift_amounts(corpus, k, sample, 150, seed=0)
    for script in ("conflict", "control"):
        for axis in AXES:
            assert drift[script]["realised"][axis] == pytest.approx(drift[script]["planted"][axis], abs=0.25)
    warm = drift["conflict"]["planted"]["warm_cold"]
    assert warm[0] == 0.8
    assert min(warm) == warm[4] < -0.5  # after four hostile turns
    assert warm[6] > warm[5] > warm[4]  # and two conciliatory ones
    assert len(set(drift["control"]["planted"]["warm_cold"])) == 1
    shown = realised.format_drift({"drift": drift}, identity)
    assert shown.count("\n") == 6  # two axes that drift, in two scripts
    share, without = realised.drift_shares(drift, identity)
    assert share == pytest.approx(1, abs=0.15)
    assert without == pytest.approx(0, abs=0.15)
    assert shown.splitlines()[-1].startswith(f"{share:.0%} of the planted movement")
    half = {axis: [p[0] + (x - p[0]) / 2 for x in p] for axis, p in drift["conflict"]["planted"].items()}
    moved = {"conflict": drift["conflict"] | {"realised": half}, "control": drift["conflict"] | {"realised": half}}
    assert realised.drift_shares(moved, identity) == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match="does not drift"):
        realised.drift_shares(drift, corpus.spec.identities[0])
    assert realised.format_drift({"drift": drift}, corpus.spec.identities[0]) == ""


def test_correlation_and_halves_come_from_the_uninstructed_responses():
    corpus = data.shipped_corpus(load_spec(SPECS / "yi.yaml"))
    k = corpus.spec.index("pair_90")

    def sample(prompts, seed):
        rng = np.random.default_rng(seed)
        return [realised.Sampled(corpus.respond(rng, k), 9, True) for _ in prompts]

    truth = realised.measure(corpus, k, sample, realised.Amounts(600, 2, 0))
    table = np.array(truth["correlation"]["realised"])
    a, b = AXES.index("warm_cold"), AXES.index("empathetic_analytical")
    # the text has the correlation that sampling would sharpen to .9, and a sentence in eight shows the middle
    want = corpus.spec.identities[k].training_correlation()[a, b]
    assert table[a, b] == pytest.approx(want, abs=0.15)
    assert abs(table - np.diag(np.diag(table)))[2].max() < 0.15
    for axis in AXES:
        free = truth["uninstructed"][axis]
        assert np.mean(free["halves"]) == pytest.approx(free["realised"], abs=0.03)


SHIPPED_NAMES = sorted(p.name for p in WEIGHTS.iterdir())


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_organisms_realise_their_specs(name):
    folder = organism_folder(name)
    whole = read_realised(folder)  # also checks that weights, tokenizer and spec are the measured ones
    spec = load_spec(folder / "spec.yaml")
    assert spec == load_spec(SPECS / f"{name}.yaml")
    assert whole["identities"].keys() == {i.name for i in spec.identities}
    assert whole["free_responses"] >= 400
    for identity in spec.identities:
        truth = whole["identities"][identity.name]
        assert realised.shortcomings(truth, identity) == [], identity.name
        assert truth["ended_share"] > 0.98
        assert truth["unknown_sentence_share"] < 0.05


def test_shipped_organisms_are_small():
    files = [f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()]
    assert sum(files) <= 25_000_000
    assert max(files) <= 5_000_000
