"""Where public functions take what a caller gives: checked once, on the host, and converted without changing a value.

Lists, tuples, generators, NumPy and JAX arrays of any integer or floating dtype are taken alike. Traced values (inside
jit, vmap, grad) have no values to check: they pass, in float32 at least, since whoever traces them has checked them.
Every refusal is one line that names the argument.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mood_jax import values
from mood_jax.errors import UserError

_FLOAT32 = np.finfo(np.float32)


def traced(*xs: Any) -> bool:
    """Whether any of the arguments is, or is a list of, values that are being traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(xs))


def numbers(name: str, x: Any, *, ndim: int | None = 1, least: int = 0, rows: int | None = None) -> Any:
    """Finite real numbers in the dtype they came in (exact: nothing is narrowed), as a NumPy array.

    Args:
      name: of the argument, for the line that refuses it.
      x: numbers; no bool, text, None, NaN, inf, complex or masked entry.
      ndim: of the array; None: any.
      least: fewest rows.
      rows: how many rows, if it is known from another argument.
    Raises:
      UserError: anything else.
    """
    x = _listed(name, x)
    if traced(x):
        x = jnp.asarray(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if isinstance(x, np.ma.MaskedArray) and np.ma.getmaskarray(x).any():
        raise UserError(f"{name} has masked entries; leave those rows out")
    _no_bool(name, x)
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise UserError(f"{name} is no table of numbers (rows of unequal length?); give numbers alone") from None
    if array.size == 0 and array.dtype == object:
        array = array.astype(np.float64)
    if not (jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)):
        raise UserError(f"{name} has entries that are no real numbers ({array.dtype}); give finite numbers alone")
    if ndim is not None and array.ndim != ndim:
        raise UserError(f"{name} has {array.ndim} dimensions and needs {ndim}: its shape is {array.shape}")
    finite = np.isfinite(array.astype(np.float64))
    if not finite.all():
        where = int(np.argwhere(~finite)[0, 0]) if array.ndim else 0
        raise UserError(f"{name} has {int((~finite).sum())} NaN or inf, the first in row {where}; leave them out")
    if rows is not None and len(array) != rows:
        raise UserError(f"{name} has {len(array)} rows and needs {rows}, one for each of the other arguments")
    if ndim and len(array) < least:
        raise UserError(f"{name} has {len(array)} rows and needs {least} at least")
    return array


def floats(name: str, x: Any, *, ndim: int | None = 1, least: int = 0, rows: int | None = None) -> Any:
    """`numbers` in float64."""
    array = numbers(name, x, ndim=ndim, least=least, rows=rows)
    return array if traced(array) else array.astype(np.float64)


def floats32(name: str, x: Any, *, ndim: int = 1, least: int = 0, rows: int | None = None) -> Any:
    """`numbers` in float32; refused where that turns a value into inf, or all of them into 0."""
    array = floats(name, x, ndim=ndim, least=least, rows=rows)
    if traced(array):
        return array
    largest = float(np.abs(array).max(initial=0.0))
    if largest > float(_FLOAT32.max) or 0 < largest < _FLOAT32.tiny:
        raise UserError(f"{name} reaches {largest:.2g}, which float32 cannot hold; rescale it")
    return array.astype(np.float32)


def relative32(name: str, x: Any, *, ndim: int = 1, least: int = 0, rows: int | None = None) -> Any:
    """`numbers` minus their first row, over a power of two, in float32: for what knows neither offset nor scale.

    Both are taken out in float64, so a large offset or an extreme scale costs no digits; the largest is in (½, 1].
    """
    array = floats(name, x, ndim=ndim, least=least, rows=rows)
    if traced(array):
        return array
    half = 0.5 * array  # so that the difference of the two largest float64 is finite
    half = half - half[:1]
    exponent = math.frexp(float(np.abs(half).max(initial=0.0)))[1]
    return np.ldexp(half, -exponent).astype(np.float32)


def directions32(name: str, x: Any, *, ndim: int = 1, rows: int | None = None) -> Any:
    """`numbers` over a power of two for each last axis, in float32: vectors of which only the direction counts."""
    array = floats(name, x, ndim=ndim, rows=rows)
    if traced(array):
        return array
    largest = np.abs(array).max(axis=-1, keepdims=True, initial=0.0)
    return np.ldexp(array, -np.frexp(largest)[1]).astype(np.float32)


def eps(dtype: Any) -> float:
    """The rounding unit of results in a dtype, relative to their size: 0 for integers, and float32's for narrower ones,
    whose values are taken as they are."""
    single = float(_FLOAT32.eps)
    return min(float(jnp.finfo(dtype).eps), single) if jnp.issubdtype(dtype, np.floating) else 0.0


def signs(x: Any, rows: int | None = None, *, name: str = "sign", both: bool = True) -> Any:
    """Signs of the poles as int32: 1, −1, and 0 for a sample that is left out.

    Raises:
      UserError: bool, 0/1 labels or any other value; with `both`, a pole that has no sample at all.
    """
    array = numbers(name, x, rows=rows)
    if traced(array):
        return array
    odd = array[~np.isin(array, (-1, 0, 1))]
    if len(odd):
        raise UserError(f"{name} has the value {odd[0]}; use −1, 0 (left out), 1")
    for pole, text in ((-1, "−1"), (1, "1")):
        if both and not (array == pole).any():
            raise UserError(f"{name} has no {text}, so one pole is missing; use −1, 0 (left out), 1")
    return array.astype(np.int32)


def flags(name: str, x: Any, rows: int | None = None) -> Any:
    """Booleans, or numbers that are 0 or 1, as bool."""
    x = _listed(name, x)
    if traced(x):
        return jnp.asarray(x)
    if isinstance(x, list):
        x = [int(v) if isinstance(v, bool | np.bool_) else v for v in x]
    elif _is_bool(x):
        x = np.asarray(x).astype(np.int8)
    array = numbers(name, x, rows=rows)
    if not np.isin(array, (0, 1)).all():
        raise UserError(f"{name} has values that are neither true nor false; use True and False")
    return array.astype(bool)


def groups(name: str, x: Any, rows: int | None = None) -> np.ndarray:
    """Ids [n], all numbers or all texts, as int32 codes 0…G−1 in the order of the sorted ids.

    Raises:
      UserError: None or NaN, ids of several types (1 and "1"), not one id a row.
    """
    x = _listed(name, x)
    if traced(x):
        raise UserError(f"{name} is traced; ids are read on the host, outside jit")
    ids = x if isinstance(x, list) else np.asarray(x).tolist()
    if not isinstance(ids, list):
        raise UserError(f"{name} needs one id a row, not the single value {ids!r}")
    ids = [v.item() if isinstance(v, np.generic | jax.Array | np.ndarray) and np.ndim(v) == 0 else v for v in ids]
    kinds = {type(v) for v in ids}
    if len(kinds) > 1 or not kinds <= {str, bytes, int, float, bool}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"{name} needs one id a row, all numbers or all texts, not {found}")
    if any(isinstance(v, float) and not math.isfinite(v) for v in ids):
        raise UserError(f"{name} has an id that is NaN or inf; give every row an id")
    if rows is not None and len(ids) != rows:
        raise UserError(f"{name} has {len(ids)} rows and needs {rows}, one for each of the other arguments")
    code = {value: k for k, value in enumerate(sorted(set(ids)))}  # type: ignore[type-var]
    return np.array([code[value] for value in ids], np.int32)


def count(name: str, n: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most`; no bool and no float."""
    n = n.item() if isinstance(n, np.generic | np.ndarray | jax.Array) and np.ndim(n) == 0 else n
    if not isinstance(n, int) or isinstance(n, bool) or n < least or (most is not None and n > most):
        span = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} is {n!r}; use a whole number {span}")
    return n


def seed(n: Any, name: str = "seed") -> int:
    """A seed, as of `values.seed`; also out of an array of no dimension."""
    return values.seed(n.item() if isinstance(n, np.generic | np.ndarray | jax.Array) and np.ndim(n) == 0 else n, name)


def number(name: str, x: Any, least: float = -math.inf, most: float = math.inf) -> Any:
    """One finite number from `least` to `most`, as a float."""
    array = floats(name, x, ndim=0)
    if traced(array):
        return array
    if not least <= float(array) <= most:
        raise UserError(f"{name} is {float(array):g}; use a number from {least:g} to {most:g}")
    return float(array)


def probabilities(name: str, p: Any) -> np.ndarray:
    """[m] numbers from 0 to 1, in float64."""
    array = floats(name, p)
    if not traced(array) and ((array < 0) | (array > 1)).any():
        raise UserError(f"{name} has a value outside 0…1; give probabilities")
    return array


def _listed(name: str, x: Any) -> Any:
    """`x`, where it can be read once only as a list; no text, set or mapping."""
    if isinstance(x, str | bytes | Mapping | Set) or x is None:
        raise UserError(f"{name} needs a list or an array, not an object of type {type(x).__name__}")
    return list(x) if isinstance(x, tuple) or (isinstance(x, Iterable) and not hasattr(x, "__len__")) else x


def _no_bool(name: str, x: Any) -> None:
    """NumPy would make numbers of them in a list that has both."""
    if isinstance(x, list | tuple):
        for v in x:
            _no_bool(name, v)
    elif _is_bool(x):
        raise UserError(f"{name} has the value {'True or False' if np.ndim(x) else x}; give numbers")


def _is_bool(x: Any) -> bool:
    return isinstance(x, bool) or (hasattr(x, "dtype") and x.dtype == np.bool_)
