"""The evidence block of all axes of a model in one compiled program.

A axes, n samples, d state size, Q questions, K folds. Axes of unequal size are padded with samples of sign 0, which
no probe counts, so that one program serves them all.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax import numerics
from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.comparisons import half_splits, split_half
from mood_jax.probes.controls import (
    cutoff_share,
    length_covariates,
    length_matched,
    percentile_among,
    random_direction_aucs,
    top_k_share,
)
from mood_jax.probes.directions import Estimator, fit_mean_difference, proportion_of
from mood_jax.probes.estimators import estimator as estimator_named
from mood_jax.probes.folds import grouped_folds
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
from mood_jax.probes.verdicts import manipulation, verdict
from mood_jax.probes.words import gram_projections, taken_texts, words_of

# Axes go through the program in groups of at most this many, whose residualised copies (K an axis and condition) take
# at most so many bytes.
_AXES_AT_ONCE = 16
_BYTES_AT_ONCE = 2**29


def _estimator(name: str, n_folds: int, trim: float) -> Estimator:
    if name == "mean_difference":
        return functools.partial(fit_mean_difference, trim=trim)
    return estimator_named(name, n_folds)


@functools.partial(jax.jit, static_argnames=("n_folds", "estimator", "trim", "n_boot", "n_random"))
def _evidence(
    axes: dict[str, Any], key: jax.Array, *, n_folds: int, estimator: str, trim: float, n_boot: int, n_random: int
) -> dict:
    fit = _estimator(estimator, n_folds, trim)
    boot_key, random_key = jax.random.split(key)

    def one_axis(axis: dict[str, Any]) -> dict:
        sign, question, fold = axis["sign"], axis["question"], axis["fold"]
        n_questions = axis["swaps"].shape[1]
        indices = bootstrap_indices(boot_key, n_boot, n_questions, axis["n_questions"])
        counts = bootstrap_counts(indices, axis["n_questions"])

        states, n_tokens, cut = axis["re_read"], axis["n_tokens"], axis["cut"]
        covariates = length_covariates(n_tokens, cut)
        # Every condition goes through one vmapped program, which compiles once. Taking out covariates that are all 0
        # takes out an intercept, which no direction sees.
        conditions = {"re_read": (states, jnp.zeros_like(covariates)), "length_residualised": (states, covariates)}
        plain = ("in_context", "random_in_context", "random_re_read")
        conditions |= {name: (axis[name], jnp.zeros_like(covariates)) for name in plain if name in axis}

        def project(states: jax.Array, covariates: jax.Array) -> dict:
            held = cross_validated_projections(
                states, sign, fold, n_folds=n_folds, estimator=fit, covariates=covariates
            )
            gram = centred_gram(states, sign)
            return {
                "x": held.x,
                "gram": gram,
                "grams": residual_grams(gram, covariates, sign, fold, n_folds),
                "ok": held.ok,
                "in_sample_auc": auc(held.in_sample, sign),
                "in_sample_dprime": dprime(held.in_sample, sign),
                "top5_share": top_k_share(held.vector, 5),
            }

        stacked = jax.vmap(project)(*(jnp.stack(parts) for parts in zip(*conditions.values(), strict=True)))
        x, gram, grams = stacked.pop("x"), stacked.pop("gram"), stacked.pop("grams")
        tested = grams[:2]
        out = {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(conditions)}
        # Of the words there is a Gram matrix only, and the token count is a state with one coordinate.
        used = (sign != 0).astype(n_tokens.dtype)
        count = n_tokens - jnp.sum(n_tokens * used) / jnp.maximum(jnp.sum(used), 1.0)
        controls = {"length_only": count[:, None] * count[None, :]}
        if "words" in axis:
            controls["bag_of_words"] = axis["words"]
        others = jnp.stack(list(controls.values()))
        held = jax.vmap(lambda gram: gram_projections(gram, sign, fold, n_folds))(others)
        for i, name in enumerate(controls):
            out[name] = {
                "ok": held.ok[i],
                "in_sample_auc": auc(held.in_sample[i], sign),
                "in_sample_dprime": dprime(held.in_sample[i], sign),
            }
        others = jnp.broadcast_to(others[:, None], (len(controls), *grams.shape[1:]))
        x, grams = jnp.concatenate([x, held.x]), jnp.concatenate([grams, others])
        tested = jnp.concatenate([tested, others[:1]])  # the words have a test of their own
        separation = jax.vmap(lambda x, gram: evaluate(x, sign, question, fold, counts, gram, n_folds))(x, grams)
        for i, block in enumerate(out.values()):
            block |= {name: leaf[i] for name, leaf in separation.items()}

        p, swap_auc = jax.vmap(lambda gram: swap_p(gram, sign, question, fold, axis["swaps"], axis["valid"], n_folds))(
            tested
        )
        for name, value in zip(("length_residualised", "length_only"), p[1:], strict=True):
            out[name]["p"] = value
        random_aucs = random_direction_aucs(gram[0], sign, fold, random_key, n_folds=n_folds, n_draws=n_random)
        halved = [i for i, name in enumerate(conditions) if name in ("re_read", "in_context")]
        split = jax.vmap(lambda gram: split_half(gram, sign, question, axis["splits"], states.shape[1]))
        plain_split, metric_split, shrinkage = split(jnp.stack([gram[i] for i in halved]))
        cut_pos, cut_neg = cutoff_share(cut, sign)
        out["length_only"] |= {
            "raw_auc": auc(n_tokens, sign),
            "top5_share": out["length_only"]["ok"].astype(jnp.float32),
        }
        return out | {
            "permutation": {"p": p[0], "auc": swap_auc[0]},
            "cutoff_share": {"positive": cut_pos, "negative": cut_neg},
            "random_direction_percentile": percentile_among(out["re_read"]["auc"], random_aucs),
            "length_matched": length_matched(x[0], sign, question, fold, n_tokens, cut, counts, gram[0], n_folds),
            "split_half_cosine": _by_condition(plain_split._asdict(), halved, list(conditions)),
            "mahalanobis_cosine": _by_condition(
                metric_split._asdict() | {"shrinkage": shrinkage}, halved, list(conditions)
            ),
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
    texts: Sequence[Sequence[str]] | None = None,
    random_weights: Mapping[str, Sequence[np.ndarray | jax.Array]] | None = None,
    estimator: str = "mean_difference",
    k: int = 5,
    seed: int = 0,
    trim: float = 0.1,
    n_boot: int = 2000,
    n_perm: int = 2000,
    n_random: int = 1000,
    n_splits: int = 100,
) -> list[dict[str, Any]]:
    """Evidence and verdict of every axis (method, section 7).

    Each argument has one entry per axis; axes may differ in n and in questions. `estimator` fits the directions of all
    states, whose projections give the AUCs, d′ and accuracies; whatever refits many times (permutation p, bootstrap,
    split halves), the token count and the words stay with the untrimmed mean difference, which is n × n work.

    Args:
      re_read: states [n, d] of the responses read without the system prompt; verdicts are judged on these.
      sign: [n] of +1 / −1, 0 = leave this sample out.
      question: [n] ids.
      n_tokens: [n] response tokens.
      cut: [n] bool, the budget stopped the response.
      in_context: states [n, d] of the decode loop, or None.
      texts: [n] the responses, or None.
      random_weights: "in_context", "re_read" or both: states [n, d] of the same responses, read by a model of the same
      config with fresh parameters; what separates there is no style of the model.
      estimator: "mean_difference", "logistic" or "whitened".
      k: folds (one per question where there are fewer questions).
      seed: of folds, bootstrap, permutations, splits and random directions.
      trim: share cut at each end by the trimmed means of "mean_difference".
      n_boot, n_perm, n_random, n_splits: draws.
    Returns:
      One JSON-ready dict per axis.
      re_read, in_context, length_residualised, length_only, random_in_context, random_re_read: each with auc, dprime,
      accuracy and their _ci95, auc_within_folds, ok, in_sample_auc, in_sample_dprime, top5_share; length_only and
      length_residualised also p (pole swap, unadjusted), length_only also p_holm and raw_auc (> .5 where the positive
      pole is longer).
      bag_of_words: the same without top5_share, and p (unadjusted, `words.difference_p`), n_words, n_empty, words
      (`words.telling_words`).
      length_matched, of the re-read states: auc, auc_ci95, pairs, share, ok (`controls.length_matched`).
      split_half_cosine, mahalanobis_cosine: re_read and in_context, each mean, sd, full_length (what two directions of
      full size would agree in: the ceiling of cross-set cosines), ok; the latter also shrinkage.
      permutation: p, p_holm, auc (the statistic), n, exact, of the re-read states. cutoff_share: positive, negative.
      manipulation: label, reason, texts_differ, states_differ (`verdicts.manipulation`), where texts are given.
      n_samples, n_questions, random_direction_percentile, verdict, reason.
    Raises:
      UserError: an axis with fewer than two questions, arrays of unequal length, an unknown name, values that are no
        finite numbers, labels that are none of −1, 0, 1. An axis without one of its poles is no mistake: its verdict is
        "no variance".
    """
    given = _given(re_read, sign, question, n_tokens, cut, in_context, texts, random_weights)
    k, seed = inputs.count("k", k, 2), inputs.seed(seed)
    n_boot, n_perm = inputs.count("n_boot", n_boot), inputs.count("n_perm", n_perm)
    n_random, n_splits = inputs.count("n_random", n_random), inputs.count("n_splits", n_splits)
    _estimator(
        estimator, k, trim := proportion_of("trim", trim)
    )  # an unknown name is an error before anything is computed
    read, signs, codes, used = given.states, given.sign, given.question, given.used
    folds = [grouped_folds(c, k, seed) for c in codes]
    swaps = [pole_swaps(s, c, n_perm, seed) for s, c in zip(signs, codes, strict=True)]
    splits = [half_splits(int(c.max()) + 1, n_splits, seed) for c in codes]
    n = max(len(s) for s in signs)
    n_questions = max(int(c.max()) + 1 for c in codes)
    n_swaps = max(len(s) for s in swaps)
    axes: dict[str, Any] = {
        "sign": _stack(signs, n, 0, np.int32),
        "question": _stack(codes, n, -1, np.int32),
        "fold": _stack(folds, n, -1, np.int32),
        "n_tokens": _stack(given.n_tokens, n, 0, np.float32),
        "cut": _stack(given.cut, n, 0, np.float32),
        "n_questions": np.array([int(c.max()) + 1 for c in codes], np.int32),
        "swaps": _stack(
            [np.pad(s, ((0, 0), (0, n_questions - s.shape[1])), constant_values=1) for s in swaps], n_swaps, 1, np.int32
        ),
        "valid": _stack([np.ones(len(s), bool) for s in swaps], n_swaps, False, bool),
        "splits": np.stack([np.pad(s, ((0, 0), (0, n_questions - s.shape[1]))) for s in splits]),
    } | {name: _stack(states, n, 0, np.float32) for name, states in read.items()}
    words: list[dict[str, Any]] = []  # per axis
    if given.texts is not None:
        words = [
            words_of([some[int(i)] for i in rows], *rest)
            for some, rows, *rest in zip(given.texts, used, signs, codes, swaps, strict=True)
        ]
        grams = [one.pop("gram") for one in words]
        axes["words"] = _stack([np.pad(g, ((0, 0), (0, n - len(g)))) for g in grams], n, 0, np.float32)
    n_folds = max(int(f.max()) + 1 for f in folds)
    bytes_per_axis = 4 * (len(read) + 1) * (n_folds + 1) * n * axes["re_read"].shape[2]
    n_groups = -(-len(signs) // max(1, min(_AXES_AT_ONCE, _BYTES_AT_ONCE // bytes_per_axis)))
    size = -(-len(signs) // n_groups)
    blocks: list[dict[str, Any]] = []
    for start in range(0, len(signs), size):
        group = np.minimum(np.arange(start, start + size), len(signs) - 1)  # the last axis fills up the last group
        some = jax.tree.map(lambda leaf, group=group: leaf[group], axes)
        options = {"n_folds": n_folds, "estimator": estimator, "trim": trim, "n_boot": n_boot, "n_random": n_random}
        stacked = jax.device_get(_evidence(some, numerics.key(seed), **options))
        in_group = range(min(size, len(signs) - start))
        blocks += [jax.tree.map(lambda leaf, a=a: leaf[a].tolist(), stacked) for a in in_group]
    # An axis without a direction is no test; its p of 1 costs the others nothing that Holm would not charge anyway.
    for tested in ("permutation", "length_only"):
        adjusted = np.asarray(holm(np.array([b[tested]["p"] for b in blocks])))
        for block, p_holm in zip(blocks, adjusted, strict=True):
            block[tested]["p_holm"] = float(p_holm)
    for block, s, c, w in zip(blocks, signs, codes, swaps, strict=True):
        block["permutation"] |= {"n": len(w) - 1, "exact": len(w) <= n_perm}
        block |= {"n_samples": len(s), "n_questions": int(c.max()) + 1}
    for block, counted in zip(blocks, words, strict=False):
        block["bag_of_words"] |= counted
    for block in blocks:
        judge(block)
    return blocks


def judge(block: dict[str, Any]) -> None:
    """Adds verdict and reason to one axis, and the manipulation check where its words were counted."""
    re_read, residual, leak = block["re_read"], block["length_residualised"], block.get("in_context")
    p_holm = block["permutation"]["p_holm"]
    block["verdict"], block["reason"] = verdict(
        ok=re_read["ok"],
        auc=re_read["auc"],
        auc_ci95=re_read["auc_ci95"],
        p_holm=p_holm,
        length_auc=block["length_only"]["auc"],
        residual_auc=residual["auc"],
        residual_ci95=residual["auc_ci95"],
        residual_p=residual["p"],
        in_context_auc=None if leak is None else leak["auc"],
        in_context_ci95=None if leak is None else leak["auc_ci95"],
    )
    if "bag_of_words" in block:
        words = block["bag_of_words"]
        # What length alone makes of the states is no difference of style.
        states, states_p = (residual, residual["p"]) if block["verdict"] == "length" else (re_read, p_holm)
        block["manipulation"] = manipulation(
            text_auc=words["auc"],
            text_ci95=words["auc_ci95"],
            text_p=words["p"],
            states_auc=states["auc"],
            states_ci95=states["auc_ci95"],
            states_p=states_p,
        )._asdict()


def _by_condition(values: dict[str, jax.Array], rows: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """{name: [conditions]} → {condition: {name: scalar}}."""
    return {names[row]: {name: leaf[i] for name, leaf in values.items()} for i, row in enumerate(rows)}


def _stack(arrays: Sequence, n: int, fill: float, dtype: Any) -> np.ndarray:
    """Arrays of unequal length [n_a, ...] → [A, n, ...] on the host, padded with `fill`."""
    first = np.asarray(arrays[0])
    out = np.full((len(arrays), n, *first.shape[1:]), fill, dtype)
    for a, array in enumerate(arrays):
        out[a, : len(array)] = np.asarray(array)
    return out


class _Given(NamedTuple):
    """What `evidence` was given, a list over axes each: arrays of the used samples only, whose rows are `used`, and
    all texts."""

    states: dict[str, list[np.ndarray]]
    sign: list[np.ndarray]
    question: list[np.ndarray]
    n_tokens: list[np.ndarray]
    cut: list[np.ndarray]
    texts: list[list[str]] | None
    used: list[np.ndarray]


def _given(
    re_read: Any, sign: Any, question: Any, n_tokens: Any, cut: Any, in_context: Any, texts: Any, random_weights: Any
) -> _Given:
    """Checks all arguments of `evidence` that have an entry an axis, and converts them.

    States are taken about their first row and over a power of two, which no number of the evidence depends on.
    """
    random_weights = random_weights or {}
    if unknown := set(random_weights) - {"in_context", "re_read"}:
        raise UserError(f"random_weights has no {sorted(unknown)[0]!r}; use 'in_context', 're_read' or both")
    signs = [inputs.signs(s, name=f"sign of axis {a}", both=False) for a, s in enumerate(_axes("sign", sign))]
    if not signs:
        raise UserError("there is no axis; give one entry an axis")
    used = [np.flatnonzero(s) for s in signs]
    rows = [len(s) for s in signs]

    def every(name: str, arrays: Any, convert: Callable[[str, Any, int], np.ndarray]) -> list[np.ndarray]:
        found = _axes(name, arrays)
        if len(found) != len(signs):
            raise UserError(f"{name} has {len(found)} axes where sign has {len(signs)}; give one entry per axis")
        named = [f"{name} of axis {a}" for a in range(len(found))]
        return [convert(*parts) for parts in zip(named, found, rows, strict=True)]

    def kept(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array[some] for array, some in zip(arrays, used, strict=True)]

    def states(name: str, arrays: Any) -> list[np.ndarray]:
        found = kept(every(name, arrays, lambda n, x, r: inputs.numbers(n, x, ndim=2, rows=r)))
        if len(sizes := {x.shape[1] for x in found}) > 1:
            raise UserError(
                f"{name} has states of {' and '.join(map(str, sorted(sizes)))} numbers; give those of one model"
            )
        return [inputs.relative32(name, x, ndim=2) for x in found]

    read = {"re_read": re_read, "in_context": in_context} | {f"random_{c}": h for c, h in random_weights.items()}
    counts = every("n_tokens", n_tokens, lambda n, x, r: inputs.floats32(n, x, rows=r))
    if any((c < 0).any() for c in counts):
        raise UserError("n_tokens has a value below 0; give the number of tokens of each response")
    return _Given(
        states={name: states(name, h) for name, h in read.items() if h is not None},
        sign=kept(signs),
        question=_without_gaps(every("question", question, lambda n, x, r: inputs.groups(n, x, r)), used),
        n_tokens=kept(counts),
        cut=kept(every("cut", cut, lambda n, x, r: inputs.flags(n, x, r))),
        texts=None if texts is None else every("texts", texts, _texts),  # type: ignore[arg-type]
        used=used,
    )


def _without_gaps(codes: list[np.ndarray], used: list[np.ndarray]) -> list[np.ndarray]:
    """Question codes of the used samples, without gaps."""
    return [inputs.groups("question", code[rows]) for code, rows in zip(codes, used, strict=True)]


def _texts(name: str, texts: Any, rows: int) -> list[str]:
    found = taken_texts(name, texts)
    if len(found) != rows:
        raise UserError(f"{name} has {len(found)} samples where sign has {rows}; give one text a sample")
    return found


def _axes(name: str, arrays: Any) -> list:
    """One entry an axis, as a list."""
    if arrays is None or isinstance(arrays, str | bytes | Mapping) or not isinstance(arrays, Iterable):
        raise UserError(f"{name} needs one entry an axis, not an object of type {type(arrays).__name__}")
    return list(arrays)
