"""scikit-learn's handwritten digits: 1,797 real 8x8 gray images that need no download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as ``sklearn.datasets.load_digits`` ships it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orchestrator.train.data.dataset import (
    Indices,
    Shape,
    by_sides,
    checked_indices,
    refuse_more_classes,
    refuse_shape,
)


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits, brought to a model's input shape.

    Args:
        pixels: (1797, 8, 8) float32, of mean 0 and variance 1 over all pixels of all images.
        targets: (1797,) int64, the digit.
        shape: to give: (channels, height, width), the gray image repeated for each channel; or
            (64,), its pixels.
    """

    pixels: Tensor
    targets: Tensor
    shape: Shape
    name: str = "digits"

    @property
    def description(self) -> str:
        scaled = f"scaled to {by_sides(self.shape)}" if len(self.shape) > 1 else "as 64 pixels"
        return (
            f"digits: {self.size:,} real handwritten digits (scikit-learn), {self.classes} classes,"
            f" 8x8 gray {scaled}"
        )

    @property
    def size(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> int:
        return int(self.targets.max()) + 1

    def images(self, indices: Indices) -> Tensor:
        """(n, *shape) float32, bilinear, antialiased where shrunk."""
        wanted = checked_indices(indices, self.size)
        if len(self.shape) == 1:
            return self.pixels[torch.from_numpy(wanted)].flatten(1)
        sides = self.shape[1:]
        batch = torch.empty(len(wanted), *self.shape)
        # One image a call: a sample's bits must not depend on how torch vectorises a batch.
        for row, index in enumerate(wanted.tolist()):
            batch[row] = interpolate(
                self.pixels[None, None, index],
                size=sides,
                mode="bilinear",
                antialias=min(sides) < self.pixels.shape[-1],
            )[0]
        return batch

    def labels(self, indices: Indices) -> Tensor:
        """(n,) int64."""
        return self.targets[torch.from_numpy(checked_indices(indices, self.size))]


def open_digits(shape: Shape, classes: int) -> Digits:
    """The digits for a model that reads (channels, height, width), or their 64 pixels.

    They are normalised with the mean and deviation of their own 8x8 pixels. Enlarging keeps the
    mean, and smooths the variance to about 3/4.

    Raises:
        InputError: the model reads another kind of shape, or has fewer than ten classes.
    """
    if len(shape) != 3 and shape != (64,):
        has = "images of channels x height x width, or vectors of their 64 pixels"
        raise refuse_shape("digits", has, shape, "--data digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.as_tensor(bunch.images, dtype=torch.float64)
    normal = (pixels - pixels.mean()) / pixels.std(correction=0)
    targets = torch.as_tensor(bunch.target, dtype=torch.int64)
    data = Digits(normal.to(torch.float32), targets, shape)
    refuse_more_classes("digits", data.classes, classes, "--data digits")
    return data
