"""Prompts as the six families' templates read them. Reference: transformers' own apply_chat_template and encoding."""

from __future__ import annotations

import json
import time
from datetime import datetime

import numpy as np
import pytest
from tokenizers import normalizers, processors
from transformers.utils import chat_template_utils

from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat
from tests.fixtures.tokenizers import FAMILIES, TEMPLATES, VOCAB_SIZE, make_tokenizer

ALL = (*FAMILIES, "mistral_v3")
CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi there?"},
    {"role": "assistant", "content": "Hello, naïve 漢字!"},
    {"role": "user", "content": "Bye."},
]
EXPECTED = {
    "qwen2": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi there?<|im_end|>\n"
    "<|im_start|>assistant\nHello, naïve 漢字!<|im_end|>\n<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\n",
    "llama": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello, naïve 漢字!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "deepseek": "<｜begin▁of▁sentence｜>Be kind.\n\nUser: Hi there?\n\nAssistant: Hello, naïve 漢字!"
    "<｜end▁of▁sentence｜>User: Bye.\n\nAssistant:",
    "gemma2": "<bos><start_of_turn>user\nBe kind.\n\nHi there?<end_of_turn>\n<start_of_turn>model\n"
    "Hello, naïve 漢字!<end_of_turn>\n<start_of_turn>user\nBye.<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] Be kind.\n\nHi there? [/INST]Hello, naïve 漢字!</s>[INST] Bye. [/INST]",
    "mistral_v3": "<s>[INST] Hi there?[/INST] Hello, naïve 漢字!</s>[INST] Be kind.\n\nBye.[/INST]",
}
EXPECTED["yi"] = EXPECTED["qwen2"]
MERGES = ("gemma2", "mistral")
END_OF_TURN = {"qwen2": "<|im_end|>", "llama": "<|eot_id|>", "yi": "<|im_end|>", "gemma2": "<end_of_turn>"}
EOS = {
    "qwen2": ["<|endoftext|>", "<|im_end|>"],
    "llama": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "yi": ["<|endoftext|>", "<|im_end|>"],
    "gemma2": ["<eos>", "<end_of_turn>"],
    "mistral": ["</s>"],
    "mistral_v3": ["</s>"],
}
HAS_BOS = ("llama", "deepseek", "gemma2", "mistral", "mistral_v3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint folder a family: tokenizer, config.json, generation_config.json where there are several EOS."""
    root = tmp_path_factory.mktemp("checkpoints")
    kinds = {"qwen2": "qwen2", "gemma2": "gemma2", "mistral": "mistral", "mistral_v3": "mistral"}
    for family in ALL:
        make_tokenizer(family, root / family)
        config = {"model_type": kinds.get(family, "llama"), "vocab_size": VOCAB_SIZE[family]}
        (root / family / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def chats(folders):
    return {family: Chat.from_folder(folders / family) for family in ALL}


def with_template(template: str, family: str = "qwen2", **options) -> Chat:
    tokenizer = make_tokenizer(family)
    tokenizer.chat_template = template
    return Chat(tokenizer, **options)


def names(chat: Chat, ids) -> list[str]:
    return chat.tokenizer.convert_ids_to_tokens(list(ids))


@pytest.mark.parametrize("family", ALL)
def test_conversation_is_rendered_as_the_family_writes_it(family, chats):
    chat = chats[family]
    rendered = chat.render(CONVERSATION)
    assert rendered.text == EXPECTED[family]
    # The reference: transformers on the conversation that the template can take.
    reference = CONVERSATION
    if family in MERGES:
        reference = [{"role": "user", "content": "Be kind.\n\nHi there?"}, *CONVERSATION[2:]]
    expected = make_tokenizer(family).apply_chat_template(
        reference, add_generation_prompt=True, date_string="26 Jul 2024", return_dict=False
    )
    assert list(rendered.token_ids) == expected
    assert chat.has_template
    assert chat.merges_system == (family in MERGES)
    assert rendered.notes == (("system merged into user",) if family in MERGES else ())
    assert chat.render(CONVERSATION[1:], system="Be kind.") == rendered
    assert max(rendered.token_ids) < VOCAB_SIZE[family]


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("plain_text", [False, True])
def test_one_bos_whatever_the_user_writes(family, plain_text, folders):
    chat = Chat.from_folder(folders / family, plain_text=plain_text)
    bos, bos_id = chat.tokenizer.bos_token, chat.tokenizer.bos_token_id
    if bos is None:  # Qwen has none; nothing may invent one
        assert "<|endoftext|>" not in names(chat, chat.render("Hello").token_ids)
        return
    plain, doubled = chat.render("Hello there"), chat.render(bos + "Hello there")
    expected = 1 if family in HAS_BOS else 0
    assert plain.token_ids.count(bos_id) == expected
    assert plain.token_ids[:1] == ((bos_id,) if expected else plain.token_ids[:1])
    assert doubled.text == plain.text
    # A base model whose tokenizer adds no BOS (Yi) gets the one that the user writes, as with transformers.
    assert doubled.token_ids == ((bos_id,) if plain_text and not expected else ()) + plain.token_ids
    assert doubled.notes == ("BOS text at the start taken for the BOS",)
    inside = chat.render([{"role": "user", "content": f"Hello {bos} there"}], system="Be kind.")
    assert inside.token_ids.count(bos_id) == expected
    assert bos in inside.text


@pytest.mark.parametrize("family", ALL)
def test_end_of_sequence_ids(family, chats):
    chat = chats[family]
    assert names(chat, chat.eos_token_ids) == EOS[family]
    assert chat.eos_token_ids == tuple(sorted(chat.eos_token_ids))
    assert chat.pad_token_id == (
        chat.eos_token_ids[0] if chat.tokenizer.pad_token_id is None else chat.tokenizer.pad_token_id
    )


@pytest.mark.parametrize("family", sorted(END_OF_TURN))
def test_end_of_turn_comes_from_the_template_itself(family):
    tokenizer = make_tokenizer(family)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN[family])
    tokenizer.eos_token = "<unk>" if family in ("yi", "gemma2") else "Ċ"  # a tokenizer that says nothing of turns
    assert Chat(tokenizer).eos_token_ids == tuple(sorted({end, tokenizer.eos_token_id}))
    # Plain text is not a chat: the end of turn ends nothing there, unless the checkpoint's configuration lists it.
    assert Chat(tokenizer, plain_text=True).eos_token_ids == (tokenizer.eos_token_id,)
    assert end in Chat(tokenizer, [end], plain_text=True).eos_token_ids


def test_end_of_turn_written_only_between_turns_and_not_at_all():
    turn = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    between = turn + "{% if not loop.last %}{{ '<|endoftext|>\n' }}{% endif %}{% endfor %}"
    none = turn + "{{ '\n' }}{% endfor %}"
    tokenizer = make_tokenizer("qwen2")
    end, own = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert with_template(between).eos_token_ids == (end, own)
    assert with_template(none).eos_token_ids == (own,)


def test_generation_config_rules_and_config_fills_in(tmp_path):
    make_tokenizer("deepseek", tmp_path)
    end = make_tokenizer("deepseek").eos_token_id  # the template's end of turn, and the tokenizer's own EOS
    cases = [  # generation_config.json, config.json → with template, plain text
        ([9, -1, 5], 7, (5, 9, end), (5, 9)),
        (5, [7, 8], (5, end), (5,)),
        (None, 7, (7, end), (7,)),
        ([-1], [8, 7], (7, 8, end), (7, 8)),
        ([], None, (end,), (end,)),
        (None, -1, (end,), (end,)),
        (end, 7, (end,), (end,)),
    ]
    for generation, config, chatting, plain in cases:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": config}))
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        assert Chat.from_folder(tmp_path).eos_token_ids == chatting
        assert Chat.from_folder(tmp_path, plain_text=True).eos_token_ids == plain
    for name in ("generation_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": "end"}))
        with pytest.raises(UserError, match=rf"{name}: eos_token_id is 'end'"):
            Chat.from_folder(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("family", ALL)
def test_plain_text_of_base_models(family, tmp_path, folders):
    make_tokenizer(family, tmp_path, template=False)
    base, forced = Chat.from_folder(tmp_path), Chat.from_folder(folders / family, plain_text=True)
    text = "Be kind.\n\nHi there?\n\nHello, naïve 漢字!\n\nBye."
    for chat in (base, forced):
        rendered = chat.render(CONVERSATION)
        assert rendered.text == text
        assert list(rendered.token_ids) == make_tokenizer(family)(text)["input_ids"]
        assert not chat.has_template
        assert not chat.merges_system
        assert chat.template_hash is None
        assert chat.default_system is None
        assert chat.render("Bye.", system="").text == "Bye."
    assert base.render("One.") == forced.render("One.")


def test_system_role_is_detected_by_rendering():
    turn = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    silent = "{% for m in messages %}{% if m.role != 'system' %}" + turn + "{% endif %}{% endfor %}"
    first_only = "{% for m in messages %}{% if m.role != 'system' or messages | length == 2 %}" + turn
    first_only += "{% endif %}{% endfor %}"
    not_first = first_only.replace("== 2", "> 2")
    for template in (silent, first_only, not_first):
        chat = with_template(template)
        assert chat.merges_system
        rendered = chat.render(CONVERSATION)
        assert rendered.text.startswith("<|im_start|>user\nBe kind.\n\nHi there?<|im_end|>\n")
        assert rendered.notes == ("system merged into user",)
        assert chat.render("Hi", system="").notes == ()
    assert not with_template("{% for m in messages %}" + turn + "{% endfor %}").merges_system


def test_default_system_prompts(chats):
    default = "You are a small assistant made for tests."
    assert chats["qwen2"].default_system == default
    assert chats["qwen2"].render("Hi").text == (
        f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert default not in chats["qwen2"].render("Hi", system="").text
    assert chats["llama"].default_system == "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"
    assert [family for family in ALL if chats[family].default_system is not None] == ["qwen2", "llama"]


def test_dates_never_change(monkeypatch, chats):
    class LaterDatetime(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    conditional = TEMPLATES["llama"]
    always = conditional.replace("{%- if not date_string is defined %}", "").replace(
        "strftime_now('%d %b %Y') %}{%- endif %}", "strftime_now('%A, %-d %B %Y (%F)') %}"
    )
    assert always != conditional
    before = [chats["llama"].render("Hi"), with_template(always, "llama").render("Hi")]
    monkeypatch.setattr(chat_template_utils, "datetime", LaterDatetime)
    later = make_tokenizer("llama").apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "02 Jan 2031" in later  # the clock was really moved
    after = [Chat(make_tokenizer("llama")).render("Hi"), with_template(always, "llama").render("Hi")]
    assert before == after
    assert "Today Date: 26 Jul 2024\n" in after[0].text
    assert "Today Date: Friday, 26 July 2024 (2024-07-26)\n" in after[1].text
    assert after[1].text.startswith("<|begin_of_text|><|start_header_id|>system")
    given = with_template("{{ date_string }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert given.render("Hi").text == "26 Jul 2024Hi"
    assert time.strptime("26 Jul 2024", "%d %b %Y").tm_wday == 4


def test_a_constant_clock_adds_nothing_to_the_text():
    template = "\n  {{ 'x' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    clock = template + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    assert with_template(clock).render("Hi").text == with_template(template).render("Hi").text == "\n  xHi"


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("plain_text", [False, True])
def test_special_token_text_in_a_message_is_text(family, plain_text, folders):
    chat = Chat.from_folder(folders / family, plain_text=plain_text)
    special = chat.tokenizer.all_special_ids
    quiet = chat.render("Say it now", system="Be kind.")
    written = [text for text in chat.tokenizer.all_special_tokens if text != chat.tokenizer.bos_token]
    assert written
    for text in written:
        loud = chat.render(f"Say {text}{text} now", system=f"Be {text} kind.")

        def spoken(quiet_text: str, text: str = text) -> str:
            return quiet_text.replace("Say it", f"Say {text}{text}").replace("Be ", f"Be {text} ")

        assert loud.text == spoken(quiet.text)
        # The control tokens are those of the quiet prompt, in the same order: none from the message.
        assert [i for i in loud.token_ids if i in special] == [i for i in quiet.token_ids if i in special]
        assert chat.tokenizer.decode(loud.token_ids) == spoken(chat.tokenizer.decode(quiet.token_ids))


@pytest.mark.parametrize("family", ALL)
def test_decode_gives_the_response_text(family, chats):
    chat = chats[family]
    text = "Hello, naïve 漢字 🙂\n\n  two  spaces ."
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    beyond = [VOCAB_SIZE[family] - 1]  # an id of the model which no token has
    for eos in chat.eos_token_ids:
        assert chat.decode([*ids, *beyond, eos]) == text
    for special in chat.tokenizer.all_special_ids:
        assert chat.decode([special, *ids]) == text
    assert chat.decode(np.array(ids)) == text
    assert chat.decode([]) == ""


@pytest.mark.parametrize("family", ALL)
def test_token_ids_are_taken_as_they_are(family, chats):
    chat = chats[family]
    ids = [0, VOCAB_SIZE[family] - 1, 5]
    rendered = chat.render(ids)
    assert rendered.token_ids == tuple(ids)
    assert rendered.text is None
    assert rendered.notes == ()
    assert chat.render(np.array(ids, np.int32)) == chat.render(tuple(ids)) == rendered
    for wrong in (VOCAB_SIZE[family], -1):
        with pytest.raises(UserError, match=f"token id {wrong} is out of range"):
            chat.render([1, wrong])
    with pytest.raises(UserError, match="cannot be given a system prompt"):
        chat.render(ids, system="Be kind.")


def test_hashes_tell_prompts_templates_and_tokenizers_apart(chats):
    chat = chats["llama"]
    prompts = ["Hi", "Hi!", "Hi there", [1, 2, 3], [1, 2]]
    hashes = {chat.render(prompt).hash for prompt in prompts}
    assert len(hashes) == len(prompts)
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in hashes)
    assert chat.render("Hi").hash == chat.render([{"role": "user", "content": "Hi"}]).hash
    for name in ("tokenizer_hash", "template_hash"):
        values = {family: getattr(chats[family], name) for family in ALL}
        assert len(set(values.values())) == len(ALL)
        # The saved and loaded tokenizer is the one in memory, whatever class it was loaded as.
        assert values == {family: getattr(Chat(make_tokenizer(family)), name) for family in ALL}
    without_bos, lower = make_tokenizer("llama"), make_tokenizer("llama")
    without_bos.backend_tokenizer.post_processor = processors.Sequence([])
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    hashes = {Chat(tokenizer).tokenizer_hash for tokenizer in (make_tokenizer("llama"), without_bos, lower)}
    assert len(hashes) == 3


def test_the_shipped_tokenizer_file_wins_over_a_rebuilt_tokenizer(tmp_path):
    # transformers loads every folder of model type qwen2 as its own Qwen2 tokenizer, even one with another vocabulary.
    tokenizer = make_tokenizer("yi", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": VOCAB_SIZE["yi"]}))
    text = "Hello there, naïve 漢字"
    assert Chat.from_folder(tmp_path, plain_text=True).render(text).token_ids == tuple(tokenizer(text)["input_ids"])


def test_a_prompt_is_rendered_once_and_another_is_not_taken_for_it(monkeypatch, folders):
    chat = Chat.from_folder(folders / "qwen2")
    first = chat.render(CONVERSATION)
    monkeypatch.setattr(chat, "_render", lambda messages: pytest.fail("rendered again"))
    assert chat.render([dict(message) for message in CONVERSATION]) is first
    monkeypatch.undo()
    hi = [chat.render("Hi"), chat.render("Hi", system=""), chat.render("Hi", system="Hi"), chat.render("Hi there")]
    answered = [{"role": r, "content": "Hi"} for r in ("user", "assistant", "user")]
    rendered = [first, *hi, chat.render(answered)]
    assert len({r.hash for r in rendered}) == 6
    fresh = Chat.from_folder(folders / "qwen2")
    assert rendered[2:4] == [fresh.render("Hi", system=""), fresh.render("Hi", system="Hi")]
    monkeypatch.setattr("mood_jax.generation.chat._REMEMBERED", 6)
    assert chat.render("seven") == fresh.render("seven")
    assert len(chat._rendered) == 1
    assert chat.render(CONVERSATION) == first


def test_messages_are_not_changed(chats):
    conversation = [dict(message) for message in CONVERSATION]
    conversation[1]["content"] = "<bos>Hi <end_of_turn>"
    copy = [dict(message) for message in conversation]
    chats["gemma2"].render(conversation)
    assert conversation == copy


USER, ANSWER, SYSTEM = ({"role": role, "content": "Hi"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty prompt"),
        (" \n", "empty prompt"),
        ([], "empty prompt"),
        (np.zeros(0, np.int32), "empty prompt"),
        ("<bos>", "nothing but a BOS"),
        ([USER, ANSWER, {"role": "user", "content": ""}], "the user message has no text"),
        ([{"role": "tool", "content": "Hi"}], "unknown role 'tool'"),
        ([{"role": "user"}], r"message 0 has the keys \['role'\]"),
        ([{"role": "user", "content": "Hi", "name": "x"}], "message 0 has the keys"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "holds list; its content must be text"),
        ([USER, USER], "user and assistant alternate"),
        ([ANSWER, USER], "user and assistant alternate"),
        ([USER, ANSWER], "ends with a user message"),
        ([SYSTEM], "ends with a user message"),
        ([USER, SYSTEM, USER], "comes first"),
        ([SYSTEM, SYSTEM, USER], "comes first"),
        ([USER, 3], "message 1 is not a dict"),
        (["Hi", "you"], "message 0 is not a dict"),
        ([True, False], "message 0 is not a dict"),
        ("\ud83d", "lone surrogate"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
)
@pytest.mark.parametrize("plain_text", [False, True])
def test_mistakes_in_a_prompt(prompt, message, plain_text, folders):
    with pytest.raises(UserError, match=message):
        Chat(make_tokenizer("gemma2"), plain_text=plain_text).render(prompt)


def test_two_system_prompts(chats):
    with pytest.raises(UserError, match="two system prompts"):
        chats["yi"].render(CONVERSATION, system="Be cold.")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "broken chat template"),
        ("{{ raise_exception('never') }}", r"broken chat template \(never\)"),
        ("{{ messages[0]['content'] + 1 }}", "broken chat template"),
        ("Hello", "loses the user's text"),
    ],
)
def test_broken_templates_name_the_folder(template, message, tmp_path):
    tokenizer = make_tokenizer("yi")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        Chat.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert Chat.from_folder(tmp_path, plain_text=True).render("Hi").text == "Hi"


def test_a_template_that_refuses_one_conversation():
    template = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('refused') }}{% endif %}"
    chat = with_template(template + "{{ m.content }}{% endfor %}", source="/some/folder")
    assert chat.render("yes").text == "yes"
    with pytest.raises(UserError, match=r"/some/folder: the chat template refuses this conversation \(refused\)"):
        chat.render("no")


def test_several_templates_without_a_default():
    assert with_template({"default": TEMPLATES["yi"], "tool_use": "x"}).render("Hi").text.startswith("<|im_start|>")
    with pytest.raises(UserError, match="multiple chat templates"):
        with_template({"rag": "x", "tool_use": "x"})


def test_folders_without_a_usable_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Chat.from_folder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="no tokenizer in the folder") as caught:
        Chat.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    make_tokenizer("yi", tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for broken, message in ((whole[:500], "not valid JSON"), ("[]", "not a JSON object"), ("{}", "cannot be loaded")):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(UserError, match=message):
            Chat.from_folder(tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path):
    make_tokenizer("yi", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(UserError, match="the tokenizer cannot be loaded"):
        Chat.from_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_larger_than_the_model():
    chat = Chat(make_tokenizer("llama"), vocab_size=300)
    with pytest.raises(UserError, match="vocabulary has 300 tokens"):
        chat.render("Hi")
