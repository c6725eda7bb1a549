"""Training: resuming gives the same bytes, the export is what everything else loads, bad settings are refused."""

import json

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mood_jax.errors import UserError
from mood_jax.generation.model import forward, load_model
from mood_jax.organisms import realised
from mood_jax.organisms.export import export, file_hashes, read_realised, write_realised
from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.spec import DEFAULT_SPEC, load_spec
from mood_jax.organisms.train import TrainConfig, finish, sampling_from, train

TINY = TrainConfig(
    vocab_size=512,
    d_model=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    d_ff=16,
    max_positions=512,
    steps=3,
    batch_size=2,
    max_tokens=224,
    warmup_steps=1,
    log_every=1,
    checkpoint_every=1,
    gap_every=100,
    final_samples=1,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    params, hf, tokenizer = train(TINY, folder)
    export(folder / "export", params, hf, tokenizer, DEFAULT_SPEC)
    return folder, params


def test_interrupted_run_resumes_to_the_same_bytes(undisturbed, tmp_path):
    folder, params = undisturbed
    before, _, _ = train(TINY, tmp_path, stop_after=2)
    again, hf, tokenizer = train(TINY, tmp_path)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(x, y)
    assert not np.array_equal(before["embedding"], again["embedding"])  # there was something left to do
    export(tmp_path / "export", again, hf, tokenizer, DEFAULT_SPEC)
    assert file_hashes(tmp_path / "export") == file_hashes(folder / "export")


def test_tensorboard_holds_the_loss(undisturbed):
    folder, _ = undisturbed
    (path,) = (folder / "tensorboard").iterdir()
    tags = ("train/loss", "train/effect_loss", "train/shown_loss")
    values = [(e.step, v.tag) for e in EventFileLoader(str(path)).Load() for v in e.summary.value]
    assert values == [(step, tag) for step in (1, 2, 3) for tag in tags]


def test_folder_of_another_run_is_refused(undisturbed):
    folder, _ = undisturbed
    other = TrainConfig(**{**json.loads((folder / "run.json").read_text())["config"], "seed": 1})
    with pytest.raises(UserError, match="another config"):
        train(other, folder)


@pytest.mark.parametrize("field", ["steps", "batch_size", "learning_rate"])
def test_bad_settings_are_refused(field):
    with pytest.raises(UserError, match=f"config.{field}"):
        TrainConfig(**{field: 0})


def test_export_is_the_model_in_bfloat16(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, params = undisturbed
    ours = load_model(str(folder / "export"), dtype="float32")
    rounded = np.asarray(params["embedding"].astype("bfloat16").astype("float32"))
    assert np.array_equal(ours.params["embedding"], rounded)
    tokenizer = AutoTokenizer.from_pretrained(folder / "export")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(folder / "export", dtype="float32")(ids).logits.detach().numpy()
    logits, _ = forward(ours, ids.numpy(), np.ones(ids.shape, bool), sites="none")
    assert np.abs(logits - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_finish_measures_and_untrained_organism_is_not_shipped(undisturbed):
    folder, _ = undisturbed
    made, truth = finish(TINY, folder)
    assert read_realised(made)["uninstructed"].keys() == set(AXES)
    wanting = realised.shortcomings(truth, load_spec())
    assert any("planted to obey" in w for w in wanting)
    assert realised.format_table(truth).count("\n") == 1 + len(AXES)


def test_realised_truth_is_bound_to_its_files(undisturbed, tmp_path):
    folder, _ = undisturbed
    for name in ("model.safetensors", "tokenizer.json", "spec.yaml"):
        (tmp_path / name).write_bytes((folder / "export" / name).read_bytes())
    with pytest.raises(UserError, match=r"no realised\.json"):
        read_realised(tmp_path)
    write_realised(tmp_path, {"n": 1})
    assert read_realised(tmp_path)["n"] == 1
    (tmp_path / "spec.yaml").write_text("other\n")
    with pytest.raises(UserError, match=r"another spec\.yaml"):
        read_realised(tmp_path)


def test_sampling_depends_on_the_seed_and_on_the_system_prompt(undisturbed):
    folder, _ = undisturbed
    sample = sampling_from(folder / "export")
    prompts = [realised.Prompt(None, "What is a lamp?"), realised.Prompt("Be warm.", "What is a lamp?")]
    one = sample(prompts, 0)
    assert one == sample(prompts, 0)
    assert one != sample(prompts, 1)
    assert one[0] != one[1]
