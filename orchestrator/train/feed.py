"""A rank's images and labels for each step, loaded ahead of need and only those it uses."""

from __future__ import annotations

from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.execute.device import Cpu, Device, Mark
from orchestrator.program.ops import COMPUTE
from orchestrator.train.data import Dataset, Prefetcher, SampleOrder

_STAGED = 3  # batches: of the running step, of the next one, and one that is being filled


class _Staging(NamedTuple):
    """Host tensors that hold one batch after another.

    Args:
        read: the device has read the last one when it has reached this.
    """

    images: Tensor
    labels: Tensor
    read: Mark | None


class _Batch(NamedTuple):
    """What a rank reads in a step; in the tensors of ``staging``, where there are any."""

    step: int
    images: Tensor
    labels: Tensor
    staging: _Staging | None


class DataFeed:
    """Serves the interpreter from a data set.

    Batches are loaded on a thread of their own. For a GPU they are put into pinned memory there,
    which is made once, before the first batch is served.

    Args:
        image_samples, label_samples: places in the step's global batch, ascending, whose images and
            labels will be asked for.
        start, stop: first step, and the step to end before.
        device: where they are loaded to.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        *,
        image_samples: Tensor,
        label_samples: Tensor,
        start: int,
        stop: int,
        device: Device | None = None,
    ) -> None:
        self.dataset, self.order, self.device = dataset, order, device or Cpu()
        self.image_samples = torch.unique(image_samples)
        self.label_samples = torch.unique(label_samples)
        self._batch: _Batch | None = None
        self._stagings: SimpleQueue[_Staging | None] | None = None
        self._loader = Prefetcher(self._load, start, stop)

    def images(self, step: int, samples: Tensor) -> Tensor:
        batch = self._at(step)
        return _rows(batch.images, self.image_samples, samples, pinned=batch.staging is not None)

    def labels(self, step: int, samples: Tensor) -> Tensor:
        batch = self._at(step)
        return _rows(batch.labels, self.label_samples, samples, pinned=batch.staging is not None)

    def begin(self, step: int) -> None:
        """Wait until a step's batch is loaded."""
        self._at(step)

    def close(self) -> None:
        """Stop loading."""
        self._loader.close()

    def __enter__(self) -> DataFeed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _at(self, step: int) -> _Batch:
        while self._batch is None or self._batch.step < step:
            if self._batch is not None and self._stagings is not None:
                staging = self._batch.staging
                if staging is not None:
                    staging = staging._replace(read=self.device.mark(COMPUTE))
                self._stagings.put(staging)
            self._batch = self._loader.next()
        assert self._batch.step == step
        return self._batch

    def _load(self, step: int) -> _Batch:
        indices = self.order.indices(step)
        images = self.dataset.images(indices[self.image_samples.numpy()])
        labels = self.dataset.labels(indices[self.label_samples.numpy()])
        if self._stagings is None:
            self._stagings = SimpleQueue()
            for _ in range(_STAGED):
                self._stagings.put(self._staging(images, labels))
        staging = self._stagings.get()
        if staging is None:
            return _Batch(step, images, labels, None)
        if staging.read is not None:
            self.device.wait(staging.read)
        return _Batch(step, staging.images.copy_(images), staging.labels.copy_(labels), staging)

    def _staging(self, images: Tensor, labels: Tensor) -> _Staging | None:
        first, second = self.device.staging(images), self.device.staging(labels)
        return None if first is None or second is None else _Staging(first, second, None)


def _rows(data: Tensor, places: Tensor, samples: Tensor, *, pinned: bool) -> Tensor:
    """Those of some samples. Where pinned ones lie together they are not copied, and so stay it."""
    rows = torch.searchsorted(places, samples)
    if pinned and len(rows):
        first, count = int(rows[0]), len(rows)
        if torch.equal(rows, torch.arange(first, first + count)):
            return data[first : first + count]
    return data[rows]
