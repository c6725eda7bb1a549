"""Question-grouped folds, and how projections on the directions of different folds are made comparable.

n samples, K folds. `question` [n] holds 0…Q−1 (see `encode`), `fold` [n] holds 0…K−1 (see `grouped_folds`), `sign`
[n] is +1 / −1, or 0 for a sample that is left out (a held-out fold, padding); a bootstrap multiplies it by how often
a sample was drawn.

**How folds are made comparable.** Each fold has its own direction, so its projections have their own origin and unit.
Before they are pooled, x → (x − c)/s with c the midpoint of the *training* pole means and s the root mean squared
deviation of the training projections from c. The midpoint and not the median, because in many dimensions the training
poles lie far apart, and the median then falls into whichever pole has one sample more; s and not the IQR or the pole
distance, because the IQR of token counts cut at the budget is 0, and the distance of the poles of an axis without
effect is near 0. Zero is then the threshold that training chose, which makes the held-out accuracy honest. The AUC
over pairs within one fold alone, which needs no such step, stands beside it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.separation import pole_weights, safe_ratio, unit_scale

# Standardised held-out projections nearer than this count as tied: equal samples may differ by rounding after a
# matrix product.
TIE = 5e-6


def encode(question: Sequence | np.ndarray, rows: int | None = None) -> np.ndarray:
    """Any question ids [n] → int32 codes 0…Q−1 in the order of the sorted ids, so row order does not matter.

    Args:
      rows: how many there are to be, if known.
    Raises:
      UserError: None, NaN, ids of several types, another number of rows.
    """
    return inputs.groups("question", question, rows)


def grouped_folds(question: Sequence | np.ndarray, k: int = 5, seed: int = 0) -> np.ndarray:
    """Fold [n] of each sample: both poles and all samples of a question lie in one fold, folds differ by at most one
    question.

    Deterministic in (set of question ids, k, seed). With fewer than k questions there is one fold per question.

    Raises:
      UserError: fewer than two questions, or k < 2; what `encode` refuses.
    """
    code, k, seed = encode(question), inputs.count("k", k, 0), inputs.seed(seed)
    n_questions = int(code.max()) + 1 if code.size else 0
    if n_questions < 2 or k < 2:
        raise UserError(f"held-out evaluation needs 2 questions and 2 folds, not {n_questions} and {k}; add questions")
    order = np.random.default_rng(seed).permutation(n_questions)
    fold = np.empty(n_questions, np.int32)
    fold[order] = np.arange(n_questions) % min(k, n_questions)
    return fold[code]


def standardise(x: jax.Array, training: jax.Array) -> jax.Array:
    """(x − c)/s with the constants of the training samples `training` [n]: signs, 0 = not training."""
    x = unit_scale(x)
    pos, neg, used = pole_weights(training)
    centre = 0.5 * (safe_ratio(jnp.sum(x * pos), jnp.sum(pos), 0.0) + safe_ratio(jnp.sum(x * neg), jnp.sum(neg), 0.0))
    sd = jnp.sqrt(safe_ratio(jnp.sum(jnp.square(x - centre) * used), jnp.sum(used), 0.0))
    return safe_ratio(x - centre, jnp.broadcast_to(sd, x.shape), 0.0)


def own_fold(x: jax.Array, sign: jax.Array, fold: jax.Array) -> jax.Array:
    """[K, n] projections of all samples on all fold directions → [n], each on the direction fitted without it."""
    own = jnp.arange(x.shape[0])[:, None] == fold[None, :]
    return jnp.where(sign != 0, jnp.sum(jnp.where(own, x, 0.0), axis=0), 0.0)
