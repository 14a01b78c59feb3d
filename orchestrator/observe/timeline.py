"""What every interpreter writes: when each op was ready, started and ended.

One line of ``timeline.jsonl`` per step and op:

    {"step": 3, "op": 7, "rank": 0, "name": "1SEND_F0", "ready": 0.1, "start": 0.1, "end": 0.2,
     "bytes": 25600}

Times are seconds since the run's first step began, on one common clock. ``ready`` is when this
rank could have begun: all needs ended and, for computation, the one before it and the loading of
its data, too. A message *starts* when both sides are ready, and ends when its bytes have arrived,
which is known when these are put together (:func:`meet`). An exchange starts with the first of its
messages and ends with the last; of one with several the line has the start and end of each, what
is sent first: ``"messages": [[0.1, 0.15], [0.1, 0.2]]``.

The line of a forward that reads images or labels also says from when to when its rank waited for
them: ``"loading": [0.02, 0.1]``. A rank computes nothing in that time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.program.ops import COMPUTE, LANE_OF, Program
from orchestrator.program.order import meetings

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
        messages: by op id, of exchanges with several messages: when each starts and ends, what is
            sent first.
    """

    step: int
    ready: list[float]
    start: list[float]
    end: list[float]
    begin: dict[int, float]
    finish: dict[int, float]
    loading: dict[int, Interval] = field(default_factory=dict)
    messages: dict[int, list[Interval]] = field(default_factory=dict)

    def of_messages(self, i: int, count: int = 1) -> list[Interval]:
        """When each message of an exchange, or a collective, starts and ends.

        Args:
            count: how many there are; where they are not told apart each gets the exchange's times.
        """
        return self.messages.get(i) or [(self.start[i], self.end[i])] * count

    def took(self, of: Sequence[tuple[int, ...]], count: int) -> list[float]:
        """Seconds of what ops do together.

        Args:
            of: by op, the numbers of the computation, messages or collective that it is.
            count: of these numbers.
        """
        found = [0.0] * count
        for i, activities in enumerate(of):
            for activity, (start, end) in zip(
                activities, self.of_messages(i, len(activities)), strict=True
            ):
                found[activity] = end - start
        return found


@dataclass
class RankTimes:
    """One rank's own record of a step: by op id (ready, start, end), seconds of its clock.

    Args:
        loading, messages: as in :class:`StepTimes`.
    """

    rank: int
    step: int
    begin: float
    finish: float
    ops: dict[int, tuple[float, float, float]]
    loading: dict[int, Interval] = field(default_factory=dict)
    messages: dict[int, list[Interval]] = field(default_factory=dict)


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
        for op, intervals in record.messages.items():
            times.messages[op] = [(a + by, b + by) for a, b in intervals]
    meet(program, times)
    return times


def from_activities(
    program: Program,
    of: Sequence[tuple[int, ...]],
    start: Sequence[float],
    end: Sequence[float],
    begin: Sequence[float],
    entry: Sequence[float] = (),
) -> StepTimes:
    """The times of every op from those of what its sides do together.

    Args:
        of: by op, the computation, the messages or the collective that it is a side of.
        start, end: by these.
        begin: by rank, when it enters the step.
        entry: by rank, when its images are there and it can do its first op, if that is later.
    """
    entry = entry or begin
    columns = program.columns
    starts, ends, messages = [], [], {}
    for i, activities in enumerate(of):
        if len(activities) == 1:
            starts.append(start[activities[0]])
            ends.append(end[activities[0]])
        else:
            messages[i] = intervals = [(start[a], end[a]) for a in activities]
            starts.append(min([low for low, _ in intervals]))
            ends.append(max([high for _, high in intervals]))
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
        0, ready, starts, ends, dict(enumerate(begin)), dict(enumerate(finish)), loading, messages
    )


def from_zero(times: StepTimes) -> StepTimes:
    """The same step on a clock that starts when the first rank enters it."""
    zero = min(times.begin.values())
    ready, start, end = ([x - zero for x in c] for c in (times.ready, times.start, times.end))
    begin, finish = ({r: x - zero for r, x in e.items()} for e in (times.begin, times.finish))
    loading = {op: (a - zero, b - zero) for op, (a, b) in times.loading.items()}
    messages = {op: [(a - zero, b - zero) for a, b in x] for op, x in times.messages.items()}
    return StepTimes(times.step, ready, start, end, begin, finish, loading, messages)


def meet(program: Program, times: StepTimes) -> None:
    """Set the start of every transfer to the moment when the last of its sides began.

    And the end of a send to the arrival: a sender is rid of a message once its host has taken it,
    while the bytes are still under way.
    """
    met = meetings(program)
    transfers = program.columns.transfers
    for send, sent, receive, received in met.messages:
        there = transfers[receive]
        assert there is not None
        here, other = (_told_apart(program, times, i) for i in (send, receive))
        received += len(there.sends)
        (a, b), (c, d) = here[sent], other[received]
        arrived = max(b, d)
        begun = max(a, c)
        here[sent] = min(begun, arrived), arrived
        other[received] = min(begun, d), d
        for i, of_op in ((send, here), (receive, other)):
            if len(of_op) == 1:
                ((times.start[i], times.end[i]),) = of_op
    for i, intervals in times.messages.items():
        times.start[i] = min(low for low, _ in intervals)
        times.end[i] = max(high for _, high in intervals)
    for ids in met.collectives:
        begun = max(times.start[i] for i in ids)
        for i in ids:
            times.start[i] = min(begun, times.end[i])


def _told_apart(program: Program, times: StepTimes, i: int) -> list[Interval]:
    """A list with the times of each message of an exchange; of several messages the one in
    ``times.messages``."""
    transfers = program.columns.transfers[i]
    assert transfers is not None
    found = times.of_messages(i, len(transfers.sides))
    if len(found) > 1:
        times.messages[i] = found
    return found


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
                if op.id in times.messages:
                    row["messages"] = [
                        [round(at, 7) for at in interval] for interval in times.messages[op.id]
                    ]
                file.write(json.dumps(row) + "\n")
