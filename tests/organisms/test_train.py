"""Training: resuming gives the same bytes, the export is what everything else loads, bad settings are refused."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tokenizers import Tokenizer

from mood_jax.errors import UserError
from mood_jax.generation.model import forward, load_model
from mood_jax.models.decoder import init_params
from mood_jax.models.families import decoder_config
from mood_jax.organisms import data, realised
from mood_jax.organisms.export import export, export_identity, file_hashes, read_realised, write_realised
from mood_jax.organisms.grammar import AXES
from mood_jax.organisms.sample import sampling_from
from mood_jax.organisms.shapes import hf_config
from mood_jax.organisms.spec import FAMILIES, SPECS, load_spec
from mood_jax.organisms.start import start_from
from mood_jax.organisms.tokenizer import identity_mark, train_tokenizer
from mood_jax.organisms.train import TrainConfig, finish, organism_config, train

pytestmark = pytest.mark.usefixtures("unoptimised")

SIZE = {
    "vocab_size": 512,
    "d_model": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "d_ff": 16,
    "max_positions": 512,
}
FEW = {"steps": 3, "batch_size": 2, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 1, "gap_every": 100}


def tiny(folder: Path, name: str = "default", identities: int = 1, **changes) -> TrainConfig:
    """A run of a few steps with a shipped spec's first identities at a tiny size."""
    spec = yaml.safe_load((SPECS / f"{name}.yaml").read_text())
    spec |= {"size": SIZE, "identities": spec["identities"][:identities]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return TrainConfig(**(FEW | {"spec": str(path), "final_samples": 1, "free_samples": 4} | changes))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    return tiny(tmp_path_factory.mktemp("spec"), "qwen2", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("undisturbed")
    params, hf, tokenizer = train(config, folder)
    export(folder / "export", params, hf, tokenizer, config.spec_path)
    return folder, params


def test_interrupted_run_resumes_to_the_same_bytes(undisturbed, config, tmp_path):
    folder, params = undisturbed
    before, _, _ = train(config, tmp_path, stop_after=2)
    again, hf, tokenizer = train(config, tmp_path)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(x, y)
    assert not np.array_equal(before["embedding"], again["embedding"])  # there was something left to do
    export(tmp_path / "export", again, hf, tokenizer, config.spec_path)
    assert file_hashes(tmp_path / "export") == file_hashes(folder / "export")


def test_tensorboard_holds_the_loss(undisturbed):
    folder, _ = undisturbed
    (path,) = (folder / "tensorboard").iterdir()
    tags = ("train/loss", "train/effect_loss", "train/shown_loss", "train/wanted_loss")  # no dialogues, nothing heard
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


def test_finish_measures_and_untrained_organism_is_not_shipped(undisturbed, config):
    folder, _ = undisturbed
    made, whole = finish(config, folder)
    spec = load_spec(config.spec_path)
    assert read_realised(made)["identities"].keys() == {i.name for i in spec.identities}
    for identity in spec.identities:
        truth = whole["identities"][identity.name]
        assert truth["uninstructed"].keys() == set(AXES)
        assert any("planted to obey" in w for w in realised.shortcomings(truth, identity))
        assert realised.format_table(truth).count("\n") == 1 + len(AXES)
    kept = [p.stat().st_mtime_ns for p in sorted((folder / "realised").iterdir())]
    assert finish(config, folder)[1].keys() == whole.keys()
    assert [p.stat().st_mtime_ns for p in sorted((folder / "realised").iterdir())] == kept  # measured once


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_its_export_is_what_transformers_reads(name, tmp_path):
    from transformers import AutoModelForCausalLM

    made = tiny(tmp_path, name, 2, steps=2)
    params, hf, tokenizer = train(made, tmp_path / "run")
    export(tmp_path / "run" / "export", params, hf, tokenizer, made.spec_path)
    second = load_spec(made.spec_path).identities[1].name
    folder = export_identity(tmp_path / "run" / "export", second, tmp_path / "second")
    ours = load_model(str(folder), dtype="float32")
    assert ours.config == decoder_config(hf)
    prompt = ours.chat.render("Hello?")
    assert prompt.token_ids[0] == tokenizer.token_to_id(identity_mark(1))
    assert list(prompt.token_ids).count(prompt.token_ids[0]) == 1
    ids = np.array([prompt.token_ids])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    theirs = reference(torch.from_numpy(ids)).logits.detach().numpy()
    logits, _ = forward(ours, ids, np.ones(ids.shape, bool), sites="none")
    assert np.abs(logits - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_a_run_may_start_from_another_organism(undisturbed, tmp_path):
    folder, _ = undisturbed
    made = tiny(tmp_path, "yi", 3, start_from=str(folder / "export"))  # no biases, an untied head, more identities
    spec = load_spec(made.spec_path)
    tokenizer = train_tokenizer(data.shipped_corpus(spec).texts(0, 3000), SIZE["vocab_size"], 3)
    fresh = init_params(decoder_config(hf_config(spec, tokenizer)), jax.random.key(0))
    with pytest.raises(UserError, match="has block_0/attention/k_bias, which this spec's family lacks"):
        start_from(folder / "export", fresh, tokenizer, spec)

    made = tiny(tmp_path, "qwen2", 3, start_from=str(folder / "export"))
    same = load_spec(made.spec_path)
    spec = dataclasses.replace(same, name="another")
    other = train_tokenizer(data.shipped_corpus(spec).texts(0, 3000), SIZE["vocab_size"], 3)
    theirs = Tokenizer.from_file(str(folder / "export" / "tokenizer.json"))
    fresh = init_params(decoder_config(hf_config(spec, other)), jax.random.key(0))
    begun = start_from(folder / "export", fresh, other, spec)
    stored = load_model(str(folder / "export"), dtype="float32").params
    assert np.array_equal(begun["block_0"]["attention"]["q"], stored["block_0"]["attention"]["q"])
    mine, own = begun["embedding"][other.token_to_id(".")], stored["embedding"][theirs.token_to_id(".")]
    assert np.array_equal(mine, own)
    marks = [other.token_to_id(identity_mark(i)) for i in range(3)]
    assert np.array_equal(begun["embedding"][np.array(marks)], fresh["embedding"][np.array(marks)])

    # its own earlier run: the two identities that it had go on with their marks, the third is new
    again = start_from(folder / "export", fresh, other, same)["embedding"]
    had = [theirs.token_to_id(identity_mark(i)) for i in range(2)]
    assert np.array_equal(again[np.array(marks[:2])], stored["embedding"][np.array(had)])
    assert np.array_equal(again[marks[2]], fresh["embedding"][marks[2]])
    train(made, tmp_path / "run", stop_after=1)


def test_shared_keys_and_values_are_copied_to_a_head_each_which_changes_no_logit(tmp_path):
    few = tiny(tmp_path, "llama", 1, steps=1, warmup_steps=1)
    params, hf, tokenizer = train(few, tmp_path / "few")
    export(tmp_path / "few" / "export", params, hf, tokenizer, few.spec_path)
    text = Path(few.spec).read_text().replace("n_kv_heads: 1", "n_kv_heads: 2")
    (tmp_path / "many.yaml").write_text(text)
    spec = load_spec(tmp_path / "many.yaml")
    wide = hf_config(spec, tokenizer)
    fresh = init_params(decoder_config(wide), jax.random.key(1))
    begun = start_from(tmp_path / "few" / "export", fresh, tokenizer, spec)
    export(tmp_path / "wide", begun, wide, tokenizer, tmp_path / "many.yaml")
    ids = np.random.default_rng(0).integers(10, 500, (2, 9))
    one, two = (
        forward(load_model(str(p), dtype="float32"), ids, np.ones(ids.shape, bool), sites="none")[0]
        for p in (tmp_path / "few" / "export", tmp_path / "wide")
    )
    assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()


def test_starting_from_another_size_or_from_nothing_is_refused(undisturbed, tmp_path):
    folder, _ = undisturbed
    large = tiny(tmp_path, "qwen2", 1, start_from=str(folder / "export"))
    text = Path(large.spec).read_text().replace("d_ff: 16", "d_ff: 32")
    Path(large.spec).write_text(text)
    with pytest.raises(UserError, match="is of another size than this spec's"):
        train(large, tmp_path / "large")
    with pytest.raises(UserError, match=r"is no organism: it holds no spec.yaml; .* default"):
        train(tiny(tmp_path, "qwen2", 1, start_from=str(tmp_path / "nothing")), tmp_path / "none")


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


def test_every_config_trains_the_spec_of_its_name():
    folder = Path(__file__).parents[2] / "configs" / "organisms"
    names = {path.stem for path in folder.glob("*.py")}
    assert names == {*FAMILIES, "default", "no_style"}
    for name in names:
        made = runpy.run_path(str(folder / f"{name}.py"))["get_config"]()
        config = TrainConfig(**made)
        assert load_spec(config.spec_path).name == name
        assert config.start_from in ("", "default", "llama")


def test_a_config_with_an_unknown_field_is_refused():
    with pytest.raises(UserError, match="no field 'step'"):
        organism_config(step=3)


@pytest.mark.parametrize("left", ["checkpoints/200", "realised/a.json"])
def test_what_a_run_left_is_not_taken_without_its_claim(tmp_path, left):
    (tmp_path / left).mkdir(parents=True)
    config = TrainConfig()
    with pytest.raises(UserError, match=r"lacks run\.json, which says what .* is of; use another --workdir"):
        train(config, tmp_path)
    assert not (tmp_path / "run.json").exists()
