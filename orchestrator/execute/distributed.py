"""Transports over torch.distributed: gloo between processors, NCCL between GPUs.

Neither blocks where a transfer is posted. On gloo threads hand the transfers over, wait for their
ends in order and note when they were. On NCCL every ordered pair of ranks has a communicator of
its own, so that the two directions of an exchange cannot wait for each other, and transfers are
queued on the lane's stream; the host never waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.device import Cuda
from orchestrator.execute.transport import Handle, Transport
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    LANE_OF,
    RECEIVE,
    REDUCE,
    SEND,
    Program,
)

_STORE_S = 2.0  # beyond its timeout: how long torch.distributed has to tell of it


def connect(program: Program, rank: int, device: Cuda | None, timeout_s: float) -> Transport:
    """This rank's transport, after all ranks have agreed that they run the same program.

    torch.distributed's default process group must be up. Every rank must call this.

    Args:
        timeout_s: seconds that a transfer waits for its peers, in every process group.

    Raises:
        InputError: a rank has compiled another program.
        RuntimeError: a rank did not answer; the message says who waited for whom.
    """
    own = (
        program.digest(), str(program.precision), str(program.optimizer), torch.__version__
    )  # fmt: skip
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
            return GlooTransport(program, rank, timeout_s)
        return NcclTransport(program, rank, device, timeout_s)


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


def _groups(program: Program) -> list[tuple[int, ...]]:
    """The groups of the program's collectives, in an order that all ranks agree on."""
    columns = program.columns
    return sorted(
        {columns.peers[i] for i in range(len(columns)) if LANE_OF[columns.kind[i]] == REDUCE}
    )


# -- gloo -----------------------------------------------------------------------------------------


class GlooHandle:
    """A transfer that the threads of its lane see to its end.

    Args:
        start: hands it to gloo, which may send a part of it before it returns, and gives what
            waits for the end; raises what went wrong.
        keep: what must live until the end.
    """

    def __init__(self, start: Callable[[], Callable[[], object]], keep: Any) -> None:
        self.start: Callable[[], Callable[[], object]] | None = start
        self.finish: Callable[[], object] | None = None
        self.keep, self.started, self.ended = keep, 0.0, 0.0
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

    def marks(self) -> tuple[float, float]:
        return self.started, self.ended

    def begin(self) -> None:
        """Hand it to gloo."""
        assert self.start is not None
        self.started = time.perf_counter()
        try:
            self.finish = self.start()
        except BaseException as error:
            self.error = error

    def complete(self) -> None:
        """Wait for its end."""
        if self.finish is not None:
            try:
                self.finish()
            except BaseException as error:
                self.error = error
        self.ended = time.perf_counter()
        self.start = self.finish = self.keep = None
        self.event.set()


class GlooTransport:
    """One rank's connection over the default process group; first in, first out per pair.

    Messages are handed over by a thread, since gloo sends what the socket takes before it returns,
    and whoever posts a receive of the same pair meanwhile is kept, too.
    Collectives go one after another, as a lane's ops do: left to itself, gloo works on two of a
    group at a time, and the one that is needed first waits for its half of the link.
    """

    def __init__(self, program: Program, rank: int, timeout_s: float) -> None:
        self.rank = rank
        self.groups = {group: _new_group(group, timeout_s) for group in _groups(program)}
        self.posted = SimpleQueue[tuple[GlooHandle, SimpleQueue[GlooHandle]]]()
        self.sent, self.received, self.collectives = (SimpleQueue[GlooHandle]() for _ in range(3))
        for name, act in (
            ("post", self._begin), (SEND, lambda: self.sent.get().complete()),
            (RECEIVE, lambda: self.received.get().complete()), (REDUCE, self._collect),
        ):  # fmt: skip
            threading.Thread(target=_endlessly, args=(act,), daemon=True, name=name).start()

    def send(self, tensor: Tensor, peer: int) -> Handle:
        handle = GlooHandle(lambda: _waiting(dist.isend(tensor, peer)), tensor)
        self.posted.put((handle, self.sent))
        return handle

    def receive(self, tensor: Tensor, peer: int) -> Handle:
        handle = GlooHandle(lambda: _waiting(dist.irecv(tensor, peer)), tensor)
        self.posted.put((handle, self.received))
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

        handle = GlooHandle(lambda: act, tensor)
        self.collectives.put(handle)
        return handle

    def _begin(self) -> None:
        handle, ending = self.posted.get()
        handle.begin()
        ending.put(handle)

    def _collect(self) -> None:
        handle = self.collectives.get()
        handle.begin()
        handle.complete()


def _waiting(work: dist.Work | None) -> Callable[[], object]:
    assert work is not None, "this rank is in the default group"
    return work.wait


def _endlessly(act: Callable[[], None]) -> None:
    while True:
        act()


# -- NCCL -----------------------------------------------------------------------------------------


class StreamHandle:
    """A transfer queued on a stream."""

    def __init__(self, device: Cuda, lane: str, began: torch.cuda.Event) -> None:
        self.device, self.began, self.ended = device, began, device.mark(lane)

    def done(self) -> bool:
        return True  # whoever needs it is queued behind it by join()

    def wait(self) -> None:
        pass

    def join(self) -> None:
        torch.cuda.current_stream(self.device.torch).wait_event(self.ended)

    def marks(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return self.began, self.ended


class NcclTransport:
    """One rank's connection between GPUs: a communicator per ordered pair and per group.

    Communicators are set up here, all ranks going through the same list: NCCL's first call on a
    communicator blocks the host until the other side has called too.
    """

    def __init__(self, program: Program, rank: int, device: Cuda, timeout_s: float) -> None:
        self.rank, self.device = rank, device
        columns = program.columns
        pairs = sorted(
            {
                (columns.rank[i], columns.peers[i][0])
                for i in range(len(columns))
                if LANE_OF[columns.kind[i]] == SEND
            }
        )
        self.pairs = {pair: _new_group(sorted(pair), timeout_s) for pair in pairs}
        self.groups = {group: _new_group(group, timeout_s) for group in _groups(program)}
        probe = torch.zeros(1, device=device.torch)
        for source, target in pairs:
            if rank == source:
                dist.send(probe, target, group=self.pairs[source, target])
            elif rank == target:
                dist.recv(probe, source, group=self.pairs[source, target])
        for group, comm in self.groups.items():
            if rank in group:
                dist.all_reduce(probe, group=comm)
        torch.cuda.synchronize(device.torch)

    def send(self, tensor: Tensor, peer: int) -> Handle:
        comm = self.pairs[self.rank, peer]
        return self._queued(SEND, tensor, lambda: dist.isend(tensor, peer, group=comm))

    def receive(self, tensor: Tensor, peer: int) -> Handle:
        comm = self.pairs[peer, self.rank]
        return self._queued(RECEIVE, tensor, lambda: dist.irecv(tensor, peer, group=comm))

    def collective(self, kind: str, tensor: Tensor, group: tuple[int, ...]) -> Handle:
        comm = self.groups[group]
        shard = tensor.view(-1) if kind == ALL_REDUCE else tensor.view(len(group), -1)
        own = shard if kind == ALL_REDUCE else shard[group.index(self.rank)]

        def start() -> Any:
            if kind == ALL_REDUCE:
                return dist.all_reduce(tensor, group=comm, async_op=True)
            if kind == ALL_GATHER:
                return dist.all_gather_into_tensor(tensor, own, group=comm, async_op=True)
            return dist.reduce_scatter_tensor(own, tensor, group=comm, async_op=True)

        return self._queued(REDUCE, tensor, start)

    def _queued(self, lane: str, tensor: Tensor, start: Callable[[], Any]) -> StreamHandle:
        with self.device.on(lane):
            began = self.device.mark(lane)
            start().wait()  # orders the lane's stream behind the transfer; the host goes on
            tensor.record_stream(self.device.streams[lane])
        return StreamHandle(self.device, lane, began)


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
