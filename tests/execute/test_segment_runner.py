"""A segment's backward in two halves, or with its forward run again, is its backward."""

from __future__ import annotations

from dataclasses import replace

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
from orchestrator.models.randomness import Draw
from orchestrator.optimizers import Sgd2012
from orchestrator.program import Precision
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
    names = [layer.name for layer in NET.declared]
    start, stop = names.index(first), names.index(last) + 1
    spans = [(0, start, 0), (start, stop, 1), (stop, len(names), 2)]
    kept = [(a, b) for a, b, _ in spans if a < b]
    entries = [
        f"layers: {names[a]}..{names[b - 1]}, ranks: [{rank}], split: none"
        for rank, (a, b) in enumerate(kept)
    ]
    program = small_program(NET, *entries, batch=3)
    return next(s for s in program.segments if s.reader == first)


def runner_of(
    segment: Segment, part: SegmentPart, *, split: bool, wants_input: bool
) -> SegmentRunner:
    wholes: dict[str, Tensor] = {}
    parameters = SegmentParameters(
        part, optimizer=Sgd2012(), precision=Precision.of("float64"), device=torch.device("cpu"),
        group=1, group_rank=0, sharded=False, value=lambda slot: initial_value(slot, 3, wholes),
    )  # fmt: skip
    first, *labels = segment.imports
    segment = replace(segment, imports=(first._replace(trained=wants_input), *labels))
    return SegmentRunner(segment, part, parameters, loss_scale=1 / 3, split=split)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def imports_of(segment: Segment, part: SegmentPart, seed: int) -> tuple[Tensor, ...]:
    """What the segment reads: noise, and the labels where it ends in the loss."""
    x = noise(*part.import_shape(0), seed=seed)
    return (x, LABELS) if segment.has_loss else (x,)


def ran(
    segment: Segment, how: str, *, wants_input: bool
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Output, input gradient and weight gradients of two chunks, with W's after all I's."""
    part = next(iter(segment.parts.values()))
    runner = runner_of(segment, part, split="split" in how, wants_input=wants_input)
    last = len(part.layers) - 1
    y = torch.empty(0)
    for chunk in (0, 1):
        draw = Draw(seed=1, step=2, samples=SAMPLES + 10 * chunk, batch=30)
        imports = imports_of(segment, part, chunk)
        outputs = runner.forward(chunk, imports, draw, recompute="again" in how)
        assert list(outputs) == [last]
        y = outputs[last]
    wanted: Tensor | None = None
    for chunk in (0, 1):
        shape = part.output_shape(last)
        g = {} if segment.has_loss else {last: noise(*shape, seed=9 + chunk)}
        back = runner.backward_input if "split" in how else runner.backward
        wanted, *of_labels = back(chunk, g)
        assert of_labels == [None] * segment.has_loss
    if "split" in how:
        for chunk in (0, 1):
            runner.backward_weight(chunk)
    assert not runner.saved
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
    layers = segment(first, last)
    y, wanted, gradients = ran(layers, "whole", wants_input=wants_input)
    other_y, other_wanted, other_gradients = ran(layers, how, wants_input=wants_input)
    assert torch.equal(y, other_y)
    assert (wanted is None) == (other_wanted is None) == (not wants_input)
    if wanted is not None and other_wanted is not None:
        assert torch.equal(wanted, other_wanted)
    for ours, theirs in zip(gradients, other_gradients, strict=True):
        assert torch.equal(ours, theirs)
        assert float(ours.abs().max()) > 0


def test_chunks_may_end_in_any_order() -> None:
    whole = segment()
    part = next(iter(whole.parts.values()))
    runner = runner_of(whole, part, split=False, wants_input=True)
    inputs = [imports_of(whole, part, seed=chunk) for chunk in (0, 1)]
    draw = Draw(1, 2, SAMPLES, 30)
    for chunk, imports in enumerate(inputs):
        runner.forward(chunk, imports, draw, recompute=False)
    (late, _), (early, _) = runner.backward(1, {}), runner.backward(0, {})
    alone = runner_of(whole, part, split=False, wants_input=True)
    for chunk, found in ((0, early), (1, late)):
        alone.forward(0, inputs[chunk], draw, recompute=False)
        expected, _ = alone.backward(0, {})
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)
