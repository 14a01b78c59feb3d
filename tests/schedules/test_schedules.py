"""Schedules as pictures, and what each of them promises.

A row is a pipeline group, a column one unit of time; ``1F0`` is stage 1, forward, microbatch 0.
The pictures come from the clock below, which knows nothing but the order in each row and who needs
whose result. Every schedule's file opens with one.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import groupby, product
from textwrap import dedent

import pytest

from orchestrator.program import Program
from orchestrator.program.ops import COMPUTE, STEP
from orchestrator.schedules import SCHEDULES, Action, Timetable, ends_with, linearise, needs_of
from tests.program.small import LINEAR, small_program

UNIT = {"F": 1, "B": 1, "I": 1, "W": 1}
# what a stage does with a microbatch, if not a forward and a backward
KINDS = {
    "InterleavedZeroBubble": {"FIW"},
    "ZB-H1": {"FIW"},
    "ZBVZeroBubble": {"FIW"},
    "DualPipeV": {"FIW", "FB"},
}
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
    *(("ZB-H1", p, p, m) for p in range(1, 9) for m in range(1, 17)),
    *(("LoopedBFS", p, p * v, m) for p in range(1, 5) for v in (1, 2, 3) for m in range(1, 7)),
    *(("DualPipeV", p, 2 * p, m) for p in range(1, 7) for m in range(2 * p, 2 * p + 4)),
]


def build(name: str, groups: int, stages: int, microbatches: int) -> Timetable:
    return SCHEDULES[name].build(groups, stages, microbatches)


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
                free[group] = start[action] + seconds[action.kind]
                end.update(dict.fromkeys(ends_with(action), free[group]))
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
    ("InterleavedZeroBubble", 3, 3, 3): """\
        0F0 0F1 0F2  .   .  0I0 0W0 0I1 0W1 0I2 0W2
         .  1F0 1F1 1F2 1I0 1W0 1I1 1W1 1I2 1W2  .
         .   .  2F0 2I0 2F1 2I1 2F2 2I2 2W0 2W1 2W2
        """,
    ("GPipe", 2, 4, 2): """\
        0F0 0F1 2F0 2F1  .   .  2B0 2B1 0B0 0B1
         .  1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1  .
        """,
}


@pytest.mark.parametrize("shape", PICTURES, ids=lambda shape: "-".join(map(str, shape)))
def test_a_schedule_looks_like_its_picture(shape: tuple[str, int, int, int]) -> None:
    name, groups, stages, microbatches = shape
    assert picture(build(*shape), stages) == dedent(PICTURES[shape])


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_looks_like_the_picture_in_its_file(name: str) -> None:
    text = sys.modules[SCHEDULES[name].build.__module__].__doc__ or ""
    rows = re.findall(r"^    group \d  (.*)$", text, re.M)
    actions = re.findall(r"(\d+)[FBIW](\d+)", "".join(rows))
    stages, microbatches = (1 + max(map(int, numbers)) for numbers in zip(*actions, strict=True))
    table = build(name, len(rows), stages, microbatches)
    assert picture(table, stages).splitlines() == [row.rstrip() for row in rows]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_every_action_comes_once_on_its_group_and_in_a_legal_order(
    shape: tuple[str, int, int, int],
) -> None:
    name, groups, stages, microbatches = shape
    table = build(name, groups, stages, microbatches)
    every = [action for row in table for action in row]
    kinds: dict[tuple[int, int], str] = {}
    for kind, s, m in every:
        kinds[s, m] = kinds.get((s, m), "") + kind
    assert set(kinds) == set(product(range(stages), range(microbatches)))
    assert set(kinds.values()) <= KINDS.get(name, {"FB"})
    for group, row in enumerate(table):
        back = stages - 1 - group
        v = SCHEDULES[name].entry_per_stage
        mine = {group, back} if v else set(range(group, stages, groups))
        assert {action.stage for action in row} == mine
    order = linearise(table, stages)
    assert Counter(order) == Counter(every)
    place = {ended: i for i, action in enumerate(order) for ended in ends_with(action)}
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
        _, end = clock(build(name, p, p, m), p, {"F": forward, "B": backward})
        assert max(end.values()) == (m + p - 1) * (forward + backward)


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("p", range(1, 6))
def test_interleaving_divides_the_bubble_by_the_stages_of_a_rank(p: int, chunks: int) -> None:
    """Narayanan et al. 2021, section 2.2: a rank idles (p - 1)(t_F + t_B) / v."""
    for rounds in (1, 2, 4):
        table = build("Interleaved1F1B", p, p * chunks, p * rounds)
        assert idle(table, p * chunks, {"F": 1, "B": 2}) == p * (p - 1) * 3


@pytest.mark.parametrize("p", range(2, 7))
def test_zero_bubble_schedules_idle_less_than_1f1b(p: int) -> None:
    """In units where a forward, an input half and a weight half take as long (Qi et al. 2023)."""
    for m in range(1, 13):
        usual = idle(build("1F1B", p, p, m), p, {"F": 2, "B": 4})
        # two stages a rank, so each takes half as long
        found = idle(build("ZBVZeroBubble", p, 2 * p, m), 2 * p, UNIT)
        assert found < usual
    for rounds in (1, 2, 3):
        usual = idle(build("1F1B", p, p, p * rounds), p, {"F": 1, "B": 2})
        found = idle(build("InterleavedZeroBubble", p, p, p * rounds), p, UNIT)
        assert found * 3 == usual  # the bound of ZB-H1: (p - 1)(t_F + t_I - t_W)
        twice = idle(build("InterleavedZeroBubble", p, 2 * p, p * rounds), 2 * p, UNIT)
        assert twice <= found


@pytest.mark.parametrize("p", range(1, 6))
def test_looped_bfs_ends_at_its_closed_form(p: int) -> None:
    """((v - 1) max(m, p) + m + p - 1)(t_F + t_B): with m >= p, Interleaved1F1B's bubble."""
    for v, m in product((1, 2, 3), range(1, 12)):
        _, end = clock(build("LoopedBFS", p, p * v, m), p * v, {"F": 2, "B": 3})
        assert max(end.values()) == ((v - 1) * max(m, p) + m + p - 1) * 5


@pytest.mark.parametrize("p", range(1, 7))
def test_zb_h1_idles_as_its_paper_says(p: int) -> None:
    """(p - 1)(t_F + t_I - t_W), Qi et al. 2023, section 2.3; with fewer microbatches than groups
    t_W more for each that is missing. As long as a weight half is the shortest."""
    for forward, halved, weight in [(1, 1, 1), (2, 2, 1), (3, 4, 2), (3, 2, 2), (5, 4, 1)]:
        seconds = {"F": forward, "I": halved, "W": weight}
        for m in range(1, 13):
            found = idle(build("ZB-H1", p, p, m), p, seconds)
            missing = max(0, p - m) * weight
            assert found == p * ((p - 1) * (forward + halved - weight) + missing)


@pytest.mark.parametrize("p", range(1, 7))
def test_dual_pipe_v_idles_as_zb_h1_does_on_half_as_long_stages(p: int) -> None:
    """(p - 1)(t_F + t_I - t_W), where t_F = t_I >= t_W."""
    for same, weight in [(1, 1), (2, 1), (3, 3), (5, 2)]:
        seconds = {"F": same, "I": same, "W": weight, "B": same + weight}
        for m in range(2 * p, 2 * p + 4):
            found = idle(build("DualPipeV", p, 2 * p, m), 2 * p, seconds)
            assert found == p * (p - 1) * (2 * same - weight)


def most(row: list[Action], more: str, less: str) -> int:
    """The most actions of kind ``more`` without one of the kinds ``less`` at any time."""
    held = highest = 0
    for action in row:
        held += (action.kind == more) - (action.kind in less)
        highest = max(highest, held)
    return highest


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_no_group_keeps_more_than_its_limit(shape: tuple[str, int, int, int]) -> None:
    """Forwards in flight are activations in memory."""
    name, p, stages, m = shape
    for group, row in enumerate(build(name, p, stages, m)):
        chunks = stages // p
        if name in ("GPipe", "LoopedBFS"):
            assert most(row, "F", "B") == m * chunks
        elif name == "1F1B":
            assert most(row, "F", "B") == min(m, p - group)
        elif name == "ZB-H1":
            assert most(row, "F", "I") == min(m, p - group)
            assert most(row, "F", "W") == min(m, p)
        elif name == "ZBVZeroBubble":
            assert most(row, "F", "W") <= 2 * p
        elif name == "DualPipeV":
            assert most(row, "F", "BW") <= 2 * p + 1
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
V = (
    "layers: a, ranks: [0], split: none", "layers: relu, ranks: [1], split: none",
    "layers: b, ranks: [1], split: none", "layers: c, ranks: [0], split: none",
)  # fmt: skip
LOOP = (V[0], V[1], "layers: b, ranks: [0], split: none", "layers: c, ranks: [1], split: none")
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
    [
        *((name, V if row.entry_per_stage else PAIR) for name, row in SCHEDULES.items()),
        ("GPipe", ROUND),
        ("LoopedBFS", LOOP),
    ],
)
def test_a_program_computes_in_the_order_of_its_schedule(
    name: str, entries: tuple[str, ...]
) -> None:
    program = pipelined(name, *entries)
    weightless = {Action("W", 1, m) for m in range(4)} if len(entries) == 4 else set()
    for rank, row in enumerate(build(name, 2, len(entries), 4)):
        assert actions(program, rank) == [action for action in row if action not in weightless]


@pytest.mark.parametrize(
    ("name", "entries"), [("GPipe", PAIR), ("GPipe", ROUND), ("GPipe", SHARED), ("1F1B", PAIR)]
)
def test_a_program_follows_the_builder(
    name: str, entries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPipe once was written a second time in compile, and the tests were of the first."""
    row, usual = SCHEDULES[name], pipelined(name, *entries)

    def last_microbatch_first(groups: int, stages: int, microbatches: int) -> Timetable:
        table = row.build(groups, stages, microbatches)
        return [[a._replace(microbatch=microbatches - 1 - a.microbatch) for a in r] for r in table]

    monkeypatch.setitem(SCHEDULES, name, replace(row, build=last_microbatch_first))
    turned = pipelined(name, *entries)
    for rank in usual.ranks:
        expected = [a._replace(microbatch=3 - a.microbatch) for a in actions(usual, rank)]
        assert actions(turned, rank) == expected
