"""What an op costs on a device: from a calibration where one was made, else by the roofline.

Roofline (Williams, Waterman, Patterson 2009): a layer takes the longer of its arithmetic at a
stated fraction of the peak and its memory traffic at a stated fraction of the bandwidth, and an
overhead for each kernel it starts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import prod

from orchestrator import __version__
from orchestrator.errors import InputError
from orchestrator.models.ranges import size
from orchestrator.program.ops import STEP, B, F, I, Program, W
from orchestrator.program.segments import LayerPart, SegmentPart
from orchestrator.simulate.calibration import LayerTime, OptimizerTime, Pass, shape_key
from orchestrator.simulate.cluster import Cluster, Device
from orchestrator.simulate.collectives import Collectives, Phase
from orchestrator.simulate.network import Topology
from orchestrator.simulate.processors import Sharing, Work

Point = tuple[float, float]


class CostModel:
    """Durations of a program's ops on a cluster, each worked out once.

    ``notes`` collects what a user should know: layers not measured, sizes beyond what was.

    Args:
        data: what the images are loaded from, as ``run --data``; counts on processors.
    """

    def __init__(
        self, program: Program, cluster: Cluster, topology: Topology, data: str = "digits"
    ) -> None:
        self.program, self.cluster, self.topology = program, cluster, topology
        self.data = data
        self.calibration = cluster.calibration
        self.collectives = Collectives(topology, program.ranks)
        self.notes: dict[str, None] = {}  # an ordered set
        self._parts: dict[tuple[object, ...], Work] = {}
        self._works: dict[tuple[int, str, int, bool, int], Work] = {}
        self._latencies: dict[tuple[int, int, int], float | None] = {}
        self._phases: dict[tuple[str, int, tuple[int, ...]], tuple[Phase, ...] | None] = {}
        self._check_calibration()
        weighted = [any(p.parameters for p in s.parts.values()) for s in program.segments]
        self._trained_before = [any(weighted[:i]) for i in range(len(weighted))]

    def _check_calibration(self) -> None:
        """Measured times hold for what was measured: the release, and the layers' sizes.

        Raises:
            InputError: another release measured, or no layer with weights of this program was.
        """
        c, program = self.calibration, self.program
        if c is None:
            return
        remedy = (
            f"measure again: orchestrator calibrate --plan {program.name} --out ...; or --set "
            "cluster.calibration=null for the file's peaks and efficiencies"
        )
        release = c.versions.get("orchestrator", __version__)
        if release.split(".")[:2] != __version__.split(".")[:2]:
            raise InputError(
                f"its calibration was made by release {release}; this is {__version__}",
                self.cluster.label,
                remedy,
            )
        layers = [
            layer
            for segment in program.segments
            for part in segment.parts.values()
            for layer in part.layers
            if layer.tiles
        ]
        if c.layers and not any(
            c.rows(layer.sized.kind, shape_key(layer), program.dtype, "forward") for layer in layers
        ):
            raise InputError(
                f"its calibration measured layers of {c.model}; none of them is one of "
                f"{program.model.name} as {program.name} splits it, in {program.dtype}",
                self.cluster.label,
                remedy,
            )

    # -- computation --------------------------------------------------------------------------

    def computation(self, program: Program, i: int) -> float:
        """Seconds of computation op ``i``, while all other ranks of its machine compute too."""
        return self._work(program, i).together

    def alone(self, program: Program, i: int) -> float:
        """Seconds of computation op ``i``, while the other ranks of its machine rest."""
        return self._work(program, i).alone

    def _work(self, program: Program, i: int) -> Work:
        columns = program.columns
        rank, kind, segment = columns.rank[i], columns.kind[i], columns.segment[i]
        again = kind in (B, I) and program.recomputes(segment, columns.microbatch[i])
        key = (segment, kind, rank, again, columns.bytes[i])
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = self._computation(rank, kind, segment, again, key[-1])
        return work

    def _computation(self, rank: int, kind: str, segment: int, again: bool, bytes_: int) -> Work:
        device = self.cluster.device(rank)
        slowness = self.cluster.slowness(rank)
        part = self.program.segments[segment].parts[rank % self.program.ranks_per_replica]
        if kind == STEP:
            return self._update(device, part, bytes_) * slowness
        copied = self._copied(segment, rank % self.program.ranks_per_replica, kind)
        passes = {F: "forward", B: "backward", I: "backward_input", W: "backward_weight"}
        work = self._layers(device, segment, part, passes[kind])
        if again:
            work += self._layers(device, segment, part, "forward")
        bandwidth = device.memory_bandwidth * device.efficiency.get("memory", 1.0)
        own = copied / bandwidth
        return (work + Work(own, own)) * slowness

    def _copied(self, segment: int, local_rank: int, kind: str) -> int:
        """Bytes that the executor moves around a computation: it puts inputs and output gradients
        together from several pieces, and gradients into the buffer of their reduction."""
        program = self.program
        here = program.segments[segment].parts[local_rank]
        moved = 0
        if kind == F and segment:
            boundary = program.boundaries[segment]
            pieces = [m for m in boundary.messages[0] if m.target == local_rank]
            if len(pieces) > 1 or boundary.summed:
                moved += prod(here.input_shape) + 2 * sum(m.values for m in pieces)
        following = segment + 1
        if kind in (B, I) and following < len(program.segments):
            turns = program.boundaries[following].messages
            back = [m for turn in turns for m in turn if m.source == local_rank]
            if len(back) > 1 or any(m.values != prod(here.output_shape) for m in back):
                moved += prod(here.output_shape) + 3 * sum(m.values for m in back)
        if kind in (B, W) and here.parameters:
            whole = program.segments[segment]
            bucket = next(b for b in program.buckets[segment] if local_rank in b.ranks)
            reduced = len(bucket.ranks) * program.replicas > 1
            several = (whole.update_chunks or whole.chunks) > 1
            moved += here.parameters * (3 if several else 2 if reduced else 0)
        return moved * program.itemsize

    def _layers(self, device: Device, segment: int, part: SegmentPart, direction: str) -> Work:
        """All layers of a part; ranks whose parts are alike in every size share the answer."""
        sizes = tuple(
            [
                (size(x.part.reads), size(x.part.out), x.parameters, len(x.tiles))
                for x in part.layers
            ]
        )
        groups = tuple(shape_key(x) for x in part.layers) if self.calibration else ()
        key = (id(device), segment, direction, part.examples, sizes, groups)
        if key not in self._parts:
            self._parts[key] = self._part(device, segment, part, direction)
        return self._parts[key]

    def _part(self, device: Device, segment: int, part: SegmentPart, direction: str) -> Work:
        total = Work(0.0, 0.0)
        needed = self._trained_before[segment]  # whether a layer's input gradient is needed
        for layer in part.layers:
            now = direction
            if direction != "forward" and not needed:
                # the very first weights: no input gradient; before them nothing at all
                now = "backward_weight" if layer.tiles and direction != "backward_input" else ""
            if direction == "backward_weight" and not layer.tiles:
                now = ""
            needed = needed or bool(layer.tiles)
            if now:
                total += self.layer(device, layer, part.examples, now)  # type: ignore[arg-type]
        return total

    def layer(self, device: Device, layer: LayerPart, examples: int, direction: Pass) -> Work:
        """One pass of one layer part over so many images."""
        kind, dtype = layer.sized.kind, self.program.dtype
        if kind == "sum" or not examples:
            return Work(0.0, 0.0)
        if self.calibration is not None:
            rows = self.calibration.rows(kind, shape_key(layer), dtype, direction)
            if rows:
                what = f"{layer.sized.name} {direction}"
                return self._measured([(row.batch, row) for row in rows], examples, what)
            self.notes[f"{layer.sized.name} {direction} was not measured: estimated"] = None
        seconds = self._roofline(device, layer, examples, direction)
        return Work(seconds, seconds)

    def _measured(
        self, rows: Sequence[tuple[int, LayerTime | OptimizerTime]], at: int, what: str
    ) -> Work:
        together = self._interpolate([(x, row.seconds) for x, row in rows], at, what)
        alone = self._interpolate([(x, row.alone or row.seconds) for x, row in rows], at, what)
        return Work(together, alone)

    def _roofline(self, device: Device, layer: LayerPart, examples: int, direction: Pass) -> float:
        dtype = self.program.dtype
        peak = device.flops.get(dtype)
        if peak is None:
            raise InputError(
                f"{device.name} has no tflops for {dtype}; it has: {', '.join(device.flops)}",
                self.cluster.label,
                f"device.tflops.{dtype}, or training.dtype in the plan",
            )
        both = 2 if direction == "backward" else 1
        flops = 2 * layer.macs_per_image * examples * both
        values = examples * (
            size(layer.part.reads) * layer.sized.in_values
            + size(layer.part.out) * layer.sized.out_values
        )
        if layer.tiles:
            traffic = both * (values + layer.parameters) * self.program.itemsize
        else:  # forward reads x and writes y; backward reads what was kept and g, and writes gx
            traffic = (values if direction == "forward" else 2 * values) * self.program.itemsize
        kind = layer.sized.kind
        fraction = device.efficiency.get("memory", 1.0)
        if not layer.tiles:
            fraction = device.efficiency.get(kind, fraction)
        arithmetic = flops / (peak * device.efficiency.get(kind, 1.0)) if flops else 0.0
        if kind == "linear":
            arithmetic *= _stretch(device, layer, examples, direction)
        movement = traffic / (device.memory_bandwidth * fraction)
        return max(arithmetic, movement) + device.kernel_overhead_s * both

    def _update(self, device: Device, part: SegmentPart, bytes_: int) -> Work:
        """Reads weights, gradients and velocities, writes weights and velocities."""
        if self.calibration is not None and self.calibration.optimizer:
            rows = [(row.bytes, row) for row in self.calibration.optimizer]
            return self._measured(rows, bytes_, "optimizer")
        tensors = sum(len(layer.tiles) + bool(layer.bias) for layer in part.layers)
        fraction = device.efficiency.get("memory", 1.0)
        seconds = device.update_accesses * bytes_ / (device.memory_bandwidth * fraction)
        seconds += tensors * device.kernel_overhead_s
        return Work(seconds, seconds)

    # -- communication ------------------------------------------------------------------------

    def latency(self, source: int, target: int, size: int) -> float | None:
        """Measured time of a message less the time its bytes take; None if not measured."""
        if self.calibration is None or not self.calibration.links:
            return None
        key = (source, target, size)
        if key not in self._latencies:
            level = self.cluster.network[self.cluster.level_between(source, target)].name
            points = sorted(
                (row.bytes, row.seconds) for row in self.calibration.links if row.level == level
            )
            found = None
            if points:
                route = self.topology.path(source, target)[0]
                flowing = size / min(self.topology.capacity[x] for x in route)
                whole = self._interpolate(points, size, f"messages over {level}")
                found = max(0.0, whole - flowing)
            self._latencies[key] = found
        return self._latencies[key]

    def phases(self, kind: str, size: int, group: tuple[int, ...]) -> tuple[Phase, ...] | None:
        """A measured collective as one phase; None if this kind and group size was not measured."""
        if self.calibration is None:
            return None
        key = (kind, size, group)
        if key not in self._phases:
            points = sorted(
                (row.bytes, row.seconds)
                for row in self.calibration.collectives
                if (row.kind, row.ranks) == (kind, len(group))
            )
            found = None
            if points:
                (ring,) = next(
                    c.phases
                    for c in self.collectives.candidates(kind, size, group)
                    if c.algorithm == "ring"
                )
                capacity = self.topology.capacity
                flowing = ring.size / min(capacity[x] / w for x, w in ring.load)
                whole = self._interpolate(points, size, f"{kind} over {len(group)} ranks")
                found = (Phase(max(0.0, whole - flowing), ring.size, ring.load),)
            self._phases[key] = found
        return self._phases[key]

    def sharing(self) -> Sharing | None:
        """What disturbs computations: on processors other ranks and transfers, as a calibration
        has seen it; on other devices transfers, where the cluster says so."""
        c = self.calibration
        if c is not None and c.threads:
            ranks = c.neighbours or self.cluster.devices_per_node
            return Sharing(ranks, c.threads, c.compute_slowdown)
        slowdown = max(device.transfer_slowdown for device, _ in self.cluster.kinds)
        return Sharing(1, 1, slowdown) if slowdown else None

    def loading(self, rank: int) -> float:
        """Seconds of loading a rank's images of a step."""
        first = self.program.segments[0]
        part = first.parts.get(rank % self.program.ranks_per_replica)
        if part is None or self.calibration is None:
            return 0.0
        return part.examples * first.chunks * self.calibration.load_s.get(self.data, 0.0)

    def node(self, rank: int) -> int:
        """The machine whose processors a rank shares; of other devices, the device."""
        c = self.calibration
        if c is None or not c.threads:
            return rank
        return rank // c.neighbours if c.neighbours else self.cluster.node(rank)

    @property
    def jitter(self) -> float:
        """Relative standard deviation of a computation's time, as a calibration has seen it."""
        return self.calibration.jitter if self.calibration else 0.0

    def _interpolate(self, points: Sequence[Point], at: float, what: str) -> float:
        """Straight lines between measured points; beyond them the nearest slope, and a note."""
        xs = [x for x, _ in points]
        if len(points) == 1 or at <= xs[0]:
            x, y = points[0]
            if at < x:
                return self._below(points, at)
            if at > x:
                self.notes[f"{what}: measured at {x:,.0f} only, used for {at:,.0f}"] = None
            return y * at / x if len(points) == 1 else y
        i = min(bisect_left(xs, at), len(points) - 1)
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        if at > x1:
            self.notes[f"{what}: measured up to {x1:,.0f}, extrapolated to {at:,.0f}"] = None
        return max(0.0, y0 + (y1 - y0) * (at - x0) / (x1 - x0))

    def _below(self, points: Sequence[Point], at: float) -> float:
        """Under the smallest measured size: its own time, less what the slope says of the rest."""
        (x0, y0) = points[0]
        if len(points) == 1:
            return y0 * at / x0
        (x1, y1) = points[1]
        line = y0 + (y1 - y0) * (at - x0) / (x1 - x0)
        return max(line, y0 * at / x0)


def _stretch(device: Device, layer: LayerPart, examples: int, direction: Pass) -> float:
    """Times as long as its products take because they do not fill the device."""
    read = size(layer.part.reads) * layer.sized.in_values
    written = size(layer.part.out) * layer.sized.out_values
    products = {
        "forward": [examples * written],
        "backward": [examples * read, read * written],
        "backward_input": [examples * read],
        "backward_weight": [read * written],
    }[direction]
    return sum(1 / device.occupied(values) for values in products) / len(products)
