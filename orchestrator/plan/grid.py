"""How an entry's ranks share its layers: a grid of ranks, row-major.

``split: {batch: 2, channel: 2}`` over ``ranks: [0, 1, 2, 3]``::

                     channel 0   channel 1
    batch, 1st half   rank 0      rank 1
    batch, 2nd half   rank 2      rank 3
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from orchestrator.plan.problem import Problem, found, listed, nearest, printable, refusal

AXES: dict[str, str] = {
    "batch": "examples",
    "channel": "output channels",
    "height": "rows",
    "width": "columns",
    "token": "tokens",
    "input": "input channels",
}
"""Axes of the built-in layers that a plan can cut, with what each part has some of. A plan of a
model file may cut any other axis that a layer's output has, too."""

NONE = "none"
AXIS = r"[a-z][a-z0-9_]{0,29}"
"""A name that an axis may have."""


@dataclass(frozen=True)
class Grid:
    """Parts along each axis, in the order in which the ranks run through them.

    The last axis varies fastest. ``none`` is a grid without axes.
    """

    axes: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """How many ranks it takes."""
        return prod(count for _, count in self.axes)

    def has(self, axis: str) -> bool:
        """Whether this axis is named, be it with one part."""
        return any(name == axis for name, _ in self.axes)

    def parts(self, axis: str) -> int:
        """How many along an axis; 1 for one that is not named."""
        return dict(self.axes).get(axis, 1)


def read_split(value: object) -> str | Grid:
    """What a user wrote under ``split``, checked as far as the model is not needed.

    Raises:
        PydanticCustomError: carrying every problem found.
    """
    if isinstance(value, Grid):
        return value
    if isinstance(value, Mapping):
        return _read_grid(value)
    if isinstance(value, str) and re.fullmatch(AXIS, value):
        return value
    raise refusal([unknown_split(value)])


def unknown_split(value: object) -> Problem:
    """What is wrong with a split that names no axis."""
    splits = (NONE, *AXES)
    near = nearest(value, splits) if isinstance(value, str) else ""
    remedy = f"did you mean {near}?" if near else "write split: none, or split: channel"
    allowed = f"{listed(splits)}, or a grid such as {{batch: 2, channel: 2}}"
    return Problem((), f"{found(value)}; allowed: {allowed}", remedy)


def read_axis(key: object) -> str | Problem:
    """The axis that a key of a mapping names, or what is wrong with it."""
    if isinstance(key, str) and re.fullmatch(AXIS, key) and key != NONE:
        return key
    return unknown_axis(key)


def unknown_axis(key: object) -> Problem:
    """What is wrong with a key that names no axis."""
    near = nearest(key, AXES)
    remedy = f"did you mean {near}?" if near else "remove it"
    message = f"found the key '{printable(str(key))}'; allowed: {listed(AXES)}"
    return Problem((str(key),), message, remedy)


def _read_grid(value: Mapping[object, object]) -> Grid:
    axes: list[tuple[str, int]] = []
    problems: list[Problem] = []
    for key, count in value.items():
        axis = read_axis(key)
        if isinstance(axis, Problem):
            problems.append(axis)
        elif isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < 2**20:
            message = f"{found(count)}; allowed: a whole number of parts, 1 to {2**20 - 1}"
            problems.append(Problem((axis,), message, f"write {axis}: 2"))
        else:
            axes.append((axis, count))
    if not value:
        message = f"found an empty grid; allowed: at least one of {listed(AXES)}"
        problems.append(Problem((), message, "write split: none, or {batch: 2, channel: 2}"))
    if "channel" in value and "input" in value:
        message = "found channel and input in one grid; allowed: one of the two, beside batch"
        remedy = "cut this layer by channel and the next by input, each in its own entry"
        problems.append(Problem((), message, remedy))
    if problems:
        raise refusal(problems)
    return Grid(tuple(axes))
