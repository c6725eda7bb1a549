"""The bank's records: immutable, typed, each with an id that never changes its meaning."""

from dataclasses import dataclass

from mood_jax.errors import UserError

CALIBRATION_SETS = ("A", "B", "C")
QUESTION_SETS = (*CALIBRATION_SETS, "eval")  # asked under an axis; `profile` questions are asked under none
PROFILE = "profile"
TOPICS = ("factual", "advice", "opinion", "creative", "technical", "emotional")
FORMULATIONS = ("production", "minimal", "role", "behaviour", "example")
SCENARIO_KINDS = ("strong", "more", "less")
CONFLICT, CONTROL = "conflict", "control"
LAYERWISE, ANCHOR = "layerwise", "anchor"


@dataclass(frozen=True)
class Pole:
    """One end of an axis: its name, and the system prompts that ask for it and for nothing else.

    `instruction` is the production one. `paraphrases` are pairs (set, text) for sets B and C, `formulations` pairs
    (name, text) for the others of `FORMULATIONS`; a user's axis may do without them.
    """

    name: str
    instruction: str
    stems: tuple[str, ...] = ()  # beginnings of words that no question of the axis may hold; () means the name itself
    paraphrases: tuple[tuple[str, str], ...] = ()
    formulations: tuple[tuple[str, str], ...] = ()

    def instruction_for(self, set: str) -> str:
        """The instruction of calibration set A (the production one), B or C; `UserError` if the pole has none."""
        if set not in CALIBRATION_SETS:
            raise UserError(f"unknown calibration set {set!r}; use one of: {', '.join(CALIBRATION_SETS)}")
        texts = {"A": self.instruction, **dict(self.paraphrases)}
        if set not in texts:
            raise UserError(f"pole {self.name!r} has no paraphrase for set {set}; add one under `paraphrases`")
        return texts[set]

    def formulation(self, name: str) -> str:
        """The instruction in one of the five formulations; `UserError` if the pole has none by that name."""
        if name not in FORMULATIONS:
            raise UserError(f"unknown formulation {name!r}; use one of: {', '.join(FORMULATIONS)}")
        texts = {"production": self.instruction, **dict(self.formulations)}
        if name not in texts:
            raise UserError(f"pole {self.name!r} has no formulation {name!r}; add one under `formulations`")
        return texts[name]


@dataclass(frozen=True)
class Axis:
    """A bipolar style; scores grow towards `positive`."""

    id: str
    positive: Pole
    negative: Pole

    @property
    def poles(self) -> tuple[Pole, Pole]:
        """Both poles, the positive one first."""
        return self.positive, self.negative


@dataclass(frozen=True)
class Question:
    """One user turn. `id` is `AXIS/SET/NN`, or `profile/NN` for the neutral questions, which alone have a topic."""

    id: str
    text: str
    axis: str | None
    set: str
    topic: str | None = None


@dataclass(frozen=True)
class Scenario:
    """A benchmark of one axis; `id` is `AXIS/KIND`.

    `strong`: one user turn under a strong `system` instruction for the positive pole. `more`, `less`: two user turns
    without a system prompt, the second of which asks for more of the positive pole or for less of it.
    """

    id: str
    axis: str
    kind: str
    turns: tuple[str, ...]
    system: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """User turns of a fixed script, which make sense whatever is answered.

    `id` is `conflict/CATEGORY/NN` or `control/NN`. The shipped conflicts have 12 turns (1–6 escalate, 7–12 sustain)
    and 4 conciliatory `recovery` turns; controls have 16 turns and no recovery.
    """

    id: str
    kind: str  # "conflict" or "control"
    category: str  # of a conflict; "control" for controls
    situation: str  # for people; never shown to the model
    turns: tuple[str, ...]
    recovery: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt of the layer-wise study; `id` is `layerwise/CATEGORY/NN` or `anchor/STYLE/NN`."""

    id: str
    text: str
    kind: str  # "layerwise" or "anchor"
    category: str


Record = Axis | Question | Scenario | Dialogue | Prompt


def user_texts(record: Record) -> tuple[tuple[str, str], ...]:
    """What a user says in a record, as pairs (field, text); nothing for an axis."""
    if isinstance(record, Axis):
        return ()
    if isinstance(record, (Question, Prompt)):
        return (("text", record.text),)
    turns = [(f"turns[{i}]", text) for i, text in enumerate(record.turns)]
    if isinstance(record, Dialogue):
        turns += [(f"recovery[{i}]", text) for i, text in enumerate(record.recovery)]
    return tuple(turns)
