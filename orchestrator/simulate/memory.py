"""How much memory every rank needs: its ops walked in the order in which it posts them.

What is alive, by name of the part it is counted under:

    parameters      weights and biases; one flat buffer a segment where the optimizer is sharded
    optimizer_state what the optimizer keeps for all of them, or for this rank's shard, and the
                    float32 masters of parameters with fewer bits
    gradients       a flat buffer from the start where they are summed over ranks; else tensor by
                    tensor, from a segment's first backward to its step
    inputs          what a segment reads, from its forward to its backward; nothing where it is a
                    view of the output before it
    activations     what autograd keeps inside a segment (:mod:`orchestrator.simulate.footprint`)
    outputs         what a segment gives, to the end of its backward
    received        a receive's buffer, from its posting to the op that reads it
    sent            the copies that an exchange makes of what does not lie together, one for all
                    who get the same; a shard's in a collective
    output_gradients  of inputs, from a backward to the backward that reads them
    workspace       needed for a moment inside the op at the peak

Approximations: the copies of an exchange in which a rank only sends are counted until its next
computation has ended, since they travel under it, and to its begin where it waits for messages of
the same peers; a framework's context and its allocator's holes are the cluster's ``reserved_GiB``.
Images and labels before they reach the device, and weights while they are drawn, are the host's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod
from operator import itemgetter
from typing import NamedTuple

from orchestrator.models.box import Box, Shape, volume
from orchestrator.program.boundary import Message
from orchestrator.program.ops import (
    ALL_GATHER,
    COMPUTE,
    FORWARD,
    LANE_OF,
    REDUCE_SCATTER,
    STEP,
    B,
    F,
    I,
    Op,
    Program,
    W,
)
from orchestrator.program.precision import ITEMSIZE
from orchestrator.program.segments import SegmentPart
from orchestrator.simulate.footprint import Footprint, Gradient, footprint

PARTS = (
    "parameters", "optimizer_state", "gradients", "inputs", "activations", "outputs", "received",
    "sent", "output_gradients", "workspace",
)  # fmt: skip
(
    _PARAMETERS, _STATE, _GRADIENTS, _INPUTS, _ACTIVATIONS, _OUTPUTS, _RECEIVED, _SENT,
    _OUTPUT_GRADIENTS, _WORKSPACE,
) = range(len(PARTS))  # fmt: skip


@dataclass(frozen=True)
class RankMemory:
    """What one rank needs.

    Args:
        peak_bytes: the most that is ever alive.
        peak_op: during this op.
        parts: the bytes at that moment by what they are; their sum is ``peak_bytes``.
        series: (op id, most bytes alive during it) in posting order, if asked for.
    """

    rank: int
    peak_bytes: int
    peak_op: Op
    parts: dict[str, int]
    series: tuple[tuple[int, int], ...] = field(default=(), repr=False)


def peak_memory(
    program: Program,
    ranks: Iterable[int] | None = None,
    *,
    series: bool = False,
    processor: bool = False,
) -> list[RankMemory]:
    """The peak of every listed rank (folded replicas need what the first one needs).

    Args:
        ranks: only these.
        series: keep the bytes of every op, for pictures.
        processor: the ranks are on processors, whose library copies what convolutions read, and
            where a part of an image is a view of it.
    """
    pieces = _Exchanges(program, onednn=processor and program.dtype in ("float32", "tfloat32"))
    wanted = program.ranks if ranks is None else ranks
    walked: dict[tuple[object, ...], RankMemory] = {}
    found = []
    for rank in wanted:
        alike = pieces.signature(rank)
        memory = walked.get(alike)
        if memory is None:
            memory = walked[alike] = _Walk(program, pieces, rank, series=series).result()
        found.append(_of_rank(memory, program, rank))
    return found


def _of_rank(memory: RankMemory, program: Program, rank: int) -> RankMemory:
    """The same for a rank whose ops are alike, one by one."""
    if memory.rank == rank:
        return memory
    theirs, mine = program.order[memory.rank], program.order[rank]
    peak_op = program.op(mine[theirs.index(memory.peak_op.id)])
    series = tuple((i, n) for i, (_, n) in zip(mine, memory.series, strict=False))
    return replace(memory, rank=rank, peak_op=peak_op, series=series)


class _Held(NamedTuple):
    """Bytes that a rank holds for an exchange.

    Args:
        received: buffers.
        copied: of what it sends, the copies of what does not lie together.
        all_copied: nothing is sent as it lies.
    """

    received: int
    copied: int
    all_copied: bool


class _Exchanges:
    """What is asked of boundaries again and again, answered once for all ranks and chunks."""

    def __init__(self, program: Program, *, onednn: bool) -> None:
        self.program, self.onednn = program, onednn
        self.borrowed = [b for b in program.boundaries if b.parameter]
        self._arriving: dict[tuple[int, int, str], dict[int, list[Message]]] = {}
        self._leaving: dict[int, dict[int, list[Message]]] = {}
        self._held: dict[tuple[int, int, int, bool], _Held] = {}
        self._footprints: dict[object, Footprint] = {}

    def signature(self, rank: int) -> tuple[object, ...]:
        """Equal for ranks that hold as much and whose ops are alike, as columns of a split are."""
        program, local_rank = self.program, rank % self.program.ranks_per_replica
        columns, ids = program.columns, program.order[rank]
        parts: list[object] = []
        for segment in program.segments:
            part = segment.parts.get(local_rank)
            if part is None:
                parts.append(None)
                continue
            parts += part.examples, part.sizes
            for number, found in enumerate(segment.imports):
                if found.boundary > 0:
                    shape = part.import_shape(number)
                    parts += [
                        (m.values, _is_view(m.given, shape))
                        for turn in range(program.boundaries[found.boundary].turns)
                        for m in self.arriving(found.boundary, turn, local_rank)
                        if m.source != local_rank
                    ]
                parts.append(None)
            for boundary in program.leaving[segment.index]:
                shape = part.output_shape(boundary.layer)
                parts += [
                    (m.turn, m.values, _is_view(m.taken, shape), m.target == local_rank)
                    for m in self.leaving(boundary.index, local_rank)
                ]
        if ids:
            mine = itemgetter(*ids)
            parts += mine(columns.kind), mine(columns.segment), mine(columns.microbatch)
            parts.append(mine(columns.bytes))
            sides = [
                t.sides if t is not None else () for t in map(columns.transfers.__getitem__, ids)
            ]
            parts.append(tuple([tuple([size for _, size in each]) for each in sides]))
        return tuple(parts)

    def arriving(self, boundary: int, turn: int, rank: int) -> list[Message]:
        """Messages from which a rank puts an import together."""
        return self._grouped(boundary, turn, "target", rank)

    def returned(self, boundary: int, turn: int, rank: int) -> list[Message]:
        """Messages whose gradients a rank cuts from an import's gradient."""
        return self._grouped(boundary, turn, "returned", rank)

    def _grouped(self, boundary: int, turn: int, how: str, rank: int) -> list[Message]:
        key = (boundary, turn, how)
        if key not in self._arriving:
            found = self.program.boundaries[boundary]
            by_target: defaultdict[int, list[Message]] = defaultdict(list)
            for message in (found.messages if how == "target" else found.gradients)[turn]:
                by_target[message.target].append(message)
            self._arriving[key] = by_target
        return self._arriving[key].get(rank, [])

    def leaving(self, boundary: int, rank: int) -> list[Message]:
        """Messages, of all turns, whose gradients come back for a rank's output."""
        if boundary not in self._leaving:
            by_source: defaultdict[int, list[Message]] = defaultdict(list)
            for message in chain.from_iterable(self.program.boundaries[boundary].gradients):
                by_source[message.source].append(message)
            self._leaving[boundary] = by_source
        return self._leaving[boundary].get(rank, [])

    def held(self, boundary: int, turn: int, rank: int, *, forward: bool) -> _Held:
        """What a rank holds for an exchange, forward or of gradients."""
        key = (boundary, turn, rank, forward)
        found = self._held.get(key)
        if found is None:
            found = self._held[key] = self._hold(boundary, turn, rank, forward=forward)
        return found

    def _hold(self, index: int, turn: int, rank: int, *, forward: bool) -> _Held:
        program, item = self.program, ITEMSIZE[self.program.precision.send]
        boundary = program.boundaries[index]
        side = (boundary.forward if forward else boundary.backward).sides[turn][rank]
        received = sum(message.values for _, message in side.receives) * item
        if not side.sends or boundary.parameter:  # that is rows of a table, as they lie
            return _Held(received, 0, all_copied=False)
        if forward:
            shape = program.segments[boundary.producer].parts[rank].output_shape(boundary.layer)
            boxes = {m.taken: m.values for _, m in side.sends}
        else:
            shape = program.segments[boundary.consumer].parts[rank].import_shape(boundary.number)
            boxes = {m.given: m.values for _, m in side.sends}
        precision = program.precision
        converted = ITEMSIZE[precision.send] != ITEMSIZE[precision.compute]
        copied = [n for box, n in boxes.items() if converted or not _is_view(box, shape)]
        return _Held(received, sum(copied) * item, all_copied=len(copied) == len(boxes))

    def footprint(self, segment: int, rank: int, *, split: bool) -> Footprint:
        """Of one rank's part of a segment; parts alike in every size share one."""
        part = self.program.segments[segment].parts[rank]
        sizes = tuple([(volume(x.out), x.reads, len(x.tiles), x.parameters) for x in part.layers])
        key = (segment, part.examples, sizes, split)
        if key not in self._footprints:
            self._footprints[key] = footprint(
                self.program.segments[segment], part, self.program.itemsize,
                split=split, onednn=self.onednn,
            )  # fmt: skip
        return self._footprints[key]


class _Walk:
    """One rank's ops, in posting order, and what is alive between them."""

    def __init__(self, program: Program, exchanges: _Exchanges, rank: int, *, series: bool) -> None:
        self.program, self.exchanges, self.rank = program, exchanges, rank
        self.local_rank = rank % program.ranks_per_replica
        self.alive = [0] * len(PARTS)
        self.total = self.peak = 0
        self.peak_op = -1
        self.at_peak = list(self.alive)
        self.series: list[tuple[int, int]] | None = [] if series else None
        self.received: defaultdict[tuple[str, int, int], int] = defaultdict(int)
        # by segment and chunk
        self.inputs: dict[tuple[int, int], int] = {}
        self.saved: dict[tuple[int, int], int] = {}
        self.outputs: dict[tuple[int, int], int] = {}
        self.owed: dict[tuple[int, int], list[Gradient]] = {}
        # by boundary and chunk of the reader
        self.input_gradients: dict[tuple[int, int], list[Gradient]] = {}
        self.gradients: dict[int, int] = {}
        # since the last computation, where this rank only sends: to whom, and bytes
        self.sent: list[tuple[tuple[int, ...], int]] = []
        self.exchanged: dict[int, int] = {}  # by exchange in which this rank receives, too
        # by boundary and chunk: gradients that are here until they are sent
        self.unsent: dict[tuple[int, int], int] = {}
        self.footprints: dict[int, Footprint] = {}
        self.reduced: set[int] = set()
        self._hold_parameters()

    def result(self) -> RankMemory:
        """Walk all ops."""
        columns = self.program.columns
        for i in self.program.order[self.rank]:
            kind, segment, chunk = columns.kind[i], columns.segment[i], columns.microbatch[i]
            if LANE_OF[kind] == COMPUTE:
                self._compute(i, kind, segment, chunk)
            elif columns.transfers[i] is not None:
                self._exchange(i, kind, segment, chunk)
            else:
                self._take_back(segment)
                if kind in (REDUCE_SCATTER, ALL_GATHER):
                    shard = columns.bytes[i] // len(columns.peers[i])
                    self._add(_SENT, shard)
                    self.sent.append(((), shard))
                self._note(i, 0)
        peak_op = self.program.op(max(self.peak_op, 0))
        parts = {name: n for name, n in zip(PARTS, self.at_peak, strict=True) if n}
        return RankMemory(self.rank, self.peak, peak_op, parts, tuple(self.series or ()))

    # -- what is there before the first op ----------------------------------------------------

    def _hold_parameters(self) -> None:
        program = self.program
        precision = program.precision
        held, reduced = ITEMSIZE[precision.parameters], ITEMSIZE[precision.reduce]
        kept = [t for t in program.optimizer.state if not t.scalar]
        wide = ITEMSIZE[precision.updated]
        split = W in map(program.columns.kind.__getitem__, program.order[self.rank])
        for segment, buckets in zip(program.segments, program.buckets, strict=True):
            part = segment.parts.get(self.local_rank)
            if part:
                self.footprints[segment.index] = self.exchanges.footprint(
                    segment.index, self.local_rank, split=split
                )
                bucket = next((b for b in buckets if self.local_rank in b.ranks), None)
                group = (len(bucket.ranks) if bucket else 1) * program.replicas
                values, mastered, trained = part.parameters, part.parameters, part.trained
                if program.sharded and group > 1:
                    mastered = trained = -(-values // group)
                    values = mastered * group
                self._add(_PARAMETERS, (values + part.borrowed) * held)
                self._add(_STATE, (len(kept) * trained + bool(precision.master) * mastered) * wide)
                if group > 1:
                    self.reduced.add(segment.index)
                    self._add(_GRADIENTS, values * reduced)

    # -- computation --------------------------------------------------------------------------

    def _compute(self, i: int, kind: str, segment: int, chunk: int) -> None:
        for need in self.program.columns.needs[i]:
            self._add(_SENT, -self.exchanged.pop(need, 0))
        self._end_sends(i)
        travelling, self.sent = self.sent, []
        if kind == STEP:
            self._take_back(segment)
            self._note(i, 0)
            self._add(_GRADIENTS, -self.gradients.pop(segment, 0))
        elif kind == F:
            self._forward(i, segment, chunk)
        elif kind == W:
            self._weights(i, segment, chunk)
        else:
            self._backward(i, kind, segment, chunk)
        self._add(_SENT, -sum(size for _, size in travelling))

    def _end_sends(self, i: int) -> None:
        """Of two ranks that exchange something, both have it when one has."""
        columns, heard = self.program.columns, set[int]()
        for need in columns.needs[i] if self.sent else ():
            transfers = columns.transfers[need]
            heard |= {peer for peer, _ in transfers.receives} if transfers is not None else set()
        ended = [bool(peers) and heard.issuperset(peers) for peers, _ in self.sent]
        if any(ended):
            done = sum(size for (_, size), over in zip(self.sent, ended, strict=True) if over)
            self._add(_SENT, -done)
            self.sent = [x for x, over in zip(self.sent, ended, strict=True) if not over]

    def _forward(self, i: int, segment: int, chunk: int) -> None:
        mine = self.footprints[segment]
        if chunk == 0:
            for tie in self.exchanges.borrowed:
                if tie.consumer == segment:
                    self._add(_RECEIVED, -self.received.pop((F, tie.index, 0), 0))
        inputs = [self._take_import(i, n, segment, chunk) for n in range(len(mine.imports))]
        self.inputs[segment, chunk] = sum(inputs)
        if self.program.recomputes(segment, chunk):
            self._note(i, mine.bare_forward_most)
            saved = 0
        else:
            self._note(i, mine.forward_most)
            saved = mine.saved
        self.saved[segment, chunk] = saved
        self._add(_ACTIVATIONS, saved)
        if self.program.segments[segment].exports:
            self.outputs[segment, chunk] = sum(mine.outputs)
            self._add(_OUTPUTS, sum(mine.outputs))

    def _take_import(self, i: int, number: int, segment: int, chunk: int) -> int:
        """Put an import together; its bytes, 0 where it is a view of an output that is here."""
        found = self.footprints[segment].imports[number]
        index = self.program.segments[segment].imports[number].boundary
        if index < 0:
            found = max(found, self._data(segment, number))
            self._add(_INPUTS, found)
            return found
        boundary = self.program.boundaries[index]
        messages = self.exchanges.arriving(index, chunk % boundary.turns, self.local_rank)
        buffers = self.received.pop((F, index, chunk), 0)
        if len(messages) == 1 and not boundary.summed:
            only = messages[0]
            before = self.program.segments[boundary.producer].parts.get(self.local_rank)
            if only.source == self.local_rank and before is not None:
                found = 0 if _is_view(only.taken, before.output_shape(boundary.layer)) else found
            self._add(_RECEIVED, -buffers)
            self._add(_INPUTS, found)
            return found
        self._add(_INPUTS, found)
        self._note(i, 0)  # buffers and the tensor they are written into, both
        self._add(_RECEIVED, -buffers)
        return found

    def _data(self, segment: int, number: int) -> int:
        """Bytes of whole images, of which a processor's part is a view: 0 where it is a copy."""
        read = self.program.segments[segment].imports[number]
        part = self.program.segments[segment].parts[self.local_rank]
        one_run = all(len(ranges) == 1 for ranges in part.imports[number])
        if read.value.integer or not (self.exchanges.onednn and one_run):
            return 0
        return part.examples * prod(read.value.shape) * self.program.itemsize

    def _backward(self, i: int, kind: str, segment: int, chunk: int) -> None:
        mine, key = self.footprints[segment], (segment, chunk)
        recomputed = self.program.recomputes(segment, chunk)
        output = self.outputs.pop(key, 0)
        if recomputed:  # the output of the first forward was kept for its sending only
            self._add(_OUTPUTS, -output)
            output = 0
        gradients = [
            self._take_output_gradient(i, layer, segment, chunk)
            for layer in self.program.segments[segment].exports
        ]
        if recomputed:
            self._note(i, mine.forward_most)
            output = sum(mine.outputs)
            self._add(_OUTPUTS, output)
            self.saved[key] = mine.saved
            self._add(_ACTIVATIONS, mine.saved)
        self._note(i, mine.backward_most)
        made: dict[int, Gradient] = {}
        for number, found in enumerate(mine.import_gradients):
            if found is not None:
                own = made.setdefault(found.tensor, Gradient(found.held, 0))
                tensors = gradients[-1 - found.tensor] if found.tensor < 0 else [own]
                index = self.program.segments[segment].imports[number].boundary
                self._keep_input_gradient(index, chunk, found.size, tensors)
        if kind == I:  # W still needs inputs, outputs and some gradients of outputs
            left = mine.kept_after_input
            self._add(_ACTIVATIONS, left - self.saved[key])
            self.saved[key] = left
            self.outputs[key], self.owed[key] = output, []
            for tensors, owed in zip(gradients, mine.owed, strict=False):
                if owed:
                    self.owed[key] += tensors
                else:
                    self._release(tensors)
            return
        self._forget(key, output, [tensor for tensors in gradients for tensor in tensors])
        self._accumulate(i, segment)

    def _take_back(self, segment: int) -> None:
        """Gradients that those who borrow a segment's parameters have sent are added to its own."""
        for tie in self.exchanges.borrowed:
            if tie.producer == segment:
                for key in [key for key in self.received if key[:2] == (B, tie.index)]:
                    self._add(_RECEIVED, -self.received.pop(key))

    def _keep_input_gradient(
        self, index: int, chunk: int, size_: int, tensors: list[Gradient]
    ) -> None:
        """Until the backward that reads it here; where all of it is sent away, until it is sent."""
        turn = chunk % self.program.boundaries[index].turns
        messages = self.exchanges.returned(index, turn, self.local_rank)
        if any(message.source == self.local_rank for message in messages):
            self.input_gradients[index, chunk] = tensors
            for tensor in tensors:
                if not tensor.references:
                    self._add(_OUTPUT_GRADIENTS, tensor.size)
                tensor.references += 1
        else:
            self.unsent[index, chunk] = size_
            self._add(_SENT, size_)

    def _release(self, tensors: list[Gradient]) -> None:
        for tensor in tensors:
            tensor.references -= 1
            if not tensor.references:
                self._add(_OUTPUT_GRADIENTS, -tensor.size)

    def _weights(self, i: int, segment: int, chunk: int) -> None:
        mine, key = self.footprints[segment], (segment, chunk)
        self._note(i, mine.weight_most)
        self._forget(key, self.outputs.pop(key, 0), self.owed.pop(key, []))
        self._accumulate(i, segment)

    def _forget(self, key: tuple[int, int], output: int, gradients: list[Gradient]) -> None:
        self._add(_OUTPUTS, -output)
        self._release(gradients)
        self._add(_ACTIVATIONS, -self.saved.pop(key))
        self._add(_INPUTS, -self.inputs.pop(key))

    def _accumulate(self, i: int, segment: int) -> None:
        """Gradients that are not in a reduction's buffer, from the first backward to the step."""
        part = self.program.segments[segment].parts[self.local_rank]
        precision = self.program.precision
        held, summed = ITEMSIZE[precision.compute], ITEMSIZE[precision.reduce]
        own = 0 if segment in self.reduced else part.parameters
        if held != summed:
            self._convert(i, part, held, summed if own and segment not in self.gradients else 0)
        if segment not in self.gradients:
            self.gradients[segment] = (own + part.borrowed) * summed
            self._add(_GRADIENTS, self.gradients[segment])

    def _convert(self, i: int, part: SegmentPart, held: int, summed: int) -> None:
        """Gradients leave the format of the computation one after another."""
        sizes = [volume(tile.box) for layer in part.layers for tile in layer.tiles]
        now = most = sum(sizes) * held
        for size_ in sizes:
            most = max(most, now + size_ * summed)
            now += size_ * (summed - held)
        self._note(i, most)

    def _take_output_gradient(self, i: int, layer: int, segment: int, chunk: int) -> list[Gradient]:
        """Put the gradient of one output together; the tensors that it lies in."""
        buffers = 0
        local: list[Gradient] = []
        pieces: list[Message] = []
        for boundary in self.program.leaving[segment]:
            if boundary.layer == layer:
                for reader in range(chunk * boundary.turns, (chunk + 1) * boundary.turns):
                    buffers += self.received.pop((B, boundary.index, reader), 0)
                    local += self.input_gradients.pop((boundary.index, reader), [])
                pieces += self.exchanges.leaving(boundary.index, self.local_rank)
        values = prod(self.program.segments[segment].parts[self.local_rank].output_shape(layer))
        whole = values * self.program.itemsize
        if len(pieces) == 1 and pieces[0].values == values:
            # A view: of the buffer, or of the input gradient that it was cut from.
            self._add(_RECEIVED, -buffers)
            self._add(_OUTPUT_GRADIENTS, buffers)
            return [*local, Gradient(buffers)]
        self._add(_OUTPUT_GRADIENTS, whole)
        self._note(i, 0)
        self._add(_RECEIVED, -buffers)
        self._release(local)
        return [Gradient(whole)]

    # -- communication ------------------------------------------------------------------------

    def _exchange(self, i: int, kind: str, index: int, chunk: int) -> None:
        """Buffers for what is received; copies of what is sent and does not lie together."""
        forward = kind in FORWARD
        turn = chunk % self.program.boundaries[index].turns
        held = self.exchanges.held(index, turn, self.local_rank, forward=forward)
        if held.received:
            self.received[F if forward else B, index, chunk] += held.received
            self._add(_RECEIVED, held.received)
        self._add(_SENT, held.copied)
        self._note(i, 0)
        sent = held.copied
        gradient = 0 if forward else self.unsent.pop((index, chunk), 0)
        if held.all_copied:
            self._add(_SENT, -gradient)
        else:
            sent += gradient
        if held.received:
            self.exchanged[i] = sent
        elif sent:
            self.sent.append((self.program.columns.peers[i], sent))

    # -- bookkeeping --------------------------------------------------------------------------

    def _add(self, part: int, amount: int) -> None:
        self.alive[part] += amount
        self.total += amount

    def _note(self, i: int, workspace: int) -> None:
        """Op ``i`` needs so much on top of what is alive."""
        now = self.total + workspace
        if now > self.peak:
            self.peak, self.peak_op = now, i
            self.at_peak = list(self.alive)
            self.at_peak[_WORKSPACE] = workspace
        if self.series is not None:
            if self.series and self.series[-1][0] == i:
                now = max(now, self.series.pop()[1])
            self.series.append((i, now))


def _is_view(box: Box, shape: Shape) -> bool:
    """Whether a box of a tensor lies in memory as one piece: one run of examples, else whole."""
    return len(box[0]) == 1 and all(
        ranges == ((0, n),) for ranges, n in zip(box[1:], shape[1:], strict=True)
    )
