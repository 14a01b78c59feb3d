"""Measures what the simulator needs to know of a machine, on workers like those of a run.

Every rank measures at the same time as the others, since on a processor they share memory and
caches; rank 0 then measures once more while the others rest. Layers are timed in their network's
order, each with a graph of its own, on the sizes that the given programs use. Seconds throughout.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.execute.distributed import connect
from orchestrator.execute.parameters import TORCH_DTYPE, SegmentParameters, Slot, sgd
from orchestrator.execute.transport import Transport
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.layers import CrossEntropy
from orchestrator.models.model import Recipe
from orchestrator.models.torch_layers import Draw, apply_layer, loss_sum
from orchestrator.program.ops import ALL_REDUCE, Program
from orchestrator.program.segments import LayerPart

MESSAGE_BYTES = (4096, 65_536, 524_288, 2_097_152, 8_388_608, 33_554_432)
REDUCED_BYTES = (65_536, 1_048_576, 8_388_608, 67_108_864)
UPDATED_BYTES = (65_536, 1_048_576, 8_388_608, 67_108_864)
COPIED_BYTES = 33_554_432


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
        seconds: to spend on one chain, about; it is repeated two times at least.
    """

    chains: tuple[Program, ...]
    link: Program
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One rank's measurements: by what was measured, the seconds of every repeat."""

    layers: dict[Layer, list[float]]
    optimizer: dict[int, list[float]]
    links: dict[tuple[int, int], list[float]]
    reductions: dict[int, list[float]]
    copies: list[float]
    alone_speedup: float
    compute_slowdown: float


def measure(context: WorkerContext, job: MeasureJob) -> None:
    """One worker. Emits ``progress`` (rank 0: what is being measured) and ``measured``."""

    def tell(what: str) -> None:
        if context.rank == 0:
            context.emit("progress", what)

    context.emit("node", context.node)
    transport = connect(job.link, context.rank, None)
    layers: defaultdict[Layer, list[float]] = defaultdict(list)
    for program in job.chains:
        tell(f"layers of {program.name}, batch {program.global_batch}")
        chain = Chain(program, context.rank % program.world_size)
        dist.barrier()
        for key, seconds in chain.repeat(job.seconds):
            layers[key].append(seconds)
        del chain
    tell("optimizer and memory")
    dist.barrier()
    optimizer = {n: _time_update(n) for n in UPDATED_BYTES}
    copies = _time_copies()
    speedup = _alone(context, job.chains[0], tell)
    tell("messages")
    links = {}
    for peer in range(1, context.world_size):
        for size in MESSAGE_BYTES:
            times = _time_messages(context.rank, peer, size, transport)
            if context.rank == 0:
                links[peer, size] = times
    tell("all-reduce")
    group = tuple(range(context.world_size))
    several = context.world_size > 1
    reductions = {n: _time_reduction(n, group, transport) for n in REDUCED_BYTES if several}
    tell("computation under transfers")
    slowdown = _slowdown(context.rank, transport) if several else 0.0
    measured = Measured(dict(layers), optimizer, links, reductions, copies, speedup, slowdown)
    context.emit("measured", measured)


# -- layers ---------------------------------------------------------------------------------------


class Chain:
    """The layer parts of one rank, run forward and backward one after another."""

    def __init__(self, program: Program, rank: int) -> None:
        self.program, self.rank = program, rank
        self.dtype = TORCH_DTYPE[program.dtype]
        self.recipe = Recipe()
        self.steps: list[tuple[LayerPart, int, list[Tensor]]] = []
        generator = torch.Generator().manual_seed(0)

        def value(slot: Slot) -> Tensor:
            rows = sum(b - a for a, b in slot.channels) if slot.tile is None else 0
            if slot.tile is None:
                return torch.zeros(rows)
            shape = slot.of(torch.empty(slot.layer.weight_shape, device="meta")).shape
            return torch.empty(shape).normal_(0, 0.01, generator=generator)

        for segment in program.segments:
            part = segment.parts.get(rank)
            if part is None:
                continue
            parameters = SegmentParameters(
                part, dtype=self.dtype, device=torch.device("cpu"), group=1, place=0,
                sharded=False, value=value,
            )  # fmt: skip
            weights = iter(parameters.weights)
            for layer in part.layers:
                count = len(layer.tiles) + bool(layer.bias)
                self.steps.append((layer, part.examples, [next(weights) for _ in range(count)]))

    def repeat(self, seconds: float) -> Iterator[tuple[Layer, float]]:
        """Times of every layer and pass, again and again; the first round is not counted."""
        begun, rounds = time.perf_counter(), 0
        list(self._round())
        while rounds < 2 or time.perf_counter() - begun < seconds:
            yield from self._round()
            rounds += 1

    def _round(self) -> Iterator[tuple[Layer, float]]:
        kept: list[tuple[LayerPart, int, list[Tensor], Tensor, Tensor]] = []
        first = self.steps[0]
        x = torch.randn(first[1], *_shape_in(first[0]), dtype=self.dtype)
        trained = False
        for layer, examples, weights in self.steps:
            shape = (examples, *_shape_in(layer))
            if tuple(x.shape) != shape:  # what a rank reads is not what it has just computed
                x = torch.randn(shape, dtype=self.dtype)
            x = x.detach().requires_grad_(trained)
            begun = time.perf_counter()
            y = self._forward(layer, x, weights)
            yield Layer(layer, examples, "forward"), time.perf_counter() - begun
            kept.append((layer, examples, weights, x, y))
            trained = trained or bool(weights)
            x = y
        del x, y
        gradient: Tensor | None = None
        while kept:
            layer, examples, weights, x, y = kept.pop()
            if gradient is None or gradient.shape != y.shape:
                gradient = torch.randn_like(y)
            inputs = [x] if x.requires_grad else []
            found: tuple[Tensor, ...] = ()
            for direction, wanted in _passes(inputs, weights).items():
                begun = time.perf_counter()
                found = torch.autograd.grad(y, wanted, gradient, retain_graph=bool(weights))
                yield Layer(layer, examples, direction), time.perf_counter() - begun
            gradient = found[0] if inputs else None

    def _forward(self, layer: LayerPart, x: Tensor, weights: list[Tensor]) -> Tensor:
        examples = len(x)
        if isinstance(layer.sized.layer, CrossEntropy):
            return loss_sum(layer.sized.layer, x, torch.zeros(examples, dtype=torch.int64))
        count = len(layer.tiles)
        return apply_layer(
            layer.sized, x, out=layer.part.out, reads=layer.part.reads, weights=weights[:count],
            bias=weights[count] if layer.bias else None, bias_channels=layer.bias,
            draw=Draw(0, 0, torch.arange(examples)),
        )  # fmt: skip


def _passes(inputs: list[Tensor], weights: list[Tensor]) -> dict[str, list[Tensor]]:
    """What to ask of autograd: both halves at once, and where there are weights each half alone."""
    if not weights:
        return {"backward": inputs} if inputs else {}
    if not inputs:
        return {"backward_weight": weights}
    return {
        "backward_input": inputs, "backward_weight": weights, "backward": [*inputs, *weights]
    }  # fmt: skip


def _shape_in(layer: LayerPart) -> tuple[int, ...]:
    channels = sum(b - a for a, b in layer.part.reads)
    return (channels, *layer.sized.input_shape[1:])


# -- the rest of a device -------------------------------------------------------------------------


def _time_update(bytes_: int) -> list[float]:
    weight, velocity, gradient = (torch.randn(bytes_ // 4) for _ in range(3))
    weight.requires_grad_().grad = gradient
    return _repeat(sgd([weight], [velocity], [True], Recipe()).step, 0.3)


def _time_copies() -> list[float]:
    source, target = torch.randn(COPIED_BYTES // 4), torch.empty(COPIED_BYTES // 4)
    return _repeat(lambda: target.copy_(source), 0.3)


def _repeat(once: Callable[[], object], seconds: float) -> list[float]:
    """Times of at least three calls, and as many as take so long; one before is not counted."""
    once()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds and len(times) < 50:
        begun = time.perf_counter()
        once()
        times.append(time.perf_counter() - begun)
    return times


def _alone(context: WorkerContext, program: Program, tell: Callable[[str], None]) -> float:
    """How much faster rank 0 is while the others wait."""
    if context.world_size == 1:
        return 1.0
    tell("one rank alone")
    chain = Chain(program, context.rank % program.world_size)
    list(chain._round())

    def rounds() -> list[float]:
        return [sum(seconds for _, seconds in chain._round()) for _ in range(3)]

    ratios = []
    for _ in range(2):
        dist.barrier()
        together = rounds()
        dist.barrier()
        if context.rank == 0:
            ratios.append(_median(together) / _median(rounds()))
        dist.barrier()
    return _median(ratios) if ratios else 1.0


# -- communication --------------------------------------------------------------------------------


def _time_messages(rank: int, peer: int, size: int, transport: Transport) -> list[float]:
    """Half of the way there and back, between rank 0 and a peer; empty on other ranks."""
    if rank not in (0, peer):
        return []
    other = peer if rank == 0 else 0
    tensor = torch.zeros(size // 4)
    times = []
    for _ in range(4 + max(3, min(20, 20_000_000 // size))):
        received = transport.receive(torch.empty_like(tensor), other)
        if rank == 0:
            begun = time.perf_counter()
            transport.send(tensor, other)
            received.wait()
            times.append((time.perf_counter() - begun) / 2)
        else:
            received.wait()
            transport.send(tensor, other).wait()
    return times[4:]


def _time_reduction(size: int, group: tuple[int, ...], transport: Transport) -> list[float]:
    tensor = torch.zeros(size // 4)

    def once() -> None:
        transport.collective(ALL_REDUCE, tensor, group).wait()

    times = []
    for _ in range(3 + max(3, min(20, 40_000_000 // size))):
        dist.barrier()
        begun = time.perf_counter()
        once()
        times.append(time.perf_counter() - begun)
    return times[3:]


def _slowdown(rank: int, transport: Transport) -> float:
    """Fraction of its speed that a computation loses while messages go both ways."""
    other = rank ^ 1
    x = torch.randn(512, 512)
    out = torch.empty(512, 512)

    def products() -> float:
        begun = time.perf_counter()
        for _ in range(40):
            torch.mm(x, x, out=out)
        return time.perf_counter() - begun

    products()
    dist.barrier()
    quiet = _median([products() for _ in range(5)])
    busy = []
    data = torch.zeros(8_388_608 // 4)
    paired = other < dist.get_world_size()
    for _ in range(5):
        dist.barrier()
        handles = []
        if paired:
            for _ in range(12):
                handles.append(transport.receive(torch.empty_like(data), other))
                handles.append(transport.send(data, other))
        begun, done = time.perf_counter(), 0
        while paired and not all(handle.done() for handle in handles) or not done:
            torch.mm(x, x, out=out)
            done += 1
        per_product = (time.perf_counter() - begun) / done
        busy.append(per_product * 40)
        for handle in handles:
            handle.wait()
    return max(0.0, 1 - quiet / _median(busy))


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
