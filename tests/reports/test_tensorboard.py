"""Everything that the writer writes, read back by TensorBoard's own readers."""

import io
import types

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from tensorboard.plugins.text.text_plugin import TextPlugin
from tensorboard.util import tensor_util
from werkzeug.test import Client

from mood_jax.reports.tensorboard import Writer, encode_png


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(("scalars", "histograms", "images"), 0))
    return accumulator.Reload()


def context_of(logdir):
    """What a TensorBoard server gives its plugins, for the runs below a folder."""
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    return TBContext(data_provider=provider, logdir=str(logdir), multiplexer=multiplexer, flags=types.SimpleNamespace())


def projector_of(logdir):
    """A client of the projector plugin: get("/info", run=...)."""
    apps = ProjectorPlugin(context_of(logdir)).get_plugin_apps()

    def get(route, **query):
        response = Client(apps[route]).get(route, query_string=query)
        assert response.status_code == 200, response.text
        return response

    return get


def test_scalars(tmp_path):
    with Writer(tmp_path / "new" / "run") as writer:
        writer.scalar("warm_cold/auc", 0.75)
        for step, value in enumerate((3.0, -2.5, 1e-30)):
            writer.scalar("loss", value, step)
    events = read(tmp_path / "new" / "run")
    assert [(e.step, e.value) for e in events.Scalars("warm_cold/auc")] == [(0, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 3.0), (1, -2.5), (2, float(np.float32(1e-30)))]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_scalar_that_float32_does_not_hold_is_refused_by_its_tag(tmp_path, value):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="axis/auc"):
        writer.scalar("axis/auc", value)
    assert not read(tmp_path).Tags()["scalars"]


def test_histogram_is_numpys(tmp_path, rng):
    values = rng.normal(3, 2, (7, 100))
    with Writer(tmp_path) as writer:
        writer.histogram("scores", values.astype(np.float32), step=4)
    (event,) = read(tmp_path).Histograms("scores")
    histogram, flat = event.histogram_value, values.astype(np.float32).astype(np.float64).ravel()
    counts, edges = np.histogram(flat, bins=30)
    assert event.step == 4
    assert histogram.bucket == counts.tolist()
    assert histogram.bucket_limit == edges[1:].tolist()
    assert (histogram.min, histogram.max, histogram.num) == (flat.min(), flat.max(), flat.size)
    np.testing.assert_allclose((histogram.sum, histogram.sum_squares), (flat.sum(), (flat**2).sum()), rtol=1e-12)


@pytest.mark.parametrize("values", [[2.5], [2.5] * 9, [0.0, 0.0], [1.0, np.nextafter(1.0, 2.0)]])
def test_histogram_of_values_without_spread_is_one_bin(tmp_path, values):
    with Writer(tmp_path) as writer:
        writer.histogram("constant", np.array(values))
    (event,) = read(tmp_path).Histograms("constant")
    assert event.histogram_value.bucket == [len(values)]
    assert event.histogram_value.bucket_limit == [max(values)]
    assert event.histogram_value.min == min(values)


def test_histogram_of_large_integers(tmp_path):
    with Writer(tmp_path) as writer:
        writer.histogram("counts", np.array([2**20, 2**20 + 60]))
    (event,) = read(tmp_path).Histograms("counts")
    assert event.histogram_value.bucket == [1, *[0] * 28, 1]


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_histogram_without_finite_values_is_refused_by_its_tag(tmp_path, values):
    with Writer(tmp_path) as writer, pytest.raises(ValueError, match="axis/scores"):
        writer.histogram("axis/scores", np.array(values))


@pytest.mark.parametrize("shape", [(5, 3, 3), (1, 1, 3), (40, 64, 3)])
def test_image_decodes_to_the_same_pixels(tmp_path, rng, shape):
    rgb = rng.integers(0, 256, shape, np.uint8)
    with Writer(tmp_path) as writer:
        writer.image("map", rgb, step=2)
    (event,) = read(tmp_path).Images("map")
    assert (event.step, event.height, event.width) == (2, *shape[:2])
    image = Image.open(io.BytesIO(event.encoded_image_string))
    assert (image.format, image.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(image), rgb)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2, 3), "B")]
)
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        encode_png(image)


def test_text(tmp_path):
    text = "```\nAchse  Wert\nwärme  +0.61\n```"
    with Writer(tmp_path / "run") as writer:
        writer.text("table", text)
    (event,) = read(tmp_path / "run").Tensors("table")
    assert tensor_util.make_ndarray(event.tensor_proto).item().decode() == text
    (shown,) = TextPlugin(context_of(tmp_path)).text_impl(RequestContext(), "run", "table", "", True)
    assert "<pre><code>Achse  Wert\nwärme  +0.61\n</code></pre>" in shown["text"]


def test_projector_serves_several_clouds_with_their_labels(tmp_path, rng):
    clouds = {"in_context": rng.normal(size=(6, 5)).astype(np.float32), "re-read": np.zeros((3, 2), np.float32)}
    with Writer(tmp_path / "run") as writer:
        columns = {"axis": ["warm_cold"] * 6, "text": ["a\tb\nc\u2028d", "", "wärme", "x ", "–", '"q"']}
        writer.projector("in_context", clouds["in_context"], columns)
        writer.projector("re-read", clouds["re-read"], {"pole": ["warm", "", "cold"]})
    get = projector_of(tmp_path)
    assert get("/runs").json == ["run"]
    shown = {e["tensorName"]: e for e in get("/info", run="run").json["embeddings"]}
    assert {name: tuple(e["tensorShape"]) for name, e in shown.items()} == {n: v.shape for n, v in clouds.items()}
    for name, vectors in clouds.items():
        data = np.frombuffer(get("/tensor", run="run", name=name).data, np.float32)
        np.testing.assert_array_equal(data.reshape(vectors.shape), vectors)
    lines = get("/metadata", run="run", name="in_context").text.splitlines()
    assert [line.split("\t") for line in lines] == [
        ["axis", "text"],
        *(["warm_cold", text] for text in ("a b c d", "–", "wärme", "x", "–", '"q"')),
    ]
    assert get("/metadata", run="run", name="re-read").text == "warm\n–\ncold\n"  # one column has no header


def test_projector_without_labels(tmp_path):
    with Writer(tmp_path / "run") as writer:
        writer.projector("bare", np.eye(3), {})
    (embedding,) = projector_of(tmp_path)("/info", run="run").json["embeddings"]
    assert "metadataPath" not in embedding


@pytest.mark.parametrize(
    ("name", "vectors", "columns", "said"),
    [
        ("../x", np.eye(2), {}, "'../x'"),
        ("taken", np.eye(2), {}, "taken was written"),
        ("flat", np.ones(3), {}, r"\(3,\)"),
        ("nan", np.full((2, 2), np.nan), {}, "finite"),
        ("short", np.eye(2), {"pole": ["warm"]}, "1 labels of pole for 2"),
    ],
)
def test_projector_mistakes(tmp_path, name, vectors, columns, said):
    with Writer(tmp_path) as writer:
        writer.projector("taken", np.eye(2), {})
        with pytest.raises(ValueError, match=said):
            writer.projector(name, vectors, columns)


def test_a_rerun_replaces_its_own_log_and_no_other(tmp_path):
    foreign = tmp_path / "events.out.tfevents.1.elsewhere"
    foreign.write_bytes(b"")
    for value, cloud in ((1.0, "old"), (2.0, "new")):
        with Writer(tmp_path) as writer:
            writer.scalar("auc", value)
            writer.projector(cloud, np.eye(2), {"pole": ["warm", "cold"]})
    assert [e.value for e in read(tmp_path).Scalars("auc")] == [2.0]
    assert {p.name for p in (tmp_path / "projector").iterdir()} == {"new.tsv", "new.metadata.tsv"}
    assert len(list(tmp_path.iterdir())) == 4  # the foreign file, ours, the projector's folder and configuration
    assert foreign.exists()
    with Writer(tmp_path):
        pass
    assert not (tmp_path / "projector_config.pbtxt").exists()


def test_an_error_leaves_the_earlier_log(tmp_path):
    with Writer(tmp_path) as writer:
        writer.scalar("auc", 1.0)
        writer.projector("cloud", np.eye(2), {})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail():
        with Writer(tmp_path) as writer:
            writer.projector("cloud", np.ones((2, 2)), {})
            writer.scalar("auc", np.nan)

    with pytest.raises(ValueError, match="auc"):
        fail()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    writer = Writer(tmp_path)
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(writer._records, "_writer", full)
        monkeypatch.setattr(writer, "_file", full)
        writer.scalar("auc", 1.0)
        with pytest.raises(OSError, match="No space left"):
            writer.close()
    assert not list(tmp_path.iterdir())
