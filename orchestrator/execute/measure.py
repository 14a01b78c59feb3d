"""Measures what the simulator needs to know of a machine, on workers like those of a run.

Ranks of one machine share caches, memory and, while they transfer, cores. So everything that is
computed is timed twice, in turns: while every rank does the same, and while one rank does it and
the others wait. Layers are timed in their network's order, each with a graph of its own, on the
sizes that the given programs use. Seconds throughout.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.execute.distributed import connect, waits_for_all
from orchestrator.execute.host_memory import keep_freed_memory
from orchestrator.execute.measure_transfers import (
    MESSAGE_BYTES,
    REDUCED_BYTES,
    disturbance,
    measured_routes,
    time_messages,
    time_posts,
    time_reduction,
)
from orchestrator.execute.parameters import TORCH_DTYPE, SegmentParameters, Slot
from orchestrator.execute.transport import Transport
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.box import shape_of
from orchestrator.models.randomness import Draw
from orchestrator.models.sized import LayerPart
from orchestrator.optimizers import Sgd2012
from orchestrator.program.ops import Program

UPDATED_BYTES = (65_536, 1_048_576, 8_388_608, 67_108_864)
COPIED_BYTES = (65_536, 1_048_576, 8_388_608, 67_108_864)
LEAST_COMMUNICATIONS = 7  # they vary more than computations, and are quick


class Layer(NamedTuple):
    """Key of a layer time: the part itself (equal parts are measured once), images, pass."""

    part: LayerPart
    examples: int
    direction: str


@dataclass(frozen=True)
class MeasureJob:
    """What to measure.

    Args:
        chains: programs whose ranks' layer parts are timed; a rank takes the part of the program's
            rank of its number, round and round.
        link: a program over all ranks with an all-reduce over all of them.
        seconds: to spend on all rounds and the warm-up, about; two rounds at least.
    """

    chains: tuple[Program, ...]
    link: Program
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One rank's measurements: by what was measured, the seconds of every repeat.

    Args:
        layers, optimizer, copies: while all ranks do the same.
        layers_relief, optimizer_relief, copies_relief: the time while the others rest, over that
            just before it while all did the same.
        links: by peer and bytes; of rank 0 only.
        reductions: by bytes.
        posts: see :func:`time_posts`.
        compute_slowdown, transfer_stretch: see :func:`disturbance`.
    """

    layers: dict[Layer, list[float]]
    layers_relief: dict[Layer, list[float]]
    optimizer: dict[int, list[float]]
    optimizer_relief: dict[int, list[float]]
    links: dict[tuple[int, int], list[float]]
    reductions: dict[int, list[float]]
    copies: dict[int, list[float]]
    copies_relief: dict[int, list[float]]
    posts: list[float]
    compute_slowdown: float
    transfer_stretch: float


def measure(context: WorkerContext, job: MeasureJob) -> None:
    """One worker. Emits ``node``, ``progress`` (rank 0: what is being measured), ``measured``."""

    def tell(what: str) -> None:
        if context.rank == 0:
            context.emit("progress", what)

    context.emit("node", context.node)
    keep_freed_memory()  # as a run's workers do
    routes = measured_routes(context.world_size)
    transport = connect(job.link.for_rank(context.rank), None, context.timeout_s, routes)
    meter = Meter(context, job, transport)
    tell("warming up")
    begun = time.perf_counter()
    meter.warm_up()
    while meter.all_go_on(meter.rounds < 2 or time.perf_counter() - begun < job.seconds):
        tell(f"round {meter.rounds + 1}: layers, optimizer, memory")
        meter.round()
        tell(f"round {meter.rounds}: messages and all-reduces")
        meter.communicate()
    for _ in range(meter.rounds, LEAST_COMMUNICATIONS):
        meter.communicate()
    context.emit("measured", meter.measured())


class Meter:
    """Measures on one rank; all ranks call the same methods in the same order.

    In rounds: all that is measured in turn, so that a machine whose own speed changes gives the
    same to all.
    """

    def __init__(self, context: WorkerContext, job: MeasureJob, transport: Transport) -> None:
        self.rank, self.world_size = context.rank, context.world_size
        self.transport = transport
        self.rounds = 0
        chains = [Chain(program, self.rank % program.world_size) for program in job.chains]
        updates = [_timed(_update(size)) for size in UPDATED_BYTES]
        copies = [_timed(_copy(size)) for size in COPIED_BYTES]
        self._jobs = [*(chain.round for chain in chains), *updates, *copies]
        self._chains = len(chains)
        self._together: list[list[Any]] = [[] for _ in self._jobs]
        self._pairs: list[list[tuple[Any, Any]]] = [[] for _ in self._jobs]
        self._links: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._reductions: defaultdict[int, list[float]] = defaultdict(list)
        self._posts: list[float] = []
        self.disturbances: list[tuple[float, float]] = []

    def warm_up(self) -> None:
        """A round that does not count, in which memory is taken and caches fill."""
        for once in self._jobs:
            once()

    def round(self) -> None:
        """Every computation once on all ranks together, and right behind it once more on one rank
        while the others wait; on which, goes round."""
        self.rounds += 1
        for job, once in enumerate(self._jobs):
            self._barrier()
            self._together[job].append(once())
            self._barrier()  # nobody is still at work
            if self.world_size > 1 and self.rounds % self.world_size == self.rank:
                self._pairs[job].append((self._together[job][-1], once()))

    def all_go_on(self, goes_on: bool) -> bool:
        """What rank 0 says: its clock counts."""
        answer = torch.tensor(goes_on)
        with waits_for_all(self.rank, self.world_size, "to begin another round"):
            dist.broadcast(answer, 0)
        return bool(answer)

    def _barrier(self) -> None:
        with waits_for_all(self.rank, self.world_size, f"in round {self.rounds} of computations"):
            dist.barrier()

    def communicate(self) -> None:
        """Every message and all-reduce some times, and computation between and under transfers."""
        if self.world_size == 1:
            return
        what = f"in round {self.rounds} of messages and all-reduces"
        with waits_for_all(self.rank, self.world_size, what):
            self._communicate()

    def _communicate(self) -> None:
        for peer in range(1, self.world_size):
            for size in MESSAGE_BYTES:
                times = time_messages(self.rank, peer, size, self.transport)
                if self.rank == 0:
                    self._links[peer, size] += times
        group = tuple(range(self.world_size))
        for size in REDUCED_BYTES:
            self._reductions[size] += time_reduction(size, group, self.transport)
        self._posts += time_posts(self.rank, self.world_size, self.transport)
        self.disturbances.append(disturbance(group, self.transport))

    def measured(self) -> Measured:
        """All that has been measured so far."""
        count, together = self._chains, self._together
        lost, longer = zip(*(self.disturbances or [(0.0, 1.0)]), strict=True)
        copies = count + len(UPDATED_BYTES)
        return Measured(
            layers=_by_layer(together[:count]),
            layers_relief=_by_layer(
                [
                    [[(k, a / t) for (k, t), (_, a) in zip(*pair, strict=True)] for pair in pairs]
                    for pairs in self._pairs[:count]
                ]
            ),
            optimizer=dict(zip(UPDATED_BYTES, together[count:copies], strict=True)),
            optimizer_relief=_reliefs(UPDATED_BYTES, self._pairs[count:copies]),
            links=dict(self._links),
            reductions=dict(self._reductions),
            copies=dict(zip(COPIED_BYTES, together[copies:], strict=True)),
            copies_relief=_reliefs(COPIED_BYTES, self._pairs[copies:]),
            posts=self._posts,
            compute_slowdown=max(0.0, median(lost)),
            transfer_stretch=max(1.0, median(longer)),
        )


def _by_layer(rounds: list[list[list[tuple[Layer, float]]]]) -> dict[Layer, list[float]]:
    found: defaultdict[Layer, list[float]] = defaultdict(list)
    for chain in rounds:
        for rows in chain:
            for key, seconds in rows:
                found[key].append(seconds)
    return dict(found)


def _reliefs(
    sizes: Sequence[int], pairs: list[list[tuple[float, float]]]
) -> dict[int, list[float]]:
    return {size: [a / t for t, a in found] for size, found in zip(sizes, pairs, strict=True)}


# -- layers ---------------------------------------------------------------------------------------


class Chain:
    """The layer parts of one rank, run forward and backward one after another."""

    def __init__(self, program: Program, rank: int) -> None:
        self.program, self.rank = program, rank
        self.dtype = TORCH_DTYPE[program.dtype]
        self.steps: list[tuple[LayerPart, int, list[Tensor]]] = []
        generator = torch.Generator().manual_seed(0)

        def value(slot: Slot) -> Tensor:
            return torch.empty(slot.shape).normal_(0, 0.01, generator=generator)

        for segment in program.segments:
            part = segment.parts.get(rank)
            if part is None:
                continue
            parameters = SegmentParameters(
                part, optimizer=Sgd2012(), precision=program.precision,
                device=torch.device("cpu"), group=1, group_rank=0, sharded=False, value=value,
            )  # fmt: skip
            weights = iter(parameters.weights)
            for layer in part.layers:
                count = len(layer.tiles)
                self.steps.append((layer, part.examples, [next(weights) for _ in range(count)]))

    def round(self) -> list[tuple[Layer, float]]:
        """Seconds of every layer and pass, once."""
        return list(self._round())

    def _round(self) -> Iterator[tuple[Layer, float]]:
        kept: list[tuple[LayerPart, int, list[Tensor], list[Tensor], Tensor]] = []
        trained = False
        y: Tensor | None = None
        for layer, examples, weights in self.steps:
            inputs = self._inputs(layer, examples, y, trained=trained)
            begun = time.perf_counter()
            y = layer.compute(inputs, weights, self._draw(examples))
            yield Layer(layer, examples, "forward"), time.perf_counter() - begun
            kept.append((layer, examples, weights, inputs, y))
            trained = trained or bool(weights)
        del inputs, y
        gradient: Tensor | None = None
        while kept:
            layer, examples, weights, inputs, y = kept.pop()
            if gradient is None or gradient.shape != y.shape:
                gradient = torch.randn_like(y)
            trained_inputs = [x for x in inputs if x.requires_grad]
            found: tuple[Tensor, ...] = ()
            for direction, wanted in _passes(trained_inputs, weights).items():
                del found  # its memory is used again, as in a run
                begun = time.perf_counter()
                found = torch.autograd.grad(y, wanted, gradient, retain_graph=bool(weights))
                yield Layer(layer, examples, direction), time.perf_counter() - begun
            gradient = found[0] if trained_inputs else None

    def _inputs(
        self, layer: LayerPart, examples: int, before: Tensor | None, *, trained: bool
    ) -> list[Tensor]:
        """What a layer reads: what was computed before it, where that has the right shape."""
        found = []
        for value, box in zip(layer.sized.inputs, layer.reads, strict=True):
            shape = (examples, *shape_of(box))
            if value.integer:
                found.append(torch.zeros(shape, dtype=torch.int64))
            elif before is not None and tuple(before.shape) == shape and not found:
                found.append(before.detach().requires_grad_(trained))
            else:  # what a rank reads is not what it has just computed
                found.append(torch.randn(shape, dtype=self.dtype).requires_grad_(trained))
        return found

    @staticmethod
    def _draw(examples: int) -> Draw:
        return Draw(0, 0, torch.arange(examples), examples)


def _passes(inputs: list[Tensor], weights: list[Tensor]) -> dict[str, list[Tensor]]:
    """What to ask of autograd: both halves at once, and where there are weights each half alone."""
    if not weights:
        return {"backward": inputs} if inputs else {}
    if not inputs:
        return {"backward_weight": weights}
    return {
        "backward_input": inputs, "backward_weight": weights, "backward": [*inputs, *weights]
    }  # fmt: skip


# -- the rest of a device -------------------------------------------------------------------------


def _update(bytes_: int) -> Callable[[], object]:
    """The 2012 paper's, of so many bytes of float32 weights."""
    weight, momentum, gradient = (torch.randn(bytes_ // 4) for _ in range(3))
    update = Sgd2012().update([weight.requires_grad_()], {"momentum": [momentum]}, [True], 0.01)
    return lambda: update.step([gradient], 0.01, first=False)


def _copy(bytes_: int) -> Callable[[], object]:
    source, target = torch.randn(bytes_ // 4), torch.empty(bytes_ // 4)
    return lambda: target.copy_(source)


def _timed(act: Callable[[], object]) -> Callable[[], float]:
    def once() -> float:
        begun = time.perf_counter()
        act()
        return time.perf_counter() - begun

    return once
