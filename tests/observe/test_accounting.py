"""Where a step's time goes, on timelines whose answer is known or can be counted slot by slot."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.observe.accounting import (
    Accountant,
    Shares,
    length,
    merge,
    overlap,
    subtract,
    summarise,
)
from orchestrator.observe.timeline import Interval, StepTimes
from orchestrator.program import Program
from orchestrator.program.ops import COMPUTE
from tests.observe.timelines import PROGRAMS, Moments, step_times


def shares_of(name: str, moments: Moments, finish: dict[int, float]) -> dict[int, Shares]:
    program = PROGRAMS[name]
    return Accountant(program).account(step_times(program, moments, finish)).ranks


def shares(
    total: float, compute: float, communication: float, exposed: float,
    wait: float = 0.0, bubble: float = 0.0, loading: float = 0.0, other: float = 0.0,
) -> Shares:  # fmt: skip
    """Named as they are read in the tests below."""
    return Shares(total, compute, communication, exposed, wait, bubble, loading, other)


# -- by hand --------------------------------------------------------------------------------------


def test_waiting_for_a_peer_is_told_from_the_transfer_itself() -> None:
    """Rank 0 has its gradients at 4, rank 1 at 6; the sum takes from 6 to 8.

    rank 0   F F B B . . R R S      rank 1   F F F B B B R R S
    """
    found = shares_of(
        "data",
        {
            "0 0F0": (0, 0, 2), "0 0B0": (2, 2, 4), "0 0ALL_REDUCE0": (4, 6, 8),
            "0 0STEP0": (8, 8, 9),
            "1 0F0": (0, 0, 3), "1 0B0": (3, 3, 6), "1 0ALL_REDUCE0": (6, 6, 8),
            "1 0STEP0": (8, 8, 9),
        },
        {0: 9, 1: 9},
    )  # fmt: skip
    assert found[0] == shares(9, compute=5, communication=2, exposed=2, wait=2)
    assert found[1] == shares(9, compute=7, communication=2, exposed=2)


# rank 0   F0 F0 F1 F1 s1 .. .. .. .. r0 B0 B0 B1 B1 S       (s0 under F1, r1 under B0)
# rank 1   .. .. r0 r0 F0 F0 F1 B0 B0 B1 B1 s1 S  .. ..       (r1 under F0, s0 under B1)
STAGED: Moments = {
    "0 0F0": (0, 0, 2), "0 1SEND_F0": (2, 2, 4), "0 0F1": (2, 2, 4), "0 1SEND_F1": (4, 4, 5),
    "0 1RECV_B0": (2, 9, 10), "0 0B0": (4, 10, 12), "0 1RECV_B1": (2, 11, 12),
    "0 0B1": (12, 12, 14), "0 0STEP1": (14, 14, 15),
    "1 1RECV_F0": (0, 2, 4), "1 1RECV_F1": (0, 4, 5), "1 1F0": (0, 4, 6), "1 1F1": (6, 6, 7),
    "1 1B0": (7, 7, 9), "1 1SEND_B0": (9, 9, 10), "1 1B1": (9, 9, 11), "1 1SEND_B1": (11, 11, 12),
    "1 1STEP1": (11, 12, 13),
}  # fmt: skip


def test_what_comes_from_another_stage_is_a_bubble_and_what_computation_covers_is_hidden() -> None:
    """Both stages are idle where the pipeline has nothing for them; rank 1 leaves at 13."""
    found = shares_of("stages", STAGED, {0: 15, 1: 13})
    assert found[0] == shares(15, compute=9, communication=5, exposed=2, bubble=4)
    assert found[1] == shares(13, compute=8, communication=5, exposed=3, bubble=2)
    assert found[0].overlap_ratio == pytest.approx(0.6)
    assert found[1].overlap_ratio == pytest.approx(0.4)


def test_the_hosts_own_time_is_other_and_a_step_begins_when_its_rank_enters_it() -> None:
    """Between the ops of a rank that waits for nobody; rank 1 enters at 2."""
    times = step_times(
        PROGRAMS["data"],
        {
            "0 0F0": (0, 1, 2), "0 0B0": (2, 3, 4), "0 0ALL_REDUCE0": (4, 4, 5),
            "0 0STEP0": (5, 6, 7),
            "1 0F0": (2, 2, 3), "1 0B0": (3, 3, 4), "1 0ALL_REDUCE0": (4, 4, 5),
            "1 0STEP0": (5, 5, 6),
        },
        {0: 8, 1: 8},
    )  # fmt: skip
    found = Accountant(PROGRAMS["data"]).account(replace(times, begin={0: 0.0, 1: 2.0})).ranks
    assert found[0] == shares(8, compute=3, communication=1, exposed=1, other=4)
    assert found[1] == shares(6, compute=3, communication=1, exposed=1, other=2)


def test_a_rank_that_waits_for_its_data_is_loading_whatever_else_goes_on() -> None:
    """Rank 1 asks for its labels at 4, is given them at 6, and its host takes until 7. A message
    comes to it until 5.

    rank 1   .. .. r0 r0 LL LL r1 F0 F1 B0 B1 s1 S         (r0 also under the first LL)
    """
    moments = {
        **STAGED,
        "0 1SEND_F0": (2, 2, 5), "1 1RECV_F0": (0, 2, 5), "0 1SEND_F1": (6, 6, 7),
        "1 1RECV_F1": (0, 6, 7), "1 1F0": (7, 7, 8), "1 1F1": (8, 8, 9), "1 1B0": (9, 9, 10),
        "1 1B1": (10, 10, 11),
    }  # fmt: skip
    program = PROGRAMS["stages"]
    (forward,) = (op.id for op in program.rank_ops(1) if str(op) == "1F0")
    times = replace(step_times(program, moments, {0: 15, 1: 13}), loading={forward: (4.0, 6.0)})
    found = Accountant(program).account(times).ranks[1]
    assert found.loading_time_s == 2
    assert found.exposed_communication_time_s == 4  # r0 for 2, r1, s1
    assert found.bubble_time_s == 2  # before the first message
    assert (found.wait_time_s, found.other_time_s) == (0, 0)
    assert found.overlap_ratio == pytest.approx(1 - 4 / 6)
    without = Accountant(program).account(replace(times, loading={})).ranks[1]
    assert (without.exposed_communication_time_s, without.other_time_s) == (5, 1)


def test_a_rank_that_is_done_goes_on_while_the_others_work() -> None:
    """Rank 0 has gathered its weights at 7 and leaves; what rank 1 does until 10 is its own.

    Once the last transfer was counted as the host's own time too.
    """
    moments: Moments = {
        f"{rank} {op}": moment
        for rank in (0, 1)
        for op, moment in {
            "0F0": (0, 0, 1), "0B0": (1, 1, 2), "0REDUCE_SCATTER0": (2, 2, 4),
            "0STEP0": (4, 4, 5), "0ALL_GATHER0": (5, 5, 7),
        }.items()
    }  # fmt: skip
    found = shares_of("sharded", moments, {0: 7, 1: 10})
    assert found[0] == shares(7, compute=3, communication=4, exposed=4)
    assert found[1] == shares(10, compute=3, communication=4, exposed=4, other=3)


def test_a_last_transfer_waits_like_any_other() -> None:
    """Rank 0 has updated its shard at 5, rank 1 at 6; then they gather until 8."""
    moments: Moments = {
        f"{rank} {op}": moment
        for rank in (0, 1)
        for op, moment in {
            "0F0": (0, 0, 1), "0B0": (1, 1, 2), "0REDUCE_SCATTER0": (2, 2, 4),
            "0STEP0": (4, 4, 5 + rank), "0ALL_GATHER0": (5 + rank, 6, 8),
        }.items()
    }  # fmt: skip
    found = shares_of("sharded", moments, {0: 8, 1: 8})
    assert found[0] == shares(8, compute=3, communication=4, exposed=4, wait=1)
    assert found[1] == shares(8, compute=4, communication=4, exposed=4)


def test_the_mean_of_the_ranks_adds_up_to_the_step() -> None:
    program = PROGRAMS["stages"]
    account = Accountant(program).account(step_times(program, STAGED, {0: 15, 1: 13}))
    assert account.mean == shares(14, compute=8.5, communication=5, exposed=2.5, bubble=3)
    assert account.step_time_s == 14


def test_a_summary_tells_the_median_step_with_bytes_and_the_largest_memory() -> None:
    program = PROGRAMS["data"]
    accountant = Accountant(program)
    moments: Moments = {
        f"{rank} {op}": moment
        for rank in (0, 1)
        for op, moment in {
            "0F0": (0, 0, 1), "0B0": (1, 1, 2), "0ALL_REDUCE0": (2, 2, 4), "0STEP0": (4, 4, 5)
        }.items()
    }  # fmt: skip
    accounts = [
        accountant.account(step_times(program, moments, {0: last, 1: last})) for last in (9, 5, 8)
    ]
    summary = summarise(accountant, accounts, {0: 100, 1: 300})
    assert summary["step_time_s"] == 8
    assert summary["images_per_s"] == program.global_batch / 8
    # The ring: each of two ranks sends the whole of 656 bytes once; see the ledger's tests.
    assert summary["bytes_sent"] == 2 * 656
    assert summary["peak_memory_bytes"] == 300
    ranks = summary["ranks"]
    assert isinstance(ranks, list)
    assert [row["rank"] for row in ranks] == [0, 1]
    assert [row["bytes_sent"] for row in ranks] == [656, 656]
    assert [row["peak_memory_bytes"] for row in ranks] == [100, 300]


# -- any timeline ---------------------------------------------------------------------------------


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Program, StepTimes]:
    """Whole numbers; each rank's computation in order, its transfers wherever they fall, and now
    and then data that is waited for before a computation."""
    program = PROGRAMS[draw(st.sampled_from(sorted(PROGRAMS)))]
    count = len(program.columns)
    ready, start, end = ([0.0] * count for _ in range(3))
    begin, finish = {}, {}
    loading: dict[int, Interval] = {}
    for rank in program.ranks:
        begin[rank] = at = draw(st.integers(0, 3))
        last = at
        for op in program.rank_ops(rank):
            if op.lane == COMPUTE:
                ready[op.id] = at
                start[op.id] = at + draw(st.integers(0, 3))
                if draw(st.booleans()):
                    moments = draw(st.lists(st.integers(at, int(start[op.id])), min_size=2))
                    loading[op.id] = (min(moments), max(moments))
                end[op.id] = at = int(start[op.id]) + draw(st.integers(1, 3))
                last = max(last, at)
            else:
                moments = sorted(draw(st.lists(st.integers(begin[rank], 30), min_size=3)))
                ready[op.id], start[op.id], end[op.id] = moments[:3]
                last = max(last, moments[2])
        finish[rank] = last + draw(st.integers(0, 3))
    return program, StepTimes(0, ready, start, end, dict(begin), dict(finish), loading)


def is_loading(program: Program, times: StepTimes, rank: int, t: int) -> bool:
    """Whether a rank waits for data in a second."""
    return any(
        low <= t < high for i, (low, high) in times.loading.items() if i in program.order[rank]
    )


def slot_by_slot(program: Program, times: StepTimes, rank: int) -> Shares:
    """The definitions, asked of every second in turn."""
    begin, finish = int(times.begin[rank]), int(times.finish[rank])
    ops = program.rank_ops(rank)
    compute = [op for op in ops if op.lane == COMPUTE]
    transfers = [op for op in ops if op.lane != COMPUTE]
    parts = ("compute", "communication", "exposed", "wait", "bubble", "loading", "other")
    count = dict.fromkeys(parts, 0)
    for t in range(begin, finish):
        transferring = any(times.start[op.id] <= t < times.end[op.id] for op in transfers)
        count["communication"] += transferring
        following = next((op for op in compute if times.start[op.id] > t), None)
        if any(times.start[op.id] <= t < times.end[op.id] for op in compute):
            count["compute"] += 1
        elif is_loading(program, times, rank, t):
            count["loading"] += 1
        elif transferring:
            count["exposed"] += 1
        else:  # the last ones of a step wait for all that is still under way
            needs = map(program.op, following.needs) if following else transfers
            late = [
                program.is_interstage(need)
                for need in needs
                if need.lane != COMPUTE and times.ready[need.id] <= t < times.start[need.id]
            ]
            kind = ("bubble" if all(late) else "wait") if late else "other"
            count[kind] += 1
    return Shares(finish - begin, *map(float, count.values()))


@given(timelines())
def test_shares_are_what_counting_gives_and_add_up(drawn: tuple[Program, StepTimes]) -> None:
    program, times = drawn
    account = Accountant(program).account(times)
    for rank, found in account.ranks.items():
        assert min(astuple(found)) >= 0
        assert found == slot_by_slot(program, times, rank)
        total, compute, _, *rest = astuple(found)
        assert compute + sum(rest) == total
        assert 0 <= found.overlap_ratio <= 1
    totals = [shares.step_time_s for shares in account.ranks.values()]
    assert account.step_time_s == pytest.approx(sum(totals) / len(totals))


# -- intervals ------------------------------------------------------------------------------------

intervals = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6)


def seconds(found: list[tuple[float, float]]) -> set[int]:
    return {t for a, b in found for t in range(int(a), int(b))}


@given(intervals, intervals, st.integers(0, 12), st.integers(0, 12))
def test_intervals_are_sets_of_seconds(
    some: list[tuple[float, float]], others: list[tuple[float, float]], a: int, b: int
) -> None:
    one, other = merge(some), merge(others)
    assert seconds(one) == seconds(some)
    assert all(x[1] < y[0] for x, y in zip(one, one[1:], strict=False)), "sorted, apart"
    assert length(one, a, b) == len(seconds(one) & set(range(a, b)))
    assert seconds(subtract(one, other)) == seconds(one) - seconds(other)
    assert overlap(one, other) == len(seconds(one) & seconds(other))
