"""A good file of a user's, and every way of spoiling one, with the message that it must give."""

from mood_jax import bank

GOOD = """\
format: 1
axes:
  - id: playful_serious
    positive:
      name: playful
      instruction: Be playful, and joke with the user whenever a chance for it comes up.
      stems: [play]
    negative:
      name: serious
      instruction: Be serious, and keep from joking with the user even if it is tempting.
questions:
  - id: playful_serious/A/01
    text: Which sandwich filling survives a long hike in the mountains best?
  - id: playful_serious/A/02
    text: What might a heron be thinking about while it stands in a pond?
  - id: warm_cold/A/07
    text: Next week I start as a postman. Which shoes should I wear?
  - id: profile/31
    topic: opinion
    text: Are roundabouts better than traffic lights in a small town?
"""


def changed(old, new):
    assert GOOD.count(old) == 1, "the test's own replacement must hit once"
    return GOOD.replace(old, new)


MALFORMED = {
    "syntax": (changed("axes:", "axes: ["), r":3: YAML: .*; mend"),
    "unclosed quote": (changed("text: What might", 'text: "What might'), r":\d+: YAML: .*; mend"),
    "two documents": (GOOD + "---\nformat: 1\n", r":\d+: YAML: .*; mend"),
    "tab": (changed("  - id: profile/31", "\t- id: profile/31"), r":\d+: YAML: .*; mend"),
    "control character": (changed("a heron", "a \x07heron"), r":15: YAML: .*; remove the character"),
    "too deep": ("[" * 200_000 + "]" * 200_000, r":1: YAML: nested too deep"),
    "too deep in blocks": ("- " * 200_000, r":1: YAML: nested too deep"),
    "empty": ("# nothing\n", r":1: format: the file is empty; begin"),
    "not a mapping": ("- format: 1\n", r":1: format: the file is not a mapping; begin"),
    "no format": (changed("format: 1\n", ""), r":1: format: missing field; add"),
    "other format": (changed("format: 1", "format: 2"), r":1: format: this version reads format 1 only"),
    "unknown section": (changed("questions:", "question:"), r":11: question: unknown field; use one of: .*questions"),
    "section not a list": (
        "format: 1\nquestions: {id: profile/31}\n",
        r":2: questions: expected a list, found a mapping",
    ),
    "record not a mapping": (
        "format: 1\nquestions:\n- hello\n",
        r":3: questions\[0\]: expected a mapping, found .*str",
    ),
    "unknown field": (
        changed("    topic:", "    topics:"),
        r":19: questions\[3\]\.topics: unknown field; use one of: id",
    ),
    "unknown pole field": (changed("stems:", "stem:"), r":7: axes\[0\]\.positive\.stem: unknown field"),
    "field twice": (changed("    topic: opinion", "    id: profile/32"), r":19: .*\.id: this field is given twice"),
    "missing text": (
        "format: 1\nquestions:\n- id: profile/31\n  topic: opinion\n",
        r":3: questions\[0\]\.text: missing",
    ),
    "missing pole": (
        "format: 1\naxes:\n- id: a_b\n  positive: {name: a, instruction: A}\n",
        r":3: .*negative: missing",
    ),
    "missing topic": (
        changed("    topic: opinion\n", ""),
        r":18: questions\[3\]\.topic: missing field; add one of: factual",
    ),
    "number for text": (
        changed("text: Are roundabouts better than traffic lights in a small town?", "text: 31"),
        r":20: questions\[3\]\.text: expected text, found a number; put it in quotes",
    ),
    "bool for name": (
        changed("name: serious", "name: no"),
        r":9: axes\[0\]\.negative\.name: expected text, found true/fal",
    ),
    "list for text": (
        changed("text: Which sandwich filling survives a long hike in the mountains best?", "text: [a]"),
        r":13: questions\[0\]\.text: expected text, found a list",
    ),
    "python tag": (
        changed("text: Are roundabouts", "text: !!python/name:os.system Are"),
        r":20: .* expected text, found some",
    ),
    "empty text": (
        changed("text: Which sandwich filling survives a long hike in the mountains best?", "text: '  '"),
        r":13: questions\[0\]\.text: the text is empty",
    ),
    "null text": (
        changed("text: Which sandwich filling survives a long hike in the mountains best?", "text:"),
        r":13: questions\[0\]\.text: expected text, found nothing",
    ),
    "empty instruction": (
        changed("Be serious, and keep from joking with the user even if it is tempting.", "''"),
        r":10: axes\[0\]\.negative\.instruction: the text is empty",
    ),
    "duplicated id": (
        changed("playful_serious/A/02", "playful_serious/A/01"),
        r":14: questions\[1\]\.id: id 'playful_serious/A/01' was given before, on line 12",
    ),
    "id without number": (
        changed("playful_serious/A/02", "playful_serious/A"),
        r":14: .*\.id: .* is not a question id",
    ),
    "bad axis id": (
        changed("- id: playful_serious\n", "- id: Playful-Serious\n"),
        r":3: axes\[0\]\.id: .* cannot name an axis",
    ),
    "reserved axis id": (
        changed("- id: playful_serious\n", "- id: profile\n"),
        r":3: axes\[0\]\.id: .* cannot name an axis",
    ),
    "unknown axis": (
        changed("playful_serious/A/02", "playful_sad/A/02"),
        r":14: id: unknown axis 'playful_sad' .* use one of: warm_cold, .*playful_serious",
    ),
    "wrong set": (
        changed("playful_serious/A/02", "playful_serious/D/02"),
        r":14: .*unknown set 'D' .*one of: A, B, C, eval",
    ),
    "unknown topic": (
        changed("topic: opinion", "topic: gossip"),
        r":19: .*\.topic: unknown topic 'gossip'; use one of",
    ),
    "topic elsewhere": (
        changed("id: warm_cold/A/07", "id: warm_cold/A/07\n    topic: advice"),
        r":17: questions\[2\]\.topic: only profile questions",
    ),
    "same pole twice": (changed("name: serious", "name: Playful"), r":9: axes\[0\]\.negative: both poles are named"),
    "axis without questions": (GOOD[: GOOD.index("questions:")], r":3: questions: axis 'playful_serious' has no calib"),
    "pole word": (changed("a heron", "a Playful heron"), r":15: text: 'playful_serious/A/02' holds 'Playful'"),
    "stem of a pole word": (changed("a heron", "a player"), r":15: text: 'playful_serious/A/02' holds 'player'"),
    "near duplicate": (
        changed(
            "What might a heron be thinking about while it stands in a pond?",
            "Which sandwich filling survives long hikes in the mountains best, then?",
        ),
        r":15: text: '.*/02' is nearly the same \(0\.\d\d\) as '.*/01' \(.*bank\.yaml:13\); ask",
    ),
    "duplicate of a shipped one": (
        changed(
            "What might a heron be thinking about while it stands in a pond?",
            "How do bees find their way back to the hive?",
        ),
        r":15: text: '.*/02' is the same as 'verbose_concise/A/14' .*questions_verbose",
    ),
    "unequal instructions": (
        changed(" even if it is tempting.", "."),
        r":10: negative\.instruction: .* have 69 and 47 char",
    ),
    "not UTF-8": (GOOD.replace("heron", "h\u00e9ron").encode("latin-1"), r": not UTF-8 at byte \d+; save"),
}


SCENARIO = "format: 1\nscenarios:\n- id: warm_cold/strong\n  system: S\n  turns: ['What is it?']\n"
DIALOGUE = (
    "format: 1\ndialogues:\n- id: conflict/mockery/01\n  situation: S\n  turns:\n  - What is it?\n  recovery: [R]\n"
)
PROMPT = "format: 1\nprompts:\n- id: anchor/gravity/01\n  text: What is it?\n"
AXIS = "format: 1\naxes:\n- id: warm_cold\n  positive: {name: warm, instruction: Be so warm., P}\n"
AXIS += "  negative: {name: cold, instruction: Be so cold., N}\n"


def axis_with(positive, negative):
    return AXIS.replace("P}", positive + "}").replace("N}", negative + "}")


MALFORMED |= {
    "scenario id": (SCENARIO.replace("/strong", "/strange"), r":3: .*\.id: .* is not a scenario id; write AXIS/KIND"),
    "scenario of an unknown axis": (
        SCENARIO.replace("warm_cold", "war"),
        r":3: id: unknown axis 'war' in 'war/strong'",
    ),
    "strong without system": (SCENARIO.replace("  system: S\n", ""), r":3: .*\.system: missing field; add the strong"),
    "more with system": (
        SCENARIO.replace("strong", "more").replace("it?']", "it?', B]"),
        r":4: .*\.system: only `strong` scenarios",
    ),
    "more with one turn": (
        SCENARIO.replace("strong", "more").replace("  system: S\n", ""),
        r":4: .*\.turns: .* has 2 user turn.s., here are 1; mend",
    ),
    "no turns": (SCENARIO.replace("['What is it?']", "[]"), r":5: .*\.turns: the list is empty; add"),
    "turns not a list": (SCENARIO.replace("['What is it?']", "What is it?"), r":5: .*\.turns: expected a list, found"),
    "empty turn": (DIALOGUE.replace("What is it?", "''"), r":6: dialogues\[0\]\.turns\[0\]: the text is empty; write"),
    "turn not a text": (
        DIALOGUE.replace("What is it?", "12"),
        r":6: dialogues\[0\]\.turns\[0\]: expected text, found a n",
    ),
    "dialogue id": (
        DIALOGUE.replace("conflict/", "quarrel/"),
        r":3: .*\.id: .* is not a dialogue id; write conflict/C",
    ),
    "dialogue category": (DIALOGUE.replace("mockery", "control"), r":3: .*\.id: 'control' cannot name a category"),
    "dialogue without situation": (DIALOGUE.replace("  situation: S\n", ""), r":3: .*\.situation: missing field; add"),
    "control with recovery": (DIALOGUE.replace("conflict/mockery", "control"), r":7: .*\.recovery: controls have no"),
    "turn of a shipped dialogue": (
        DIALOGUE.replace("What is it?", bank.dialogues("sarcasm")[0].turns[2]),
        r":6: turns\[0\]: 'conflict/mockery/01' is the same as 'conflict/sarcasm/01' \(.*sarcasm\.yaml:\d+\); ask",
    ),
    "controls out of balance": (
        "format: 1\ndialogues:\n"
        + "".join(f"- id: control/{n}\n  situation: S\n  turns: [N{n**9}]\n" for n in range(11, 91)),
        r"turns: conflict and control turns have quartiles of 68/\d+, 78/\d+, 86/\d+ characters; bring",
    ),
    "prompt id": (PROMPT.replace("anchor/", "anchors/"), r":3: .*\.id: .* is not a prompt id; write layerwise/CAT"),
    "prompt that is a question": (
        PROMPT.replace("What is it?", bank.questions("formal_casual")[1].text),
        r":4: text: 'anchor/gravity/01' is the same as 'formal_casual/A/02'",
    ),
    "unknown paraphrase": (
        axis_with("paraphrases: {D: Glow.}", "stems: [x]"),
        r":4: .*paraphrases\.D: unknown field; use",
    ),
    "unknown formulation": (
        axis_with("formulations: {song: A}", "stems: [x]"),
        r":4: .*formulations\.song: unknown field",
    ),
    "paraphrase of one pole only": (
        axis_with("paraphrases: {B: Glow.}", "stems: [x]"),
        r":5: axes\[0\]\.negative\.paraphrases: only one pole has B; give both",
    ),
    "unequal formulations": (
        axis_with("formulations: {role: You are a stove.}", "formulations: {role: You are snow.}"),
        r":5: negative\.formulations\.role: .* have 16 and 13 char",
    ),
    "paraphrase that repeats": (
        axis_with("paraphrases: {B: 'Be so warm!'}", "paraphrases: {B: 'Be like ice'}"),
        r":4: positive\.paraphrases\.B: nearly the same as `instruction` of the same pole; say",
    ),
}
