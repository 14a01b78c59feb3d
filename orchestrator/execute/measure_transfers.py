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
from orchestrator.program.boundary import Route
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


def measured_routes(world_size: int) -> list[Route]:
    """Over which messages are measured: between rank 0 and each other one, and round the ranks."""
    pairs = [(0, peer) for peer in range(1, world_size)]
    ways = [Route((a,), (b,)) for pair in pairs for a, b in (pair, pair[::-1])]
    return [*ways, _round(world_size)] if world_size > 1 else []


def _round(world_size: int) -> Route:
    ranks = tuple(range(world_size))
    return Route(ranks, ranks)


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
    there, back = Route((rank,), (other,)), Route((other,), (rank,))

    def send(tensor: Tensor) -> Handle:
        return transport.exchange(there, [(other, tensor)], [])

    def receive(tensor: Tensor) -> Handle:
        return transport.exchange(back, [], [(other, tensor)])

    times = []
    for i in range(1 + 2 * _repeats(size)):
        tensor, late = torch.full((size // 4,), float(i)), torch.zeros(1, dtype=torch.float64)
        received = receive(torch.empty_like(tensor))
        _product()
        if rank == 0:
            sent = send(tensor)
            _compute_until(received)
            receive(late).wait()
            times.append((received.marks()[0][1] - sent.marks()[0][0] - late.item()) / 2)
        else:
            _compute_until(received)
            sent = send(tensor)
            _compute_until(sent)
            late[0] = sent.marks()[0][0] - received.marks()[0][1]
            send(late).wait()
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
    """What each message of an exchange takes to post between two products of matrices, while all
    ranks do the same.

    Posting a transfer wakes the threads that carry it, which want the core that has woken them.
    """
    data = torch.zeros(POSTED_BYTES // 4)
    after, before = (rank + 1) % world_size, (rank - 1) % world_size
    route, times = _round(world_size), []
    for _ in range(6):
        _product()
        begun = time.perf_counter()
        exchange = transport.exchange(
            route, [(after, data)], [(before, torch.empty_like(data))]
        )  # fmt: skip
        times.append((time.perf_counter() - begun) / 2)
        _product()
        exchange.wait()
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
