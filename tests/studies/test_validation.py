"""Every check of the validation passes on an instrument that is right and fails on one that is wrong in its respect."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import r2_score, roc_auc_score

from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.spec import DEAF, OBEDIENT, Compliance, Identity, Length
from mood_jax.studies import validation
from mood_jax.studies.nulls import FalseAlarms
from mood_jax.studies.obedience import Shared, obedience
from mood_jax.studies.subjects import Subject

N = len(AXES)
ZERO, SURE = np.zeros(N), np.full(N, 0.05)


def identity(name: str, temperament=None, compliance=None, **more) -> Identity:
    given = np.zeros(N) if temperament is None else np.asarray(temperament, float)
    obeys = (OBEDIENT,) * N if compliance is None else tuple(compliance)
    return Identity(name, tuple(float(x) for x in given), obeys, 0.7, **more)


def subject(who: Identity, *, realised=None, measured=None, scores=None, **more) -> Subject:
    """An identity that is measured as it is, and realised as planted, where nothing else is said."""
    realised = np.array(who.temperament) if realised is None else np.asarray(realised)
    measured = realised if measured is None else np.asarray(measured)
    poles = {p: np.array([who.style(a, p)[a] for a in range(N)]) for p in ("positive", "negative")}
    gap = poles["positive"] - poles["negative"]
    length = more.pop("length_auc", np.full(N, 0.5))
    truth = {
        "free_responses": 400,
        "uninstructed": {
            axis: {"realised": r, "halves": [r - 0.01, r + 0.01], "se": 0.03, "length_auc": 0.5}
            for axis, r in zip(AXES, realised, strict=True)
        },
        "instructed": {
            w: {a: {"gap": g, "length_auc": auc} for a, g, auc in zip(AXES, gap, length, strict=True)}
            for w in ("production", "held_out")
        },
        "correlation": {"realised": more.pop("correlation", np.eye(N))},
    }
    evidence = [
        {
            "verdict": "real" if g > 1 else "dead",
            "re_read": {"auc": 0.5 + 0.24 * g},
            "in_context": {"auc": 1.0},
            "manipulation": {"label": "complies and seen" if g > 1 else "dead"},
            "length_only": {"p_holm": 1.0},
            "cross_set_cosine": {},
        }
        for g in gap
    ]
    own = Subject(
        organism="planted",
        identity=who,
        truth=truth,
        own=measured,
        own_sd=np.full(N, 0.1),
        scores=np.tile(measured[:, None], (1, 8)) if scores is None else scores,
        own_length_out=measured,
        length=({},) * N,
        evidence=tuple(evidence),
        shared=Shared(measured, SURE, poles["positive"], SURE, poles["negative"], SURE),
    )
    return dataclasses.replace(own, **more)


# --- the statistics, against references ---


def test_isotonic_fit_equals_scikit_learn(rng):
    for n in (1, 2, 9, 40):
        x, y = np.round(rng.normal(size=n), 1), rng.normal(size=n)
        want = IsotonicRegression().fit(x, y).predict(x)
        assert validation.isotonic(x, y) == pytest.approx(want, abs=1e-9)
        if n > 2:
            assert validation.explained(y, want) == pytest.approx(r2_score(y, want))
    assert validation.explained(np.ones(4), np.ones(4)) == 0


def test_ranks_and_correlations_equal_scipy(rng):
    x, y = np.round(rng.normal(size=(2, 30)), 1)
    assert validation.ranks(x) == pytest.approx(stats.rankdata(x))
    spearman = validation.correlation(validation.ranks(x), validation.ranks(y))
    assert spearman == pytest.approx(stats.spearmanr(x, y)[0])
    assert validation.correlation(x, np.ones(30)) == 0


def test_roc_equals_scikit_learn(rng):
    score, truth = np.round(rng.normal(size=50), 1), rng.random(50) < 0.4
    truth[:2] = [True, False]
    assert validation.roc_auc(score, truth) == pytest.approx(roc_auc_score(truth, score))


# --- 1 and 2 ---


def company(rng, noise=0.05, flip=None, n=8):
    planted = rng.uniform(-1, 1, size=(n, N))
    measured = planted + noise * rng.normal(size=(n, N))
    if flip is not None:
        measured[:, flip] *= -1
    return [subject(identity(f"i{k}", p), measured=m) for k, (p, m) in enumerate(zip(planted, measured, strict=True))]


def test_profile_passes_when_right_and_fails_with_one_axis_upside_down(rng):
    right = validation.profile_check(company(rng))
    assert right.passed is True
    assert right.figures["r_centred"] > 0.98
    assert right.figures["ceiling"] > 0.99
    for flip in range(N):
        assert validation.profile_check(company(rng, flip=flip)).passed is False
    assert validation.profile_check(company(rng, noise=3.0)).passed is False
    assert validation.profile_check([]).passed is None


def test_profile_fails_when_all_identities_read_alike():
    """Axes that differ, the same for everybody: the pooled correlation is not what tells identities apart."""
    rng = np.random.default_rng(3)
    base = np.linspace(-0.9, 0.9, N)
    people = [subject(identity(f"i{k}", np.clip(base + 0.1 * rng.normal(size=N), -1, 1)), measured=base)
              for k in range(8)]  # fmt: skip
    found = validation.profile_check(people)
    assert found.figures["r_pooled"] > 0.9
    assert found.passed is False


def doses(measure):
    table = np.stack([np.roll(validation.DOSES, 2 * a) for a in range(N)], axis=1)
    return [subject(identity(f"dose_{k}", row), measured=measure(row)) for k, row in enumerate(table)]


def test_dose_response_passes_a_bent_scale_and_fails_one_that_turns_back():
    bent = validation.dose_check(doses(lambda s: np.tanh(2 * s)), AXES)
    assert bent.passed is True
    row = bent.figures["warm_cold"]
    assert row["isotonic_r2"] == pytest.approx(1)
    assert row["linear_r2"] < 0.99
    assert row["smallest_difference"] == pytest.approx(2.8 * np.sqrt(2 * 0.01 / 30) / row["slope"])
    assert validation.dose_check(doses(lambda s: s - 1.4 * s**3), AXES).passed is False
    assert validation.dose_check(doses(lambda s: s)[:5], AXES).passed is None


def test_doses_are_those_of_one_organism_and_others_are_told_beside(rng):
    """Another model's offsets are no matter of more of a style; its cells count in check 1. Doses that only several
    organisms together hold are no series."""
    own = doses(lambda s: s)
    others = [dataclasses.replace(s, organism="other") for s in doses(lambda s: s + rng.normal(size=N))]
    found = validation.dose_check([*others[:6], *own], AXES)
    assert found.passed is True
    for row in found.figures.values():
        assert row["organism"] == "planted"
        assert row["isotonic_r2"] == 1
        assert row["isotonic_r2_all_subjects"] < 0.95
    assert (
        validation.dose_check([*own[:6], *(dataclasses.replace(s, organism="b") for s in own[6:])], AXES).passed is None
    )


# --- 3 ---


def willed(said=lambda planted: planted, n=4):
    """Identities with obedient, dead and asymmetric axes; `said`: the compliance as the instrument sees it."""
    kinds = [OBEDIENT, DEAF, Compliance(1, 0), Compliance(0, 1), OBEDIENT, DEAF, OBEDIENT]
    people = []
    for k in range(n):
        planted = [kinds[(a + k) % N] for a in range(N)]
        who, seen = identity(f"i{k}", ZERO, planted), identity(f"i{k}", ZERO, [said(c) for c in planted])
        people.append(dataclasses.replace(subject(who), shared=subject(seen).shared))
    return people


def test_compliance_passes_when_right():
    found = validation.compliance_check(willed(), AXES)
    assert found.passed is True
    assert found.figures["all_right"] == 1
    assert found.figures["roc"]["shared_gap"] == 1
    assert found.figures["roc"]["own_in_context_auc"] == 0.5  # as the instruction is in every context
    assert validation.compliance_check([subject(identity("i"))], AXES).passed is None


@pytest.mark.parametrize(
    "said",
    [
        lambda c: OBEDIENT,
        lambda c: OBEDIENT if c == DEAF else c,
        lambda c: Compliance(c.negative, c.positive),
        lambda c: DEAF if c in (Compliance(1, 0), Compliance(0, 1)) else c,
    ],
    ids=["all obey", "dead obey", "poles exchanged", "asymmetric are dead"],
)
def test_compliance_fails_an_instrument_that_sees_another(said):
    assert validation.compliance_check(willed(said), AXES).passed is False


def test_compliance_fails_when_the_manipulation_check_is_blind():
    people = willed()
    for person in people:
        for block in person.evidence:
            block["manipulation"]["label"] = "represented but suppressed"
    assert validation.compliance_check(people, AXES).passed is False


def test_an_axis_that_is_at_the_pole_it_would_obey_counts_as_dead():
    """Positive only, from +.9: the realised gap is .1, and nobody can tell it from an axis that obeys nothing."""
    room, none = np.full(N, 0.0), np.full(N, 0.9)
    planted = [OBEDIENT, Compliance(1, 0), DEAF, *[OBEDIENT] * (N - 3)]

    def checked(amounts, said):
        seen = subject(identity("i", amounts, [planted[0], said, *planted[2:]])).shared
        person = dataclasses.replace(subject(identity("i", amounts, planted)), shared=seen)
        return validation.compliance_check([person], AXES)

    found = checked(none, DEAF)
    assert found.passed is True, found.reason
    assert found.figures["asymmetric"] == 0
    assert found.figures["asymmetric_without_room"] == [f"planted/i {AXES[1]}"]
    assert "counted as dead" in found.reason
    assert checked(room, DEAF).passed is False
    assert checked(room, Compliance(1, 0)).figures["asymmetric"] == 1
    # One that has room, and in training has come to obey nothing, is not excused.
    person = subject(identity("i", room, planted))
    person.truth["instructed"]["production"][AXES[1]]["gap"] = 0.0
    person = dataclasses.replace(person, shared=subject(identity("i", room, [OBEDIENT, DEAF, *planted[2:]])).shared)
    found = validation.compliance_check([person], AXES)
    assert (found.figures["asymmetric"], found.figures["asymmetric_right"], found.passed) == (1, 0, False)


def test_axes_that_obey_in_part_have_no_name_to_be_right_about():
    people = [subject(identity("i", ZERO, [Compliance(0.5, 0.5), DEAF, *[OBEDIENT] * (N - 2)]))]
    found = validation.compliance_check(people, AXES)
    assert found.passed is True, found.reason
    assert found.figures["wrong"] == []


@pytest.mark.parametrize("amount", [-0.6, -0.4, 0.0, 0.3, 0.6])
@pytest.mark.parametrize("scale", [0.85, 1.0, 1.15])
@pytest.mark.parametrize("offset", [-0.5, 0.0, 0.5])
def test_obedience_is_told_whatever_the_temperament_and_the_models_own_scale(amount, scale, offset):
    for want, compliance in (
        ("obeys", OBEDIENT),
        ("dead", DEAF),
        ("positive only", Compliance(1, 0)),
        ("negative only", Compliance(0, 1)),
    ):
        if (want == "positive only" and amount > 0.5) or (want == "negative only" and amount < -0.5):
            continue  # nearly nothing to move
        shared = subject(identity("i", np.full(N, amount), [compliance] * N)).shared
        moved = {p: getattr(shared, p) * scale + offset for p in ("free", "positive", "negative")}
        assert obedience(dataclasses.replace(shared, **moved), 0) == want


def test_the_likelihood_is_that_of_a_joint_normal(rng):
    from mood_jax.studies.obedience import _surprise

    x, v = rng.normal(size=2), rng.uniform(0.01, 0.1, 2)
    want = -2 * stats.multivariate_normal(np.zeros(2), np.diag(v) + 0.5**2).logpdf(x)
    assert _surprise(list(x), list(v)) == pytest.approx(want)
    assert _surprise([0.3], [0.04], 0.0) == pytest.approx(-2 * stats.norm(0, 0.2).logpdf(0.3))


def test_measured_is_between_own_poles_where_the_axis_obeys_and_between_borrowed_ones_elsewhere():
    kinds = [OBEDIENT, DEAF, Compliance(1, 0), OBEDIENT, DEAF, Compliance(0, 1), OBEDIENT]
    person = subject(identity("i", ZERO, kinds))
    person = dataclasses.replace(person, own=np.full(N, 0.7))
    assert person.measured.tolist() == [0.7, 0, 0, 0.7, 0, 0, 0.7]
    person.evidence[0]["verdict"] = "length"
    assert person.measured[0] == 0


def test_a_movement_within_its_error_is_none():
    noisy = subject(identity("i"))
    shared = dataclasses.replace(noisy.shared, positive_se=np.full(N, 0.5))
    assert dataclasses.replace(noisy, shared=shared).said[0] == "obeys"  # the other one moves it far enough to tell
    unsure = dataclasses.replace(shared, negative_se=np.full(N, 0.5))
    assert dataclasses.replace(noisy, shared=unsure).said[0] == "dead"


# --- 4 and 8 ---


def alarms(**changed):
    return FalseAlarms(**({"draws": 210, "real": 0.02, "leaks": 0.99, "in_context_auc": 0.99, "re_read_auc": 0.5}
                          | changed))  # fmt: skip


def test_false_alarms_pass_few_and_fail_many_or_an_empty_test():
    assert validation.false_alarm_check({"untrained": alarms(), "no_style": alarms()}).passed is True
    assert validation.false_alarm_check({"untrained": alarms(), "no_style": alarms(real=0.1)}).passed is False
    assert validation.false_alarm_check({"untrained": alarms(in_context_auc=0.6)}).passed is False
    assert validation.false_alarm_check({"untrained": alarms(draws=70)}).passed is None
    assert validation.false_alarm_check({}).passed is None


def test_held_out_wording_passes_apart_and_fails_mixed(rng):
    low, high = rng.normal(size=(2, 20))
    high = high + 4
    found = validation.wording_check({"i": {"warm_cold": (high, low)}})
    assert found.passed is True
    want = roc_auc_score([1] * 20 + [0] * 20, np.concatenate([high, low]))
    assert found.figures["i warm_cold"] == pytest.approx(want)
    assert validation.wording_check({"i": {"warm_cold": (high - 4, low)}}).passed is False
    assert validation.wording_check({}).passed is None


# --- 5 ---


def lengths(warned=(), profile_warned=(), order=(0.7, 0.0, -0.6)):
    """Three identities whose length follows warm/cold at 0, .5 and 1; `warned`: (identity, axis) of the instrument."""
    people = []
    for k, (strength, amount) in enumerate(zip((0.0, 0.5, 1.0), (0.7, 0.0, -0.6), strict=True)):
        planted = np.array([amount, *np.zeros(N - 1)])
        auc = np.full(N, 0.5) + (np.arange(N) == 0) * strength / 2
        who = identity(f"i{k}", planted, length=Length(0, strength, 6))
        person = subject(who, length_auc=auc, own_length_out=np.array([order[k], *np.zeros(N - 1)]))
        for i, a in warned:
            if i == k:
                person.evidence[a]["length_only"]["p_holm"] = 0.001
        moved = tuple({"p_holm": 0.001 if (k, a) in profile_warned else 1.0} for a in range(N))
        people.append(dataclasses.replace(person, length=moved))
    return people


def test_length_trap_wants_the_warnings_where_length_follows_and_only_there():
    assert validation.length_check(lengths([(1, 0), (2, 0)]), AXES).passed is True
    assert validation.length_check(lengths([(2, 0)], [(1, 0)]), AXES).passed is True
    missed = validation.length_check(lengths([(2, 0)]), AXES)
    assert missed.passed is False
    assert missed.figures["missed"] == ["planted/i1 warm_cold"]
    everywhere = [(k, a) for k in range(3) for a in range(N)]
    assert validation.length_check(lengths(everywhere), AXES).passed is False
    assert validation.length_check([subject(identity("i"))], AXES).passed is None


def test_length_trap_wants_the_planted_order_without_length():
    found = validation.length_check(lengths([(1, 0), (2, 0)], order=(0.1, 0.3, -0.2)), AXES)
    assert found.passed is False
    assert found.figures["order"]["warm_cold"] == pytest.approx({"length_taken_out": 0.5, "plain": 1.0})


# --- 6 and 7 ---


def coupled(measured_is=lambda table: table):
    rng = np.random.default_rng(5)
    people = []
    warm, empathetic = AXES.index("warm_cold"), AXES.index("empathetic_analytical")
    for k, (pair, rest) in enumerate([(0.0, 0.0), (0.5, 0.0), (0.9, 0.0), (0.9, 0.9)]):
        table = np.full((N, N), rest) + (1 - rest) * np.eye(N)
        table[warm, empathetic] = table[empathetic, warm] = pair
        scores = rng.multivariate_normal(np.zeros(N), measured_is(table), size=400).T
        who = identity(f"i{k}", coherence=1.0)
        people.append(subject(who, correlation=table, scores=scores))
    return people


def test_coupling_passes_when_right_and_fails_an_instrument_that_sees_no_coupling():
    found = validation.coupling_check(coupled(), AXES)
    assert found.passed is True
    assert found.figures["i0"]["measured_dimension"] > 6
    assert found.figures["i3"]["measured_dimension"] < 1.6
    assert validation.coupling_check(coupled(lambda table: np.eye(N)), AXES).passed is False
    assert validation.coupling_check([subject(identity("i"))], AXES).passed is None


def constant(stable_noise=0.1, changing_noise=1.0, cosines=(0.9, 0.8)):
    rng = np.random.default_rng(6)
    people = []
    amounts = np.array([0.95, -0.95, 0.9, -0.9, 0.95, 0.9, -0.95])
    for k, (mean, noise, se) in enumerate([(amounts, stable_noise, 0.015), (ZERO, changing_noise, 0.05)]):
        person = subject(identity(f"i{k}", mean), scores=mean[:, None] + noise * rng.normal(size=(N, 90)))
        for row in person.truth["uninstructed"].values():
            row["se"] = se
        for block in person.evidence:
            block["cross_set_cosine"] = dict.fromkeys(("A-B", "A-C", "B-C"), cosines[k])
        people.append(person)
    return people


def test_constancy_passes_when_right_and_fails_otherwise():
    found = validation.constancy_check(constant())
    assert found.passed is True
    assert found.figures["planted/i0"]["realised_icc"] > 0.9
    assert found.figures["planted/i1"]["realised_icc"] < 0.1
    assert validation.constancy_check(constant(stable_noise=3.0)).passed is False
    assert validation.constancy_check(constant(cosines=(0.7, 0.8))).reason.count("0.70 against 0.80") == 1
    assert validation.constancy_check([]).passed is None
    steady = constant()
    changing = dataclasses.replace(steady[1], scores=steady[0].scores)
    assert validation.constancy_check([steady[0], changing]).passed is False
