"""The ranks' own records become one timeline: one clock, and transfers that start together."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.observe.timeline import RankTimes, StepTimes, join, meet, write
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.ops import COMPUTE, EXCHANGE, FORWARD, REDUCE, F
from orchestrator.program.order import meetings
from orchestrator.program.resolve import model_of
from tests.observe.timelines import PROGRAMS
from tests.program.small import LINEAR, small_program

DATA = PROGRAMS["data"]


def record(program: Program, rank: int, at: float, reduce_end: float) -> RankTimes:
    """A rank of ``data`` that enters at ``at`` and computes for two seconds."""
    forward, backward, reduce, step = program.order[rank]
    return RankTimes(
        rank, 3, at, reduce_end + 1,
        {
            forward: (at, at, at + 1),
            backward: (at + 1, at + 1, at + 2),
            reduce: (at + 2, at + 2, reduce_end),
            step: (reduce_end, reduce_end, reduce_end + 1),
        },
        {forward: (at - 0.5, at)},
    )  # fmt: skip


def test_offsets_bring_the_ranks_onto_one_clock() -> None:
    """Rank 1's clock is 100 s ahead; on rank 0's it entered the step a second later."""
    times = join(DATA, [record(DATA, 0, 10, 14), record(DATA, 1, 111, 114)], {0: 0.0, 1: -100.0})
    assert times.step == 3
    assert times.begin == {0: 10, 1: 11}
    assert times.finish == {0: 15, 1: 15}
    forward, backward, reduce, step = DATA.order[1]
    assert (times.start[forward], times.end[forward]) == (11, 12)
    assert times.loading == {DATA.order[0][0]: (9.5, 10), forward: (10.5, 11)}
    assert (times.start[backward], times.end[backward]) == (12, 13)
    assert (times.start[step], times.end[step]) == (14, 15)
    # Ready at 12 and at 13: the sum starts when the later one is.
    both = [DATA.order[rank][2] for rank in (0, 1)]
    assert [times.ready[i] for i in both] == [12, 13]
    assert [times.start[i] for i in both] == [13, 13]
    assert reduce == both[1]


def test_a_transfer_never_starts_after_it_ended() -> None:
    """Clocks agree to some microseconds only: a peer may seem ready after the data came."""
    times = join(DATA, [record(DATA, 0, 10, 14), record(DATA, 1, 13, 16)], {})
    reduce = DATA.order[0][2]
    assert times.ready[reduce] <= times.start[reduce] == times.end[reduce] == 14


def test_without_offsets_clocks_are_taken_as_one() -> None:
    records = [record(DATA, 0, 10, 14), record(DATA, 1, 10, 14)]
    assert join(DATA, records, {}) == join(DATA, records, {0: 0.0, 1: 0.0})


def test_meet_moves_starts_only_later() -> None:
    program = PROGRAMS["columns"]
    count = len(program.columns)
    before = StepTimes(
        0, [float(i) for i in range(count)], [i + 1.0 for i in range(count)], [99.0] * count, {}, {}
    )
    after = replace(before, start=list(before.start))
    meet(program, after)
    assert (after.ready, after.end) == (before.ready, before.end)
    for send, sent, receive, _ in meetings(program).messages:
        begun = max(before.start[i] for i in (send, receive))
        assert after.of_messages(send)[sent] == (begun, 99.0)
    for op in program.ops():
        if op.lane == EXCHANGE:
            assert after.start[op.id] == min(start for start, _ in after.of_messages(op.id))
        elif op.lane == COMPUTE:
            assert after.start[op.id] == before.start[op.id]


def test_a_send_ends_when_its_bytes_have_arrived() -> None:
    """The sender's host took them at once, before the other side had even asked for them."""
    program = PROGRAMS["columns"]
    columns = program.columns
    count = len(columns)
    receives = [kind.startswith("RECV") for kind in columns.kind]
    start = [5.0 if receive else 1.0 for receive in receives]
    end = [9.0 if receive else 2.0 for receive in receives]
    times = StepTimes(0, [0.0] * count, start, end, {}, {})
    meet(program, times)
    for i, kind in enumerate(columns.kind):
        moved = kind.startswith(("SEND", "RECV"))
        assert (times.start[i], times.end[i]) == ((5.0, 9.0) if moved else (1.0, 2.0))
    assert any(receives)


def test_a_late_peer_delays_its_own_message_alone() -> None:
    """Rank 0 exchanges with three others, of which 2 comes 5 seconds later."""
    program = small_program(LINEAR, "layers: a..c, ranks: 0..3, split: channel")
    first = next(op for op in program.rank_ops(0) if op.kind == "EXCHANGE_F")
    late = {op.id for op in program.rank_ops(2)}
    count = len(program.columns)
    start = [6.0 if i in late else 1.0 for i in range(count)]
    times = StepTimes(0, [0.0] * count, start, [at + 1 for at in start], {}, {})
    meet(program, times)
    assert first.peers == (1, 2, 3)
    here = (1.0, 2.0)
    assert times.messages[first.id] == [here, (6.0, 7.0), here, here, (2.0, 2.0), here]


def check_meetings(program: Program) -> None:
    """Every transfer once, with the peers that its sides name, the same bytes and the same work."""
    met = meetings(program)
    sent, received = Counter[int](), Counter[int]()
    for send, number, receive, other in met.messages:
        a, b = program.op(send), program.op(receive)
        assert a.transfers is not None
        assert b.transfers is not None
        (peer, size), (sender, same) = a.transfers.sends[number], b.transfers.receives[other]
        assert (a.rank, peer, size) == (sender, b.rank, same)
        assert a.transfers.route == b.transfers.route
        assert (a.segment, a.microbatch) == (b.segment, b.microbatch)
        assert (a.kind in FORWARD) == (b.kind in FORWARD)
        sent[send] += 1
        received[receive] += 1
    seen: list[int] = []
    for ids in met.collectives:
        sides = [program.op(i) for i in ids]
        seen += ids
        assert {op.lane for op in sides} == {REDUCE}
        assert sorted(op.rank for op in sides) == sorted(sides[0].peers)
        assert len({(op.kind, op.segment, op.microbatch, op.peers, op.bytes) for op in sides}) == 1
    for op in program.ops():
        if op.transfers is not None:
            counts = len(op.transfers.sends), len(op.transfers.receives)
            assert counts == (sent[op.id], received[op.id]) != (0, 0)
    assert sorted(seen) == [op.id for op in program.ops() if op.lane == REDUCE]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_transfer_meets_its_own_other_side(name: str) -> None:
    check_meetings(PROGRAMS[name])


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_sends_and_sums_between_the_same_ranks_are_not_mixed_up(name: str) -> None:
    """A send from 0 to 1 and an all-reduce of 0 and 1 once counted as one transfer of four sides.

    In four of the shipped plans sends seemed to start when the gradients were there.
    """
    plan = load_plan(name)
    check_meetings(compile_plan(plan, model_of(plan)))


def test_a_line_for_every_step_and_op(tmp_path: Path) -> None:
    file = tmp_path / "timeline.jsonl"
    steps = [
        join(DATA, [record(DATA, 0, at, at + 4), record(DATA, 1, at, at + 4)], {})
        for at in (0.0, 5.25)
    ]
    write(file, DATA, [replace(times, step=i) for i, times in enumerate(steps)])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["step"], row["op"]) for row in rows] == [
        (step, op.id) for step in (0, 1) for op in DATA.ops()
    ]
    for row in rows:
        op = DATA.op(row["op"])
        assert (row["rank"], row["name"], row["bytes"]) == (op.rank, str(op), op.bytes)
        times = steps[row["step"]]
        moments = (times.ready[op.id], times.start[op.id], times.end[op.id])
        assert (row["ready"], row["start"], row["end"]) == pytest.approx(moments, abs=1e-7)
        assert tuple(row.get("loading", ())) == times.loading.get(op.id, ())
        assert ("loading" in row) == (op.kind == F)
