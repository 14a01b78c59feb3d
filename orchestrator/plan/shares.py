"""Unequal parts: ``shares: [2, 1]`` along the one axis of a split, or a mapping for a grid.

``split: {height: 2, batch: 2}`` with ``shares: {height: [2, 1]}`` gives two thirds of the rows to
two of the ranks, one third to the other two; an axis that is left out has equal parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.plan.grid import AXES, read_axis
from orchestrator.plan.problem import Problem, found, listed, refusal

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Shares:
    """Unequal parts along some axes of a grid, as they were written."""

    axes: tuple[tuple[str, tuple[int, ...]], ...]

    def of(self, axis: str) -> tuple[int, ...] | None:
        """Those along an axis; None for one that is left out."""
        return dict(self.axes).get(axis)


def read_shares(value: object) -> tuple[int, ...] | Shares | None:
    """What a user wrote under ``shares``, checked as far as the split is not needed.

    Raises:
        PydanticCustomError: carrying every problem found.
    """
    if value is None or isinstance(value, Shares):
        return value
    problems: list[Problem] = []
    if not isinstance(value, Mapping):
        shares = _read_list(value, problems, "shares: [2, 1]", ", or a mapping from axis to list")
        if problems:
            raise refusal(problems)
        return shares
    axes: list[tuple[str, tuple[int, ...]]] = []
    for key, of_axis in value.items():
        axis = read_axis(key)
        if isinstance(axis, Problem):
            problems.append(axis)
            continue
        inner: list[Problem] = []
        axes.append((axis, _read_list(of_axis, inner, f"{axis}: [2, 1]")))
        problems += [problem.under((axis,)) for problem in inner]
    if not value:
        message = f"found an empty mapping; allowed: at least one of {listed(AXES)}"
        problems.append(Problem((), message, "remove shares, or write {height: [2, 1]}"))
    if problems:
        raise refusal(problems)
    return Shares(tuple(axes))


def _read_list(
    value: object, problems: list[Problem], like: str, or_else: str = ""
) -> tuple[int, ...]:
    """Whole numbers of 1 or more; what is none is added to the problems."""
    if not isinstance(value, list | tuple):
        message = f"{found(value)}; allowed: a list of whole numbers, one for each part{or_else}"
        problems.append(Problem((), message, f"write it like {like}"))
        return ()
    for position, share in enumerate(value):
        if isinstance(share, bool) or not isinstance(share, int) or not 1 <= share <= LARGEST:
            message = f"{found(share)}; allowed: a whole number, 1 or more, at most {LARGEST}"
            problems.append(Problem((position,), message, f"write it like {like}"))
    return tuple(value)
