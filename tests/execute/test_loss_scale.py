"""float16: small gradients are kept by a factor on the loss, large ones leave an update out."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.loss_scale import PATIENCE, LossScale
from orchestrator.execute.verify import RandomFeed
from orchestrator.models.model import Recipe
from tests.program.small import LENET, small_program

ONE = ("layers: conv1..fc5, ranks: [0], split: none",)
COLUMNS = (
    "layers: conv1..relu4, ranks: [0, 1], split: channel",
    "layers: fc5, ranks: [0], split: none",
)
RECIPE = Recipe(lr=0.01)


def executor_of(
    entries: tuple[str, ...], loss_scale: float | Literal["dynamic"], dtype: str = "float16"
) -> LocalExecutor:
    program = small_program(LENET, *entries, batch=8, dtype=dtype)
    recipe = replace(RECIPE, loss_scale=loss_scale)
    return LocalExecutor(program, RandomFeed(LENET, 8), recipe)


def test_a_dynamic_scale_follows_torchs_numbers() -> None:
    """As ``torch.amp.GradScaler`` does."""
    ours = LossScale.of("dynamic")
    theirs = torch.amp.GradScaler("cpu")
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(PATIENCE + 20):
        weight.grad = torch.tensor([float("inf") if step in (1, 5, 6) else 1.0])
        assert theirs.get_scale() == ours.value or step == 0
        passes = ours.passes([weight.grad])
        ours.note(updated=passes)
        theirs.scale(torch.zeros(1))  # makes its scale
        theirs.step(optimizer)
        theirs.update()
    assert theirs.get_scale() == ours.value == 65536 / 8 * 2


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_gradient_that_is_not_finite_leaves_out_the_whole_update(bad: float) -> None:
    executor = executor_of(ONE, "dynamic")
    executor.step(0)
    (rank,) = executor.ranks
    before = executor.parameters()
    momentum = [m.clone() for p in rank.parameters.values() for m in p.state["momentum"]]
    scale = rank.scale.value
    first = next(iter(rank.parameters.values()))
    accumulate = first.accumulate

    def spoilt(gradients: object) -> None:
        accumulate(gradients)  # type: ignore[arg-type]
        first.target_gradients()[0].view(-1)[0] = bad

    first.accumulate = spoilt  # type: ignore[method-assign]
    executor.step(1)
    assert rank.scale.value == scale / 2
    for name, weight in executor.parameters().items():
        assert torch.equal(weight, before[name]), name
    after = [m for p in rank.parameters.values() for m in p.state["momentum"]]
    assert all(map(torch.equal, momentum, after))
    first.accumulate = accumulate  # type: ignore[method-assign]
    executor.step(2)
    changed = executor.parameters()
    assert all(not torch.equal(weight, before[name]) for name, weight in changed.items())


@pytest.mark.parametrize("entries", [ONE, COLUMNS])
def test_a_scale_that_stays_changes_nothing_in_float32(entries: tuple[str, ...]) -> None:
    """It is a power of two."""
    scaled, plain = (executor_of(entries, scale, "float32") for scale in (1024.0, 1.0))
    for step in range(3):
        assert scaled.step(step) == plain.step(step)
    for name, weight in scaled.parameters().items():
        assert torch.equal(weight, plain.parameters()[name]), name


@pytest.mark.parametrize("entries", [ONE, COLUMNS])
def test_a_scale_keeps_gradients_that_float16_loses(entries: tuple[str, ...]) -> None:
    """Below 6e-8 there is nothing: here a small factor stands for a deep network."""
    kept = {}
    for scale in (2.0**-16, 1024.0):
        program = small_program(LENET, *entries, batch=8, dtype="float16")
        recipe = replace(RECIPE, loss_scale=scale, weight_decay=0.0)
        executor = LocalExecutor(program, RandomFeed(LENET, 8), recipe)
        executor.step(0)
        momenta = [
            m.flatten()
            for rank in executor.ranks
            for p in rank.parameters.values()
            for m in p.state["momentum"]
        ]
        kept[scale] = int(torch.cat(momenta).count_nonzero())
    assert kept[1024.0] > 1.2 * kept[2.0**-16]


def test_float16_trains_as_float32_does() -> None:
    losses = {
        dtype: [executor.step(step) for step in range(5)]
        for dtype, executor in (
            ("float16", executor_of(ONE, "dynamic")),
            ("float32", executor_of(ONE, 1.0, "float32")),
        )
    }
    assert losses["float16"] == pytest.approx(losses["float32"], rel=5e-3)
