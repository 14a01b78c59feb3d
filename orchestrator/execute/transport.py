"""How tensors get from rank to rank: the interface, and the transport inside one process.

A transport starts a transfer and gives back a handle; it never blocks. Between one ordered pair of
ranks transfers are first in, first out and carry no tag.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from orchestrator.execute.device import Mark
from orchestrator.program.ledger import Buffer
from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER


class Handle(Protocol):
    """A transfer under way."""

    def done(self) -> bool:
        """Whether whoever needs it may go on (on a GPU: may be queued behind it)."""

    def wait(self) -> None:
        """Block until :meth:`done`. Raises what went wrong."""

    def join(self) -> None:
        """Order what is computed next on this device behind the transfer."""

    def marks(self) -> tuple[Mark, Mark]:
        """Start and end as marks of the device, known once the step has ended."""


class Transport(Protocol):
    """One rank's connection to the others."""

    def send(self, tensor: Tensor, peer: int) -> Handle:
        """Start to send a contiguous tensor; it must not change until the handle is done."""

    def receive(self, tensor: Tensor, peer: int) -> Handle:
        """Start to receive into a contiguous tensor of the right shape and dtype."""

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

    def send(self, tensor: Tensor, peer: int) -> Handle:
        return self.transport.send(tensor, peer)

    def receive(self, tensor: Tensor, peer: int) -> Handle:
        return self.transport.receive(tensor, peer)

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        size = tensor.numel() * tensor.element_size()
        self.buffers[Buffer(self.rank, kind, group, size)] += 1
        return self.transport.collective(kind, tensor, group)


@dataclass(eq=False)
class LocalHandle:
    """A transfer between two ranks of one process."""

    started: float = field(default_factory=time.perf_counter)
    ended: float | None = None

    def done(self) -> bool:
        return self.ended is not None

    def wait(self) -> None:
        raise AssertionError("ranks of one process are stepped by their executor, they never block")

    def join(self) -> None:
        pass

    def end(self) -> None:
        """Mark as done, now."""
        self.ended = time.perf_counter()

    def marks(self) -> tuple[float, float]:
        assert self.ended is not None
        return self.started, self.ended


# A posted transfer waits here for its other side; its tensor is let go when it has happened.
_Posted = deque[tuple[Tensor, LocalHandle]]


class LocalWorld:
    """All ranks of one process.

    Args:
        strict: as NCCL has it: a send is done when its receive has it (rendezvous). Otherwise as
            gloo: a send is done as soon as it is posted.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.sends: defaultdict[tuple[int, int], _Posted] = defaultdict(deque)
        self.receives: defaultdict[tuple[int, int], _Posted] = defaultdict(deque)
        self.collectives: defaultdict[
            tuple[int, ...], defaultdict[int, deque[tuple[str, Tensor, LocalHandle]]]
        ] = defaultdict(lambda: defaultdict(deque))

    def transport(self, rank: int) -> LocalTransport:
        """The connection of one rank."""
        return LocalTransport(self, rank)

    def match(self, source: int, target: int) -> None:
        """Carry out the transfers of one ordered pair that both sides have posted."""
        sends, receives = self.sends[source, target], self.receives[source, target]
        while sends and receives:
            (data, sent), (buffer, received) = sends.popleft(), receives.popleft()
            if (data.shape, data.dtype) != (buffer.shape, buffer.dtype):
                raise RuntimeError(
                    f"rank {source} sends {tuple(data.shape)} {data.dtype} and rank {target} "
                    f"expects {tuple(buffer.shape)} {buffer.dtype}"
                )
            buffer.copy_(data)
            received.end()
            if not sent.done():
                sent.end()

    def meet(self, group: tuple[int, ...]) -> None:
        """Carry out the collectives that every member has posted."""
        rows = self.collectives[group]
        while all(rows[rank] for rank in group):
            entries = [rows[rank].popleft() for rank in group]
            kinds = {kind for kind, _, _ in entries}
            if len(kinds) != 1:
                raise RuntimeError(f"different collectives meet over ranks {group}: {kinds}")
            _collect(kinds.pop(), [tensor for _, tensor, _ in entries])
            for _, _, handle in entries:
                handle.end()


class LocalTransport:
    """One rank's side of a :class:`LocalWorld`."""

    def __init__(self, world: LocalWorld, rank: int) -> None:
        self.world, self.rank = world, rank

    def send(self, tensor: Tensor, peer: int) -> LocalHandle:
        handle = LocalHandle()
        if not self.world.strict:
            tensor = tensor.clone()
            handle.end()
        self.world.sends[self.rank, peer].append((tensor, handle))
        self.world.match(self.rank, peer)
        return handle

    def receive(self, tensor: Tensor, peer: int) -> LocalHandle:
        handle = LocalHandle()
        self.world.receives[peer, self.rank].append((tensor, handle))
        self.world.match(peer, self.rank)
        return handle

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> LocalHandle:
        handle = LocalHandle()
        self.world.collectives[group][self.rank].append((kind, tensor, handle))
        self.world.meet(group)
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
