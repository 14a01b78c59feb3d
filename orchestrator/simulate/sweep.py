"""Plans at other batches and on other networks: every point is simulated once, when asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, Protocol

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan, read_plan
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.epoch import DataSet
from orchestrator.simulate.predict import simulate

Axis = Literal["batch", "bandwidth"]
BATCH: Final = "batch"
BANDWIDTH: Final = "bandwidth"
POWERS = range(-6, 7)  # of two: from 1/64 to 64 times


class Planned(Protocol):
    """What can be swept."""

    @property
    def plan(self) -> Plan:
        """How it is split."""

    @property
    def model(self) -> Model:
        """What is split."""

    @property
    def data(self) -> DataSet | None:
        """What is loaded; None for the data set that the network is made for."""


class Sweep:
    """Simulated images a second of plans as their batch or the cluster's bandwidth changes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        # by the item itself, which is kept alive here so that no other takes its id
        self._found: dict[tuple[int, Axis, int], tuple[Planned, float | None]] = {}

    def images_per_s(self, item: Planned, axis: Axis, power: int) -> float | None:
        """At 2**power times the batch or bandwidth; None where the plan cannot have that batch."""
        key = (id(item), axis if power else BATCH, power)
        if key not in self._found:
            self._found[key] = (item, self._simulated(item, axis, 2.0**power))
        return self._found[key][1]

    def _simulated(self, item: Planned, axis: Axis, scale: float) -> float | None:
        plan, cluster = item.plan, self.cluster
        if axis == BATCH:
            size = round(plan.global_batch_size * scale)
            if size < 1:
                return None
        else:
            size = plan.global_batch_size
            cluster = with_bandwidth(cluster, scale)
        try:
            if size != plan.global_batch_size:  # read anew, as not every batch divides
                setting = f"global_batch_size={size}"
                plan = read_plan(plan.to_yaml(), plan.name, plan.folder, [setting])
            return float(
                simulate(plan, item.model, cluster, data=item.data).summary["images_per_s"]
            )
        except InputError:
            return None

    def curve(self, item: Planned, axis: Axis) -> list[tuple[int, float]]:
        """(power, images a second) of every point there is, rising."""
        points = ((power, self.images_per_s(item, axis, power)) for power in POWERS)
        return [(power, rate) for power, rate in points if rate is not None]


def with_bandwidth(cluster: Cluster, scale: float) -> Cluster:
    """The same cluster with every link so many times as fast."""
    if scale == 1:
        return cluster
    levels = tuple(
        replace(x, bandwidth=x.bandwidth * scale, device_bandwidth=x.device_bandwidth * scale)
        for x in cluster.network
    )
    library = cluster.library
    if library is not None and library.switch_bandwidth is not None:
        library = replace(library, switch_bandwidth=library.switch_bandwidth * scale)
    calibration = cluster.calibration
    if calibration is not None:  # measured messages hold for the measured links only
        calibration = replace(calibration, links=(), collectives=())
    return replace(cluster, network=levels, library=library, calibration=calibration)
