"""Ops, and the program: one list of ops per rank, with everything that orders them.

One line of text per op, which parses back:

    7 1SEND_F0 peers=1 bytes=2768896 needs=5

is op 7: send what segment 1 reads, forward, chunk 0, to rank 1, 2,768,896 bytes, after op 5. The
line stands under its rank, in the order in which that rank posts its ops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.optimizers import Optimizer
from orchestrator.program.precision import Precision
from orchestrator.program.segments import Boundary, Bucket, Segment, leaving

F, B, I, W, STEP = "F", "B", "I", "W", "STEP"  # noqa: E741 - I is the field's letter
SEND_F, RECV_F, SEND_B, RECV_B = "SEND_F", "RECV_F", "SEND_B", "RECV_B"
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER = "ALL_REDUCE", "REDUCE_SCATTER", "ALL_GATHER"

COMPUTE, SEND, RECEIVE, REDUCE = "compute", "send", "receive", "reduce"
LANE_OF = {
    F: COMPUTE, B: COMPUTE, I: COMPUTE, W: COMPUTE, STEP: COMPUTE,
    SEND_F: SEND, SEND_B: SEND, RECV_F: RECEIVE, RECV_B: RECEIVE,
    ALL_REDUCE: REDUCE, REDUCE_SCATTER: REDUCE, ALL_GATHER: REDUCE,
}  # fmt: skip
KINDS = tuple(LANE_OF)


class Op(NamedTuple):
    """One thing that one rank does.

    Args:
        id: position in the order in which the program was compiled; ids in ``needs`` are smaller.
        rank: who does it.
        lane: ``compute``, ``send``, ``receive`` or ``reduce``. Ops of one rank's compute lane run
            one after another, as do those of its reduce lane, and those of its send or receive
            lane that have the same peer; in order of id.
        kind: F, B, I, W, STEP, SEND_F, RECV_F, SEND_B, RECV_B, ALL_REDUCE, REDUCE_SCATTER,
            ALL_GATHER.
        segment: the segment it computes, updates or reduces; for a send or receive the boundary
            that it crosses, which in a chain of layers is the number of the segment that reads.
        microbatch: the chunk of that segment; for a send or receive of the one that reads.
        peers: the other rank of a send or receive; the whole group of a collective.
        bytes: what is sent or received; the buffer of a collective (its full size on every rank);
            the parameters a STEP updates.
        flops: multiplications and additions.
        needs: ids of ops that must end before this one starts.
    """

    id: int
    rank: int
    lane: str
    kind: str
    segment: int
    microbatch: int
    peers: tuple[int, ...]
    bytes: int
    flops: int
    needs: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.segment}{self.kind}{self.microbatch}"


@dataclass
class Columns:
    """The ops as parallel lists, by id: a simulator with 10^6 ops reads them without objects."""

    rank: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    microbatch: list[int] = field(default_factory=list)
    peers: list[tuple[int, ...]] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    needs: list[tuple[int, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rank)

    def op(self, i: int) -> Op:
        """Op ``i`` as one object."""
        kind = self.kind[i]
        return Op(
            i, self.rank[i], LANE_OF[kind], kind, self.segment[i], self.microbatch[i],
            self.peers[i], self.bytes[i], self.flops[i], self.needs[i],
        )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What every rank does in one training step.

    Args:
        name: of the plan.
        model: what is computed.
        precision: number formats of activations, weights, gradients and messages.
        optimizer: how a STEP changes the weights.
        global_batch: examples of a step.
        replicas: copies of the placement; with ``folded`` only the first one's ops are listed.
        ranks_per_replica: ranks of one copy; rank = replica * ranks_per_replica + rank within.
        segments, boundaries, buckets: the static half (see :mod:`orchestrator.program.segments`).
        stages: ranks of every pipeline stage, within one replica.
        recompute: microbatches, the first ones, whose backward runs the forward again.
        sharded: the optimizer's state is sharded over each bucket's group (ZeRO stage 1).
        columns: the ops.
        order: by rank, ids in the order in which the rank posts them.
    """

    name: str
    model: Model
    precision: Precision
    optimizer: Optimizer
    global_batch: int
    n_microbatches: int
    replicas: int
    folded: bool
    ranks_per_replica: int
    stages: tuple[tuple[int, ...], ...]
    segments: tuple[Segment, ...]
    boundaries: tuple[Boundary, ...]
    buckets: tuple[tuple[Bucket, ...], ...]
    recompute: int
    sharded: bool
    columns: Columns
    order: tuple[tuple[int, ...], ...]

    @property
    def dtype(self) -> str:
        """Format of the computation."""
        return self.precision.compute

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return self.precision.itemsize

    @property
    def world_size(self) -> int:
        """Ranks in all, folded replicas included."""
        return self.replicas * self.ranks_per_replica

    @property
    def ranks(self) -> range:
        """Ranks whose ops are listed."""
        return range(len(self.order))

    def op(self, i: int) -> Op:
        """Op by id."""
        return self.columns.op(i)

    def ops(self) -> Iterator[Op]:
        """Every op, by id."""
        return map(self.columns.op, range(len(self.columns)))

    def rank_ops(self, rank: int) -> list[Op]:
        """One rank's ops in the order in which it posts them."""
        return [self.columns.op(i) for i in self.order[rank]]

    def recomputes(self, segment: int, chunk: int) -> bool:
        """Whether this chunk's backward runs the forward again instead of keeping its inside."""
        microbatch = self.segments[segment].microbatch_of(chunk, self.n_microbatches)
        return microbatch < self.recompute

    @cached_property
    def leaving(self) -> tuple[tuple[Boundary, ...], ...]:
        """By segment, the boundaries over which its outputs leave it."""
        return leaving(self.segments, self.boundaries)

    def is_interstage(self, op: Op) -> bool:
        """Whether a send or receive crosses pipeline stages."""
        if op.lane not in (SEND, RECEIVE):
            return False
        boundary = self.boundaries[op.segment]
        stages = [self.segments[s].stage for s in (boundary.producer, boundary.consumer)]
        return stages[0] != stages[1]

    def segment_of(self, i: int) -> Segment:
        """The segment that op ``i`` computes, updates or reduces, or for which it is exchanged."""
        number = self.columns.segment[i]
        if LANE_OF[self.columns.kind[i]] in (SEND, RECEIVE):
            number = self.boundaries[number].consumer
        return self.segments[number]

    def reader(self, i: int) -> str:
        """The layer that names op ``i``: of an exchange the one that reads, else the segment's
        first."""
        number = self.columns.segment[i]
        if LANE_OF[self.columns.kind[i]] in (SEND, RECEIVE):
            return self.boundaries[number].reader
        return self.segments[number].reader

    def digest(self) -> str:
        """Short hash of the text, equal on every rank that compiled the same plan."""
        return sha256(text(self.columns, self.order).encode()).hexdigest()[:16]


_LINE = re.compile(
    rf"(?P<id>\d+) (?P<segment>\d+)(?P<kind>{'|'.join(sorted(KINDS, key=len, reverse=True))})"
    r"(?P<microbatch>\d+)(?: peers=(?P<peers>[\d,]+))?(?: bytes=(?P<bytes>\d+))?"
    r"(?: flops=(?P<flops>\d+))?(?: needs=(?P<needs>[\d,]+))?"
)


def line(op: Op) -> str:
    """One op as text."""
    fields = [str(op.id), str(op)]
    if op.peers:
        fields.append("peers=" + ",".join(map(str, op.peers)))
    if op.bytes:
        fields.append(f"bytes={op.bytes}")
    if op.flops:
        fields.append(f"flops={op.flops}")
    if op.needs:
        fields.append("needs=" + ",".join(map(str, op.needs)))
    return " ".join(fields)


def text(columns: Columns, order: Sequence[Sequence[int]]) -> str:
    """The ops of every rank, one a line."""
    lines = []
    for rank, ids in enumerate(order):
        lines.append(f"rank {rank}")
        lines += [line(columns.op(i)) for i in ids]
    return "\n".join(lines) + "\n"


def parse(source: str) -> tuple[Columns, tuple[tuple[int, ...], ...]]:
    """The inverse of :func:`text`.

    Raises:
        InputError: a line that is no op, an id twice or left out.
    """
    found: dict[int, Op] = {}
    order: list[list[int]] = []
    for number, raw in enumerate(source.splitlines(), 1):
        if raw.startswith("rank "):
            order.append([])
            continue
        match = _LINE.fullmatch(raw)
        if not match or not order or int(match["id"]) in found:
            raise InputError(f"not an op, or an op twice: {raw!r}", f"line {number}")
        op = Op(
            int(match["id"]), len(order) - 1, LANE_OF[match["kind"]], match["kind"],
            int(match["segment"]), int(match["microbatch"]), _numbers(match["peers"]),
            int(match["bytes"] or 0), int(match["flops"] or 0), _numbers(match["needs"]),
        )  # fmt: skip
        found[op.id] = op
        order[-1].append(op.id)
    if sorted(found) != list(range(len(found))):
        raise InputError("op ids are not 0, 1, 2, ... without a gap")
    columns = Columns()
    for i in range(len(found)):
        op = found[i]
        columns.rank.append(op.rank)
        columns.kind.append(op.kind)
        columns.segment.append(op.segment)
        columns.microbatch.append(op.microbatch)
        columns.peers.append(op.peers)
        columns.bytes.append(op.bytes)
        columns.flops.append(op.flops)
        columns.needs.append(op.needs)
    return columns, tuple(map(tuple, order))


def _numbers(found: str | None) -> tuple[int, ...]:
    return tuple(map(int, found.split(","))) if found else ()
