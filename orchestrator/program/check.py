"""Proof that a program cannot deadlock, under the strictest reading of its transports (NCCL's).

The order is that of :mod:`orchestrator.program.order`, and every message is a rendezvous: neither
side's exchange ends before both have begun. Draw the begin and the end of every op as points, an
edge from what must be before to what must be after, and the program is free of deadlocks exactly
if the graph has no cycle. A program that fails is shown as a grid, a column per rank, the ops of
the cycle marked.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from orchestrator.program.ops import Program
from orchestrator.program.order import Meetings, Mismatch, before, meetings


@dataclass(frozen=True)
class Deadlock:
    """Why a program cannot run to its end.

    Args:
        reason: one line.
        ops: ids of the ops that wait for each other in a circle, or that do not meet.
    """

    reason: str
    ops: tuple[int, ...]


def find_deadlock(program: Program) -> Deadlock | None:
    """None if every op of the program can run."""
    try:
        met = meetings(program)
    except Mismatch as error:
        return Deadlock(error.reason, error.ops)
    after = _graph(program, met)
    missing = [0] * len(after)
    for points in after:
        for point in points:
            missing[point] += 1
    free = deque(point for point, n in enumerate(missing) if not n)
    ended = 0
    while free:
        point = free.popleft()
        ended += 1
        for y in after[point]:
            missing[y] -= 1
            if not missing[y]:
                free.append(y)
    if ended == len(after):
        return None
    most = 2 * len(program.columns)
    ops = tuple(sorted({point // 2 for point in _circle(after, missing) if point < most}))
    return Deadlock(f"{len(ops)} ops wait for each other in a circle", ops)


def grid(program: Program, deadlock: Deadlock, around: int = 3) -> str:
    """The marked ops and their neighbours, a column per rank, in the order they are posted."""
    marked = set(deadlock.ops)
    ranks = sorted({program.columns.rank[i] for i in marked})[:8]
    columns = []
    for rank in ranks:
        ids = program.order[rank]
        places = [p for p, i in enumerate(ids) if i in marked]
        low, high = max(0, places[0] - around), min(len(ids), places[-1] + around + 1)
        cells = ["..."] if low else []
        for i in ids[low:high][:40]:
            op = program.op(i)
            peer = f" <>{','.join(map(str, op.peers[:4]))}" if op.peers else ""
            cells.append(f"{op}{peer}{'  <-- waits' if i in marked else ''}")
        columns.append([f"rank {rank}", *cells, *(["..."] if high < len(ids) else [])])
    height = max(map(len, columns))
    widths = [max(map(len, column)) for column in columns]
    rows = []
    for y in range(height):
        cells = [c[y] if y < len(c) else "" for c in columns]
        step = f"{y - 1:4d}" if y else "step"
        rows.append(f"{step}  " + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)))
    return "\n".join(row.rstrip() for row in [deadlock.reason, *rows])


def _graph(program: Program, met: Meetings) -> list[list[int]]:
    """By point, those behind it: 2i is the begin of op i, 2i + 1 its end; a collective has one
    more, between the begins and the ends of its ops."""
    after: list[list[int]] = [[2 * i + 1] for i in range(len(program.columns))]
    after = [points for begin in after for points in (begin, [])]
    for i, firsts in before(program):
        for first in firsts:
            after[2 * first + 1].append(2 * i)
    for send, _, receive, _ in met.messages:
        after[2 * send].append(2 * receive + 1)
        after[2 * receive].append(2 * send + 1)
    for ids in met.collectives:
        for i in ids:
            after[2 * i].append(len(after))
        after.append([2 * i + 1 for i in ids])
    return after


def _circle(after: list[list[int]], missing: list[int]) -> list[int]:
    """One circle among the events that never became free."""
    stuck = {i for i, n in enumerate(missing) if n}
    before: defaultdict[int, list[int]] = defaultdict(list)
    for x in stuck:
        for y in after[x]:
            if y in stuck:
                before[y].append(x)
    path: list[int] = []
    seen: dict[int, int] = {}
    at = next(i for i in stuck if before[i])
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = before[at][0]
    return path[seen[at] :]
