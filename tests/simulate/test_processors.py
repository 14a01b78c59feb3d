"""Ranks of one machine disturb each other, as a calibration says: small cases by hand."""

from __future__ import annotations

import heapq
from math import log
from statistics import correlation, median, stdev

import pytest

from orchestrator.simulate.processors import DRAWS, Processors, Sharing, Work, drawn


class Clock:
    """Takes what is announced in order of time, and says when each piece of work ended."""

    def __init__(self, sharing: Sharing, ranks: int) -> None:
        self.heap: list[tuple[float, int, int]] = []
        self.count = 0
        self.made = Processors(sharing, [0] * ranks, self.announce)
        self.rank_of: dict[int, int] = {}
        self.ends: dict[int, float] = {}

    def announce(self, at: float, number: int) -> None:
        self.count += 1
        heapq.heappush(self.heap, (at, self.count, number))

    def begin(self, rank: int, number: int, work: Work, now: float = 0.0) -> None:
        self.rank_of[number] = rank
        self.made.begin(rank, number, work, now)
        self.made.settle(now)

    def load(self, rank: int, seconds: float, now: float = 0.0) -> None:
        self.rank_of[-1 - rank] = rank
        self.made.load(rank, -1 - rank, seconds, now)
        self.made.settle(now)

    def transfer(self, ranks: list[int], by: int, now: float = 0.0) -> None:
        self.made.transfer(ranks, by, now)
        self.made.settle(now)

    def until(self, time: float) -> None:
        while self.heap and self.heap[0][0] <= time:
            at, _, number = heapq.heappop(self.heap)
            if self.made.has_ended(self.rank_of[number], number, at):
                self.ends[number] = at
                self.made.settle(at)


def test_a_rank_alone_is_quicker_than_among_others() -> None:
    """Rank 0 has two seconds of work among others, one alone; rank 1 stops after half of its."""
    clock = Clock(Sharing(ranks=2, threads=1, slowdown=[0.0] * 2), 2)
    clock.begin(0, 0, Work(together=2.0, alone=1.0))
    clock.begin(1, 1, Work(together=1.0, alone=0.5))
    clock.until(9)
    assert clock.ends[1] == pytest.approx(1.0)
    assert clock.ends[0] == pytest.approx(1.0 + 0.5 * 1.0)  # half was left, at twice the speed


def test_what_needs_no_memory_neither_disturbs_nor_is_disturbed() -> None:
    clock = Clock(Sharing(ranks=3, threads=1, slowdown=[0.0] * 3), 3)
    clock.begin(0, 0, Work(together=2.0, alone=1.0))
    clock.begin(1, 1, Work(together=1.0, alone=1.0))
    clock.begin(2, 2, Work(together=1.25, alone=1.0))
    clock.until(9)
    assert clock.ends[1] == pytest.approx(1.0)
    # Pressures 1 and 1/4: their mean is 1/2, over two other ranks 1/4 longer.
    assert clock.ends[2] == pytest.approx(1.25)
    assert clock.ends[0] == pytest.approx(1.25)


def test_a_transfer_slows_the_computation_of_its_rank_only() -> None:
    clock = Clock(Sharing(ranks=2, threads=1, slowdown=[0.5] * 2), 2)
    for rank in range(2):
        clock.begin(rank, rank, Work(1.0, 1.0))
    clock.transfer([0], 1)
    clock.until(0.4)
    clock.transfer([0], 1, 0.4)  # a second one under way makes no difference
    clock.transfer([0], -1, 0.4)
    clock.until(0.5)
    clock.transfer([0], -1, 0.5)
    clock.until(9)
    assert clock.ends[1] == pytest.approx(1.0)
    assert clock.ends[0] == pytest.approx(1.25)  # half a second at half the speed


def test_what_changes_and_changes_back_at_one_moment_is_announced_once() -> None:
    """A transfer that ends as the next one begins: the computation goes on as it was."""
    clock = Clock(Sharing(ranks=1, threads=1, slowdown=[0.5]), 1)
    clock.transfer([0], 1)
    clock.begin(0, 0, Work(1.0, 1.0))
    clock.made.transfer([0], -1, 0.5)
    clock.transfer([0], 1, 0.5)
    assert clock.count == 1
    clock.until(9)
    assert clock.ends == {0: pytest.approx(2.0)}


def test_loads_share_the_cores_and_take_idle_ones_for_nothing() -> None:
    busy = Clock(Sharing(ranks=1, threads=1, slowdown=[0.0]), 1)
    busy.begin(0, 0, Work(1.0, 1.0))
    busy.load(0, 0.25)
    busy.until(9)
    assert busy.ends == {-1: pytest.approx(0.5), 0: pytest.approx(1.25)}

    idle = Clock(Sharing(ranks=2, threads=1, slowdown=[0.0] * 2), 2)
    idle.begin(0, 0, Work(1.0, 1.0))
    idle.load(1, 0.25)
    idle.until(9)
    assert idle.ends == {-2: pytest.approx(0.25), 0: pytest.approx(1.0)}


def test_drawn_factors_have_the_median_and_the_spread_that_are_asked_for() -> None:
    for op in (0, 7):
        factors = [drawn(step, op, 0.1) for step in range(DRAWS)]
        assert median(factors) == pytest.approx(1.0)
        assert stdev(map(log, factors)) == pytest.approx(0.1, rel=0.05)
        assert factors == [drawn(step + DRAWS, op, 0.1) for step in range(DRAWS)]


def test_what_is_drawn_for_one_computation_says_nothing_of_another() -> None:
    """Fifteen drawn pairs correlate with a standard deviation of 1/4, a thousand's mean hardly."""
    steps = range(DRAWS)
    columns = [[drawn(step, op, 0.1) for step in steps] for op in range(1001)]
    found = [correlation(columns[op], columns[op + 1]) for op in range(1000)]
    assert abs(sum(found) / len(found)) < 0.03
    assert max(found) < 1.0


def test_a_transfer_is_stretched_by_those_of_its_ranks_that_compute() -> None:
    clock = Clock(Sharing(ranks=2, threads=1, slowdown=[0.0] * 2, stretch=3.0), 2)
    assert clock.made.stretch([0, 1]) == 1.0
    clock.begin(0, 0, Work(1.0, 1.0))
    assert clock.made.stretch([0, 1]) == 2.0
    clock.begin(1, 1, Work(2.0, 2.0))
    assert clock.made.stretch([0, 1]) == 3.0
    clock.load(0, 9.0)
    clock.until(1.5)
    assert [clock.made.stretch([rank]) for rank in (0, 1)] == [1.0, 3.0]
