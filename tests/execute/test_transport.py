"""The transport inside one process: order, the two ways a send ends, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from orchestrator.execute.transport import LocalWorld


def test_transfers_of_a_pair_meet_in_order_without_tags() -> None:
    world = LocalWorld()
    a, b = world.transport(0), world.transport(1)
    buffers = [torch.zeros(2) for _ in range(2)]
    received = [b.receive(buffer, 0) for buffer in buffers]
    assert not any(handle.done() for handle in received)
    for value in (1.0, 2.0):
        a.send(torch.full((2,), value), 1)
    assert [buffer.tolist() for buffer in buffers] == [[1, 1], [2, 2]]
    assert all(handle.done() for handle in received)
    start, end = received[0].marks()
    assert start <= end


def test_the_other_direction_is_another_pair() -> None:
    world = LocalWorld()
    buffer = torch.zeros(1)
    received = world.transport(1).receive(buffer, 0)
    world.transport(1).send(torch.ones(1), 0)
    assert not received.done()


def test_a_strict_send_ends_with_its_receive_and_another_at_once() -> None:
    tensor, buffer = torch.ones(1), torch.zeros(1)
    strict = LocalWorld(strict=True)
    sent = strict.transport(0).send(tensor, 1)
    assert not sent.done()
    strict.transport(1).receive(buffer, 0)
    assert sent.done()
    loose = LocalWorld(strict=False)
    sent = loose.transport(0).send(tensor, 1)
    assert sent.done()
    tensor.zero_()  # it may change now: what was sent is a copy
    loose.transport(1).receive(buffer, 0)
    assert buffer.item() == 1


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_a_buffer_that_does_not_fit_is_told(other: torch.Tensor) -> None:
    world = LocalWorld()
    world.transport(0).send(torch.zeros(2), 1)
    with pytest.raises(RuntimeError, match=r"rank 0 sends \(2,\) torch.float32 and rank 1 expects"):
        world.transport(1).receive(other, 0)


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
