"""How tensors get from rank to rank: the interface, and the transport inside one process.

A transport starts a transfer and gives back a handle; it never blocks. What one rank posts goes one
after another on each channel, which is the route of an exchange; collectives share one. On a route
messages from one rank to another are first in, first out and carry no tag.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from orchestrator.execute.device import Mark
from orchestrator.program.boundary import Route
from orchestrator.program.ledger import Buffer
from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE, REDUCE, REDUCE_SCATTER

Pieces = Sequence[tuple[int, Tensor]]
"""The other rank, and what goes there or comes from there."""


class Handle(Protocol):
    """A transfer under way."""

    def done(self) -> bool:
        """Whether whoever needs it may go on (on a GPU: may be queued behind it)."""

    def wait(self) -> None:
        """Block until :meth:`done`. Raises what went wrong."""

    def join(self) -> None:
        """Order what is computed next on this device behind the transfer."""

    def marks(self) -> list[tuple[Mark, Mark]]:
        """Start and end of each message, what is sent first, as marks of the device, known once the
        step has ended. One pair of a collective, or where the library does not tell them apart."""


class Transport(Protocol):
    """One rank's connection to the others."""

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        """Start to send and receive contiguous tensors, as one group.

        Args:
            sends: must not change until the handle is done.
            receives: of the right shape and dtype.
        """

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        """ALL_REDUCE in place; REDUCE_SCATTER leaves this rank's shard summed in its place of
        ``tensor``; ALL_GATHER fills ``tensor`` from every rank's shard."""


class CountingTransport:
    """One rank's transport, and what it was handed for collectives.

    Stands between the rank and its transport: what is counted is the tensor that goes through,
    not what the program says of it.
    """

    def __init__(self, transport: Transport, rank: int) -> None:
        self.transport, self.rank = transport, rank
        self.buffers: Counter[Buffer] = Counter()

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        return self.transport.exchange(route, sends, receives)

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        size = tensor.numel() * tensor.element_size()
        self.buffers[Buffer(self.rank, kind, group, size)] += 1
        return self.transport.collective(kind, tensor, group)


class LocalHandle:
    """A transfer between ranks of one process.

    Args:
        begin: what is done when its turn has come.
        count: how many messages it has; 1 of a collective.
    """

    def __init__(self, begin: Callable[[LocalHandle], None], count: int) -> None:
        self.begin: Callable[[LocalHandle], None] | None = begin
        self.begun = 0.0
        self.ended: list[float | None] = [None] * count
        self.left = count

    def done(self) -> bool:
        return not self.left

    def wait(self) -> None:
        raise AssertionError("ranks of one process are stepped by their executor, they never block")

    def join(self) -> None:
        pass

    def start(self) -> None:
        """Its turn has come."""
        assert self.begin is not None
        self.begun, begin, self.begin = time.perf_counter(), self.begin, None
        begin(self)

    def end(self, number: int) -> None:
        """One of its messages has moved."""
        self.ended[number] = time.perf_counter()
        self.left -= 1

    def marks(self) -> list[tuple[float, float]]:
        assert self.done()
        return [(self.begun, end) for end in self.ended if end is not None]


@dataclass(eq=False)
class _Piece:
    """One side of a message; its tensor is let go when it has moved."""

    tensor: Tensor
    handle: LocalHandle
    number: int
    ended: bool = False


_Pieces = deque[_Piece]
_Channel = tuple[int, "Route | str"]


@dataclass
class LocalWorld:
    """All ranks of one process.

    Args:
        strict: as NCCL has it: a send is done when its receive has it (rendezvous). Otherwise as
            gloo: a send is done as soon as it has begun.
    """

    strict: bool = True
    sends: defaultdict[tuple[Route, int, int], _Pieces] = field(
        default_factory=lambda: defaultdict(deque)
    )
    receives: defaultdict[tuple[Route, int, int], _Pieces] = field(
        default_factory=lambda: defaultdict(deque)
    )
    collectives: defaultdict[
        tuple[int, ...], defaultdict[int, deque[tuple[str, Tensor, LocalHandle]]]
    ] = field(default_factory=lambda: defaultdict(lambda: defaultdict(deque)))
    queues: defaultdict[_Channel, deque[LocalHandle]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    channel_of: dict[LocalHandle, _Channel] = field(default_factory=dict)

    def transport(self, rank: int) -> LocalTransport:
        """The connection of one rank."""
        return LocalTransport(self, rank)

    def post(self, rank: int, channel: Route | str, handle: LocalHandle) -> None:
        """Begin a transfer, now or when those before it on its channel have ended."""
        key = rank, channel
        self.channel_of[handle] = key
        self.queues[key].append(handle)
        if self.queues[key][0] is handle:
            self._go_on(key)

    def _go_on(self, key: _Channel) -> None:
        """Begin what is first on a channel, and what follows on every channel that this ends."""
        moving = [key]
        while moving:
            queue = self.queues[moving.pop()]
            if not queue or queue[0].begin is None:
                continue
            self.moved: list[LocalHandle] = []
            queue[0].start()
            for handle in self.moved:
                ended = self.channel_of.pop(handle)
                self.queues[ended].popleft()
                moving.append(ended)

    def _end(self, handle: LocalHandle, number: int) -> None:
        handle.end(number)
        if handle.done():
            self.moved.append(handle)

    def meet(self, route: Route, source: int, target: int) -> None:
        """Carry out the messages of one rank to another that both sides have begun."""
        sends, receives = self.sends[route, source, target], self.receives[route, source, target]
        while sends and receives:
            sent, received = sends.popleft(), receives.popleft()
            data, buffer = sent.tensor, received.tensor
            if (data.shape, data.dtype) != (buffer.shape, buffer.dtype):
                raise RuntimeError(
                    f"rank {source} sends {tuple(data.shape)} {data.dtype} and rank {target} "
                    f"expects {tuple(buffer.shape)} {buffer.dtype}"
                )
            buffer.copy_(data)
            self._end(received.handle, received.number)
            if not sent.ended:
                self._end(sent.handle, sent.number)

    def begin_exchange(
        self, rank: int, route: Route, sends: Pieces, receives: Pieces, handle: LocalHandle
    ) -> None:
        """One rank's side."""
        for number, (peer, tensor) in enumerate(sends):
            piece = _Piece(tensor if self.strict else tensor.clone(), handle, number)
            if not self.strict:
                piece.ended = True
                self._end(handle, number)
            self.sends[route, rank, peer].append(piece)
            self.meet(route, rank, peer)
        for number, (peer, tensor) in enumerate(receives, len(sends)):
            self.receives[route, peer, rank].append(_Piece(tensor, handle, number))
            self.meet(route, peer, rank)

    def begin_collective(
        self, rank: int, kind: str, tensor: Tensor, group: tuple[int, ...], handle: LocalHandle
    ) -> None:
        """One rank's side; the last to come carries it out."""
        rows = self.collectives[group]
        rows[rank].append((kind, tensor, handle))
        while all(rows[member] for member in group):
            entries = [rows[member].popleft() for member in group]
            kinds = {kind for kind, _, _ in entries}
            if len(kinds) != 1:
                raise RuntimeError(f"different collectives meet over ranks {group}: {kinds}")
            _collect(kinds.pop(), [tensor for _, tensor, _ in entries])
            for _, _, other in entries:
                self._end(other, 0)


@dataclass
class LocalTransport:
    """One rank's side of a :class:`LocalWorld`."""

    world: LocalWorld
    rank: int

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> LocalHandle:
        def begin(handle: LocalHandle) -> None:
            self.world.begin_exchange(self.rank, route, sends, receives, handle)

        handle = LocalHandle(begin, len(sends) + len(receives))
        self.world.post(self.rank, route, handle)
        return handle

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> LocalHandle:
        def begin(handle: LocalHandle) -> None:
            self.world.begin_collective(self.rank, kind, tensor, group, handle)

        handle = LocalHandle(begin, 1)
        self.world.post(self.rank, REDUCE, handle)
        return handle


def _collect(kind: str, tensors: list[Tensor]) -> None:
    """The collective itself; sums go in order of rank, so they do not depend on who came first."""
    count = len(tensors)
    if kind == ALL_GATHER:
        whole = torch.cat([t.view(count, -1)[i] for i, t in enumerate(tensors)])
        for tensor in tensors:
            tensor.view(-1).copy_(whole)
        return
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    for i, tensor in enumerate(tensors):
        if kind == ALL_REDUCE:
            tensor.copy_(total)
        else:
            assert kind == REDUCE_SCATTER
            tensor.view(count, -1)[i].copy_(total.view(count, -1)[i])
