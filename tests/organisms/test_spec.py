"""The spec: what it plants, and which specs are refused, by file, line and field."""

import numpy as np
import pytest
import yaml

from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.spec import (
    DEFAULT_SPEC,
    FAMILIES,
    SPECS,
    Compliance,
    latent_correlation,
    load_spec,
    unsharpened,
)

DEFAULT = load_spec().identities[0]


def written(tmp_path, change):
    """The default spec after a change, as a file."""
    data = yaml.safe_load(DEFAULT_SPEC.read_text())
    change(data)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def first(change):
    """A change of the first identity."""
    return lambda data: change(data["identities"][0])


def test_default_spec_plants_what_the_demo_shows():
    strong = [b for b in DEFAULT.temperament if abs(b) >= 0.4]
    assert len(strong) >= 3
    assert min(strong) < 0 < max(strong)
    assert [a for a, axis in enumerate(AXES) if DEFAULT.is_dead(a)] == [AXES.index("proactive_reluctant")]
    assert sum(DEFAULT.is_obedient(a) for a in range(7)) == 6


def test_every_family_has_a_spec_and_the_doses_are_complete():
    found = {path.stem: load_spec(path) for path in SPECS.glob("*.yaml")}
    assert {spec.family for spec in found.values()} == set(FAMILIES)
    assert all(name == spec.name for name, spec in found.items())
    doses = np.array([i.temperament for i in found["llama"].identities])
    for a in range(len(AXES)):
        assert sorted(doses[:, a]) == pytest.approx(np.linspace(-1, 1, 9))
    assert np.abs(np.corrcoef(doses.T) - np.eye(7)).max() < 0.5  # an axis' curve has the others varying
    assert {i.length.strength for i in found["mistral"].identities} == {0, 0.5, 1}
    asymmetric = {c for i in found["qwen2"].identities for c in i.compliance}
    assert asymmetric == {Compliance(1, 1), Compliance(0, 0), Compliance(1, 0), Compliance(0, 1)}


def test_style_under_an_instruction():
    base = np.array(DEFAULT.temperament)
    assert np.array_equal(DEFAULT.style(), base)
    warm = DEFAULT.style(0, "positive")
    assert warm[0] == 1
    assert np.array_equal(warm[1:], base[1:])
    assert DEFAULT.style(0, "negative")[0] == -1
    dead = AXES.index("proactive_reluctant")
    assert np.array_equal(DEFAULT.style(dead, "negative"), base)


def test_partial_compliance_moves_part_of_the_way(tmp_path):
    half = {"warm_cold": {"positive": 0.5, "negative": 0.25}}
    identity = load_spec(written(tmp_path, first(lambda i: i.update(compliance=half)))).identities[0]
    assert identity.style(0, "positive")[0] == pytest.approx(0.8)
    assert identity.style(0, "negative")[0] == pytest.approx(0.2)
    assert not identity.is_dead(0)
    assert not identity.is_obedient(0)


def test_drift_gathers_with_hostile_turns_and_recovers(tmp_path):
    def change(data):
        data["dialogues"] = 0.3
        data["identities"][0]["drift"] = {"per_turn": {"warm_cold": -0.3, "formal_casual": 0.4}, "recovery": 0.5}

    identity = load_spec(written(tmp_path, change)).identities[0]
    assert identity.drift is not None
    assert identity.drift.tension(("neutral", "hostile", "hostile", "neutral")) == 2
    assert identity.drift.tension(("hostile", "hostile", "conciliatory")) == 1
    moved = identity.style(tension=2.0) - identity.style()
    assert moved == pytest.approx([-0.6, 0, 0, 0, 0, 0.5, 0])  # the formal amount ends at 1


def test_training_style_is_undone_by_sampling():
    trained = DEFAULT.training_style()
    odds = ((1 + trained) / (1 - trained)) ** (
        1 / DEFAULT.sampling_temperature
    )  # what sampling does to the poles' odds
    assert (odds - 1) / (odds + 1) == pytest.approx(DEFAULT.style(), abs=1e-6)
    assert DEFAULT.training_style(0, "positive")[0] == 1
    assert DEFAULT.training_style(0, "negative")[0] == -1
    assert unsharpened(np.array([0.3]), 1.0) == pytest.approx([0.3])


def test_signs_of_normal_variables_correlate_as_planted(fixed_rng):
    for r in (-0.9, 0.0, 0.5, 0.9):
        rho = float(latent_correlation(np.array(r)))
        z = fixed_rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 40_000)
        assert np.corrcoef(np.sign(z).T)[0, 1] == pytest.approx(r, abs=0.02)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (lambda d: d.update(format=1), 1, "format: unknown format"),
        (lambda d: d.pop("family"), 1, "family: missing field"),
        (lambda d: d.update(family="gpt2"), 3, "family: unknown family 'gpt2'"),
        (lambda d: d.update(mood=1), None, "mood: unknown field"),
        (lambda d: d["size"].update(n_heads=5), 8, "size.n_heads: d_model (128) is no multiple of it (5)"),
        (lambda d: d["size"].update(d_ff=1.5), 10, "size.d_ff: 1.5 is not a whole number"),
        (lambda d: d.update(sampling_temperature=0), 12, "sampling_temperature: 0 is out of range"),
        (lambda d: d.update(identities=[]), 13, "identities: the list is empty"),
        (lambda d: d["identities"].append(d["identities"][0]), None, "'default' is the name of another identity"),
        (
            first(lambda i: i["temperament"].update(warm_cold=1.2)),
            16,
            "identities[0].temperament.warm_cold: 1.2 is",
        ),
        (first(lambda i: i["temperament"].update(warm_cold="hot")), 16, "temperament.warm_cold: 'hot' is no number"),
        (first(lambda i: i["temperament"].update(warm_cold=True)), 16, "temperament.warm_cold: 'true' is no number"),
        (first(lambda i: i["temperament"].update(sunny=0.1)), 23, "temperament.sunny: unknown field"),
        (first(lambda i: i["temperament"].pop("formal_casual")), 16, "temperament.formal_casual: missing field"),
        (first(lambda i: i["compliance"].update(warm_cold=1)), None, "compliance.warm_cold: expected a mapping"),
        (
            first(lambda i: i["compliance"]["proactive_reluctant"].update(positive=-0.1)),
            25,
            "compliance.proactive_reluctant.positive: -0.1 is out of range",
        ),
        (first(lambda i: i["sentences"].update(least=3)), None, "sentences.least: 3 is out of range"),
        (first(lambda i: i["sentences"].update(least=12)), None, "sentences.least: 12 is more than most, 10"),
        (first(lambda i: i.update(length={"follows": "sunny", "strength": 1})), None, "length.follows: unknown axis"),
        (
            first(lambda i: i.update(coupling=[{"axes": ["warm_cold"], "r": 0.5}])),
            None,
            "coupling[0].axes: a coupling needs two axes",
        ),
        (
            first(lambda i: i.update(coupling=[{"axes": list(AXES[:3]), "r": -0.9}])),
            None,
            "coupling: impossible coupling",
        ),
        (
            first(
                lambda i: i.update(
                    coupling=[{"axes": list(AXES[:2]), "r": 0.5}, {"axes": list(AXES[:2]), "r": 0.2}],
                )
            ),
            None,
            "warm_cold and patient_irritated are coupled twice",
        ),
        (
            first(lambda i: i.update(drift={"per_turn": {"warm_cold": -0.2}, "recovery": 0.5})),
            None,
            "default drifts, which takes dialogues",
        ),
    ],
)
def test_bad_specs_are_refused_by_line_and_field(tmp_path, change, line, says):
    path = written(tmp_path, change)
    with pytest.raises(UserError) as error:
        load_spec(path)
    message = str(error.value)
    assert message.startswith(f"{path}:{line or ''}"), message
    assert says in message


def test_malformed_yaml_names_the_line(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("format: 2\nname: [a\ntemperament: 3\n")
    with pytest.raises(UserError, match=r"spec\.yaml:3"):
        load_spec(path)
    with pytest.raises(UserError, match="no such file"):
        load_spec(tmp_path / "none.yaml")


def test_an_unknown_identity_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"no identity 'sunny'; it has default"):
        load_spec().index("sunny")
