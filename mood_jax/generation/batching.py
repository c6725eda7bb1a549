"""Prompts → batches: rendered, sorted by length bucket, padded on the left, the last batch filled to full size."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mood_jax import values
from mood_jax.errors import UserError
from mood_jax.generation.chat import Chat

BUCKET_STEPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Shared:
    """Beginnings that a batch's rows have in common, of which all but the rows' last P − W tokens are taken."""

    tokens: np.ndarray  # int32 [G, W], padded on the right
    source: np.ndarray  # int32 [B], the one that a row begins with


@dataclass(frozen=True)
class Batch:
    """Rows of one compiled shape. `rows` are indices into the caller's list; filler rows repeat the first one."""

    rows: tuple[int, ...]
    tokens: np.ndarray  # int32 [B, P], left-padded
    lengths: np.ndarray  # int32 [B]
    real: np.ndarray  # bool [B], False on filler rows
    shared: Shared | None = None


def bucket(length: int) -> int:
    """The padded length for a sequence: the next of 16, 24, 32, 48, … 1024, then multiples of 512."""
    for step in BUCKET_STEPS:
        if length <= step:
            return step
    return -(-length // 512) * 512


def default_ids(hashes: Sequence[str]) -> list[str]:
    """Ids for prompts that have none: the prompt's hash and its occurrence, so that order does not matter."""
    seen: Counter[str] = Counter()
    ids = []
    for h in hashes:
        ids.append(f"{h}#{seen[h]}")
        seen[h] += 1
    return ids


def check_ids(ids: Iterable[str], n: int) -> list[str]:
    """The ids of n prompts: one a prompt, each once. (Two ids of equal crc32 would share their random numbers.)"""
    ids = [values.text(f"ids[{i}]", name) for i, name in enumerate(values.items("ids", ids))]
    if len(ids) != n:
        raise UserError(f"{len(ids)} ids for {n} prompts; give one id a prompt")
    twice = [i for i, c in Counter(ids).items() if c > 1]
    if twice:
        raise UserError(f"the response id {twice[0]!r} is given twice; ids must differ, as they seed the sampling")
    crcs: dict[int, str] = {}
    for i in ids:
        other = crcs.setdefault(zlib.crc32(i.encode()), i)
        if other != i:
            raise UserError(f"the response ids {other!r} and {i!r} have the same crc32; rename one of them")
    return ids


def make_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, divisor: int = 1, full: bool = False
) -> list[Batch]:
    """Sequences of token ids → batches of `batch_size` rows (rounded up to a multiple of `divisor`).

    Rows are sorted by length bucket, in the caller's order within one, and cut into batches; a batch is as long as its
    longest row's bucket. The last batch is filled up with copies of its first row, so that every batch of a length has
    one compiled shape and a row never depends on how many others there are. Where there are fewer sequences than
    `batch_size` a batch is as large as they are many, or of that size all the same if `full`.
    """
    batch_size = values.whole("the batch size", batch_size, 1)
    size = batch_size if full else min(batch_size, max(len(sequences), 1))
    size = -(-size // divisor) * divisor
    order = sorted(range(len(sequences)), key=lambda row: (bucket(len(sequences[row])), row))
    batches = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        length = bucket(max(len(sequences[row]) for row in rows))
        batches.append(_padded(sequences, rows, size, length))
    return batches


def make_read_batches(
    sequences: Sequence[Sequence[int]], batch_size: int, most_tokens: int, divisor: int = 1
) -> list[Batch]:
    """Sequences to be read at once, as `make_batches`, but in batches of as many rows as `most_tokens` slots hold.

    Reading does the same work a token whatever the number of rows, so small batches lose nothing, and rows of like
    length stand together with less padding. Rows are sorted the longest bucket first; only the last batch is filled up.
    """
    batch_size = values.whole("the batch size", batch_size, 1)
    order = sorted(range(len(sequences)), key=lambda row: (-bucket(len(sequences[row])), row))
    batches: list[Batch] = []
    while order:
        length = bucket(len(sequences[order[0]]))
        size = min(batch_size, max(len(sequences), 1), max(1, most_tokens // length))
        size = -(-size // divisor) * divisor
        batches.append(_padded(sequences, order[:size], size, length))
        order = order[size:]
    return batches


def _padded(sequences: Sequence[Sequence[int]], rows: list[int], size: int, length: int) -> Batch:
    tokens, lengths = np.zeros((size, length), np.int32), np.zeros(size, np.int32)
    for k, row in enumerate([*rows, *rows[:1] * (size - len(rows))]):
        ids = sequences[row]
        tokens[k, length - len(ids) :] = ids
        lengths[k] = len(ids)
    return Batch(tuple(rows), tokens, lengths, np.arange(size) < len(rows))


def halves(batch: Batch, divisor: int = 1) -> list[Batch]:
    """A batch as two of half its size (a multiple of `divisor`) and its length; one where the second has no row."""
    size = -(-len(batch.real) // 2 // divisor) * divisor
    found = []
    for start in range(0, len(batch.rows), size):
        rows = batch.rows[start : start + size]
        filled = [start + k if k < len(rows) else start for k in range(size)]
        shared = batch.shared and Shared(batch.shared.tokens, batch.shared.source[filled])
        found.append(Batch(rows, batch.tokens[filled], batch.lengths[filled], np.arange(size) < len(rows), shared))
    return found


def token_ids(name: str, given: Any) -> tuple[int, ...]:
    """Token ids of a list, array or generator. Raises UserError for what is no whole number: 5.9 is not token 5."""
    return tuple(values.whole(f"{name}[{k}]", i) for k, i in enumerate(values.items(name, given)))


def _prompt(given: Any) -> Any:
    """A prompt as `Chat.render` takes it: a text, messages, or whole token ids out of an array or generator too."""
    if isinstance(given, (str, Mapping)):
        return given
    found = values.items("the prompt", given)
    if found and not any(isinstance(item, (str, Mapping)) for item in found):
        return list(token_ids("the prompt", found))
    return found


def render_all(chat: Chat, prompts: Iterable[Any]) -> list[Any]:
    """Every prompt rendered. Raises UserError for none at all, naming the first that cannot be rendered."""
    if isinstance(prompts, (str, bytes)):
        raise UserError("prompts must be a list of prompts, not one string; write [prompt]")
    prompts = values.items("prompts", prompts)
    if len(prompts) == 0:
        raise UserError("there are no prompts; give at least one")
    rendered = []
    for i, prompt in enumerate(prompts):
        try:
            rendered.append(chat.render(_prompt(prompt)))
        except UserError as e:
            raise UserError(f"prompt {i}: {e}") from e
    return rendered
