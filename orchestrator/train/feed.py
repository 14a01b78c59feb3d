"""A rank's images and labels for each step, loaded ahead of need and only those it uses."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.train.data import Dataset, Prefetcher, SampleOrder


class _Batch(NamedTuple):
    step: int
    images: Tensor
    labels: Tensor


class DataFeed:
    """Serves the interpreter from a data set.

    Args:
        image_samples, label_samples: places in the step's global batch, ascending, whose images and
            labels will be asked for.
        start, stop: first step, and the step to end before.
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
    ) -> None:
        self.dataset, self.order = dataset, order
        self.image_samples = torch.unique(image_samples)
        self.label_samples = torch.unique(label_samples)
        self._batch: _Batch | None = None
        self._loader = Prefetcher(self._load, start, stop)

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self._at(step).images[torch.searchsorted(self.image_samples, samples)]

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self._at(step).labels[torch.searchsorted(self.label_samples, samples)]

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
            self._batch = self._loader.next()
        assert self._batch.step == step
        return self._batch

    def _load(self, step: int) -> _Batch:
        indices = self.order.indices(step)
        images = self.dataset.images(indices[self.image_samples.numpy()])
        labels = self.dataset.labels(indices[self.label_samples.numpy()])
        return _Batch(step, images, labels)
