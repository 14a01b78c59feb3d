"""Times messages, all-reduces and what posting them takes, between ranks that also compute.

Transfers of ranks on processors are carried by the cores that compute, so both slow each other
down. Seconds throughout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.execute.transport import Handle, Transport
from orchestrator.program.ops import ALL_REDUCE

MESSAGE_BYTES = (4096, 65_536, 524_288, 2_097_152, 8_388_608, 33_554_432)
REDUCED_BYTES = (65_536, 1_048_576, 8_388_608, 67_108_864)
DISTURBING_BYTES = 8_388_608
POSTED_BYTES = 1_048_576


@cache
def _factors() -> tuple[Tensor, Tensor]:
    return torch.randn(512, 512), torch.empty(512, 512)


def _product() -> None:
    """A computation of some milliseconds."""
    x, out = _factors()
    torch.mm(x, x, out=out)


def _repeats(size: int) -> int:
    """In one round, of so many bytes."""
    return max(1, min(5, 8_388_608 // size))


def time_messages(rank: int, peer: int, size: int, transport: Transport) -> list[float]:
    """Half of the way there and back, between rank 0 and a peer; empty on other ranks.

    As in a run, what is sent is new, and both compute before, meanwhile and behind. So a peer
    answers late; it tells how late.
    """
    if rank not in (0, peer):
        return []
    other = peer if rank == 0 else 0
    times = []
    for i in range(1 + 2 * _repeats(size)):
        tensor, late = torch.full((size // 4,), float(i)), torch.zeros(1, dtype=torch.float64)
        received = transport.receive(torch.empty_like(tensor), other)
        _product()
        if rank == 0:
            sent = transport.send(tensor, other)
            _compute_until(received)
            transport.receive(late, other).wait()
            times.append((received.marks()[1] - sent.marks()[0] - late.item()) / 2)
        else:
            _compute_until(received)
            sent = transport.send(tensor, other)
            _compute_until(sent)
            late[0] = sent.marks()[0] - received.marks()[1]
            transport.send(late, other).wait()
    return times[1:]


def _compute_until(handle: Handle) -> None:
    _product()
    while not handle.done():
        _product()


def time_reduction(size: int, group: tuple[int, ...], transport: Transport) -> list[float]:
    """All-reduces over all ranks, one at a time."""
    tensor = torch.zeros(size // 4)
    times = []
    for _ in range(1 + _repeats(size)):
        dist.barrier()
        begun = time.perf_counter()
        transport.collective(ALL_REDUCE, tensor, group).wait()
        times.append(time.perf_counter() - begun)
    return times[1:]


def time_posts(rank: int, world_size: int, transport: Transport) -> list[float]:
    """What each of two posts takes between two products of matrices, while all ranks do the same.

    Posting a transfer wakes the threads that carry it, which want the core that has woken them.
    """
    data = torch.zeros(POSTED_BYTES // 4)
    after, before = (rank + 1) % world_size, (rank - 1) % world_size
    times = []
    for _ in range(6):
        _product()
        begun = time.perf_counter()
        sent = transport.send(data, after)
        received = transport.receive(torch.empty_like(data), before)
        times.append((time.perf_counter() - begun) / 2)
        _product()
        received.wait()
        sent.wait()
    return times[1:]


def disturbance(group: tuple[int, ...], transport: Transport) -> tuple[float, float]:
    """How computation and transfers disturb each other: the cores carry the transfers too.

    Products of matrices and all-reduces, at the same time and each by itself.

    Returns:
        (fraction of its speed that computation loses under a transfer, times as long as a transfer
        takes under computation).
    """
    data = torch.zeros(DISTURBING_BYTES // 4)

    def transfers() -> list[Handle]:
        dist.barrier()
        return [transport.collective(ALL_REDUCE, data, group) for _ in range(4)]

    def rate(goes_on: Callable[[], bool]) -> tuple[float, float]:
        """Products a second, and seconds."""
        begun, count = time.perf_counter(), 0
        while not count or goes_on():  # one at least: transfers may be over before it begins
            _product()
            count += 1
        seconds = time.perf_counter() - begun
        return count / seconds, seconds

    begun = time.perf_counter()
    for handle in transfers():
        handle.wait()
    alone = time.perf_counter() - begun
    handles = transfers()
    busy, seconds = rate(lambda: not all(handle.done() for handle in handles))
    until = time.perf_counter() + seconds
    quiet, _ = rate(lambda: time.perf_counter() < until)
    return 1 - busy / quiet, seconds / alone
