"""Calibration: what is asked, and the analysis of planted responses against plain numpy and scipy."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import stats

import mood_jax as mj
from mood_jax import artifacts, bank, probes
from mood_jax.errors import UserError
from mood_jax.studies import calibrate
from mood_jax.studies.collect import Collected, Protocol
from tests.studies.planted import AXES, PROTOCOL, READOUT, D, calibration_responses
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

# What is asked


def test_every_axis_pole_question_and_sample_is_asked_once():
    source = bank.shipped()
    axes = source.axes()[:2]
    found = calibrate.asks(source, axes, samples=2)
    assert len(found) == 2 * 2 * (30 + 10) * 2
    assert len({a.id for a in found}) == len(found)
    texts = {q.id: q for s in ("A", "eval") for axis in axes for q in source.questions(axis.id, set=s)}
    for ask in found:
        about = ask.about
        question = texts[about["question"]]
        axis = source.axis(about["axis"])
        pole = axis.positive if about["sign"] == 1 else axis.negative
        assert about["sign"] in (1, -1)
        assert (about["pole"], about["set"], about["axis"]) == (pole.name, question.set, question.axis)
        assert ask.messages == (
            {"role": "system", "content": pole.instruction},
            {"role": "user", "content": question.text},
        )
        assert ask.without_system == ask.messages[1:]
        assert ask.id == f"{question.id}|{pole.name}|{about['sample']}"
    count = {(a.about["question"], a.about["sign"], a.about["sample"]) for a in found}
    assert len(count) == len(found)


def test_the_shipped_bank_asks_280_pairs():
    assert len(calibrate.asks(bank.shipped(), bank.axes())) == 7 * 40 * 2


# The analysis, against plain numpy


@pytest.fixture(scope="module")
def planted() -> Collected:
    return calibration_responses(np.random.default_rng(11))


@pytest.fixture(scope="module")
def done(planted) -> calibrate.Calibrated:
    return calibrate.analyse(AXES, planted, PROTOCOL, {"model": {"name": "none"}})


class Plain:
    """One axis, by the formulas of method.md (sections 3 to 6) in float64."""

    def __init__(self, collected: Collected, axis: str):
        def column(name):
            return np.asarray([r[name] for r in collected.records])

        usable = column("n_tokens") > 0
        in_a, own, sign = column("set") == "A", column("axis") == axis, column("sign")
        states = {c: s[:, :, 0].astype(np.float64) for c, s in collected.states.items()}
        rms = []
        for s in range(4):
            values = states["in_context"][usable & in_a][:, s]
            rms.append(np.sqrt((values**2).sum() / values.size))
        self.rms = np.array(rms)
        weights = (0.1, 0.2, 0.3, 0.4)
        self.h = {c: sum(w * x[:, s] / self.rms[s] for s, w in enumerate(weights)) for c, x in states.items()}
        h = self.h["in_context"]
        pos, neg = (h[usable & in_a & own & (sign == s)] for s in (1, -1))
        difference = stats.trim_mean(pos, 0.1) - stats.trim_mean(neg, 0.1)
        self.vector = difference / np.linalg.norm(difference)
        self.pos, self.neg = pos @ self.vector, neg @ self.vector
        self.pooled = np.concatenate([self.pos, self.neg])
        held_out = usable & ~in_a & own
        self.eval_pos, self.eval_neg = (h[held_out & (sign == s)] @ self.vector for s in (1, -1))


def plain_auc(pos, neg) -> float:
    return float(np.mean([[1.0 if p > n else 0.5 if p == n else 0.0 for n in neg] for p in pos]))


def plain_dprime(pos, neg) -> float:
    ss = ((pos - pos.mean()) ** 2).sum() + ((neg - neg.mean()) ** 2).sum()
    return float((pos.mean() - neg.mean()) / np.sqrt(ss / (len(pos) + len(neg) - 2)))


@pytest.mark.parametrize("k", [0, 1])
def test_directions_scales_and_h_equal_plain_numpy(done, planted, k):
    plain = Plain(planted, AXES[k].id)
    calibration = done.calibration
    np.testing.assert_allclose(calibration.site_rms, plain.rms, rtol=1e-5)
    for condition, h in plain.h.items():
        np.testing.assert_allclose(done.h[condition], h, rtol=1e-4, atol=1e-4)
    assert calibration.directions[k] @ plain.vector > 1 - 1e-6
    assert np.linalg.norm(calibration.directions[k]) == pytest.approx(1, abs=1e-6)
    scaling = {name: float(np.asarray(v)[k]) for name, v in calibration.scaling._asdict().items()}
    low, median, high = np.percentile(plain.pooled, [25, 50, 75])
    want = {"median": median, "iqr": high - low, "pos_mean": plain.pos.mean(), "neg_mean": plain.neg.mean()}
    for name, value in want.items():
        assert scaling[name] == pytest.approx(value, abs=1e-4), name
    assert scaling["ok"] == scaling["pole_ok"] == 1


@pytest.mark.parametrize("k", [0, 1])
def test_evaluation_questions_are_scored_by_the_direction_of_set_a(done, planted, k):
    plain, got = Plain(planted, AXES[k].id), done.calibration.evidence[k]["evaluation"]
    assert got["n"] == len(plain.eval_pos) + len(plain.eval_neg) == 8
    assert got["auc"] == pytest.approx(plain_auc(plain.eval_pos, plain.eval_neg), abs=1e-6)
    assert got["dprime"] == pytest.approx(plain_dprime(plain.eval_pos, plain.eval_neg), rel=1e-3)
    middle = (plain.eval_pos.mean() + plain.eval_neg.mean()) / 2
    correct = [*(plain.eval_pos > middle), *(plain.eval_neg < middle)]
    assert got["accuracy"] == pytest.approx(np.mean(correct), abs=1e-6)


def test_positive_poles_score_higher_in_every_scale(done, planted):
    calibration = done.calibration
    x = done.h["in_context"] @ calibration.directions.T
    for k, axis in enumerate(AXES):
        use = (planted.column("axis") == axis.id) & (planted.column("n_tokens") > 0) & (planted.column("set") == "A")
        iqr, article, pole = (calibration.scores(x, scale)[use, k] for scale in ("iqr", "article", "pole"))
        positive = planted.column("sign")[use] == 1
        assert [pole[positive].mean(), pole[~positive].mean()] == pytest.approx([1, -1], abs=1e-4)
        again = (done.h["re_read"] @ calibration.directions.T)[use, k]
        m_pos, m_neg = again[positive].mean(), again[~positive].mean()
        want = 2 * (x[use, k] - m_neg) / (m_pos - m_neg) - 1
        assert calibration.scores(x, "re_read")[use, k] == pytest.approx(want, rel=1e-3, abs=1e-3)
        for scores in (iqr, article):
            assert scores[positive].mean() > scores[~positive].mean() + 0.5
        assert np.median(iqr) == pytest.approx(0, abs=1e-5)
        assert np.subtract(*np.percentile(iqr, [75, 25])) == pytest.approx(1, rel=1e-4)


def test_what_shows_only_beside_its_instruction_is_not_real(done):
    shows, leaks = done.calibration.evidence
    assert shows["verdict"] == "real"
    assert leaks["verdict"] == "dead"
    assert "instruction leak" in leaks["reason"]
    assert leaks["in_context"]["auc"] > 0.9
    assert leaks["re_read"]["auc"] < 0.8


def test_empty_responses_are_left_out_and_counted(done):
    assert [e["empty_responses"] for e in done.calibration.evidence] == [3, 3]
    assert [e["n_samples"] for e in done.calibration.evidence] == [17, 17]
    assert done.calibration.evidence[0]["length_only"]["auc"] < 0.9  # length 0 would give the poles away


def test_evidence_is_asked_for_the_right_rows(planted, monkeypatch):
    """Set A alone, both conditions, empty responses by sign 0, and what the budget cut."""
    asked = {}

    def spy(re_read, sign, question, n_tokens, cut, **options):
        asked.update(re_read=re_read, sign=sign, question=question, n_tokens=n_tokens, cut=cut, **options)
        return [{} for _ in sign]

    monkeypatch.setattr(probes, "evidence", spy)
    found = calibrate.analyse(AXES, planted, replace(PROTOCOL, seed=9), {})
    assert asked["seed"] == 9
    assert asked["k"] == 5
    for k, axis in enumerate(AXES):
        rows = [i for i, r in enumerate(planted.records) if r["axis"] == axis.id and r["set"] == "A"]
        assert len(rows) == 20
        records = [planted.records[i] for i in rows]
        for name, condition in (("re_read", "re_read"), ("in_context", "in_context")):
            np.testing.assert_array_equal(asked[name][k], found.h[condition][rows])
        assert [int(s) for s in asked["sign"][k]] == [r["sign"] * (r["n_tokens"] > 0) for r in records]
        assert list(asked["question"][k]) == [r["question"] for r in records]
        assert list(asked["n_tokens"][k]) == [r["n_tokens"] for r in records]
        assert list(asked["cut"][k]) == [r["finish"] == "length" for r in records]


def test_site_rms_and_directions_come_from_the_calibration_questions_alone(done, planted, monkeypatch):
    """Neither evaluation questions, nor states read again, nor empty responses move them."""
    monkeypatch.setattr(probes, "evidence", lambda *a, **k: [{} for _ in AXES])
    states = {c: s.copy() for c, s in planted.states.items()}
    states["in_context"][planted.column("set") == "eval"] *= 7
    states["in_context"][planted.column("n_tokens") == 0] = 1e6
    states["re_read"] *= 3
    other = calibrate.analyse(AXES, Collected(planted.records, states), PROTOCOL, {}).calibration
    np.testing.assert_array_equal(other.site_rms, done.calibration.site_rms)
    np.testing.assert_array_equal(other.directions, done.calibration.directions)
    again = ("re_read_pos", "re_read_neg", "re_read_ok")
    for name, a, b in zip(other.scaling._fields, other.scaling, done.calibration.scaling, strict=True):
        if name not in again:
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(other.scaling.re_read_pos, 3 * done.calibration.scaling.re_read_pos, rtol=1e-5)
    states["in_context"][planted.column("set") == "A"] *= 2
    moved = calibrate.analyse(AXES, Collected(planted.records, states), PROTOCOL, {}).calibration
    np.testing.assert_allclose(moved.site_rms[:1] > done.calibration.site_rms[:1], True)


def test_the_record_is_json_and_comes_back(done, tmp_path):
    assert [a.id for a in done.calibration.axes] == [a.id for a in AXES]
    assert [(a.positive, a.negative) for a in done.calibration.axes] == [("warm", "cold"), ("formal", "casual")]
    assert done.calibration.readout == READOUT
    assert done.calibration.directions.shape == (2, D)
    assert done.calibration.directions.dtype == np.float32
    json.dumps(done.calibration.evidence, allow_nan=False)
    done.calibration.save(tmp_path)
    loaded = artifacts.Calibration.load(tmp_path)
    assert loaded.evidence == done.calibration.evidence
    np.testing.assert_array_equal(loaded.directions, done.calibration.directions)


def test_an_axis_with_nearly_no_responses_is_named(planted):
    records = [dict(r) for r in planted.records]
    cold = [r for r in records if r["pole"] == "casual" and r["set"] == "A"]
    for r in cold[3:]:
        r["n_tokens"] = 0
    message = r"axis formal_casual: only \d responses to the instruction 'casual' have any token"
    with pytest.raises(UserError, match=message):
        calibrate.analyse(AXES, Collected(records, planted.states), PROTOCOL, {})


def test_without_usable_responses_there_is_no_evaluation_and_no_nan(planted, monkeypatch):
    monkeypatch.setattr(probes, "evidence", lambda *a, **k: [{} for _ in AXES])
    kept = [0, 0]

    def left(record: dict) -> bool:
        """Set A, and of the evaluation set one response of each axis' positive pole."""
        k = record["axis"] != AXES[0].id
        kept[k] += record["set"] == "eval" and record["sign"] == 1
        return record["set"] == "A" or (record["sign"] == 1 and kept[k] == 1)

    records = [r | {"n_tokens": r["n_tokens"] * left(r)} for r in planted.records]
    found = calibrate.analyse(AXES, Collected(records, planted.states), PROTOCOL, {}).calibration
    assert [block["evaluation"] for block in found.evidence] == [None, None]


def test_an_axis_may_do_without_evaluation_questions_but_not_without_set_a(tmp_path):
    path = bank_file(tmp_path / "bank.yaml")
    text = "".join(line for line in path.read_text().splitlines(True) if "eval/" not in line)
    path.write_text(text)
    source = bank.load(path)
    found = calibrate.asks(source, [source.axis("loud_quiet")])
    assert {a.about["set"] for a in found} == {"A"}
    assert len(found) == 10
    path.write_text("".join(line for line in text.splitlines(True) if "A/" not in line).replace("questions:\n", ""))
    with pytest.raises(UserError, match="axis 'loud_quiet' has no calibration questions"):
        bank.load(path)


# With a model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> mj.Model:
    return mj.load_model(str(checkpoint(tmp_path_factory.mktemp("llama"))), dtype="float32")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> bank.Bank:
    return bank.load(bank_file(tmp_path_factory.mktemp("bank") / "bank.yaml"))


def test_the_identity_names_everything_that_the_numbers_depend_on(model, source):
    axes = [source.axis("loud_quiet")]
    protocol = Protocol(READOUT, 8)
    found = calibrate.settings(model, source, axes, protocol, samples=2)
    assert found["model"] == {
        "name": model.checkpoint.folder.name,
        "revision": None,
        "fingerprint": model.checkpoint.fingerprint,
        "family": "llama",
        "dtype": "float32",
        "tokenizer_hash": model.chat.tokenizer_hash,
        "template_hash": model.chat.template_hash,
        "plain_text": False,
    }
    assert found["protocol"] == protocol.describe()
    assert (found["samples"], found["axes"]) == (2, ["loud_quiet"])
    assert found["versions"] == {"mood_jax": mj.__version__, "jax": jax.__version__, "device": "cpu"}
    assert found["bank"] == {s: source.content_hash(s, axes=["loud_quiet"]) for s in ("A", "eval")}
    json.dumps(found, allow_nan=False)
    others = [
        calibrate.settings(model, source, [source.axis("warm_cold")], protocol, samples=2),
        calibrate.settings(model, source, axes, Protocol(READOUT, 9), samples=2),
        calibrate.settings(model, source, axes, protocol, samples=1),
        calibrate.settings(
            replace(model, checkpoint=replace(model.checkpoint, dtype="bfloat16")), source, axes, protocol, 2
        ),
    ]
    assert all(other != found for other in others)


def test_calibrate_in_memory_equals_collecting_and_analysing(model, source, monkeypatch):
    blocks = [{"verdict": "dead", "reason": ""}]
    monkeypatch.setattr(probes, "evidence", lambda *a, **k: [dict(b) for b in blocks])
    axes = [source.axis("loud_quiet")]
    got = mj.calibrate(model, axes, source=source, seed=4, max_new_tokens=8, batch_size=14)
    protocol = Protocol(READOUT, 8, seed=4, batch_size=14)
    want = calibrate.run(model, source, axes, protocol, label=None).calibration
    assert got.identity == want.identity == calibrate.settings(model, source, axes, protocol)
    np.testing.assert_array_equal(got.directions, want.directions)
    np.testing.assert_array_equal(got.site_rms, want.site_rms)
    assert (np.abs(got.directions) > 0).any()


def test_mistakes_in_the_arguments_are_user_errors(model, source):
    axes = [source.axis("loud_quiet")]
    with pytest.raises(UserError, match="unknown readout 'best'"):
        mj.calibrate(model, axes, source=source, readout="best")
    with pytest.raises(UserError, match="unknown axis 'loud_quiet'"):  # the shipped bank does not have it
        mj.calibrate(model, axes)
    with pytest.raises(UserError, match="max_new_tokens must be at least 1"):
        mj.calibrate(model, axes, source=source, max_new_tokens=0)
    with pytest.raises(UserError, match="there are no prompts"):
        mj.calibrate(model, [], source=source)
