"""1F1B: a backward as soon as there is one, so that fewer microbatches are in flight.

    group 0  0F0 0F1 0F2  .   .  0B0 0F3 0B1  .  0B2  .  0B3
    group 1   .  1F0 1F1  .  1B0 1F2 1B1 1F3 1B2  .  1B3  .
    group 2   .   .  2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3  .   .

A step takes (m + p - 1)(t_F + t_B), as GPipe's. Group g keeps the activations of p - g
microbatches.
"""

from __future__ import annotations

from orchestrator.schedules.schedule import Action, Schedule, Timetable, straight


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


SCHEDULE = Schedule(
    "1F1B",
    "Narayanan et al., PipeDream, 2019; flushed after every step: PipeDream-2BW, 2021",
    one_forward_one_backward,
    straight,
)
