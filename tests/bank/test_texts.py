"""Texts of a user's YAML are what was written, or they are refused with file and line."""

from __future__ import annotations

import unicodedata

import pytest
import yaml

from mood_jax import bank
from mood_jax.bank import loader
from mood_jax.errors import UserError

QUESTION = "format: 1\nquestions:\n  - id: profile/77\n    topic: advice\n    text: {}\n"
PLACES = {
    "question": QUESTION,
    "dialogue": (
        "format: 1\ndialogues:\n  - id: control/77\n    situation: any\n    turns:\n      - Fine weather, is it not?\n"
        "      - {}\n"
    ),
    "prompt": "format: 1\nprompts:\n  - id: anchor/odd/01\n    text: {}\n",
    "situation": "format: 1\ndialogues:\n  - id: control/77\n    turns: [Fine weather, Indeed]\n    situation: {}\n",
    "instruction": (
        "format: 1\naxes:\n  - id: loud_quiet\n    positive: {{name: loud, instruction: Shout aloud.}}\n    negative:\n"
        "      name: quiet\n      instruction: {}\nquestions:\n  - {{id: loud_quiet/A/01, text: 'Is it far?'}}\n"
    ),
    "name": (
        "format: 1\naxes:\n  - id: loud_quiet\n    positive: {{name: loud, instruction: Shout aloud.}}\n    negative:\n"
        "      instruction: Hush, hush.\n      name: {}\nquestions:\n  - {{id: loud_quiet/A/01, text: 'Is it far?'}}\n"
    ),
}
LOADERS = [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)]


@pytest.fixture(params=LOADERS, ids=["python", "c"])
def load(request, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "_FastLoader", request.param)

    def load(text: str, place: str = "question"):
        path = tmp_path / "bank.yaml"
        path.write_bytes(PLACES[place].format(text).encode("utf-8", "surrogatepass"))
        return bank.load(path, check=False)

    return load


def line_of(place: str) -> int:
    return PLACES[place].partition("{}")[0].replace("{{", "{").count("\n") + 1


COMMENTED = (
    "Which sandwich # is best for a hike?",
    "Wie heißt é 🥪 — dies  #1?",
    "日本語 # はい",
    "C # is not C#",
    "a #",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", COMMENTED)
def test_a_comment_behind_a_text_is_pointed_out(load, place, text):
    with pytest.raises(
        UserError, match=rf"bank\.yaml:{line_of(place)}: .*the text ends before '#.*put the text in quotes"
    ):
        load(text, place)


@pytest.mark.parametrize(
    "text",
    ["Which C# is it?", "'Which # is it?'  # asked by A", '"Which # is it?" # x', "Is#it", "|\n      Which # is it?\n",
     "> # a header's comment\n      Which # is it?\n", "Which\n      one is it?"],
)  # fmt: skip
def test_other_texts_stay_what_they_are(load, text):
    found = load(text).questions(set="profile")[-1].text
    assert found == yaml.safe_load(QUESTION.format(text))["questions"][0]["text"].strip("\n")


@pytest.mark.parametrize("text", ["!what a day it is", "! what a day", "&co is it fine?", "&a Which?"])
def test_a_beginning_that_yaml_takes_for_its_own(load, text):
    with pytest.raises(UserError, match=rf"bank\.yaml:{line_of('question')}: .*quotes"):
        load(text)


def test_an_anchor_that_is_used_is_one(load):
    text = "&one Which one is it?\n  - {id: profile/78, topic: advice, text: *one}"
    assert [q.text for q in load(text).questions(set="profile")[-2:]] == ["Which one is it?"] * 2


COERCED = ("yes", "no", "on", "Off", "~", "null", "", "1", "1.0", "1.5e+3", "010", "0x1f", "1_000", "12:30:45")
COERCED += ("2024-01-31", ".inf", ".nan", "true", "=", "[a]", "{a: b}")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", COERCED)
def test_what_yaml_takes_for_another_kind_of_value(load, place, text):
    with pytest.raises(UserError, match=rf"bank\.yaml:{line_of(place)}: .*expected text"):
        load(text, place)


INVISIBLE = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) in ("Cf", "Zs", "Zl", "Zp", "Mn")]
INVISIBLE += ["\ufeff", "\u3000", "\u3164", "\uffa0", "\U000e0020", "\u2800", "\ufe0f"]
INVISIBLE = [c for c in INVISIBLE if c not in " \u2028\u2029"]


def test_a_text_of_which_nothing_is_to_be_seen(load):
    for first, second in zip(INVISIBLE[::23], INVISIBLE[7::23], strict=False):
        for text in (first, first + second, second * 5):
            with pytest.raises(
                UserError, match=r"bank\.yaml:5: .*(nothing that can be seen|the text is empty|white space)"
            ):
                load(f'"{text}"')


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "code", [0, 1, 7, 8, 0x0B, 0x0C, 0x0D, 0x1B, 0x1F, 0x7F, 0x80, 0x85, 0x9F, 0xFFFE, 0xFFFF, 0x1FFFE]
)
def test_control_characters(load, place, code):
    with pytest.raises(UserError, match=rf"bank\.yaml:{line_of(place)}: .*U\+{code:04X}; remove it"):
        load(f'"Which\\U{code:08x}one is it?"', place)


def test_white_space_in_quotes(load):
    for space in (" ", "\t", "\\n", "\u00a0", "\u3000", "\u2003"):
        for text in (f'"{space}Which?"', f'"Which?{space}"'):
            with pytest.raises(UserError, match="white space in quotes"):
                load(text)
    with pytest.raises(UserError, match="white space"):
        load("\u00a0Which?")


SAID = (
    "naïve café",
    "nai\u0308ve cafe\u0301",
    "क्षत्रिय\u200dक?",
    "می\u200cخواهم",
    "👩\u200d🚀?",
    "Ω versus Ω",
    "ﬁne",
    "a\u00adb",
)


@pytest.mark.parametrize("text", SAID)
def test_unicode_is_kept_as_it_is_written(load, text):
    for written in (text, f'"{text}"', f"|\n      {text}\n"):
        assert load(written).questions(set="profile")[-1].text == text
