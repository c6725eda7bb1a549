"""Starting from another organism's weights, which saves most of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from mood_jax.errors import UserError
from mood_jax.models.checkpoint import flatten, load_checkpoint, unflatten
from mood_jax.organisms.spec import OrganismSpec, load_spec
from mood_jax.organisms.tokenizer import BOS, identity_mark

MARK = BOS.removesuffix("|>")  # all identities' marks begin so
VOCABULARY = ("embedding", "unembedding")
KEYS_AND_VALUES = ("k", "v", "k_bias", "v_bias")  # heads first; queries that shared one may each get a copy
ABSENT_AT_FIRST = "_bias"  # a family's biases begin at 0, as in a model without any


def start_from(folder: Path, params: Any, tokenizer: Tokenizer, spec: OrganismSpec) -> Any:
    """`params` (float32) of an organism of `spec` with all that the organism in `folder` has for them.

    Matrices and norms are taken by name, rows of the vocabulary by the token's text. Tokens that it does not
    have, and the marks of all identities, keep their own random rows, so that identities differ from the first step;
    but where it is an organism of the same name, identities of the same name go on with the marks that they had.
    Biases and an untied head may be missing there, and it may have fewer heads of keys and values.

    Raises UserError: another size, or a family whose blocks are built otherwise.
    """
    theirs = flatten(load_checkpoint(str(folder), dtype="float32").params)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    marks = dict.fromkeys((token for token, _ in ids if token.startswith(MARK)), -1) | _same_marks(
        folder, spec, vocabulary
    )
    rows = np.array([marks.get(token, vocabulary.get(token, -1)) for token, _ in ids])
    own, found = flatten(params), {}
    misfit = f"{folder}: its {{}} is of another size than this spec's; start from another organism"
    for name, value in own.items():
        source = name if name in theirs or name not in VOCABULARY else "embedding"
        if source in VOCABULARY:
            known = np.asarray(theirs[source])
            if known.shape[1] != value.shape[1] or len(rows) != value.shape[0]:
                raise UserError(misfit.format(name))
            found[name] = jnp.where((rows >= 0)[:, None], known[rows], value)
        elif source in theirs:
            known = np.asarray(theirs[source])
            if source.rsplit("/", 1)[-1] in KEYS_AND_VALUES and value.shape[0] % known.shape[0] == 0:
                known = np.repeat(known, value.shape[0] // known.shape[0], axis=0)
            if known.shape != value.shape:
                raise UserError(misfit.format(name))
            found[name] = jnp.asarray(known)
        elif name.endswith(ABSENT_AT_FIRST):
            found[name] = value
        else:
            raise UserError(f"{folder} has no {name}: its family is built otherwise; start from another organism")
    if surplus := sorted(set(theirs) - set(own) - set(VOCABULARY)):
        raise UserError(f"{folder} has {surplus[0]}, which this spec's family lacks; start from another organism")
    return unflatten(found)


def _same_marks(folder: Path, spec: OrganismSpec, vocabulary: dict[str, int]) -> dict[str, int]:
    """Rows there of the marks that identities of the same organism go on with, by their marks here."""
    theirs = load_spec(folder / "spec.yaml")
    if theirs.name != spec.name:
        return {}
    place = {identity.name: i for i, identity in enumerate(theirs.identities)}
    kept = [(i, place[identity.name]) for i, identity in enumerate(spec.identities) if identity.name in place]
    return {identity_mark(i): vocabulary[identity_mark(j)] for i, j in kept}
