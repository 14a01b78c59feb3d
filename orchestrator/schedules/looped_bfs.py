"""LoopedBFS: several stages a group; all microbatches go through one before the group's next.

    group 0  0F0 0F1 0F2 2F0 2F1 2F2  .   .  2B2 2B1 2B0 0B2 0B1 0B0
    group 1   .  1F0 1F1 1F2 3F0 3F1 3F2 3B2 3B1 3B0 1B2 1B1 1B0  .

Breadth first: the bubble is Interleaved1F1B's, and a stage's weights are done with at once, which
leaves the rest of the step for the sum of its gradients. All microbatches' activations are kept,
as with GPipe. Backwards begin with the microbatch that came last, as in PyTorch's schedule of this
name. With stages that take t_F and t_B, v of them a group, a step takes
((v - 1) max(m, p) + m + p - 1)(t_F + t_B).
"""

from __future__ import annotations

from orchestrator.schedules.schedule import Action, Schedule, Timetable, looped


def looped_bfs(groups: int, stages: int, microbatches: int) -> Timetable:
    """Forwards of all stages of a group, earliest first, then backwards in the opposite order."""
    table: Timetable = []
    for group in range(groups):
        forwards = [
            Action("F", s, m) for s in range(group, stages, groups) for m in range(microbatches)
        ]
        table.append([*forwards, *(a._replace(kind="B") for a in reversed(forwards))])
    return table


SCHEDULE = Schedule(
    "LoopedBFS",
    "Lamy-Poirier, Breadth-First Pipeline Parallelism, 2022",
    looped_bfs,
    looped,
    leaner="Interleaved1F1B",
)
