"""Where a step's time went, by rank: the same definitions for measured and simulated timelines.

For every rank   compute + exposed communication + wait + bubble + loading + other = step time.

    compute   one of my computations runs
    loading   I wait for images or labels, or for their copy to the device
    exposed   a transfer of mine is in progress, and I neither compute nor wait for data
    wait      I am ready, and my peer in the same stage has not started: it is late
    bubble    the same, but what I need comes from another pipeline stage, which has nothing for
              me yet
    other     the rest: the host's own time between its ops
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator.observe.timeline import Interval, StepTimes
from orchestrator.program.ledger import sent
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, Program


@dataclass(frozen=True)
class Shares:
    """One rank's step, or the mean over ranks; seconds."""

    step_time_s: float
    compute_time_s: float
    communication_time_s: float
    exposed_communication_time_s: float
    wait_time_s: float
    bubble_time_s: float
    loading_time_s: float
    other_time_s: float

    @property
    def overlap_ratio(self) -> float:
        """Share of the communication that computation or loading hides; 1 where there is none."""
        if self.communication_time_s <= 0:
            return 1.0
        return 1 - self.exposed_communication_time_s / self.communication_time_s


@dataclass(frozen=True)
class Account:
    """One step: each rank's shares, and the mean of their times."""

    step: int
    step_time_s: float
    ranks: dict[int, Shares]

    @property
    def mean(self) -> Shares:
        """Mean over the ranks."""
        rows = list(self.ranks.values())
        return Shares(*(sum(getattr(r, f.name) for r in rows) / len(rows) for f in fields(Shares)))


class Accountant:
    """Splits the steps of one program; what is the same in all steps is worked out once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.is_compute = is_compute = [LANE_OF[kind] == COMPUTE for kind in program.columns.kind]
        stages = [segment.stage for segment in program.segments]
        # by boundary; the model's input crosses no stage
        self.opens_stage = [
            b.producer >= 0 and stages[b.producer] != stages[b.consumer] for b in program.boundaries
        ]
        self.compute: dict[int, list[int]] = {}
        self.transfers: dict[int, list[int]] = {}
        for rank in program.ranks:
            ids = program.order[rank]
            self.compute[rank] = [i for i in ids if is_compute[i]]
            self.transfers[rank] = [i for i in ids if not is_compute[i]]
        self.sent, self.total_bytes, self.ring_equivalent = sent(program)

    def account(self, times: StepTimes) -> Account:
        """Shares of every rank in one step, each between its own begin and finish.

        Ranks run into the next step without waiting for each other, so the mean of their own
        times is what a step takes in the long run; from the first to the last would count the
        overlap of two steps twice.
        """
        ranks = {
            r: self._rank(r, times, times.begin[r], times.finish[r]) for r in self.program.ranks
        }
        seconds = sum(shares.step_time_s for shares in ranks.values()) / len(ranks)
        return Account(times.step, seconds, ranks)

    def _rank(self, rank: int, times: StepTimes, begin: float, finish: float) -> Shares:
        # most transfers of an exchange start and end together: each interval once
        busy = merge({x for i in self.transfers[rank] for x in times.of_messages(i)})
        computed = loading = exposed = wait = bubble = other = 0.0
        at = begin
        idle: list[tuple[float, float, Iterable[int]]] = []  # from, to, needs of what came next
        for op in self.compute[rank]:
            start, end = times.start[op], times.end[op]
            needs: Iterable[int] = self.program.columns.needs[op]
            computed += end - start
            if op in times.loading:
                low, high = times.loading[op]
                low, high = max(at, low), min(start, high)
                if low < high:
                    loading += high - low
                    idle.append((at, low, needs))
                    at = high
            idle.append((at, start, needs))
            at = max(at, end)
        idle.append((at, finish, self.transfers[rank]))  # what was sent last has to end, too
        for a, b, needs in idle:
            if a < b:
                gap = self._gap(a, b, busy, needs, times)
                exposed, wait, bubble = exposed + gap[0], wait + gap[1], bubble + gap[2]
                other += gap[3]
        communication = length(busy, begin, finish)  # what was sent may arrive after the step
        return Shares(
            finish - begin, computed, communication, exposed, wait, bubble, loading, other
        )

    def _gap(
        self, a: float, b: float, busy: list[Interval], needs: Iterable[int], times: StepTimes
    ) -> tuple[float, float, float, float]:
        """(exposed, wait, bubble, other) of a time without computation or loading, before an op
        with needs."""
        exposed = length(busy, a, b)
        late: set[Interval] = set()
        empty: set[Interval] = set()
        for need in needs:
            if self.is_compute[need]:
                continue
            low = times.ready[need]
            for high, _ in times.of_messages(need):
                if high > a and low < b and low < high:
                    between = empty if self._is_interstage(need) else late
                    between.add((max(a, low), min(b, high)))
        if not late and not empty:
            return exposed, 0.0, 0.0, (b - a) - exposed
        free = subtract([(a, b)], busy)
        waited = overlap(merge(late), free)
        either = overlap(merge(late | empty), free)
        return exposed, waited, either - waited, (b - a) - exposed - either

    def _is_interstage(self, i: int) -> bool:
        columns = self.program.columns
        return LANE_OF[columns.kind[i]] != REDUCE and self.opens_stage[columns.segment[i]]


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Union, as sorted disjoint intervals."""
    found: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[1] > i[0]):
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def length(merged: Sequence[Interval], a: float, b: float) -> float:
    """How much of [a, b] the merged intervals cover."""
    total = 0.0
    i = max(0, bisect_left(merged, (a, a)) - 1)
    while i < len(merged) and merged[i][0] < b:
        total += max(0.0, min(b, merged[i][1]) - max(a, merged[i][0]))
        i += 1
    return total


def subtract(whole: Sequence[Interval], taken: Sequence[Interval]) -> list[Interval]:
    """What of ``whole`` is not in ``taken``; both sorted and disjoint."""
    found = []
    for a, b in whole:
        i = max(0, bisect_left(taken, (a, a)) - 1)
        while i < len(taken) and taken[i][0] < b:
            if taken[i][0] > a:
                found.append((a, taken[i][0]))
            a = max(a, taken[i][1])
            i += 1
        if a < b:
            found.append((a, b))
    return found


def overlap(merged: Sequence[Interval], other: Sequence[Interval]) -> float:
    """Length of the intersection."""
    return sum(length(merged, a, b) for a, b in other)


def summarise(
    accountant: Accountant,
    accounts: Sequence[Account],
    peaks: dict[int, int],
    mean: Shares | None = None,
) -> dict[str, Any]:
    """The times and bytes of a summary, as totals and by rank, of the step with the median time.

    Times of the totals are means over the ranks, so they add up to the step time; bytes are sums,
    memory is the largest. ``ring_equivalent_bytes`` is the part of the bytes sent that stands for
    collectives (see :mod:`orchestrator.program.ledger`).

    Args:
        mean: over all ranks, where more are known than those listed.
    """
    ordered = sorted(accounts, key=lambda account: account.step_time_s)
    median = ordered[(len(ordered) - 1) // 2]
    program = accountant.program

    def row(shares: Shares, size: int, peak: int) -> dict[str, object]:
        return {
            **vars(shares),
            "overlap_ratio": shares.overlap_ratio,
            "bytes_sent": size,
            "images_per_s": program.global_batch / shares.step_time_s,
            "peak_memory_bytes": peak,
        }

    total = row(mean or median.mean, accountant.total_bytes, max(peaks.values(), default=0))
    ranks = [
        {"rank": r, **row(shares, accountant.sent[r], peaks.get(r, 0))}
        for r, shares in median.ranks.items()
    ]
    return {**total, "ring_equivalent_bytes": accountant.ring_equivalent, "ranks": ranks}
