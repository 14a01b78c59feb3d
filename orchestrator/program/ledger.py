"""The byte ledger: what every rank sends over every edge in one step, exact, before the run.

Two things are exact, and counted by the workers: the bytes of a message, and the buffer that a
collective is handed (its kind, its group and its size).

What goes over the wire for a collective is its library's choice. Where bytes sent are added up, a
collective stands with its *ring equivalent*: what the ring algorithm sends for its buffer
(Patarasuk and Yuan 2009). The buffer lies in n chunks, as equal as whole values allow; a
reduce-scatter sends all chunks but one, so does an all-gather, and an all-reduce is one after the
other. Each rank sends to the next one of the group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    FORWARD,
    LANE_OF,
    REDUCE,
    REDUCE_SCATTER,
    Program,
)

GRADIENT = "gradient"


class Edge(NamedTuple):
    """One kind of traffic between two ranks.

    Args:
        from_rank, to_rank: sender and receiver.
        layer: the layer that reads in the forward; for gradients the first layer of the segment.
        direction: ``forward``, ``backward`` (gradients of activations) or ``gradient`` (a
            collective's ring equivalent).
    """

    from_rank: int
    to_rank: int
    layer: str
    direction: str


class Buffer(NamedTuple):
    """What one rank hands to its transport for a collective.

    Args:
        bytes: of the whole buffer, as long on every rank of the group.
    """

    rank: int
    kind: str
    group: tuple[int, ...]
    bytes: int


def buffers(program: Program) -> Counter[Buffer]:
    """How often a step every listed rank hands which buffer to a collective."""
    c = program.columns
    rows = zip(c.rank, c.kind, c.peers, c.bytes, strict=True)
    return Counter(Buffer(*row) for row in rows if LANE_OF[row[1]] == REDUCE)


def differences(
    program: Program, steps: int, sent: Counter[Edge], handed: Counter[Buffer]
) -> list[str]:
    """What the ranks counted in so many steps and the program does not say, a line each.

    Args:
        sent: bytes of messages by edge; ring equivalents are left aside, the buffers tell.
        handed: buffers of collectives.
    """
    predicted = edges(program)
    messages = [
        f"bytes differ: rank {e.from_rank} -> {e.to_rank} before {e.layer} ({e.direction}): "
        f"predicted {predicted[e] * steps:,}, counted {sent[e]:,}"
        for e in sorted(predicted.keys() | sent.keys())
        if e.direction != GRADIENT and predicted[e] * steps != sent[e]
    ]
    expected = buffers(program)
    wrong = [b for b in expected.keys() | handed.keys() if expected[b] * steps != handed[b]]
    readers = _readers(program) if wrong else {}
    return messages + [
        f"buffers differ: rank {b.rank}, {b.kind} over {_group_text(b.group)}, {b.bytes:,} bytes"
        f"{' before ' + ', '.join(readers[b]) if b in readers else ''}: "
        f"predicted {expected[b] * steps:,}, handed over {handed[b]:,}"
        for b in sorted(wrong)
    ]


def _readers(program: Program) -> dict[Buffer, list[str]]:
    """By buffer, the first layers of the segments that it is of."""
    found: dict[Buffer, list[str]] = {}
    for op in program.ops():
        if op.lane == REDUCE:
            layer = program.segments[op.segment].reader
            named = found.setdefault(Buffer(op.rank, op.kind, op.peers, op.bytes), [])
            if layer not in named:
                named.append(layer)
    return found


def _group_text(group: tuple[int, ...]) -> str:
    return f"ranks {', '.join(map(str, group))}" if len(group) <= 8 else f"{len(group)} ranks"


def edges(program: Program, *, unfold: bool = False) -> Counter[Edge]:
    """Bytes per step on every edge; of collectives the ring equivalent.

    Args:
        unfold: those of folded replicas, too.
    """
    found: dict[Edge, int] = {}
    for edge, _, size in _sent(program, program.replicas if unfold and program.folded else 1):
        found[edge] = found.get(edge, 0) + size
    return Counter(found)


def edges_by_kind(program: Program) -> Counter[tuple[Edge, str]]:
    """The same by the kind of op, too."""
    found: Counter[tuple[Edge, str]] = Counter()
    for edge, kind, size in _sent(program, 1):
        found[edge, kind] += size
    return found


def _sent(program: Program, replicas: int) -> Iterator[tuple[Edge, str, int]]:
    """Edge, kind and bytes; ops that are alike but for their microbatch are put together.

    Args:
        replicas: copies of the listed ranks to tell of; folded ones do the same further on.
    """
    c = program.columns
    # Groups and lists of messages may be long, so they are told apart by identity.
    transfers = {id(t): t for t in c.transfers}
    groups = {id(peers): peers for peers in c.peers}
    places = _Places()
    alike = Counter(
        zip(c.kind, c.segment, c.rank, map(id, c.peers), map(id, c.transfers), c.bytes, strict=True)
    )
    readers = [segment.reader for segment in program.segments]
    crossed = [boundary.reader for boundary in program.boundaries]
    for (kind, segment, rank, group, sides, size), times in alike.items():
        exchanged = transfers[sides]
        if exchanged is not None:
            direction = "forward" if kind in FORWARD else "backward"
            for first in range(0, replicas * program.ranks_per_replica, program.ranks_per_replica):
                for peer, sent in exchanged.sends:
                    edge = Edge(first + rank, first + peer, crossed[segment], direction)
                    yield edge, kind, sent * times
        elif LANE_OF[kind] == REDUCE:
            peers = groups[group]
            count, first = len(peers), places.of(rank, peers)
            for here in range(first, first + replicas * (step := count // replicas), step):
                edge = Edge(peers[here], peers[(here + 1) % count], readers[segment], GRADIENT)
                item = program.precision.item_of(gathered=kind == ALL_GATHER)
                yield edge, kind, ring_bytes(kind, size // item, count, here) * item * times


class _Places:
    """Where ranks stand in their groups; each group is gone through once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[tuple[int, ...], dict[int, int]]] = {}

    def of(self, rank: int, peers: tuple[int, ...]) -> int:
        """The position of a rank in a group."""
        if id(peers) not in self._found:  # with the group itself, so that its id stays its own
            self._found[id(peers)] = peers, {peer: i for i, peer in enumerate(peers)}
        return self._found[id(peers)][1][rank]


@lru_cache(maxsize=4096)
def ring_bytes(kind: str, values: int, count: int, group_rank: int) -> int:
    """Values that one rank of a ring of ``count`` sends for a buffer of ``values``."""

    def chunk(i: int) -> int:
        i %= count
        return values * (i + 1) // count - values * i // count

    # It ends with its own chunk summed, and never sends that.
    scatter = values - chunk(group_rank + 1)
    gather = values - chunk(group_rank + 2)  # it starts from the chunk that it has summed
    return {REDUCE_SCATTER: scatter, ALL_GATHER: gather, ALL_REDUCE: scatter + gather}[kind]


class Sent(NamedTuple):
    """Bytes sent in a step.

    Args:
        by_rank: of every listed rank, what its :func:`edges` add up to.
        total: of all ranks, those of folded replicas included.
        ring_equivalent: how many of the total stand for collectives.
    """

    by_rank: list[int]
    total: int
    ring_equivalent: int


def sent(program: Program) -> Sent:
    """Bytes sent in a step.

    Where a buffer does not divide, the ranks of a ring send a little more or less than each other,
    so the first replica's bytes times the replicas would be off; a ring as a whole is exact.
    """
    columns = program.columns
    by_rank = [0] * len(program.order)
    messages = rings = 0
    places = _Places()
    for kind, rank, peers, size, transfers in zip(
        columns.kind, columns.rank, columns.peers, columns.bytes, columns.transfers, strict=True
    ):
        if transfers is not None:
            if transfers.sends:
                by_rank[rank] += size
                messages += size
        elif LANE_OF[kind] == REDUCE:
            item = program.precision.item_of(gathered=kind == ALL_GATHER)
            values, count = size // item, len(peers)
            by_rank[rank] += ring_bytes(kind, values, count, places.of(rank, peers)) * item
            if rank == peers[0]:
                rings += (2 if kind == ALL_REDUCE else 1) * (count - 1) * size
    total = messages * (program.world_size // len(program.ranks)) + rings
    return Sent(by_rank, total, rings)


def activation_bytes(found: Counter[Edge]) -> int:
    """Bytes of activations and their gradients in an edge count."""
    return sum(n for edge, n in found.items() if edge.direction != GRADIENT)


def gradient_bytes(found: Counter[Edge]) -> int:
    """Ring equivalent of summed parameter gradients (and gathered parameters) in an edge count."""
    return sum(n for edge, n in found.items() if edge.direction == GRADIENT)


def by_sender(found: Counter[Edge]) -> dict[int, tuple[int, int]]:
    """By rank, (activation bytes, gradient bytes) sent."""
    sums: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for edge, size in found.items():
        sums[edge.from_rank][edge.direction == GRADIENT] += size
    return {rank: (a, g) for rank, (a, g) in sums.items()}
