"""Transports over torch.distributed: gloo between processors, NCCL between GPUs.

Neither blocks where a transfer is posted. On gloo a thread for each channel hands over what is
posted on it, one after another, and notes when each message has ended. On NCCL every route has a
communicator and a stream of its own, on which an exchange is one group; the host never waits.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.device import Channel, Cuda, Mark
from orchestrator.execute.transport import Handle, Pieces, Transport
from orchestrator.program.boundary import Route
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    COMPUTE,
    REDUCE,
    RankProgram,
)

K = TypeVar("K")
_STORE_S = 2.0  # beyond its timeout: how long torch.distributed has to tell of it


def connect(
    program: RankProgram, device: Cuda | None, timeout_s: float, routes: Sequence[Route] = ()
) -> Transport:
    """This rank's transport, after all ranks have agreed that they run the same program.

    torch.distributed's default process group must be up. Every rank must call this.

    Args:
        timeout_s: seconds that a transfer waits for its peers, in every process group.
        routes: further ones, beside the program's; the same on all ranks.

    Raises:
        InputError: a rank has compiled another program.
        RuntimeError: a rank did not answer; the message says who waited for whom.
    """
    rank, own = program.rank, (program.digest, torch.__version__)
    everyones: list[Any] = [None] * program.world_size
    with waits_for_all(rank, program.world_size, "to agree on the program"):
        dist.all_gather_object(everyones, own)
    for other, theirs in enumerate(everyones):
        if theirs != own:
            raise InputError(
                f"rank {rank} runs program {own} and rank {other} {theirs} "
                "(hash, precision, optimizer, torch version)",
                remedy="install the same versions and the same plan on every node",
            )
    with waits_for_all(rank, program.world_size, "to connect"):
        if device is None:
            return GlooTransport(program, timeout_s, routes)
        return NcclTransport(program, device, timeout_s, routes)


@contextmanager
def waits_for_all(rank: int, world_size: int, what: str) -> Iterator[None]:
    """Name the rank, whom it waits for and what for, where torch.distributed names only itself.

    Raises:
        RuntimeError: what torch.distributed raised, with these words before it.
    """
    try:
        yield
    except RuntimeError as error:
        others = ", ".join(str(other) for other in range(world_size) if other != rank)
        ranks = f"rank{'s' * (world_size > 2)} {others}"
        raise RuntimeError(f"rank {rank} waits for {ranks} {what}: {error}") from error


def _new_group(
    ranks: Iterable[int] | None, timeout_s: float, backend: str | None = None
) -> dist.ProcessGroup:
    """A process group that waits as long as the run does.

    Without a timeout of its own a group takes its backend's, half an hour for gloo, and not that
    of the default group. And a rank that asks the store of a stopped rank 0 waits for ever, so it
    asks in a thread.
    """
    members = None if ranks is None else list(ranks)
    made: SimpleQueue[dist.ProcessGroup | BaseException] = SimpleQueue()

    def make() -> None:
        try:
            timeout = timedelta(seconds=timeout_s)
            made.put(dist.new_group(members, timeout=timeout, backend=backend))
        except BaseException as error:
            made.put(error)

    threading.Thread(target=make, daemon=True, name="new-group").start()
    try:
        group = made.get(timeout=timeout_s + _STORE_S)
    except Empty:
        raise dist.DistStoreError(
            f"timed out after {timeout_s:g} s: rank 0, which keeps the addresses, does not answer"
        ) from None
    if isinstance(group, BaseException):
        raise group
    return group


# -- gloo -----------------------------------------------------------------------------------------


class GlooHandle:
    """A transfer that the thread of its channel sees to its end.

    Args:
        start: hands its messages to gloo, which may send a part of them before it returns, and
            gives for each what waits for its end; raises what went wrong.
        keep: what must live until the end.
    """

    def __init__(self, start: Callable[[], list[Callable[[], object]]], keep: Any) -> None:
        self.start: Callable[[], list[Callable[[], object]]] | None = start
        self.keep, self.started = keep, 0.0
        self.ended: list[float] = []
        self.error: BaseException | None = None
        self.event = threading.Event()

    def done(self) -> bool:
        return self.event.is_set() and self.error is None

    def wait(self) -> None:
        self.event.wait()
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        pass

    def marks(self) -> list[tuple[float, float]]:
        return [(self.started, end) for end in self.ended]

    def run(self, waiters: Sequence[SimpleQueue[Callable[[], None]]]) -> None:
        """Hand it to gloo and wait for its end.

        Args:
            waiters: threads that wait for the messages, so that none's end is noted late because
                another's peer is; as many as there are messages, or none for a single one.
        """
        assert self.start is not None
        self.started = time.perf_counter()
        try:
            finishes = self.start()
        except BaseException as error:
            self.error, finishes = error, []
        self.ended = [self.started] * len(finishes)
        if len(finishes) < 2:
            for number, finish in enumerate(finishes):
                self._finish(number, finish)
        else:
            left = threading.Semaphore(0)

            def waiting(number: int, finish: Callable[[], object]) -> Callable[[], None]:
                def act() -> None:
                    self._finish(number, finish)
                    left.release()

                return act

            for number, (waiter, finish) in enumerate(zip(waiters, finishes, strict=True)):
                waiter.put(waiting(number, finish))
            for _ in finishes:
                left.acquire()
        self.start = self.keep = None
        self.event.set()

    def _finish(self, number: int, finish: Callable[[], object]) -> None:
        try:
            finish()
        except BaseException as error:
            self.error = error
        self.ended[number] = time.perf_counter()


class GlooTransport:
    """One rank's connection over the default process group.

    Transfers are handed over by threads, since gloo sends what the socket takes before it returns.
    A thread goes on with the next one of its channel when one has ended: left to itself, gloo works
    on two collectives of a group at a time, and the one that is needed first waits for its half of
    the link. Messages carry their route's number as a tag, so those of two routes between the same
    ranks are not taken for each other.
    """

    def __init__(
        self, program: RankProgram, timeout_s: float, routes: Sequence[Route] = ()
    ) -> None:
        self.rank = program.rank
        self.groups = {group: _new_group(group, timeout_s) for group in program.groups}
        self.tags = {route: n for n, route in enumerate(sorted({*program.routes, *routes}))}
        self.channels: dict[Channel, SimpleQueue[Callable[[], None]]] = {}
        # by route, peer and direction: no message waits behind one of another route
        self.waiters: dict[tuple[Route, int, str], SimpleQueue[Callable[[], None]]] = {}

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        tag = self.tags[route]

        def start() -> list[Callable[[], object]]:
            works = [dist.irecv(tensor, peer, tag=tag) for peer, tensor in receives]
            works = [dist.isend(tensor, peer, tag=tag) for peer, tensor in sends] + works
            return [_waiting(work) for work in works]

        handle = GlooHandle(start, (sends, receives))
        waiters = []
        if len(sends) + len(receives) > 1:
            waiters = [self._thread(self.waiters, (route, peer, "to")) for peer, _ in sends]
            waiters += [self._thread(self.waiters, (route, peer, "from")) for peer, _ in receives]
        self._thread(self.channels, route).put(lambda: handle.run(waiters))
        return handle

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        comm = self.groups[group]

        def act() -> None:
            if kind == ALL_REDUCE:
                dist.all_reduce(tensor, group=comm)
                return
            shard = tensor.view(len(group), -1)[group.index(self.rank)]
            if kind == ALL_GATHER:
                dist.all_gather_into_tensor(tensor, shard.clone(), group=comm)
                return
            result = torch.empty_like(shard)
            dist.reduce_scatter_tensor(result, tensor, group=comm)
            shard.copy_(result)

        handle = GlooHandle(lambda: [act], tensor)
        self._thread(self.channels, REDUCE).put(lambda: handle.run(()))
        return handle

    @staticmethod
    def _thread(
        threads: dict[K, SimpleQueue[Callable[[], None]]], key: K
    ) -> SimpleQueue[Callable[[], None]]:
        """What a thread takes its work from; it is started when it is first needed."""
        if key not in threads:
            queue = threads[key] = SimpleQueue()
            threading.Thread(target=_endlessly, args=(queue,), daemon=True).start()
        return threads[key]


def _waiting(work: dist.Work | None) -> Callable[[], object]:
    assert work is not None, "this rank is in the default group"
    return work.wait


def _endlessly(queue: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        queue.get()()


# -- NCCL -----------------------------------------------------------------------------------------


class StreamHandle:
    """A transfer queued on its channel's stream.

    It holds its tensors, since their memory is the computations' as soon as the host lets go of
    it: until these are ordered behind the transfer, or the device has ended it.
    """

    def __init__(
        self, device: Cuda, channel: Channel, began: Mark, tensors: Sequence[Tensor]
    ) -> None:
        self.device, self.began, self.ended = device, began, device.mark(channel)
        self.tensors = tuple(tensors)

    def done(self) -> bool:
        return True  # whoever needs it is queued behind it by join()

    def wait(self) -> None:
        pass

    def join(self) -> None:
        self.device.follow(COMPUTE, self.ended)
        self.tensors = ()

    def let_go(self) -> bool:
        """Whether it holds nothing any more, since the transfer has ended."""
        if self.tensors and self.device.reached(self.ended):
            self.tensors = ()
        return not self.tensors

    def marks(self) -> list[tuple[Mark, Mark]]:
        return [(self.began, self.ended)]


class NcclTransport:
    """One rank's connection between GPUs: a communicator for each route and each group.

    Communicators are set up here, all ranks going through the same list, with a first exchange on
    each: NCCL's first call to a peer blocks the host until the other side has called too.
    """

    def __init__(
        self, program: RankProgram, device: Cuda, timeout_s: float, routes: Sequence[Route] = ()
    ) -> None:
        self.rank, self.device = program.rank, device
        self.held: defaultdict[Channel, deque[StreamHandle]] = defaultdict(deque)
        self.routes = {
            route: _new_group(route.ranks, timeout_s)
            for route in sorted({*program.routes, *routes})
        }
        self.groups = {group: _new_group(group, timeout_s) for group in program.groups}
        to: dict[Route, set[int]] = {}
        from_: dict[Route, set[int]] = {}
        for transfers in (op.transfers for op in program.ops):
            if transfers is not None:
                to.setdefault(transfers.route, set()).update(p for p, _ in transfers.sends)
                from_.setdefault(transfers.route, set()).update(p for p, _ in transfers.receives)
        for route in self.routes:
            sends, receives = (
                [(peer, torch.zeros(1, device=device.torch)) for peer in sorted(peers)]
                for peers in (to.get(route, ()), from_.get(route, ()))
            )
            for work in self._group(route, sends, receives):
                work.wait()
        for group, comm in self.groups.items():
            if self.rank in group:
                dist.all_reduce(torch.zeros(1, device=device.torch), group=comm)
        device.synchronize()

    def exchange(self, route: Route, sends: Pieces, receives: Pieces) -> Handle:
        def start() -> list[dist.Work]:
            return self._group(route, sends, receives)

        tensors = [tensor for _, tensor in (*sends, *receives)]
        return self._queued(route, tensors, start)

    def _group(self, route: Route, sends: Pieces, receives: Pieces) -> list[dist.Work]:
        comm = self.routes[route]
        ops = [dist.P2POp(dist.isend, tensor, peer, comm) for peer, tensor in sends]
        ops += [dist.P2POp(dist.irecv, tensor, peer, comm) for peer, tensor in receives]
        return dist.batch_isend_irecv(ops) if ops else []

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        comm = self.groups[group]
        shard = tensor.view(-1) if kind == ALL_REDUCE else tensor.view(len(group), -1)
        own = shard if kind == ALL_REDUCE else shard[group.index(self.rank)]

        def start() -> list[Any]:
            if kind == ALL_REDUCE:
                return [dist.all_reduce(tensor, group=comm, async_op=True)]
            if kind == ALL_GATHER:
                return [dist.all_gather_into_tensor(tensor, own, group=comm, async_op=True)]
            return [dist.reduce_scatter_tensor(own, tensor, group=comm, async_op=True)]

        return self._queued(REDUCE, (tensor,), start)

    def _queued(
        self, channel: Channel, tensors: Sequence[Tensor], start: Callable[[], list[Any]]
    ) -> StreamHandle:
        held = self.held[channel]
        while held and held[0].let_go():
            held.popleft()
        with self.device.on(channel):
            began = self.device.mark(channel)
            for work in start():
                work.wait()  # orders the channel's stream behind the transfer; the host goes on
        handle = StreamHandle(self.device, channel, began, tensors)
        held.append(handle)
        return handle


# -- one clock ------------------------------------------------------------------------------------


def clock_offsets(
    rank: int, world_size: int, timeout_s: float, rounds: int = 8
) -> dict[int, float]:
    """Seconds to add to each rank's clock to get rank 0's; every rank must call this.

    Rank 0 asks each rank for its time and takes half of the quickest answer's round trip as the
    way there (Cristian 1989). Ranks of one machine share a clock, and then this is about zero.

    Args:
        timeout_s: seconds that a rank waits for another.

    Returns:
        By rank on rank 0; empty elsewhere.

    Raises:
        RuntimeError: a rank did not answer; the message says who waited for whom.
    """
    with waits_for_all(rank, world_size, "to compare clocks"):
        return _clock_offsets(rank, world_size, timeout_s, rounds)


def _clock_offsets(rank: int, world_size: int, timeout_s: float, rounds: int) -> dict[int, float]:
    control = _new_group(None, timeout_s, backend="gloo")
    now = torch.zeros(1, dtype=torch.float64)
    found = {0: 0.0}
    for other in range(1, world_size):
        best = float("inf")
        for _ in range(rounds):
            if rank == 0:
                asked = time.perf_counter()
                dist.send(now, other, group=control)
                dist.recv(now, other, group=control)
                answered = time.perf_counter()
                if answered - asked < best:
                    best = answered - asked
                    found[other] = (asked + answered) / 2 - float(now)
            elif rank == other:
                dist.recv(now, 0, group=control)
                now[0] = time.perf_counter()
                dist.send(now, 0, group=control)
    return found if rank == 0 else {}
