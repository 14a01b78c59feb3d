"""Matrix products that do not fill a device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.models import Linear, Model
from orchestrator.plan.load import read_plan
from orchestrator.program import compile_plan
from orchestrator.program.ops import STEP, B, F
from orchestrator.program.precision import precision_of
from orchestrator.simulate.cluster import Cluster, Device, load_cluster
from orchestrator.simulate.costs import update_bytes
from orchestrator.simulate.predict import simulate
from tests.program.small import LINEAR, small_plan

DEVICE = Device("thirteen", 2**30, 1e15, {"float32": 1e12}, multiprocessors=13, tile_values=8192)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        (13 * 8192, 1.0),
        (8 * 8192, 8 / 13),  # one round, five idle
        (14 * 8192, 14 / 26),  # one more tile is another round
        (4096, 0.5 / 13),  # half a tile
        (1000 * 8192, 1000 / (77 * 13)),
        (0, 1.0),
    ],
)
def test_rounds_of_tiles(values: int, share: float) -> None:
    assert DEVICE.occupied(values) == pytest.approx(share)
    assert replace(DEVICE, multiprocessors=0.0).occupied(values) == 1


def test_a_thin_product_takes_longer_and_a_large_one_does_not() -> None:
    """512 features of 128 images: forward and input gradient are 8 tiles on 13, the weights' 32."""
    plan = read_plan(
        "schema_version: 1\nname: thin\nmodel: {name: alexnet2012}\nglobal_batch_size: 128\n"
        "placement:\n  - {layers: a..b, ranks: [0], split: none}\n",
        "thin",
    )
    layers = [Linear(name="a", features=512), Linear(name="b", features=512)]
    model = Model("thin", (512,), layers)
    cluster = load_cluster("titanblack")
    seconds = {}
    for device in (DEVICE, replace(DEVICE, multiprocessors=0.0)):
        alone = replace(cluster, kinds=((device, 1),))
        seconds[device.multiprocessors] = _passes(alone, plan, model)
    one = 2 * 512 * 512 * 128 / 1e12
    assert seconds[0] == pytest.approx((2 * one, 3 * one), rel=1e-3)  # a needs no input gradient
    thin, weights = 13 / 8, 39 / 32
    expected = (2 * thin * one, (thin + 2 * weights) * one)
    assert seconds[13] == pytest.approx(expected, rel=1e-3)


def _passes(cluster: Cluster, plan: object, model: Model) -> tuple[float, float]:
    found = simulate(plan, model, cluster)  # type: ignore[arg-type]
    times, kinds = found.times, found.program.columns.kind
    both = [
        sum(e - s for s, e, k in zip(times.start, times.end, kinds, strict=True) if k == kind)
        for kind in (F, B)
    ]
    return both[0], both[1]


@pytest.mark.parametrize(
    ("optimizer", "precision", "accesses"),
    [
        ("sgd2012", "float32", 4 * 5),  # gradient; weight and momentum, there and back
        ("{name: sgd, momentum: 0}", "float32", 4 * 3),
        ("adamw", "float32", 4 * 7),
        ("lars", "float32", 4 * 7),  # weight and gradient once more, for their norms
        ("adamw", "float64", 8 * 7),
        ("sgd2012", "bfloat16", 4 * 5 + 2),  # and the weights, rounded from their masters
        ("sgd2012", "{compute: bfloat16, reduce: bfloat16}", 2 + 4 * 4 + 2),
    ],
)
def test_an_update_moves_what_its_optimizer_keeps(
    optimizer: str, precision: str, accesses: int
) -> None:
    """Bytes a weight; a device is measured, or given, with the first one's 20."""
    training = f"training: {{optimizer: {optimizer}, precision: {precision}}}\n"
    plan = small_plan("layers: all, ranks: [0], split: none", more=training)
    program = compile_plan(plan, LINEAR, dtype=precision_of(plan))
    (step,) = (op for op in program.ops() if op.kind == STEP)
    held = {"bfloat16": 2, "float32": 4, "float64": 8}[program.precision.parameters]
    assert step.bytes == LINEAR.parameters * held
    assert update_bytes(program, step.bytes) == LINEAR.parameters * accesses // 5
