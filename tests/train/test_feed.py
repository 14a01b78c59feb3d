"""A rank's feed: the global batch's images and labels, of which it loads those it uses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.device import Device
from orchestrator.train.data import Indices, SampleOrder
from orchestrator.train.feed import DataFeed

SIZE, BATCH = 20, 6
ORDER = SampleOrder(SIZE, BATCH, seed=2)


@dataclass
class Numbers:
    """Sample i is an image of i, labelled i; remembers what was asked for."""

    broken: int = -1
    images_asked: list[list[int]] = field(default_factory=list)
    labels_asked: list[list[int]] = field(default_factory=list)
    name: str = "numbers"
    description: str = "numbers"
    size: int = SIZE
    classes: int = SIZE

    def images(self, indices: Indices) -> Tensor:
        wanted = cast("list[int]", np.asarray(indices).tolist())
        if self.broken in wanted:
            raise InputError(f"sample {self.broken} is broken")
        self.images_asked.append(wanted)
        return torch.tensor(wanted, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)

    def labels(self, indices: Indices) -> Tensor:
        self.labels_asked.append(np.asarray(indices).tolist())
        return torch.tensor(indices)


def feed_of(data: Numbers, images: list[int], labels: list[int], stop: int = 4) -> DataFeed:
    return DataFeed(
        data, ORDER, image_samples=torch.tensor(images, dtype=torch.int64),
        label_samples=torch.tensor(labels, dtype=torch.int64), start=0, stop=stop,
    )  # fmt: skip


places = st.lists(st.integers(0, BATCH - 1), min_size=1, max_size=8)


@settings(max_examples=50)
@given(mine=places, labels=places, asked=st.data())
def test_each_place_of_the_batch_has_its_own_sample(
    mine: list[int], labels: list[int], asked: st.DataObject
) -> None:
    """In any order, as often as wanted, across the end of an epoch."""
    with feed_of(Numbers(), mine, labels) as feed:
        for step in range(4):
            for _ in range(2):
                some = asked.draw(st.lists(st.sampled_from(mine), min_size=1))
                images = feed.images(step, torch.tensor(some))
                assert images.shape == (len(some), 1, 2, 2)
                assert images[:, 0, 0, 0].tolist() == ORDER.indices(step)[some].tolist()
                some = asked.draw(st.lists(st.sampled_from(labels), min_size=1))
                assert feed.labels(step, torch.tensor(some)).tolist() == [
                    ORDER.indices(step)[place] for place in some
                ]


def test_only_what_the_rank_uses_is_loaded_and_once() -> None:
    data = Numbers()
    with feed_of(data, [4, 1, 4], [], stop=2) as feed:
        for step in (0, 0, 1):
            feed.images(step, torch.tensor([1, 4]))
    assert data.images_asked == [ORDER.indices(step)[[1, 4]].tolist() for step in (0, 1)]
    assert data.labels_asked == [[], []]


def test_a_rank_that_needs_no_images_loads_none() -> None:
    data = Numbers()
    with feed_of(data, [], [0]) as feed:
        assert feed.labels(0, torch.tensor([0])).tolist() == [ORDER.indices(0)[0]]
    assert all(asked == [] for asked in data.images_asked)


def test_steps_may_be_left_out_but_not_gone_back_to() -> None:
    with feed_of(Numbers(), [0], [0]) as feed:
        assert feed.labels(2, torch.tensor([0])).tolist() == [ORDER.indices(2)[0]]
        with pytest.raises(AssertionError):
            feed.labels(1, torch.tensor([0]))


def test_what_is_wrong_with_a_sample_is_told_in_its_step() -> None:
    """It is loaded a step ahead, on another thread."""
    broken = int(ORDER.indices(1)[0])
    with feed_of(Numbers(broken=broken), [0], [0]) as feed:
        feed.images(0, torch.tensor([0]))
        with pytest.raises(InputError, match=f"sample {broken} is broken"):
            feed.images(1, torch.tensor([0]))


def test_a_feed_ends_with_its_last_step_and_when_closed() -> None:
    feed = feed_of(Numbers(), [0], [0], stop=1)
    feed.images(0, torch.tensor([0]))
    with pytest.raises(RuntimeError, match="no step 1"):
        feed.images(1, torch.tensor([0]))
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        feed.images(1, torch.tensor([0]))


class Far:
    """A device with memory of its own: counts the host tensors that are made for it, and reaches a
    mark when it is told to."""

    def __init__(self) -> None:
        self.torch = torch.device("cpu")
        self.made: list[Tensor] = []
        self.marks: list[Event] = []

    def mark(self, lane: str) -> Event:
        self.marks.append(Event())
        return self.marks[-1]

    def wait(self, mark: Event) -> None:
        assert mark.wait(60)

    def staging(self, like: Tensor) -> Tensor:
        self.made.append(torch.empty_like(like, memory_format=torch.contiguous_format))
        return self.made[-1]


def far_feed(device: Far, places: list[int], stop: int) -> DataFeed:
    return DataFeed(
        Numbers(), ORDER, image_samples=torch.tensor(places), label_samples=torch.tensor([0]),
        start=0, stop=stop, device=cast(Device, device),
    )  # fmt: skip


def test_host_memory_for_a_gpu_is_made_once_and_read_where_it_lies() -> None:
    device = Far()
    with far_feed(device, [1, 3, 4], 8) as feed:
        for step in range(8):
            images = feed.images(step, torch.tensor([3, 4]))
            assert images[:, 0, 0, 0].tolist() == ORDER.indices(step)[[3, 4]].tolist()
            memory = {x.untyped_storage().data_ptr() for x in device.made}
            assert images.untyped_storage().data_ptr() in memory
            apart = feed.images(step, torch.tensor([4, 1]))  # these do not lie together
            assert apart[:, 0, 0, 0].tolist() == ORDER.indices(step)[[4, 1]].tolist()
            for mark in device.marks:
                mark.set()
    assert len(device.made) == 3 * 2


def test_what_a_gpu_has_yet_to_read_is_not_overwritten() -> None:
    """Three batches have memory; the fourth waits until the device has read the first."""
    device = Far()
    with far_feed(device, [0], 5) as feed:
        batches = [feed.images(step, torch.tensor([0])) for step in range(3)]
        assert len(device.marks) == 2
        time.sleep(0.05)
        for step, images in enumerate(batches):
            assert images[0, 0, 0, 0].item() == ORDER.indices(step)[0]
        device.marks[0].set()
        assert feed.images(3, torch.tensor([0]))[0, 0, 0, 0].item() == ORDER.indices(3)[0]
        assert batches[0].data_ptr() == feed.images(3, torch.tensor([0])).data_ptr()
