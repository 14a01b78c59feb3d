"""Other batches and bandwidths: which points there are, and that none is simulated twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from orchestrator.models.model import Model
from orchestrator.plan import Plan, load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.calibration import Calibration
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.epoch import DataSet
from orchestrator.simulate.predict import simulate
from orchestrator.simulate.sweep import BANDWIDTH, BATCH, Sweep, with_bandwidth

CLUSTER = load_cluster("gtx580x2")


@dataclass(frozen=True)
class Swept:
    plan: Plan
    model: Model
    data: DataSet | None = None


def swept(name: str, *settings: str) -> Swept:
    plan = load_plan(name, [*settings, "model.width=0.0625"])
    return Swept(plan, model_of(plan))


def test_a_batch_that_does_not_divide_leaves_a_gap() -> None:
    """A plan changed without its checks once met a division by zero in the compiler."""
    item = swept("krizhevsky2012", "global_batch_size=12", "n_microbatches=4")
    powers = [power for power, _ in Sweep(CLUSTER).curve(item, BATCH)]
    assert powers == [0, 1, 2, 3, 4, 5, 6]


def test_more_bandwidth_is_never_slower_and_one_device_does_not_care() -> None:
    sweep = Sweep(CLUSTER)
    rates = [rate for _, rate in sweep.curve(swept("data-parallel"), BANDWIDTH)]
    assert len(rates) == 13
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    assert len({rate for _, rate in sweep.curve(swept("single"), BANDWIDTH)}) == 1


def test_every_point_is_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(plan: Plan, *rest: object, **more: object) -> object:
        calls.append(plan.global_batch_size)
        return simulate(plan, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("orchestrator.simulate.sweep.simulate", counted)
    sweep, item = Sweep(CLUSTER), swept("krizhevsky2012")
    for _ in range(2):
        for axis in (BATCH, BANDWIDTH):
            sweep.curve(item, axis)
    assert len(calls) == 13 + 12  # the plan and the cluster as they are belong to both


def test_a_point_loads_what_its_item_loads() -> None:
    """A run's own point was once of the same data, and those of its other batches of digits."""
    calibration = Calibration("2026-11-24", "h", "m", {}, threads=1, load_s={"synthetic": 3.0})
    cluster = replace(CLUSTER, calibration=calibration)
    item = replace(swept("single"), data=DataSet("synthetic:5000", 5000))
    rate = Sweep(cluster).images_per_s(item, BATCH, 0)
    assert rate == pytest.approx(1 / 3, rel=0.05)


def test_bandwidth_scales_every_level() -> None:
    scaled = with_bandwidth(CLUSTER, 0.5)
    assert [level.bandwidth for level in scaled.network] == [
        level.bandwidth / 2 for level in CLUSTER.network
    ]
    assert with_bandwidth(CLUSTER, 1) is CLUSTER
