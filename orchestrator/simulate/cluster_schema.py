"""What a cluster file says: the one definition behind loading, messages and the JSON Schema.

Units end the keys here and end here: :mod:`orchestrator.simulate.cluster` has seconds, bytes, FLOP.
"""

from __future__ import annotations

import re
from math import prod
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from orchestrator.models import kind_names
from orchestrator.plan.problem import Problem, found, nearest, refusal
from orchestrator.simulate.calibration_schema import CalibrationFile, Name
from orchestrator.simulate.figure import (
    Block,
    ConvFraction,
    Fraction,
    NotNegative,
    Part,
    Positive,
    Share,
)
from orchestrator.simulate.nccl import Generation, Processor, Wire

SCHEMA_VERSION = 1
MOST_DEVICES = 2**20
Topology = Literal["shared", "switch", "ring", "fully_connected"]
Count = Annotated[int, Field(ge=1, le=MOST_DEVICES)]
ClusterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*$", max_length=100)]

# Keys that people write for ours, where the nearest spelling would be the wrong unit or none.
REMEDIES = {
    "Gbps": "write GBps, gigabytes: one eighth of it, since a byte has 8 bits",
    "Gbit_s": "write GBps, gigabytes: one eighth of it, since a byte has 8 bits",
    "bandwidth": "write GBps: the unit is part of the key (10^9 bytes a second, each direction)",
    "memory_bandwidth": "write memory_GBps: the unit is part of the key (10^9 bytes a second)",
    "latency": "write latency_us: the unit is part of the key (microseconds)",
    "latency_s": "write latency_us, microseconds: a million times as much",
    "latency_ms": "write latency_us, microseconds: a thousand times as much",
    "memory": "write memory_GiB: the unit is part of the key (2^30 bytes)",
    "memory_GB": "write memory_GiB (2^30 bytes): 1 GB is 0.9313 GiB",
    "memory_MiB": "write memory_GiB (2^30 bytes): 1024 MiB are 1",
    "gflops": "write tflops: {float32: ...}: 1000 GFLOP/s are 1",
    "flops": "write tflops: {float32: ...}: the unit is part of the key (10^12 a second)",
    "power": "write power_W: the unit is part of the key",
    "mtbf_hours": "write mtbf_hours_per_device: of one device, not of the cluster",
    "restart": "write restart_s: the unit is part of the key",
    "checkpoint": "write checkpoint_s: the unit is part of the key",
}


def _read_version(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value == SCHEMA_VERSION:
        return value
    message = f"{found(value)}; this release reads version {SCHEMA_VERSION} only"
    newer = isinstance(value, int) and value > SCHEMA_VERSION
    remedy = "install a newer orchestrator" if newer else f"write schema_version: {SCHEMA_VERSION}"
    raise refusal([Problem((), message, remedy)])


def _read_size(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_DEVICES:
        return value
    if value in ("nodes", "devices_per_node"):
        return str(value)
    message = f"{found(value)}; allowed: 1 or more, or the word nodes or devices_per_node"
    raise refusal([Problem((), message, "write size: 8, or size: nodes")])


Size = Annotated[
    int | str,
    PlainValidator(_read_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_DEVICES},
                {"enum": ["nodes", "devices_per_node"]},
            ]
        }
    ),
]


class TflopsFile(Block):
    """Peak floating-point operations a second, 10^12, by number format."""

    float64: Positive | None = None
    float32: Positive | None = None
    tfloat32: Positive | None = None
    float16: Positive | None = None
    bfloat16: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> TflopsFile:
        formats = ("float64", "float32", "tfloat32", "float16", "bfloat16")
        if not any(getattr(self, name) for name in formats):
            message = f"found no number format; allowed: {', '.join(formats)}"
            raise refusal([Problem((), message, "write tflops: {float32: 10.6}")])
        return self


class EfficiencyFile(Block):
    """Fractions of a peak that are reached.

    ``conv`` (at most 4, since Winograd's convolutions multiply less than is counted) and ``linear``
    of tflops; ``memory`` of memory_GBps, for all that is limited by it: the
    other layers, unless they are named, and the update of the weights. Any other kind of layer may
    be named: of tflops for its multiply-adds and, where it has no weights, of memory_GBps.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Fraction] = Field(init=False)

    conv: ConvFraction | None = None
    linear: Fraction | None = None
    memory: Fraction | None = None
    relu: Fraction | None = None
    norm: Fraction | None = None
    spatial_norm: Fraction | None = None
    pool: Fraction | None = None
    dropout: Fraction | None = None
    loss: Fraction | None = None

    @model_validator(mode="after")
    def _check(self) -> EfficiencyFile:
        known = ("memory", *kind_names())
        for kind in self.model_extra or {}:
            near = nearest(kind, known, cutoff=0.87) if kind not in known else ""
            # conv2, prelu and elu may well be kinds
            if near and not (re.search(r"\d", kind) or kind.endswith(near) or near.endswith(kind)):
                message = f"unknown key '{kind}'; allowed: conv, linear, memory or a kind of layer"
                raise refusal([Problem((kind,), message, f"did you mean {near}?")])
        return self


class DeviceFile(Block):
    """One kind of device."""

    name: Name = Field(description="What it is called.", examples=["GTX 580"])
    memory_GiB: Positive = Field(description="Its memory, 2^30 bytes.", examples=[3])
    reserved_GiB: NotNegative | None = Field(
        default=None, description="Of that, what driver and libraries take.", examples=[0.3]
    )
    memory_GBps: Positive = Field(
        description="Memory bandwidth, 10^9 bytes a second.", examples=[192.4]
    )
    tflops: TflopsFile = Field(
        description="Peak by number format, 10^12 operations a second.",
        examples=[{"float32": 1.581}],
    )
    efficiency: EfficiencyFile = Field(
        default_factory=EfficiencyFile,
        description="Fraction of the peak that is reached, by layer kind.",
        examples=[{"conv": 0.4, "linear": 0.6}],
    )
    kernel_overhead_us: NotNegative | None = Field(
        default=None, description="Time lost for each kernel, microseconds.", examples=[10]
    )
    transfer_slowdown: Share | None = Field(
        default=None,
        description="Fraction of its speed that computation loses while a transfer of its device "
        "is under way; without it none.",
        examples=[0.1],
    )
    update_accesses: Positive | None = Field(
        default=None,
        description="Reads and writes of memory for each weight that an update changes; without "
        "it 5: a fused update with momentum.",
        examples=[5],
    )
    multiprocessors: Positive | None = Field(
        default=None,
        description="Each computes a tile of a matrix product at a time; with tile_values.",
        examples=[13],
    )
    tile_values: Positive | None = Field(
        default=None,
        description="Values of a matrix product in such a tile; without it a product of any size "
        "occupies the whole device.",
        examples=[8192],
    )
    power_W: Positive | None = Field(default=None, description="Power, watts.", examples=[244])
    dollars_per_hour: NotNegative | None = Field(
        default=None, description="Price of one device.", examples=[0.0]
    )

    @model_validator(mode="after")
    def _check(self) -> DeviceFile:
        reserved, memory = self.reserved_GiB, self.memory_GiB
        if reserved is not None and reserved.value >= memory.value:
            message = f"found {reserved.value:g}; allowed: less than memory_GiB, {memory.value:g}"
            remedy = "write what driver and libraries take of it"
            raise refusal([Problem(("reserved_GiB",), message, remedy)])
        return self


class DeviceShare(Part):
    """So many devices of one kind, in order of rank."""

    device: DeviceFile = Field(description="The device.", examples=[{"name": "GTX 580"}])
    count: Count = Field(description="How many, over all nodes.", examples=[4])


class LevelFile(Block):
    """A level of the network: it joins ``size`` groups of the level before it."""

    name: Name = Field(description="What it is called.", examples=["pcie2"])
    size: Size = Field(
        description="Groups of the level before (devices, in the first) that it joins; or the "
        "word nodes or devices_per_node, to follow that number.",
        examples=[2],
    )
    GBps: Positive = Field(
        description="10^9 bytes a second, each direction, of one group's port (switch), of the "
        "whole bus (shared), of the link to a neighbour (ring) or to any other (fully_connected).",
        examples=[6.0],
    )
    device_GBps: Positive | None = Field(
        default=None,
        description="What one device of a group can send through it at most; without it, GBps.",
        examples=[25],
    )
    latency_us: Positive = Field(
        description="Time before the first byte arrives, microseconds.", examples=[10]
    )
    topology: Topology = Field(
        description="shared (one bus), switch, ring or fully_connected.", examples=["switch"]
    )
    nested: bool = Field(
        default=False,
        description="Whether what crosses this level also takes its two devices' ports of the "
        "level before, as in a tree of PCIe switches; otherwise it has ports of its own.",
        examples=[True],
    )
    host: bool = Field(
        default=False,
        description="Whether the memory that images are loaded into is behind this level: each "
        "device then gets those of its next step through its group's port. Otherwise their copies "
        "take no time.",
        examples=[True],
    )


class CollectivesFile(Block):
    """The library that runs the collectives, whose own model of their times is taken."""

    library: Literal["nccl"] = Field(description="Which one.", examples=["nccl"])
    generation: Generation = Field(
        description="Of the devices: pascal, volta, ampere or hopper.", examples=["ampere"]
    )
    wire: Wire = Field(description="What joins those of a node.", examples=["nvlink"])
    processor: Processor = Field(description="Of the hosts: intel or amd.", examples=["amd"])
    channels: Count = Field(description="Rings at once, as NCCL_DEBUG=INFO tells.", examples=[24])
    start_us: NotNegative = Field(
        description="From the call until the devices are at it, microseconds.", examples=[20]
    )
    switch_GBps: Positive | None = Field(
        default=None,
        description="10^9 bytes a second, each way, through a device's port while the switches "
        "add up (NVLS); without it they do not.",
        examples=[310],
    )


class ReliabilityFile(Block):
    """How often devices fail and what that costs."""

    mtbf_hours_per_device: Positive = Field(
        description="Mean time between failures of one device, hours.", examples=[50000]
    )
    restart_s: Positive = Field(description="From failure to training again.", examples=[300])
    checkpoint_s: Positive = Field(description="Time to write a checkpoint.", examples=[30])


class SlowFile(Part):
    """A straggler: everything it computes takes ``factor`` times as long."""

    rank: Annotated[int, Field(ge=0, lt=MOST_DEVICES)] = Field(description="Who.", examples=[3])
    factor: Annotated[float, Field(ge=1e-6, le=1e6)] = Field(
        description="Times as long.", examples=[1.5]
    )


class ClusterFile(Block):
    """The whole file."""

    schema_version: Annotated[
        int, PlainValidator(_read_version), WithJsonSchema({"const": SCHEMA_VERSION})
    ] = Field(description="The version of this format.", examples=[SCHEMA_VERSION])
    name: ClusterName = Field(
        description="Names the cluster: letters, digits, . _ -",
        examples=["gtx580x2"],
    )
    summary: str = Field(default="", max_length=2000, description="One sentence on what it is.")
    nodes: Count = Field(description="Machines.", examples=[1])
    devices_per_node: Count = Field(description="Devices in each.", examples=[8])
    device: DeviceFile | None = Field(
        default=None, description="The device, where all are alike.", examples=[{"name": "P100"}]
    )
    devices: tuple[DeviceShare, ...] | None = Field(
        default=None,
        strict=False,
        description="The kinds of devices, where they differ, in order of rank.",
        examples=[[{"device": {"name": "P100"}, "count": 4}]],
    )
    network: tuple[LevelFile, ...] = Field(
        default=(),
        strict=False,
        description="Levels, innermost first; each joins groups of the one before.",
        examples=[[{"name": "pcie", "size": 2, "GBps": 6, "latency_us": 10, "topology": "switch"}]],
    )
    collectives: CollectivesFile | None = Field(
        default=None,
        description="The library that runs collectives; without it the links alone say how long.",
        examples=[
            {
                "library": "nccl",
                "generation": "ampere",
                "wire": "nvlink",
                "processor": "amd",
                "channels": 24,
                "start_us": 20,
            }
        ],  # fmt: skip
    )
    reliability: ReliabilityFile | None = Field(
        default=None,
        description="Failures and what they cost.",
        examples=[{"mtbf_hours_per_device": 50000, "restart_s": 300, "checkpoint_s": 30}],
    )
    slow: tuple[SlowFile, ...] = Field(
        default=(),
        strict=False,
        description="Stragglers.",
        examples=[[{"rank": 3, "factor": 1.5}]],
    )
    calibration: CalibrationFile | None = Field(
        default=None, description="Measured times; `orchestrator calibrate` writes it."
    )

    @property
    def device_count(self) -> int:
        """Devices in all."""
        return self.nodes * self.devices_per_node

    def level_size(self, level: LevelFile) -> int:
        """A level's size, with the words put into numbers."""
        words = {"nodes": self.nodes, "devices_per_node": self.devices_per_node}
        return level.size if isinstance(level.size, int) else words[level.size]

    @model_validator(mode="after")
    def _check(self) -> ClusterFile:
        problems = [
            *self._check_devices(), *self._check_network(), *self._check_nested(),
            *self._check_host(), *self._check_slow(),
        ]  # fmt: skip
        if problems:
            raise refusal(problems)
        return self

    def _check_devices(self) -> list[Problem]:
        if self.device is not None and self.devices is not None:
            message = "found device and devices; allowed: one of the two"
            return [Problem(("devices",), message, "keep device where all are alike")]
        if self.device is None and self.devices is None:
            message = "found neither device nor devices; allowed: one of the two"
            return [Problem((), message, "add device: {name: ..., memory_GiB: ..., ...}")]
        if self.devices is None:
            return []
        counted = sum(share.count for share in self.devices)
        if counted == self.device_count:
            return []
        message = f"found counts that add up to {counted}; allowed: nodes x devices_per_node = "
        message += f"{self.nodes} x {self.devices_per_node} = {self.device_count}"
        return [Problem(("devices",), message, "change the counts, or nodes")]

    def _check_network(self) -> list[Problem]:
        if self.device_count > MOST_DEVICES:
            message = f"found {self.device_count} devices; allowed: at most {MOST_DEVICES}"
            return [Problem(("nodes",), message, "write fewer nodes")]
        sizes = [self.level_size(level) for level in self.network]
        if prod(sizes) == self.device_count:
            return []
        shown = " x ".join(map(str, sizes)) or "no level"
        message = f"found levels of {shown} = {prod(sizes)}; allowed: levels that multiply to "
        message += f"nodes x devices_per_node = {self.nodes} x {self.devices_per_node} = "
        message += f"{self.device_count}"
        if not sizes:
            return [Problem(("network",), message, "add a level that joins the devices")]
        rest = prod(sizes[:-1])
        last = ("network", len(sizes) - 1, "size")
        if self.device_count % rest == 0:
            now = self.device_count // rest
            word = " or size: nodes" if now == self.nodes else ""
            return [Problem(last, message, f"write size: {now}{word}")]
        return [Problem(("network",), message, "change the sizes, nodes or devices_per_node")]

    def _check_nested(self) -> list[Problem]:
        problems = []
        for i, level in enumerate(self.network):
            before = self.network[i - 1].topology if i else None
            if level.nested and before not in ("switch", "shared"):
                message = "found nested: true; allowed: behind a level that is a switch or shared"
                message += f", not {before}" if before else "; the first has none before it"
                problems.append(Problem(("network", i, "nested"), message, "leave it out"))
        return problems

    def _check_host(self) -> list[Problem]:
        hosts = [i for i, level in enumerate(self.network) if level.host]
        problems = []
        for i in hosts:
            where, topology = ("network", i, "host"), self.network[i].topology
            if topology not in ("switch", "shared"):
                message = f"found host: true; allowed: at a switch or shared, not {topology}"
                problems.append(Problem(where, message, "leave it out"))
            elif i != hosts[0]:
                message = "found host: true twice; allowed: at one level"
                problems.append(Problem(where, message, "keep the innermost"))
        return problems

    def _check_slow(self) -> list[Problem]:
        problems = []
        seen: set[int] = set()
        for i, slow in enumerate(self.slow):
            where = ("slow", i, "rank")
            if slow.rank >= self.device_count:
                message = f"found rank {slow.rank}; allowed: 0 to {self.device_count - 1}, one a "
                message += "device"
                remedy = f"write a rank below {self.device_count}, or add nodes"
                problems.append(Problem(where, message, remedy))
            elif slow.rank in seen:
                message = f"found rank {slow.rank} twice; allowed: once"
                problems.append(Problem(where, message, "multiply the factors"))
            seen.add(slow.rank)
        return problems


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a cluster file, for editors."""
    schema = ClusterFile.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "orchestrator cluster",
        **{key: value for key, value in schema.items() if key != "title"},
    }
