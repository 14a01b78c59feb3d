"""Values held against their annotations: one check for layers, recipes and options of models.

::

    channels: Annotated[int, Bounds(1)]   16.0 -> found 16.0 (float); allowed: a whole number of
                                                  1 or more
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

from orchestrator.errors import InputError

_NAMES = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text",
    tuple: "a tuple", list: "a list", dict: "a mapping", NoneType: "None",
}  # fmt: skip


class Limit(Protocol):
    """Narrows a type, inside ``Annotated``."""

    @property
    def text(self) -> str:
        """What is allowed, to be read after the type's name."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the type is allowed."""


@dataclass(frozen=True)
class Bounds:
    """A number from ``low`` to ``high``, both allowed unless ``above`` excludes ``low``, or
    ``below`` ``high``."""

    low: float = -inf
    high: float = inf
    below: bool = False
    above: bool = False

    @property
    def text(self) -> str:
        if self.high == inf:
            return f"above {self.low:g}" if self.above else f"of {self.low:g} or more"
        low = f"above {self.low:g}, up" if self.above else f"from {self.low:g}"
        return f"{low} to {'less than ' if self.below else ''}{self.high:g}"

    def holds(self, value: float) -> bool:
        high = value < self.high if self.below else value <= self.high
        return high and (self.low < value if self.above else self.low <= value)


Count = Annotated[int, Bounds(1)]
NonNegative = Annotated[int, Bounds(0)]


@dataclass(frozen=True)
class Matches:
    """Text that matches a pattern as a whole; ``text`` says it in words."""

    pattern: str
    text: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class Odd:
    """An odd number."""

    text: str = "and odd"

    def holds(self, value: int) -> bool:
        return value % 2 == 1


def check_fields(owner: Any, what: str) -> None:
    """Hold every field of a dataclass against its annotation.

    Args:
        owner: an instance; annotations that cannot be read, or say more than this module knows,
            allow anything.
        what: the owner as messages call it.

    Raises:
        InputError: the first field that does not fit: what was found, what is allowed.
    """
    kind: type = type(owner)
    hints = _hints(kind)
    for field in fields(owner):
        check(getattr(owner, field.name), hints.get(field.name, Any), f"{what}: {field.name}")


def check(value: object, hint: Any, what: str, location: str = "", remedy: str = "") -> None:
    """Hold one value against an annotation.

    Raises:
        InputError: it does not fit.
    """
    if not _fits(value, hint):
        raise InputError(
            f"{what}: found {_found(value)}; allowed: {_allowed(hint)}", location, remedy
        )


def as_annotated(value: object, hint: Any) -> object:
    """A list as the tuple that an annotation asks for, since YAML knows lists only."""
    return tuple(value) if isinstance(value, list) and tuple in _origins(hint) else value


@lru_cache(maxsize=256)
def _hints(owner: type) -> dict[str, Any]:
    """By field, its annotation; those of a class that names what it imports for checkers only are
    left out."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        try:
            found |= inspect.get_annotations(base, eval_str=True)
        except Exception:  # evaluating what a user wrote may raise anything
            continue
    return found


def _origins(hint: Any) -> set[Any]:
    """The plain types of an annotation: of each member of a union, without ``Annotated``."""
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _origins(get_args(hint)[0])
    if origin in (Union, UnionType):
        return {one for member in get_args(hint) for one in _origins(member)}
    return {origin}


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        inner, *limits = arguments
        return _fits(value, inner) and all(limit.holds(value) for limit in _limits(limits))
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in arguments)
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in arguments)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if origin is None or origin is NoneType:
        return value is None
    if origin is tuple:
        return isinstance(value, tuple) and _members_fit(value, arguments)
    return not isinstance(origin, type) or origin not in _NAMES or isinstance(value, origin)


def _members_fit(value: tuple[object, ...], arguments: tuple[Any, ...]) -> bool:
    if not arguments:
        return True
    if arguments[-1] is Ellipsis:
        return all(_fits(member, arguments[0]) for member in value)
    return len(value) == len(arguments) and all(map(_fits, value, arguments))


def _limits(found: Iterable[Any]) -> list[Limit]:
    return [limit for limit in found if isinstance(limit, Bounds | Matches | Odd)]


def _allowed(hint: Any) -> str:
    origin, arguments = get_origin(hint) or hint, get_args(hint)
    if origin is Annotated:
        return " ".join([_allowed(arguments[0]), *(x.text for x in _limits(arguments[1:]))])
    if origin in (Union, UnionType):
        return ", or ".join(map(_allowed, arguments))
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if origin is tuple and arguments and arguments[-1] is Ellipsis:
        return f"a tuple, each of it {_allowed(arguments[0])}"
    if origin is tuple and arguments:
        return f"a tuple of {len(arguments)}, each of it {_allowed(arguments[0])}"
    return _NAMES.get(NoneType if origin is None else origin, str(hint))


def _found(value: object) -> str:
    """A value as Python writes it, cut short, with its type where that may be the point."""
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return (
        short
        if isinstance(value, str | int) and value is not True and value is not False
        else (f"{short} ({type(value).__name__})")
    )
