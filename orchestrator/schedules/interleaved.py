"""Interleaved1F1B: 1F1B on several stages a group, in rounds of as many microbatches as groups.

    group 0  0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1  .  2B2  .  2B3 0B2 0B3
    group 1   .  1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3  .

A group idles (p - 1)(t_F + t_B) / v, where v stages together take t_F and t_B (section 2.2).
"""

from __future__ import annotations

from orchestrator.schedules.schedule import Action, Schedule, Timetable, in_rounds


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


SCHEDULE = Schedule(
    "Interleaved1F1B", "Narayanan et al., Megatron-LM, 2021", interleaved, in_rounds
)
