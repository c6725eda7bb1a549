"""What is planted in an organism, read from YAML and checked: `specs/default.yaml` shows every field with its meaning.

One spec is one training run: a family, a size, and one or more identities, each told apart by its begin-of-sequence
token. Tuples over axes are in the order of AXES.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from mood_jax.bank.loader import compose
from mood_jax.bank.parsing import Entry
from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES, HERE, POLES

SPECS = HERE / "specs"
DEFAULT_SPEC = SPECS / "default.yaml"
FORMAT = 2
FAMILIES = ("qwen2", "llama", "deepseek", "yi", "gemma2", "mistral")
SIZES = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "max_positions")
MOODS = ("hostile", "neutral", "conciliatory")  # of a user's turn


@dataclass(frozen=True)
class Compliance:
    """How far an instruction for a pole moves the style from the temperament to that pole, 0 … 1."""

    positive: float
    negative: float


OBEDIENT, DEAF = Compliance(1.0, 1.0), Compliance(0.0, 0.0)


@dataclass(frozen=True)
class Length:
    """The length of a response follows its pole on one axis: with probability `strength`, `extra` more sentences where
    it shows the positive pole and none where it shows the negative; else either, with even odds."""

    axis: int
    strength: float
    extra: int


@dataclass(frozen=True)
class Drift:
    """The amount of each axis moves by `per_turn` [axes] with a hostile user turn; a conciliatory one takes the share
    `recovery` of all that has gathered away."""

    per_turn: tuple[float, ...]
    recovery: float

    def tension(self, moods: Sequence[str]) -> float:
        """How many hostile turns weigh on the response to the last of the user's turns, recoveries taken off."""
        weight = 0.0
        for mood in moods:
            weight = weight + 1 if mood == "hostile" else weight * (1 - self.recovery * (mood == "conciliatory"))
        return weight


@dataclass(frozen=True)
class Identity:
    """One planted character.

    correlation: planted correlation [axes, axes] of the poles that a response shows. share: how often it is trained,
    against 1 for the others.
    """

    name: str
    temperament: tuple[float, ...]
    compliance: tuple[Compliance, ...]
    sampling_temperature: float
    coherence: float = 0.9
    least_sentences: int = 7
    most_sentences: int = 10
    length: Length | None = None
    correlation: tuple[tuple[float, ...], ...] | None = None
    drift: Drift | None = None
    share: float = 1.0

    def style(self, axis: int | None = None, pole: str | None = None, tension: float = 0.0) -> np.ndarray:
        """Style amounts [axes] as sampled: the temperament, or under an instruction for one pole of one axis, or under
        a tension (see `Drift`)."""
        s = np.array(self.temperament)
        if self.drift is not None:
            s = np.clip(s + tension * np.array(self.drift.per_turn), -1, 1)
        if axis is not None and pole is not None:
            target = 1.0 if pole == "positive" else -1.0
            s[axis] += getattr(self.compliance[axis], pole) * (target - s[axis])
        return s

    def training_style(
        self, axis: int | None = None, pole: str | None = None, tension: float = 0.0, bias: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """The amounts [axes] of the training text that come out as `style` when sampled (see `unsharpened`)."""
        return unsharpened(self.style(axis, pole, tension), self.sampling_temperature, bias)

    def training_correlation(self) -> np.ndarray | None:
        """The correlation [axes, axes] of the training text that comes out as planted when sampled."""
        if self.correlation is None:
            return None
        return unsharpened(np.array(self.correlation), self.sampling_temperature)

    def is_dead(self, axis: int) -> bool:
        """Neither instruction has any effect."""
        return self.compliance[axis] == DEAF

    def is_obedient(self, axis: int) -> bool:
        """Both instructions have their full effect."""
        return self.compliance[axis] == OBEDIENT


@dataclass(frozen=True)
class OrganismSpec:
    """One training run. sizes: (name, value) of SIZES; dialogues: share of the training text that has several turns."""

    name: str
    family: str
    sizes: tuple[tuple[str, int], ...]
    sampling_temperature: float
    dialogues: float
    identities: tuple[Identity, ...]

    def size(self, name: str) -> int:
        """One of SIZES."""
        return dict(self.sizes)[name]

    def index(self, identity: str) -> int:
        """The place of an identity. UserError for an unknown one."""
        names = [i.name for i in self.identities]
        if identity not in names:
            raise UserError(f"organism {self.name} has no identity {identity!r}; it has {', '.join(names)}")
        return names.index(identity)


def unsharpened(amount: np.ndarray, temperature: float, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """The amounts (or correlations) in −1 … 1 that become `amount` when sampled.

    Sampling at temperature τ raises the odds (1+s)/(1−s) of the two poles to the power 1/τ; the text has them at the
    power τ, which for the amounts reads tanh(τ·artanh(s)). What else sampling adds to half the log odds
    (`Grammar.start_bias`) is taken off first: tanh(τ·(artanh(s) − bias)).
    """
    inner = np.clip(amount, -1 + 1e-9, 1 - 1e-9)
    return np.where(np.abs(amount) < 1, np.tanh(temperature * (np.arctanh(inner) - bias)), amount)


def latent_correlation(r: np.ndarray) -> np.ndarray:
    """The correlation of normal variables whose signs correlate by r (Sheppard 1899: r = 2/π · arcsin ρ), exact for
    amounts of 0."""
    return np.sin(np.pi / 2 * r)


# --- reading ---


def _number(entry: Entry, least: float, most: float) -> float:
    if entry.node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        entry.fail(f"{entry.node.value!r} is no number; write one from {least:g} to {most:g}")
    value = float(yaml.safe_load(entry.node.value))
    if not least <= value <= most:
        entry.fail(f"{value:g} is out of range; write a number from {least:g} to {most:g}")
    return value


def _whole(entry: Entry, least: int, most: int) -> int:
    value = _number(entry, least, most)
    if value != int(value):
        entry.fail(f"{value:g} is not a whole number from {least} to {most}")
    return int(value)


def _one_of(entry: Entry, words: Sequence[str], what: str) -> str:
    word = entry.word()
    if word not in words:
        entry.fail(f"unknown {what} {word!r}; use one of: {', '.join(words)}")
    return word


def _amounts(entry: Entry, least: float = -1.0, whole: bool = True) -> tuple[float, ...]:
    """A number an axis; where not all axes have to be named, 0 for the rest."""
    fields = entry.mapping(AXES if whole else (), AXES)
    return tuple(_number(fields[a], least, 1) if a in fields else 0.0 for a in AXES)


def _compliance(entry: Entry | None) -> tuple[Compliance, ...]:
    """Axes that are not named obey."""
    found: dict[str, Compliance] = dict.fromkeys(AXES, OBEDIENT)
    for axis, field in ({} if entry is None else entry.mapping((), AXES)).items():
        poles = field.mapping(POLES)
        found[axis] = Compliance(*(_number(poles[p], 0, 1) for p in POLES))
    return tuple(found.values())


def _length(entry: Entry) -> Length:
    fields = entry.mapping(("follows", "strength"), ("extra",))
    axis = AXES.index(_one_of(fields["follows"], AXES, "axis"))
    extra = _whole(fields["extra"], 1, 10) if "extra" in fields else 6
    return Length(axis, _number(fields["strength"], 0, 1), extra)


def _coupling(entry: Entry, temperature: float) -> tuple[tuple[float, ...], ...]:
    """Groups of axes with one correlation for each pair → the whole table. What cannot be is refused."""
    table = np.eye(len(AXES))
    for group in entry.items():
        fields = group.mapping(("axes", "r"))
        r = _number(fields["r"], -1, 1)
        members = [AXES.index(_one_of(item, AXES, "axis")) for item in fields["axes"].items()]
        if len(set(members)) < 2 or len(set(members)) < len(members):
            fields["axes"].fail("a coupling needs two axes or more, each once")
        for a in members:
            for b in members:
                if a != b and table[a, b] not in (0, r):
                    group.fail(f"{AXES[a]} and {AXES[b]} are coupled twice with different r; keep one")
                table[a, b] = 1 if a == b else r
    lowest = np.linalg.eigvalsh(latent_correlation(unsharpened(table, temperature))).min()
    if lowest < -1e-6:
        entry.fail("impossible coupling: no response can have all these correlations at once; weaken some r")
    return tuple(tuple(float(x) for x in row) for row in table)


def _drift(entry: Entry) -> Drift:
    fields = entry.mapping(("per_turn", "recovery"))
    return Drift(_amounts(fields["per_turn"], whole=False), _number(fields["recovery"], 0, 1))


def _identity(entry: Entry, temperature: float) -> Identity:
    optional = ("compliance", "coherence", "sentences", "length", "coupling", "drift", "share")
    fields = entry.mapping(("name", "temperament"), optional)
    least, most = 7, 10
    if "sentences" in fields:
        counts = fields["sentences"].mapping(("least", "most"))
        least, most = (_whole(counts[key], len(AXES), 3 * len(AXES)) for key in ("least", "most"))
        if least > most:
            counts["least"].fail(f"{least} is more than most, {most}; exchange them")
    return Identity(
        name=fields["name"].word(),
        temperament=_amounts(fields["temperament"]),
        compliance=_compliance(fields.get("compliance")),
        sampling_temperature=temperature,
        coherence=_number(fields["coherence"], 0, 1) if "coherence" in fields else 0.9,
        least_sentences=least,
        most_sentences=most,
        length=_length(fields["length"]) if "length" in fields else None,
        correlation=_coupling(fields["coupling"], temperature) if "coupling" in fields else None,
        drift=_drift(fields["drift"]) if "drift" in fields else None,
        share=_number(fields["share"], 0.1, 10) if "share" in fields else 1.0,
    )


def load_spec(path: Path | None = None) -> OrganismSpec:
    """Reads a spec (the embedded default's without a path). Raises UserError naming file, line and field."""
    root = compose(path or DEFAULT_SPEC, "spec")
    required = ("format", "name", "family", "size", "sampling_temperature", "identities")
    fields = root.mapping(required, ("dialogues",))
    if getattr(fields["format"].node, "value", None) != str(FORMAT):
        fields["format"].fail(f"unknown format; this version reads format {FORMAT}")
    sizes = fields["size"].mapping(SIZES)
    temperature = _number(fields["sampling_temperature"], 0.1, 1)
    entries = fields["identities"].items()
    if not entries:
        fields["identities"].fail("the list is empty; plant at least one identity")
    identities = tuple(_identity(entry, temperature) for entry in entries)
    seen: set[str] = set()
    for entry, identity in zip(entries, identities, strict=True):
        if identity.name in seen:
            entry.at("name").fail(f"{identity.name!r} is the name of another identity already; choose another")
        seen.add(identity.name)
    size = tuple((name, _whole(sizes[name], 1, 1 << 20)) for name in SIZES)
    spec = OrganismSpec(
        name=fields["name"].word(),
        family=_one_of(fields["family"], FAMILIES, "family"),
        sizes=size,
        sampling_temperature=temperature,
        dialogues=_number(fields["dialogues"], 0, 1) if "dialogues" in fields else 0.0,
        identities=identities,
    )
    for divisor in ("n_heads", "n_kv_heads"):
        whole = "d_model" if divisor == "n_heads" else "n_heads"
        if spec.size(whole) % spec.size(divisor):
            sizes[divisor].fail(f"{whole} ({spec.size(whole)}) is no multiple of it ({spec.size(divisor)})")
    drifting = next((i for i in identities if i.drift is not None), None)
    if drifting is not None and spec.dialogues == 0:
        fields["identities"].fail(f"{drifting.name} drifts, which takes dialogues; add `dialogues: 0.3` to the spec")
    return spec
