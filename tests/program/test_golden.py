"""Programs of six small plans, kept as text: a change of ``compile`` shows as a diff to be read.

After a change that is meant,

    ORCHESTRATOR_REGENERATE=1 python -m pytest tests/program/test_golden.py

writes ``golden/*.txt`` anew. What changed fails that once, so that it cannot happen unseen: read
the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.models import build_model
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.boundary import Route
from orchestrator.program.ops import (
    EXCHANGE,
    KINDS,
    LANE_OF,
    Op,
    Transfers,
    others_of,
    size_of,
)
from orchestrator.program.text import line, parse, text
from tests.program.small import LENET, small_program

GOLDEN = Path(__file__).parent / "golden"
TWO_STAGES = (
    "layers: conv1..pool2, ranks: [0], split: none",
    "layers: fc3..fc5, ranks: [1], split: none",
)
# name, entries, batch, further lines
PLANS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "columns": (
        (
            "layers: conv1..relu4, ranks: [0, 1], split: channel",
            "layers: fc5, ranks: [0], split: none",
        ),
        4, "",
    ),
    "data-parallel": (("layers: conv1..fc5, ranks: [0, 1], split: batch",), 4, ""),
    "pipeline-1f1b": (TWO_STAGES, 6, "n_microbatches: 3\nschedule: 1F1B"),
    "zero-bubble": (
        (
            "layers: conv1..pool1, ranks: [0], split: none",
            "layers: conv2..pool2, ranks: [1], split: none",
            "layers: fc3..relu4, ranks: [1], split: none",
            "layers: fc5, ranks: [0], split: none",
        ),
        4, "n_microbatches: 2\nschedule: ZBVZeroBubble",
    ),
    "broadcast-in-turns": (
        (
            "layers: conv1..pool2, ranks: [0, 1], split: batch",
            "layers: fc3..relu4, ranks: [0, 1], split: channel, exchange: broadcast",
            "layers: fc5, ranks: [0], split: none",
        ),
        4, "training: {layer_batch: {fc3..fc5: 2}}",
    ),
    "zero1": (
        ("layers: conv1..fc5, ranks: [0, 1], split: batch",), 8,
        "replicas: 2\noptimizer_sharding: zero1",
    ),
}  # fmt: skip


def compiled(name: str) -> Program:
    entries, batch, more = PLANS[name]
    return small_program(LENET, *entries, batch=batch, more=more)


@pytest.mark.parametrize("name", PLANS)
def test_a_program_is_as_it_was(name: str) -> None:
    program = compiled(name)
    now = text(program.columns, program.order)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("ORCHESTRATOR_REGENERATE"):
        before = file.read_text() if file.exists() else ""
        file.write_text(now)
        assert before == now, f"{file.name} was written anew"
    assert now == file.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(PLANS)


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_text_parses_back(name: str) -> None:
    plan = load_plan(name)
    assert plan.model.name is not None
    program = compile_plan(plan, build_model(plan.model.name, {}))
    assert parse(text(program.columns, program.order)) == (program.columns, program.order)
    # an op names what it needs by smaller ids, and a rank lists its own ops only
    assert all(need < op.id for op in program.ops() for need in op.needs)
    for rank in program.ranks:
        assert all(op.rank == rank for op in program.rank_ops(rank))
    again = compile_plan(plan, build_model(plan.model.name, {}))
    assert again.digest() == program.digest()


NUMBERS = st.lists(st.integers(0, 999), max_size=3).map(tuple)


@given(
    kind=st.sampled_from(KINDS), segment=st.integers(0, 99), microbatch=st.integers(0, 99),
    peers=NUMBERS, size=st.integers(0, 10**12), flops=st.integers(0, 10**15), needs=NUMBERS,
)  # fmt: skip
def test_any_op_parses_back(
    kind: str, segment: int, microbatch: int, peers: tuple[int, ...], size: int, flops: int,
    needs: tuple[int, ...],
) -> None:  # fmt: skip
    transfers = None
    if LANE_OF[kind] == EXCHANGE:
        ranks = (0, *peers, 7)
        route = {"S": Route((0,), ranks[1:]), "R": Route(ranks[1:], (0,))}.get(
            kind[0], Route(ranks, ranks)
        )
        sides = tuple((peer, size) for peer in peers or (7,))
        transfers = Transfers(
            route,
            () if kind.startswith("RECV") else sides,
            () if kind.startswith("SEND") else sides,
        )
        peers, size = others_of(transfers), size_of(transfers)
    lane = LANE_OF[kind]
    op = Op(0, 0, lane, kind, segment, microbatch, peers, size, flops, needs, transfers)
    columns, order = parse(f"rank 0\n{line(op)}\n")
    assert columns.op(0) == op
    assert order == ((0,),)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rank 0\n0 0F0\n0 0B0\n", "line 3: not an op, or an op twice: '0 0B0'"),
        ("rank 0\n0 0X0\n", "line 2: not an op"),
        ("0 0F0\n", "line 1: not an op"),
        ("rank 0\n0 0F0 bytes=x\n", "line 2: not an op"),
        ("rank 0\n0 0F0\n2 0B0\n", "op ids are not 0, 1, 2"),
    ],
)
def test_text_that_is_no_program_is_refused(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(source)
    assert message in str(caught.value)
