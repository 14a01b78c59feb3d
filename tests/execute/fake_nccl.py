"""NCCL without GPUs: ``torch.distributed`` for all ranks of a process, on streams of a fake GPU.

As torch's: every communicator has a stream of its own, which waits for the current one where a
call is made; ``Work.wait`` lets the current stream wait for it. What is sent is taken where it is
posted, and is there once both sides have posted.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.execute.fake_cuda import FakeCuda
from tests.execute.gpu_trace import Line, Transfer


class Group(NamedTuple):
    """A communicator: its ranks, and how many of the same were made before it."""

    ranks: tuple[int, ...]
    number: int


class Posted(NamedTuple):
    """One rank's side of a transfer."""

    kind: str
    tensor: Tensor
    value: Tensor  # what it held when it was posted
    reads: int  # the node at which it has been read
    end: int


class Work:
    """As ``torch.distributed.Work``."""

    def __init__(self, dist: FakeDist, end: int) -> None:
        self.dist, self.end = dist, end

    def wait(self) -> None:
        stream = self.dist.gpu.current_stream()
        self.dist.gpu.trace.add(stream.line, "wait for a transfer", self.end)


class Message(NamedTuple):
    """As ``torch.distributed.P2POp``."""

    op: Callable[..., Work]
    tensor: Tensor
    peer: int
    group: Group


class FakeDist:
    """Stands in for ``torch.distributed``.

    Attributes:
        exchange: by rank, what a message posted now belongs to.
    """

    P2POp = Message

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self.exchange: dict[int, object] = {}
        self.groups: defaultdict[tuple[int, tuple[int, ...]], int] = defaultdict(int)
        self.messages: defaultdict[tuple[Group, int, int, str], deque[Posted]] = defaultdict(deque)
        self.rows: defaultdict[tuple[Group, int], deque[Posted]] = defaultdict(deque)
        self.posted = 0
        self.missing: defaultdict[int, int] = defaultdict(int)  # other sides, by end

    # -- torch.distributed --------------------------------------------------------------------

    def new_group(self, ranks: list[int], timeout: timedelta, backend: str | None = None) -> Group:
        key = (self.gpu.running, tuple(ranks))
        self.groups[key] += 1
        return Group(tuple(ranks), self.groups[key])

    def get_backend(self) -> str:
        return "nccl"

    def isend(self, tensor: Tensor, peer: int, group: Group) -> Work:
        return self._exchange([Message(self.isend, tensor, peer, group)])

    def irecv(self, tensor: Tensor, peer: int, group: Group) -> Work:
        return self._exchange([Message(self.irecv, tensor, peer, group)])

    def send(self, tensor: Tensor, peer: int, group: Group) -> None:
        self.isend(tensor, peer, group).wait()

    def recv(self, tensor: Tensor, peer: int, group: Group) -> None:
        self.irecv(tensor, peer, group).wait()

    def batch_isend_irecv(self, operations: list[Message]) -> list[Work]:
        return [self._exchange(operations)]

    def all_reduce(self, tensor: Tensor, group: Group, async_op: bool = False) -> Work | None:
        return self._collect("all_reduce", tensor, group, async_op)

    def all_gather_into_tensor(
        self, tensor: Tensor, own: Tensor, group: Group, async_op: bool = False
    ) -> Work | None:
        return self._collect("all_gather", tensor, group, async_op)

    def reduce_scatter_tensor(
        self, own: Tensor, tensor: Tensor, group: Group, async_op: bool = False
    ) -> Work | None:
        return self._collect("reduce_scatter", tensor, group, async_op)

    # -- on streams ---------------------------------------------------------------------------

    def _exchange(self, operations: list[Message]) -> Work:
        (group,) = {operation.group for operation in operations}
        rank = self.gpu.running
        sends = [o for o in operations if o.op == self.isend]
        receives = [o for o in operations if o.op == self.irecv]
        peers = [f"to rank {o.peer}" for o in sends] + [f"from rank {o.peer}" for o in receives]
        first, reads, end = self._queue(group, ", ".join(peers), [o.tensor for o in sends])
        for kind, some in (("send", sends), ("receive", receives)):
            for _, tensor, peer, _ in some:
                source, target = (rank, peer) if kind == "send" else (peer, rank)
                self.messages[group, source, target, kind].append(
                    self._posted(kind, tensor, reads, end)
                )
        for _, tensor, _, _ in receives:
            self._writes(tensor, first, end)
        for _, _, peer, _ in operations:
            for pair in ((rank, peer), (peer, rank)):
                self._match(group, *pair)
        return Work(self, end)

    def _collect(self, kind: str, tensor: Tensor, group: Group, async_op: bool) -> Work | None:
        first, reads, end = self._queue(group, f"{kind} of ranks {group.ranks}", [tensor])
        self._writes(tensor, first, end)
        self.rows[group, self.gpu.running].append(self._posted(kind, tensor, reads, end))
        self._meet(group)
        work = Work(self, end)
        if async_op:
            return work
        work.wait()
        return None

    def _queue(self, group: Group, text: str, read: list[Tensor]) -> tuple[int, int, int]:
        """Start, a moment when all is read, and end, on the communicator's stream."""
        gpu, trace, rank = self.gpu, self.gpu.trace, self.gpu.running
        line = Line(rank, f"communicator {group.number} of ranks {group.ranks}")
        gpu.await_values(read)
        first = trace.add(line, text, trace.last.get(gpu.current_stream().line))
        reads, end = trace.add(line, text), trace.add(line, text)
        for tensor in read:
            gpu.access(tensor, first, reads, writes=False)
        exchange, group_number, self.posted = self.exchange.get(rank), self.posted, self.posted + 1
        trace.transfers.append(Transfer(rank, exchange, group_number, first, end, text))
        return first, reads, end

    def _writes(self, tensor: Tensor, first: int, end: int) -> None:
        self.gpu.access(tensor, first, end, writes=True)
        self.gpu.arrives(tensor, end)

    def _posted(self, kind: str, tensor: Tensor, reads: int, end: int) -> Posted:
        self.missing[end] += 1
        self.gpu.trace.open.add(end)
        with torch.utils._python_dispatch._disable_current_modes():
            return Posted(kind, tensor.detach(), tensor.detach().clone(), reads, end)

    def _match(self, group: Group, source: int, target: int) -> None:
        sends = self.messages[group, source, target, "send"]
        receives = self.messages[group, source, target, "receive"]
        while sends and receives:
            sent, received = sends.popleft(), receives.popleft()
            with torch.utils._python_dispatch._disable_current_modes():
                received.tensor.copy_(sent.value)
            self._after(received, sent)
            self._ended(sent)
            self._ended(received)

    def _meet(self, group: Group) -> None:
        rows = [self.rows[group, rank] for rank in group.ranks]
        if not all(rows):
            return
        entries = [row.popleft() for row in rows]
        with torch.utils._python_dispatch._disable_current_modes():
            results = _results([(e.kind, e.value) for e in entries])
            for entry, result in zip(entries, results, strict=True):
                entry.tensor.view(-1).copy_(result)
        for entry in entries:
            for other in entries:
                self._after(entry, other)
            self._ended(entry)

    def _after(self, later: Posted, earlier: Posted) -> None:
        self.gpu.trace.nodes[later.end].before.append(earlier.reads)

    def _ended(self, posted: Posted) -> None:
        self.missing[posted.end] -= 1
        if not self.missing[posted.end]:
            self.gpu.trace.open.discard(posted.end)


def _results(entries: list[tuple[str, Tensor]]) -> list[Any]:
    """What each rank's buffer holds after a collective, flat."""
    (kind,) = {kind for kind, _ in entries}
    count = len(entries)
    values = [value.view(-1) for _, value in entries]
    total = torch.stack(values).sum(0)
    if kind == "all_reduce":
        return [total] * count
    if kind == "all_gather":
        return [torch.cat([v.view(count, -1)[i] for i, v in enumerate(values)])] * count
    for i, value in enumerate(values):
        value.view(count, -1)[i] = total.view(count, -1)[i]
    return values
