"""``verify`` passes what is right and names what is wrong: each sabotage is a bug that could be.

The plans are small and in float64, where a difference above rounding is a bug.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.execute import interpreter, transport
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.parameters import SegmentParameters
from orchestrator.execute.transport import Handle, LocalHandle
from orchestrator.execute.verify import RandomFeed, Verdict, verify
from orchestrator.models import (
    Conv,
    Dropout,
    Linear,
    MaxPool,
    Model,
    ReLU,
    ResponseNorm,
    build_model,
)
from orchestrator.models.model import Recipe
from orchestrator.models.pieces import cut_out, put_in
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import Program, compile_plan
from orchestrator.program.ops import Op, Transfers
from orchestrator.program.placement import update_examples
from tests.program.small import small_plan

RECIPE = Recipe(lr=0.1)
# A norm whose window crosses the cut, so that two channels of each rank are the other's halo.
NET = Model(
    "net",
    (2, 6, 6),
    [
        Conv(name="conv1", channels=8, kernel=3, weight_std=0.3),
        ResponseNorm(name="norm1", alpha=1.0),
        MaxPool(name="pool1", kernel=2, stride=2),
        Conv(name="conv2", channels=8, kernel=1, weight_std=0.3),
        ReLU(name="relu2"),
        Linear(name="fc3", features=12, weight_std=0.3),
        Dropout(name="drop3"),
        Linear(name="fc4", features=5, weight_std=0.3),
    ],
)
COLUMNS = (
    "layers: conv1..drop3, ranks: [0, 1], split: channel",
    "layers: fc4, ranks: [0], split: none",
)
DATA = ("layers: conv1..fc4, ranks: [0, 1], split: batch",)


def program_of(*entries: str, dtype: str = "float64", more: str = "") -> Program:
    return compile_plan(small_plan(*entries, batch=4, more=more), NET, dtype=dtype)


def found(program: Program, steps: int = 2) -> Verdict:
    return verify(program, RECIPE, update_examples={}, steps=steps)


# Small enough for a test, and still every shipped plan as it stands.
SMALL = (
    "model.width=0.0625", "model.image_size=64", "model.classes=8", "global_batch_size=16",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_a_shipped_plan_equals_one_device(name: str, dtype: str) -> None:
    plan = load_plan(name, SMALL)
    choice = plan.model
    assert choice.name is not None
    options = {"width": choice.width, "image_size": choice.image_size, "classes": choice.classes}
    model = build_model(choice.name, options)
    program = compile_plan(plan, model, dtype=dtype)
    updates = update_examples(plan, model)
    verdict = verify(program, model.recipe, update_examples=updates, steps=3)
    assert verdict.passed, verdict.problems
    assert verdict.deadlock_free
    assert verdict.ledger_exact
    allowed = {"float64": 1e-9, "float32": 1e-4}[dtype]
    assert verdict.loss_relative_error <= allowed
    assert verdict.parameter_relative_error <= allowed


@pytest.mark.parametrize("entries", [COLUMNS, DATA])
def test_the_untouched_plans_pass(entries: tuple[str, ...]) -> None:
    verdict = found(program_of(*entries))
    assert verdict.passed, verdict.problems


TWO_STAGES = (
    "layers: conv1..relu2, ranks: [0], split: none",
    "layers: fc3..fc4, ranks: [1], split: none",
)


ONE_STAGE = ("layers: conv1..fc4, ranks: [0], split: none",)
SLICES = [(1, 4), (1, 2), (2, 2), (2, 1), (4, 1)]  # microbatches, examples of a slice
# Interleaved1F1B goes in rounds of as many microbatches as there are groups of ranks.
UPDATES_WITHIN = [
    (entries, microbatches, examples, more)
    for entries in (ONE_STAGE, TWO_STAGES)
    for microbatches, examples in SLICES
    for more in ("", "\nschedule: 1F1B", "\nschedule: Interleaved1F1B")
    if "Interleaved" not in more or microbatches % len(entries) == 0
]


@pytest.mark.parametrize(("entries", "microbatches", "examples", "more"), UPDATES_WITHIN)
def test_layers_that_update_within_the_step(
    entries: tuple[str, ...], microbatches: int, examples: int, more: str
) -> None:
    """Slices as large as a microbatch once ran every forward before the first update, and slices
    as large as the batch once left the single device nothing to update."""
    more = (
        f"n_microbatches: {microbatches}{more}\ntraining: {{layer_batch: {{fc3..fc4: {examples}}}}}"
    )
    plan = small_plan(*entries, batch=4, more=more)
    program = compile_plan(plan, NET, dtype="float64")
    updates = update_examples(plan, NET)
    assert bool(updates) == (examples < 4)
    verdict = verify(program, RECIPE, update_examples=updates, steps=2)
    assert verdict.passed, verdict.problems


def test_one_class_is_a_loss_of_zero_not_an_error() -> None:
    """Its loss is 0 whatever the weights, so a relative error has nothing to divide by."""
    model = Model("one", (4,), [Linear(name="fc", features=1, weight_std=0.3)])
    program = compile_plan(
        small_plan("layers: fc, ranks: [0, 1], split: batch"), model, dtype="float64"
    )
    verdict = verify(program, RECIPE, update_examples={}, steps=1)
    assert verdict.passed
    assert verdict.loss_relative_error == 0


# -- sabotage -------------------------------------------------------------------------------------


def halo_dropped(x: Tensor, where: Any, piece: Tensor, *, add: bool) -> None:
    """Two channels that arrive alone are the norm's halo."""
    if not add and piece.shape[1] == 2:
        piece = torch.zeros_like(piece)
    put_in(x, where, piece, add=add)


def halo_gradient_dropped(x: Tensor, where: Any, piece: Tensor, *, add: bool) -> None:
    if add and piece.shape[1] == 2:
        piece = torch.zeros_like(piece)
    put_in(x, where, piece, add=add)


def channels_swapped(x: Tensor, where: Any) -> Tensor:
    """What goes from conv1's column to conv2 is in the wrong order."""
    piece = cut_out(x, where)
    return piece.flip(1) if piece.shape[1:] == (4, 2, 2) else piece


def examples_swapped(x: Tensor, where: Any) -> Tensor:
    piece = cut_out(x, where)
    return piece.flip(0) if piece.dim() == 2 and piece.shape[1] == 6 else piece


# what is replaced in the interpreter, by what, and the last layer that is wrong because of it
EXCHANGES: list[tuple[str, Callable[..., Any], str]] = [
    ("put_in", halo_dropped, "fc4"),
    ("put_in", halo_gradient_dropped, "conv1"),
    ("cut_out", channels_swapped, "fc4"),
    ("cut_out", examples_swapped, "fc4"),
]


@pytest.mark.parametrize("sabotage", EXCHANGES, ids=lambda s: s[1].__name__)
def test_a_broken_exchange_fails_and_names_a_layer(
    sabotage: tuple[str, Callable[..., Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, broken, layer = sabotage
    monkeypatch.setattr(interpreter, name, broken)
    verdict = found(program_of(*COLUMNS), steps=1)
    assert not verdict.passed
    assert verdict.deadlock_free
    assert verdict.ledger_exact
    assert verdict.parameter_relative_error > 1e-6
    (problem,) = (p for p in verdict.problems if "of its change" in p)
    assert problem.startswith(layer)


def summed_as(broken: Callable[[list[Tensor]], Tensor]) -> Callable[[str, list[Tensor]], None]:
    def collect(kind: str, tensors: list[Tensor]) -> None:
        total = broken(tensors)
        for tensor in tensors:
            tensor.copy_(total)

    return collect


REDUCTIONS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "averaged": lambda tensors: (tensors[0] + tensors[1]) / 2,
    "first only": lambda tensors: tensors[0].clone(),
    "in half precision": lambda tensors: (tensors[0].float() + tensors[1].float()).double(),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_wrong_reduction_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_collect", summed_as(REDUCTIONS[name]))
    verdict = found(program_of(*DATA), steps=1)
    assert not verdict.passed
    assert any("fc4" in problem for problem in verdict.problems)


def test_ranks_that_should_agree_and_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rank's weights are right; the first one's, which hold the same, are not."""

    def collect(kind: str, tensors: list[Tensor]) -> None:
        tensors[-1].copy_(sum(tensors[1:], tensors[0]))

    monkeypatch.setattr(transport, "_collect", collect)
    verdict = found(program_of(*DATA), steps=1)
    assert not verdict.passed


def test_a_reduction_left_out_before_an_update_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_collect", lambda kind, tensors: None)
    assert not found(program_of(*DATA), steps=1).passed
    assert not found(program_of(*DATA, more="optimizer_sharding: zero1"), steps=1).passed


def test_gradients_of_one_chunk_lost_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(self: SegmentParameters, gradients: tuple[Tensor, ...]) -> None:
        self.gradients = list(gradients)

    monkeypatch.setattr(SegmentParameters, "accumulate", replaced)
    entries = ("layers: conv1..fc4, ranks: [0], split: none",)
    assert found(program_of(*entries)).passed
    assert not found(program_of(*entries, more="n_microbatches: 2")).passed


def larger(transfers: Transfers) -> Transfers:
    """All messages by 8 bytes."""
    sends, receives = (
        tuple((peer, size + 8) for peer, size in side) for side in (transfers[1], transfers[2])
    )
    return Transfers(transfers.route, sends, receives)


@pytest.mark.parametrize("kind", ["EXCHANGE_F", "EXCHANGE_B", "ALL_REDUCE"])
def test_a_wrong_byte_count_is_told_with_its_edge(kind: str) -> None:
    """Both sides say the same wrong size, so only counting finds it."""
    program = program_of(*(DATA if kind == "ALL_REDUCE" else COLUMNS))
    columns = program.columns
    touched = [i for i, found in enumerate(columns.kind) if found == kind]
    segment = columns.segment[touched[0]]
    sizes, transfers = list(columns.bytes), list(columns.transfers)
    for i in touched:
        if columns.segment[i] == segment:
            there = transfers[i]
            sizes[i] += 8
            transfers[i] = there and larger(there)
    wrong = replace(columns, bytes=sizes, transfers=transfers)
    verdict = found(replace(program, columns=wrong), steps=1)
    assert verdict.deadlock_free
    assert not verdict.ledger_exact
    assert not verdict.passed
    assert verdict.parameter_relative_error < 1e-9
    layer = program.reader(touched[0])
    assert any(f"before {layer}" in p and "predicted" in p for p in verdict.problems)


Reduce = Callable[[RankInterpreter, Op], Handle]


def shortened(rank: RankInterpreter, op: Op, usual: Reduce) -> Handle:
    """A value of each rank's shard is left out."""
    return rank.transport.collective(op.kind, buffer_of(rank, op)[:-2], op.peers)


def doubled(rank: RankInterpreter, op: Op, usual: Reduce) -> Handle:
    usual(rank, op)
    return usual(rank, op)


def padded(rank: RankInterpreter, op: Op, usual: Reduce) -> Handle:
    buffer = buffer_of(rank, op)
    return rank.transport.collective(op.kind, torch.cat([buffer, buffer[:4]]), op.peers)


def skipped(rank: RankInterpreter, op: Op, usual: Reduce) -> Handle:
    handle = LocalHandle(lambda begun: begun.end(0), count=1)
    handle.start()
    rank.marks[op.id] = (handle.begun, handle.begun)
    return handle


def as_another_kind(rank: RankInterpreter, op: Op, usual: Reduce) -> Handle:
    """As large, and over the same ranks."""
    return rank.transport.collective("ALL_REDUCE", buffer_of(rank, op), op.peers)


def buffer_of(rank: RankInterpreter, op: Op) -> Tensor:
    rank._ready(op)
    buffer: Tensor | None = rank.parameters[op.segment].flat_gradient
    assert buffer is not None
    return buffer


@pytest.mark.parametrize(
    ("sabotage", "sharded"),
    [
        *((act, sharded) for act in (shortened, doubled, padded, skipped) for sharded in (0, 1)),
        (as_another_kind, 1),
    ],
)
def test_a_collective_that_is_handed_another_buffer_is_told(
    sabotage: Callable[[RankInterpreter, Op, Reduce], Handle],
    sharded: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted was once what the program said that the buffer was, by the same formula."""
    usual = RankInterpreter._reduce
    kind = "REDUCE_SCATTER" if sharded else "ALL_REDUCE"

    def reduce(self: RankInterpreter, op: Op) -> Handle:
        return sabotage(self, op, usual) if op.kind == kind else usual(self, op)

    monkeypatch.setattr(RankInterpreter, "_reduce", reduce)
    more = "optimizer_sharding: zero1" if sharded else ""
    program = program_of(*DATA, more=more)
    verdict = found(program, steps=1)
    assert not verdict.ledger_exact
    assert not verdict.passed
    (first, *_) = verdict.problems
    assert first.startswith("buffers differ: rank 0, ")
    times = 2 if sabotage is doubled else 0
    told = f"{kind} over ranks 0, 1, "
    assert any(
        told in p and p.endswith(f" before conv1: predicted 1, handed over {times}")
        for p in verdict.problems
    )


def test_a_program_that_deadlocks_is_not_run() -> None:
    program = program_of(*COLUMNS)
    columns = program.columns
    transfers = list(columns.transfers)
    first = columns.kind.index("EXCHANGE_F")
    one = transfers[first]
    transfers[first] = one and larger(one)
    verdict = found(replace(program, columns=replace(columns, transfers=transfers)))
    assert not verdict.deadlock_free
    assert not verdict.passed
    assert "meets a partner of another size" in verdict.problems[0]
    assert "<-- waits" in verdict.problems[0]


def test_the_feed_is_the_same_whoever_asks_and_in_any_order() -> None:
    feed, again = RandomFeed(NET, 6), RandomFeed(NET, 6)
    everything = feed.images(3, torch.arange(6))
    again.images(4, torch.arange(6))
    assert torch.equal(everything[2:5], again.images(3, torch.arange(2, 5)))
    assert torch.equal(feed.labels(3, torch.arange(6))[2:5], again.labels(3, torch.arange(2, 5)))
    assert not torch.equal(everything, feed.images(4, torch.arange(6)))
