"""DualPipeV: a V as in ZBVZeroBubble, each forward next to a backward of the other direction.

    group 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3
    group 1   .  1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3

Published so that the forward's transfers run under the backward's computation and the other way
round; here transfers run beside computation anyway, so such a pair is a forward and a backward in a
row. Backwards are split at both ends only. A group holds 2p + 1 activations of a stage at most, and
with t_F = t_I >= t_W idles (p - 1)(t_F + t_I - t_W).
"""

from __future__ import annotations

from collections import defaultdict

from orchestrator.schedules.schedule import (
    Action,
    Misfit,
    Schedule,
    Stages,
    Timetable,
    v_shaped,
)


def dual_pipe_v(groups: int, stages: int, microbatches: int) -> Timetable:
    """The order of DeepSeek's ``dualpipev.py``, which is that of PyTorch's ScheduleDualPipeV."""
    return [_row(g, groups, microbatches) for g in range(groups)]


def _row(g: int, p: int, microbatches: int) -> list[Action]:
    down, up = g, 2 * p - 1 - g  # the group's stages, on the way to the turn and back
    row: list[Action] = []
    passed: defaultdict[tuple[str, int], int] = defaultdict(int)
    waiting: list[Action] = []  # weight halves

    def put(kind: str, stage: int) -> None:
        direction = "F" if kind == "F" else "B"
        action = Action(kind, stage, passed[direction, stage])
        passed[direction, stage] += 1
        row.append(action)
        if kind == "I":
            waiting.append(action._replace(kind="W"))

    def weight_half() -> None:
        if waiting:
            row.append(waiting.pop(0))

    for _ in range(2 * (p - g - 1)):
        put("F", down)
    for _ in range(g + 1):
        put("F", down)
        put("F", up)
    for _ in range(p - g - 1):
        put("I", up)
        weight_half()
        put("F", up)
    for _ in range(microbatches - 2 * p + g + 1):
        put("F", down)
        put("B", up)
        put("F", up)
        put("B", down)
    for _ in range(p - g - 1):
        put("B", up)
        put("F", up)
        put("B", down)
    # of the last 2 (g + 1) backwards, the first half is whole and the second half is split
    for i in range(2 * (g + 1)):
        put("B" if i <= g else "I", down if i % 2 else up)
    for _ in range(p - g - 1):
        weight_half()
        put("I", down)
    for _ in range(g + 1):
        weight_half()
    return row


def _fits(stages: Stages, microbatches: int) -> Misfit | None:
    if (misfit := v_shaped(stages, microbatches)) or microbatches >= len(stages):
        return misfit
    reason = f"needs as many microbatches as stages, {len(stages)}; there are {microbatches}"
    return Misfit(reason, len(stages))


SCHEDULE = Schedule(
    "DualPipeV",
    "DeepSeek, DualPipe, 2025",
    dual_pipe_v,
    _fits,
    entry_per_stage=True,
)
