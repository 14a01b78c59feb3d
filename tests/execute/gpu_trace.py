"""What a GPU may do with queued work, and what it promises: happens-before, and its faults.

    line      a host thread or a stream: its nodes happen in order
    node      a kernel, one end of a transfer, a wait
    clock     by line, how many of its nodes have happened before a node (a vector clock:
              Mattern 1989, "Virtual time and global states of distributed systems")

A trace is recorded while real operations run at once on the processor, in one of the orders that
the device could have taken. :meth:`Trace.faults` then looks for another order, one that nothing
forbids, in which the result would differ or nothing would go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from threading import RLock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HOST = "host"


class Kind(Enum):
    """Of a fault."""

    UNORDERED = "a tensor is read or written before its writer or reader is ordered"
    FREED = "memory is given back while another stream may still use it"
    SPLIT = "the messages of one exchange are not posted as one group"
    LAZY = "a kernel is loaded while a transfer may spin"
    PINNED = "host memory is pinned within a step, or while a transfer may spin"


class Fault(NamedTuple):
    """Something that can go wrong, and where."""

    kind: Kind
    text: str


class Line(NamedTuple):
    """A host thread or a stream of a rank."""

    rank: int
    name: str


@dataclass
class Node:
    """Something that happens on a line, after the nodes ``before`` it."""

    line: Line
    number: int  # on its line, from 1
    before: list[int]
    text: str


class Access(NamedTuple):
    """A use of memory, from one node to another of the same line."""

    first: int
    last: int
    writes: bool


@dataclass
class Storage:
    """A block of memory from its allocation to its release, whatever address it has.

    Args:
        line: the stream that it was allocated on; the host for memory that is not the device's.
        streams: those that the allocator was told of with ``record_stream``.
    """

    number: int
    line: Line
    text: str
    accesses: list[Access] = field(default_factory=list)
    streams: set[Line] = field(default_factory=set)
    # when released: the last nodes of its own stream, of the host and of ``streams``
    released: list[int] | None = None


class Transfer(NamedTuple):
    """One message or collective of a rank, from its start to its end on a stream."""

    rank: int
    exchange: object  # messages that belong together have the same; None for none
    group: int  # messages that were posted as one have the same
    first: int
    last: int
    text: str


class Load(NamedTuple):
    """The first use of a kernel, or another moment at which the driver may stop all streams."""

    kind: Kind
    rank: int
    known: int | None  # the host's last node: what it knows to have ended
    posted: int  # transfers before it
    text: str


class Trace:
    """All that several ranks' hosts and streams have queued.

    Attributes:
        operation: by rank, what it is doing, for messages.
        in_step: ranks whose host is within a training step.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.nodes: list[Node] = []
        self.last: dict[Line, int] = {}
        self.open: set[int] = set()  # ends of transfers whose other side is not there yet
        self.storages: list[Storage] = []
        self.transfers: list[Transfer] = []
        self.loads: list[Load] = []
        self.pinned: list[Fault] = []
        self.kernels: set[tuple[int, object]] = set()
        self.operation: defaultdict[int, str] = defaultdict(str)
        self.in_step: set[int] = set()
        self.recording = True
        self._settled: set[int] = set()

    # -- recording ----------------------------------------------------------------------------

    def add(self, line: Line, text: str, *before: int | None) -> int:
        """What happens next on a line; on a stream it happens after its host has queued it."""
        with self.lock:
            host = None if line.name == HOST else self.last.get(Line(line.rank, HOST))
            previous = self.last.get(line)
            number = self.nodes[previous].number + 1 if previous is not None else 1
            found = [n for n in (previous, host, *before) if n is not None]
            operation = self.operation[line.rank]
            self.nodes.append(Node(line, number, found, f"{text} ({operation or 'outside'})"))
            self.last[line] = len(self.nodes) - 1
            return len(self.nodes) - 1

    def kernel(self, line: Line, key: object, text: str) -> int:
        """A kernel, which is loaded when it is first launched."""
        with self.lock:
            if (line.rank, key) not in self.kernels:
                self.kernels.add((line.rank, key))
                self.stops(Kind.LAZY, line.rank, text)
            return self.add(line, text)

    def stops(self, kind: Kind, rank: int, text: str) -> None:
        """The driver may wait here for all that the device does."""
        known = self.last.get(Line(rank, HOST))
        text = f"rank {rank}: {text} ({self.operation[rank] or 'outside'})"
        self.loads.append(Load(kind, rank, known, len(self.transfers), text))

    def pins(self, rank: int, text: str) -> None:
        """Pages are locked, for which the driver may stop all streams; a step has no time for it,
        even while no transfer runs."""
        with self.lock:
            if rank in self.in_step:
                text = f"rank {rank}: {text} ({self.operation[rank]})"
                self.pinned.append(Fault(Kind.PINNED, text))
            else:
                self.stops(Kind.PINNED, rank, text)

    def allocated(self, line: Line, text: str) -> Storage:
        """A new block of memory."""
        with self.lock:
            operation = self.operation[line.rank] or "outside"
            found = Storage(len(self.storages), line, f"{text} ({operation})")
            self.storages.append(found)
            return found

    def released(self, storage: Storage) -> None:
        """The host gives a block back to its allocator."""
        with self.lock:
            if self.recording:
                lines = [storage.line, Line(storage.line.rank, HOST), *storage.streams]
                storage.released = [self.last[line] for line in lines if line in self.last]

    def settled(self, node: int | None) -> bool:
        """Whether a device could be past the node by now: every transfer before it has both
        sides."""
        if node is None:
            return True
        with self.lock:
            pending, seen = [node], set()
            while pending:
                n = pending.pop()
                if n in self._settled or n in seen:
                    continue
                if n in self.open:
                    return False
                seen.add(n)
                pending += self.nodes[n].before
            self._settled |= seen
            return True

    # -- checking -----------------------------------------------------------------------------

    def faults(self) -> list[Fault]:
        """All that can go wrong, each text once."""
        with self.lock:
            order = _Order(self.nodes)
            found = [
                *self._unordered(order), *self._freed(order), *self._split(),
                *self._stopped(order), *self.pinned,
            ]  # fmt: skip
            return list(dict.fromkeys(found))

    def _unordered(self, order: _Order) -> Iterator[Fault]:
        for storage in self.storages:
            written: Access | None = None
            readers: list[Access] = []
            for access in storage.accesses:
                earlier = [a for a in (written, *(readers if access.writes else ())) if a]
                for other in earlier:
                    if other.first != access.first and not order.before(other.last, access.first):
                        yield self._race(storage, other, access)
                if access.writes:
                    written, readers = access, []
                else:
                    readers.append(access)

    def _race(self, storage: Storage, earlier: Access, later: Access) -> Fault:
        def told(access: Access) -> str:
            node = self.nodes[access.first]
            return f"{node.text} {'writes' if access.writes else 'reads'} it on {node.line.name}"

        rank = storage.line.rank
        text = f"rank {rank}: memory of {storage.text}: {told(earlier)}, then unordered "
        return Fault(Kind.UNORDERED, text + told(later))

    def _freed(self, order: _Order) -> Iterator[Fault]:
        for storage in self.storages:
            if storage.released is None or storage.line.name == HOST:
                continue
            latest = {self.nodes[a.last].line: a for a in storage.accesses}
            for line, access in latest.items():
                known = any(order.before(access.last, node) for node in storage.released)
                if line != storage.line and not known:
                    user = self.nodes[access.last]
                    text = f"rank {line.rank}: memory of {storage.text} is freed under {user.text}"
                    yield Fault(Kind.FREED, f"{text} on {line.name}")

    def _split(self) -> Iterator[Fault]:
        exchanges: defaultdict[tuple[int, object], list[Transfer]] = defaultdict(list)
        for transfer in self.transfers:
            if transfer.exchange is not None:
                exchanges[transfer.rank, transfer.exchange].append(transfer)
        for (rank, _), transfers in exchanges.items():
            if len({t.group for t in transfers}) > 1:
                lines = sorted({self.nodes[t.first].line.name for t in transfers})
                texts = "; ".join(t.text for t in transfers)
                yield Fault(Kind.SPLIT, f"rank {rank}: {texts}: on {', '.join(lines)}")

    def _stopped(self, order: _Order) -> Iterator[Fault]:
        for load in self.loads:
            for transfer in self.transfers[: load.posted]:
                if transfer.rank != load.rank:
                    continue
                if load.known is None or not order.before(transfer.last, load.known):
                    yield Fault(load.kind, f"{load.text}: {transfer.text} may spin")
                    break


class _Order:
    """Which node happens before which, in every order that the device may take."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        lines = {line: i for i, line in enumerate(dict.fromkeys(node.line for node in nodes))}
        self.line = [lines[node.line] for node in nodes]
        self.clocks: npt.NDArray[np.int32] = np.zeros((len(nodes), len(lines)), dtype=np.int32)
        for n in self._sorted():
            clock = self.clocks[n]
            for earlier in nodes[n].before:
                np.maximum(clock, self.clocks[earlier], out=clock)
            clock[self.line[n]] = nodes[n].number

    def _sorted(self) -> list[int]:
        """Every node after those before it."""
        after: list[list[int]] = [[] for _ in self.nodes]
        missing = [len(node.before) for node in self.nodes]
        for n, node in enumerate(self.nodes):
            for earlier in node.before:
                after[earlier].append(n)
        found = [n for n, count in enumerate(missing) if not count]
        for n in found:  # which grows meanwhile
            for later in after[n]:
                missing[later] -= 1
                if not missing[later]:
                    found.append(later)
        assert len(found) == len(self.nodes), "streams wait for each other in a circle"
        return found

    def before(self, a: int, b: int) -> bool:
        """Whether a has ended before b begins, or is b."""
        return bool(self.clocks[b, self.line[a]] >= self.nodes[a].number)
