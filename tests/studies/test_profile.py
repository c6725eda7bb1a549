"""The profile: scores, intervals and p against plain numpy and scipy, and the calibrations that it refuses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mood_jax as mj
from mood_jax import bank, probes
from mood_jax.artifacts import Calibration, Profile
from mood_jax.errors import UserError
from mood_jax.readout import preset
from mood_jax.studies import find, profile
from mood_jax.studies.calibrate import settings as calibration_settings
from mood_jax.studies.collect import Collected, Protocol
from tests.studies.planted import READOUT, made_calibration, profile_responses
from tests.studies.tiny import checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")

SCALES = ("iqr", "article", "pole", "re_read")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return made_calibration(np.random.default_rng(2))


@pytest.fixture(scope="module")
def collected() -> Collected:
    return profile_responses(np.random.default_rng(8))


@pytest.fixture(scope="module")
def analysed(calibration, collected) -> Profile:
    return profile.analyse(calibration, collected, {"model": {}}, ("a note",), scale="pole")


def plain_scores(calibration: Calibration, collected: Collected, k: int) -> dict[str, np.ndarray]:
    """Raw and scaled scores of one axis, by the formulas of method.md (section 5), without the empty response."""
    x = []
    for record, states in zip(collected.records, collected.states["in_context"], strict=True):
        if record["n_tokens"]:
            h = sum(w * states[s, 0] / calibration.site_rms[s] for s, w in enumerate((0.1, 0.2, 0.3, 0.4)))
            x.append(float(np.dot(h.astype(np.float64), calibration.directions[k])))
    x = np.array(x)
    median, iqr, pos, neg = (float(v[k]) for v in calibration.scaling[:4])
    shown_pos, shown_neg = float(calibration.scaling.re_read_pos[k]), float(calibration.scaling.re_read_neg[k])
    return {
        "raw": x,
        "iqr": (x - median) / iqr,
        "article": x / max(iqr, 0.1),
        "pole": 2 * (x - neg) / (pos - neg) - 1,
        "re_read": 2 * (x - shown_neg) / (shown_pos - shown_neg) - 1,
    }


def averaged(scores: np.ndarray, collected: Collected) -> np.ndarray:
    """One mean a question, in the order of their ids."""
    questions = [r["question"] for r in collected.records if r["n_tokens"]]
    groups = [[s for s, o in zip(scores, questions, strict=True) if o == q] for q in sorted({*questions})]
    return np.array([np.mean(group) for group in groups])


@pytest.mark.parametrize("k", [0, 1])
def test_scores_equal_the_formulas(analysed, calibration, collected, k):
    want = plain_scores(calibration, collected, k)
    assert set(analysed.axes[k].scores) == {"raw", *SCALES}
    for scale, scores in want.items():
        np.testing.assert_allclose(analysed.axes[k].scores[scale], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("scale", SCALES)
def test_samples_of_a_question_are_averaged_first(analysed, calibration, collected, k, scale):
    scores = plain_scores(calibration, collected, k)[scale]
    means = averaged(scores, collected)
    assert len(means) == 9
    assert len(scores) == 26
    summary = analysed.axes[k].summary[scale]
    assert summary["mean"] == pytest.approx(means.mean(), rel=1e-4, abs=1e-4)
    assert summary["mean"] != pytest.approx(scores.mean(), rel=1e-4, abs=1e-4)
    assert summary["sd"] == pytest.approx(means.std(ddof=1), rel=1e-3)
    assert summary["clip_rate"] == pytest.approx(np.mean(np.abs(scores) > 1))


def test_intervals_and_p_are_students_of_the_question_means(analysed, calibration, collected):
    p = []
    for k in range(2):
        for scale in SCALES:
            means = averaged(plain_scores(calibration, collected, k)[scale], collected)
            expected = stats.ttest_1samp(means, 0)
            low, high = analysed.axes[k].summary[scale]["ci95"]
            assert (low, high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-3, abs=1e-4)
            if scale == "pole":
                p.append(analysed.axes[k].p)
                assert p[k] == pytest.approx(expected.pvalue, rel=1e-3)
                assert (p[k] < 0.05) == (low > 0 or high < 0)
                assert p[k] == pytest.approx(exact_sign_flip_p(means), abs=0.05)
    assert [a.p_holm for a in analysed.axes] == pytest.approx(plain_holm(p), abs=1e-9)
    assert p[0] != p[1]


def test_the_chosen_scale_is_what_mean_and_interval_show(analysed, calibration, collected):
    for found in analysed.axes:
        assert found.scale == "pole"
        assert found.mean == found.summary["pole"]["mean"]
        assert list(found.ci95) == found.summary["pole"]["ci95"]
        assert found.ci95[0] < found.mean < found.ci95[1]
    other = profile.analyse(calibration, collected, {}, scale="article")
    for a, b in zip(analysed.axes, other.axes, strict=True):
        assert a.summary == b.summary  # all scales are kept, whichever is shown
        assert b.mean == a.summary["article"]["mean"]


def test_the_rest_of_the_record(analysed, collected, tmp_path):
    some = [r for r in collected.records if r["n_tokens"]]
    assert analysed.question_ids == tuple(r["question"] for r in some)
    assert analysed.n_tokens == tuple(r["n_tokens"] for r in some)
    assert analysed.cut_share == pytest.approx(np.mean([r["finish"] == "length" for r in some]))
    assert [a.evidence["verdict"] for a in analysed.axes] == ["real", "dead"]
    assert (analysed.notes, analysed.identity) == (("a note",), {"model": {}})
    analysed.save(tmp_path / "profile.json")
    text = (tmp_path / "profile.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))  # no NaN
    assert Profile.load(tmp_path / "profile.json").axes[0].ci95 == analysed.axes[0].ci95


def test_an_axis_without_a_direction_scores_zero_and_is_not_nan(calibration, collected):
    ok = jnp.asarray([False, True])
    zero = replace(
        calibration,
        directions=calibration.directions * np.array([[0], [1]], np.float32),
        scaling=calibration.scaling._replace(ok=ok, pole_ok=ok, iqr=jnp.asarray([0.0, 0.05])),
    )
    found = profile.analyse(zero, collected, {}).axes[0]
    assert (found.mean, found.ci95, found.p, found.p_holm) == (0, (0, 0), 1, 1)
    json.dumps(found.summary, allow_nan=False)


def test_one_question_is_not_enough(calibration, collected):
    for keep in (0, 1):  # one question has three responses, two of them with tokens
        records = [r | {"n_tokens": r["n_tokens"] * (i < 3 * keep)} for i, r in enumerate(collected.records)]
        with pytest.raises(UserError, match="fewer than two questions have a response with any token"):
            profile.analyse(calibration, Collected(records, collected.states), {})


# Sign flips


def exact_sign_flip_p(scores: np.ndarray) -> float:
    flips = np.array(list(itertools.product((-1, 1), repeat=len(scores))))
    return float(np.mean(np.abs(flips @ scores) >= abs(scores.sum()) - 1e-9))


def plain_holm(p: list[float]) -> list[float]:
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        out[i] = running
    return out


def test_sign_flip_p_equals_the_enumeration(rng):
    for shift in (0.0, 0.3, 1.0):
        scores = (rng.standard_normal(8) + shift).astype(np.float32)
        exact = exact_sign_flip_p(scores.astype(np.float64))
        got = probes.sign_flip_p(scores, seed=1)
        assert got == exact, shift  # 2^8 flips are enumerated


def test_sign_flip_p_does_not_depend_on_sign_scale_or_order(fixed_rng):
    scores = fixed_rng.standard_normal(10) + 0.4  # fixed: p of other flips differs by up to .007 (SE)
    p = probes.sign_flip_p(scores, seed=3)
    assert probes.sign_flip_p(-scores, seed=3) == p
    assert probes.sign_flip_p(1024 * scores, seed=3) == p
    assert probes.sign_flip_p(scores[::-1], seed=4) == pytest.approx(p, abs=0.03)
    assert probes.sign_flip_p(scores + 50, seed=3) == pytest.approx(2 / 2**10, abs=2e-3)  # all flips, or none
    assert probes.sign_flip_p(np.zeros(5), seed=0) == 1


def test_sign_flip_p_is_uniform_where_there_is_nothing(fixed_rng):
    rng = fixed_rng  # the p of a Kolmogorov-Smirnov test is itself a draw
    p = [probes.sign_flip_p(rng.standard_normal(12), seed=int(rng.integers(2**31)), n=999) for _ in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 1e-5
    assert min(p) >= 1 / 1000


def test_holm_equals_a_plain_loop(rng):
    for m in (1, 2, 7):
        p = rng.uniform(0, 0.4, m)
        np.testing.assert_allclose(probes.holm(p), plain_holm(list(p)), rtol=1e-5)


# What is asked


def test_neutral_questions_are_asked_alone():
    questions = bank.questions(set="profile")
    found = profile.asks(questions, samples=2)
    assert len({a.id for a in found}) == len(found) == 60
    assert [(a.about["question"], a.about["sample"]) for a in found] == [(q.id, s) for q in questions for s in (0, 1)]
    for ask, question in zip(found[::2], questions, strict=True):
        assert ask.messages == ({"role": "user", "content": question.text},)
        assert (ask.about["axis"], ask.about["pole"], ask.about["sign"], ask.about["set"]) == (None, None, 0, "profile")


# Notes


def with_finish(finish: list[str], n_tokens: list[int]) -> Collected:
    return Collected([{"finish": f, "n_tokens": n} for f, n in zip(finish, n_tokens, strict=True)], {})


def test_notes_say_what_else_could_explain_the_numbers():
    plain = SimpleNamespace(chat=SimpleNamespace(default_system=None))
    assert profile._notes(plain, with_finish(["eos"] * 10, [3] * 10)) == ()
    assert profile._notes(plain, with_finish(["length"] + ["eos"] * 9, [3] * 10)) == ()
    cut, empty = profile._notes(plain, with_finish(["length"] * 2 + ["eos"] * 8, [3] * 8 + [0, 0]))
    assert cut.startswith("20% of the responses were cut")
    assert empty == "2 responses were empty and are left out"


def test_a_templates_own_system_prompt_is_told(tmp_path):
    model = mj.load_model(str(checkpoint(tmp_path, "qwen2")), dtype="float32")
    (note,) = profile._notes(model, with_finish(["eos"] * 3, [1] * 3))
    assert "adds a system prompt of its own" in note
    assert "You are a small assistant made for tests." in note


# Which calibration fits


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder) -> mj.Model:
    return mj.load_model(str(folder), dtype="float32")


@pytest.fixture(scope="module")
def fitting(model) -> Calibration:
    protocol = Protocol(READOUT, 8)
    source = bank.shipped()
    made_from = calibration_settings(model, source, source.axes()[:2], protocol)
    return made_calibration(np.random.default_rng(4), model.config.d_model, made_from)


def edited(folder: Path, to: Path, name: str, change) -> Path:
    """A copy of a checkpoint folder with the text of one file changed."""
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    text = (to / name).read_text(encoding="utf-8")
    assert change(text) != text
    (to / name).write_text(change(text), encoding="utf-8")
    return to


def add_token(text: str) -> str:
    tokenizer = json.loads(text)
    last = tokenizer["added_tokens"][-1]
    tokenizer["added_tokens"].append(last | {"id": last["id"] + 1, "content": "<|one_more|>"})
    return json.dumps(tokenizer)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("checkpoint", "was made for another checkpoint"),
        ("tokenizer", "another tokenizer "),
        ("template", "another chat template "),
        ("plain_text", "another (chat template|plain_text setting) "),
        ("dtype", r"another dtype \(float32\) than this run's \(bfloat16\)"),
    ],
)
def test_a_calibration_of_something_else_is_refused(fitting, model, folder, tmp_path, what, message):
    profile.check_calibration(model, fitting)
    if what == "checkpoint":
        other = mj.load_model(str(checkpoint(tmp_path / "other", seed=1)), dtype="float32")
    elif what == "tokenizer":
        other = mj.load_model(str(edited(folder, tmp_path / "other", "tokenizer.json", add_token)), dtype="float32")
    elif what == "template":
        shout = edited(folder, tmp_path / "other", "chat_template.jinja", lambda t: t.replace("Knowledge", "KNOWLEDGE"))
        other = mj.load_model(str(shout), dtype="float32")
    elif what == "plain_text":
        other = mj.load_model(str(folder), dtype="float32", plain_text=True)
    else:
        other = mj.load_model(str(folder), dtype="bfloat16")
    for refuse in (
        lambda: profile.check_calibration(other, fitting),
        lambda: mj.profile(other, fitting, max_new_tokens=4),
    ):
        with pytest.raises(UserError, match=message) as e:
            refuse()
        assert "calibrate" in str(e.value)  # the remedy


def test_a_calibration_of_another_readout_is_refused(fitting, model):
    protocol = Protocol(preset("article", 4), 4)
    with pytest.raises(UserError, match=r"another readout \(last4: .*\) than this run's \(article: "):
        profile.run(model, fitting, protocol, label=None)


def test_an_unknown_scale_is_refused(fitting, model):
    with pytest.raises(UserError, match="unknown scale 'z'; use one of iqr, article, pole"):
        mj.profile(model, fitting, scale="z")


# Which calibration is found


def test_the_named_calibration_comes_before_the_workdirs_and_that_before_a_shipped_one(fitting, model, tmp_path):
    workdir, shipped, named = tmp_path / "run", tmp_path / "shipped", tmp_path / "named"
    with pytest.raises(UserError, match=r"no calibration for .*; run scripts/calibrate\.py"):
        find.calibration(model, "", workdir, shipped)
    stranger = fitting.identity["model"] | {"fingerprint": "0" * 32}
    other = replace(fitting, identity=fitting.identity | {"model": stranger})
    other.save(shipped / "a_stranger")
    fitting.save(shipped / "mine")
    assert find.calibration(model, "", workdir, shipped)[0] == shipped / "mine"
    fitting.save(workdir / "calibration")
    assert find.calibration(model, "", workdir, shipped)[0] == workdir / "calibration"
    fitting.save(named)
    assert find.calibration(model, str(named), workdir, shipped)[0] == named
    # One that is named, or lies in the workdir, is never passed over in silence.
    other.save(workdir / "calibration")
    with pytest.raises(UserError, match="made for another checkpoint"):
        find.calibration(model, "", workdir, shipped)
    with pytest.raises(UserError, match=r"holds no calibration\.json"):
        find.calibration(model, str(tmp_path / "nothing"), workdir, shipped)


# With a model


def test_profile_in_memory_equals_collecting_and_analysing(fitting, model):
    got = mj.profile(model, fitting, seed=2, max_new_tokens=4, batch_size=30)
    protocol = Protocol(READOUT, 4, seed=2, batch_size=30)
    want, collected = profile.run(model, fitting, protocol, label=None)
    assert len(got.question_ids) == len(collected.records) == 30
    assert list(collected.states) == ["in_context"]
    for a, b in zip(got.axes, want.axes, strict=True):
        assert (a.mean, a.ci95, a.p) == (b.mean, b.ci95, b.p)
    made_from = profile.settings(model, fitting, bank.shipped(), protocol)
    assert got.identity == made_from
    assert made_from["bank"] == {"profile": bank.content_hash("profile")}
    assert made_from["model"] == fitting.identity["model"]
    assert made_from["calibration"]["protocol"] == fitting.identity["protocol"]
    assert any("100% of the responses were cut" in note for note in got.notes)


def test_length_is_warned_of_beyond_a_small_correlation_only(fixed_rng):
    # 200 questions × 8 responses: the first axis moves with length by .07, which is beyond chance, the second by .5
    question = np.repeat(np.arange(200), 8)
    length, *noise = np.linalg.qr(fixed_rng.normal(size=(1600, 3)))[0].T  # next to uncorrelated in the sample
    x = np.stack([r * length + np.sqrt(1 - r * r) * n for r, n in zip((0.07, 0.5), noise, strict=True)], axis=1)
    assert (probes.clustered_correlation(x, length, question).p < 0.05).all()
    small, large = profile._length(x, length, question)
    assert small["p_holm"] > 0.05 > large["p_holm"]
    assert small["least"] == large["least"] == 0.1
