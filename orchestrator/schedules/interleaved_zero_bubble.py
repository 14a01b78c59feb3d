"""InterleavedZeroBubble: Interleaved1F1B with the weight halves in what would be bubbles.

    group 0  0F0 0F1 0F2 0I0 0F3 0I1 0W0 0W1 0I2 0W2  .  0I3 0W3
    group 1   .  1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1F3 1I3 1W2 1W3

With one stage a group, a group idles (p - 1)(t_F + t_I - t_W).
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.schedules.interleaved import interleaved
from orchestrator.schedules.schedule import Action, Schedule, Timetable, in_rounds, play


def interleaved_zero_bubble(groups: int, stages: int, microbatches: int) -> Timetable:
    """A weight half when nothing else is ready, or when ``groups`` of them are waiting."""
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

    return play(groups, stages, 3 * stages * microbatches, choose)


SCHEDULE = Schedule(
    "InterleavedZeroBubble",
    "Qi et al., Zero Bubble Pipeline Parallelism, 2023",
    interleaved_zero_bubble,
    in_rounds,
)
