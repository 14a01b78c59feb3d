"""A pipeline schedule as plain data, and how stages may lie on ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Action(NamedTuple):
    """One step of a pipeline group on one stage and microbatch.

    Args:
        kind: F forward, B backward; or I and W, the backward's input and weight halves.
    """

    kind: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Timetable = list[list[Action]]
"""By pipeline group, its actions in order. A group is a set of ranks that runs the same stages."""
Stages = tuple[tuple[int, ...], ...]
"""By stage, its ranks."""


class Misfit(NamedTuple):
    """Why a schedule cannot run a pipeline.

    Args:
        reason: a sentence whose subject is the schedule: ``needs every stage on ...``.
        microbatches: a number of them that would do; None if the placement has to change.
    """

    reason: str
    microbatches: int | None = None


Fits = Callable[[Stages, int], Misfit | None]


@dataclass(frozen=True)
class Schedule:
    """A row of the registry: all that the rest of the package knows about a schedule.

    Args:
        name: as plans write it.
        source: the paper, ending in its year.
        build: the timetable of so many groups, stages and microbatches.
        fits: None, or why it does not suit these stages and this number of microbatches. Without
            it the stages may lie on any ranks, as often as they like, and ``build`` is asked for
            one group that has all of them.
        entry_per_stage: every entry of a placement is a stage, also if it shares ranks with the
            entry before it, as at the turn of a V.
        leaner: if more microbatches do not save memory, the schedule for such stages with which
            they do.

    Example:
        >>> SCHEDULES["mine"] = Schedule("mine", "Me, 2026", gpipe)
    """

    name: str
    source: str
    build: Callable[[int, int, int], Timetable]
    fits: Fits | None = None
    entry_per_stage: bool = False
    leaner: str = ""

    @property
    def year(self) -> int:
        return int(self.source[-4:])

    def misfit(self, stages: Stages, microbatches: int) -> Misfit | None:
        """None if it can run them."""
        return self.fits(stages, microbatches) if self.fits else None

    def order(self, stages: Stages, microbatches: int) -> list[Action]:
        """All actions of a step in one legal order."""
        groups = len(set(stages)) if self.fits else 1
        return linearise(self.build(groups, len(stages), microbatches), len(stages))


# -- how stages may lie on ranks ------------------------------------------------------------------


def straight(stages: Stages, microbatches: int) -> Misfit | None:
    """Fits a plain pipeline: 0, 1, 2, 3."""
    legal = len(set(stages)) == len(stages) and _disjoint(stages)
    return None if legal else Misfit("needs every stage on ranks of its own")


def looped(stages: Stages, microbatches: int) -> Misfit | None:
    """Fits stages that go round the ranks: 0, 1, 0, 1."""
    groups, count = len(set(stages)), len(stages)
    legal = count % groups == 0 and stages == stages[:groups] * (count // groups)
    shape = "stages that go round the same ranks in turn, such as 0, 1, 0, 1"
    return None if legal and _disjoint(stages) else Misfit(f"needs {shape}")


def in_rounds(stages: Stages, microbatches: int) -> Misfit | None:
    """Fits stages that go round the ranks, as many microbatches at a time as there are groups."""
    groups = len(set(stages))
    if (misfit := looped(stages, microbatches)) or microbatches % groups == 0:
        return misfit
    reason = (
        f"goes in rounds of {groups} microbatches (one per group of ranks); "
        f"{microbatches} do not divide"
    )
    return Misfit(reason, -(-microbatches // groups) * groups)


def v_shaped(stages: Stages, microbatches: int) -> Misfit | None:
    """Fits stages that run down the ranks and back up: 0, 1, 1, 0."""
    half = stages[: len(stages) // 2]
    legal = stages == half + half[::-1] and len(set(half)) == len(half) and _disjoint(stages)
    shape = "an even number of entries that run down the ranks and back up, such as 0, 1, 1, 0"
    return None if legal else Misfit(f"needs {shape}")


def _disjoint(stages: Stages) -> bool:
    """Whether stages share all of their ranks or none."""
    return sum(map(len, set(stages))) == len({rank for ranks in stages for rank in ranks})


# -- what is legal --------------------------------------------------------------------------------


def needs_of(action: Action, stages: int) -> list[Action]:
    """Actions on other stages, or on this one, whose results ``action`` uses."""
    kind, stage, microbatch = action
    if kind == "F":
        return [Action("F", stage - 1, microbatch)] if stage else []
    if kind == "W":
        return [Action("I", stage, microbatch)]
    behind = [Action("I", stage + 1, microbatch)] if stage < stages - 1 else []
    return [Action("F", stage, microbatch), *behind]


def ends_with(action: Action) -> tuple[Action, ...]:
    """Actions that have ended when ``action`` has: a whole backward includes its input half."""
    return (action, action._replace(kind="I")) if action.kind == "B" else (action,)


def linearise(table: Timetable, stages: int) -> list[Action]:
    """One order of all actions in which everything comes after what it needs.

    Tick by tick, as if every action took one unit of time: the order in which a quiet cluster
    would run them, so that a receive posted in this order is posted in time.
    """
    order: list[Action] = []
    position = [0] * len(table)

    def following(group: int, ready: Callable[[Action], bool]) -> Action | None:
        row = table[group]
        if position[group] == len(row) or not ready(row[position[group]]):
            return None
        position[group] += 1
        order.append(row[position[group] - 1])
        return order[-1]

    play(len(table), stages, sum(map(len, table)), following)
    return order


Chooser = Callable[[int, Callable[[Action], bool]], Action | None]


def play(groups: int, stages: int, total: int, choose: Chooser) -> Timetable:
    """Let every group choose an action each tick, using what ended in earlier ticks.

    Args:
        total: actions of a step.
        choose: the next action of a group, None if it has to wait; it is told how to find out
            whether all that an action needs has ended.
    """
    done: set[Action] = set()
    table: Timetable = [[] for _ in range(groups)]

    def ready(action: Action) -> bool:
        return all(need in done for need in needs_of(action, stages))

    count = 0
    while count < total:
        chosen = [choose(group, ready) for group in range(groups)]
        found = [action for action in chosen if action]
        assert found, "the schedule is not a legal one"
        for row, action in zip(table, chosen, strict=True):
            if action:
                row.append(action)
        done.update(ended for action in found for ended in ends_with(action))
        count += len(found)
    return table
