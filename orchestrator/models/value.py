"""What a layer reads and gives: the shape and the named axes of one example's value."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, whole
from orchestrator.models.ranges import Ranges

INPUT, LABELS = "input", "labels"  # what a model reads from its data, as if they were layers
IMAGE_AXES = ("channel", "height", "width")
VECTOR_AXES = ("channel",)
SEQUENCE_AXES = ("token", "channel")


class Value(NamedTuple):
    """What a layer gives for one example.

    Args:
        shape: sizes, in the order of the tensor's dimensions behind the first, the examples.
        axes: their names.
        integer: class or token numbers, which have no gradient.
    """

    shape: Shape
    axes: tuple[str, ...]
    integer: bool = False

    def size(self, axis: str) -> int:
        """Positions along an axis; 1 where the value does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def channels(self) -> int:
        """Channels, or features."""
        return self.size("channel")

    @property
    def whole(self) -> Box:
        """The box that is all of it."""
        return whole(self.shape)

    def along(self, box: Box, axis: str) -> Ranges:
        """A box's ranges along one axis."""
        return box[self.axes.index(axis)]


def value_of(shape: Shape) -> Value:
    """An image of (channels, height, width), a sequence of (tokens, features) or a vector of
    (features,)."""
    axes = {3: IMAGE_AXES, 2: SEQUENCE_AXES, 1: VECTOR_AXES}.get(len(shape))
    if axes is None:
        raise InputError(
            f"an input of {len(shape)} dimensions; allowed: (channels, height, width), "
            "(tokens, features), (features,), or (tokens,) where an Embedding reads it"
        )
    return Value(tuple(shape), axes)
