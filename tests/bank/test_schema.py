"""`schema.json` and the loader take and refuse the same files.

The validator below knows the keywords that the schema uses, and fails on any other.
"""

import json
import re

import pytest
import yaml

from mood_jax import bank
from mood_jax.bank.loader import SHIPPED
from mood_jax.errors import UserError

from .malformed import AXIS, DIALOGUE, GOOD, MALFORMED, PROMPT, SCENARIO

SCHEMA = json.loads((SHIPPED / "schema.json").read_text())
FILES = [*SHIPPED.glob("*.yaml"), *SHIPPED.glob("examples/*.yaml")]
TYPES = {"object": dict, "array": list, "string": str}


def valid(value, schema):
    for keyword, rule in schema.items():
        if keyword in ("$schema", "$defs", "title", "description", "then", "else"):
            continue
        if keyword == "$ref":
            ok = valid(value, SCHEMA["$defs"][rule.removeprefix("#/$defs/")])
        elif keyword == "type":
            ok = isinstance(value, TYPES[rule])
        elif keyword == "enum":
            ok = value in rule
        elif keyword == "allOf":
            ok = all(valid(value, part) for part in rule)
        elif keyword == "not":
            ok = not valid(value, rule)
        elif keyword == "if":
            branch = schema.get("then" if valid(value, rule) else "else", {})
            ok = valid(value, branch)
        elif keyword in ("required", "additionalProperties", "properties"):
            if not isinstance(value, dict):
                continue
            if keyword == "required":
                ok = all(name in value for name in rule)
            elif keyword == "properties":
                ok = all(valid(value[name], part) for name, part in rule.items() if name in value)
            else:
                assert rule is False
                ok = all(name in schema["properties"] for name in value)
        elif keyword in ("items", "minItems", "maxItems"):
            if not isinstance(value, list):
                continue
            if keyword == "items":
                ok = all(valid(item, rule) for item in value)
            else:
                ok = len(value) >= rule if keyword == "minItems" else len(value) <= rule
        elif keyword in ("pattern", "minLength"):
            if not isinstance(value, str):
                continue
            ok = re.search(rule, value) is not None if keyword == "pattern" else len(value) >= rule
        else:
            raise AssertionError(f"the test's validator does not know {keyword!r}")
        if not ok:
            return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_files_follow_it_and_name_it(path):
    assert valid(yaml.safe_load(path.read_text()), SCHEMA)
    first = path.read_text().splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named
    assert (path.parent / named[1]).resolve() == (SHIPPED / "schema.json").resolve()


def test_good_files_follow_it():
    for text in (GOOD, SCENARIO, DIALOGUE, PROMPT, AXIS.replace(", P}", "}").replace(", N}", "}")):
        assert valid(yaml.safe_load(text), SCHEMA)


# what only the loader sees: syntax, references between records, and the texts themselves
LOADER_ONLY = {
    "syntax", "unclosed quote", "two documents", "tab", "control character", "too deep", "too deep in blocks", "empty",
    "python tag", "not UTF-8", "field twice", "duplicated id", "unknown axis", "scenario of an unknown axis",
    "axis without questions", "same pole twice", "pole word", "stem of a pole word", "near duplicate",
    "duplicate of a shipped one", "unequal instructions", "turn of a shipped dialogue", "controls out of balance",
    "prompt that is a question", "paraphrase of one pole only", "unequal formulations", "paraphrase that repeats",
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(MALFORMED.keys() - LOADER_ONLY))
def test_it_refuses_what_the_loader_refuses(case):
    assert not valid(yaml.safe_load(MALFORMED[case][0]), SCHEMA)


@pytest.mark.parametrize("section", ["axes", "questions", "scenarios", "dialogues", "prompts"])
def test_it_names_the_fields_of_the_loader(section, tmp_path):
    """The loader's message on an unknown field lists the fields that it knows."""
    path = tmp_path / "bank.yaml"
    path.write_text(f"format: 1\n{section}:\n- nonsense: 1\n")
    with pytest.raises(UserError) as caught:
        bank.load(path)
    listed = str(caught.value).split("use one of: ")[1].split(", ")
    record = SCHEMA["properties"][section]["items"]["$ref"].removeprefix("#/$defs/")
    assert sorted(SCHEMA["$defs"][record]["properties"]) == sorted(listed)
