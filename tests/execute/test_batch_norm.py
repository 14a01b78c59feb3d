"""Batch norm over the model's groups: the same training under every split, or a refusal."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError
from orchestrator.execute.verify import verify
from orchestrator.models import (
    Add,
    BatchNorm,
    Conv,
    GlobalAveragePool,
    Layer,
    Linear,
    Model,
    Recipe,
    ReLU,
)
from orchestrator.program.ledger import edges
from tests.program.small import small_program

REST = "layers: pool..fc, ranks: [0, 1], split: channel"
PLANS = {
    "one": ("layers: all, ranks: [0], split: none",),
    "batch": ("layers: all, ranks: [0, 1], split: batch",),
    "unequal batch": ("layers: all, ranks: 0..2, split: batch, shares: [2, 3, 1]",),
    "channel": ("layers: all, ranks: [0, 1], split: channel",),
    "width": ("layers: conv1..relu2, ranks: [0, 1], split: width", REST),
    "height x width": ("layers: conv1..relu2, ranks: 0..3, split: {width: 2, height: 2}", REST),
    "height": ("layers: conv1..relu2, ranks: [0, 1], split: height", REST),
    "batch x height": ("layers: conv1..relu2, ranks: 0..3, split: {batch: 2, height: 2}", REST),
    "batch x channel": ("layers: conv1..relu2, ranks: 0..3, split: {batch: 2, channel: 2}", REST),
    "replicated": ("layers: all, ranks: [0, 1], split: none",),
}


def normed(group: int | None) -> Model:
    layers: list[Layer] = [
        Conv(name="conv1", channels=8, kernel=3, padding=1, stride=2, weight_std=0.2, bias=None),
        BatchNorm(name="bn1", group=group),
        ReLU(name="relu1"),
        Conv(name="conv2", channels=8, kernel=3, padding=1, weight_std=0.2, bias=None),
        BatchNorm(name="bn2", group=group),
        Add(name="sum", inputs=("bn2", "relu1")),
        ReLU(name="relu2"),
        GlobalAveragePool(name="pool"),
        Linear(name="fc", features=6, weight_std=0.3),
    ]
    return Model("normed", (4, 9, 9), layers)


@pytest.mark.parametrize("group", [None, 4, 3])
@pytest.mark.parametrize("name", PLANS)
def test_every_split_trains_the_same_network(name: str, group: int | None) -> None:
    """Twelve examples: groups of 4 are torn by two ranks, those of 3 by three unequal ones."""
    program = small_program(normed(group), *PLANS[name], batch=12, dtype="float64")
    verdict = verify(program, Recipe(lr=0.05), update_examples={}, steps=3)
    assert verdict.passed, verdict.problems


def test_groups_within_a_microbatch_need_no_exchange() -> None:
    more = "n_microbatches: 2\nreplicas: 2\nschedule: 1F1B"
    program = small_program(
        normed(3), "layers: all, ranks: [0, 1], split: batch", batch=24, more=more, dtype="float64"
    )
    assert {op.kind for op in program.ops()} == {"F", "B", "ALL_REDUCE", "STEP"}
    assert verify(program, Recipe(lr=0.05), update_examples={}, steps=2).passed


def test_what_crosses_are_three_values_a_channel_and_group() -> None:
    """8 channels x 3 values x 4 bytes, one group, forward and backward, at each of the norms."""
    program = small_program(normed(None), *PLANS["batch"], batch=12)
    found = {e: n for e, n in edges(program).items() if e.direction != "gradient"}
    assert {e.layer for e in found} == {"bn1", "bn2"}
    assert set(found.values()) == {8 * 3 * 4}
    assert len(found) == 2 * 2 * 2  # norms, directions, ways


@pytest.mark.parametrize(
    ("group", "more", "says", "remedy"),
    [
        (None, "n_microbatches: 2", "over the whole batch of 12 examples, which microbatches or "
         "turns of 6 tear apart", "n_microbatches: 1"),
        (4, "n_microbatches: 2", "over groups of 4 examples", "a size that divides 6"),
        (None, "replicas: 2", "which replicas of 6 tear apart", "split: batch"),
    ],
)  # fmt: skip
def test_a_group_that_is_torn_by_time_is_refused(
    group: int | None, more: str, says: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        small_program(normed(group), *PLANS["batch"], batch=12, more=more)
    assert says in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.location == "t.yaml:6, placement[0]"


def test_a_bias_before_a_batch_norm_differs_by_the_rounding_of_its_long_sum() -> None:
    """The network of the README: 64 examples x 1,024 positions, whose sum is zero."""
    layers: list[Layer] = [
        Conv(name="conv1", channels=16, kernel=3, padding=1),
        ReLU(name="relu1"),
        Conv(name="conv2", channels=16, kernel=3, padding=1),
        BatchNorm(name="bn2", group=32),
        Add(name="sum", inputs=("bn2", "relu1")),
        GlobalAveragePool(name="pool"),
        Linear(name="fc", features=10),
    ]
    program = small_program(
        Model("readme", (3, 32, 32), layers), "layers: all, ranks: [0, 1], split: channel",
        batch=64, dtype="float64",
    )  # fmt: skip
    verdict = verify(program, Recipe(), update_examples={}, steps=2)
    assert verdict.passed, verdict.problems
