"""What an op costs on a device: from a calibration where one was made, else by the roofline.

Roofline (Williams, Waterman, Patterson 2009): a kernel takes the longer of its arithmetic at a
stated fraction of the peak and its memory traffic at a stated fraction of the bandwidth, and an
overhead. A layer takes the sum over its kernels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from math import prod

from orchestrator import __version__
from orchestrator.errors import InputError
from orchestrator.models import kind_names
from orchestrator.models.layer_costs import Pass
from orchestrator.models.sized import LayerPart
from orchestrator.plan import shipped_names
from orchestrator.plan.problem import nearest
from orchestrator.program.ops import STEP, B, F, I, Program, W
from orchestrator.program.precision import ITEMSIZE
from orchestrator.program.segments import SegmentPart
from orchestrator.simulate.algorithms import Phase, ring
from orchestrator.simulate.calibration import BytesTime, LayerTime, shape_key
from orchestrator.simulate.cluster import Cluster, Device
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.network import Topology
from orchestrator.simulate.processors import Sharing, Work

Point = tuple[float, float]
ACCESSES = (
    5  # of a weight in an update with momentum: gradient; weight and momentum, there and back
)
Pieces = defaultdict[int, list[int]]


class CostModel:
    """Durations of a program's ops on a cluster, each worked out once.

    ``notes`` collects what a user should know: layers not measured, sizes beyond what was.

    Args:
        data: the kind of data set that is loaded, such as ``digits``: what a calibration of
            processors has its time under.
    """

    def __init__(
        self, program: Program, cluster: Cluster, topology: Topology, data: str = ""
    ) -> None:
        self.program, self.cluster, self.topology = program, cluster, topology
        self.data = data
        self.calibration = cluster.calibration
        # of processors, which the ranks of a machine share
        self.processors = cluster.calibration if cluster.on_processors else None
        self.collectives = Collectives(topology, program.ranks)
        self.notes: dict[str, None] = {}  # an ordered set
        self._works: dict[tuple[int, str, bool, int], Work] = {}
        self._task_of: dict[tuple[int, int], int] = {}  # by segment and rank
        self._tasks: dict[tuple[object, ...], int] = {}
        self._sizes_of: dict[tuple[int, int], int] = {}  # by segment and share
        self._numbers: dict[tuple[object, ...], int] = {}  # of sizes
        self._inputs: dict[int, Pieces] = {}  # by boundary
        self._gradients: dict[int, Pieces] = {}
        self._messages: dict[tuple[int, int, int], tuple[float, float] | None] = {}
        self._phases: dict[tuple[str, int, tuple[int, ...]], tuple[Phase, ...] | None] = {}
        self._reduced = {  # segment and local rank whose gradients are summed with those of others
            (bucket.segment, rank)
            for bucket in chain.from_iterable(program.buckets)
            for rank in bucket.ranks
            if len(bucket.ranks) * program.replicas > 1
        }
        self._check_calibration()

    def _check_calibration(self) -> None:
        """Measured times hold for what was measured: the release, and the layers' sizes.

        Raises:
            InputError: another release measured, or no layer with weights of this program was.
        """
        c, program = self.calibration, self.program
        if c is None:
            return
        plan = program.name if program.name in shipped_names("partitions") else "PLAN"
        remedy = (
            f"measure again: orchestrator calibrate --plan {plan} --out ...; or --set "
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

    def work(self, program: Program, i: int) -> Work:
        """Seconds of computation op ``i``. Ranks that do the same share the answer."""
        columns = program.columns
        rank, kind, segment = columns.rank[i], columns.kind[i], columns.segment[i]
        task = self._task_of.get((segment, rank))
        if task is None:
            task = self._task_of[segment, rank] = self._task(segment, rank)
        again = kind in (B, I) and program.recomputes(segment, columns.microbatch[i])
        key = (task, kind, again, columns.bytes[i])
        work = self._works.get(key)
        if work is None:
            work = self._works[key] = self._work(rank, kind, segment, again, columns.bytes[i])
        return work

    def _work(self, rank: int, kind: str, segment: int, again: bool, bytes_: int) -> Work:
        local_rank = rank % self.program.ranks_per_replica
        device, slowness = self.cluster.device(rank), self.cluster.slowness(rank)
        part = self.program.segments[segment].parts[local_rank]
        if kind == STEP:
            return self._update(device, part, bytes_) * slowness
        copied = self._copied(segment, local_rank, kind)
        return self._computation(device, kind, segment, part, again, copied) * slowness

    def _task(self, segment: int, rank: int) -> int:
        """A number for all that the times of a rank's part of a segment depend on: one for ranks
        on equal devices whose parts have equal sizes."""
        local_rank = rank % self.program.ranks_per_replica
        part = self.program.segments[segment].parts[local_rank]
        key = (
            self._sizes(segment, local_rank, part), part.examples,
            id(self.cluster.device(rank)), self.cluster.slowness(rank),
            *self._pieces(segment, local_rank),
        )  # fmt: skip
        return self._tasks.setdefault(key, len(self._tasks))

    def _sizes(self, segment: int, local_rank: int, part: SegmentPart) -> int:
        """A number for what the times of a part depend on, but for its examples and where they
        come from."""
        sizes = self._sizes_of.get((segment, part.share))
        if sizes is None:
            key = (
                segment,
                (segment, local_rank) in self._reduced,
                part.sizes,
                *(shape_key(x) for x in part.layers if self.calibration),
            )
            sizes = self._numbers.setdefault(key, len(self._numbers))
            self._sizes_of[segment, part.share] = sizes
        return sizes

    def _computation(
        self, device: Device, kind: str, segment: int, part: SegmentPart, again: bool, copied: int
    ) -> Work:
        passes = {F: "forward", B: "backward", I: "backward_input", W: "backward_weight"}
        work = self._layers(device, segment, part, passes[kind])
        if again:
            work += self._layers(device, segment, part, "forward")
        return work + self._copies(device, copied)

    def _copies(self, device: Device, moved: int) -> Work:
        """Of so many bytes read or written: a copy of ``bytes`` reads and writes as many."""
        if not moved:
            return Work(0.0, 0.0)
        rows = self.calibration.copies if self.calibration else ()
        if not rows:
            seconds = moved / (device.memory_bandwidth * device.efficiency.get("memory", 1.0))
            return Work(seconds, seconds)
        times = max(1.0, moved / 2 / max(row.bytes for row in rows))  # the largest, several times
        return (
            self._measured([(row.bytes, row) for row in rows], moved / 2 / times, "copies") * times
        )

    def _copied(self, segment: int, local_rank: int, kind: str) -> int:
        """Bytes that the executor moves around a computation: it puts inputs and output gradients
        together from several pieces, and gradients into the buffer of their reduction."""
        program = self.program
        here = program.segments[segment].parts[local_rank]
        moved = 0
        if kind == F:
            for number, found in enumerate(program.segments[segment].imports):
                pieces = self._arriving(found.boundary)[local_rank] if found.boundary > 0 else []
                summed = found.boundary > 0 and program.boundaries[found.boundary].summed
                if len(pieces) > 1 or summed:
                    moved += prod(here.import_shape(number)) + 2 * sum(pieces)
        if kind in (B, I):
            for layer, pieces in self._returning(segment, local_rank).items():
                whole = prod(here.output_shape(layer))
                if len(pieces) > 1 or any(values != whole for values in pieces):
                    moved += whole + 3 * sum(pieces)
        if kind in (B, W) and here.parameters:
            chunks = program.segments[segment].update_chunks or program.segments[segment].chunks
            reduced = (segment, local_rank) in self._reduced
            moved += here.parameters * (3 if chunks > 1 else 2 if reduced else 0)
        return moved * program.itemsize

    def _arriving(self, boundary: int) -> Pieces:
        """By local rank, the values of each piece of an import of a chunk."""
        found = self._inputs.get(boundary)
        if found is None:
            found = self._inputs[boundary] = defaultdict(list)
            for message in self.program.boundaries[boundary].messages[0]:
                found[message.target].append(message.values)
        return found

    def _returning(self, segment: int, local_rank: int) -> dict[int, list[int]]:
        """By exported layer, the values of each piece of the gradient of its output of a chunk."""
        by_layer: defaultdict[int, list[int]] = defaultdict(list)
        for boundary in self.program.leaving[segment]:
            found = self._gradients.get(boundary.index)
            if found is None:
                found = self._gradients[boundary.index] = defaultdict(list)
                for message in chain.from_iterable(boundary.gradients):
                    found[message.source].append(message.values)
            by_layer[boundary.layer] += found[local_rank]
        return by_layer

    def _pieces(self, segment: int, local_rank: int) -> list[object]:
        """All that a part receives, as a key."""
        imports = self.program.segments[segment].imports
        arriving = [
            tuple(self._arriving(x.boundary)[local_rank]) for x in imports if x.boundary > 0
        ]
        returning = [tuple(x) for x in self._returning(segment, local_rank).values()]
        return [*arriving, None, *returning]

    def _layers(self, device: Device, segment: int, part: SegmentPart, direction: str) -> Work:
        """All layers of a part."""
        total = Work(0.0, 0.0)
        needs_input_grad = self.program.segments[segment].needs_input_grad
        for layer, needed in zip(part.layers, needs_input_grad, strict=True):
            now = direction
            if direction != "forward" and not needed:
                # the very first weights: no input gradient; before them nothing at all
                now = "backward_weight" if layer.tiles and direction != "backward_input" else ""
            if direction == "backward_weight" and not layer.tiles:
                now = ""
            if now:
                total += self.layer(device, layer, part.examples, now)  # type: ignore[arg-type]
        return total

    def layer(self, device: Device, layer: LayerPart, examples: int, direction: Pass) -> Work:
        """One pass of one layer part over so many images."""
        kind, dtype = layer.sized.kind, self.program.dtype
        if not layer.sized.layer.computes or not examples:
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
        self, rows: Sequence[tuple[int, LayerTime | BytesTime]], at: float, what: str
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
                f"write device.tflops.{dtype}, or another training.precision in the plan",
            )
        kind = layer.sized.kind
        peak *= self._reached(device, layer) if layer.macs_per_example else 1.0
        fraction = device.efficiency.get("memory", 1.0)
        if not layer.tiles:
            fraction = device.efficiency.get(kind, fraction)
        bandwidth = device.memory_bandwidth * fraction
        seconds = 0.0
        for kernel in layer.kernels(examples, direction, self.program.itemsize):
            arithmetic = kernel.flops / (peak * device.occupied(kernel.product))
            seconds += max(arithmetic, kernel.bytes / bandwidth) + device.kernel_overhead_s
        return seconds

    def _reached(self, device: Device, layer: LayerPart) -> float:
        """Fraction of the peak; of a kind that the file does not name, the lowest that it does."""
        kind, named = layer.sized.kind, device.efficiency
        if kind in named or kind in ("conv", "linear"):
            return named.get(kind, 1.0)
        lowest = min((named[x] for x in ("conv", "linear") if x in named), default=1.0)
        near = nearest(kind, [x for x in named if x not in kind_names()])
        meant = f" (is {near} meant for it?)" if near else ""
        note = f"{kind}: no efficiency is given{meant}, {lowest:g} of the peak is assumed"
        self.notes[note] = None
        return lowest

    def _update(self, device: Device, part: SegmentPart, bytes_: int) -> Work:
        """Reads weights, gradients and the optimizer's state, writes weights and state."""
        bytes_ = update_bytes(self.program, bytes_)
        if self.calibration is not None and self.calibration.optimizer:
            rows = [(row.bytes, row) for row in self.calibration.optimizer]
            return self._measured(rows, bytes_, "optimizer")
        tensors = sum(len(layer.tiles) for layer in part.layers)
        fraction = device.efficiency.get("memory", 1.0)
        seconds = device.update_accesses * bytes_ / (device.memory_bandwidth * fraction)
        seconds += tensors * device.kernel_overhead_s
        return Work(seconds, seconds)

    # -- communication ------------------------------------------------------------------------

    def message(self, source: int, target: int, size: int) -> tuple[float, float] | None:
        """Seconds before the bytes of a message flow, and how many flow: as many as take, at the
        link's speed, what was measured. None if nothing was."""
        if self.calibration is None or not self.calibration.links:
            return None
        key = (source, target, size)
        if key not in self._messages:
            level = self.cluster.network[self.cluster.level_between(source, target)].name
            points = sorted(
                (row.bytes, row.seconds) for row in self.calibration.links if row.level == level
            )
            found = None
            if points:
                route = self.topology.path(source, target)[0]
                whole = self._interpolate(points, size, f"messages over {level}")
                speed = min(self.topology.capacity[x] for x in route)
                latency, flowing = _divided(whole, size, speed, points[0][1])
                # so long as one end computes, whose stretch the engine adds: the other one waits
                found = latency, flowing / ((1 + self.calibration.transfer_stretch) / 2)
            self._messages[key] = found
        return self._messages[key]

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
                (ring_phase,) = ring(self.collectives.links, kind, size, group)
                capacity = self.topology.capacity
                whole = self._interpolate(points, size, f"{kind} over {len(group)} ranks")
                speed = min(capacity[x] / w for x, w in ring_phase.load)
                found = (
                    Phase(*_divided(whole, ring_phase.size, speed, points[0][1]), ring_phase.load),
                )
            self._phases[key] = found
        return self._phases[key]

    def sharing(self) -> Sharing | None:
        """What disturbs computations: on processors other ranks and transfers, as a calibration
        has seen it; on other devices transfers, where the cluster says so."""
        c = self.processors
        slowdown = [self.slowdown(rank) for rank in self.program.ranks]
        if c is not None:
            ranks = c.neighbours or self.cluster.devices_per_node
            return Sharing(ranks, c.threads, slowdown, c.transfer_stretch, c.post_s)
        if not any(device.transfer_slowdown for device, _ in self.cluster.kinds):
            return None
        return Sharing(1, 1, slowdown)

    def slowdown(self, rank: int) -> float:
        """Fraction of its speed that computation of a rank, of any replica, loses under a
        transfer."""
        if self.processors is not None:
            return self.processors.compute_slowdown
        return self.cluster.device(rank).transfer_slowdown

    def loading(self, rank: int) -> float:
        """Seconds of loading a rank's images of a step."""
        first = self.program.segments[0]
        part = first.parts.get(rank % self.program.ranks_per_replica)
        if part is None or self.calibration is None:
            return 0.0
        return part.examples * first.chunks * self.calibration.load_s.get(self.data, 0.0)

    def node(self, rank: int) -> int:
        """The machine whose processors a rank shares; of other devices, the device."""
        c = self.processors
        if c is None:
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


def update_bytes(program: Program, bytes_: int) -> int:
    """Bytes of float32 weights that the 2012 paper's update, fused, reads and writes as much for:
    what the update of a device is measured or given for.

    Args:
        bytes_: of the parameters that a STEP updates.
    """
    precision, optimizer = program.precision, program.optimizer
    held, wide = ITEMSIZE[precision.parameters], ITEMSIZE[precision.updated]
    state = sum(2 * wide for tensor in optimizer.state if not tensor.scalar)
    again = optimizer.reads_again * (wide + ITEMSIZE[precision.reduce])
    rounded = held if precision.master else 0
    moved = ITEMSIZE[precision.reduce] + 2 * wide + state + again + rounded
    return bytes_ // held * moved // ACCESSES


def _divided(seconds: float, size: float, speed: float, least: float) -> tuple[float, float]:
    """A measured time as latency, and as bytes at a link's speed: as many as take the rest.

    The latency is what bytes at that speed leave of the time, and at most ``least``, the time of
    the smallest size: a transfer that is slower than its link is so all along, not at its start.
    It may be quicker, too, since buffers take what is small.
    """
    latency = min(max(0.0, seconds - size / speed), least)
    return latency, (seconds - latency) * speed
