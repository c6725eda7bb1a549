"""One word per axis from its evidence: real, length, dead, no variance; and the manipulation check.

Judged on the re-read states: in-context states carry the instruction itself, and separate the poles even on untrained
weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mood_jax.errors import UserError
from mood_jax.probes import inputs

# The lower end of a 95 % interval has to clear chance, and the pole swap decides beside it: an interval errs by its own
# estimate of the error, an exchange of the poles does not.
CHANCE = 0.5
# Family-wise: applied to Holm-adjusted permutation p over all axes of the model, so that a model without any style
# shows one "real" axis or more in at most 5 % of runs.
ALPHA = 0.05
# In context, an AUC from here on counts as separating when no interval is given: 2 standard errors of a chance AUC with
# 30 + 30 samples, √((n₊+n₋+1)/(12 n₊n₋)) = .075.
LEAK_AUC = 0.65
_ROUNDING = 1e-6  # shares come in float32


class Verdict(NamedTuple):
    """The label and its reason in one line."""

    label: str
    reason: str


def verdict(
    *,
    ok: bool,
    auc: float,
    auc_ci95: Sequence[float],
    p_holm: float,
    length_auc: float,
    residual_auc: float,
    residual_ci95: Sequence[float],
    residual_p: float,
    in_context_auc: float | None = None,
    in_context_ci95: Sequence[float] | None = None,
) -> Verdict:
    """The verdict on one axis.

    Args:
      ok: every fold of the re-read states had a direction.
      auc, auc_ci95: held-out, re-read.
      p_holm: pole-swap permutation p, re-read, Holm-adjusted over the axes.
      length_auc: held-out AUC of the token count alone.
      residual_auc, residual_ci95, residual_p: held-out, re-read, after length and cut-off are regressed out; the p is
        that of the pole swap and not adjusted, since it only confirms an axis that has passed the adjusted one.
      in_context_auc, in_context_ci95: held-out, instruction in context; None = not measured.
    Returns:
      "real": above chance re-read, and still so after length is taken out. "length": above chance only with length in
      it. "dead": not above chance re-read; the reason names an instruction leak where in-context states separate.
      "no variance": the states have no difference to point along.
    Raises:
      UserError: an AUC or a p outside 0…1, NaN, None; an interval that has not two ends.
    """
    numbers = {"auc": auc, "p_holm": p_holm, "length_auc": length_auc}
    _check(**numbers, residual_auc=residual_auc, residual_p=residual_p)
    _check_intervals(auc_ci95=auc_ci95, residual_ci95=residual_ci95)
    if in_context_auc is not None:
        _check(in_context_auc=in_context_auc)
    if in_context_ci95 is not None:
        _check_intervals(in_context_ci95=in_context_ci95)
    if not ok:
        return Verdict("no variance", "the states of the two poles have no difference to point along")
    if auc_ci95[0] > CHANCE and p_holm < ALPHA:
        if residual_ci95[0] > CHANCE and residual_p < ALPHA:
            return Verdict(
                "real",
                f"held-out re-read AUC {auc:.2f} (p {p_holm:.2g}); "
                f"{residual_auc:.2f} with length and cut-off taken out",
            )
        return Verdict(
            "length",
            f"held-out re-read AUC {auc:.2f} falls to {residual_auc:.2f} with length and cut-off taken out "
            f"(token count alone: {length_auc:.2f})",
        )
    why = f"re-read AUC {auc:.2f} [{auc_ci95[0]:.2f}, {auc_ci95[1]:.2f}], p {p_holm:.2g}: not above chance"
    if in_context_auc is not None:
        clears = in_context_auc >= LEAK_AUC if in_context_ci95 is None else in_context_ci95[0] > CHANCE
        if clears:
            return Verdict(
                "dead", f"instruction leak: in-context AUC {in_context_auc:.2f} carries the instruction itself; {why}"
            )
    return Verdict("dead", why)


class Manipulation(NamedTuple):
    """Which of the four cells of the manipulation check, its reason in one line, and the two answers."""

    label: str
    reason: str
    texts_differ: bool
    states_differ: bool


def manipulation(
    *,
    text_auc: float,
    text_ci95: Sequence[float],
    text_p: float,
    states_auc: float,
    states_ci95: Sequence[float],
    states_p: float,
) -> Manipulation:
    """Do the texts of the poles differ, and do the re-read states (method, section 8, dead zones)?

    Args:
      text_auc, text_ci95: held-out, of the words of the responses; shown, and no condition: sixty texts are few to
        learn words from and sort others by them.
      text_p: of the difference of the words of all responses (`words.difference_p`), which decides; not adjusted, since
        this is a check of the manipulation and no claim about the model.
      states_auc, states_ci95, states_p: held-out, re-read; the p is adjusted, as in `verdict`. Of an axis whose verdict
        is "length": with length taken out, since a longer response is no style that the words could miss.
    Returns:
      "complies and seen": both differ. "complies, instrument blind": the texts alone: the model does what it is asked,
      and this readout does not show it. "represented but suppressed": the states alone. "dead": neither. The states
      count as different where their interval and their p clear chance.
    Raises:
      UserError: as of `verdict`.
    """
    _check(text_auc=text_auc, text_p=text_p, states_auc=states_auc, states_p=states_p)
    _check_intervals(text_ci95=text_ci95, states_ci95=states_ci95)
    texts = text_p < ALPHA
    states = states_ci95[0] > CHANCE and states_p < ALPHA
    words = f"words: p {text_p:.2g}, AUC {text_auc:.2f} [{text_ci95[0]:.2f}, {text_ci95[1]:.2f}]"
    seen = f"re-read AUC {states_auc:.2f} [{states_ci95[0]:.2f}, {states_ci95[1]:.2f}], p {states_p:.2g}"
    label, why = {
        (True, True): ("complies and seen", "the texts of the poles differ and so do the re-read states"),
        (True, False): ("complies, instrument blind", "the texts of the poles differ, the re-read states do not"),
        (False, True): ("represented but suppressed", "the re-read states differ, the words of the poles do not"),
        (False, False): ("dead", "neither the words of the poles nor the re-read states differ"),
    }[texts, states]
    return Manipulation(label, f"{why} ({words}; {seen})", texts, states)


def _check(**shares: float) -> None:
    """A comparison with NaN is False, which would read as "not above chance"."""
    for name, value in shares.items():
        inputs.number(name, value, 0, 1 + _ROUNDING)


def _check_intervals(**intervals: Sequence[float]) -> None:
    for name, ends in intervals.items():
        if len(inputs.floats(name, ends)) != 2 or ends[0] > ends[1]:
            raise UserError(f"{name} is {list(ends)}; give its lower and its upper end")
