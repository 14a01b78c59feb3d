"""One order for the check, the simulator and the transports: they agree on which programs end.

A program of transfers alone, one of which needs another, with the ops of rank 1 in each of their 24
orders.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

from orchestrator.execute import distributed
from orchestrator.execute.distributed import GlooTransport
from orchestrator.execute.transport import Handle, LocalWorld, Transport
from orchestrator.program import Program
from orchestrator.program.check import find_deadlock
from orchestrator.program.ops import Op
from orchestrator.program.text import parse
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.engine import Engine
from orchestrator.simulate.network import Topology
from tests.program.small import LINEAR, small_program

# Rank 1 answers with what it has received first, and both ranks' other two share a route.
RANK_0 = """\
rank 0
0 1SEND_F0 to=1:8
1 1RECV_B0 from=1:8
2 2SEND_F0 route=0-1>0-1 to=1:8
3 2RECV_B0 route=0-1>0-1 from=1:8
rank 1
"""
RANK_1 = (
    "4 1RECV_F0 from=0:8",
    "5 1SEND_B0 to=0:8 needs=4",
    "6 2RECV_F0 route=0-1>0-1 from=0:8",
    "7 2SEND_B0 route=0-1>0-1 to=0:8",
)
ORDERS = list(permutations(RANK_1))
HANGS_S = 0.25


def program_of(order: tuple[str, ...]) -> Program:
    columns, ids = parse(RANK_0 + "\n".join(order) + "\n")
    plan = small_program(LINEAR, "layers: a..c, ranks: [0, 1], split: channel")
    return replace(plan, columns=columns, order=ids)


def posted(program: Program, rank: int, transport: Transport) -> Iterator[Handle]:
    """Go through a rank's list, giving every handle that has to be waited for."""
    handles: dict[int, Handle] = {}
    for op in program.rank_ops(rank):
        for need in op.needs:
            if need not in handles:
                raise LookupError(f"{op} needs what is listed behind it")
            yield handles[need]
        handles[op.id] = post(op, transport)
    yield from handles.values()


def post(op: Op, transport: Transport) -> Handle:
    assert op.transfers is not None
    sends, receives = (
        [(peer, torch.zeros(size // 4)) for peer, size in side]
        for side in (op.transfers.sends, op.transfers.receives)
    )
    return transport.exchange(op.transfers.route, sends, receives)


def ends_in_one_process(program: Program) -> bool:
    world = LocalWorld(strict=True)
    running = {rank: posted(program, rank, world.transport(rank)) for rank in (0, 1)}
    waiting: dict[int, Handle | None] = dict.fromkeys(running)
    moved = True
    while running and moved:
        moved = False
        for rank in list(running):
            handle = waiting[rank]
            if handle is not None and not handle.done():
                continue
            moved = True
            try:
                waiting[rank] = next(running[rank])
            except StopIteration:
                del running[rank]
            except LookupError:
                return False
    return not running


class Rendezvous:
    """Stands in for torch.distributed between two ranks: a message moves when both sides are there,
    first in, first out for each tag."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: defaultdict[tuple[bool, int, int], deque[threading.Event]]
        self.waiting = defaultdict(deque)

    def isend(self, tensor: Tensor, peer: int, tag: int) -> Message:
        return self._side(True, peer, tag)

    def irecv(self, tensor: Tensor, peer: int, tag: int) -> Message:
        return self._side(False, 1 - peer, tag)

    def _side(self, sends: bool, receiver: int, tag: int) -> Message:
        mine = threading.Event()
        with self.lock:
            others = self.waiting[not sends, receiver, tag]
            if others:
                others.popleft().set()
                mine.set()
            else:
                self.waiting[sends, receiver, tag].append(mine)
        return Message(mine)


class Message:
    def __init__(self, met: threading.Event) -> None:
        self.met = met

    def wait(self) -> None:
        self.met.wait()  # of a program that hangs, to the end of the tests


def ends_over_gloo(program: Program, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(distributed, "dist", Rendezvous())
    ended: list[bool] = []

    def work(rank: int, transport: Transport) -> None:
        try:
            for handle in posted(program, rank, transport):
                handle.wait()
        except LookupError:
            return
        ended.append(True)

    transports = [GlooTransport(program.for_rank(rank), timeout_s=60) for rank in (0, 1)]
    for rank, transport in enumerate(transports):
        threading.Thread(target=work, args=(rank, transport), daemon=True).start()
    until = time.monotonic() + HANGS_S
    while len(ended) < 2 and time.monotonic() < until:
        time.sleep(0.002)
    return len(ended) == 2


def ends_simulated(program: Program) -> bool:
    cluster = load_cluster("k20x8")
    topology = Topology(cluster)
    engine = Engine(program, topology, CostModel(program, cluster, topology))
    try:
        engine.finish()
    except AssertionError:  # activities that never started
        return False
    return True


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(line[0] for line in order))
def test_all_agree_on_which_orders_end(
    order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_of(order)
    proven = find_deadlock(program) is None
    ways: tuple[Callable[[Program], bool], ...] = (
        ends_in_one_process, ends_simulated, lambda p: ends_over_gloo(p, monkeypatch),
    )  # fmt: skip
    assert [way(program) for way in ways] == [proven] * 3


def test_some_of_these_orders_end_and_some_do_not() -> None:
    """Rank 1 has to receive on the shared route before it sends there, and to list first what it
    needs."""
    ending = [order for order in ORDERS if find_deadlock(program_of(order)) is None]
    for order in ORDERS:
        numbers = [int(line[0]) for line in order]
        fine = numbers.index(4) < numbers.index(5) and numbers.index(6) < numbers.index(7)
        assert (order in ending) == fine
    assert len(ending) == 6
