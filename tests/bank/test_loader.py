"""A user's own YAML: merged over the shipped bank, and every mistake in it named with file, line and field."""

import pytest

from mood_jax import bank
from mood_jax.errors import UserError

from .malformed import DIALOGUE, GOOD, MALFORMED, PROMPT, SCENARIO, axis_with, changed


@pytest.fixture
def write(tmp_path):
    def write(text, name="bank.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_merge_adds_and_replaces(write):
    own = bank.load(write(GOOD))
    assert [axis.id for axis in own.axes()] == [*(axis.id for axis in bank.axes()), "playful_serious"]
    assert [q.id for q in own.questions("playful_serious")] == ["playful_serious/A/01", "playful_serious/A/02"]
    assert own.axis("playful_serious").positive.stems == ("play",)
    warm, shipped = own.questions("warm_cold"), bank.questions("warm_cold")
    assert [q.id for q in warm] == [q.id for q in shipped]
    assert [i for i, (a, b) in enumerate(zip(warm, shipped, strict=True)) if a != b] == [6]
    assert warm[6].text == "Next week I start as a postman. Which shoes should I wear?"
    assert own.questions(set="profile")[-1] == bank.Question(
        "profile/31", "Are roundabouts better than traffic lights in a small town?", None, "profile", "opinion"
    )
    assert bank.load(write(GOOD)) == own
    assert bank.questions("warm_cold") == shipped, "the shipped bank must not change"
    with pytest.raises(UserError, match=r"no questions in set 'eval' for axis 'playful_serious'; add .*/eval/01"):
        own.questions("playful_serious", set="eval")


def test_an_axis_can_be_replaced_in_place(write):
    text = """\
format: 1
axes:
  - id: warm_cold
    positive: {name: warm, instruction: Be warm.}
    negative: {name: cold, instruction: Be cold.}
"""
    own = bank.load(write(text))
    assert own.axes()[0].negative.instruction == "Be cold."
    assert own.axes()[1:] == bank.axes()[1:]
    assert own.questions("warm_cold") == bank.questions("warm_cold")


def test_questions_come_in_the_order_of_their_numbers(write):
    lines = GOOD.splitlines()
    swapped = [*lines[:11], *lines[13:15], *lines[11:13], *lines[15:]]
    assert bank.load(write("\n".join(swapped))) == bank.load(write(GOOD))


def test_hash_follows_the_texts_and_not_the_yaml(write):
    base = bank.load(write(GOOD))
    flow = """\
%YAML 1.1
---
questions:
- {"text": "Are roundabouts better than
     traffic lights in a small town?", "topic": 'opinion', id: profile/31}
- {id: warm_cold/A/07, text: "Next week I start as a postman. Which shoes should I wear?"}
- id: playful_serious/A/02
  text: >
    What might a heron be thinking about
    while it stands in a pond?
- id: playful_serious/A/01   # a remark
  text: |-
    Which sandwich filling survives a long hike in the mountains best?
axes:
- {id: playful_serious,
   negative: {instruction: "Be serious, and keep from joking with the user even if it is tempting.", name: serious},
   positive: {stems: ["play"], name: "playful",
              instruction: 'Be playful, and joke with the user whenever a chance for it comes up.'}}
format: 1
"""
    same = bank.load(write(flow))
    sets = ("axes", "A", "eval", "profile")
    assert [same.content_hash(s) for s in sets] == [base.content_hash(s) for s in sets]
    assert same.content_hash() == base.content_hash()
    assert len({base.content_hash(s) for s in sets}) == len(sets)

    other = bank.load(write(changed("in a pond?", "in the pond?")))
    assert [s for s in sets if other.content_hash(s) != base.content_hash(s)] == ["A"]
    assert other.content_hash("A", axes=["warm_cold"]) == base.content_hash("A", axes=["warm_cold"])
    other = bank.load(write(changed("even if it is tempting", "even if it is alluring")))
    assert [s for s in sets if other.content_hash(s) != base.content_hash(s)] == ["axes", "A"]
    other = bank.load(write(changed("topic: opinion", "topic: factual")))
    assert [s for s in sets if other.content_hash(s) != base.content_hash(s)] == ["profile"]
    assert base.content_hash("A", axes=["formal_casual"]) == bank.content_hash("A", axes=["formal_casual"])
    assert base.content_hash("A") != bank.content_hash("A")


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case, write):
    text, message = MALFORMED[case]
    path = write(text)
    with pytest.raises(UserError, match=message) as caught:
        bank.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value), "an error says what to do"


def test_the_good_file_has_none_of_these(write):
    assert bank.problems(bank.load(write(GOOD))) == ()


def test_a_replacement_is_blamed_and_not_the_shipped_text(write):
    """The pair of a near duplicate is reported in the user's file, also where the shipped id comes later."""
    text = bank.questions("verbose_concise")[13].text
    path = write(f"format: 1\nquestions:\n- id: warm_cold/A/07\n  text: {text}\n")
    with pytest.raises(UserError, match=r"bank\.yaml:4: text: 'warm_cold/A/07' is the same as 'verbose_concise/A/14'"):
        bank.load(path)


def test_scenarios_dialogues_and_prompts_of_a_user(write):
    text = (
        SCENARIO
        + DIALOGUE.split("\n", 1)[1].replace("is it", "ails you")
        + PROMPT.split("\n", 1)[1].replace("What is it?", "How heavy?")
    )
    own = bank.load(write(text))
    assert own.scenarios("warm_cold", "strong") == (
        bank.Scenario("warm_cold/strong", "warm_cold", "strong", ("What is it?",), "S"),
    )
    dialogue = bank.Dialogue("conflict/mockery/01", "conflict", "mockery", "S", ("What ails you?",), ("R",))
    assert own.dialogues("mockery") == (dialogue,)
    assert dialogue in own.dialogues("conflict")
    assert own.anchors("gravity") == (bank.Prompt("anchor/gravity/01", "How heavy?", "anchor", "gravity"),)
    changed_sets = [s for s in bank.HASHED_SETS if own.content_hash(s) != bank.content_hash(s)]
    assert changed_sets == ["scenarios", "conflict", "anchor"]
    assert own.content_hash("scenarios", axes=["formal_casual"]) == bank.content_hash(
        "scenarios", axes=["formal_casual"]
    )


def test_paraphrases_count_in_their_own_set(write):
    shipped = bank.axis("warm_cold")
    text = axis_with(
        "paraphrases: {B: Glow at me.}, formulations: {role: Sun.}",
        "paraphrases: {B: Ice at me.}, P".replace(", P", ", formulations: {role: Ice.}"),
    )
    own = bank.load(write(text), check=False)
    assert own.axis("warm_cold").positive.instruction_for("B") == "Glow at me."
    assert own.axis("warm_cold").negative.formulation("role") == "Ice."
    changed_sets = [s for s in bank.HASHED_SETS if own.content_hash(s) != bank.content_hash(s)]
    assert changed_sets == ["axes", "A", "B", "C", "formulations"]
    assert bank.axis("warm_cold") == shipped


def test_unchecked_load_lists_every_problem(write):
    text = changed(" even if it is tempting.", ".").replace("a heron", "a player")
    own = bank.load(write(text), check=False)
    found = bank.problems(own)
    assert [(p.line, p.field, p.ids) for p in found] == [
        (10, "negative.instruction", ("playful_serious",)),
        (15, "text", ("playful_serious/A/02",)),
    ]
    with pytest.raises(UserError, match=r"\(and 1 more\)"):
        bank.validate(own)
    with pytest.raises(UserError, match="unknown set"):
        bank.load(write(changed("playful_serious/A/02", "playful_serious/D/02")), check=False)


def test_an_id_in_two_files_of_one_bank(write):
    from mood_jax.bank.loader import read_files

    first = write("format: 1\nquestions:\n- {id: profile/31, topic: advice, text: A}\n", "one.yaml")
    second = write("format: 1\n\nquestions:\n- {id: profile/31, topic: advice, text: B}\n", "two.yaml")
    with pytest.raises(UserError, match=r"two\.yaml:4: id: 'profile/31' was given before, in .*one\.yaml:3"):
        read_files([first, second], base=bank.shipped())


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml: there is no such file; give"):
        bank.load(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match=r"this is a folder; give"):
        bank.load(tmp_path)
    with pytest.raises(UserError, match=r"cannot be read \(.*\); check"):
        bank.load(tmp_path / ("x" * 300))
