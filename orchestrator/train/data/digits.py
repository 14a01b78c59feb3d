"""scikit-learn's handwritten digits: 1,797 real 8x8 gray images that need no download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (its test part, as ``sklearn.datasets.load_digits`` ships it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orchestrator.train.data.dataset import Indices, checked_indices, refuse_more_classes


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits, brought to a model's input shape.

    Args:
        pixels: (1797, 8, 8) float32, of mean 0 and variance 1 over all pixels of all images.
        targets: (1797,) int64, the digit.
        image_size: height and width to give, in pixels.
        channels: the gray image is repeated this often.
    """

    pixels: Tensor
    targets: Tensor
    image_size: int
    channels: int
    name: str = "digits"

    @property
    def description(self) -> str:
        return (
            f"digits: {self.size:,} real handwritten digits (scikit-learn), {self.classes} classes,"
            f" 8x8 gray scaled to {self.channels}x{self.image_size}x{self.image_size}"
        )

    @property
    def size(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> int:
        return int(self.targets.max()) + 1

    def images(self, indices: Indices) -> Tensor:
        """(n, channels, image_size, image_size) float32, bilinear, antialiased where shrunk."""
        wanted = checked_indices(indices, self.size)
        side = self.image_size
        batch = torch.empty(len(wanted), self.channels, side, side)
        # One image a call: a sample's bits must not depend on how torch vectorises a batch.
        for row, index in enumerate(wanted.tolist()):
            batch[row] = interpolate(
                self.pixels[None, None, index],
                size=(side, side),
                mode="bilinear",
                antialias=side < self.pixels.shape[-1],
            )[0]
        return batch

    def labels(self, indices: Indices) -> Tensor:
        """(n,) int64."""
        return self.targets[torch.from_numpy(checked_indices(indices, self.size))]


def open_digits(image_size: int, channels: int, classes: int) -> Digits:
    """The digits for a model that reads (channels, image_size, image_size).

    They are normalised with the mean and deviation of their own 8x8 pixels. Enlarging keeps the
    mean, and smooths the variance to about 3/4.

    Raises:
        InputError: the model has fewer than ten classes.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.as_tensor(bunch.images, dtype=torch.float64)
    normal = (pixels - pixels.mean()) / pixels.std(correction=0)
    targets = torch.as_tensor(bunch.target, dtype=torch.int64)
    data = Digits(normal.to(torch.float32), targets, image_size, channels)
    refuse_more_classes("digits", data.classes, classes, "--data digits")
    return data
