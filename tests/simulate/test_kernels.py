"""The kernels of a layer's pass: bytes counted by hand, and the time of several in a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.models import Conv, Dropout, Layer, Linear, MaxPool, Model, ReLU, ResponseNorm
from orchestrator.models.layer import Kernel, LayerPart, Pass
from orchestrator.plan.load import read_plan
from orchestrator.program import compile_plan
from orchestrator.simulate.cluster import Device, load_cluster
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.network import Topology

IMAGES = 4
X, Y = IMAGES * 6 * 9 * 9, IMAGES * 6 * 4 * 4  # values of the second layer, and of a pool's output


def kernels(part: LayerPart, examples: int, direction: Pass, itemsize: int) -> tuple[Kernel, ...]:
    return part.sized.layer.kernels(part, examples, direction, itemsize)


def costs_of(layer: Layer, device: Device | None = None) -> tuple[CostModel, LayerPart]:
    """The second of three layers on one device, its part whole."""
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
        if part.sized.name == layer.name
    )
    return CostModel(program, cluster, Topology(cluster)), part


@pytest.mark.parametrize(
    ("layer", "forward", "backward"),
    [
        # gy and y are read, gx is written: once a fourth pass was counted
        (ReLU(name="b"), [2 * X * 4], [3 * X * 4]),
        (Dropout(name="b"), [3 * X * 4], [3 * X * 4]),
        (ResponseNorm(name="b"), [3 * X * 4], [4 * X * 4]),
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
    assert [k.bytes for k in kernels(part, IMAGES, "forward", 4)] == forward
    assert [k.bytes for k in kernels(part, IMAGES, "backward", 4)] == backward
    assert [k.bytes for k in kernels(part, IMAGES, "backward_input", 4)] == backward
    assert [k.bytes for k in kernels(part, IMAGES, "forward", 2)][0] < forward[0]


def test_a_layer_with_weights_has_two_products_in_its_backward() -> None:
    _, part = costs_of(Conv(name="b", channels=8, kernel=3))
    x, y, weights = X, IMAGES * 8 * 7 * 7, 8 * 6 * 9 + 8
    (forward,) = kernels(part, IMAGES, "forward", 4)
    assert forward.flops == 2 * 8 * 6 * 9 * 7 * 7 * IMAGES
    assert forward.bytes == (x + y + weights) * 4
    assert kernels(part, IMAGES, "backward", 4) == (forward, forward)
    assert kernels(part, IMAGES, "backward_input", 4) == (forward,)
    assert kernels(part, IMAGES, "backward_weight", 4) == (forward,)


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
