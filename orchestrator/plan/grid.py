"""How an entry's ranks share its layers: a grid of ranks, row-major.

``split: {batch: 2, channel: 2}`` over ``ranks: [0, 1, 2, 3]``::

                     channel 0   channel 1
    batch, 1st half   rank 0      rank 1
    batch, 2nd half   rank 2      rank 3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from orchestrator.plan.problem import Problem, found, listed, nearest, printable, refusal

Axis = Literal["batch", "channel", "height", "token", "input"]
AXES: tuple[Axis, ...] = get_args(Axis)

Split = Literal["none", "batch", "channel", "height", "token", "input"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Grid:
    """Parts along each axis; ``axes`` keeps the order in which the ranks run through them.

    The last axis varies fastest. Without ``axes`` the order is batch, channel, height, token,
    input, and axes of one part are left out.
    """

    batch: int = 1
    channel: int = 1
    height: int = 1
    token: int = 1
    input: int = 1
    axes: tuple[tuple[Axis, int], ...] = ()

    def __post_init__(self) -> None:
        parts: dict[Axis, int] = {
            "batch": self.batch,
            "channel": self.channel,
            "height": self.height,
            "token": self.token,
            "input": self.input,
        }
        if not self.axes:
            axes = tuple((axis, count) for axis, count in parts.items() if count != 1)
            object.__setattr__(self, "axes", axes)
        elif {**dict.fromkeys(AXES, 1), **dict(self.axes)} != parts:
            raise ValueError(f"axes {self.axes} do not say the same as {parts}")

    @classmethod
    def of(cls, axes: tuple[tuple[Axis, int], ...]) -> Grid:
        """The grid with these axes, in this order."""
        return cls(**dict(axes), axes=axes)

    @property
    def size(self) -> int:
        """How many ranks it takes."""
        return prod(count for _, count in self.axes)

    def has(self, axis: Axis) -> bool:
        """Whether this axis is named, be it with one part."""
        return any(name == axis for name, _ in self.axes)


def read_split(value: object) -> Split | Grid:
    """What a user wrote under ``split``, checked.

    Raises:
        PydanticCustomError: carrying every problem found.
    """
    if isinstance(value, Grid):
        return value
    if isinstance(value, Mapping):
        return _read_grid(value)
    for split in SPLITS:
        if isinstance(value, str) and value == split:
            return split
    near = nearest(value, SPLITS) if isinstance(value, str) else ""
    remedy = f"did you mean {near}?" if near else "write split: none, or split: channel"
    allowed = f"{listed(SPLITS)}, or a grid such as {{batch: 2, channel: 2}}"
    raise refusal([Problem((), f"{found(value)}; allowed: {allowed}", remedy)])


def read_axis(key: object) -> Axis | Problem:
    """The axis that a key of a mapping names, or what is wrong with it."""
    for axis in AXES:
        if axis == key:
            return axis
    near = nearest(key, AXES)
    remedy = f"did you mean {near}?" if near else "remove it"
    message = f"found the key '{printable(str(key))}'; allowed: {listed(AXES)}"
    return Problem((str(key),), message, remedy)


def _read_grid(value: Mapping[object, object]) -> Grid:
    axes: list[tuple[Axis, int]] = []
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
    return Grid.of(tuple(axes))
