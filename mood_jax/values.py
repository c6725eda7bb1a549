"""Checks of single values, for configs and for Python callers alike: each gives the value back or raises UserError.

Nothing is converted that would be another value afterwards: 3.5 is no count, True is no number, 1 is no text.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mood_jax.errors import UserError

LARGEST_SEED = 2**32 - 1  # JAX cuts larger seeds to 32 bits, so that two of them would draw alike
LARGEST_COUNT = 2**31 - 1

Check = Callable[[str, Any], Any]


def whole(name: str, value: Any, least: int = 0, most: int = LARGEST_COUNT) -> int:
    """A whole number from `least` to `most`, of Python's or NumPy's integer types."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, not {_shown(value)}") from None
    if number < least:
        raise UserError(f"{name} must be at least {least}, not {number}")
    if number > most:
        raise UserError(f"{name} must be at most {most}, not {number}")
    return number


def seed(value: Any, name: str = "seed") -> int:
    """A seed, 0 … 2³² − 1."""
    try:
        return whole(name, value, 0, LARGEST_SEED)
    except UserError:
        raise UserError(f"{name} is {_shown(value)}; use a whole number from 0 to {LARGEST_SEED}") from None


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite real number from `least` to `most`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise UserError(f"{name} must be a number, not {_shown(value)}")
    if not math.isfinite(value):
        raise UserError(f"{name} must be finite, not {value}")
    if not least <= value <= most:
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise UserError(f"{name} must be {bounds}, not {value}")
    return float(value)


def text(name: str, value: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{name} is not valid Unicode; use a UTF-8 locale (LC_ALL=C.UTF-8), or write it in UTF-8"
        ) from None
    return value


def named(name: str, value: Any) -> str:
    """A text that is not empty."""
    if not text(name, value).strip():
        raise UserError(f"{name} is empty; give it a value")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise UserError(f"{name} must be True or False, not {_shown(value)}")
    return bool(value)


def one_of(known: Iterable[str], what: str | None = None) -> Check:
    """A check for one of some names; `what` is what the message calls it."""
    words = tuple(known)

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise UserError(f"unknown {what or name} {value!r}; use one of {', '.join(w for w in words if w)}")
        return value

    return check


def items(name: str, value: Any) -> list[Any]:
    """The items of a list, tuple, array or generator. A text or a mapping is no list, nor is a single value."""
    if isinstance(value, (str, bytes, Mapping)):
        kind = "one string" if isinstance(value, (str, bytes)) else "a mapping"
        raise UserError(f"{name} must be a list, not {kind}; write [{name.removesuffix('s')}]")
    try:
        return list(value)
    except TypeError:
        raise UserError(f"{name} must be a list, not {_shown(value)}") from None


def ranged(least: int = 0, most: int = LARGEST_COUNT, what: str | None = None) -> Check:
    """A check for a whole number; `what` is what the message calls it."""
    return lambda name, value: whole(what or name, value, least, most)


def real(least: float = -math.inf, most: float = math.inf) -> Check:
    """A check for a finite number."""
    return lambda name, value: number(name, value, least, most)


def each(check: Check, least: int = 0) -> Check:
    """A check for every item of a list of at least `least`."""

    def checked(name: str, value: Any) -> list[Any]:
        found = items(name, value)
        if len(found) < least:
            raise UserError(f"{name} is empty; name at least {least}")
        return [check(f"{name}[{i}]", item) for i, item in enumerate(found)]

    return checked


def check_fields(config: Any, checks: Mapping[str, Check], where: str = "config") -> None:
    """Holds every field of a config against its check.

    Raises UserError for fields that are missing, and for the first value that is wrong, with the field's name.
    """
    if missing := sorted(field for field in checks if field not in config):
        raise UserError(f"the {where} lacks {', '.join(missing)}; begin with the one that ships in configs/")
    for field, check in checks.items():
        try:
            check(field, config[field])
        except UserError as e:
            raise UserError(f"{where}.{e}" if str(e).startswith(field) else f"{where}.{field}: {e}") from e


def check_numbers(config: Any, may_be_zero: Iterable[str] = (), where: str = "config") -> None:
    """Holds the numbers of a config against what all of them are: counts of at least 1, finite amounts above 0, a seed.

    may_be_zero: fields whose value may be 0. Numbers in nested configs are not looked at.
    """
    free = set(may_be_zero)
    for field, value in config.items():
        name = f"{where}.{field}"
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if field == "seed":
                seed(one, name)
            elif isinstance(one, int) and not isinstance(one, bool):
                whole(name, one, 0 if field in free else 1, most=2**63 - 1)
            elif isinstance(one, float) and (number(name, one) < 0 or (one == 0 and field not in free)):
                raise UserError(f"{name} must be {'0 or ' if field in free else ''}above 0, not {one}")


def _shown(value: Any) -> str:
    """A value and its kind, short."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "…"
    return shown if isinstance(value, (str, int, float, type(None))) else f"{shown} ({type(value).__name__})"
