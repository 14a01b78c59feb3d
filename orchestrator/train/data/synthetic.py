"""Images made from (seed, sample): any amount, no download, and a loss that can fall.

    image = pattern of its class + noise of its own,    both of variance 1/2

The pattern is a coarse grid of random values, enlarged; each class has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.train.data.dataset import Indices, checked_indices

IMAGENET_SIZE = 1_281_167
"""Training images of ILSVRC-2012 (Russakovsky et al., IJCV 2015, table 2)."""

_GRID = 4  # cells a side: coarse enough to live through stride-4 convolutions and pooling
_PATTERN, _NOISE = 0, 1  # the two independent streams drawn from one seed


@dataclass(frozen=True)
class Synthetic:
    """``size`` samples; sample i has class i mod ``classes``, so classes are balanced.

    Args:
        size: number of samples.
        image_size: height and width, in pixels.
        channels: channels of an image.
        classes: number of classes.
        seed: another seed gives other patterns and other noise.
    """

    size: int
    image_size: int
    channels: int
    classes: int
    seed: int
    name: str = "synthetic"

    @property
    def description(self) -> str:
        return (
            f"synthetic: {self.size:,} made-up images, {self.classes:,} classes,"
            f" {self.channels}x{self.image_size}x{self.image_size}, seed {self.seed}"
        )

    def images(self, indices: Indices) -> Tensor:
        """(n, channels, image_size, image_size) float32, of mean 0 and variance 1."""
        wanted = checked_indices(indices, self.size)
        shape = (self.channels, self.image_size, self.image_size)
        cell = np.arange(self.image_size) * _GRID // self.image_size
        batch = np.empty((len(wanted), *shape), dtype=np.float32)
        for image, index in zip(batch, wanted.tolist(), strict=True):
            _stream(self.seed, _NOISE, index).random(dtype=np.float32, out=image)
            image -= np.float32(0.5)
            image *= np.float32(6**0.5)  # uniform of width sqrt(6) has variance 6/12 = 1/2
            image += self._patterns[index % self.classes][:, :, cell][:, cell]
        return torch.from_numpy(batch)

    def labels(self, indices: Indices) -> Tensor:
        """(n,) int64."""
        return torch.from_numpy(checked_indices(indices, self.size) % self.classes)

    @cached_property
    def _patterns(self) -> npt.NDArray[np.float32]:
        """(classes, channels, _GRID, _GRID), each class of mean 0 and variance 1/2."""
        stream = _stream(self.seed, _PATTERN, 0)
        grids = stream.standard_normal((self.classes, self.channels, _GRID, _GRID))
        grids -= grids.mean(axis=(1, 2, 3), keepdims=True)
        grids *= np.sqrt(0.5) / grids.std(axis=(1, 2, 3), keepdims=True)
        return grids.astype(np.float32)


def _stream(seed: int, stream: int, number: int) -> np.random.Generator:
    """A generator of its own for each (seed, stream, number)."""
    key = np.random.SeedSequence(seed, spawn_key=(stream, number))
    return np.random.Generator(np.random.Philox(key))
