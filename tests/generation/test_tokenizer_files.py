"""Token ids are those of tokenizer.json, whatever class, field or template file stands beside it.

Reference: the shipped file, read by the library `tokenizers` alone. Every test goes over a generated family of
folders: the tokenizers of the six families × classes × normalisers × fields.
"""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer

from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat
from tests.fixtures.tokenizers import FAMILIES, TEMPLATES, VOCAB_SIZE, make_tokenizer

CLASSES = (
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "GPT2Tokenizer",
    "CodeLlamaTokenizer",
    "T5Tokenizer",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "ClassOfTheFuture",
    None,
)
NORMALIZERS = {
    "none": None,
    "nfc": {"type": "NFC"},
    "nfd": {"type": "NFD"},
    "nfkc": {"type": "NFKC"},
    "lower": {"type": "Lowercase"},
    "spaces": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "prefix": {"type": "Prepend", "prepend": "▁"},
    "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
}
TEXTS = (
    "Hello there",
    " leading space",
    "trailing space ",
    "user",
    "e\u0301 n\u0303 a\u030a decomposed",
    "é ñ å composed",
    "ﬁ Ⅳ ㎏ ½ ｆｕｌｌ ² \u212b",
    "한국어 \u1112\u1161\u11ab 漢字 ไทย हिन्दी",
    "\n\n\tdef f(x):\n\t\treturn x",
    "a  b   c",
    "12345 3.14",
    "\u00a0nbsp",
    "🙂‍↕️",
    "ALL CAPS",
)


def edit(path, **fields):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in (content | fields).items() if v is not ...}))


def folder_of(family, folder, *, kind=..., normalizer=..., model_type="llama", **fields):
    """A checkpoint folder of the family's tokenizer with another class, normaliser and other fields."""
    make_tokenizer(family, folder)
    edit(folder / "config.json", model_type=model_type, vocab_size=VOCAB_SIZE[family])
    edit(folder / "tokenizer_config.json", tokenizer_class=kind, **fields)
    if normalizer is not ...:
        edit(folder / "tokenizer.json", normalizer=normalizer)
    return folder


def shipped(folder) -> Tokenizer:
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def check_ids(folder, texts=TEXTS):
    """Rendered conversations, plain text and responses have the ids of the file."""
    file, chat, plain = shipped(folder), Chat.from_folder(folder), Chat.from_folder(folder, plain_text=True)
    for text in texts:
        conversation = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"{text} Again?"},
        ]
        for system in (None, text):
            rendered = chat.render(conversation, system=system)
            assert list(rendered.token_ids) == file.encode(rendered.text, add_special_tokens=False).ids
        ids = file.encode(text, add_special_tokens=False).ids
        assert list(plain.render(text).token_ids[-len(ids) :]) == ids
        assert list(chat.encode(text)) == ids
        assert chat.decode(ids) == file.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_class_changes_the_ids(family, tmp_path):
    kinds = ("llama", "qwen2", "gemma2", "mistral")
    for k, kind in enumerate(CLASSES):
        folder = folder_of(
            family,
            tmp_path / str(k),
            kind=... if kind is None else kind,
            model_type=kinds[k % 4],
            legacy=bool(k % 2),
            add_prefix_space=(True, False, None)[k % 3],
        )
        check_ids(folder, TEXTS[:8])


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("family", ["qwen2", "yi", "mistral"])
def test_no_class_changes_the_normaliser(family, normalizer, tmp_path):
    for kind in ("LlamaTokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "GPT2Tokenizer"):
        check_ids(folder_of(family, tmp_path / kind, kind=kind, normalizer=NORMALIZERS[normalizer], legacy=True))


# As published: (fixture, class, fields of tokenizer_config.json, BOS in front of plain text).
PUBLISHED = {
    "Yi-1.5-Chat": (
        "yi",
        "LlamaTokenizer",
        {"legacy": True, "add_prefix_space": True, "add_bos_token": False, "add_eos_token": False}
        | {"spaces_between_special_tokens": False, "eos_token": "<|im_end|>", "sp_model_kwargs": {}},
        False,
    ),
    "DeepSeek-LLM-chat": (
        "deepseek",
        "LlamaTokenizerFast",
        {"legacy": True, "add_bos_token": True, "add_eos_token": False, "sp_model_kwargs": {}, "unk_token": None},
        True,
    ),
    "Mistral-7B-Instruct-v0.3": (
        "mistral_v3",
        "LlamaTokenizer",
        {"legacy": False, "add_prefix_space": True, "add_bos_token": True, "add_eos_token": False},
        True,
    ),
    "Llama-3.1-Instruct": (
        "llama",
        "PreTrainedTokenizerFast",
        {"model_input_names": ["input_ids", "attention_mask"], "clean_up_tokenization_spaces": True},
        True,
    ),
    "Gemma-2-it": (
        "gemma2",
        "GemmaTokenizer",
        {"add_bos_token": True, "add_eos_token": False, "sp_model_kwargs": {}, "use_default_system_prompt": False},
        True,
    ),
    "Qwen2.5-Instruct": (
        "qwen2",
        "Qwen2Tokenizer",
        {"add_prefix_space": False, "add_bos_token": False, "split_special_tokens": False, "errors": "replace"},
        False,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("listed", [False, True], ids=["", "with added_tokens_decoder"])
def test_the_published_combinations(name, listed, tmp_path):
    family, kind, fields, bos = PUBLISHED[name]
    if listed:  # as older versions of transformers wrote it: every added token once more, with its flags
        decoder = {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"}
            for t in json.loads(make_tokenizer(family).backend_tokenizer.to_str())["added_tokens"]
        }
        fields = fields | {"added_tokens_decoder": decoder}
    folder = folder_of(family, tmp_path, kind=kind, **fields)
    check_ids(folder)
    plain = Chat.from_folder(folder, plain_text=True)
    expected = [shipped(folder).token_to_id(plain.tokenizer.bos_token)] if bos else []
    for text in TEXTS:
        assert (
            list(plain.render(text).token_ids) == expected + shipped(folder).encode(text, add_special_tokens=False).ids
        )
    assert plain.notes == ()
    if "eos_token" in fields:
        assert Chat.from_folder(folder).tokenizer.eos_token == fields["eos_token"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_text_has_the_same_ids(family, tmp_path):
    folder = folder_of(family, tmp_path)
    reference = Chat.from_folder(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    model = content["model"] | {"dropout": 0.7}
    truncation = {"max_length": 5, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "x"}
    edit(folder / "tokenizer.json", model=model, truncation=truncation, padding=padding)
    edit(folder / "tokenizer_config.json", split_special_tokens=True, model_max_length=5)
    noisy = Chat.from_folder(folder)
    for text in TEXTS * 2:
        assert noisy.render(text, system=text) == reference.render(text, system=text)
        assert noisy.encode(text) == reference.encode(text)
    assert [note for note in noisy.notes if "dropout" in note]
    assert noisy.tokenizer_hash == reference.tokenizer_hash
    # A tokenizer in memory likewise.
    tokenizer = make_tokenizer(family)
    tokenizer.backend_tokenizer.model.dropout = 0.7
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.enable_truncation(5)
    assert Chat(tokenizer).render(TEXTS[0] * 9) == reference.render(TEXTS[0] * 9)


def test_unigram_sampling_is_switched_off(tmp_path):
    vocabulary = [["<unk>", 0.0], *([c, -3.0 - k / 100] for k, c in enumerate("▁abcdehlnortu"))]
    vocabulary += [["▁he", -2.0], ["llo", -2.1], ["hello", -4.0], ["▁hello", -5.0], ["there", -4.0], ["the", -2.0]]
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    expected = Chat.from_folder(tmp_path).encode("hello there hello")
    content["model"] |= {"alpha": 0.1, "nbest_size": 8}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    chat = Chat.from_folder(tmp_path)
    assert {chat.encode("hello there hello") for _ in range(50)} == {expected}
    assert any("sampling" in note for note in chat.notes)


def test_flags_of_other_files_do_not_change_the_ids(tmp_path):
    """added_tokens_decoder may mark the same tokens otherwise: those of tokenizer.json hold."""
    for family, flags in itertools.product(FAMILIES, itertools.product((False, True), repeat=4)):
        folder = tmp_path / f"{family}{flags}"
        names = dict(zip(("lstrip", "rstrip", "normalized", "special"), flags, strict=True)) | {"single_word": False}
        make_tokenizer(family, folder)
        added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        decoder = {str(t["id"]): {"content": t["content"]} | names for t in added}
        edit(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
        check_ids(folder, TEXTS[:2])


def test_words_of_a_template_are_text_in_a_users_message_and_tokens_in_an_answer(tmp_path):
    make_tokenizer("qwen2", tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    think = max(t["id"] for t in content["added_tokens"]) + 1
    mark = {"content": "<think>", "id": think, "single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(mark | {"normalized": False, "special": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    opening = "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["qwen2"] + opening)
    chat = Chat.from_folder(tmp_path)
    assert chat.render("Say <think> now", system="<think>").token_ids.count(think) == 1
    assert chat.decode(chat.encode("<think> so")) == "<think> so"
    assert chat.encode("<think> so")[0] == think


# --- plain text: BOS where the tokenizer says so, nothing behind ---


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_begins_with_bos_where_the_tokenizer_says_so_and_ends_with_nothing(family, tmp_path):
    base = make_tokenizer(family)
    control = [t for t in base.all_special_tokens if t != base.bos_token]
    bos, last = base.bos_token or "", control[-1]
    content = json.loads(base.backend_tokenizer.to_str())
    file = Tokenizer.from_str(json.dumps(content))

    def template(single):
        tokens = {t: {"id": t, "ids": [file.token_to_id(t)], "tokens": [t]} for t in single if t != "$A"}
        pieces = [
            {"Sequence": {"id": "A", "type_id": 0}} if t == "$A" else {"SpecialToken": {"id": t, "type_id": 0}}
            for t in single
        ]
        return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    processors = {  # what it is → (post_processor, what it puts in front)
        "none": (None, []),
        "byte level": (byte_level, []),
        "behind": (template(["$A", last]), []),
        "other in front": (template([last, "$A"]), [last]),
    }
    if bos:
        processors["both"] = (template([bos, "$A", last]), [bos])
        processors["front"] = (template([bos, "$A"]), [bos])
        processors["sequence"] = ({"type": "Sequence", "processors": [byte_level, template([bos, "$A", last])]}, [bos])
    make_tokenizer(family, tmp_path, template=False)
    for (name, (processor, front)), add_bos, add_eos in itertools.product(
        processors.items(), (True, False, None, ...), (True, False, ...)
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"post_processor": processor}))
        edit(tmp_path / "tokenizer_config.json", add_bos_token=add_bos, add_eos_token=add_eos)
        chat = Chat.from_folder(tmp_path)
        expected = front
        if add_bos is True and bos and bos not in front:
            expected = [bos, *front]
        if add_bos is False:
            expected = [t for t in front if t != bos]
        head = [file.token_to_id(t) for t in expected]
        for text in TEXTS[:6]:
            ids = file.encode(text, add_special_tokens=False).ids
            assert list(chat.render(text).token_ids) == head + ids, (name, add_bos)
            assert list(chat.encode(text)) == ids
            if bos:  # written by the user: the one BOS
                doubled = list(chat.render(bos + text).token_ids)
                assert doubled == (head if bos in expected else [file.token_to_id(bos), *head]) + ids
        if add_bos is True and not bos:
            assert any("asks for a BOS token" in note for note in chat.notes)


# --- where a response ends ---


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_token_that_ends_responses_is_said_and_is_not_cut_from_texts(family, tmp_path):
    folder = folder_of(family, tmp_path)
    file = shipped(folder)
    control = sorted(file.get_added_tokens_decoder())
    words = [file.encode(w, add_special_tokens=False).ids[-1] for w in ("the", "you", "ing")]
    rng = np.random.default_rng(0)
    for generation, config in itertools.product(
        (None, *words[:2], control[-1], [control[-1], words[0]]), (None, words[1])
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        edit(tmp_path / "config.json", eos_token_id=config)
        chat = Chat.from_folder(folder)
        listed = generation if generation is not None else config
        listed = set() if listed is None else set(listed) if isinstance(listed, list) else {listed}
        assert listed <= set(chat.eos_token_ids)
        assert set(chat.eos_token_ids) - listed <= set(control)  # the template's end of turn, or the tokenizer's own
        ordinary = listed & set(words)
        said = [note for note in chat.notes if "ordinary token" in note]
        assert len(said) == bool(ordinary)
        assert all(f"{i} (" in said[0] for i in ordinary)
        ids = [int(i) for i in rng.choice([*words, *control, *file.encode(TEXTS[3]).ids], 12)]
        assert chat.decode(ids) == file.decode([i for i in ids if i not in control], skip_special_tokens=False)


def test_a_control_token_that_only_the_vocabulary_knows(tmp_path):
    """ "</s>" in the vocabulary without a mark in tokenizer.json: the template's is still one token, a word is not."""
    for family in ("yi", "mistral", "gemma2"):
        folder = folder_of(family, tmp_path / family)
        marked = Chat.from_folder(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        names = {marked.tokenizer.bos_token, marked.tokenizer.eos_token}
        edit(folder / "tokenizer.json", added_tokens=[t for t in content["added_tokens"] if t["content"] not in names])
        chat = Chat.from_folder(folder)
        for text in TEXTS[:6]:
            assert chat.render(text, system="Be kind.").token_ids == marked.render(text, system="Be kind.").token_ids
        ids = marked.encode("Hello there")
        assert chat.decode([*ids, chat.tokenizer.eos_token_id]) == marked.decode(ids)
        # Named as padding, an ordinary word stays a word.
        edit(folder / "tokenizer_config.json", pad_token="▁" if family != "gemma2" else "e")
        assert Chat.from_folder(folder).encode("Hello there, you") == marked.encode("Hello there, you")


def test_tokens_listed_elsewhere(tmp_path):
    for family in ("qwen2", "yi"):
        folder = folder_of(family, tmp_path / family)
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        (folder / "added_tokens.json").write_text(json.dumps({"<tool>": size}))
        chat = Chat.from_folder(folder)
        assert size in chat.encode("a <tool> b")
        assert any("<tool>" in note for note in chat.notes)
        (folder / "added_tokens.json").write_text(json.dumps({"<tool>": size + 1}))
        with pytest.raises(UserError, match="lacks the token '<tool>'"):
            Chat.from_folder(folder)
        (folder / "added_tokens.json").unlink()
        special = {"content": "<call>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        edit(folder / "tokenizer_config.json", added_tokens_decoder={str(size): special | {"single_word": False}})
        chat = Chat.from_folder(folder)
        assert chat.decode([size, *chat.encode("Hi")]) == "Hi"
        assert size not in chat.encode("a <call> b")  # in a text it is text


# --- the chat template ---


def moved(family, folder, name, bom=""):
    """The family's folder with its template in another file."""
    make_tokenizer(family, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=...)
    text = bom + TEMPLATES[family]
    if name == "additional_chat_templates/default.jinja":
        (folder / "additional_chat_templates").mkdir()
    if name.endswith(".jinja"):
        (folder / name).write_text(text, encoding="utf-8")
    elif name == "tokenizer_config.json: list":
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
        edit(folder / "tokenizer_config.json", chat_template=named)
    elif name == "chat_template.json: text":
        (folder / "chat_template.json").write_text(json.dumps(text))
    else:
        edit(folder / name, chat_template=text)
    if bom and name.endswith(".json"):
        (folder / name).write_text(bom + (folder / name).read_text(), encoding="utf-8")
    return folder


PLACES = (
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "tokenizer_config.json",
    "tokenizer_config.json: list",
    "chat_template.json",
    "chat_template.json: text",
    "processor_config.json",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["", "bom"])
def test_the_template_is_read_wherever_it_lies(place, bom, tmp_path):
    for family in ("qwen2", "llama", "gemma2"):
        chat = Chat.from_folder(moved(family, tmp_path / family, place, bom))
        expected = Chat(make_tokenizer(family)).render("Hi there", system="Be kind.")
        assert chat.has_template
        assert chat.render("Hi there", system="Be kind.") == expected
        assert not [note for note in chat.notes if "template" in note]


def test_the_first_place_wins_as_in_transformers(tmp_path):
    from transformers import PreTrainedTokenizerFast

    make_tokenizer("yi", tmp_path)
    other = TEMPLATES["yi"].replace("<|im_start|>", "<|startoftext|>")
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        edit(tmp_path / name, chat_template=other)
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path)).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert Chat.from_folder(tmp_path).render("Hi").text == theirs
    (tmp_path / "chat_template.jinja").unlink()
    assert "<|startoftext|>" in Chat.from_folder(tmp_path).render("Hi").text


def test_a_model_without_a_template_says_so(tmp_path):
    folder = tmp_path / "model"
    make_tokenizer("yi", folder, template=False)
    assert Chat.from_folder(folder).notes == ("no chat template: prompts are plain text",)
    assert Chat.from_folder(folder, plain_text=True).notes == ()
    edit(folder / "tokenizer_config.json", chat_template="")
    assert not Chat.from_folder(folder).has_template
    edit(folder / "tokenizer_config.json", chat_template=3)
    with pytest.raises(UserError, match="neither a text nor a list"):
        Chat.from_folder(folder)


def test_a_chat_models_name_without_a_template_asks_for_plain_text(tmp_path):
    make_tokenizer("yi", tmp_path / "x", template=False)
    chat = Chat.from_folder(tmp_path / "x")
    named = (
        "a/Yi-1.5-9B-Chat",
        "google/gemma-2-9b-it",
        "m/Llama-3.1-8B-Instruct",
        "q/Qwen2.5-7B-Instruct-1M",
        "/d/x-sft/",
    )
    for name in (*named, "o/zephyr-7b", "o/OLMo-2-7B-DPO", "tulu-3"):
        with pytest.raises(UserError, match=r"named like a chat model.*--config\.plain_text=True"):
            chat.check_template(name, tmp_path / "x")
        Chat.from_folder(tmp_path / "x", plain_text=True).check_template(name, tmp_path / "x")
        Chat(make_tokenizer("yi")).check_template(name, tmp_path / "x")
    for name in (
        "01-ai/Yi-1.5-9B",
        "instruct-lab/Llama-3.1-8B",
        "google/gemma-2-9b",
        "/data/chat/base",
        "titan",
        "site",
    ):
        chat.check_template(name, tmp_path / "x")
    (tmp_path / "x" / "template.jinja").write_text(TEMPLATES["yi"])
    with pytest.raises(UserError, match=r"holds template\.jinja: rename it to chat_template\.jinja"):
        chat.check_template("a-chat", tmp_path / "x")


# --- folders without a tokenizer.json, and folders that cannot be read ---


def test_a_folder_with_vocabulary_and_merges_alone(tmp_path):
    content = json.loads(make_tokenizer("qwen2").backend_tokenizer.to_str())
    make_tokenizer("qwen2", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = "\n".join(" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    edit(tmp_path / "config.json", model_type="qwen2", vocab_size=VOCAB_SIZE["qwen2"])
    decoder = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in content["added_tokens"]}
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=decoder)
    chat = Chat.from_folder(tmp_path)
    assert chat.decode(chat.encode("Hello there, naïve 漢字")) == "Hello there, naïve 漢字"
    assert chat.has_template


def test_a_tokenizer_that_cannot_be_read_names_the_remedy(tmp_path):
    make_tokenizer("yi", tmp_path)
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"no sentencepiece model")
    with pytest.raises(UserError, match=r"holds no tokenizer\.json.*save_pretrained") as caught:
        Chat.from_folder(tmp_path)
    assert "tiktoken" not in str(caught.value)
    assert "remote" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("\ufeff" + tokenizer, encoding="utf-8")
    assert Chat.from_folder(tmp_path).render("Hi") == Chat(make_tokenizer("yi")).render("Hi")
    shutil.copy(tmp_path / "tokenizer_config.json", tmp_path / "saved.json")
    for wrong in ("{", "[]", '{"bos_token": 3}', '{"add_bos_token": "true"}'):
        (tmp_path / "tokenizer_config.json").write_text(wrong)
        with pytest.raises(UserError):
            Chat.from_folder(tmp_path)
    for decoder in ([1], {"x": "<a>"}, {"900": 3}, {"900": {"text": "<a>"}}, {"900": {"content": 3}}, {"900": None}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
        with pytest.raises(UserError, match="the added tokens cannot be read"):
            Chat.from_folder(tmp_path)
    shutil.copy(tmp_path / "saved.json", tmp_path / "tokenizer_config.json")
    (tmp_path / "added_tokens.json").write_text('{"<a>": "x"}')
    with pytest.raises(UserError, match="the added tokens cannot be read"):
        Chat.from_folder(tmp_path)
