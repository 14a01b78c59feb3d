"""One rank's part of a program, carried out. The same for every executor; only transports differ.

The rank goes through its ops in the order of the program. A transfer is posted and left to itself;
a computation first lets the transfers that it needs end. A step is a generator: it yields a handle
that it has to wait for, and whoever drives it blocks on that handle, or lets another rank go on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from orchestrator.execute.device import Device, Mark
from orchestrator.execute.loss_scale import LossScale
from orchestrator.execute.parameters import TORCH_DTYPE, SegmentParameters, Slot
from orchestrator.execute.recording import Recorder
from orchestrator.execute.segment_runner import Place, SegmentRunner
from orchestrator.execute.transport import CountingTransport, Handle, Transport
from orchestrator.models.box import Box, shape_of, whole
from orchestrator.models.model import Recipe
from orchestrator.models.pieces import cut_out, put_in
from orchestrator.models.randomness import Draw
from orchestrator.models.ranges import Ranges, shift
from orchestrator.models.value import LABELS
from orchestrator.observe.timeline import Interval, RankTimes
from orchestrator.program.boundary import Boundary, Message, Side
from orchestrator.program.ledger import GRADIENT, Edge, ring_bytes
from orchestrator.program.ops import (
    COMPUTE,
    FORWARD,
    STEP,
    B,
    F,
    Op,
    RankProgram,
    W,
)
from orchestrator.program.segments import Import, SegmentPart


class Feed(Protocol):
    """Where a rank's images and labels come from. Samples are places in the step's global batch.

    The time that a call takes is the step's loading, no computation.
    """

    def images(self, step: int, samples: Tensor) -> Tensor:
        """(n, channels, height, width)."""

    def labels(self, step: int, samples: Tensor) -> Tensor:
        """(n,) int64."""


class Places(NamedTuple):
    """Where some examples are in the step's global batch, the same in every step."""

    on_host: Tensor
    on_device: Tensor


class Data(NamedTuple):
    """What a forward reads of the data set, on the device.

    Args:
        samples: places in the step's global batch.
        values: by import, its box of the examples' input or labels.
    """

    samples: Tensor
    values: dict[int, Tensor]


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
        messages: dict[int, list[Interval]] = {}
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
                intervals = [
                    (max(seconds(began), ready), max(seconds(ended), ready))
                    for began, ended in self.handles[op.id].marks()
                ]
                start = min(low for low, _ in intervals)
                end = max(high for _, high in intervals)
                if op.transfers is not None and len(op.transfers.sides) > 1:
                    if len(intervals) == 1:  # the group was not told apart
                        intervals *= len(op.transfers.sides)
                    messages[op.id] = intervals
            ops[op.id] = (ready, start, end)
        return RankTimes(self.rank, self.step, begin, seconds(self.finish), ops, loading, messages)


class Recording:
    """What a rank's interpreter records of one step.

    Attributes:
        passes: of every layer.
        returned: by boundary, chunk of the reader and message, the gradient that came back.
        updated: by segment, the summed gradients of what this rank updates, flat; of the step's
            first update.
    """

    def __init__(self) -> None:
        self.passes: Recorder[Place] = Recorder()
        self.returned: dict[tuple[int, int, Message], Tensor] = {}
        self.updated: dict[int, Tensor] = {}

    def updates(self, segment: int, parameters: SegmentParameters) -> None:
        """Keep the gradients that an update is about to be made with."""
        gradients = parameters.target_gradients()
        if segment not in self.updated and gradients:
            self.updated[segment] = torch.cat([gradient.flatten() for gradient in gradients])


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
        program: RankProgram,
        transport: Transport,
        feed: Feed,
        recipe: Recipe,
        device: Device,
        value: Callable[[Slot], Tensor],
    ) -> None:
        self.program, self.rank = program, program.rank
        self.transport = CountingTransport(transport, self.rank)
        self.feed, self.recipe, self.device = feed, recipe, device
        self.replica, self.local_rank = program.replica, program.local_rank
        self.ops = program.ops
        listed: set[int] = set()
        for op in self.ops:
            if not listed.issuperset(op.needs):
                raise ValueError(
                    f"rank {self.rank}: {op} needs what its rank has not listed before it"
                )
            listed.add(op.id)
        self.dtype = TORCH_DTYPE[program.precision.compute]
        self.send_dtype = TORCH_DTYPE[program.precision.send]
        assert recipe.updates.state == program.optimizer.state, "the program is of this recipe"
        self.labels = program.global_batch * program.model.predictions
        self.parameters: dict[int, SegmentParameters] = {}
        self.runners: dict[int, SegmentRunner] = {}
        self._build(value)
        self.sent: Counter[Edge] = Counter()
        self.scale = LossScale.of(recipe.loss_scale)
        self.passes: bool | None = None  # this step's gradients, once they were looked at
        self.loss = torch.zeros((), dtype=torch.float64)
        self.recording: Recording | None = None
        self.number = -2  # of the step before; none yet
        self.left: Mark = None
        self.rehearsing = False  # a step whose values are thrown away
        self.places: dict[tuple[int, int], Places] = {}
        self._reset()

    def _build(self, value: Callable[[Slot], Tensor]) -> None:
        program = self.program
        split = any(op.kind == W for op in self.ops)
        for segment, buckets in zip(program.segments, program.buckets, strict=True):
            part = segment.parts.get(self.local_rank)
            if part:
                bucket = next((b for b in buckets if self.local_rank in b.ranks), None)
                ranks = len(bucket.ranks) if bucket else 1
                group_rank = bucket.ranks.index(self.local_rank) if bucket else 0
                parameters = SegmentParameters(
                    part, optimizer=self.recipe.updates, precision=program.precision,
                    device=self.device.torch, value=value,
                    group=ranks * program.replicas, group_rank=self.replica * ranks + group_rank,
                    sharded=program.sharded,
                )  # fmt: skip
                self.parameters[segment.index] = parameters
                self.runners[segment.index] = SegmentRunner(
                    segment, part, parameters, split=split,
                    loss_scale=1 / self.labels,
                )  # fmt: skip
        self.borrows = [b for b in program.boundaries if b.parameter]

    def _reset(self) -> None:
        self.handles: dict[int, Handle] = {}
        # by direction, boundary and chunk: what each rank sends
        self.incoming: dict[tuple[str, int, int], dict[int, Tensor]] = {}
        # by segment, layer and chunk
        self.outputs: dict[tuple[int, int, int], Tensor] = {}
        # by boundary and chunk of the reader; messages yet to be cut from each
        self.input_gradients: dict[tuple[int, int], Tensor] = {}
        self.uncut: dict[tuple[int, int], int] = {}
        self.borrowed: set[int] = set()  # segments that have what they borrow of parameters
        self.taken_back: set[int] = set()  # boundaries of borrowed parameters
        for parameters in self.parameters.values():
            parameters.borrowed_gradients.clear()
        self.marks: dict[int, tuple[Mark, Mark]] = {}
        self.asked: dict[int, Mark] = {}
        self.passes = None

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
        for runner in self.runners.values():
            runner.loss_scale = self.scale.value / self.labels
        for op in self.ops:
            for need in op.needs:
                handle = self.handles.get(need)
                if handle is not None:
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
        for handle in self.handles.values():  # what follows the step finds all of it ended
            if not handle.done():
                yield handle
            handle.join()
        self.scale.note(updated=self.passes is not False)
        self.finish = self.left = self.device.mark(COMPUTE)

    def record(self) -> Recording:
        """Record what follows: one step."""
        self.recording = Recording()
        for runner in self.runners.values():
            runner.recorder = self.recording.passes
        return self.recording

    def rest(self) -> None:
        """What the host does now belongs to no step: the next one begins when it is called."""
        self.number = -2

    def state_bytes(self) -> int:
        """Bytes that stay from step to step: weights, optimizer state and flat gradients."""
        storages = {}
        for parameters in self.parameters.values():
            for tensor in parameters.tensors():
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
                op = next(op for op in self.ops if op.id == i)
                peers = ", ".join(str(p) for p in op.peers if p != self.rank)
                layer = self.program.reader_of(op)
                return f"rank {self.rank} waits for rank {peers} at {op} ({op.kind} before {layer})"
        return f"rank {self.rank} waits"

    # -- loading ------------------------------------------------------------------------------

    def _load(self, op: Op) -> Data:
        """What a forward reads of the data set. Where it reads any, marks when it was asked for."""
        segment = self.program.segments[op.segment]
        part = self.runners[op.segment].part
        places = self._places(op.segment, op.microbatch, part.batch)
        wanted = [n for n, found in enumerate(segment.imports) if found.boundary < 0]
        if wanted:
            self.asked[op.id] = self.device.mark(COMPUTE)
        values = {
            n: self._read(segment.imports[n], part.imports[n], places.on_host) for n in wanted
        }
        return Data(places.on_device, values)

    def _places(self, segment: int, chunk: int, batch: Ranges) -> Places:
        """Of a chunk's examples; loaded once, since a copy that is not of pinned memory waits."""
        if (segment, chunk) not in self.places:
            samples = self._samples(segment, chunk, batch)
            self.places[segment, chunk] = Places(samples, self.device.load(samples))
        return self.places[segment, chunk]

    def _read(self, found: Import, box: Box, samples: Tensor) -> Tensor:
        """A box of some examples' input or labels."""
        feed = self.feed.labels if found.source == LABELS else self.feed.images
        data = feed(self.number, samples)
        if box != whole(found.value.shape):
            data = cut_out(data, (((0, len(data)),), *box))
        loaded = self.device.load(data)
        return loaded if found.value.integer else loaded.to(self.dtype)

    # -- computation --------------------------------------------------------------------------

    def _compute(self, op: Op, data: Data | None) -> None:
        segment, chunk = op.segment, op.microbatch
        if op.kind == STEP:
            whole = self.program.segments[segment]
            update = whole.update_chunks * whole.chunk
            scale = self.program.global_batch / update if update else 1.0
            self._take_back(segment)
            if self.recording is not None:
                self.recording.updates(segment, self.parameters[segment])
            if self.passes is None:
                every = self.parameters.values() if self.scale.dynamic else ()
                self.passes = self.scale.passes(g for p in every for g in p.target_gradients())
            if self.passes:
                self.parameters[segment].step(self.recipe.lr, scale, self.scale.value)
            else:
                self.parameters[segment].forget_gradients()
            return
        runner = self.runners[segment]
        if data is not None:
            self._forward(op, runner, data)
        elif op.kind == W:
            runner.backward_weight(chunk)
        else:
            if self.program.segments[segment].has_loss:
                self._check_loss()
            gradients = self._output_gradients(segment, chunk)
            backward = runner.backward if op.kind == B else runner.backward_input
            imports = self.program.segments[segment].imports
            for found, gradient in zip(imports, backward(chunk, gradients), strict=True):
                if gradient is not None:
                    self._keep_input_gradient(found.boundary, chunk, gradient)

    def _forward(self, op: Op, runner: SegmentRunner, data: Data) -> None:
        number, chunk = op.segment, op.microbatch
        segment, part = self.program.segments[number], runner.part
        if number not in self.borrowed:
            self.borrowed.add(number)
            self._borrow(number)
        imports = tuple(
            data.values[n] if found.boundary < 0 else self._import(found, n, part, chunk)
            for n, found in enumerate(segment.imports)
        )
        draw = Draw(self.recipe.seed, self.number, data.samples, self.program.global_batch)
        recompute = self.program.recomputes(number, chunk)
        outputs = runner.forward(chunk, imports, draw, recompute=recompute)
        if segment.has_loss:
            self.loss += outputs.pop(len(part.layers) - 1).double() / self.scale.value
        for layer in segment.exports:
            self.outputs[number, layer, chunk] = outputs[layer]

    def _check_loss(self) -> None:
        """Before a gradient is made of it: so nothing of it has left this rank.

        A GPU is waited for here, once a microbatch on the ranks that have a loss.
        """
        if not torch.isfinite(self.loss) and not self.rehearsing:
            raise LossNotFinite(f"step {self.number + 1}: the loss is {float(self.loss)}")

    def _samples(self, segment: int, chunk: int, batch: Ranges) -> Tensor:
        """Places in the step's global batch of a part's examples."""
        program = self.program
        base = chunk * program.segments[segment].chunk
        if program.replicas > 1:
            base += self.replica * (program.global_batch // program.replicas)
        runs = shift(batch, base)
        return torch.cat([torch.arange(a, b) for a, b in runs])

    def samples_of(self, source: str) -> Tensor:
        """All of a step's examples whose input or labels this rank reads, ascending."""
        found = [torch.empty(0, dtype=torch.int64)]
        for segment in self.program.segments:
            part = segment.parts.get(self.local_rank)
            if part is not None and any(x.source == source for x in segment.imports):
                found += [
                    self._samples(segment.index, chunk, part.batch)
                    for chunk in range(segment.chunks)
                ]
        samples: Tensor = torch.unique(torch.cat(found))
        return samples

    def _import(self, found: Import, number: int, part: SegmentPart, chunk: int) -> Tensor:
        """A later segment's input, put together from what is here and what was received."""
        boundary = self.program.boundaries[found.boundary]
        turn = chunk % boundary.turns
        messages = [m for m in boundary.messages[turn] if m.target == self.local_rank]
        received = self.incoming.pop((F, boundary.index, chunk), {})
        key = (boundary.producer, boundary.layer, chunk // boundary.turns)
        here = self.outputs.get(key)
        shape = part.import_shape(number)
        whole_of_it = len(messages) == 1 and messages[0].values == prod(shape)
        if whole_of_it and not boundary.summed:
            only = messages[0]
            if only.source != self.local_rank:
                return received[only.source].view(shape).to(self.dtype)
            assert here is not None
            return cut_out(here, only.taken).contiguous()
        x = torch.zeros(shape, dtype=self.dtype, device=self.device.torch)
        for message in sorted(messages, key=lambda m: m.source):
            if message.source == self.local_rank:
                assert here is not None
                piece = cut_out(here, message.taken)
            else:
                piece = received.pop(message.source)
            put_in(x, message.given, piece, add=boundary.summed)
        return x

    # -- parameters that one layer borrows from another ---------------------------------------

    def _borrow(self, segment: int) -> None:
        """Take what the owners have sent, or hold here, of a segment's borrowed parameters."""
        for tie in self.borrows:
            if tie.consumer != segment:
                continue
            received = self.incoming.pop((F, tie.index, 0), {})
            borrowed = self._borrowed(tie)
            with torch.no_grad():
                for message in tie.messages[0]:
                    if message.target != self.local_rank:
                        continue
                    if message.source == self.local_rank:
                        owner = self.parameters[tie.producer].named(tie.parameter)
                        piece = cut_out(owner, message.taken)
                    else:
                        piece = received.pop(message.source)
                    put_in(borrowed, message.given, piece, add=False)

    def _borrowed(self, tie: Boundary, *, gradient: bool = False) -> Tensor:
        """The tensor that holds a borrowed parameter here, or its gradient."""
        parameters = self.parameters[tie.consumer]
        (number,) = [
            n for n in parameters.borrowed
            if parameters.every[n].name == f"{tie.reader}.{tie.borrowed_as}"
        ]  # fmt: skip
        return (parameters.borrowed_gradients if gradient else parameters.borrowed)[number]

    def _take_back(self, segment: int) -> None:
        """Add what those who borrow a segment's parameters return of their gradients, once."""
        for tie in self.borrows:
            if tie.producer != segment or tie.index in self.taken_back:
                continue
            self.taken_back.add(tie.index)
            parameters = self.parameters[segment]
            for key in [key for key in self.incoming if key[:2] == (B, tie.index)]:
                received = self.incoming.pop(key)
                for sender, message in tie.backward.sides[0][self.local_rank].receives:
                    piece = received.pop(sender)
                    parameters.add_gradient(tie.parameter, message.taken, piece)
            for message in tie.backward.kept[0]:
                if message.source == self.local_rank:
                    piece = cut_out(self._borrowed(tie, gradient=True), message.given)
                    parameters.add_gradient(tie.parameter, message.taken, piece)

    def _output_gradients(self, segment: int, chunk: int) -> dict[int, Tensor]:
        """By layer, the gradient of its output: the sum over all who read it. None of the loss."""
        part = self.program.segments[segment].parts[self.local_rank]
        pieces: defaultdict[int, list[tuple[Message, Tensor]]] = defaultdict(list)
        for boundary in self.program.leaving[segment]:
            self.outputs.pop((segment, boundary.layer, chunk), None)
            imports = self.program.segments[boundary.consumer].imports
            if imports[boundary.number].trained:
                pieces[boundary.layer] += self._gradient_pieces(boundary, chunk)
        found = {}
        for layer, given in pieces.items():
            shape = part.output_shape(layer)
            if len(given) == 1 and given[0][1].numel() == prod(shape):
                found[layer] = given[0][1].reshape(shape).to(self.dtype)
                continue
            total = torch.zeros(shape, dtype=self.dtype, device=self.device.torch)
            for message, piece in given:
                put_in(total, message.taken, piece, add=True)
            found[layer] = total
        return found

    def _gradient_pieces(self, boundary: Boundary, chunk: int) -> list[tuple[Message, Tensor]]:
        """What the readers behind a boundary return of one chunk of an output."""
        found = []
        for reader in range(chunk * boundary.turns, (chunk + 1) * boundary.turns):
            received = self.incoming.pop((B, boundary.index, reader), {})
            messages = [
                m for m in boundary.gradients[reader % boundary.turns]
                if m.source == self.local_rank
            ]  # fmt: skip
            for message in sorted(messages, key=lambda m: m.target):
                if message.target == self.local_rank:
                    piece = self._from_input_gradient(boundary.index, reader, message)
                else:
                    piece = received.pop(message.target)
                found.append((message, piece))
                if self.recording is not None:
                    self.recording.returned[boundary.index, reader, message] = piece.clone()
        return found

    def _keep_input_gradient(self, index: int, chunk: int, gradient: Tensor) -> None:
        """Keep a gradient until every message (and what stays here) has been cut from it."""
        boundary = self.program.boundaries[index]
        messages = boundary.gradients[chunk % boundary.turns]
        count = sum(m.target == self.local_rank for m in messages)
        if count:
            self.uncut[index, chunk] = count
            self.input_gradients[index, chunk] = gradient

    def _from_input_gradient(self, index: int, chunk: int, message: Message) -> Tensor:
        piece = cut_out(self.input_gradients[index, chunk], message.given)
        self._is_cut(index, chunk)
        return piece

    def _is_cut(self, index: int, chunk: int) -> None:
        """One message fewer to be cut from an input's gradient."""
        self.uncut[index, chunk] -= 1
        if not self.uncut[index, chunk]:
            del self.input_gradients[index, chunk]

    # -- communication ------------------------------------------------------------------------

    def _post(self, op: Op) -> Handle:
        if op.transfers is None:
            return self._reduce(op)
        program, forward = self.program, op.kind in FORWARD
        boundary = program.boundaries[op.segment]
        crossing = boundary.forward if forward else boundary.backward
        side = crossing.sides[op.microbatch % boundary.turns][self.local_rank]
        base = self.rank - self.local_rank
        sends = self._outgoing(op, boundary, side)
        receives = [
            (peer, torch.empty(shape_of(m.taken), dtype=self.send_dtype, device=self.device.torch))
            for peer, m in side.receives
        ]
        if receives:
            self.incoming[F if forward else B, op.segment, op.microbatch] = dict(receives)
        self._count_messages(op, sends)
        self._ready(op)
        return self.transport.exchange(
            op.transfers.route,
            [(base + peer, tensor) for peer, tensor in sends],
            [(base + peer, tensor) for peer, tensor in receives],
        )

    def _ready(self, op: Op) -> None:
        """What a transfer needs has been queued: its channel goes on from here."""
        self.device.order(op.channel, COMPUTE)
        posted = self.device.mark(op.channel)
        self.marks[op.id] = (posted, posted)

    def _outgoing(self, op: Op, boundary: Boundary, side: Side) -> list[tuple[int, Tensor]]:
        """What goes to whom; those who get the same get one tensor."""
        forward = op.kind in FORWARD
        cut: dict[Box, Tensor] = {}
        found = []
        for peer, message in side.sends:
            box = message.taken if forward else message.given
            if box not in cut:
                piece = self._source(op, boundary, message)
                cut[box] = piece.to(self.send_dtype).contiguous()
            elif not forward and not boundary.parameter:
                self._is_cut(op.segment, op.microbatch)
            found.append((peer, cut[box]))
        return found

    def _source(self, op: Op, boundary: Boundary, message: Message) -> Tensor:
        """The piece of a tensor that a message carries."""
        forward = op.kind in FORWARD
        if boundary.parameter:
            if forward:
                owner = self.parameters[boundary.producer].named(boundary.parameter)
                return cut_out(owner.detach(), message.taken)
            return cut_out(self._borrowed(boundary, gradient=True), message.given)
        if forward:
            key = (boundary.producer, boundary.layer, op.microbatch // boundary.turns)
            return cut_out(self.outputs[key], message.taken)
        return self._from_input_gradient(op.segment, op.microbatch, message)

    def _reduce(self, op: Op) -> Handle:
        parameters = self.parameters[op.segment]
        self._take_back(op.segment)
        tensor = parameters.flat if op.kind == "ALL_GATHER" else parameters.flat_gradient
        assert tensor is not None
        self._count_buffer(op, tensor)
        self._ready(op)
        return self.transport.collective(op.kind, tensor.detach(), op.peers)

    def _count_messages(self, op: Op, sends: Sequence[tuple[int, Tensor]]) -> None:
        """Bytes that an exchange sends, those of the tensors that it is handed."""
        layer, base = self.program.reader_of(op), self.rank - self.local_rank
        direction = "forward" if op.kind in FORWARD else "backward"
        for peer, tensor in sends:
            edge = Edge(self.rank, base + peer, layer, direction)
            self.sent[edge] += tensor.numel() * tensor.element_size()

    def _count_buffer(self, op: Op, tensor: Tensor) -> None:
        """A collective's ring equivalent for its buffer. The buffers themselves are counted by the
        transport that they are handed to."""
        layer = self.program.reader_of(op)
        group_rank = op.peers.index(self.rank)
        following = op.peers[(group_rank + 1) % len(op.peers)]
        values = ring_bytes(op.kind, tensor.numel(), len(op.peers), group_rank)
        self.sent[Edge(self.rank, following, layer, GRADIENT)] += values * tensor.element_size()
