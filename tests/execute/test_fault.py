"""``verify`` names what is wrong first: a layer's part, an exchange, a sum of gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from orchestrator.execute import transport
from orchestrator.execute.fault import first_fault
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.verify import RandomFeed, verify
from orchestrator.models import (
    Add,
    BatchNorm,
    Embedding,
    GlobalAveragePool,
    Layer,
    LayerNorm,
    Linear,
    Model,
    ReLU,
    RMSNorm,
)
from orchestrator.models.batch_norm import BatchApply, BatchMoments
from orchestrator.models.cross_entropy import CrossEntropy, JoinedCrossEntropy, ScoreParts
from orchestrator.models.model import Recipe
from orchestrator.program import Program
from orchestrator.program.boundary import Boundary, Message
from orchestrator.program.ops import FORWARD, Op
from tests.networks import conv, linear, resnet
from tests.program.small import small_program

RECIPE = Recipe(lr=0.1)
NORMED = Model(
    "normed",
    (3, 6, 4),
    [
        conv("conv1", 4, 3),
        BatchNorm(name="norm1"),
        ReLU(name="relu1"),
        conv("conv2", 4, 3),
        BatchNorm(name="norm2", group=4),
        Add(name="sum", inputs=("norm2", "relu1")),
        GlobalAveragePool(name="mean"),
        linear("fc", 4),
    ],
)
TIED = Model(
    "tied",
    (3,),
    [
        Embedding(name="embedding", vocabulary=8, features=4, weight_std=0.5),
        linear("up", 8),
        ReLU(name="relu"),
        linear("down", 4),
        Add(name="sum", inputs=("embedding", "down")),
        LayerNorm(name="norm"),
        Linear(name="head", features=8, tied="embedding.weight", bias=None),
    ],
)
SCALED = Model("scaled", (4,), [RMSNorm(name="norm"), linear("fc", 4)])
TWICE = Model(
    "twice",
    (3, 4, 4),
    [conv("conv", 4, 3), BatchNorm(name="norm1"), BatchNorm(name="norm2"), linear("fc", 4)],
)
RESNET = resnet()
PLANS: dict[str, tuple[Model, tuple[str, ...], str]] = {
    "channels and rows": (
        RESNET,
        (
            "layers: stem..blocks.0.conv2, ranks: [0, 1], split: height",
            "layers: blocks.0.relu2..blocks.1.conv2, ranks: [2, 3], split: channel",
            "layers: blocks.1.relu2..blocks.2.relu3, ranks: [0, 1], split: batch",
            "layers: mean..fc, ranks: [0, 1], split: none",
        ),
        "",
    ),
    "moments of rows": (
        NORMED,
        (
            "layers: conv1..sum, ranks: 0..3, split: {batch: 2, height: 2}",
            "layers: mean..fc, ranks: [0], split: none",
        ),
        "",
    ),
    "moments of examples": (NORMED, ("layers: all, ranks: [0, 1], split: batch",), ""),
    "partial sums": (
        TIED,
        (
            "layers: embedding..relu, ranks: [0, 1], split: channel",
            "layers: down, ranks: [0, 1], split: input",
            "layers: sum..head, ranks: [0, 1], split: channel",
        ),
        "",
    ),
    "a tie over stages": (
        TIED,
        (
            "layers: embedding..down, ranks: [0, 1], split: token",
            "layers: sum..head, ranks: [2], split: none",
        ),
        "n_microbatches: 2\nschedule: 1F1B\nactivation_checkpoint: always\n",
    ),
    "zero bubble and shards": (
        TIED,
        (
            "layers: embedding..down, ranks: [0, 1], split: batch",
            "layers: sum..head, ranks: [2, 3], split: batch",
        ),
        "n_microbatches: 2\nschedule: InterleavedZeroBubble\noptimizer_sharding: zero1\n",
    ),
    # the table's gradient, which every rank of the head has, was summed over the embedding's ranks
    "a replicated head": (
        TIED,
        (
            "layers: embedding..down, ranks: [0, 1], split: token",
            "layers: sum..head, ranks: [2, 3], split: none",
        ),
        "n_microbatches: 2\n",
    ),
    "a replicated head on some of the embedding's ranks": (
        TIED,
        (
            "layers: embedding..relu, ranks: [0, 1, 2, 3], split: {token: 2, channel: 2}",
            "layers: down..head, ranks: [1, 2], split: none",
        ),
        "",
    ),
    # a shard that is padding alone had an optimizer of nothing
    "more ranks than values of a norm": (
        SCALED,
        (
            "layers: norm, ranks: 0..3, split: batch",
            "layers: fc, ranks: [0], split: none",
        ),
        "replicas: 2\noptimizer_sharding: zero1\n",
    ),
    # a bias before a norm has a gradient of rounding alone, which was measured against itself
    "a norm behind a norm": (TWICE, ("layers: all, ranks: [0], split: none",), ""),
    "replicated": (
        TIED,
        (
            "layers: embedding..up, ranks: [0, 1], split: none",
            "layers: relu..head, ranks: [0, 1], split: token",
        ),
        "replicas: 2\n",
    ),
}


def program_of(plan: str) -> Program:
    model, entries, more = PLANS[plan]
    return small_program(model, *entries, batch=8, more=more, dtype="float64")


def named(program: Program) -> str:
    """The first problem that verify tells; it says it before all else."""
    return verify(program, RECIPE, update_examples={}, steps=1).problems[0]


def fault(program: Program, updates: dict[str, int] | None = None) -> str:
    feed = RandomFeed(program.model, program.global_batch)
    return first_fault(program, feed, RECIPE, updates or {}, 1e-9)


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_is_found_where_nothing_is_wrong(plan: str) -> None:
    program = program_of(plan)
    verdict = verify(program, RECIPE, update_examples={})
    assert verdict.passed, verdict.problems
    assert fault(program) == ""


# -- exchanges ------------------------------------------------------------------------------------


def exchanges() -> list[tuple[str, int, str]]:
    found = []
    for plan in PLANS:
        program = program_of(plan)
        for boundary in program.boundaries[1:]:
            for direction in ("forward", "backward"):
                both = boundary.messages if direction == "forward" else boundary.gradients
                wanted = (
                    boundary.parameter
                    or direction == "forward"
                    or program.segments[boundary.consumer].imports[boundary.number].trained
                )
                if wanted and any(m.source != m.target for turn in both for m in turn):
                    found.append((plan, boundary.index, direction))
    return found


@pytest.mark.parametrize("factor", [0.0, 1.001])
@pytest.mark.parametrize(("plan", "index", "direction"), exchanges())
def test_a_wrong_exchange_is_named(
    plan: str, index: int, direction: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = RankInterpreter._source

    def wrong(self: RankInterpreter, op: Op, boundary: Boundary, message: Message) -> Tensor:
        tensor = usual(self, op, boundary, message)
        hit = op.segment == index and (op.kind in FORWARD) == (direction == "forward")
        return tensor * factor if hit else tensor

    program = program_of(plan)
    boundary = program.boundaries[index]
    producer = program.segments[boundary.producer]
    gives = boundary.parameter or producer.layers[boundary.layer].name
    monkeypatch.setattr(RankInterpreter, "_source", wrong)
    found = named(program)
    expected = _said(boundary, gives, direction)
    assert found.startswith(expected), found
    assert found.endswith(
        "(reduction)" if boundary.parameter and direction == "backward" else "(exchange)"
    )


def _said(boundary: Boundary, gives: str, direction: str) -> str:
    reader = boundary.reader
    if boundary.parameter and direction == "forward":
        return f"what {reader} borrows of {gives} on rank "
    if boundary.parameter:
        owner = boundary.parameter.rpartition(".")[0]
        return f"{owner}: the gradient of {gives} (tied to {reader}.weight), summed "
    if direction == "backward":
        return f"the gradient that {reader} returns to {gives} "
    return f"what {reader} reads on rank "


# -- parts ----------------------------------------------------------------------------------------

Compute = Callable[..., Tensor]


def too_large(compute: Compute) -> Compute:
    return lambda *args: compute(*args) * 1.001


def steeper(compute: Compute) -> Compute:
    """Right values, gradients twice too large."""

    def sabotaged(*args: Any) -> Tensor:
        y = compute(*args)
        return 2 * y - y.detach()

    return sabotaged


def on_the_last_rank(compute: Compute) -> Compute:
    """Wrong where a part is not the first one only."""

    def sabotaged(layer: Layer, part: Any, *args: Any) -> Tensor:
        y = compute(layer, part, *args)
        first = all(ranges[0][0] == 0 for ranges in part.out)
        return y if first else y * 1.001

    return sabotaged


HALVES: list[tuple[type[Layer], str, str, str]] = [
    (BatchMoments, "moments of examples", "norm1", "norm1"),
    (BatchApply, "moments of examples", "norm1", "norm1"),
    (BatchMoments, "moments of rows", "norm1", "norm2"),
    (BatchApply, "moments of rows", "norm1", "norm2"),
    (ScoreParts, "partial sums", "loss", "loss"),
    (JoinedCrossEntropy, "partial sums", "loss", "loss"),
    (CrossEntropy, "a tie over stages", "loss", "loss"),
    (Linear, "partial sums", "up", "head"),
    (Embedding, "zero bubble and shards", "embedding", "embedding"),
    (BatchNorm, "moments of examples", "norm2", "norm2"),
]


@pytest.mark.parametrize(("kind", "plan", "forward", "backward"), HALVES)
def test_a_wrong_half_is_named_by_its_layer(
    kind: type[Layer], plan: str, forward: str, backward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = kind.compute
    monkeypatch.setattr(kind, "compute", too_large(usual))
    found = named(program_of(plan))
    assert found.startswith(f"{forward}: it"), found
    assert found.endswith("(forward)")
    monkeypatch.setattr(kind, "compute", steeper(usual))
    found = named(program_of(plan))
    assert found.startswith(f"{backward}: the gradient of its "), found
    assert found.endswith("(backward)")


def test_the_rank_whose_part_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReLU, "compute", on_the_last_rank(ReLU.compute))
    assert named(program_of("partial sums")).startswith("relu: its output on rank 1 differs by ")


# -- sums and updates -----------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["a tie over stages", "zero bubble and shards"])
def test_a_wrong_sum_of_gradients_is_named(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def averaged(kind: str, tensors: list[Tensor]) -> None:
        total = sum(tensors[1:], tensors[0]) / len(tensors)
        for tensor in tensors:
            tensor.copy_(total)

    monkeypatch.setattr(transport, "_collect", averaged)
    found = named(program_of(plan))
    assert "summed over those who share it, differs on rank " in found
    assert found.endswith("(reduction)")


FOUR = Model("four", (6,), [linear("a", 8), ReLU(name="relu"), linear("b", 8), linear("c", 5)])
SLICES = "training: {layer_batch: {b..c: 2}}\n"


def test_layers_that_update_within_a_step_are_compared_up_to_their_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = "layers: all, ranks: [0, 1], split: batch"
    program = small_program(FOUR, entry, batch=8, more=SLICES, dtype="float64")
    updates = {"b": 2, "c": 2, "loss": 2}
    assert fault(program, updates) == ""
    usual = Linear.compute

    def last_slice(layer: Linear, part: Any, inputs: Any, weights: Any, draw: Any) -> Tensor:
        y = usual(layer, part, inputs, weights, draw)
        return y * 1.001 if layer.name == "c" and int(draw.samples[0]) >= 6 else y

    monkeypatch.setattr(Linear, "compute", last_slice)
    found = fault(program, updates)
    assert found.startswith("c: its output on rank 0 differs by ")
    assert found.endswith("(forward), after the step's first update")


def test_a_loss_that_is_not_finite_is_traced_to_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ReLU.compute
    monkeypatch.setattr(ReLU, "compute", lambda *args: usual(*args) / 0)
    found = named(program_of("a tie over stages"))
    assert found.startswith("relu: its output on rank 0 differs by inf in step 1 (forward)")
