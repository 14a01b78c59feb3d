"""ZB-H1: 1F1B whose weight halves wait as long as its activation memory allows.

    group 0  0F0 0F1 0F2  .   .  0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3
    group 1   .  1F0 1F1  .  1I0 1F2 1I1 1W0 1F3 1I2 1W1 1I3 1W2 1W3
    group 2   .   .  2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2W2 2W3

Group g has p - g microbatches in flight, as in 1F1B, and g that lack their weight half: every group
keeps the activations of p microbatches, as 1F1B's first one does. With m >= p, and t_W no longer
than t_F and t_I, a group idles (p - 1)(t_F + t_I - t_W) (section 2.3).
"""

from __future__ import annotations

from orchestrator.schedules.schedule import Action, Schedule, Timetable, straight


def zero_bubble_h1(groups: int, stages: int, microbatches: int) -> Timetable:
    """Group g does a weight half after the input half of ``g`` microbatches later."""
    table: Timetable = []
    for g in range(groups):
        warm = min(microbatches, groups - g - 1)
        row = [Action("F", g, m) for m in range(warm)]
        for m in range(microbatches):
            if warm + m < microbatches:
                row.append(Action("F", g, warm + m))
            row.append(Action("I", g, m))
            if m >= g:
                row.append(Action("W", g, m - g))
        row += [Action("W", g, m) for m in range(max(0, microbatches - g), microbatches)]
        table.append(row)
    return table


SCHEDULE = Schedule(
    "ZB-H1", "Qi et al., Zero Bubble Pipeline Parallelism, 2023", zero_bubble_h1, straight
)
