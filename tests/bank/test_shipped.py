"""The shipped bank: its counts, its texts, its surface."""

import dataclasses
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import yaml

from mood_jax import bank
from mood_jax.bank.loader import SHIPPED
from mood_jax.errors import UserError

SEVEN = (
    "warm_cold",
    "patient_irritated",
    "confident_cautious",
    "proactive_reluctant",
    "empathetic_analytical",
    "formal_casual",
    "verbose_concise",
)


EXAMPLE = SHIPPED / "examples" / "direct_evasive.yaml"
SIZES = {"A": 30, "B": 20, "C": 20, "eval": 10}
CATEGORIES = {
    "sarcasm",
    "passive_aggression",
    "hostility_escalation",
    "accusation",
    "condescension",
    "dismissiveness",
    "frustration",
    "repetition",
    "threat_to_leave",
    "unfair_comparison",
}


@pytest.fixture(scope="module")
def example():
    return bank.load(EXAMPLE)


def all_questions():
    return tuple(q for name in (*bank.QUESTION_SETS, "profile") for q in bank.questions(set=name))


def test_counts_of_questions(example):
    assert tuple(axis.id for axis in bank.axes()) == SEVEN
    assert [axis.id for axis in example.axes()] == [*SEVEN, "direct_evasive"]
    for id in (*SEVEN, "direct_evasive"):
        for name, size in SIZES.items():
            questions = example.questions(id, set=name)
            assert [q.id for q in questions] == [f"{id}/{name}/{i:02d}" for i in range(1, size + 1)]
            assert {(q.axis, q.topic) for q in questions} == {(id, None)}
    profile = bank.questions(set="profile")
    assert [q.id for q in profile] == [f"profile/{i:02d}" for i in range(1, 31)]
    assert Counter(q.topic for q in profile) == dict.fromkeys(bank.TOPICS, 5)
    assert {q.axis for q in profile} == {None}
    assert len({q.text for q in all_questions()}) == 7 * 80 + 30


def test_every_pole_has_its_paraphrases_and_formulations(example):
    for axis in example.axes():
        for pole in axis.poles:
            texts = {pole.instruction_for(name) for name in "ABC"} | {pole.formulation(n) for n in bank.FORMULATIONS}
            assert len(texts) == 7  # the production instruction is both set A's and the first formulation
            assert pole.instruction_for("A") == pole.formulation("production") == pole.instruction


def test_counts_of_scenarios(example):
    scenarios = example.scenarios()
    axes = [axis.id for axis in example.axes()]
    assert [s.id for s in scenarios] == [f"{id}/{kind}" for id in axes for kind in ("strong", "more", "less")]
    assert len(example.scenarios(kind="less")) == 8
    assert [s.id for s in bank.scenarios("formal_casual", "more")] == ["formal_casual/more"]
    for scenario in scenarios:
        assert (len(scenario.turns), scenario.system is not None) == (
            (1, True) if scenario.kind == "strong" else (2, False)
        )
        positive, negative = example.axis(scenario.axis).poles
        if scenario.kind != "strong":  # the second turn names the pole that it asks for, and the first does not
            asked = positive if scenario.kind == "more" else negative
            assert bank.pole_word(scenario.turns[0], example.axis(scenario.axis)) is None
            assert bank.pole_word(scenario.turns[1], bank.Axis("x", asked, asked))


def test_counts_of_dialogues():
    conflicts, controls = bank.dialogues("conflict"), bank.dialogues("control")
    assert Counter(d.category for d in conflicts) == dict.fromkeys(CATEGORIES, 5)
    assert [d.id for d in bank.dialogues("sarcasm")] == [f"conflict/sarcasm/{i:02d}" for i in range(1, 6)]
    assert {(len(d.turns), len(d.recovery)) for d in conflicts} == {(12, 4)}
    assert [d.id for d in controls] == [f"control/{i:02d}" for i in range(1, 11)]
    assert {(len(d.turns), len(d.recovery)) for d in controls} == {(16, 0)}
    assert set(bank.dialogues()) == {*conflicts, *controls}
    assert len({turn for d in bank.dialogues() for turn in d.turns + d.recovery}) == 50 * 16 + 10 * 16


def test_conflicts_and_controls_are_of_like_length():
    conflict, control = (
        np.percentile([len(t) for d in bank.dialogues(kind) for t in d.turns], [25, 50, 75])
        for kind in ("conflict", "control")
    )
    assert np.all(np.abs(control / conflict - 1) <= 0.15), (conflict, control)


def test_counts_of_prompts():
    categories = ("technical_support", "creative_writing", "analysis", "emotional_dialogue")
    assert Counter(p.category for p in bank.prompts()) == dict.fromkeys(categories, 25)
    styles = ("empathy", "technicality", "creativity", "formality")
    assert Counter(p.category for p in bank.anchors()) == dict.fromkeys(styles, 20)
    assert [p.id for p in bank.anchors("empathy")] == [f"anchor/empathy/{i:02d}" for i in range(1, 21)]
    assert {p.category for p in bank.prompts("analysis")} == {"analysis"}


def test_pole_names_are_the_axis_id_and_the_positive_one_comes_first():
    assert [f"{a.positive.name}_{a.negative.name}" for a in bank.axes()] == list(SEVEN)


def test_texts_pass_every_check(example):
    assert bank.problems(example) == ()


def test_no_instruction_names_another_axis():
    for axis in bank.axes():
        others = [a for a in bank.axes() if a.id != axis.id]
        for pole in axis.poles:
            assert [a.id for a in others if bank.pole_word(pole.instruction, a)] == []
            assert bank.pole_word(pole.instruction, axis)


def test_questions_are_short_and_varied(example):
    questions = (*all_questions(), *(q for name in SIZES for q in example.questions("direct_evasive", set=name)))
    for question in questions:
        assert 8 <= len(question.text.split()) <= 35, question.id
        assert question.text == " ".join(question.text.split()), question.id
        assert re.search(r"[.?!]$", question.text), question.id
        assert len(re.findall(r"[.?!](?=\s|$)", question.text)) <= 3, question.id
    openings = Counter(" ".join(q.text.casefold().split()[:2]) for q in questions)
    assert max(openings.values()) <= 0.05 * len(questions), openings.most_common(3)


def test_instructions_are_one_to_three_sentences():
    for axis in bank.axes():
        for pole in axis.poles:
            assert 1 <= len(re.findall(r"\.(?=\s|$)", pole.instruction)) <= 3
            assert pole.instruction == " ".join(pole.instruction.split())


def test_loader_sees_what_plain_yaml_sees():
    """The records against `yaml.safe_load` of the same files."""
    plain = [yaml.safe_load(path.read_text()) for path in SHIPPED.glob("*.yaml")]
    texts = {q["id"]: q["text"] for file in plain for q in file.get("questions", ())}
    assert {q.id: q.text for q in all_questions()} == texts
    dialogues = {d["id"]: (d["turns"], d.get("recovery", [])) for file in plain for d in file.get("dialogues", ())}
    assert {d.id: (list(d.turns), list(d.recovery)) for d in bank.dialogues()} == dialogues
    prompts = {p["id"]: p["text"] for file in plain for p in file.get("prompts", ())}
    assert {p.id: p.text for p in (*bank.prompts(), *bank.anchors())} == prompts
    scenarios = {x["id"]: (x.get("system"), x["turns"]) for file in plain for x in file.get("scenarios", ())}
    assert {x.id: (x.system, list(x.turns)) for x in bank.scenarios()} == scenarios
    for plain_axis in (a for file in plain for a in file.get("axes", ())):
        axis = bank.axis(plain_axis["id"])
        for side, pole in zip(("positive", "negative"), axis.poles, strict=True):
            expected = plain_axis[side]
            assert (pole.name, pole.instruction) == (expected["name"], expected["instruction"])
            assert dict(pole.paraphrases) == expected["paraphrases"]
            assert dict(pole.formulations) == expected["formulations"]


def test_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        bank.questions("warm_cold")[0].text = "?"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        bank.axis("warm_cold").positive.instruction = "?"  # pyright: ignore[reportAttributeAccessIssue]
    assert bank.shipped() is bank.shipped()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bank.axis("warmcold"),
            r"unknown axis 'warmcold'; use one of: warm_cold, patient_irritated, .*concise",
        ),
        (lambda: bank.questions("nice_nasty"), r"unknown axis 'nice_nasty'; use one of: warm_cold"),
        (lambda: bank.questions("warm_cold", set="Z"), r"unknown question set 'Z'; use one of: A, B, C, eval, profile"),
        (lambda: bank.questions("warm_cold", set="profile"), r"profile questions belong to no axis"),
        (
            lambda: bank.dialogues("rudeness"),
            r"unknown dialogue category 'rudeness'; use one of: conflict, control, acc",
        ),
        (lambda: bank.scenarios("warm_cold", "weak"), r"unknown scenario kind 'weak'; use one of: strong, more, less"),
        (lambda: bank.scenarios("x"), r"unknown axis 'x'"),
        (lambda: bank.prompts("empathy"), r"unknown prompt category 'empathy'; use one of: technical_support, "),
        (lambda: bank.anchors("analysis"), r"unknown anchor style 'analysis'; use one of: empathy, "),
        (lambda: bank.axes()[0].positive.instruction_for("D"), r"unknown calibration set 'D'; use one of: A, B, C"),
        (lambda: bank.axes()[0].positive.formulation("song"), r"unknown formulation 'song'; use one of: production, "),
        (lambda: bank.Pole("x", "y").instruction_for("B"), r"pole 'x' has no paraphrase for set B; add"),
        (lambda: bank.Pole("x", "y").formulation("role"), r"pole 'x' has no formulation 'role'; add"),
        (lambda: bank.content_hash("D"), r"unknown set 'D'; use one of: axes, A"),
        (lambda: bank.content_hash("A", axes=["x"]), r"unknown axis 'x'"),
    ],
)
def test_asking_for_what_is_not_there(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_import_reads_no_file_and_needs_no_jax():
    code = (
        "import sys, types; package = types.ModuleType('mood_jax')\n"
        f"package.__path__ = [{str(SHIPPED.parent)!r}]; sys.modules['mood_jax'] = package  # without the other rooms\n"
        "import mood_jax.bank as bank; from mood_jax.bank.loader import shipped\n"
        "assert shipped.cache_info().currsize == 0; bank.axes(); assert shipped.cache_info().currsize == 1\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
