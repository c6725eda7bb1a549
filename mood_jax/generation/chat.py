"""From what a user writes to the token ids that a model reads, and back.

A prompt is a string (one user message), a list of chat messages, or a list of token ids. The checkpoint's own template
renders it; nothing here knows a family by name. What a template does with a system message, which token ends a turn
and whether it adds a system prompt of its own is found by rendering probe conversations (method.md, section 2).

Three things differ from `apply_chat_template(tokenize=True)` on purpose, so that a prompt means the same always: ids
are those of tokenizer.json (see `tokenizer.py`), "today" is a fixed date in every template, and special-token text
inside a message is text, never a control token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Tokenizer

from mood_jax.errors import UserError
from mood_jax.generation import tokenizer as files
from mood_jax.generation.tokenizer import one_line

# Imported where it is used: it takes seconds, and torch with it where that is installed.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]

DATE = "26 Jul 2024"
"""What templates print as today's date (the default of the Llama 3 templates), so that a prompt never changes."""

_ROLES = ("system", "user", "assistant")
# Words which no template, and no other probe, contains.
_SYSTEM, _USER, _ANSWER, _AGAIN = "Probesystemtext", "Probeusertext", "Probeanswertext", "Probesecondtext"
# What a template may raise while it renders: its own refusals, and Python's errors in its expressions.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_SURROGATE = re.compile("[\ud800-\udfff]")
_REMEMBERED = 8192  # prompts that a chat keeps as rendered
# What a tokenizer does with them goes into its hash: scripts, digits, spaces, line ends, composed, decomposed and
# compatibility characters, texts with and without a space in front.
_SAMPLES = (
    " Hello there, I'm 12345 naïve 漢字 🙂\n\n  def f(x):\n\treturn x  ",
    "Hello  there\u00a0e\u0301 n\u0303 가 \u1100\u1161 \u212b",
    "ﬁ Ⅳ ㎏ ½ ｆｕｌｌ ＷＩＤＥ ²",
    "x",
)
# A name that says of a model that it was trained to chat.
_CHAT_NAME = re.compile(r"instruct|chat|assistant|(?<![a-z])(it|dpo|rlhf|sft|tulu|hermes|vicuna|zephyr)(?![a-z])", re.I)

_DATE_PARTS = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%d": "26", "%-d": "26", "%e": "26", "%j": "208"},
    **{"%B": "July", "%b": "Jul", "%h": "Jul", "%A": "Friday", "%a": "Fri", "%F": "2024-07-26", "%D": "07/26/24"},
    **{"%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM", "%T": "00:00:00"},
}


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the model reads it.

    `text` is None for a prompt given as token ids. `hash` is the first 16 hexadecimal digits of the SHA-256 of text
    and ids. `notes` say in words what was changed on the way ("system merged into user").
    """

    text: str | None
    token_ids: tuple[int, ...]
    hash: str
    notes: tuple[str, ...] = ()


class Chat:
    """A tokenizer, its chat template and its end-of-sequence ids.

    `eos_token_ids`: ascending; those which the checkpoint lists (its tokenizer's own where it lists none), and the
    token that the template puts after an assistant message (not in plain text, unless the checkpoint lists it).
    `has_template`: prompts are rendered by a chat template; False for a base model and under `plain_text`.
    `merges_system`: the template has no system role, so the system text goes in front of the first user message.
    `default_system`: the system text that the template adds when a conversation brings none, or None.
    `pad_token_id`: the tokenizer's, else an EOS id, else 0; padding is masked explicitly, so its value never matters.
    `template_hash` (None without a template), `tokenizer_hash`: 16 hexadecimal digits, to compare checkpoints with.
    `notes`: in words, what a reader of numbers should know of all this ("no chat template: prompts are plain text").
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int] = (),
        plain_text: bool = False,
        vocab_size: int | None = None,
        source: str = "the tokenizer",
        backend: Tokenizer | None = None,
        notes: Sequence[str] = (),
    ):
        """`eos_token_ids` are those listed by the checkpoint's configuration files; `vocab_size` (default: the
        tokenizer's) bounds the ids of a prompt; `source` names the checkpoint in messages; `backend` (default: the
        tokenizer's own) gives the ids; `notes` come before the chat's own.

        Raises:
            UserError: the tokenizer is not a fast one, or its template is broken.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{source}: not a fast tokenizer; convert it to one with a tokenizer.json")
        if backend is None:
            backend, more = files.steady(files.content_of(tokenizer), source)
            notes = (*notes, *more)
        self.tokenizer = tokenizer
        self.source = source
        self._backend = backend
        self._rendered: dict[tuple[tuple[str, str], ...], RenderedPrompt] = {}
        vocabulary = backend.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1 if vocab_size is None else vocab_size
        own = {name: vocabulary.get(str(text)) for name, text in tokenizer.special_tokens_map.items()}
        self._make_control([*own.values(), *eos_token_ids])
        added = backend.get_added_tokens_decoder()
        self._special = {t.content: i for i, t in added.items() if t.content and not t.content.isspace()}
        self._bos, self._bos_id = str(tokenizer.bos_token), own.get("bos_token")
        self._head, head_notes = self._plain_text_head()
        self._template = None if plain_text else self._load_template()
        self.has_template = self._template is not None
        self.merges_system = False
        self.default_system: str | None = None
        self.template_hash: str | None = None
        eos = {int(index) for index in eos_token_ids} or {i for i in [own.get("eos_token")] if i is not None}
        written: set[str] = set()  # control tokens that the template itself writes
        if self._template is not None:
            self.template_hash = _digest(tokenizer.get_chat_template())
            self.merges_system, self.default_system = self._probe_system()
            eos |= self._probe_end_of_turn()
            written = self._probe_written()
        self.eos_token_ids: tuple[int, ...] = tuple(sorted(eos))
        pad = own.get("pad_token")
        self.pad_token_id: int = next(iter(self.eos_token_ids), 0) if pad is None else pad
        # What `decode` leaves out: tokens that stand for no text.
        self._control = {i for i, token in added.items() if token.special} | {
            i for i in (*own.values(), *eos) if i in added
        }
        # Text in a message that must not become a control token. What the template writes but the file does not mark
        # as special (<think>) may be a model's own words, so only users and system prompts are kept from it.
        special = {text for text, i in self._special.items() if i in self._control}
        self._guarded = {"assistant": _any_of(special)} | dict.fromkeys(("system", "user"), _any_of(special | written))
        samples = [self._ids(text) for text in (*_SAMPLES, *(f"{text}x {text}" for text in self._special))]
        listed = sorted((i, token.content, token.special) for i, token in added.items())
        self.tokenizer_hash = _digest([sorted(vocabulary.items()), listed, self._head, samples])
        self._plain_text = plain_text
        unasked = self._template is None and not plain_text
        self.notes: tuple[str, ...] = (
            *notes,
            *(["no chat template: prompts are plain text"] if unasked else []),
            *(head_notes if self._template is None else []),
            *self._eos_notes(),
        )

    @classmethod
    def from_folder(cls, folder: str | Path, plain_text: bool = False) -> Chat:
        """The chat of a local checkpoint folder; code in the folder is never run and nothing is fetched.

        Raises:
            UserError: no such folder, no tokenizer in it or a broken one, malformed JSON, broken template.
        """
        folder = Path(folder)
        found = files.load(folder)
        size = files.read_json(folder / "config.json").get("vocab_size")
        size = size if isinstance(size, int) else None
        eos = files.listed_eos(folder)
        return cls(found.tokenizer, eos, plain_text, size, str(folder), found.backend, found.notes)

    def check_template(self, name: str, folder: Path) -> None:
        """Raises UserError where a model that is named like a chat model (`name`: hub id or folder) has no template."""
        called = _CHAT_NAME.search(name.rstrip("/").rpartition("/")[2])
        if self.has_template or self._plain_text or not called:
            return
        unread = files.unread_templates(folder)
        where = f"the folder holds {unread[0]}: rename it to chat_template.jinja" if unread else "add it"
        raise UserError(
            f"{name} is named like a chat model ({called[0]!r}), and no file of it holds a chat template; {where}, or "
            "ask for plain text with --config.plain_text=True (plain_text=True)"
        )

    def render(self, prompt: Prompt, system: str | None = None) -> RenderedPrompt:
        """The text and token ids of a prompt, ready for the assistant's answer.

        `system` is a system prompt for a string, or for messages which have none of their own; "" is an explicitly
        empty one, which keeps a template from adding its default. Token ids are taken as they are.

        A conversation alternates user and assistant and ends with the user. Where the template has no system role,
        and in plain text, the system text comes first, one blank line after it. BOS text at the very start of a
        conversation is taken for the one BOS: a template writes it or leaves it out, plain text begins with it.

        Other special-token text in a message is encoded as ordinary text: `<|im_end|>` written by a user does not end
        the turn. Limits of that: a special token of a single character, and an added token which the tokenizer does
        not flag as special, stay what the tokenizer makes of them.

        Raises:
            UserError: an empty prompt or user message, an unknown role, a wrong order of roles, a second system prompt,
                ids out of range, a template that refuses the conversation.
        """
        if not isinstance(prompt, str):
            prompt = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
            if not isinstance(prompt, Sequence):
                raise UserError(f"a prompt is a string, messages or token ids, not {type(prompt).__name__}")
            if not len(prompt):
                raise UserError("empty prompt: give it at least one message or token id")
            if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in prompt):
                return self._take_ids(prompt, system)
        messages = _checked(prompt, system)
        # A study asks and reads the same prompts many times, and template and tokenizer take a millisecond each.
        key = tuple((message["role"], message["content"]) for message in messages)
        if (known := self._rendered.get(key)) is None:
            if len(self._rendered) >= _REMEMBERED:
                self._rendered.clear()
            known = self._rendered[key] = self._render(messages)
        return known

    def _render(self, messages: list[dict[str, str]]) -> RenderedPrompt:
        notes = []
        bos_written = self._bos_id is not None and messages[0]["content"].startswith(self._bos)
        if bos_written:
            messages[0]["content"] = messages[0]["content"].removeprefix(self._bos)
            if messages[0]["role"] == "user" and not messages[0]["content"].strip():
                raise UserError("empty prompt: it is nothing but a BOS token")
            notes.append("BOS text at the start taken for the BOS")
        if self.merges_system and messages[0]["role"] == "system":
            first, *messages = messages
            if first["content"]:
                messages[0]["content"] = first["content"] + "\n\n" + messages[0]["content"]
                notes.append("system merged into user")
        mark = self._mark(messages)
        if self._template is None:
            text = "\n\n".join(message["content"] for message in messages if message["content"])
        else:
            try:
                text = self._apply(messages, add_generation_prompt=True)
            except _RENDER_ERRORS as error:
                raise UserError(
                    f"{self.source}: the chat template refuses this conversation ({one_line(error)}); change it, or "
                    "use plain_text"
                ) from error
        # A template writes its own BOS, or means to have none; plain text follows the tokenizer's habit.
        ids = self._ids(text, mark)
        if self._template is None:
            ids = [*self._head, *ids]
            if bos_written and self._bos_id is not None and self._bos_id not in self._head:
                ids.insert(0, self._bos_id)
        text = text.replace(mark, "") if mark else text
        if max(ids, default=-1) >= self.vocab_size:
            raise UserError(
                f"{self.source}: the tokenizer gives id {max(ids)}, but the model's vocabulary has {self.vocab_size} "
                "tokens; use the tokenizer that belongs to the checkpoint"
            )
        if not ids:
            raise UserError("empty prompt: it has no tokens")
        return RenderedPrompt(text, tuple(ids), _digest([text, ids]), tuple(notes))

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of a response's text: no BOS, no EOS; special-token text in it is text."""
        messages = [{"role": "assistant", "content": text}]
        mark = self._mark(messages)
        return tuple(self._ids(messages[0]["content"], mark))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of response tokens [n]; control tokens, and ids that no token has, are skipped."""
        ids = [int(index) for index in token_ids if int(index) not in self._control]
        return self._backend.decode(ids, skip_special_tokens=False)

    def _take_ids(self, prompt: Sequence[Any], system: str | None) -> RenderedPrompt:
        if system is not None:
            raise UserError("a prompt of token ids cannot be given a system prompt; put its tokens into the prompt")
        ids = [int(index) for index in prompt]
        wrong = next((index for index in ids if not 0 <= index < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"token id {wrong} is out of range; {self.source} has ids 0 to {self.vocab_size - 1}")
        return RenderedPrompt(None, tuple(ids), _digest([None, ids]))

    def _make_control(self, candidates: Sequence[int | None]) -> None:
        """Makes control tokens of those ids that are named as such and that no text would give otherwise.

        A vocabulary may hold "</s>" as an entry that the file does not mark as a token of its own: a template that
        writes it would then be read as "<", "/", "s", ">". An ordinary word that is named as EOS stays a word.
        """
        added = self._backend.get_added_tokens_decoder()
        for index in dict.fromkeys(candidates):
            text = None if index is None or index in added else self._backend.id_to_token(index)
            if text and index is not None and not self._is_text(index):
                self._backend.add_special_tokens([AddedToken(text, normalized=False, special=True)])

    def _is_text(self, index: int) -> bool:
        """Does the token stand for some text?"""
        shown = self._backend.decode([index], skip_special_tokens=False)
        written = (shown, f"a{shown}", self._backend.decode([index, index], skip_special_tokens=False))
        return any(index in self._ids(text) for text in written)

    def _plain_text_head(self) -> tuple[list[int], list[str]]:
        """(what stands before the first token of plain text, notes): what the post-processor of the tokenizer puts
        there, with BOS where `add_bos_token` says so. What it puts behind a text (EOS) ends prompts and is left out."""
        bare, whole = self._ids("a"), self._backend.encode("a").ids
        starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        head = whole[: starts[0]] if starts else []
        asked = getattr(self.tokenizer, "init_kwargs", {}).get("add_bos_token")
        if asked is False:
            return [i for i in head if i != self._bos_id], []
        if asked is True and self._bos_id is None:
            return head, [
                "the tokenizer asks for a BOS token (add_bos_token) and names none: plain text begins without"
            ]
        return (head if asked is not True or self._bos_id in head else [int(self._bos_id or 0), *head]), []

    def _eos_notes(self) -> list[str]:
        """Notes on end-of-sequence ids that are no control tokens."""
        if not self.eos_token_ids:
            return ["no end-of-sequence id is known: every response runs to its token budget"]
        named = [(i, self._backend.id_to_token(i)) for i in self.eos_token_ids if i not in self._control]
        words = [f"{i} ({word!r})" for i, word in named if word is not None]
        if not words:
            return []
        more = f" and {len(words) - 3} more" if len(words) > 3 else ""
        which = (
            f"ids {', '.join(words[:3])}{more} are ordinary tokens"
            if words[1:]
            else f"id {words[0]} is an ordinary token"
        )
        return [f"end-of-sequence {which} of the tokenizer: responses may end in the middle of a text"]

    def _load_template(self) -> str | None:
        """The template, with a constant clock where it asks for one; None for a tokenizer without."""
        if not self.tokenizer.chat_template:
            return None
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"{self.source}: {one_line(error)}; name one of them 'default', or use plain_text"
            ) from None
        if "strftime_now" not in template:
            return template
        # transformers lets nobody replace the function, but a macro of the same name comes before it. The line end
        # after `endmacro` is eaten by trim_blocks, so the template's first line stays a first line.
        parts = "".join(f" | replace('{code}', '{value}')" for code, value in _DATE_PARTS.items())
        return f"{{% macro strftime_now(format='') %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{template}"

    def _apply(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        options = {"chat_template": self._template, "add_generation_prompt": add_generation_prompt, "date_string": DATE}
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _probe(self, *contents: str, add_generation_prompt: bool = True) -> str | None:
        """A probe conversation as rendered, or None when the template refuses it."""
        roles = {_SYSTEM: "system", _ANSWER: "assistant"}
        messages = [{"role": roles.get(content, "user"), "content": content} for content in contents]
        try:
            return self._apply(messages, add_generation_prompt)
        except _RENDER_ERRORS:
            return None

    def _probe_system(self) -> tuple[bool, str | None]:
        """(merges_system, default_system)."""
        try:
            without = self._apply([{"role": "user", "content": _USER}], add_generation_prompt=True)
        except _RENDER_ERRORS as error:
            raise UserError(
                f"{self.source}: broken chat template ({one_line(error)}); correct it, or use plain_text"
            ) from error
        if _USER not in without:
            raise UserError(
                f"{self.source}: broken chat template (it loses the user's text); correct it, or use plain_text"
            )
        one_turn, two_turns = self._probe(_SYSTEM, _USER), self._probe(_SYSTEM, _USER, _ANSWER, _AGAIN)
        if one_turn is None or two_turns is None or _SYSTEM not in one_turn or _SYSTEM not in two_turns:
            return True, None
        # What stands where our system text stood, when none is given: a default, or a turn with words of its own.
        head, tail = one_turn.split(_SYSTEM, 1)
        if len(without) < len(head) + len(tail) or not (without.startswith(head) and without.endswith(tail)):
            return False, None
        default = without[len(head) : len(without) - len(tail)].strip()
        if not default:
            default = min((head.rsplit(text, 1)[1] for text in self._special if text in head), key=len, default=head)
        return False, default.strip() or None

    def _probe_end_of_turn(self) -> set[int]:
        """The id of the special token that the template puts behind an assistant message, if it puts one there."""
        for contents in ((_USER, _ANSWER), (_USER, _ANSWER, _AGAIN)):
            rendered = self._probe(*contents, add_generation_prompt=False)
            if rendered is None or _ANSWER not in rendered:
                continue
            before, behind = rendered.rsplit(_ANSWER, 1)
            behind = behind.split(_AGAIN)[0].strip()
            found = max((text for text in self._special if behind.startswith(text)), key=len, default=None)
            # Where nothing stands between an answer and the next user turn but that turn's opening, no turn is ended.
            if found is not None and not before.split(_USER)[0].strip().endswith(behind):
                return {self._special[found]}
        return set()

    def _probe_written(self) -> set[str]:
        """Added tokens that the template writes around the contents of a conversation."""
        turns = (_USER, _ANSWER, _AGAIN)
        rendered = (
            self._probe(*turns),
            self._probe(_SYSTEM, *turns),
            self._probe(*turns[:2], add_generation_prompt=False),
        )
        return {text for text in self._special for r in rendered if r is not None and text in r}

    def _mark(self, messages: list[dict[str, str]]) -> str | None:
        """Breaks special-token text in the contents with a private-use character (returned; None if there is none)."""
        if not any(self._guarded[message["role"]].search(message["content"]) for message in messages):
            return None
        written = "".join(message["content"] for message in messages)
        mark = next(chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in written)
        for message in messages:
            guarded = self._guarded[message["role"]]
            message["content"] = guarded.sub(lambda found: found[0][0] + mark + found[0][1:], message["content"])
        return mark

    def _ids(self, text: str, mark: str | None = None) -> list[int]:
        """Token ids of a text, as tokenizer.json gives them; at each mark the text is cut, and no token spans it."""

        def encode(piece: str) -> list[int]:
            return self._backend.encode(piece, add_special_tokens=False).ids

        if not mark or mark not in text:
            return encode(text)
        first, *others = text.split(mark)
        ids = encode(first)
        # Behind a line end, so that sentencepiece puts no space in front of a piece from the middle of the text.
        line_end = encode("\n")
        for piece in others:
            behind = encode("\n" + piece)
            ids += behind[len(line_end) :] if behind[: len(line_end)] == line_end else encode(piece)
        return ids


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts of more than one character. The longest first: a token may contain another."""
    ordered = sorted((text for text in texts if len(text) > 1), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _checked(prompt: str | Sequence[Any], system: str | None) -> list[dict[str, str]]:
    """The conversation as fresh messages, its form checked; `system` becomes its first message."""
    messages: list[dict[str, str]] = []
    for number, message in enumerate([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} is not a dict with 'role' and 'content'; nor are all items token ids")
        if set(message) != {"role", "content"}:
            raise UserError(f"message {number} has the keys {sorted(map(str, message))}; it needs 'role' and 'content'")
        if message["role"] not in _ROLES:
            raise UserError(f"message {number} has the unknown role {message['role']!r}; use {', '.join(_ROLES)}")
        messages.append({"role": message["role"], "content": message["content"]})
    if system is not None:
        if messages[0]["role"] == "system":
            raise UserError("two system prompts: one in the messages and one beside them; give one of them")
        messages.insert(0, {"role": "system", "content": system})
    for number, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, str):
            raise UserError(f"the {message['role']} message holds {type(content).__name__}; its content must be text")
        if message["role"] == "user" and not content.strip():  # a model may have said nothing
            raise UserError(f"empty prompt: the {message['role']} message has no text")
        if _SURROGATE.search(content):
            raise UserError(
                f"the {message['role']} message is not valid Unicode (a lone surrogate); correct its encoding"
            )
        if message["role"] == "system" and number > 0:
            raise UserError("a system message comes first in a conversation; move it to the front")
    turns = [message["role"] for message in messages if message["role"] != "system"]
    if not turns or turns[-1] != "user":
        raise UserError("a conversation ends with a user message; add one")
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise UserError("user and assistant alternate, the user first; merge consecutive messages of one role")
    return messages


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()[:16]
