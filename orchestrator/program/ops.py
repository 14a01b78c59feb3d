"""Ops, and the program: one list of ops per rank, with everything that orders them; and one rank's
part of it, which is all that its worker is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from orchestrator.models.model import Model
from orchestrator.optimizers import Optimizer
from orchestrator.program.boundary import Boundary, Route
from orchestrator.program.precision import Precision
from orchestrator.program.segments import Bucket, Segment, leaving

F, B, I, W, STEP = "F", "B", "I", "W", "STEP"  # noqa: E741 - I is the field's letter
SEND_F, RECV_F, EXCHANGE_F = "SEND_F", "RECV_F", "EXCHANGE_F"
SEND_B, RECV_B, EXCHANGE_B = "SEND_B", "RECV_B", "EXCHANGE_B"
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER = "ALL_REDUCE", "REDUCE_SCATTER", "ALL_GATHER"

COMPUTE, EXCHANGE, REDUCE = "compute", "exchange", "reduce"
LANE_OF = {
    F: COMPUTE, B: COMPUTE, I: COMPUTE, W: COMPUTE, STEP: COMPUTE,
    SEND_F: EXCHANGE, RECV_F: EXCHANGE, EXCHANGE_F: EXCHANGE,
    SEND_B: EXCHANGE, RECV_B: EXCHANGE, EXCHANGE_B: EXCHANGE,
    ALL_REDUCE: REDUCE, REDUCE_SCATTER: REDUCE, ALL_GATHER: REDUCE,
}  # fmt: skip
KINDS = tuple(LANE_OF)
FORWARD = frozenset({SEND_F, RECV_F, EXCHANGE_F})
"""The exchanges of activations; the others carry their gradients."""


class Transfers(NamedTuple):
    """One rank's side of an exchange.

    Args:
        route: the ranks among which it is; a rank's exchanges on one route go one after another.
        sends, receives: (the other rank, bytes), by rank.
    """

    route: Route
    sends: tuple[tuple[int, int], ...]
    receives: tuple[tuple[int, int], ...]

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """Both, what is sent first: the order in which the times of an exchange are told."""
        return self.sends + self.receives

    def kind(self, *, forward: bool) -> str:
        """What it is called: after what this rank does."""
        if self.sends and self.receives:
            return EXCHANGE_F if forward else EXCHANGE_B
        if self.sends:
            return SEND_F if forward else SEND_B
        return RECV_F if forward else RECV_B


def others_of(transfers: Transfers) -> tuple[int, ...]:
    """The other ranks of an exchange, ascending."""
    return tuple(sorted({peer for peer, _ in transfers.sides}))


def size_of(transfers: Transfers) -> int:
    """Bytes sent; where nothing is, those received."""
    return sum([size for _, size in transfers.sends or transfers.receives])


class Op(NamedTuple):
    """One thing that one rank does.

    Args:
        id: position in the order in which the program was compiled; ids in ``needs`` are smaller.
        rank: who does it.
        lane: ``compute``, ``exchange`` or ``reduce``.
        kind: F, B, I, W, STEP; SEND_F, RECV_F, EXCHANGE_F (a rank sends, receives, or does both)
            and the same with _B; ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER.
        segment: the segment it computes, updates or reduces; for an exchange the boundary
            that it crosses, which in a chain of layers is the number of the segment that reads.
        microbatch: the chunk of that segment; for an exchange of the one that reads.
        peers: the other ranks of an exchange, ascending; the whole group of a collective.
        bytes: what an exchange sends, or what it receives where it sends nothing; the buffer of a
            collective (its full size on every rank); the parameters a STEP updates.
        flops: multiplications and additions.
        needs: ids of ops that must end before this one starts.
        transfers: of an exchange, what goes to whom.
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
    transfers: Transfers | None = None

    def __str__(self) -> str:
        return f"{self.segment}{self.kind}{self.microbatch}"

    @property
    def channel(self) -> str | Route:
        """A rank's ops of one channel go one after another: the lane, but of an exchange its
        route."""
        return self.transfers.route if self.transfers is not None else self.lane


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
    transfers: list[Transfers | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rank)

    def op(self, i: int) -> Op:
        """Op ``i`` as one object."""
        kind = self.kind[i]
        return Op(
            i, self.rank[i], LANE_OF[kind], kind, self.segment[i], self.microbatch[i],
            self.peers[i], self.bytes[i], self.flops[i], self.needs[i], self.transfers[i],
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Static:
    """What a program and one rank's part of it have in common.

    Args:
        model: what is computed.
        precision: number formats of activations, weights, gradients and messages.
        optimizer: how a STEP changes the weights.
        global_batch: examples of a step.
        replicas: copies of the placement.
        ranks_per_replica: ranks of one copy; rank = replica * ranks_per_replica + rank within.
        segments, boundaries, buckets: the static half (see :mod:`orchestrator.program.segments`).
        recompute: microbatches, the first ones, whose backward runs the forward again.
        sharded: the optimizer's state is sharded over each bucket's group (ZeRO stage 1).
    """

    model: Model
    precision: Precision
    optimizer: Optimizer
    global_batch: int
    n_microbatches: int
    replicas: int
    ranks_per_replica: int
    segments: tuple[Segment, ...]
    boundaries: tuple[Boundary, ...]
    buckets: tuple[tuple[Bucket, ...], ...]
    recompute: int
    sharded: bool

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
        """Ranks in all, of all replicas."""
        return self.replicas * self.ranks_per_replica

    def recomputes(self, segment: int, chunk: int) -> bool:
        """Whether this chunk's backward runs the forward again instead of keeping its inside."""
        microbatch = self.segments[segment].microbatch_of(chunk, self.n_microbatches)
        return microbatch < self.recompute

    @cached_property
    def leaving(self) -> tuple[tuple[Boundary, ...], ...]:
        """By segment, the boundaries over which its outputs leave it."""
        return leaving(self.segments, self.boundaries)

    def reader_of(self, op: Op) -> str:
        """The layer that names an op: of an exchange the one that reads, else the segment's
        first."""
        if op.lane == EXCHANGE:
            return self.boundaries[op.segment].reader
        return self.segments[op.segment].reader


@dataclass(frozen=True, kw_only=True)
class RankProgram(Static):
    """One rank's part of a program.

    Segments have the part of this rank alone, or none; boundaries the messages that it sends,
    receives or keeps; buckets those that it is in.

    Args:
        ops: in the order in which it posts them, with the ids that they have in the program.
        routes, groups: of all ranks, ascending: communicators are made by all in the same order.
        digest: of the whole program.
    """

    rank: int
    ops: tuple[Op, ...]
    routes: tuple[Route, ...]
    groups: tuple[tuple[int, ...], ...]
    digest: str

    @property
    def replica(self) -> int:
        """Which copy of the placement it is in."""
        return self.rank // self.ranks_per_replica

    @property
    def local_rank(self) -> int:
        """Its number within that."""
        return self.rank % self.ranks_per_replica


@dataclass(frozen=True, kw_only=True)
class Program(Static):
    """What every rank does in one training step.

    Args:
        name: of the plan.
        folded: only the first replica's ops are listed; the others do the same at other ranks.
        stages: ranks of every pipeline stage, within one replica.
        columns: the ops.
        order: by rank, ids in the order in which the rank posts them.
    """

    name: str
    folded: bool
    stages: tuple[tuple[int, ...], ...]
    columns: Columns
    order: tuple[tuple[int, ...], ...]

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

    def is_interstage(self, op: Op) -> bool:
        """Whether an exchange crosses pipeline stages."""
        if op.lane != EXCHANGE:
            return False
        boundary = self.boundaries[op.segment]
        stages = [self.segments[s].stage for s in (boundary.producer, boundary.consumer)]
        return stages[0] != stages[1]

    def segment_of(self, i: int) -> Segment:
        """The segment that op ``i`` computes, updates or reduces, or for which it is exchanged."""
        number = self.columns.segment[i]
        if LANE_OF[self.columns.kind[i]] == EXCHANGE:
            number = self.boundaries[number].consumer
        return self.segments[number]

    def reader(self, i: int) -> str:
        """The layer that names op ``i``, as :meth:`reader_of` does."""
        number = self.columns.segment[i]
        if LANE_OF[self.columns.kind[i]] == EXCHANGE:
            return self.boundaries[number].reader
        return self.segments[number].reader

    # -- one rank's part ----------------------------------------------------------------------

    def for_rank(self, rank: int) -> RankProgram:
        """What one rank needs of it; of a folded program, any rank of the first replica."""
        local_rank = rank % self.ranks_per_replica
        shared = {field.name: getattr(self, field.name) for field in fields(Static)}
        shared["segments"] = tuple(
            [
                replace(s, parts={local_rank: s.parts[local_rank]} if local_rank in s.parts else {})
                for s in self.segments
            ]
        )
        shared["boundaries"] = tuple([b.for_rank(local_rank) for b in self.boundaries])
        shared["buckets"] = tuple(
            [tuple([b for b in buckets if local_rank in b.ranks]) for buckets in self.buckets]
        )
        return RankProgram(
            **shared, rank=rank, ops=tuple(self.rank_ops(rank)), routes=self._routes,
            groups=self._groups, digest=self.digest(),
        )  # fmt: skip

    @cached_property
    def _routes(self) -> tuple[Route, ...]:
        unique = {id(t): t for t in self.columns.transfers if t is not None}
        return tuple(sorted({t.route for t in unique.values()}))

    @cached_property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        unique = {
            id(peers): peers
            for kind, peers in zip(self.columns.kind, self.columns.peers, strict=True)
            if LANE_OF[kind] == REDUCE
        }
        return tuple(sorted(set(unique.values())))

    def digest(self) -> str:
        """Short hash of what every rank does and holds; equal wherever the same is compiled."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        from orchestrator.program.text import static_text, text

        found = sha256(static_text(self).encode())
        found.update(text(self.columns, self.order).encode())
        return found.hexdigest()[:16]
