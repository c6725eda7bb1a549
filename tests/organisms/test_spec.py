"""The spec: what it plants, and which specs are refused."""

import numpy as np
import pytest
import yaml

from mood_jax.errors import UserError
from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.spec import DEFAULT_SPEC, load_spec


def test_default_spec_plants_what_the_demo_shows():
    spec = load_spec()
    strong = [b for b in spec.temperament if abs(b) >= 0.4]
    assert len(strong) >= 3
    assert min(strong) < 0 < max(strong)
    assert [a for a, axis in enumerate(AXES) if spec.is_dead(a)] == [AXES.index("proactive_reluctant")]
    assert sum(spec.is_obedient(a) for a in range(7)) == 6


def test_style_under_an_instruction():
    spec = load_spec()
    base = np.array(spec.temperament)
    assert np.array_equal(spec.style(), base)
    warm = spec.style(0, "positive")
    assert warm[0] == 1
    assert np.array_equal(warm[1:], base[1:])
    assert spec.style(0, "negative")[0] == -1
    dead = AXES.index("proactive_reluctant")
    assert np.array_equal(spec.style(dead, "negative"), base)


def test_partial_compliance_moves_part_of_the_way(tmp_path):
    data = yaml.safe_load(DEFAULT_SPEC.read_text())
    data["compliance"]["warm_cold"] = {"positive": 0.5, "negative": 0.25}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    spec = load_spec(path)
    assert spec.style(0, "positive")[0] == pytest.approx(0.8)
    assert spec.style(0, "negative")[0] == pytest.approx(0.2)
    assert not spec.is_dead(0)
    assert not spec.is_obedient(0)


def test_training_style_is_undone_by_sampling():
    spec = load_spec()
    trained = spec.training_style()
    odds = ((1 + trained) / (1 - trained)) ** (1 / spec.sampling_temperature)  # what sampling does to the poles' odds
    assert (odds - 1) / (odds + 1) == pytest.approx(spec.style(), abs=1e-6)
    assert spec.training_style(0, "positive")[0] == 1
    assert spec.training_style(0, "negative")[0] == -1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(format=2), "format: 2"),
        (lambda d: d.pop("coherence"), "'coherence' is missing"),
        (lambda d: d.update(mood=1), "unknown key 'mood'"),
        (lambda d: d["temperament"].update(warm_cold=1.2), "temperament.warm_cold: 1.2"),
        (lambda d: d["temperament"].update(warm_cold="hot"), "temperament.warm_cold: 'hot'"),
        (lambda d: d["temperament"].update(warm_cold=True), "temperament.warm_cold: True"),
        (lambda d: d["temperament"].update(sunny=0.1), "unknown key 'sunny'"),
        (lambda d: d["temperament"].pop("formal_casual"), "'formal_casual' is missing"),
        (lambda d: d["compliance"].update(warm_cold=1), "compliance.warm_cold: needs a mapping"),
        (lambda d: d["compliance"]["warm_cold"].update(positive=-0.1), "compliance.warm_cold.positive: -0.1"),
        (lambda d: d.update(sampling_temperature=0), "sampling_temperature: 0"),
        (lambda d: d["sentences"].update(least=3), "sentences.least: 3"),
        (lambda d: d["sentences"].update(least=12), "least 12 is more than most 10"),
        (lambda d: d.update(name=""), "name: needs a word"),
    ],
)
def test_bad_specs_are_refused_by_field(tmp_path, change, says):
    data = yaml.safe_load(DEFAULT_SPEC.read_text())
    change(data)
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(UserError) as error:
        load_spec(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_malformed_yaml_names_the_line(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("format: 1\nname: [a\ntemperament: 3\n")
    with pytest.raises(UserError, match=r"spec\.yaml:3"):
        load_spec(path)
    with pytest.raises(UserError, match="no such file"):
        load_spec(tmp_path / "none.yaml")
