"""Schedules as pictures, and what each of them promises.

A row is a pipeline group, a column one unit of time; ``1F0`` is stage 1, forward, microbatch 0.
The pictures come from the clock below, which knows nothing but the order in each row and who needs
whose result.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from textwrap import dedent

import pytest

from orchestrator.program import Program
from orchestrator.program.ops import COMPUTE, STEP
from orchestrator.program.schedule import (
    BUILDERS,
    SPLITS_BACKWARD,
    Action,
    Timetable,
    linearise,
    needs_of,
)
from tests.program.small import LINEAR, small_program

UNIT = {"F": 1, "B": 1, "I": 1, "W": 1}
# name, groups, stages, microbatches
SHAPES = [
    *(("GPipe", p, p, m) for p in range(1, 9) for m in range(1, 17)),
    *(("1F1B", p, p, m) for p in range(1, 9) for m in range(1, 17)),
    *(("GPipe", p, p * v, m) for p in (1, 2, 3) for v in (2, 3) for m in (1, 4)),
    *(
        (name, p, p * v, p * rounds)
        for name in ("Interleaved1F1B", "InterleavedZeroBubble")
        for p in range(1, 6)
        for v in (1, 2, 3)
        for rounds in (1, 2, 3)
    ),
    *(("ZBVZeroBubble", p, 2 * p, m) for p in range(1, 7) for m in range(1, 13)),
]


def clock(
    table: Timetable, stages: int, seconds: dict[str, int]
) -> tuple[dict[Action, int], dict[Action, int]]:
    """Start and end of every action where each group does its next one as soon as it can."""
    start: dict[Action, int] = {}
    end: dict[Action, int] = {}
    free = [0] * len(table)
    rows = [list(row) for row in table]
    while any(rows):
        moved = False
        for group, row in enumerate(rows):
            if row and all(need in end for need in needs_of(row[0], stages)):
                action = row.pop(0)
                needed = [end[need] for need in needs_of(action, stages)]
                start[action] = max([free[group], *needed])
                end[action] = free[group] = start[action] + seconds[action.kind]
                moved = True
        assert moved, "no group can go on"
    return start, end


def picture(table: Timetable, stages: int) -> str:
    start, end = clock(table, stages, UNIT)
    lines = []
    for row in table:
        cells = [" . "] * max(end.values())
        for action in row:
            cells[start[action]] = str(action)
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def idle(table: Timetable, stages: int, seconds: dict[str, int]) -> int:
    _, end = clock(table, stages, seconds)
    busy = sum(seconds[action.kind] for row in table for action in row)
    return max(end.values()) * len(table) - busy


PICTURES = {
    ("GPipe", 3, 3, 4): """\
        0F0 0F1 0F2 0F3  .   .   .   .  0B0 0B1 0B2 0B3
         .  1F0 1F1 1F2 1F3  .   .  1B0 1B1 1B2 1B3  .
         .   .  2F0 2F1 2F2 2F3 2B0 2B1 2B2 2B3  .   .
        """,
    ("1F1B", 3, 3, 4): """\
        0F0 0F1 0F2  .   .  0B0 0F3 0B1  .  0B2  .  0B3
         .  1F0 1F1  .  1B0 1F2 1B1 1F3 1B2  .  1B3  .
         .   .  2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3  .   .
        """,
    ("Interleaved1F1B", 2, 4, 4): """\
        0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1  .  2B2  .  2B3 0B2 0B3
         .  1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3  .
        """,
    ("InterleavedZeroBubble", 3, 3, 3): """\
        0F0 0F1 0F2  .   .  0I0 0W0 0I1 0W1 0I2 0W2
         .  1F0 1F1 1F2 1I0 1W0 1I1 1W1 1I2 1W2  .
         .   .  2F0 2I0 2F1 2I1 2F2 2I2 2W0 2W1 2W2
        """,
    ("InterleavedZeroBubble", 2, 2, 4): """\
        0F0 0F1 0F2 0I0 0F3 0I1 0W0 0W1 0I2 0W2  .  0I3 0W3
         .  1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1F3 1I3 1W2 1W3
        """,
    ("ZBVZeroBubble", 2, 4, 2): """\
        0F0 0F1  .  3F0 3I0 3F1 3I1 0I0 3W0 0I1 3W1 0W0 0W1
         .  1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1
        """,
    ("GPipe", 2, 4, 2): """\
        0F0 0F1 2F0 2F1  .   .  2B0 2B1 0B0 0B1
         .  1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1  .
        """,
}


@pytest.mark.parametrize("shape", PICTURES, ids=lambda shape: "-".join(map(str, shape)))
def test_a_schedule_looks_like_its_picture(shape: tuple[str, int, int, int]) -> None:
    name, groups, stages, microbatches = shape
    table = BUILDERS[name](groups, stages, microbatches)
    assert picture(table, stages) == dedent(PICTURES[shape])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_every_action_comes_once_on_its_group_and_in_a_legal_order(
    shape: tuple[str, int, int, int],
) -> None:
    name, groups, stages, microbatches = shape
    table = BUILDERS[name](groups, stages, microbatches)
    kinds = "FIW" if name in SPLITS_BACKWARD else "FB"
    every = [
        Action(kind, s, m) for kind in kinds for s in range(stages) for m in range(microbatches)
    ]
    assert sorted(action for row in table for action in row) == sorted(every)
    for group, row in enumerate(table):
        back = stages - 1 - group
        mine = {group, back} if name == "ZBVZeroBubble" else set(range(group, stages, groups))
        assert {action.stage for action in row} == mine
    order = linearise(table, stages)
    assert Counter(order) == Counter(every)
    place = {action: i for i, action in enumerate(order)}
    assert all(place[need] < place[a] for a in order for need in needs_of(a, stages))
    for row in table:
        assert [place[action] for action in row] == sorted(place[action] for action in row)


@pytest.mark.parametrize("seconds", [(1, 1), (1, 2), (3, 5)])
@pytest.mark.parametrize("name", ["GPipe", "1F1B"])
@pytest.mark.parametrize("p", range(1, 9))
def test_gpipe_and_1f1b_end_at_their_closed_form(
    p: int, name: str, seconds: tuple[int, int]
) -> None:
    """(m + p - 1)(t_F + t_B): Huang et al. 2019, section 2.3; the same for 1F1B."""
    forward, backward = seconds
    for m in range(1, 17):
        _, end = clock(BUILDERS[name](p, p, m), p, {"F": forward, "B": backward})
        assert max(end.values()) == (m + p - 1) * (forward + backward)


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("p", range(1, 6))
def test_interleaving_divides_the_bubble_by_the_stages_of_a_rank(p: int, chunks: int) -> None:
    """Narayanan et al. 2021, section 2.2: a rank idles (p - 1)(t_F + t_B) / v."""
    for rounds in (1, 2, 4):
        table = BUILDERS["Interleaved1F1B"](p, p * chunks, p * rounds)
        assert idle(table, p * chunks, {"F": 1, "B": 2}) == p * (p - 1) * 3


@pytest.mark.parametrize("p", range(2, 7))
def test_zero_bubble_schedules_idle_less_than_1f1b(p: int) -> None:
    """In units where a forward, an input half and a weight half take as long (Qi et al. 2023)."""
    for m in range(1, 13):
        usual = idle(BUILDERS["1F1B"](p, p, m), p, {"F": 2, "B": 4})
        # two stages a rank, so each takes half as long
        found = idle(BUILDERS["ZBVZeroBubble"](p, 2 * p, m), 2 * p, UNIT)
        assert found < usual
    for rounds in (1, 2, 3):
        usual = idle(BUILDERS["1F1B"](p, p, p * rounds), p, {"F": 1, "B": 2})
        found = idle(BUILDERS["InterleavedZeroBubble"](p, p, p * rounds), p, UNIT)
        assert found * 3 == usual  # the bound of ZB-H1: (p - 1)(t_F + t_I - t_W)
        twice = idle(BUILDERS["InterleavedZeroBubble"](p, 2 * p, p * rounds), 2 * p, UNIT)
        assert twice <= found


def most(row: list[Action], more: str, less: str) -> int:
    """The most actions of kind ``more`` without their ``less`` at any time."""
    held = highest = 0
    for action in row:
        held += (action.kind == more) - (action.kind == less)
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_no_group_keeps_more_than_its_limit(shape: tuple[str, int, int, int]) -> None:
    """Forwards in flight are activations in memory."""
    name, p, stages, m = shape
    for group, row in enumerate(BUILDERS[name](p, stages, m)):
        chunks = stages // p
        if name == "GPipe":
            assert most(row, "F", "B") == m * chunks
        elif name == "1F1B":
            assert most(row, "F", "B") == min(m, p - group)
        elif name == "ZBVZeroBubble":
            assert most(row, "F", "W") <= 2 * p
        else:
            limit = min(m * chunks, 2 * (p - group - 1) + (chunks - 1) * p + 1)
            assert most(row, "F", "B" if name == "Interleaved1F1B" else "I") <= limit
            assert most(row, "I", "W") <= p


# -- what compile makes of them -------------------------------------------------------------------

PAIR = ("layers: a, ranks: [0], split: none", "layers: relu..c, ranks: [1], split: none")
ROUND = (
    "layers: a, ranks: [0], split: none", "layers: relu..b, ranks: [1], split: none",
    "layers: c, ranks: [0], split: none",
)  # fmt: skip
SHARED = (
    "layers: a, ranks: [0, 1], split: channel", "layers: relu..b, ranks: [0], split: none",
    "layers: c, ranks: [0, 1], split: batch",
)  # fmt: skip


def pipelined(name: str, *entries: str) -> Program:
    more = f"n_microbatches: 4\nschedule: {name}"
    return small_program(LINEAR, *entries, batch=8, more=more)


def actions(program: Program, rank: int) -> list[Action]:
    """What a rank of a compiled program computes, the segments of a stage put together."""
    found = [
        Action(op.kind, program.segments[op.segment].stage, op.microbatch)
        for op in program.rank_ops(rank)
        if op.lane == COMPUTE and op.kind != STEP
    ]
    return [action for action, _ in groupby(found)]


@pytest.mark.parametrize(
    ("name", "entries"),
    [*((name, PAIR) for name in BUILDERS if name != "ZBVZeroBubble"), ("GPipe", ROUND)],
)
def test_a_program_computes_in_the_order_of_its_schedule(
    name: str, entries: tuple[str, ...]
) -> None:
    program = pipelined(name, *entries)
    for rank, row in enumerate(BUILDERS[name](2, len(entries), 4)):
        assert actions(program, rank) == row


@pytest.mark.parametrize(
    ("name", "entries"), [("GPipe", PAIR), ("GPipe", ROUND), ("GPipe", SHARED), ("1F1B", PAIR)]
)
def test_a_program_follows_the_builder(
    name: str, entries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPipe once was written a second time in compile, and the tests were of the first."""
    builder, usual = BUILDERS[name], pipelined(name, *entries)

    def last_microbatch_first(groups: int, stages: int, microbatches: int) -> Timetable:
        table = builder(groups, stages, microbatches)
        return [[a._replace(microbatch=microbatches - 1 - a.microbatch) for a in r] for r in table]

    monkeypatch.setitem(BUILDERS, name, last_microbatch_first)
    turned = pipelined(name, *entries)
    for rank in usual.ranks:
        expected = [a._replace(microbatch=3 - a.microbatch) for a in actions(usual, rank)]
        assert actions(turned, rank) == expected
