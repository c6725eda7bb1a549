"""From states to scores: projections and the scalings of method section 5.

The raw projection stays what it is; a scaling is constants of the calibration, applied to any later projection.
Given numbers are computed on the host in float64, so an offset far beyond the spread costs no digits; traced ones by
the same lines in float32.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mood_jax.errors import UserError
from mood_jax.probes import inputs
from mood_jax.probes.arrays import ROUNDING, einsum, masked_quantile, namespace, rounding

Scale = Literal["iqr", "article", "pole", "re_read"]

# The floor that the published code puts under the IQR.
ARTICLE_FLOOR = 0.1


class Scaling(NamedTuple):
    """Constants of the pooled calibration projections of both poles, all scalars (or [axes] after vmap).

    re_read_pos, re_read_neg: pole means of the same responses, read again without the instruction in front of them.
    `ok` is False where the IQR is 0: the score `iqr` is then 0 everywhere. `pole_ok` and `re_read_ok` are the same for
    those two scales; the latter also where nothing was read again.
    """

    median: Any
    iqr: Any
    pos_mean: Any
    neg_mean: Any
    ok: Any
    pole_ok: Any
    re_read_pos: Any
    re_read_neg: Any
    re_read_ok: Any


def project(states: Any, vector: Any) -> Any:
    """x = h·v: states [..., d] and a direction [d] to projections [...], of given numbers in float64.

    Errors: UserError for values that are no finite numbers, and for sizes that differ.
    """
    states, vector = inputs.floats("states", states, ndim=None), inputs.floats("vector", vector)
    if not states.ndim or states.shape[-1] != len(vector):
        raise UserError(f"states {list(states.shape)} do not go with a direction of {len(vector)} numbers")
    if namespace(states, vector) is jnp:
        return einsum("...d,d->...", states, vector)
    return states @ vector


def calibrate_scaling(x: Any, sign: Any, re_read: Any = None) -> Scaling:
    """Scaling constants from calibration projections x [n] with signs [n] (+1 / −1, 0 = left out); `re_read`: the
    projections [n] of the same responses read again.

    An IQR or a distance of the poles that is rounding beside the largest projection is none: 5e-7 of it for float32
    and shorter dtypes, 9e-16 for float64.

    Errors: UserError for values that are no finite numbers, for labels that are none of −1, 0, 1, a missing pole, and
    lengths that differ.
    """
    x = inputs.numbers("x", x, least=1)
    sign = inputs.signs(sign, len(x))
    again = None if re_read is None else inputs.numbers("re_read", re_read, rows=len(x))
    if inputs.traced(x, sign, again):
        x, sign = jnp.asarray(x), jnp.asarray(sign)
        use = sign != 0
        low, median, high = masked_quantile(x, jnp.array([0.25, 0.5, 0.75]), use)
    else:
        use = sign != 0
        low, median, high = np.quantile(x[use].astype(np.float64), [0.25, 0.5, 0.75])
    xp = namespace(x, sign)
    apart = high - low > _share(x) * xp.max(xp.where(use, xp.abs(x), 0))
    pos_mean, neg_mean, distinct = _poles(x, sign)
    if again is None:
        second = (xp.zeros_like(pos_mean), xp.zeros_like(pos_mean), xp.zeros_like(distinct))
    else:
        second = _poles(again, sign)
    return Scaling(median, high - low, pos_mean, neg_mean, apart, distinct, *second)


def _share(x: Any) -> float:
    """The share of their size that is rounding in projections x."""
    return ROUNDING if isinstance(x, jax.Array) else rounding(x.dtype)


def _poles(x: Any, sign: Any) -> tuple[Any, Any, Any]:
    """Means of the poles, and whether they are apart."""
    xp = namespace(x, sign)
    share = _share(x)
    x = xp.asarray(x).astype(jnp.float32 if xp is jnp else np.float64)
    positive, negative = _mean(x, sign > 0), _mean(x, sign < 0)
    largest = xp.max(xp.where(sign != 0, xp.abs(x), 0.0))
    apart = xp.any(sign > 0) & xp.any(sign < 0) & (xp.abs(positive - negative) > share * largest)
    return positive, negative, apart


def score(x: Any, scaling: Scaling, scale: Scale = "iqr") -> jax.Array:
    """Scaled scores of projections, elementwise, unclipped, in float32.

    `iqr`: (x − median)/IQR. `article`: x/max(IQR, 0.1), not centred, as the published code does. `pole`:
    2(x − m₋)/(m₊ − m₋) − 1, so that the instructed pole means are ±1. `re_read`: the same with the means of the
    responses read again without the instruction, as uninstructed ones are read; in context the instruction itself
    drives the poles apart, and `pole` comes out nearer to 0 than the style is. A degenerate scaling gives 0 (see
    `Scaling.ok`).

    Args:
      x: projections; constants of a vmapped `scaling` have to broadcast against it.
      scaling: constants from `calibrate_scaling`.
      scale: which of the four.
    Raises:
      UserError: projections or constants that are no finite numbers, scores that float32 cannot hold, an unknown scale.
    """
    if scale not in get_args(Scale):
        raise UserError(f"unknown scale {scale!r}; use 'iqr', 'article', 'pole' or 're_read'")
    x = inputs.floats("x", x, ndim=None)
    numbers = ("median", "iqr", "pos_mean", "neg_mean", "re_read_pos", "re_read_neg")
    c = scaling._replace(
        **{name: inputs.floats(f"scaling.{name}", getattr(scaling, name), ndim=None) for name in numbers}
    )
    if inputs.traced(x, scaling):
        return _score(jnp.asarray(x), c, scale)
    found = _score(x, Scaling(*(np.asarray(value) for value in c)), scale)
    if np.abs(found).max(initial=0.0) > np.finfo(np.float32).max:
        raise UserError("a projection is beyond float32 on this scale; check that both are of one calibration")
    return jnp.asarray(found, jnp.float32)


def _score(x: Any, scaling: Scaling, scale: str) -> Any:
    xp = namespace(x)
    if scale == "iqr":
        return xp.where(scaling.ok, (x - scaling.median) / xp.where(scaling.ok, scaling.iqr, 1.0), 0.0)
    if scale == "article":
        return x / xp.maximum(scaling.iqr, ARTICLE_FLOOR)
    high, low, ok = (
        (scaling.pos_mean, scaling.neg_mean, scaling.pole_ok)
        if scale == "pole"
        else (scaling.re_read_pos, scaling.re_read_neg, scaling.re_read_ok)
    )
    distance = xp.where(ok, high - low, 1.0)
    return xp.where(ok, 2.0 * (x - low) / distance - 1.0, 0.0)


def clip_rate(scores: Any, limit: float = 1.0) -> Any:
    """Share of scores that a display range of ±limit would clip, over the last axis.

    Errors: UserError for values that are no finite numbers, for no scores at all, and for a limit below 0.
    """
    scores, limit = inputs.floats("scores", scores, ndim=None), inputs.number("limit", limit, 0.0)
    if not scores.ndim or not scores.shape[-1]:
        raise UserError(f"there are no scores along the last axis of {list(scores.shape)}; give one or more")
    xp = namespace(scores, limit)
    return xp.mean(xp.abs(scores) > limit, axis=-1)


def _mean(x: Any, mask: Any) -> Any:
    xp = namespace(x, mask)
    return xp.sum(xp.where(mask, x, 0.0)) / xp.maximum(xp.sum(mask), 1)
