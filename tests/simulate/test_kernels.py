"""The kernels of a layer's pass: bytes counted by hand, and the time of several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from torch import Tensor

from orchestrator.models import (
    Constant,
    Conv,
    Dropout,
    Linear,
    MaxPool,
    Model,
    ParameterSpec,
    ReLU,
    ResponseNorm,
    SizedLayer,
    SpatialNorm,
    Sum,
    Value,
)
from orchestrator.models.box import Box, volume
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import Kernel, Pass
from orchestrator.models.sized import LayerPart
from orchestrator.plan.load import read_plan
from orchestrator.program import compile_plan
from orchestrator.simulate.cluster import Device, load_cluster
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.network import Topology

IMAGES = 4
X, Y = IMAGES * 6 * 9 * 9, IMAGES * 6 * 4 * 4  # values of the second layer, and of a pool's output


def costs_of(
    layer: Layer, device: Device | None = None, part_of: str = "b"
) -> tuple[CostModel, LayerPart]:
    """Of three layers on one device, of which this is the second, the part of one, whole."""
    first, last = Conv(name="first", channels=6, kernel=2), Linear(name="last", features=5)
    model = Model("three", (3, 10, 10), [first, layer, last])
    plan = read_plan(
        f"schema_version: 1\nname: three\nmodel: {{name: any}}\nglobal_batch_size: {IMAGES}\n"
        "placement:\n  - {layers: first..last, ranks: [0], split: none}\n",
        "three",
    )
    program = compile_plan(plan, model)
    cluster = load_cluster("titanblack")
    if device is not None:
        cluster = replace(cluster, kinds=((device, 1),))
    (part,) = (
        part
        for segment in program.segments
        for part in segment.parts[0].layers
        if part.sized.name == part_of
    )
    return CostModel(program, cluster, Topology(cluster)), part


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        # gy and y are read, gx is written: once a fourth pass was counted
        (ReLU(name="b"), [2 * X * 4], [3 * X * 4]),
        (Dropout(name="b"), [3 * X * 4], [3 * X * 4]),
        (ResponseNorm(name="b"), [3 * X * 4], [4 * X * 4]),
        (SpatialNorm(name="b"), [3 * X * 4], [4 * X * 4]),
        (Sum(name="b"), [2 * X * 4], [3 * X * 4]),
        # gx is set to zero, then gy and an int64 a value are read and gx is written: once twice
        # the forward
        (MaxPool(name="b"), [(X + Y) * 4 + Y * 8], [X * 4, (Y + X) * 4 + Y * 8]),
    ],
    ids=lambda value: value.kind if isinstance(value, Layer) else "",
)
def test_bytes_of_layers_without_weights(
    layer: Layer, forward: list[int], backward: list[int]
) -> None:
    _, part = costs_of(layer)
    assert [k.bytes for k in part.kernels(IMAGES, "forward", 4)] == forward
    assert [k.bytes for k in part.kernels(IMAGES, "backward", 4)] == backward
    assert [k.bytes for k in part.kernels(IMAGES, "backward_input", 4)] == backward
    assert [k.bytes for k in part.kernels(IMAGES, "forward", 2)][0] < forward[0]


def test_the_loss_moves_the_log_of_the_softmax() -> None:
    _, part = costs_of(ReLU(name="b"), part_of="loss")
    for direction in ("forward", "backward", "backward_input"):
        assert [k.bytes for k in part.kernels(IMAGES, direction, 4)] == [2 * IMAGES * 5 * 4]
    assert part.kernels(IMAGES, "backward_weight", 4) == ()


@dataclass(frozen=True, kw_only=True)
class Scaled(Layer):
    """A kind of one's own that says its parameters and arithmetic, and nothing of kernels."""

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        return (ParameterSpec("w", (inputs[0].channels,), Constant(1.0), ("channel",)),)

    def macs(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> int:
        return volume(out)

    def compute(
        self, part: LayerPart, inputs: Sequence[Tensor], parameters: Sequence[Tensor], draw: object
    ) -> Tensor:
        return inputs[0] * parameters[0][:, None, None]


def test_a_kind_of_ones_own_reads_its_parameters_in_each_pass() -> None:
    _, part = costs_of(Scaled(name="b"))
    forward = Kernel(2 * X, (2 * X + 6) * 4)
    of_input, of_weight = Kernel(2 * X, (3 * X + 6) * 4), forward
    assert part.kernels(IMAGES, "forward", 4) == (forward,)
    assert part.kernels(IMAGES, "backward", 4) == (of_input, of_weight)
    assert part.kernels(IMAGES, "backward_input", 4) == (of_input,)
    assert part.kernels(IMAGES, "backward_weight", 4) == (of_weight,)


def test_a_layer_with_weights_has_two_products_in_its_backward() -> None:
    _, part = costs_of(Conv(name="b", channels=8, kernel=3))
    x, y, weights = X, IMAGES * 8 * 7 * 7, 8 * 6 * 9 + 8
    (forward,) = part.kernels(IMAGES, "forward", 4)
    assert forward.flops == 2 * 8 * 6 * 9 * 7 * 7 * IMAGES
    assert forward.bytes == (x + y + weights) * 4
    assert part.kernels(IMAGES, "backward", 4) == (forward, forward)
    assert part.kernels(IMAGES, "backward_input", 4) == (forward,)
    assert part.kernels(IMAGES, "backward_weight", 4) == (forward,)


def test_each_kernel_waits_for_its_own_limit() -> None:
    """Of a thin linear layer the input's gradient is limited by arithmetic, the weight's by memory.

    Once the longer of both sums was taken, which is less.
    """
    features, width = 64, 6 * 9 * 9
    flops = 2 * features * width * IMAGES
    moved = (IMAGES * (width + features) + features * width + features) * 4
    tile = IMAGES * width  # the input's gradient fills 1 multiprocessor of 8, the weight's all
    device = Device(
        "D", 2**30, memory_bandwidth=moved / 2, flops={"float32": flops},
        multiprocessors=8, tile_values=tile,
    )  # fmt: skip
    costs, part = costs_of(Linear(name="b", features=features), device)
    by_pass: dict[Pass, float] = {
        "backward_input": 8.0,  # arithmetic: 1 s of operations at an eighth of the speed
        "backward_weight": 2.0,  # memory, where arithmetic takes 1 s
        "backward": 10.0,
    }
    assert device.occupied(features * width) == 1.0
    for direction, seconds in by_pass.items():
        found = costs.layer(device, part, IMAGES, direction)
        assert found.together == found.alone == pytest.approx(seconds)
