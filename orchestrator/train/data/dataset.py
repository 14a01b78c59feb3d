"""What every data set offers: single images and labels by index, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from orchestrator.errors import InputError

Indices: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]


class Dataset(Protocol):
    """Images and labels by sample index.

    A sample depends on its index only, never on the batch it is asked for in, so that ranks which
    load different parts of a batch see what one device would see. Images and labels are separate
    calls because different ranks need them. Both are safe to call from any thread.
    """

    @property
    def name(self) -> str:
        """The kind of data, as in ``--data``: ``digits``, ``synthetic``, ``imagefolder``."""

    @property
    def description(self) -> str:
        """One plain line for the user."""

    @property
    def size(self) -> int:
        """Number of samples."""

    @property
    def classes(self) -> int:
        """Number of classes; labels run from 0 to ``classes - 1``."""

    def images(self, indices: Indices) -> Tensor:
        r"""Normalised float32 examples of shape (n, \*the shape that was asked for).

        Raises:
            InputError: a sample cannot be read; the message names it.
            IndexError: an index below 0, or not below ``size``.
        """

    def labels(self, indices: Indices) -> Tensor:
        """int64 class numbers of shape (n,).

        Raises:
            IndexError: an index below 0, or not below ``size``.
        """


def checked_indices(indices: Indices, size: int) -> npt.NDArray[np.int64]:
    """``indices`` as an int64 array of shape (n,); IndexError unless all are in 0..size-1."""
    array = np.asarray(indices, dtype=np.int64)
    outside = array[(array < 0) | (array >= size)]
    if outside.size:
        raise IndexError(f"sample {outside[0]} of a data set of {size} (0..{size - 1})")
    return array


def by_sides(shape: Shape) -> str:
    """``3x224x224``."""
    return "x".join(map(str, shape))


def refuse_shape(what: str, has: str, shape: Shape, location: str) -> InputError:
    """The model reads examples of a shape that the data does not have.

    Args:
        what: the data.
        has: the shapes that it has.
    """
    sides = f"{by_sides(shape)} values" if len(shape) > 1 else f"vectors of {shape[0]} values"
    return InputError(
        f"{what} has {has}; the model reads {sides}",
        location,
        "--data synthetic, which has any shape, or another input_shape of the model",
    )


def refuse_more_classes(what: str, found: int, classes: int, location: str) -> None:
    """InputError where the data has more classes than the model has outputs. Fewer is fine."""
    if found > classes:
        raise InputError(
            f"{what} has {found:,} classes, but the model tells only {classes:,} apart",
            location,
            f"give the model as many outputs: --set model.classes={found}",
        )
