"""Checks that options share: ranges, whole numbers, choices."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np

from ..conventions import MULTIPLE
from ..errors import InputError


def check_rate(rate: float, name: str = "rate") -> float:
    """Return `rate` as a float, or raise InputError unless it is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise InputError(f"`{name}` must be a number in [0, 1), got {name}={rate!r}.")
    return float(rate)


def check_whole(value: int, name: str, minimum: int = 1) -> int:
    """Return `value` as an int, or raise InputError unless it is a whole number of at least `minimum`, below 2^32."""
    _check(value, name, at_least(minimum), SMALL)
    return int(value)


def check_seed(seed: int | None) -> None:
    """Raise InputError unless `seed` is a whole number, or None for none."""
    if seed is not None and not is_whole(seed):
        raise InputError(f"`seed` must be a whole number or None, got seed={seed!r}.")


def check_type(value, name: str, kind: type) -> None:
    """Raise InputError unless `value` is True or False, text, or of a class, as `kind` says."""
    _check(value, name, of_type(kind))


def _check(value, name: str, *rules: "Rule") -> None:
    for rule in rules:
        if not rule.holds(value):
            raise InputError(f"`{name}` must be {rule.words}, got {name}={value!r}.")


def check_tile(tile: int, overlap: int, margin: int = 0) -> None:
    """Raise InputError unless the tile, overlap and margin fit each other."""
    check_whole(tile, "tile", minimum=MULTIPLE)
    check_whole(overlap, "overlap", minimum=0)
    check_whole(margin, "margin", minimum=0)
    if tile % MULTIPLE or overlap % MULTIPLE:
        raise InputError(f"`tile` and `overlap` must be multiples of {MULTIPLE}, got tile={tile}, overlap={overlap}.")
    if overlap > tile // 2 or margin > overlap // 2:
        raise InputError(
            f"`overlap` must be at most half of tile={tile} and `margin` at most half of overlap, "
            f"got overlap={overlap}, margin={margin}."
        )


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the value of a field, in the field's hint: `Annotated[float, within("(0, 1]", lambda v: 0 < v <= 1)]`.

    Attributes:
        words: what the value must be, as the message says it.
        holds: whether a value is so.
    """

    words: str
    holds: Callable[[typing.Any], bool]


def at_least(minimum: int) -> Rule:
    return Rule(f"a whole number of at least {minimum}", lambda value: is_whole(value) and value >= minimum)


def within(words: str, holds: Callable[[float], bool]) -> Rule:
    """A finite number for which `holds` is true."""
    return Rule(words, lambda value: is_finite(value) and holds(value))


def of_type(kind: type) -> Rule:
    words = {bool: "True or False", str: "text"}.get(kind, f"a {kind.__name__}")
    return Rule(words, lambda value: isinstance(value, kind))


# Nothing is that many; and larger numbers do not fit what computes with them.
SMALL = Rule("below 2^32", lambda value: not is_whole(value) or value < 2**32)
# One name, or several joined by commas, is text.
_NAMES = Rule(
    "a list of names",
    lambda value: isinstance(value, (str, list, tuple)) and all(isinstance(name, str) for name in value),
)
Seed = Annotated[int, at_least(0)]


def check_fields(options) -> None:
    """Raise InputError unless every field of a dataclass is what its hint says: True or False, text, a configuration,
    one of the choices of a `Literal`, and what the rules of an `Annotated` ask for, whole numbers below 2^32. A field
    that may be None is not looked at where it is. NumPy's values become Python's own."""
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        value = plain(getattr(options, name))
        object.__setattr__(options, name, value)
        choices, rules, optional = _read(hint)
        if value is None and optional:
            continue
        if choices and value in choices:
            continue
        if choices and not rules:
            raise InputError(f"`{name}` must be one of {', '.join(map(str, choices))}, got {name}={value!r}.")
        for rule in (*rules, SMALL):
            if not rule.holds(value):
                others = "".join(f", or {choice}" for choice in choices)
                raise InputError(f"`{name}` must be {rule.words}{others}, got {name}={value!r}.")


def plain(value):
    """`value` with NumPy's scalars and arrays, also those within it, as Python's numbers and tuples: JSON holds these,
    Keras takes them, and they are compared with one another."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = tuple(value.tolist()) if np.ndim(value) else value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {plain(key): plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def real_numbers(values) -> np.ndarray | None:
    """`values` as float64, NaN where there is None or a mask; None where they are no array of real numbers."""
    try:
        array = np.ma.asarray(values)
        objects = array.data.flat if array.dtype.kind == "O" else ()
        known = array.dtype.kind in "biufO" and all(isinstance(one, numbers.Real | None) for one in objects)
        return np.ma.filled(array.astype(np.float64), np.nan) if known else None
    except (OverflowError, TypeError, ValueError):  # rows of several lengths
        return None


def _read(hint) -> tuple[tuple, list[Rule], bool]:
    """The choices and the rules of a hint, and whether it takes None."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint), [], False
    if typing.get_origin(hint) is Annotated:
        choices, rules, optional = _read(hint.__origin__)
        return choices, [extra for extra in hint.__metadata__ if isinstance(extra, Rule)] + rules, optional
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [_read(member) for member in typing.get_args(hint)]
        choices, rules = (sum((member[i] for member in members), type(members[0][i])()) for i in (0, 1))
        return choices, rules, type(None) in typing.get_args(hint)
    if hint == tuple[str, ...]:
        return (), [_NAMES], False
    return (), [of_type(hint)] if hint in (bool, str) or dataclasses.is_dataclass(hint) else [], False


def is_finite(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
