"""The evidence block of all axes of a model in one compiled program.

A axes, n samples, d state size, Q questions, K folds. Axes of unequal size are padded with samples of sign 0, which
no probe counts, so that one program serves them all.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.errors import UserError
from mood_jax.probes.controls import (
    cutoff_share,
    length_covariates,
    percentile_among,
    random_direction_aucs,
    top_k_share,
)
from mood_jax.probes.directions import fit_mean_difference
from mood_jax.probes.folds import encode, grouped_folds
from mood_jax.probes.permutation import pole_swaps, swap_p
from mood_jax.probes.resampling import (
    bootstrap_counts,
    bootstrap_indices,
    cross_validated_projections,
    evaluate,
    holm,
)
from mood_jax.probes.separation import auc, dprime
from mood_jax.probes.spans import centred_gram, residual_grams
from mood_jax.probes.verdicts import verdict

# Axes go through the program in groups of this many, which bounds the memory of the residualised copies (K per axis).
_AXES_AT_ONCE = 16


@functools.partial(jax.jit, static_argnames=("n_folds", "trim", "n_boot", "n_random"))
def _evidence(axes: dict[str, Any], key: jax.Array, *, n_folds: int, trim: float, n_boot: int, n_random: int) -> dict:
    estimator = functools.partial(fit_mean_difference, trim=trim)
    boot_key, random_key = jax.random.split(key)

    def one_axis(axis: dict[str, Any]) -> dict:
        sign, question, fold = axis["sign"], axis["question"], axis["fold"]
        n_questions = axis["swaps"].shape[1]
        indices = bootstrap_indices(boot_key, n_boot, n_questions, axis["n_questions"])
        counts = bootstrap_counts(indices, axis["n_questions"])

        states, n_tokens, cut = axis["re_read"], axis["n_tokens"], axis["cut"]
        covariates = length_covariates(n_tokens, cut)
        # Every condition goes through one vmapped program, which compiles once. The token count is a state with one
        # coordinate; taking out covariates that are all 0 takes out an intercept, which no direction sees.
        conditions = {
            "re_read": (states, jnp.zeros_like(covariates)),
            "length_residualised": (states, covariates),
            "length_only": (jnp.zeros_like(states).at[:, 0].set(n_tokens), jnp.zeros_like(covariates)),
        }
        if "in_context" in axis:
            conditions["in_context"] = (axis["in_context"], jnp.zeros_like(covariates))

        def separate(states: jax.Array, covariates: jax.Array) -> dict:
            held = cross_validated_projections(
                states, sign, fold, n_folds=n_folds, estimator=estimator, covariates=covariates
            )
            gram = residual_grams(centred_gram(states, sign), covariates, sign, fold, n_folds)
            return evaluate(held.x, sign, question, fold, counts, gram, n_folds) | {
                "gram": gram,
                "ok": held.ok,
                "in_sample_auc": auc(held.in_sample, sign),
                "in_sample_dprime": dprime(held.in_sample, sign),
                "top5_share": top_k_share(held.vector, 5),
            }

        stacked = jax.vmap(separate)(*(jnp.stack(parts) for parts in zip(*conditions.values(), strict=True)))
        tested = stacked.pop("gram")[:2]
        p, swap_auc = jax.vmap(lambda gram: swap_p(gram, sign, question, fold, axis["swaps"], axis["valid"], n_folds))(
            tested
        )
        out = {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(conditions)}

        random_aucs = random_direction_aucs(
            centred_gram(states, sign), sign, fold, random_key, n_folds=n_folds, n_draws=n_random
        )
        cut_pos, cut_neg = cutoff_share(cut, sign)
        out["length_residualised"]["p"] = p[1]
        out["length_only"]["raw_auc"] = auc(n_tokens, sign)
        return out | {
            "permutation": {"p": p[0], "auc": swap_auc[0]},
            "cutoff_share": {"positive": cut_pos, "negative": cut_neg},
            "random_direction_percentile": percentile_among(out["re_read"]["auc"], random_aucs),
        }

    return jax.vmap(one_axis)(axes)


def evidence(
    re_read: Sequence[np.ndarray | jax.Array],
    sign: Sequence[np.ndarray],
    question: Sequence[Sequence | np.ndarray],
    n_tokens: Sequence[np.ndarray],
    cut: Sequence[np.ndarray],
    *,
    in_context: Sequence[np.ndarray | jax.Array] | None = None,
    k: int = 5,
    seed: int = 0,
    trim: float = 0.1,
    n_boot: int = 2000,
    n_perm: int = 2000,
    n_random: int = 1000,
) -> list[dict[str, Any]]:
    """Evidence and verdict of every axis (method, section 7), by `mean_difference` directions.

    Each argument has one entry per axis; axes may differ in n and in questions.

    Args:
      re_read: states [n, d] of the responses read without the system prompt; verdicts are judged on these.
      sign: [n] of +1 / −1, 0 = leave this sample out.
      question: [n] ids.
      n_tokens: [n] response tokens.
      cut: [n] bool, the budget stopped the response.
      in_context: states [n, d] of the decode loop, or None.
      k: folds (one per question where there are fewer questions).
      seed: of folds, bootstrap, permutations and random directions.
      trim: share cut at each end by the trimmed mean.
      n_boot, n_perm, n_random: draws.
    Returns:
      One JSON-ready dict per axis. re_read, in_context, length_residualised, length_only: each with auc, dprime,
      accuracy and their _ci95, auc_within_folds, ok, in_sample_auc, in_sample_dprime, top5_share; length_only also
      raw_auc (> .5 where the positive pole is longer), length_residualised also p (pole swap, unadjusted).
      permutation: p, p_holm, auc (the statistic), n, exact, of the re-read states. cutoff_share: positive, negative.
      n_samples, n_questions, random_direction_percentile, verdict, reason.
    Raises:
      UserError: an axis with fewer than two questions, or arrays of unequal length.
    """
    _check_lengths(sign, re_read=re_read, question=question, n_tokens=n_tokens, cut=cut, in_context=in_context)
    used = [np.flatnonzero(np.asarray(s)) for s in sign]

    def kept(arrays: Sequence) -> list[np.ndarray]:
        return [np.asarray(array)[rows] for array, rows in zip(arrays, used, strict=True)]

    signs = [s.astype(np.int32) for s in kept(sign)]
    codes, folds = [encode(q) for q in kept(question)], [grouped_folds(q, k, seed) for q in kept(question)]
    swaps = [pole_swaps(s, c, n_perm, seed) for s, c in zip(signs, codes, strict=True)]
    n = max(len(s) for s in signs)
    n_questions = max(int(c.max()) + 1 for c in codes)
    n_swaps = max(len(s) for s in swaps)
    axes: dict[str, Any] = {
        "sign": _stack(signs, n, 0, np.int32),
        "question": _stack(codes, n, -1, np.int32),
        "fold": _stack(folds, n, -1, np.int32),
        "n_tokens": _stack(kept(n_tokens), n, 0, np.float32),
        "cut": _stack(kept(cut), n, 0, np.float32),
        "n_questions": np.array([int(c.max()) + 1 for c in codes], np.int32),
        "swaps": _stack(
            [np.pad(s, ((0, 0), (0, n_questions - s.shape[1])), constant_values=1) for s in swaps], n_swaps, 1, np.int32
        ),
        "valid": _stack([np.ones(len(s), bool) for s in swaps], n_swaps, False, bool),
        "re_read": _stack(kept(re_read), n, 0, np.float32),
    }
    if in_context is not None:
        axes["in_context"] = _stack(kept(in_context), n, 0, np.float32)
    n_folds = max(int(f.max()) + 1 for f in folds)
    size = min(len(signs), _AXES_AT_ONCE)
    blocks: list[dict[str, Any]] = []
    for start in range(0, len(signs), size):
        group = np.minimum(np.arange(start, start + size), len(signs) - 1)  # the last axis fills up the last group
        some = jax.tree.map(lambda leaf, group=group: leaf[group], axes)
        options = {"n_folds": n_folds, "trim": trim, "n_boot": n_boot, "n_random": n_random}
        stacked = jax.device_get(_evidence(some, jax.random.key(seed), **options))
        in_group = range(min(size, len(signs) - start))
        blocks += [jax.tree.map(lambda leaf, a=a: leaf[a].tolist(), stacked) for a in in_group]
    # An axis without a direction is no test; its p of 1 costs the others nothing that Holm would not charge anyway.
    adjusted = np.asarray(holm(np.array([b["permutation"]["p"] for b in blocks])))
    for block, s, c, w, p_holm in zip(blocks, signs, codes, swaps, adjusted, strict=True):
        block["permutation"] |= {"p_holm": float(p_holm), "n": len(w) - 1, "exact": len(w) <= n_perm}
        block |= {"n_samples": len(s), "n_questions": int(c.max()) + 1}
        judge(block)
    return blocks


def judge(block: dict[str, Any]) -> None:
    """Adds verdict and reason to one axis."""
    re_read, residual, leak = block["re_read"], block["length_residualised"], block.get("in_context")
    block["verdict"], block["reason"] = verdict(
        ok=re_read["ok"],
        auc=re_read["auc"],
        auc_ci95=re_read["auc_ci95"],
        p_holm=block["permutation"]["p_holm"],
        length_auc=block["length_only"]["auc"],
        residual_auc=residual["auc"],
        residual_ci95=residual["auc_ci95"],
        residual_p=residual["p"],
        in_context_auc=None if leak is None else leak["auc"],
        in_context_ci95=None if leak is None else leak["auc_ci95"],
    )


def _stack(arrays: Sequence, n: int, fill: float, dtype: Any) -> np.ndarray:
    """Arrays of unequal length [n_a, ...] → [A, n, ...] on the host, padded with `fill`."""
    first = np.asarray(arrays[0])
    out = np.full((len(arrays), n, *first.shape[1:]), fill, dtype)
    for a, array in enumerate(arrays):
        out[a, : len(array)] = np.asarray(array)
    return out


def _check_lengths(signs: Sequence, **named: Sequence | None) -> None:
    for name, arrays in named.items():
        if arrays is None:
            continue
        if len(arrays) != len(signs):
            raise UserError(f"{name} has {len(arrays)} axes where sign has {len(signs)}; give one entry per axis")
        for a, (array, sign) in enumerate(zip(arrays, signs, strict=True)):
            if len(array) != len(sign):
                raise UserError(f"{name} of axis {a} has {len(array)} samples where sign has {len(sign)}")
