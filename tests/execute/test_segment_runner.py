"""A segment's backward in two halves, or with its forward run again, is its backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.execute.parameters import SegmentParameters, initial_value
from orchestrator.execute.segment_runner import SegmentRunner
from orchestrator.models import (
    Conv,
    Dropout,
    Linear,
    MaxPool,
    Model,
    ReLU,
    ResponseNorm,
    SpatialNorm,
)
from orchestrator.models.torch_layers import Draw
from orchestrator.program.segments import Segment, SegmentPart
from tests.program.small import small_program

NET = Model(
    "net",
    (2, 7, 7),
    [
        Conv(name="conv1", channels=8, kernel=3, weight_std=0.3),
        ReLU(name="relu1"),
        ResponseNorm(name="norm1", alpha=1.0, columns=2),
        SpatialNorm(name="spatial1", scale=1.0),
        Conv(name="conv2", channels=8, kernel=2, groups=2, weight_std=0.3),
        MaxPool(name="pool2", kernel=2, stride=2),
        Linear(name="fc3", features=6, weight_std=0.3),
        Dropout(name="drop3"),
        Linear(name="fc4", features=5, weight_std=0.3),
    ],
)
SAMPLES = torch.tensor([4, 1, 7])
LABELS = torch.tensor([0, 4, 2])


def segment(first: str = "conv1", last: str = "fc4") -> Segment:
    """The layers first..last on rank 1, what is before and behind them on others."""
    names = [layer.name for layer in NET.chain]
    start, stop = names.index(first), names.index(last) + 1
    spans = [(0, start, 0), (start, stop, 1), (stop, len(names), 2)]
    kept = [(a, b) for a, b, _ in spans if a < b]
    entries = [
        f"layers: {names[a]}..{names[b - 1]}, ranks: [{rank}], split: none"
        for rank, (a, b) in enumerate(kept)
    ]
    program = small_program(NET, *entries, batch=3)
    return next(s for s in program.segments if s.reader == first)


def runner_of(part: SegmentPart, *, split: bool, wants_input: bool) -> SegmentRunner:
    wholes: dict[str, Tensor] = {}
    parameters = SegmentParameters(
        part, dtype=torch.float64, device=torch.device("cpu"), group=1, place=0, sharded=False,
        value=lambda slot: initial_value(slot, 3, wholes),
    )  # fmt: skip
    return SegmentRunner(
        part, parameters, needs_input_gradient=wants_input, loss_scale=1 / 3, split=split
    )


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ran(
    part: SegmentPart, how: str, *, wants_input: bool, ends: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Output, input gradient and weight gradients of two chunks, with W's after all I's."""
    runner = runner_of(part, split="split" in how, wants_input=wants_input)
    y = torch.empty(0)
    for chunk in (0, 1):
        draw = Draw(seed=1, step=2, samples=SAMPLES + 10 * chunk)
        x = noise(*part.input_shape, seed=chunk)
        y = runner.forward(chunk, x, draw, LABELS if ends else None, recompute="again" in how)
    wanted: Tensor | None = None
    for chunk in (0, 1):
        g = None if ends else noise(*part.output_shape, seed=9 + chunk)
        if "split" in how:
            wanted = runner.backward_input(chunk, g)
        else:
            wanted = runner.backward(chunk, g)
    if "split" in how:
        for chunk in (0, 1):
            runner.backward_weight(chunk)
    assert not runner.kept
    gradients = [g for g in runner.parameters.gradients if g is not None]
    assert len(gradients) == len(runner.parameters.weights)
    return y, wanted, gradients


SPANS = [("conv1", "fc4"), ("relu1", "drop3"), ("conv2", "pool2")]


@pytest.mark.parametrize("wants_input", [True, False])
@pytest.mark.parametrize("how", ["split", "again", "split again"])
@pytest.mark.parametrize(("first", "last"), SPANS)
def test_every_way_of_going_back_gives_the_same_bits(
    first: str, last: str, how: str, wants_input: bool
) -> None:
    part = next(iter(segment(first, last).parts.values()))
    ends = last == "fc4"
    y, wanted, gradients = ran(part, "whole", wants_input=wants_input, ends=ends)
    other_y, other_wanted, other_gradients = ran(part, how, wants_input=wants_input, ends=ends)
    assert torch.equal(y, other_y)
    assert (wanted is None) == (other_wanted is None) == (not wants_input)
    if wanted is not None and other_wanted is not None:
        assert torch.equal(wanted, other_wanted)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert torch.equal(ours, theirs)
        assert float(ours.abs().max()) > 0


def test_chunks_may_end_in_any_order() -> None:
    part = next(iter(segment().parts.values()))
    runner = runner_of(part, split=False, wants_input=True)
    inputs = [noise(*part.input_shape, seed=chunk) for chunk in (0, 1)]
    draw = Draw(1, 2, SAMPLES)
    for chunk, x in enumerate(inputs):
        runner.forward(chunk, x, draw, LABELS, recompute=False)
    late, early = runner.backward(1, None), runner.backward(0, None)
    alone = runner_of(part, split=False, wants_input=True)
    for chunk, found in ((0, early), (1, late)):
        alone.forward(0, inputs[chunk], draw, LABELS, recompute=False)
        expected = alone.backward(0, None)
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)
