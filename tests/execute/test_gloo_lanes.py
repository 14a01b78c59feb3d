"""What the threads of a rank's lanes do with transfers over gloo, and in which order."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch
from torch import Tensor

from orchestrator.execute import distributed
from orchestrator.execute.distributed import GlooTransport
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.boundary import Route
from orchestrator.program.resolve import model_of

GROUP = (0, 1)


class Work:
    """A message that is over at once."""

    def wait(self) -> None:
        pass


ROUTE, BACK, EVERYONE = Route((0,), (1,)), Route((1,), (0,)), Route((0, 1, 2), (0, 1, 2))
FROM_OTHERS = Route((1, 2), (0,))


class Late(Work):
    """A message whose peer comes when it is told to."""

    def __init__(self) -> None:
        self.come = threading.Event()

    def wait(self) -> None:
        assert self.come.wait(60)


class Dist:
    """Stands in for torch.distributed.

    An all-reduce doubles, takes a while, and fails on zeros; a send is taken when the socket has
    room, and there is no peer 7.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.room = threading.Event()
        self.taken: list[float] = []
        self.late = Late()
        self.prompt = set[int]()  # tags of which peer 2 answers at once
        self.timeouts: list[float] = []

    def new_group(self, ranks: list[int], timeout: timedelta, backend: str | None) -> object:
        self.timeouts.append(timeout.total_seconds())
        return tuple(ranks)

    def all_reduce(self, tensor: Tensor, group: object) -> None:
        assert group == GROUP
        assert self.lock.acquire(blocking=False), "two at a time"
        time.sleep(0.02)
        self.lock.release()
        if not tensor.any():
            raise RuntimeError("nothing to reduce")
        tensor *= 2

    def isend(self, tensor: Tensor, peer: int, tag: int) -> Work:
        assert self.room.wait(60)
        if peer == 7:
            raise ValueError("no peer 7")
        self.taken.append(tensor[0].item())
        return Work()

    def irecv(self, tensor: Tensor, peer: int, tag: int) -> Work:
        return self.late if peer == 2 and tag not in self.prompt else Work()


@pytest.fixture
def gloo(monkeypatch: pytest.MonkeyPatch) -> Dist:
    stand_in = Dist()
    monkeypatch.setattr(distributed, "dist", stand_in)
    return stand_in


@pytest.fixture
def transport(gloo: Dist) -> GlooTransport:
    plan = load_plan("data-parallel", ["model.width=0.0625", "model.image_size=64"])
    program = compile_plan(plan, model_of(plan))
    return GlooTransport(
        program.for_rank(0), timeout_s=60.0, routes=[ROUTE, BACK, EVERYONE, FROM_OTHERS]
    )


def test_collectives_are_posted_at_once_and_carried_out_one_after_another(
    transport: GlooTransport,
) -> None:
    tensors = [torch.full((2,), float(i + 1)) for i in range(4)]
    handles = [transport.collective("ALL_REDUCE", tensor, GROUP) for tensor in tensors]
    assert not handles[-1].done()
    handles[-1].wait()
    assert all(handle.done() for handle in handles)
    assert [tensor[0].item() for tensor in tensors] == [2, 4, 6, 8]
    marks = [handle.marks()[0] for handle in handles]
    for (_, ended), (started, _) in zip(marks, marks[1:], strict=False):
        assert ended <= started


def test_a_collective_that_fails_is_never_done_and_the_next_one_goes_on(
    transport: GlooTransport,
) -> None:
    failed = transport.collective("ALL_REDUCE", torch.zeros(2), GROUP)
    following = transport.collective("ALL_REDUCE", torch.ones(2), GROUP)
    with pytest.raises(RuntimeError, match="nothing to reduce"):
        failed.wait()
    following.wait()
    assert following.done()
    assert not failed.done()


def test_a_send_that_the_socket_does_not_take_yet_keeps_nobody(
    gloo: Dist, transport: GlooTransport
) -> None:
    handles = [transport.exchange(ROUTE, [(1, torch.full((2,), float(i)))], []) for i in range(4)]
    assert not any(handle.done() for handle in handles)
    gloo.room.set()
    handles[-1].wait()
    assert all(handle.done() for handle in handles)
    assert gloo.taken == [0, 1, 2, 3]


def test_exchanges_of_another_route_go_on_meanwhile(gloo: Dist, transport: GlooTransport) -> None:
    sent = transport.exchange(ROUTE, [(1, torch.ones(2))], [])
    received = transport.exchange(BACK, [], [(1, torch.empty(2))])
    received.wait()
    assert not sent.done()
    gloo.room.set()
    sent.wait()


def test_a_late_peer_does_not_delay_the_noted_end_of_anothers_message(
    gloo: Dist, transport: GlooTransport
) -> None:
    gloo.room.set()
    handle = transport.exchange(
        EVERYONE, [(1, torch.ones(2))], [(1, torch.empty(2)), (2, torch.empty(2))]
    )
    time.sleep(0.05)
    assert not handle.done()
    answered = time.perf_counter()
    gloo.late.come.set()
    handle.wait()
    (_, sent), (_, received), (_, late) = handle.marks()
    assert max(sent, received) < answered <= late


def test_a_late_message_keeps_none_of_another_route(gloo: Dist, transport: GlooTransport) -> None:
    """From the same peer; the check knows of no order between routes."""
    gloo.room.set()
    gloo.prompt = {transport.tags[FROM_OTHERS]}
    both = [(1, torch.empty(2)), (2, torch.empty(2))]
    late = transport.exchange(EVERYONE, [], both)
    transport.exchange(FROM_OTHERS, [], both).wait()
    assert not late.done()
    gloo.late.come.set()
    late.wait()


def test_a_send_that_gloo_refuses_is_told_to_whoever_waits(
    gloo: Dist, transport: GlooTransport
) -> None:
    gloo.room.set()
    refused, following = (transport.exchange(ROUTE, [(peer, torch.ones(2))], []) for peer in (7, 1))
    with pytest.raises(ValueError, match="no peer 7"):
        refused.wait()
    following.wait()
    assert not refused.done()


def test_a_group_waits_as_long_as_the_run_and_no_longer(
    gloo: Dist, transport: GlooTransport
) -> None:
    """Without a timeout of its own it takes gloo's half hour."""
    assert gloo.timeouts == [60.0]
