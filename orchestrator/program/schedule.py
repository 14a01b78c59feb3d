"""Pipeline schedules as plain data: for each pipeline group, its actions in order.

An action is (kind, stage, microbatch): F forward, B backward, or I and W, the backward's input and
weight halves. A *group* is a set of ranks that runs the same stages. Two stages, four microbatches:

    GPipe   group 0  0F0 0F1 0F2 0F3                     0B0 0B1 0B2 0B3
            group 1      1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3
    1F1B    group 0  0F0 0F1     0B0 0F2 0B1 0F3 0B2     0B3
            group 1      1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3

Sources: GPipe, Huang et al. 2019; 1F1B, PipeDream, Narayanan et al. 2019, flushed as in
PipeDream-2BW 2021; Interleaved1F1B, Megatron-LM, Narayanan et al. 2021; zero-bubble schedules,
Qi et al. 2023 (ZB-H1 idea) and 2024 (ZB-V).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Action(NamedTuple):
    """One step of a pipeline group on one stage and microbatch."""

    kind: str
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


Timetable = list[list[Action]]


def gpipe(groups: int, stages: int, microbatches: int) -> Timetable:
    """All forwards, then all backwards; a group with several stages goes breadth first."""
    table: Timetable = []
    for group in range(groups):
        mine = range(group, stages, groups)
        table.append(
            [Action("F", s, m) for s in mine for m in range(microbatches)]
            + [Action("B", s, m) for s in reversed(mine) for m in range(microbatches)]
        )
    return table


def one_forward_one_backward(groups: int, stages: int, microbatches: int) -> Timetable:
    """Group g keeps at most ``groups - g`` microbatches in flight."""
    table: Timetable = []
    for g in range(groups):
        warm = min(microbatches, groups - g - 1)
        row = [Action("F", g, m) for m in range(warm)]
        for m in range(microbatches - warm):
            row += [Action("F", g, warm + m), Action("B", g, m)]
        row += [Action("B", g, m) for m in range(microbatches - warm, microbatches)]
        table.append(row)
    return table


def interleaved(groups: int, stages: int, microbatches: int) -> Timetable:
    """Megatron-LM's order: rounds of ``groups`` microbatches through each of a group's stages."""
    chunks = stages // groups
    total = microbatches * chunks

    def at(step: int, group: int, *, backward: bool) -> Action:
        round_, place = divmod(step, groups * chunks)
        chunk, offset = divmod(place, groups)
        chunk = chunks - 1 - chunk if backward else chunk
        kind = "B" if backward else "F"
        return Action(kind, chunk * groups + group, round_ * groups + offset)

    table: Timetable = []
    for g in range(groups):
        warm = min(total, (groups - g - 1) * 2 + (chunks - 1) * groups)
        row = [at(i, g, backward=False) for i in range(warm)]
        for i in range(total - warm):
            row += [at(warm + i, g, backward=False), at(i, g, backward=True)]
        row += [at(i, g, backward=True) for i in range(total - warm, total)]
        table.append(row)
    return table


def interleaved_zero_bubble(groups: int, stages: int, microbatches: int) -> Timetable:
    """Interleaved1F1B with the weight halves moved into what would be bubbles."""
    order = [
        [a._replace(kind="I") if a.kind == "B" else a for a in row]
        for row in interleaved(groups, stages, microbatches)
    ]
    pending: list[list[Action]] = [[] for _ in range(groups)]
    position = [0] * groups

    def choose(group: int, ready: Callable[[Action], bool]) -> Action | None:
        row, backlog = order[group], pending[group]
        following = row[position[group]] if position[group] < len(row) else None
        if following and ready(following) and len(backlog) < groups:
            position[group] += 1
            if following.kind == "I":
                backlog.append(following._replace(kind="W"))
            return following
        return backlog.pop(0) if backlog else None

    return _play(groups, stages, 3 * stages * microbatches, choose)


def zero_bubble_v(groups: int, stages: int, microbatches: int) -> Timetable:
    """ZB-V: the stages run down the groups and back up, so one group has the first and the last.

    Greedy: an input half before a forward, a later stage before an earlier one, a weight half when
    nothing else is ready. A group admits a microbatch while it holds less than ``groups`` of them,
    which is the activation memory of 1F1B.
    """
    started = [0] * groups
    held = [0] * groups  # stage-microbatches admitted and not yet finished by their W
    waiting: list[deque[Action]] = [deque() for _ in range(groups)]
    for m in range(microbatches):
        for s in range(groups, stages):
            waiting[stages - 1 - s].append(Action("F", s, m))
    # Of a group's two stages, the later first. Input halves of a stage get ready in order.
    inputs: list[list[deque[Action]]] = [
        [deque(Action("I", s, m) for m in range(microbatches)) for s in (stages - 1 - g, g)]
        for g in range(groups)
    ]
    weights: list[deque[Action]] = [deque() for _ in range(groups)]

    def choose(group: int, ready: Callable[[Action], bool]) -> Action | None:
        possible = [row for row in inputs[group] if row and ready(row[0])]
        if possible:
            action = min(possible, key=lambda row: row[0].microbatch).popleft()
            weights[group].append(action._replace(kind="W"))
            return action
        if waiting[group] and ready(waiting[group][0]):
            return waiting[group].popleft()
        first = Action("F", group, started[group])
        if started[group] < microbatches and held[group] + 2 <= 2 * groups and ready(first):
            started[group] += 1
            held[group] += 2
            return first
        if weights[group]:
            held[group] -= 1
            return weights[group].popleft()
        return None

    return _play(groups, stages, 3 * stages * microbatches, choose)


Chooser = Callable[[int, Callable[[Action], bool]], Action | None]


def _play(groups: int, stages: int, total: int, choose: Chooser) -> Timetable:
    """Let every group choose an action each tick, using what ended in earlier ticks."""
    done: set[Action] = set()
    table: Timetable = [[] for _ in range(groups)]

    def ready(action: Action) -> bool:
        return all(need in done for need in needs_of(action, stages))

    count = 0
    while count < total:
        chosen = [choose(group, ready) for group in range(groups)]
        found = [action for action in chosen if action]
        assert found, "the schedule ran dry"
        for row, action in zip(table, chosen, strict=True):
            if action:
                row.append(action)
        done.update(found)
        count += len(found)
    return table


def needs_of(action: Action, stages: int) -> list[Action]:
    """Actions on other stages, or on this one, whose results ``action`` uses."""
    kind, stage, microbatch = action
    if kind == "F":
        return [Action("F", stage - 1, microbatch)] if stage else []
    if kind == "W":
        return [Action("I", stage, microbatch)]
    behind = [Action(kind, stage + 1, microbatch)] if stage < stages - 1 else []
    return [Action("F", stage, microbatch), *behind]


def linearise(table: Timetable, stages: int) -> list[Action]:
    """One order of all actions in which everything comes after what it needs.

    Tick by tick, as if every action took one unit of time: the order in which a quiet cluster
    would run them, so that a receive posted in this order is posted in time.
    """
    done: set[Action] = set()
    position = [0] * len(table)
    order: list[Action] = []
    total = sum(map(len, table))
    while len(order) < total:
        now = []
        for group, row in enumerate(table):
            if position[group] < len(row):
                action = row[position[group]]
                if all(need in done for need in needs_of(action, stages)):
                    now.append(action)
                    position[group] += 1
        assert now, "the schedule is not a legal one"
        done.update(now)
        order += now
    return order


BUILDERS: dict[str, Callable[[int, int, int], Timetable]] = {
    "GPipe": gpipe,
    "1F1B": one_forward_one_backward,
    "Interleaved1F1B": interleaved,
    "InterleavedZeroBubble": interleaved_zero_bubble,
    "ZBVZeroBubble": zero_bubble_v,
}
SPLITS_BACKWARD = frozenset({"InterleavedZeroBubble", "ZBVZeroBubble"})
