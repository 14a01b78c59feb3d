"""One rank's part of a program, carried out. The same for every executor; only transports differ.

The rank goes through its ops in the order of the program. A transfer is posted and left to itself;
a computation first lets the transfers that it needs end. A step is a generator: it yields a handle
that it has to wait for, and whoever drives it blocks on that handle, or lets another rank go on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orchestrator.execute.device import Device, Mark
from orchestrator.execute.parameters import TORCH_DTYPE, SegmentParameters, Slot
from orchestrator.execute.segment_runner import SegmentRunner
from orchestrator.execute.transport import CountingTransport, Handle, Transport
from orchestrator.models.model import Recipe
from orchestrator.models.ranges import Ranges, shift, size
from orchestrator.models.torch_layers import Draw
from orchestrator.observe.timeline import Interval, RankTimes
from orchestrator.program.ledger import GRADIENT, Edge, ring_bytes
from orchestrator.program.ops import (
    COMPUTE,
    RECEIVE,
    REDUCE,
    SEND,
    SEND_F,
    STEP,
    B,
    F,
    Op,
    Program,
    W,
)
from orchestrator.program.segments import Message


class Feed(Protocol):
    """Where a rank's images and labels come from. Samples are places in the step's global batch.

    The time that a call takes is the step's loading, no computation.
    """

    def images(self, step: int, samples: Tensor) -> Tensor:
        """(n, channels, height, width)."""

    def labels(self, step: int, samples: Tensor) -> Tensor:
        """(n,) int64."""


class Data(NamedTuple):
    """What a forward reads of the data set, on the device; None where another segment does.

    Args:
        samples: places in the step's global batch, on the host.
    """

    samples: Tensor
    images: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Unread:
    """A queued step whose times and loss are not read yet: reading waits for the device.

    Args:
        marks: by op, its start and end; of a transfer when it was posted, twice.
        asked: by op, when its images or labels were asked for; they were there at its start.
    """

    rank: int
    step: int
    device: Device
    ops: tuple[Op, ...]
    marks: dict[int, tuple[Mark, Mark]]
    asked: dict[int, Mark]
    handles: dict[int, Handle]
    begin: Mark
    finish: Mark
    loss: Tensor

    def read(self) -> RankTimes:
        """When every op ran."""
        begin = self.device.seconds(self.begin)

        def seconds(mark: Mark) -> float:
            return begin + self.device.between(self.begin, mark)

        ops: dict[int, tuple[float, float, float]] = {}
        loading: dict[int, Interval] = {}
        done = begin
        for op in self.ops:
            first, last = self.marks[op.id]
            start, end = seconds(first), seconds(last)
            if op.lane == COMPUTE:
                ready = min(start, max([done, *(ops[n][2] for n in op.needs if n in ops)]))
                if op.id in self.asked:
                    loading[op.id] = (seconds(self.asked[op.id]), start)
                    ready = start
                done = end
            else:
                ready = start
                began, ended = (seconds(mark) for mark in self.handles[op.id].marks())
                start, end = max(began, ready), max(ended, ready)
            ops[op.id] = (ready, start, end)
        return RankTimes(self.rank, self.step, begin, seconds(self.finish), ops, loading)


class LossNotFinite(RuntimeError):
    """The loss of a step is infinite or not a number, and no gradient has been made of it."""


class RankInterpreter:
    """Runs the ops of one rank, step after step.

    Args:
        value: start value of a slot of this rank's parameters.
        recipe: learning rate and the rest of the update.
    """

    def __init__(
        self,
        program: Program,
        rank: int,
        transport: Transport,
        feed: Feed,
        recipe: Recipe,
        device: Device,
        value: Callable[[Slot], Tensor],
    ) -> None:
        self.program, self.rank = program, rank
        self.transport = CountingTransport(transport, rank)
        self.feed, self.recipe, self.device = feed, recipe, device
        self.replica, self.local_rank = divmod(rank, program.ranks_per_replica)
        self.ops = tuple(program.rank_ops(rank))
        self.dtype = TORCH_DTYPE[program.dtype]
        self.parameters: dict[int, SegmentParameters] = {}
        self.runners: dict[int, SegmentRunner] = {}
        self._build(value)
        self.sent: Counter[Edge] = Counter()
        self.loss = torch.zeros((), dtype=torch.float64)
        self.number = -2  # of the step before; none yet
        self.left: Mark = None
        self._reset()

    def _build(self, value: Callable[[Slot], Tensor]) -> None:
        program = self.program
        trained_before = False
        split = any(op.kind == W for op in self.ops)
        for segment, buckets in zip(program.segments, program.buckets, strict=True):
            part = segment.parts.get(self.local_rank)
            if part:
                bucket = next((b for b in buckets if self.local_rank in b.ranks), None)
                ranks = len(bucket.ranks) if bucket else 1
                place = bucket.ranks.index(self.local_rank) if bucket else 0
                parameters = SegmentParameters(
                    part, dtype=self.dtype, device=self.device.torch, value=value,
                    group=ranks * program.replicas, place=self.replica * ranks + place,
                    sharded=program.sharded,
                )  # fmt: skip
                self.parameters[segment.index] = parameters
                self.runners[segment.index] = SegmentRunner(
                    part, parameters, needs_input_gradient=trained_before,
                    loss_scale=1 / program.global_batch, split=split,
                )  # fmt: skip
            trained_before = trained_before or bool(buckets)

    def _reset(self) -> None:
        self.handles: dict[int, Handle] = {}
        self.buffers: dict[int, Tensor] = {}  # by receive
        self.incoming: defaultdict[tuple[str, int, int], dict[int, int]] = defaultdict(dict)
        self.outputs: dict[tuple[int, int], Tensor] = {}
        self.input_gradients: dict[tuple[int, int], Tensor] = {}
        self.owed: dict[tuple[int, int], int] = {}  # messages yet to be cut from an input gradient
        self.marks: dict[int, tuple[Mark, Mark]] = {}
        self.asked: dict[int, Mark] = {}

    # -- one step -----------------------------------------------------------------------------

    def step(self, step: int) -> Iterator[Handle]:
        """Run one training step; yields every handle that has to be waited for.

        A step begins where the one before it has ended, so that what the host does in between
        counts as the step's.
        """
        self._reset()
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device.torch)
        self.begin = self.left if self.number == step - 1 else self.device.mark(COMPUTE)
        self.number = step
        for op in self.ops:
            for need in op.needs:
                handle = self.handles.get(need)
                if handle is not None and op.lane == COMPUTE:
                    if not handle.done():
                        yield handle
                    handle.join()
            if op.lane == COMPUTE:
                data = self._load(op) if op.kind == F else None
                began = self.device.mark(COMPUTE)
                self._compute(op, data)
                self.marks[op.id] = (began, self.device.mark(COMPUTE))
            else:
                self.handles[op.id] = self._post(op)
        for handle in self.handles.values():
            if not handle.done():
                yield handle
        self.finish = self.left = self.device.mark(COMPUTE)

    def rest(self) -> None:
        """What the host does now belongs to no step: the next one begins when it is called."""
        self.number = -2

    def state_bytes(self) -> int:
        """Bytes that stay from step to step: weights, velocities and flat gradients."""
        storages = {}
        for parameters in self.parameters.values():
            flats = [t for t in (parameters.flat, parameters.flat_gradient) if t is not None]
            for tensor in [*parameters.weights, *parameters.velocities, *flats]:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def unread(self) -> Unread:
        """The last step's times and loss, to be read when convenient."""
        return Unread(
            self.rank, self.number, self.device, self.ops, self.marks, self.asked, self.handles,
            self.begin, self.finish, self.loss,
        )  # fmt: skip

    def waits_for(self, handle: Handle) -> str:
        """Which op a handle belongs to, in words."""
        for i, kept in self.handles.items():
            if kept is handle:
                op = self.program.op(i)
                peers = ", ".join(str(p) for p in op.peers if p != self.rank)
                layer = self.program.segments[op.segment].reader
                return f"rank {self.rank} waits for rank {peers} at {op} ({op.kind} before {layer})"
        return f"rank {self.rank} waits"

    # -- loading ------------------------------------------------------------------------------

    def _load(self, op: Op) -> Data:
        """What a forward reads of the data set. Where it reads any, marks when it was asked for."""
        segment = op.segment
        part = self.runners[segment].part
        samples = self._samples(segment, op.microbatch, part.batch)
        first, last = segment == 0, segment == len(self.program.segments) - 1
        if first or last:
            self.asked[op.id] = self.device.mark(COMPUTE)
        labels = self.device.load(self.feed.labels(self.number, samples)) if last else None
        images = self._load_images(samples, part.reads) if first else None
        return Data(samples, images, labels)

    def _load_images(self, samples: Tensor, channels: Ranges) -> Tensor:
        images = self.feed.images(self.number, samples)
        if size(channels) != images.shape[1]:
            images = torch.cat([images[:, a:b] for a, b in channels], 1)
        return self.device.load(images).to(self.dtype)

    # -- computation --------------------------------------------------------------------------

    def _compute(self, op: Op, data: Data | None) -> None:
        segment, chunk = op.segment, op.microbatch
        if op.kind == STEP:
            whole = self.program.segments[segment]
            update = whole.update_chunks * whole.chunk
            scale = self.program.global_batch / update if update else 1.0
            self.parameters[segment].step(self.recipe, scale)
            return
        runner = self.runners[segment]
        if data is not None:
            self._forward(op, runner, data)
        elif op.kind == W:
            runner.backward_weight(chunk)
        else:
            if segment == len(self.program.segments) - 1:
                self._check_loss()
            gradient = self._output_gradient(segment, chunk)
            backward = runner.backward if op.kind == B else runner.backward_input
            found = backward(chunk, gradient)
            if found is not None:
                self._keep_input_gradient(segment, chunk, found)

    def _forward(self, op: Op, runner: SegmentRunner, data: Data) -> None:
        segment, chunk = op.segment, op.microbatch
        x = data.images if data.images is not None else self._input(op, runner.part.input_shape)
        draw = Draw(self.recipe.seed, self.number, self.device.load(data.samples))
        recompute = self.program.recomputes(segment, chunk)
        y = runner.forward(chunk, x, draw, data.labels, recompute=recompute)
        if data.labels is not None:
            self.loss += y.double()
        else:
            self.outputs[segment, chunk] = y

    def _check_loss(self) -> None:
        """Before a gradient is made of it: so nothing of it has left this rank.

        A GPU is waited for here, once a microbatch on the ranks that have a loss.
        """
        if not torch.isfinite(self.loss):
            raise LossNotFinite(f"step {self.number + 1}: the loss is {float(self.loss)}")

    def _samples(self, segment: int, chunk: int, batch: Ranges) -> Tensor:
        """Places in the step's global batch of a part's examples."""
        program = self.program
        base = chunk * program.segments[segment].chunk
        if program.replicas > 1:
            base += self.replica * (program.global_batch // program.replicas)
        runs = shift(batch, base)
        return torch.cat([torch.arange(a, b) for a, b in runs])

    def samples_of(self, segment: int) -> Tensor:
        """All of a step's examples that this rank sees in a segment, ascending; empty if none."""
        part = self.program.segments[segment].parts.get(self.local_rank)
        if part is None:
            return torch.empty(0, dtype=torch.int64)
        chunks = range(self.program.segments[segment].chunks)
        return torch.cat([self._samples(segment, chunk, part.batch) for chunk in chunks])

    def _input(self, op: Op, shape: tuple[int, ...]) -> Tensor:
        """A later segment's input, put together from what is here and what was received."""
        segment, chunk = op.segment, op.microbatch
        boundary = self.program.boundaries[segment]
        turn = chunk % boundary.turns
        messages = [m for m in boundary.messages[turn] if m.target == self.local_rank]
        received = self.incoming.pop(("F", segment, chunk), {})
        here = self.outputs.get((segment - 1, chunk // boundary.turns))
        if len(messages) == 1 and not boundary.summed:
            only = messages[0]
            if only.source != self.local_rank:
                return self.buffers.pop(received[only.source]).view(shape)
            assert here is not None
            return cut_out(here, only.taken).contiguous()
        x = torch.zeros(shape, dtype=self.dtype, device=self.device.torch)
        for message in sorted(messages, key=lambda m: m.source):
            if message.source == self.local_rank:
                assert here is not None
                piece = cut_out(here, message.taken)
            else:
                piece = self.buffers.pop(received[message.source])
            put_in(x, message.given, piece, add=boundary.summed)
        return x

    def _output_gradient(self, segment: int, chunk: int) -> Tensor | None:
        """Gradient of a segment's output: the sum over all who read it. None behind the loss."""
        program = self.program
        self.outputs.pop((segment, chunk), None)
        following = segment + 1
        if following == len(program.segments):
            return None
        boundary = program.boundaries[following]
        part = program.segments[segment].parts[self.local_rank]
        turns = range(chunk * boundary.turns, (chunk + 1) * boundary.turns)
        pieces: list[tuple[Message, Tensor]] = []
        for reader in turns:
            received = self.incoming.pop(("B", following, reader), {})
            mine = [
                m for m in boundary.messages[reader % boundary.turns] if m.source == self.local_rank
            ]
            for message in sorted(mine, key=lambda m: m.target):
                if message.target == self.local_rank:
                    pieces.append((message, self._from_input_gradient(following, reader, message)))
                else:
                    pieces.append((message, self.buffers.pop(received[message.target])))
        if len(pieces) == 1 and pieces[0][1].numel() == _numel(part.output_shape):
            return pieces[0][1].reshape(part.output_shape)
        total = torch.zeros(part.output_shape, dtype=self.dtype, device=self.device.torch)
        for message, piece in pieces:
            put_in(total, message.taken, piece, add=True)
        return total

    def _keep_input_gradient(self, segment: int, chunk: int, gradient: Tensor) -> None:
        """Keep a gradient until every message (and what stays here) has been cut from it."""
        boundary = self.program.boundaries[segment]
        messages = boundary.messages[chunk % boundary.turns]
        self.owed[segment, chunk] = sum(m.target == self.local_rank for m in messages)
        self.input_gradients[segment, chunk] = gradient

    def _from_input_gradient(self, segment: int, chunk: int, message: Message) -> Tensor:
        piece = cut_out(self.input_gradients[segment, chunk], message.given)
        self.owed[segment, chunk] -= 1
        if not self.owed[segment, chunk]:
            del self.input_gradients[segment, chunk]
        return piece

    # -- communication ------------------------------------------------------------------------

    def _post(self, op: Op) -> Handle:
        if op.lane == REDUCE:
            return self._reduce(op)
        message = self._message(op)
        if op.lane == SEND:
            tensor = self._outgoing(op, message).contiguous()
            self._count(op, tensor)
            self._ready(op)
            return self.transport.send(tensor, op.peers[0])
        assert op.lane == RECEIVE
        forward = op.kind == "RECV_F"
        buffer = torch.empty(self._shape(op, message), dtype=self.dtype, device=self.device.torch)
        self.buffers[op.id] = buffer
        direction = "F" if forward else "B"
        sender = op.peers[0] % self.program.ranks_per_replica
        self.incoming[direction, op.segment, op.microbatch][sender] = op.id
        self._ready(op)
        return self.transport.receive(buffer, op.peers[0])

    def _ready(self, op: Op) -> None:
        """What a transfer needs has been queued: its lane goes on from here."""
        self.device.order(op.lane, COMPUTE)
        posted = self.device.mark(op.lane)
        self.marks[op.id] = (posted, posted)

    def _message(self, op: Op) -> Message:
        boundary = self.program.boundaries[op.segment]
        peer = op.peers[0] % self.program.ranks_per_replica
        forward = op.kind in (SEND_F, "RECV_F")
        gives = (op.lane == SEND) == forward  # whether this rank is the forward's source
        pair = (self.local_rank, peer) if gives else (peer, self.local_rank)
        turn = op.microbatch % boundary.turns
        return next(m for m in boundary.messages[turn] if (m.source, m.target) == pair)

    def _shape(self, op: Op, message: Message) -> tuple[int, ...]:
        sized = self.program.segments[op.segment].layers[0]
        return (size(message.taken[0]), size(message.taken[1]), *sized.input_shape[1:])

    def _outgoing(self, op: Op, message: Message) -> Tensor:
        if op.kind == SEND_F:
            turns = self.program.boundaries[op.segment].turns
            return cut_out(self.outputs[op.segment - 1, op.microbatch // turns], message.taken)
        return self._from_input_gradient(op.segment, op.microbatch, message)

    def _reduce(self, op: Op) -> Handle:
        parameters = self.parameters[op.segment]
        tensor = parameters.flat if op.kind == "ALL_GATHER" else parameters.flat_gradient
        assert tensor is not None
        self._count(op, tensor)
        self._ready(op)
        return self.transport.collective(op.kind, tensor.detach(), op.peers)

    def _count(self, op: Op, tensor: Tensor) -> None:
        """Bytes sent: a message's own, and a collective's ring equivalent for its buffer. The
        buffers themselves are counted by the transport that they are handed to."""
        layer = self.program.segments[op.segment].reader
        if op.lane == SEND:
            direction = "forward" if op.kind == SEND_F else "backward"
            edge = Edge(self.rank, op.peers[0], layer, direction)
            self.sent[edge] += tensor.numel() * tensor.element_size()
            return
        place = op.peers.index(self.rank)
        following = op.peers[(place + 1) % len(op.peers)]
        values = ring_bytes(op.kind, tensor.numel(), len(op.peers), place)
        self.sent[Edge(self.rank, following, layer, GRADIENT)] += values * tensor.element_size()


def cut_out(x: Tensor, where: tuple[Ranges, Ranges]) -> Tensor:
    """Examples and channels of x, as a view where they are one run each."""
    for dimension, ranges in enumerate(where):
        if ranges == ((0, x.shape[dimension]),):
            continue
        pieces = [x.narrow(dimension, a, b - a) for a, b in ranges]
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)
    return x


def put_in(x: Tensor, where: tuple[Ranges, Ranges], piece: Tensor, *, add: bool) -> None:
    """Write (or add) a piece where it belongs in x."""
    row = 0
    for a, b in where[0]:
        column = 0
        for c, d in where[1]:
            part = piece[row : row + b - a, column : column + d - c]
            target = x[a:b, c:d]
            if add:
                target += part
            else:
                target.copy_(part)
            column += d - c
        row += b - a


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
