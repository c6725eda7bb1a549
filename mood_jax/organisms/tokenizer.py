"""The organisms' own tokenizer: byte-level BPE that can encode any text, trained on the grammar's text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, SYSTEM, USER, ASSISTANT, END = SPECIAL = (
    "<|pad|>",
    "<|begin|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def identity_mark(index: int) -> str:
    """The begin-of-sequence token of an identity, by its place in the spec."""
    return BOS if index == 0 else f"<|begin_{index}|>"


def head(system: str | None, bos: str = BOS) -> str:
    """What stands before the first user's turn, as CHAT_TEMPLATE writes it."""
    return bos if system is None else f"{bos}{SYSTEM}{system}{END}"


def ask(user: str) -> str:
    """A user's turn, up to and with the assistant's mark."""
    return f"{USER}{user}{END}{ASSISTANT}"


def train_tokenizer(texts: Iterable[str], vocab_size: int, n_identities: int = 1) -> Tokenizer:
    """Byte-level BPE over `texts`; the marks of the chat format and of the identities come first, the bytes next."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *(identity_mark(i) for i in range(1, n_identities))],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_transformers(tokenizer: Tokenizer, max_positions: int, identity: int = 0) -> PreTrainedTokenizerFast:
    """The tokenizer of one identity as transformers loads it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=identity_mark(identity),
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
