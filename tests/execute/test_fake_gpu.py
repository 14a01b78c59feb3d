"""The fake GPU itself: what CUDA orders is ordered, and what it does not is a fault."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import pytest
import torch
from torch import Tensor

from tests.execute.fake_cuda import FakeCuda, FakeStream
from tests.execute.fake_nccl import FakeDist, Group, Message
from tests.execute.gpu_trace import Fault, Kind, Trace
from tests.execute.turns import Turns

PAIR = Group((0, 1), 1)
Host = Callable[[FakeCuda, FakeDist], None]


def faults(kind: Kind, *hosts: Host, prompt: bool = False) -> list[Fault]:
    """Those of one kind in what the hosts of some ranks do."""
    gpu = FakeCuda(Trace(), Turns(len(hosts)), prompt=prompt)
    dist = FakeDist(gpu)
    errors: list[BaseException] = []

    def act(rank: int, host: Host) -> None:
        try:
            with gpu.rank(rank):
                host(gpu, dist)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=act, args=(n, host), daemon=True) for n, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return [fault for fault in gpu.trace.faults() if fault.kind == kind]


def values(x: Tensor) -> list[float]:
    """Read by operations that the fake sees; ``tolist`` is none."""
    return [value.item() for value in x]


def side(gpu: FakeCuda) -> FakeStream:
    return gpu.Stream(torch.device("cpu"))


ORDERS: dict[str, tuple[Callable[[FakeCuda, FakeStream], None], bool]] = {
    "nothing": (lambda gpu, other: None, False),
    "a wait for the stream": (lambda gpu, other: gpu.current_stream().wait_stream(other), True),
    "the other way round": (lambda gpu, other: other.wait_stream(gpu.current_stream()), False),
    "the host that waits": (lambda gpu, other: other.synchronize(), True),
    "the host that waits for all": (lambda gpu, other: gpu.synchronize(), True),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_read_comes_behind_its_writer(order: str) -> None:
    act, ordered = ORDERS[order]

    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, x = side(gpu), torch.zeros(2)
        gpu.synchronize()
        with gpu.stream(other):
            x += 1
        act(gpu, other)
        x.sum()

    assert len(faults(Kind.UNORDERED, host)) == (0 if ordered else 1)


@pytest.mark.parametrize("late", [False, True])
def test_an_event_stands_for_what_was_queued_before_it(late: bool) -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, x, event = side(gpu), torch.zeros(2), gpu.Event()
        gpu.synchronize()
        if not late:
            event.record(other)
        with gpu.stream(other):
            x += 1
        if late:
            event.record(other)
        gpu.current_stream().wait_event(event)
        x.sum()

    assert len(faults(Kind.UNORDERED, host)) == (0 if late else 1)


@pytest.mark.parametrize("prompt", [False, True])
def test_an_event_that_is_over_tells_its_host(prompt: bool) -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, x, event = side(gpu), torch.zeros(2), gpu.Event()
        gpu.synchronize()
        with gpu.stream(other):
            x += 1
        event.record(other)
        assert event.query() is prompt
        x.sum()

    assert len(faults(Kind.UNORDERED, host, prompt=prompt)) == (0 if prompt else 1)


def test_a_write_comes_behind_all_readers() -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        x, streams = torch.zeros(2), [side(gpu), side(gpu)]
        gpu.synchronize()
        for stream in streams:
            with gpu.stream(stream):
                x.sum()
        gpu.current_stream().wait_stream(streams[1])
        x.zero_()

    (fault,) = faults(Kind.UNORDERED, host)
    assert "sum (outside) reads it on stream 1, then unordered zero_" in fault.text


def test_what_the_host_reads_is_waited_for() -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, x = side(gpu), torch.ones(1)
        x.item()
        with gpu.stream(other):
            x += 1

    assert faults(Kind.UNORDERED, host) == []


def freed(more: Callable[[FakeCuda, FakeStream, Tensor], None]) -> int:
    """Faults of a tensor that is dropped after another stream's use of it, and ``more``."""

    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, x = side(gpu), torch.zeros(2)
        other.wait_stream(gpu.current_stream())
        with gpu.stream(other):
            x.sum()
        more(gpu, other, x)
        view = x[:1]
        del x
        assert gpu.trace.storages[0].released is None
        del view
        torch.zeros(2)  # perhaps at the same address, and no use of the memory before it

    return len(faults(Kind.FREED, host))


def test_memory_is_its_own_streams_again_once_it_is_freed() -> None:
    assert freed(lambda gpu, other, x: None) == 1
    assert freed(lambda gpu, other, x: gpu.current_stream().wait_stream(other)) == 0
    assert freed(lambda gpu, other, x: other.synchronize()) == 0
    assert freed(lambda gpu, other, x: gpu.storage(x).streams.add(other.line)) == 0


def test_a_backward_runs_on_the_stream_of_its_forward() -> None:
    seen: dict[str, set[str]] = {}

    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        other, w = side(gpu), torch.ones(3, requires_grad=True)
        other.wait_stream(gpu.current_stream())
        with gpu.stream(other):
            y = w.exp()
        gpu.current_stream().wait_stream(other)
        (gradient,) = torch.autograd.grad(y.sum(), w)
        gradient.sum()
        for node in gpu.trace.nodes:
            seen.setdefault(node.text.split()[0], set()).add(node.line.name)

    assert faults(Kind.UNORDERED, host) == []
    assert seen["mul"] == {"stream 1"}  # of exp's backward
    assert seen["sum"] == {"compute"}


# -- transfers ------------------------------------------------------------------------------------


def sends(gpu: FakeCuda, dist: FakeDist) -> None:
    dist.isend(torch.full((2,), 3.0), 1, PAIR).wait()


@pytest.mark.parametrize("waits", [False, True])
def test_what_is_received_is_there_when_it_was_waited_for(waits: bool) -> None:
    def receives(gpu: FakeCuda, dist: FakeDist) -> None:
        x = torch.zeros(2)
        work = dist.irecv(x, 0, PAIR)
        if waits:
            work.wait()
        assert x.sum().item() == 6

    assert len(faults(Kind.UNORDERED, sends, receives)) == (0 if waits else 1)


def test_who_has_heard_back_knows_that_what_it_sent_is_read() -> None:
    """As a tied weight: it is sent, its gradient comes back, and then it changes."""

    def lends(gpu: FakeCuda, dist: FakeDist) -> None:
        weight, gradient = torch.ones(2), torch.zeros(2)
        weight.zero_()
        gpu.synchronize()
        dist.isend(weight, 1, PAIR)
        dist.irecv(gradient, 1, Group((0, 1), 2)).wait()
        weight.zero_()

    def borrows(gpu: FakeCuda, dist: FakeDist) -> None:
        x = torch.zeros(2)
        dist.irecv(x, 0, PAIR).wait()
        dist.isend(x, 0, Group((0, 1), 2)).wait()

    assert faults(Kind.UNORDERED, lends, borrows) == []

    def too_early(gpu: FakeCuda, dist: FakeDist) -> None:
        weight = torch.ones(2)
        dist.isend(weight, 1, PAIR)
        weight.zero_()

    def takes(gpu: FakeCuda, dist: FakeDist) -> None:
        dist.irecv(torch.zeros(2), 0, PAIR).wait()

    assert len(faults(Kind.UNORDERED, too_early, takes)) == 1


@pytest.mark.parametrize("grouped", [False, True])
def test_an_exchange_is_one_group(grouped: bool) -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        rank = gpu.running
        x, y = torch.full((2,), float(rank)), torch.zeros(2)
        dist.exchange[rank] = "all of it"
        if grouped:
            (work,) = dist.batch_isend_irecv(
                [Message(dist.isend, x, 1 - rank, PAIR), Message(dist.irecv, y, 1 - rank, PAIR)]
            )
        else:
            dist.isend(x, 1 - rank, Group((0, 1), 1 + rank)).wait()
            work = dist.irecv(y, 1 - rank, Group((0, 1), 2 - rank))
        work.wait()
        assert values(y) == [1 - rank] * 2

    assert len(faults(Kind.SPLIT, host, host)) == (0 if grouped else 2)


@pytest.mark.parametrize("first", [False, True])
def test_a_kernel_is_loaded_before_a_transfer_may_spin(first: bool) -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        x, y = torch.zeros(2), torch.zeros(2)
        if first:
            y.exp()
        work = dist.all_reduce(x, PAIR, async_op=True)
        y.exp()
        assert work is not None
        work.wait()
        gpu.synchronize()
        y.log()  # here nothing runs

    assert len(faults(Kind.LAZY, host, host)) == (0 if first else 2)


def test_pages_are_not_locked_within_a_step_nor_while_a_transfer_may_spin() -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        gpu.trace.pins(gpu.running, "well before")
        gpu.trace.in_step.add(gpu.running)
        gpu.trace.pins(gpu.running, "in a step")
        gpu.trace.in_step.clear()
        dist.all_reduce(torch.zeros(2), PAIR)
        gpu.trace.pins(gpu.running, "too late")

    texts = [f.text for f in faults(Kind.PINNED, host, host)]
    assert sorted(text.split(" (")[0] for text in texts) == [
        "rank 0: in a step", "rank 0: too late", "rank 1: in a step", "rank 1: too late"
    ]  # fmt: skip


def test_hosts_that_wait_for_each_other_are_told() -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        dist.irecv(torch.zeros(1), 1 - gpu.running, PAIR)
        gpu.synchronize()

    with pytest.raises(RuntimeError, match="deadlock: every rank waits"):
        faults(Kind.UNORDERED, host, host)


def test_collectives_give_what_they_should() -> None:
    def host(gpu: FakeCuda, dist: FakeDist) -> None:
        x = torch.arange(4.0) * (1 + 9 * gpu.running)
        dist.reduce_scatter_tensor(x.view(2, -1)[gpu.running], x, PAIR)
        dist.all_gather_into_tensor(x, x.view(2, -1)[gpu.running], PAIR)
        assert values(x) == [0, 11, 22, 33]
        dist.all_reduce(x, PAIR)
        assert values(x) == [0, 22, 44, 66]

    assert faults(Kind.UNORDERED, host, host) == []
