"""Proof that a program cannot deadlock, under the strictest reading of its transports (NCCL's).

* A send and its receive are one event: neither side goes on before both are there (rendezvous).
* Per ordered pair of ranks the n-th send meets the n-th receive; there are no tags.
* All members of a collective meet; a rank's collectives run one after another.
* A rank posts its ops in the order of its list, and what stands behind a computation after its end.

Merge the ops that meet into events, draw an edge for every ``needs`` and for every lane's order,
and the program is free of deadlocks exactly if the graph has no cycle. A program that fails is
shown as a grid, a column per rank, the ops of the cycle marked.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import zip_longest

from orchestrator.program.ops import COMPUTE, LANE_OF, RECEIVE, REDUCE, SEND, Program


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
    met = _meetings(program)
    if isinstance(met, Deadlock):
        return met
    event_of, count = met
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for a, b in _edges(program):
        x, y = event_of[a], event_of[b]
        if x == y:
            return Deadlock("an op needs one that it must run together with", (a, b))
        after[x].append(y)
        missing[y] += 1
    free = deque(i for i in range(count) if not missing[i])
    ended = 0
    while free:
        event = free.popleft()
        ended += 1
        for y in after[event]:
            missing[y] -= 1
            if not missing[y]:
                free.append(y)
    if ended == count:
        return None
    circle = set(_circle(after, missing))
    ops = tuple(i for i, event in enumerate(event_of) if event in circle)
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


def _meetings(program: Program) -> tuple[list[int], int] | Deadlock:
    """The event of every op, and how many events there are."""
    columns = program.columns
    sends: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    receives: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    collectives: defaultdict[int, defaultdict[int, list[int]]]
    collectives = defaultdict(lambda: defaultdict(list))
    # Groups may be as large as the world: equal ones get one number, each object compared once.
    number_of: dict[tuple[int, ...], int] = {}
    numbers: dict[int, int] = {}
    for i in (i for ids in program.order for i in ids):
        lane, rank, peers = LANE_OF[columns.kind[i]], columns.rank[i], columns.peers[i]
        if lane == SEND:
            sends[rank, peers[0]].append(i)
        elif lane == RECEIVE:
            receives[peers[0], rank].append(i)
        elif lane == REDUCE:
            if id(peers) not in numbers:
                numbers[id(peers)] = number_of.setdefault(peers, len(number_of))
            collectives[numbers[id(peers)]][rank].append(i)
    event_of = list(range(len(columns)))
    for pair in sends.keys() | receives.keys():
        for a, b in zip_longest(sends[pair], receives[pair]):
            if a is None or b is None or columns.bytes[a] != columns.bytes[b]:
                what = "no partner" if a is None or b is None else "a partner of another size"
                return Deadlock(
                    f"a transfer from rank {pair[0]} to rank {pair[1]} meets {what}",
                    tuple(i for i in (a, b) if i is not None),
                )
            event_of[b] = a
    groups = list(number_of)
    for number, by_rank in collectives.items():
        group = groups[number]
        listed = [r for r in group if r in program.ranks]
        rows = [by_rank[r] for r in listed]
        if len({len(row) for row in rows}) != 1:
            longest = max(rows, key=len)
            return Deadlock(f"a collective over ranks {group} is not joined by all", (longest[-1],))
        for ids in zip(*rows, strict=True):
            if len({(columns.kind[i], columns.bytes[i]) for i in ids}) != 1:
                return Deadlock(f"different collectives meet over ranks {group}", ids)
            for i in ids:
                event_of[i] = ids[0]
    position = {event: n for n, event in enumerate(sorted(set(event_of)))}
    return [position[event] for event in event_of], len(position)


def _edges(program: Program) -> list[tuple[int, int]]:
    columns = program.columns
    edges = [(need, i) for i in range(len(columns)) for need in columns.needs[i]]
    for ids in program.order:
        last: dict[tuple[str, int], int] = {}
        for i in ids:
            lane = LANE_OF[columns.kind[i]]
            key = (lane, columns.peers[i][0] if lane in (SEND, RECEIVE) else -1)
            if key in last:
                edges.append((last[key], i))
            last[key] = i
            if lane != COMPUTE and (COMPUTE, -1) in last:
                edges.append((last[COMPUTE, -1], i))
    return edges


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
