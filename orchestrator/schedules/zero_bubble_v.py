"""ZBVZeroBubble (ZB-V): the stages run down the groups and back up, with split backwards.

    group 0  0F0 0F1  .  3F0 3I0 3F1 3I1 0I0 3W0 0I1 3W1 0W0 0W1
    group 1   .  1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1

One group has the first stage and the last. It holds as many activations as with 1F1B.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.schedules.schedule import Action, Schedule, Timetable, play, v_shaped


def zero_bubble_v(groups: int, stages: int, microbatches: int) -> Timetable:
    """An input half before a forward, a later stage before an earlier one, a weight half last.

    A group admits a microbatch while it holds less than ``groups`` of them.
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

    return play(groups, stages, 3 * stages * microbatches, choose)


SCHEDULE = Schedule(
    "ZBVZeroBubble",
    "Qi et al., Pipeline Parallelism with Controllable Memory, 2024",
    zero_bubble_v,
    v_shaped,
    entry_per_stage=True,
)
