"""What every interpreter writes: when each op was ready, started and ended.

One line of ``timeline.jsonl`` per step and op:

    {"step": 3, "op": 7, "rank": 0, "name": "1SEND_F0", "ready": 0.1, "start": 0.1, "end": 0.2,
     "bytes": 25600}

Times are seconds since the run's first step began, on one common clock. ``ready`` is when this
rank could have begun: all needs ended and, for computation, the one before it and the loading of
its data, too. A transfer *starts* when both sides are ready, and a send *ends* when its bytes have
arrived, which is known when these are put together (:func:`meet`).

The line of a forward that reads images or labels also says from when to when its rank waited for
them: ``"loading": [0.02, 0.1]``. A rank computes nothing in that time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.program.ops import COMPUTE, LANE_OF, RECEIVE, REDUCE, SEND, Program

Interval = tuple[float, float]


@dataclass
class StepTimes:
    """One training step, all listed ranks. Lists are by op id; ranks' own start and end in dicts.

    Args:
        step: number of the step.
        ready, start, end: seconds.
        begin, finish: by rank, when it entered and left the step.
        loading: by op id, from when to when its rank waited for the images or labels that the op
            reads; the rank computes nothing between.
    """

    step: int
    ready: list[float]
    start: list[float]
    end: list[float]
    begin: dict[int, float]
    finish: dict[int, float]
    loading: dict[int, Interval] = field(default_factory=dict)


@dataclass
class RankTimes:
    """One rank's own record of a step: by op id (ready, start, end), seconds of its clock.

    Args:
        loading: as in :class:`StepTimes`.
    """

    rank: int
    step: int
    begin: float
    finish: float
    ops: dict[int, tuple[float, float, float]]
    loading: dict[int, Interval] = field(default_factory=dict)


def join(program: Program, records: Iterable[RankTimes], offsets: dict[int, float]) -> StepTimes:
    """Put the ranks' records of one step on one clock and let transfers start when both are ready.

    Args:
        offsets: by rank, seconds to add to its clock.
    """
    count = len(program.columns)
    times = StepTimes(0, [0.0] * count, [0.0] * count, [0.0] * count, {}, {})
    for record in records:
        by = offsets.get(record.rank, 0.0)
        times.step = record.step
        times.begin[record.rank] = record.begin + by
        times.finish[record.rank] = record.finish + by
        for op, (ready, start, end) in record.ops.items():
            times.ready[op], times.start[op], times.end[op] = ready + by, start + by, end + by
        times.loading |= {op: (a + by, b + by) for op, (a, b) in record.loading.items()}
    meet(program, times)
    return times


def from_activities(
    program: Program,
    activity: Sequence[int],
    start: Sequence[float],
    end: Sequence[float],
    begin: Sequence[float],
    entry: Sequence[float] = (),
) -> StepTimes:
    """The times of every op from those of what its sides do together.

    Args:
        activity: by op, the computation, message or collective that it is a side of.
        start, end: by activity.
        begin: by rank, when it enters the step.
        entry: by rank, when its images are there and it can do its first op, if that is later.
    """
    entry = entry or begin
    columns = program.columns
    starts = [start[a] for a in activity]
    ends = [end[a] for a in activity]
    last, finish = list(entry), list(entry)
    ready = []
    for rank, kind, needs, ended in zip(
        columns.rank, columns.kind, columns.needs, ends, strict=True
    ):
        if len(needs) == 1:
            at = ends[needs[0]]
        else:
            at = max([ends[n] for n in needs]) if needs else entry[rank]
        if LANE_OF[kind] == COMPUTE:
            if at < last[rank]:
                at = last[rank]
            last[rank] = ended
        if ended > finish[rank]:
            finish[rank] = ended
        ready.append(at)
    loading = {
        next(i for i in program.order[rank] if LANE_OF[columns.kind[i]] == COMPUTE): (low, high)
        for rank, (low, high) in enumerate(zip(begin, entry, strict=True))
        if low < high
    }
    return StepTimes(
        0, ready, starts, ends, dict(enumerate(begin)), dict(enumerate(finish)), loading
    )


def from_zero(times: StepTimes) -> StepTimes:
    """The same step on a clock that starts when the first rank enters it."""
    zero = min(times.begin.values())
    ready, start, end = ([x - zero for x in c] for c in (times.ready, times.start, times.end))
    begin, finish = ({r: x - zero for r, x in e.items()} for e in (times.begin, times.finish))
    loading = {op: (a - zero, b - zero) for op, (a, b) in times.loading.items()}
    return StepTimes(times.step, ready, start, end, begin, finish, loading)


def meet(program: Program, times: StepTimes) -> None:
    """Set the start of every transfer to the moment when the last of its sides began.

    And the end of a send to the arrival: a sender is rid of a message once its host has taken it,
    while the bytes are still under way.
    """
    for ids in meetings(program):
        begun = max(times.start[i] for i in ids)
        arrived = max(times.end[i] for i in ids)
        for i in ids:
            if LANE_OF[program.columns.kind[i]] == SEND:
                times.end[i] = arrived
            times.start[i] = min(begun, times.end[i])


def meetings(program: Program) -> Iterator[list[int]]:
    """Ids of ops that are the sides of one transfer: a send and its receive, or a collective."""
    columns = program.columns
    found: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    counts: defaultdict[tuple[object, ...], int] = defaultdict(int)
    for i in range(len(columns)):
        lane, rank, peers = LANE_OF[columns.kind[i]], columns.rank[i], columns.peers[i]
        key: tuple[object, ...]
        if lane in (SEND, RECEIVE):
            key = (rank, peers[0]) if lane == SEND else (peers[0], rank)
        elif lane == REDUCE:
            key = (REDUCE, *peers)  # not the key of a send between the same two
        else:
            continue
        number = counts[key, lane, rank]
        counts[key, lane, rank] += 1
        found[key, number].append(i)
    yield from found.values()


def write(path: Path, program: Program, steps: Iterable[StepTimes]) -> None:
    """Write ``timeline.jsonl``."""
    with path.open("w") as file:
        for times in steps:
            for op in program.ops():
                row: dict[str, object] = {
                    "step": times.step, "op": op.id, "rank": op.rank, "name": str(op),
                    "ready": round(times.ready[op.id], 7), "start": round(times.start[op.id], 7),
                    "end": round(times.end[op.id], 7), "bytes": op.bytes,
                }  # fmt: skip
                if op.id in times.loading:
                    row["loading"] = [round(at, 7) for at in times.loading[op.id]]
                file.write(json.dumps(row) + "\n")
