"""Programs that cannot run are found before they start, and the picture shows who waits.

A legal program is written as text, a line is moved or changed as a bug in compile would, and read
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.models import build_model
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Deadlock, Program, compile_plan, find_deadlock, grid
from orchestrator.program.text import parse, text
from tests.program.small import LENET, LINEAR, small_program

PIPELINE = (
    "layers: a..relu, ranks: [0], split: none",
    "layers: b..c, ranks: [1], split: none",
)
COLUMNS = ("layers: a..c, ranks: [0, 1], split: channel",)
DATA = ("layers: a..c, ranks: 0..2, split: batch",)


def edited(program: Program, change: Callable[[list[str]], list[str]]) -> Program:
    """The program with its lines changed."""
    lines = change(text(program.columns, program.order).splitlines())
    columns, order = parse("\n".join(lines) + "\n")
    return replace(program, columns=columns, order=order)


def pipeline(schedule: str = "1F1B") -> Program:
    more = f"n_microbatches: 4\nschedule: {schedule}"
    return small_program(LINEAR, *PIPELINE, batch=8, more=more)


def found(program: Program) -> Deadlock:
    deadlock = find_deadlock(program)
    assert deadlock is not None
    return deadlock


def names(program: Program, deadlock: Deadlock) -> list[str]:
    return [f"rank {program.op(i).rank}: {program.op(i)}" for i in deadlock.ops]


def index(lines: list[str], rank: int, name: str) -> int:
    start = lines.index(f"rank {rank}")
    return next(i for i in range(start + 1, len(lines)) if lines[i].split()[1] == name)


def swap(rank: int, one: str, other: str) -> Callable[[list[str]], list[str]]:
    """Two lines of a rank change places; ids and needs stay."""

    def change(lines: list[str]) -> list[str]:
        a, b = index(lines, rank, one), index(lines, rank, other)
        lines[a], lines[b] = lines[b], lines[a]
        return lines

    return change


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_a_shipped_plan_is_free_of_deadlocks(name: str) -> None:
    plan = load_plan(name)
    assert plan.model.name is not None
    assert find_deadlock(compile_plan(plan, build_model(plan.model.name, {}))) is None


def test_a_program_read_from_its_text_is_still_free() -> None:
    assert find_deadlock(edited(pipeline(), lambda lines: lines)) is None


def test_swapped_receives_wait_in_a_circle() -> None:
    """Without tags the first send meets the receive for microbatch 2; rank 1 cannot begin, and
    rank 0 gets no gradient that would let it go on to microbatch 2."""
    program = edited(pipeline(), swap(1, "1RECV_F0", "1RECV_F2"))
    deadlock = found(program)
    assert "wait for each other in a circle" in deadlock.reason
    circle = names(program, deadlock)
    assert "rank 1: 1RECV_F0" in circle
    assert "rank 1: 1F0" in circle
    assert {program.op(i).rank for i in deadlock.ops} == {0, 1}


def test_swapped_sends_wait_in_a_circle() -> None:
    program = edited(pipeline(), swap(0, "1SEND_F0", "1SEND_F2"))
    assert "rank 0: 1SEND_F2" in names(program, found(program))


BOTH_RECEIVE_FIRST = """\
rank 0
0 1RECV_F0 route=0-1>0-1 from=1:64
1 1SEND_F1 route=0-1>0-1 to=1:64
rank 1
2 1RECV_F1 route=0-1>0-1 from=0:64
3 1SEND_F0 route=0-1>0-1 to=0:64"""


def test_both_receive_before_they_send() -> None:
    """The classic. On one route a rank's exchanges go one after another."""
    program = edited(small_program(LINEAR, *COLUMNS), lambda _: BOTH_RECEIVE_FIRST.splitlines())
    assert grid(program, found(program), around=1).splitlines() == [
        "4 ops wait for each other in a circle",
        "step  rank 0                   rank 1",
        "   0  1RECV_F0 <>1  <-- waits  1RECV_F1 <>0  <-- waits",
        "   1  1SEND_F1 <>1  <-- waits  1SEND_F0 <>0  <-- waits",
    ]
    apart = BOTH_RECEIVE_FIRST.replace(" route=0-1>0-1", "")  # 0>1 and 1>0
    program = edited(small_program(LINEAR, *COLUMNS), lambda _: apart.splitlines())
    assert find_deadlock(program) is None


def test_what_is_listed_behind_a_wait_comes_after_it() -> None:
    """Rank 0 waits for its receive before it posts the second, and so does not post its send."""
    lines = BOTH_RECEIVE_FIRST.replace(" route=0-1>0-1", "").splitlines()
    lines[2] += " needs=0"
    lines[5] = lines[5].replace("needs", "") + " needs=2"
    program = edited(small_program(LINEAR, *COLUMNS), lambda _: lines)
    assert len(found(program).ops) == 4


def test_a_need_that_closes_a_circle() -> None:
    """Each rank's exchange before segment 1 waits for its own forward of segment 1."""

    def change(lines: list[str]) -> list[str]:
        for rank in (0, 1):
            forward = lines[index(lines, rank, "1F0")].split()[0]
            i = index(lines, rank, "1EXCHANGE_F0")
            lines[i] += f",{forward}"
        return lines

    program = edited(small_program(LINEAR, *COLUMNS), change)
    circle = names(program, found(program))
    assert {"rank 0: 1EXCHANGE_F0", "rank 0: 1F0"} <= set(circle)
    picture = grid(program, found(program))
    assert picture.count("<-- waits") == len(circle)
    assert "rank 0" in picture


def test_an_op_behind_one_that_needs_it() -> None:
    """The need is on the same rank, posted later."""

    def change(lines: list[str]) -> list[str]:
        line = lines.pop(index(lines, 1, "1RECV_F0"))
        lines.insert(index(lines, 1, "1F0") + 1, line)
        return lines

    program = edited(pipeline("GPipe"), change)
    assert "rank 1: 1RECV_F0" in names(program, found(program))


def test_an_op_that_needs_its_partner() -> None:
    def change(lines: list[str]) -> list[str]:
        sent = lines[index(lines, 0, "1SEND_F0")].split()[0]
        i = index(lines, 1, "1RECV_F0")
        lines[i] += f" needs={sent}"
        return lines

    program = edited(pipeline("GPipe"), change)
    deadlock = found(program)
    assert deadlock.reason == "2 ops wait for each other in a circle"
    assert names(program, deadlock) == ["rank 0: 1SEND_F0", "rank 1: 1RECV_F0"]


def test_unequal_bytes() -> None:
    def change(lines: list[str]) -> list[str]:
        i = index(lines, 1, "1RECV_F3")
        lines[i] = lines[i].replace("from=0:64", "from=0:60")
        return lines

    program = edited(pipeline(), change)
    deadlock = found(program)
    assert deadlock.reason == "a transfer from rank 0 to rank 1 meets a partner of another size"
    assert names(program, deadlock) == ["rank 0: 1SEND_F3", "rank 1: 1RECV_F3"]


def renumbered(lines: list[str], dropped: int) -> list[str]:
    """The lines without op ``dropped``; ids above it move down by one."""

    def down(number: str) -> str:
        return str(int(number) - (int(number) > dropped))

    kept = []
    for raw in lines:
        fields = raw.split()
        if fields[0] == "rank":
            kept.append(raw)
        elif int(fields[0]) != dropped:
            fields[0] = down(fields[0])
            if fields[-1].startswith("needs="):
                needs = [n for n in fields[-1][6:].split(",") if int(n) != dropped]
                fields[-1] = "needs=" + ",".join(map(down, needs))
                fields = fields if needs else fields[:-1]
            kept.append(" ".join(fields))
    return kept


def without(rank: int, name: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        return renumbered(lines, int(lines[index(lines, rank, name)].split()[0]))

    return change


@pytest.mark.parametrize(("name", "left"), [("1SEND_F3", "1RECV_F3"), ("1RECV_B3", "1SEND_B3")])
def test_a_missing_partner(name: str, left: str) -> None:
    program = edited(pipeline(), without(0, name))
    deadlock = found(program)
    assert deadlock.reason.endswith("meets no partner")
    assert names(program, deadlock) == [f"rank 1: {left}"]
    assert f"{left} <>0  <-- waits" in grid(program, deadlock)


def test_a_collective_that_one_rank_leaves_out() -> None:
    program = edited(small_program(LINEAR, *DATA, batch=6), without(1, "0ALL_REDUCE0"))
    deadlock = found(program)
    assert deadlock.reason == "a collective over ranks (0, 1, 2) is not joined by all"
    assert names(program, deadlock)[0].endswith("0ALL_REDUCE0")


def test_different_collectives_that_meet() -> None:
    def change(lines: list[str]) -> list[str]:
        i = index(lines, 1, "0ALL_REDUCE0")
        lines[i] = lines[i].replace("ALL_REDUCE", "REDUCE_SCATTER")
        return lines

    deadlock = found(edited(small_program(LINEAR, *DATA, batch=6), change))
    assert deadlock.reason == "different collectives meet over ranks (0, 1, 2)"
    assert len(deadlock.ops) == 3


def test_a_grid_of_a_long_program_shows_the_marked_part_only() -> None:
    more = "n_microbatches: 8\nschedule: 1F1B"
    entries = (
        "layers: conv1..pool2, ranks: [0], split: none",
        "layers: fc3..fc5, ranks: [1], split: none",
    )
    program = edited(small_program(LENET, *entries, batch=16, more=more), without(0, "1SEND_F7"))
    picture = grid(program, found(program))
    assert len(picture.splitlines()) < 12
    assert "..." in picture
