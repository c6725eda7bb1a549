"""Which organisms are measured, and their scores with the length of the responses taken out."""

from types import SimpleNamespace

import numpy as np
import pytest
import statsmodels.api as sm

from mood_jax.errors import UserError
from mood_jax.organisms.export import WEIGHTS
from mood_jax.organisms.spec import SPECS, load_spec
from mood_jax.studies.subjects import _length_out, _shows_constancy, chosen, reference_of


def test_organisms_and_identities_are_named_by_organism_and_identity():
    every = [f"dose_{k}" for k in range(1, 10)]
    assert chosen(["llama"]) == {"llama": every}
    assert chosen(["llama/dose_3", "llama/dose_1", "llama/dose_3"]) == {"llama": ["dose_3", "dose_1"]}
    folder = str(WEIGHTS / "llama")
    assert chosen([folder, "no_style"]) == {folder: every, "no_style": ["no_style"]}
    assert chosen([f"{folder}/dose_2"]) == {folder: ["dose_2"]}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "is no organism: it holds no spec.yaml; .* llama"),
        ("llama/dose_0", "has no identity 'dose_0'; it has dose_1"),
        ("nothing/dose_1", "nothing is no organism"),
    ],
)
def test_unknown_subjects_are_refused(name, says):
    with pytest.raises(UserError, match=says):
        chosen([name])


def test_two_organisms_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"two organisms are called 'llama': llama and .*llama; name one anew"):
        chosen(["llama/dose_1", "yi", str(WEIGHTS / "llama")])


def test_the_reference_obeys_every_instruction():
    assert reference_of(load_spec(SPECS / "qwen2.yaml")).name == "obedient"
    with pytest.raises(UserError, match="no identity obeys every instruction"):
        reference_of(load_spec(SPECS / "default.yaml"))


def test_sets_are_crossed_for_the_identity_that_never_changes_and_those_that_always_do():
    spec = load_spec(SPECS / "deepseek.yaml")
    assert [i.name for i in spec.identities if _shows_constancy(spec, i)] == ["stable", "volatile"]
    spec = load_spec(SPECS / "yi.yaml")
    assert not any(_shows_constancy(spec, i) for i in spec.identities)


def test_length_is_taken_out_as_an_analysis_of_covariance_does(rng):
    """Against ordinary least squares of projection on pole and length; other sets and empty responses stay out."""
    n, d = 60, 5
    directions = rng.normal(size=(2, d))
    axis = np.repeat(["a", "b"], n)
    sign = np.tile([1, -1], n)
    set_ = np.where(rng.random(2 * n) < 0.2, "eval", "A")
    tokens = rng.integers(20, 80, 2 * n) + 15 * (sign > 0)
    tokens[7] = 0
    states = rng.normal(size=(2 * n, d)) + 0.05 * tokens[:, None] + sign[:, None]
    columns = {"axis": axis, "sign": sign, "set": set_, "n_tokens": tokens}
    made = SimpleNamespace(
        collected=SimpleNamespace(column=columns.__getitem__),
        h={"in_context": states},
        calibration=SimpleNamespace(directions=directions),
    )
    free, free_tokens = rng.normal(size=(40, 2)) + 3, rng.integers(20, 90, 40)
    found = SimpleNamespace(
        axes=[SimpleNamespace(axis=SimpleNamespace(id=a), scores={"raw": free[:, k]}) for k, a in enumerate("ab")],
        n_tokens=tuple(free_tokens),
    )
    got = _length_out(made, found)  # pyright: ignore[reportArgumentType]
    for k, a in enumerate("ab"):
        use = (axis == a) & (set_ == "A") & (tokens > 0)
        x, t = states[use] @ directions[k], tokens[use]
        fit = sm.OLS(x, np.stack([sign[use] > 0, sign[use] < 0, t], axis=1).astype(float)).fit().params
        middle = np.concatenate([t[sign[use] > 0], t[sign[use] < 0]]).mean()
        high, low = fit[0] + fit[2] * middle, fit[1] + fit[2] * middle
        mean = free[:, k].mean() - fit[2] * (free_tokens.mean() - middle)
        assert got[k] == pytest.approx(2 * (mean - low) / (high - low) - 1, rel=1e-6)
