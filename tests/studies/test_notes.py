"""What a reader should know of a model is printed before its numbers, and kept in every record of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mood_jax import bank
from mood_jax.errors import UserError
from mood_jax.generation.model import load_model
from mood_jax.readout import grid, preset
from mood_jax.studies import calibrate, profile
from mood_jax.studies import config as study
from mood_jax.studies.collect import Protocol
from mood_jax.studies.config import study_config
from tests.studies.planted import made_calibration
from tests.studies.tiny import bank_file, checkpoint

pytestmark = pytest.mark.usefixtures("unoptimised")
NONE = "no chat template: prompts are plain text"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("notes") / "model", "yi")


def records_of(model, source) -> list[list[str]]:
    """The notes of a calibration's, an ablation's and a profile's record."""
    axes, n_layers = source.axes(), model.config.n_layers
    made = calibrate.settings(model, source, axes, Protocol(preset("last4", n_layers), 8))
    ablated = calibrate.collected_from(model, source, axes, Protocol(grid(n_layers, "float32"), 8))
    two = replace(bank.shipped(), question_records=bank.shipped().questions(set="profile")[:3])
    calibration = made_calibration(np.random.default_rng(0), model.config.d_model, made)
    measured = profile.profile(model, calibration, source=two, max_new_tokens=1)
    found = [note for note in measured.notes if not note.startswith(("the chat template adds", "100% of the"))]
    return [made.get("notes", []), ablated.get("notes", []), found]


def test_notes_are_printed_and_kept(folder, tmp_path, capsys):
    source = bank.load(bank_file(tmp_path / "bank.yaml"))
    base = shutil.copytree(folder, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    word = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["e"]
    stale = shutil.copytree(folder, tmp_path / "stale")
    (stale / "generation_config.json").write_text(json.dumps({"eos_token_id": word}))
    for where, said in ((folder, []), (base, [NONE]), (stale, [f"end-of-sequence id {word} ('e') is an ordinary"])):
        model = study.load(study_config(str(where), dtype="float32"))
        lines = [x.removeprefix("note: ") for x in capsys.readouterr().out.splitlines() if x.startswith("note: ")]
        for notes in (lines, list(model.notes), *records_of(model, source)):
            assert len(notes) == len(said)
            assert all(note.startswith(start) for note, start in zip(notes, said, strict=True))


def test_a_chat_model_is_not_read_as_plain_text_in_silence(folder, tmp_path):
    for name in ("Yi-1.5-9B-Chat", "models--google--gemma-2-9b-it/snapshots/0123abc"):
        named = shutil.copytree(folder, tmp_path / name)
        assert load_model(str(named), dtype="float32").chat.has_template
        (named / "chat_template.jinja").unlink()
        with pytest.raises(UserError, match=r"named like a chat model.*--config\.plain_text=True"):
            study.load(study_config(str(named), dtype="float32"))
        (named / "model.safetensors").unlink()  # said before the weights are looked at
        with pytest.raises(UserError, match="named like a chat model"):
            load_model(str(named), dtype="float32")
