"""A cluster as the simulator sees it, read from ``cluster/*.yaml``. Seconds, bytes, FLOP; no units.

Devices are numbered from the inside out, and rank r of a program runs on device r::

    level 1   (size 4)   0 1 2 3   4 5 6 7     a PCIe switch joins four devices
    level 2   (size 2)   └──┬──┘   └──┬──┘     the host joins two switches
                            └────┬────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path as FilePath

from pydantic import BaseModel, ValidationError

from orchestrator.errors import InputError
from orchestrator.plan.explain import Format, explain
from orchestrator.plan.problem import input_error
from orchestrator.plan.source import FileKind, find_file, label_of, read_text, read_values
from orchestrator.simulate.calibration import (
    BytesTime,
    Calibration,
    CollectiveTime,
    LayerTime,
    LinkTime,
)
from orchestrator.simulate.calibration_schema import CalibrationFile
from orchestrator.simulate.cluster_schema import (
    REMEDIES,
    ClusterFile,
    CollectivesFile,
    DeviceFile,
    LevelFile,
    ReliabilityFile,
    Topology,
)
from orchestrator.simulate.figure import Figure, Provenance, provenances, unsourced
from orchestrator.simulate.nccl import Nccl

GIB, GIGA, TERA, MICRO, HOUR = 2**30, 1e9, 1e12, 1e-6, 3600.0
MOST_SLOWDOWN = 0.99  # what stands still for good would never end
_FILE = FileKind("cluster", "cluster", "gtx580x2", "nodes=2", prefix="cluster.")
_FORMAT = Format("cluster", ClusterFile, REMEDIES)


@dataclass(frozen=True)
class Device:
    """One kind of device.

    Args:
        memory_bytes: in all; of these ``reserved_bytes`` are never a program's.
        memory_bandwidth: bytes a second.
        flops: peak operations a second by number format.
        efficiency: fraction of the peak by layer kind: of ``flops`` for conv and linear, of
            ``memory_bandwidth`` for ``memory`` (all the rest) and kinds that are named.
        kernel_overhead_s: lost for each kernel.
        transfer_slowdown: fraction of its speed that computation loses under a transfer.
        update_accesses: reads and writes of memory for each weight that an update changes.
        multiprocessors: each computes a tile of ``tile_values`` of a matrix product at a time; 0
            if products of all sizes occupy the whole device.
        power_w: watts; None if unknown, as is the price.
    """

    name: str
    memory_bytes: int
    memory_bandwidth: float
    flops: Mapping[str, float]
    efficiency: Mapping[str, float] = field(default_factory=dict)
    reserved_bytes: int = 0
    kernel_overhead_s: float = 0.0
    transfer_slowdown: float = 0.0
    update_accesses: float = 5.0
    multiprocessors: float = 0.0
    tile_values: float = 0.0
    power_w: float | None = None
    dollars_per_hour: float | None = None

    @property
    def usable_bytes(self) -> int:
        """What a program may allocate."""
        return self.memory_bytes - self.reserved_bytes

    def occupied(self, values: int) -> float:
        """Share of its time that the device computes while it works on a matrix product of so many
        values: its multiprocessors go through the tiles in rounds, in the last of which some are
        idle ("wave quantization", NVIDIA, Matrix Multiplication Background, 2020)."""
        if not self.multiprocessors or not self.tile_values or not values:
            return 1.0
        rounds = ceil(ceil(values / self.tile_values) / self.multiprocessors)
        return values / (rounds * self.multiprocessors * self.tile_values)


@dataclass(frozen=True)
class Level:
    """A level of the network: it joins ``size`` groups of the level before.

    Args:
        bandwidth: bytes a second, each direction: of one group's port (switch), of the whole bus
            (shared), of the link to a neighbour (ring) or to any other group (fully_connected).
        device_bandwidth: what one device can send through it at most.
        latency: seconds before the first byte arrives.
        nested: whether what crosses it takes its devices' ports of the level before, too.
        host: whether the host's memory, which images come from, is behind it.
    """

    name: str
    size: int
    bandwidth: float
    latency: float
    topology: Topology
    device_bandwidth: float
    nested: bool = False
    host: bool = False


@dataclass(frozen=True)
class Reliability:
    """Failures, all in seconds."""

    mtbf_per_device_s: float
    restart_s: float
    checkpoint_s: float


@dataclass(frozen=True)
class Cluster:
    """Devices, network, and what is known of their reliability.

    Args:
        kinds: (device, how many) in order of rank.
        network: levels, innermost first; their sizes multiply to the number of devices.
        library: what runs the collectives; None: the links alone say how long they take.
        slow: by rank, times as long as it takes for everything it computes.
        provenance: every figure of the file, as written, with its source.
        label: the file, for messages.
    """

    name: str
    nodes: int
    devices_per_node: int
    kinds: tuple[tuple[Device, int], ...]
    network: tuple[Level, ...]
    reliability: Reliability | None = None
    slow: Mapping[int, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    library: Nccl | None = None
    summary: str = ""
    provenance: tuple[Provenance, ...] = ()
    label: str = ""

    @property
    def device_count(self) -> int:
        """Devices in all."""
        return self.nodes * self.devices_per_node

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        ends, total = [], 0
        for _, count in self.kinds:
            total += count
            ends.append(total)
        return tuple(ends)

    @property
    def on_processors(self) -> bool:
        """Whether its devices are processors: a calibration tells so by a rank's threads."""
        return self.calibration is not None and self.calibration.threads > 0

    def device(self, rank: int) -> Device:
        """The device that a rank runs on."""
        if len(self.kinds) == 1:
            return self.kinds[0][0]
        return next(kind[0] for kind, end in zip(self.kinds, self._ends, strict=True) if rank < end)

    def slowness(self, rank: int) -> float:
        """Times as long as the device takes for what a rank computes; 1 for most."""
        return self.slow.get(rank, 1.0)

    def node(self, rank: int) -> int:
        """The machine that a rank runs on."""
        return rank // self.devices_per_node

    def level_between(self, a: int, b: int) -> int:
        """Position in ``network`` of the innermost level that joins two different ranks."""
        group = 1
        for i, level in enumerate(self.network):
            group *= level.size
            if a // group == b // group:
                return i
        raise ValueError(f"ranks {a} and {b} are not both in a cluster of {self.device_count}")

    def assumed(self) -> tuple[str, ...]:
        """Keys of the figures that have no source."""
        return tuple(p.key for p in self.provenance if p.source is None)

    def check_room(self, world_size: int, location: str = "") -> None:
        """Whether a program has a device for each of its ranks.

        Raises:
            InputError: it has not.
        """
        if world_size > self.device_count:
            nodes = -(-world_size // self.devices_per_node)
            raise InputError(
                f"the plan needs {world_size} ranks, cluster {self.name} has {self.nodes} x "
                f"{self.devices_per_node} = {self.device_count} devices",
                location,
                f"another cluster, or one of {nodes} nodes (--set cluster.nodes={nodes}), where "
                "its network follows; or fewer ranks or replicas in the plan",
            )


def load_cluster(source: str | FilePath, overrides: Sequence[str] = ()) -> Cluster:
    """Loads a cluster.

    Args:
        source: a path, or the name of a shipped cluster, with or without its suffix and folder.
        overrides: ``KEY=VALUE`` by dotted key, such as ``nodes=512`` or ``network.0.GBps=12``;
            the value is YAML. Later ones win. A figure that is set so needs no source.

    Raises:
        InputError: whatever is wrong, in one message with place and remedy.
    """
    path = find_file(source, _FILE)
    return read_cluster(read_text(path, _FILE), label_of(path), overrides)


def read_cluster(text: str, label: str = "cluster", overrides: Sequence[str] = ()) -> Cluster:
    """A cluster from its YAML text; see :func:`load_cluster`."""
    values, origin = read_values(text, label, FilePath(), overrides, _FILE)
    try:
        checked = ClusterFile.model_validate(values)
    except ValidationError as error:
        raise input_error(explain(error, _FORMAT), origin.location) from None
    if problems := unsourced(checked, origin.overrides):
        raise input_error(problems, origin.location)
    return _cluster(checked, label, provenances(checked, origin.overrides))


def _cluster(file: ClusterFile, label: str, sources: tuple[Provenance, ...]) -> Cluster:
    if file.device is not None:
        kinds: tuple[tuple[Device, int], ...] = ((_device(file.device), file.device_count),)
    else:
        assert file.devices is not None  # checked
        kinds = tuple((_device(share.device), share.count) for share in file.devices)
    return Cluster(
        name=file.name,
        nodes=file.nodes,
        devices_per_node=file.devices_per_node,
        kinds=kinds,
        network=tuple(_level(level, file.level_size(level)) for level in file.network),
        reliability=_reliability(file.reliability) if file.reliability else None,
        slow={slow.rank: slow.factor for slow in file.slow},
        calibration=_calibration(file.calibration) if file.calibration else None,
        library=_library(file.collectives) if file.collectives else None,
        summary=file.summary,
        provenance=sources,
        label=label,
    )


def _reliability(file: ReliabilityFile) -> Reliability:
    return Reliability(
        mtbf_per_device_s=file.mtbf_hours_per_device.value * HOUR,
        restart_s=file.restart_s.value,
        checkpoint_s=file.checkpoint_s.value,
    )


def _device(file: DeviceFile) -> Device:
    return Device(
        name=file.name,
        memory_bytes=round(file.memory_GiB.value * GIB),
        reserved_bytes=round(_value(file.reserved_GiB) * GIB),
        memory_bandwidth=file.memory_GBps.value * GIGA,
        flops={name: value * TERA for name, value in _named(file.tflops).items()},
        efficiency=_named(file.efficiency),
        kernel_overhead_s=_value(file.kernel_overhead_us) * MICRO,
        transfer_slowdown=min(_value(file.transfer_slowdown), MOST_SLOWDOWN),
        update_accesses=file.update_accesses.value if file.update_accesses else 5.0,
        multiprocessors=_value(file.multiprocessors),
        tile_values=_value(file.tile_values),
        power_w=file.power_W.value if file.power_W else None,
        dollars_per_hour=file.dollars_per_hour.value if file.dollars_per_hour else None,
    )


def _level(file: LevelFile, size: int) -> Level:
    return Level(
        name=file.name,
        size=size,
        bandwidth=file.GBps.value * GIGA,
        device_bandwidth=(file.device_GBps or file.GBps).value * GIGA,
        latency=file.latency_us.value * MICRO,
        topology=file.topology,
        nested=file.nested,
        host=file.host,
    )


def _library(file: CollectivesFile) -> Nccl:
    switch = file.switch_GBps
    return Nccl(
        generation=file.generation,
        wire=file.wire,
        processor=file.processor,
        channels=file.channels,
        start=file.start_us.value * MICRO,
        switch_bandwidth=switch.value * GIGA if switch else None,
    )


def _calibration(file: CalibrationFile) -> Calibration:
    return Calibration(
        date=file.date,
        hardware=file.hardware,
        model=file.model,
        versions=dict(file.versions),
        threads=file.threads,
        neighbours=file.neighbours,
        compute_slowdown=file.compute_slowdown,
        transfer_stretch=file.transfer_stretch,
        post_s=file.post_s,
        jitter=file.jitter,
        load_s=dict(file.load_s),
        layers=tuple(LayerTime(**dict(row)) for row in file.layers),
        optimizer=tuple(BytesTime(**dict(row)) for row in file.optimizer),
        copies=tuple(BytesTime(**dict(row)) for row in file.copies),
        links=tuple(LinkTime(**dict(row)) for row in file.links),
        collectives=tuple(CollectiveTime(**dict(row)) for row in file.collectives),
    )


def _value(figure: Figure | None) -> float:
    return figure.value if figure else 0.0


def _named(block: BaseModel) -> dict[str, float]:
    return {name: figure.value for name, figure in block if isinstance(figure, Figure)}
