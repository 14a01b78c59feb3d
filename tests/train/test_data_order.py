"""SampleOrder: every epoch a permutation, any step at any time, the same for all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.train.data import SampleOrder


@given(st.integers(1, 60), st.data(), st.integers(0, 2**40), st.integers(0, 3))
def test_an_epoch_takes_no_sample_twice(
    size: int, data: st.DataObject, seed: int, epoch: int
) -> None:
    batch = data.draw(st.integers(1, size))
    order = SampleOrder(size, batch, seed)
    assert order.steps_per_epoch == size // batch
    first = epoch * order.steps_per_epoch
    taken = np.concatenate([order.indices(first + i) for i in range(order.steps_per_epoch)])
    assert taken.dtype == np.int64
    assert len(taken) == size // batch * batch
    assert len(set(taken.tolist())) == len(taken)
    assert taken.min() >= 0
    assert taken.max() < size


def test_every_sample_is_taken_when_the_batch_divides() -> None:
    order = SampleOrder(12, 4, seed=5)
    assert sorted(np.concatenate([order.indices(s) for s in (3, 4, 5)])) == list(range(12))


def test_steps_may_come_in_any_order() -> None:
    """A resumed run asks for step 11 first, and must get what the unbroken run got."""
    unbroken = SampleOrder(50, 8, seed=1)
    steps = {step: unbroken.indices(step) for step in range(20)}
    for step in (11, 3, 19, 0, 12, 11):
        resumed = SampleOrder(50, 8, seed=1)
        assert resumed.indices(step).tolist() == steps[step].tolist()
        assert unbroken.indices(step).tolist() == steps[step].tolist()


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [int(i) for i in SampleOrder(100, 100, seed).indices(number)]

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert epoch(0, 1) != epoch(1, 0)  # (seed, epoch), not their sum
    assert epoch(0, 0) != list(range(100))


def test_the_order_is_pinned() -> None:
    """A checkpoint resumed by a later version must go on with the samples it would have had."""
    assert SampleOrder(7, 7, seed=0).indices(0).tolist() == [3, 5, 4, 0, 6, 2, 1]


def test_a_caller_may_write_into_its_indices() -> None:
    order = SampleOrder(10, 10, seed=0)
    mine = order.indices(0)
    before = mine.copy()
    mine[:] = 0
    assert order.indices(0).tolist() == before.tolist()


def test_a_batch_larger_than_the_data() -> None:
    SampleOrder(1797, 1797, seed=0)
    with pytest.raises(InputError) as refused:
        SampleOrder(1797, 2048, seed=0)
    assert "2,048" in refused.value.message
    assert "1,797" in refused.value.message
    assert "--set global_batch_size=1797" in refused.value.remedy


@pytest.mark.parametrize(("size", "batch", "seed"), [(0, 1, 0), (5, 0, 0), (5, -1, 0), (5, 1, -1)])
def test_senseless_numbers(size: int, batch: int, seed: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        SampleOrder(size, batch, seed)


def test_a_negative_step() -> None:
    with pytest.raises(ValueError, match="negative"):
        SampleOrder(5, 1, 0).indices(-1)
