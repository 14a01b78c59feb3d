"""One rank's part of a program: what it does and holds, nothing of the others, and whose it is."""

from __future__ import annotations

import pickle

import pytest

from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.resolve import model_of
from tests.program.small import LENET, LINEAR, small_program

COLUMNS = "layers: a..c, ranks: [0, 1], split: channel"


def program_of(name: str) -> Program:
    plan = load_plan(name)
    return compile_plan(plan, model_of(plan))


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_together_they_are_the_program(name: str) -> None:
    """Ops, messages and parts of all ranks, each once; of a message both sides have it."""
    program = program_of(name)
    parts = [program.for_rank(rank) for rank in program.ranks]
    assert [op for part in parts for op in part.ops] == [
        op for rank in program.ranks for op in program.rank_ops(rank)
    ]
    first = parts[: program.ranks_per_replica]
    for number, segment in enumerate(program.segments):
        found = [part.segments[number].parts for part in first]
        assert {rank: x for held in found for rank, x in held.items()} == segment.parts
        assert all(set(held) <= {part.rank} for held, part in zip(found, first, strict=True))
    for number, boundary in enumerate(program.boundaries):
        for way in ("messages", "gradients"):
            for turn, messages in enumerate(getattr(boundary, way)):
                held = [m for part in first for m in getattr(part.boundaries[number], way)[turn]]
                both = [m for m in messages for _ in {m.source, m.target}]
                assert sorted(held) == sorted(both)


def test_a_rank_is_not_sent_what_others_do() -> None:
    """Its part is as large whatever the number of the others, but for the lists of groups."""
    sizes = {}
    for replicas in (2, 16):
        program = small_program(
            LENET, "layers: conv1..fc5, ranks: [0, 1], split: channel", batch=4 * replicas,
            more=f"replicas: {replicas}",
        )  # fmt: skip
        sizes[replicas] = len(pickle.dumps(program.for_rank(1)))
        assert len(pickle.dumps(program)) > replicas * sizes[replicas] / 4
    assert sizes[16] < 1.5 * sizes[2]


def test_its_digest_is_of_the_whole() -> None:
    program = small_program(LINEAR, COLUMNS)
    assert {program.for_rank(rank).digest for rank in (0, 1)} == {program.digest()}


SWAPPED = "layers: a..c, ranks: [1, 0], split: channel"  # the same ops
UNEVEN = COLUMNS + ", shares: [3, 1]"


@pytest.mark.parametrize(
    ("entry", "more", "dtype"),
    [
        (SWAPPED, "", "float32"),
        (UNEVEN, "", "float32"),
        (COLUMNS, "training: {optimizer: adamw}", "float32"),
        (COLUMNS, "training: {optimizer: {name: adamw, eps: 0.001}}", "float32"),
        (COLUMNS, "", "bfloat16"),
    ],
)
def test_the_digest_tells_apart_what_is_held_and_how(entry: str, more: str, dtype: str) -> None:
    digests = {
        small_program(LINEAR, COLUMNS).digest(),
        small_program(LINEAR, COLUMNS, more="training: {optimizer: adamw}").digest(),
        small_program(LINEAR, entry, more=more, dtype=dtype).digest(),
    }
    assert len(digests) == (2 if more.endswith("adamw}") else 3)


def test_the_digest_is_the_same_wherever_it_is_compiled() -> None:
    assert small_program(LINEAR, COLUMNS).digest() == small_program(LINEAR, COLUMNS).digest()
