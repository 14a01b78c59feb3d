"""GPipe: all forwards, then all backwards.

    group 0  0F0 0F1 0F2 0F3  .   .   .   .  0B0 0B1 0B2 0B3
    group 1   .  1F0 1F1 1F2 1F3  .   .  1B0 1B1 1B2 1B3  .
    group 2   .   .  2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3  .   .

A step takes (m + p - 1)(t_F + t_B) and keeps the activations of all m microbatches (section 2.3).
"""

from __future__ import annotations

from orchestrator.schedules.schedule import Action, Schedule, Timetable


def gpipe(groups: int, stages: int, microbatches: int) -> Timetable:
    """A group with several stages goes breadth first."""
    table: Timetable = []
    for group in range(groups):
        mine = range(group, stages, groups)
        table.append(
            [Action("F", s, m) for s in mine for m in range(microbatches)]
            + [Action("B", s, m) for s in reversed(mine) for m in range(microbatches)]
        )
    return table


SCHEDULE = Schedule("GPipe", "Huang et al., GPipe, 2018", gpipe, leaner="1F1B")
