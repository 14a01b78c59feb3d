"""Examples made from (seed, sample): any amount, no download, and a loss that can fall.

    example = pattern of its class + noise of its own,    both of variance 1/2

The pattern is a coarse grid of random values, enlarged; each class has its own. Of a vector every
value has a pattern of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.train.data.dataset import Indices, Shape, by_sides, checked_indices

IMAGENET_SIZE = 1_281_167
"""Training images of ILSVRC-2012 (Russakovsky et al., IJCV 2015, table 2)."""

_GRID = 4  # cells a side: coarse enough to live through stride-4 convolutions and pooling
_PATTERN, _NOISE, _LABELS = 0, 1, 2  # the independent streams drawn from one seed


@dataclass(frozen=True)
class Synthetic:
    """``size`` samples; sample i has class i mod ``classes``, so classes are balanced.

    Args:
        size: number of samples.
        shape: of an example: channels, and any number of sides.
        classes: number of classes.
        seed: another seed gives other patterns and other noise.
        labelled: shape of an example's labels: () for one, (tokens,) for one a token.
        vocabulary: where it is not 0, examples are token numbers below it, drawn evenly.
    """

    size: int
    shape: Shape
    classes: int
    seed: int
    labelled: Shape = ()
    vocabulary: int = 0
    name: str = "synthetic"

    @property
    def description(self) -> str:
        what = "images" if len(self.shape) == 3 else "examples"
        return (
            f"synthetic: {self.size:,} made-up {what}, {self.classes:,} classes,"
            f" {by_sides(self.shape)}, seed {self.seed}"
        )

    def images(self, indices: Indices) -> Tensor:
        """(n, *shape) float32, of mean 0 and variance 1; of token numbers int64."""
        wanted = checked_indices(indices, self.size)
        if self.vocabulary:
            return torch.from_numpy(self._numbers(wanted, _NOISE, self.shape, self.vocabulary))
        cells = [np.arange(side) * _GRID // side for side in self.shape[1:]]
        enlarged = np.ix_(np.arange(self.shape[0]), *cells)
        batch = np.empty((len(wanted), *self.shape), dtype=np.float32)
        for image, index in zip(batch, wanted.tolist(), strict=True):
            _stream(self.seed, _NOISE, index).random(dtype=np.float32, out=image)
            image -= np.float32(0.5)
            image *= np.float32(6**0.5)  # uniform of width sqrt(6) has variance 6/12 = 1/2
            image += self._patterns[index % self.classes][enlarged]
        return torch.from_numpy(batch)

    def labels(self, indices: Indices) -> Tensor:
        """(n, *labelled) int64."""
        wanted = checked_indices(indices, self.size)
        if self.labelled:
            return torch.from_numpy(self._numbers(wanted, _LABELS, self.labelled, self.classes))
        return torch.from_numpy(wanted % self.classes)

    def _numbers(
        self, wanted: npt.NDArray[np.int64], stream: int, shape: Shape, below: int
    ) -> npt.NDArray[np.int64]:
        """Whole numbers from 0, drawn for each sample."""
        drawn = [_stream(self.seed, stream, i).integers(below, size=shape) for i in wanted.tolist()]
        return np.array(drawn, dtype=np.int64).reshape(len(wanted), *shape)

    @cached_property
    def _patterns(self) -> npt.NDArray[np.float32]:
        """(classes, channels, _GRID a side), each class of mean 0 and variance 1/2."""
        stream = _stream(self.seed, _PATTERN, 0)
        sides = (_GRID,) * (len(self.shape) - 1)
        grids = stream.standard_normal((self.classes, self.shape[0], *sides))
        over = tuple(range(1, grids.ndim))
        if grids[0].size > 1:
            grids -= grids.mean(axis=over, keepdims=True)
            grids *= np.sqrt(0.5) / grids.std(axis=over, keepdims=True)
        return grids.astype(np.float32)


def _stream(seed: int, stream: int, number: int) -> np.random.Generator:
    """A generator of its own for each (seed, stream, number)."""
    key = np.random.SeedSequence(seed, spawn_key=(stream, number))
    return np.random.Generator(np.random.Philox(key))
