"""What a calibration says is what the simulator plays: small cases by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.models import Linear, Model
from orchestrator.plan import Plan
from orchestrator.plan.load import read_plan
from orchestrator.program import compile_plan
from orchestrator.program.ops import RECV_F, SEND_F
from orchestrator.simulate.calibration import (
    Calibration,
    CollectiveTime,
    LayerTime,
    LinkTime,
    shape_key,
)
from orchestrator.simulate.cluster import Cluster, Device, Level
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.network import Topology
from orchestrator.simulate.predict import simulate

MODEL = Model("two", (64,), [Linear(name="a", features=64), Linear(name="b", features=64)])
BYTES = 16 * 64 * 4  # of 16 images between a and b


def plan_of(placement: str) -> Plan:
    return read_plan(
        "schema_version: 1\nname: two\nmodel: {name: any}\nglobal_batch_size: 16\n"
        f"placement:\n{placement}\n",
        "two",
    )


STAGES = plan_of(
    "  - {layers: a, ranks: [0], split: none}\n  - {layers: b, ranks: [1], split: none}"
)
BATCH = plan_of("  - {layers: a..b, ranks: [0, 1], split: batch}")


def cluster_of(plan: Plan, calibration: Calibration) -> Cluster:
    """Two machines of one rank, on which every pass of every layer takes 2 s, and 1 s alone."""
    segments = compile_plan(plan, MODEL, dtype="float32").segments
    parts = {
        (layer.sized.kind, shape_key(layer), part.examples)
        for segment in segments
        for part in segment.parts.values()
        for layer in part.layers
    }
    rows = tuple(
        LayerTime(kind, shape, "float32", examples, direction, 2.0, 1.0)
        for kind, shape, examples in parts
        for direction in ("forward", "backward", "backward_weight")
    )
    device = Device("1 thread", 2**33, 1e12, {"float32": 1e12})
    return Cluster(
        "here", 2, 1, ((device, 2),), (Level("network", 2, 1e6, 5e-4, "switch", 1e6),),
        calibration=replace(calibration, layers=rows),
    )  # fmt: skip


MEASURED = Calibration("2026-11-22", "a processor", "two", {}, threads=1)


@pytest.mark.parametrize(("neighbours", "seconds"), [(0, 1.0), (2, 2.0)])
def test_machines_may_be_parts_of_one(neighbours: int, seconds: float) -> None:
    """Ranks alone on their nodes: each as quick as alone, unless they are said to be neighbours."""
    cluster = cluster_of(BATCH, replace(MEASURED, neighbours=neighbours))
    summary = simulate(BATCH, MODEL, cluster).summary
    passes = 3 + 3  # of a, b and the loss
    assert summary["compute_time_s"] == pytest.approx(passes * seconds, rel=1e-3)


@pytest.mark.parametrize("measured", [1e-3, BYTES / 1e6, 9e-3])
def test_a_message_takes_what_was_measured(measured: float) -> None:
    """Also where that is less than the link's speed would allow."""
    links = (LinkTime("network", BYTES, measured), LinkTime("network", 10 * BYTES, 1.0))
    found = simulate(STAGES, MODEL, cluster_of(STAGES, replace(MEASURED, links=links)))
    kinds = found.program.columns.kind
    times = [
        end - start
        for kind, start, end in zip(kinds, found.times.start, found.times.end, strict=True)
        if kind in (SEND_F, RECV_F)
    ]
    assert times == pytest.approx([measured] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("measured", "latency"),
    [(0.5, 1e-3), (10 * BYTES / 1e6 + 4e-4, 4e-4), (0.01, 0.0)],
    ids=["slower than the link", "the link and a little", "quicker"],
)
def test_what_is_slower_than_its_link_is_so_all_along(measured: float, latency: float) -> None:
    """Before the bytes flow, no more time goes by than the smallest message takes."""
    links = (LinkTime("network", BYTES, 1e-3), LinkTime("network", 10 * BYTES, measured))
    cluster = cluster_of(STAGES, replace(MEASURED, links=links))
    costs = CostModel(compile_plan(STAGES, MODEL), cluster, Topology(cluster))
    found = costs.message(0, 1, 10 * BYTES)
    assert found == pytest.approx((latency, (measured - latency) * 1e6), rel=1e-6)


def test_a_message_was_measured_under_computation_of_one_end() -> None:
    """So it takes as long as measured while its sender computes on and its receiver waits."""
    plan = STAGES.model_copy(update={"n_microbatches": 2, "schedule": "GPipe"})
    links = (LinkTime("network", 64, 1e-3), LinkTime("network", BYTES // 2, 0.25))
    calibration = replace(MEASURED, links=links, transfer_stretch=3.0)
    found = simulate(plan, MODEL, cluster_of(plan, calibration))
    took = {
        str(op): found.times.end[op.id] - found.times.start[op.id]
        for op in found.program.ops() if op.kind == SEND_F
    }  # fmt: skip
    assert took["1SEND_F0"] == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("measured", [1e-3, 0.5])
def test_a_collective_takes_what_was_measured(measured: float) -> None:
    weights = 4 * 2 * (64 * 64 + 64)
    sums = (
        CollectiveTime("ALL_REDUCE", 2, weights // 2, measured),
        CollectiveTime("ALL_REDUCE", 2, weights, measured),
    )
    free = simulate(BATCH, MODEL, cluster_of(BATCH, MEASURED))
    found = simulate(BATCH, MODEL, cluster_of(BATCH, replace(MEASURED, collectives=sums)))
    assert found.program.columns.kind.count("ALL_REDUCE") == 2
    assert found.summary["communication_time_s"] == pytest.approx(measured, rel=1e-6)
    assert free.summary["communication_time_s"] != pytest.approx(measured, rel=1e-2)
