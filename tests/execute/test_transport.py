"""The transport inside one process: order, the two ways a send ends, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from orchestrator.execute.transport import LocalWorld
from orchestrator.program.boundary import Route

THERE, BACK = Route((0,), (1,)), Route((1,), (0,))


def test_messages_of_a_pair_meet_in_order_without_tags() -> None:
    world = LocalWorld()
    a, b = world.transport(0), world.transport(1)
    buffers = [torch.zeros(2) for _ in range(2)]
    received = [b.exchange(THERE, [], [(0, buffer)]) for buffer in buffers]
    assert not any(handle.done() for handle in received)
    for value in (1.0, 2.0):
        a.exchange(THERE, [(1, torch.full((2,), value))], [])
    assert [buffer.tolist() for buffer in buffers] == [[1, 1], [2, 2]]
    assert all(handle.done() for handle in received)
    ((start, end),) = received[0].marks()
    assert start <= end


def test_another_route_between_the_same_ranks_is_another() -> None:
    world = LocalWorld()
    both = Route((0, 1), (0, 1))
    buffer = torch.zeros(1)
    received = world.transport(1).exchange(both, [], [(0, buffer)])
    world.transport(1).exchange(BACK, [(0, torch.ones(1))], [])
    world.transport(0).exchange(THERE, [(1, torch.ones(1))], [])
    assert not received.done()
    world.transport(0).exchange(both, [(1, torch.ones(1))], [])
    assert received.done()


def test_exchanges_of_a_route_go_one_after_another() -> None:
    """The second has its other side, and waits for the first."""
    world = LocalWorld()
    route = Route((0, 1, 2), (0, 1, 2))
    buffers = [torch.zeros(1) for _ in range(2)]
    first = world.transport(0).exchange(route, [], [(1, buffers[0])])
    second = world.transport(0).exchange(route, [], [(2, buffers[1])])
    sent = world.transport(2).exchange(route, [(0, torch.ones(1))], [])
    assert not any(handle.done() for handle in (first, second, sent))
    world.transport(1).exchange(route, [(0, torch.ones(1))], [])
    assert all(handle.done() for handle in (first, second, sent))


def test_an_exchange_ends_with_its_last_message() -> None:
    """Rank 1 answers at once and rank 2 later, which is noted of its own message alone."""
    world = LocalWorld()
    route = Route((0, 1, 2), (0, 1, 2))
    one, two = torch.zeros(1), torch.zeros(1)
    sends = [(1, torch.ones(1)), (2, torch.ones(1))]
    mine = world.transport(0).exchange(route, sends, [(1, one), (2, two)])
    for rank in (1, 2):
        assert not mine.done()
        other = [(0, torch.full((1,), float(rank)))]
        world.transport(rank).exchange(route, other, [(0, torch.zeros(1))])
    assert mine.done()
    assert (one.item(), two.item()) == (1, 2)
    to_one, to_two, from_one, from_two = (end for _, end in mine.marks())
    assert max(to_one, from_one) < min(to_two, from_two)


def test_a_strict_send_ends_with_its_receive_and_another_at_once() -> None:
    tensor, buffer = torch.ones(1), torch.zeros(1)
    strict = LocalWorld(strict=True)
    sent = strict.transport(0).exchange(THERE, [(1, tensor)], [])
    assert not sent.done()
    strict.transport(1).exchange(THERE, [], [(0, buffer)])
    assert sent.done()
    loose = LocalWorld(strict=False)
    sent = loose.transport(0).exchange(THERE, [(1, tensor)], [])
    assert sent.done()
    tensor.zero_()  # it may change now: what was sent is a copy
    loose.transport(1).exchange(THERE, [], [(0, buffer)])
    assert buffer.item() == 1


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_a_buffer_that_does_not_fit_is_told(other: torch.Tensor) -> None:
    world = LocalWorld()
    world.transport(0).exchange(THERE, [(1, torch.zeros(2))], [])
    with pytest.raises(RuntimeError, match=r"rank 0 sends \(2,\) torch.float32 and rank 1 expects"):
        world.transport(1).exchange(THERE, [], [(0, other)])


def test_collectives_meet_when_all_have_come() -> None:
    world, group = LocalWorld(), (0, 2, 5)
    tensors = [torch.arange(3.0) + 10 * r for r in range(3)]
    handles = [
        world.transport(rank).collective("ALL_REDUCE", tensor, group)
        for rank, tensor in zip((5, 0), (tensors[2], tensors[0]), strict=True)
    ]
    assert not any(handle.done() for handle in handles)
    world.transport(2).collective("ALL_REDUCE", tensors[1], group)
    assert all(handle.done() for handle in handles)
    assert [t.tolist() for t in tensors] == [[30, 33, 36]] * 3


def test_scatter_and_gather_are_the_halves_of_a_reduction() -> None:
    world, group = LocalWorld(), (0, 1)
    tensors = [torch.arange(4.0), torch.arange(4.0) * 10]
    for rank in group:
        world.transport(rank).collective("REDUCE_SCATTER", tensors[rank], group)
    assert tensors[0][:2].tolist() == [0, 11]
    assert tensors[1][2:].tolist() == [22, 33]
    for rank in group:
        world.transport(rank).collective("ALL_GATHER", tensors[rank], group)
    assert [t.tolist() for t in tensors] == [[0, 11, 22, 33]] * 2


def test_different_collectives_that_meet_are_told() -> None:
    world = LocalWorld()
    world.transport(0).collective("ALL_REDUCE", torch.zeros(2), (0, 1))
    with pytest.raises(RuntimeError, match=r"different collectives meet over ranks \(0, 1\)"):
        world.transport(1).collective("ALL_GATHER", torch.zeros(2), (0, 1))
