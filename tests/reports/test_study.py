"""The runs of a calibration and of a profile, read back with TensorBoard's accumulator."""

import numpy as np
import pytest
from tensorboard.util import tensor_util

from mood_jax.probes import evidence
from mood_jax.reports.study import evidence_scalars, write_calibration, write_profile
from tests.reports.test_tensorboard import projector_of, read

pytestmark = pytest.mark.usefixtures("unoptimised")

AXES = [("warm_cold", "warm", "cold"), ("formal_casual", "formal", "casual")]
N, D = 12, 8
SIGN, QUESTION = np.tile([1, -1], N // 2), np.repeat(np.arange(N // 2), 2)
TABLE = "axis           score\nwarm_cold      +0.61\nformal_casual  -0.20"


@pytest.fixture(scope="module")
def blocks():
    """Evidence of an axis that separates and of one without any variance, which has no direction."""
    rng = np.random.default_rng(1)
    states = [rng.normal(size=(N, D)) + 3 * SIGN[:, None], np.ones((N, D))]
    n_tokens, cut = [np.arange(N)] * 2, [np.arange(N) > 9] * 2
    some = evidence(
        states, [SIGN] * 2, [QUESTION] * 2, n_tokens, cut, in_context=states, k=3, n_boot=50, n_perm=50, n_random=50
    )
    return {axis: block for (axis, *_), block in zip(AXES, some, strict=True)}


def text_of(events, tag):
    (event,) = events.Tensors(tag)
    return tensor_util.make_ndarray(event.tensor_proto).item().decode()


def test_calibration_and_profile_are_two_runs_of_one_log(tmp_path, rng, blocks):
    projections = {axis: (rng.normal(1, 1, 6), rng.normal(-1, 1, 7)) for axis, *_ in AXES}
    scores = {axis: rng.normal(size=30) for axis, *_ in AXES}
    states = rng.normal(size=(2 * N, D)).astype(np.float32)
    labels = {"axis": [axis for axis, *_ in AXES for _ in range(N)], "pole": ["a", "b"] * N, "text": ["one\ntwo"] * 24}
    for _ in range(2):  # a re-run doubles nothing
        write_calibration(
            tmp_path,
            axes=AXES,
            projections=projections,
            states=states,
            labels=labels,
            evidence=blocks,
            table=TABLE,
        )
        means = {"warm_cold": (0.61, 0.5, 0.7), "formal_casual": (-0.2, -0.3, -0.1)}
        write_profile(tmp_path, axes=AXES, scores=scores, means=means, table=TABLE)

    calibration, profile = read(tmp_path / "calibration"), read(tmp_path / "profile")
    for axis, *poles in AXES:
        for pole, values in zip(poles, projections[axis], strict=True):
            (event,) = calibration.Histograms(f"{axis}/calibration/{pole}")
            assert event.histogram_value.bucket == np.histogram(values, bins=30)[0].tolist()
        (event,) = profile.Histograms(f"{axis}/profile")
        assert event.histogram_value.num == 30
        for name, value in zip(("mean", "ci95_low", "ci95_high"), means[axis], strict=True):
            (event,) = profile.Scalars(f"{axis}/profile_{name}")
            assert event.value == pytest.approx(value)
        block = blocks[axis]
        for tag, value in {
            "auc_re_read": block["re_read"]["auc"],
            "auc_re_read_ci95_low": block["re_read"]["auc_ci95"][0],
            "auc_in_context": block["in_context"]["auc"],
            "dprime_re_read_ci95_high": block["re_read"]["dprime_ci95"][1],
            "auc_length_only": block["length_only"]["auc"],
            "auc_length_residualised": block["length_residualised"]["auc"],
            "cutoff_share_positive": block["cutoff_share"]["positive"],
            "permutation_p_holm": block["permutation"]["p_holm"],
        }.items():
            (event,) = calibration.Scalars(f"{axis}/{tag}")
            assert event.value == pytest.approx(value), tag
        assert text_of(calibration, f"{axis}/verdict").startswith(f"**{block['verdict']}**")
    assert text_of(calibration, "table") == text_of(profile, "table") == f"```\n{TABLE}\n```"

    get = projector_of(tmp_path)
    assert get("/runs").json == ["calibration"]
    data = get("/tensor", run="calibration", name="calibration_states").data
    np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(states.shape), states)
    lines = get("/metadata", run="calibration", name="calibration_states").text.splitlines()
    assert lines[0] == "axis\tpole\ttext"
    assert lines[1] == "warm_cold\ta\tone two"
    assert len(lines) == 1 + 2 * N


def test_a_pole_without_responses_has_no_histogram(tmp_path, blocks):
    write_calibration(
        tmp_path,
        axes=AXES[:1],
        projections={"warm_cold": (np.ones(6), np.ones(0))},
        states=np.eye(2),
        labels={"pole": ["warm", "warm"]},
        evidence=blocks,
        table=TABLE,
    )
    assert read(tmp_path / "calibration").Tags()["histograms"] == ["warm_cold/calibration/warm"]


def test_a_condition_that_was_not_measured_has_no_numbers(blocks):
    block = {key: value for key, value in blocks["warm_cold"].items() if key != "in_context"}
    assert not [name for name in evidence_scalars(block) if "in_context" in name]
    assert evidence_scalars(block).items() < evidence_scalars(blocks["warm_cold"]).items()
