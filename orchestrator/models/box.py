"""Boxes: a range of integers along each axis of a value, such as channels 0:48 of rows 0:27.

A box says what a rank holds of one example; which examples, it says apart. An axis may have
several ranges, as the channels of two columns that are read together.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from orchestrator.models.ranges import Range, Ranges, intersect, local, normalise, size

Box = tuple[Ranges, ...]
Shape = tuple[int, ...]


def whole(shape: Shape) -> Box:
    """All of a value of this shape."""
    return tuple([((0, n),) for n in shape])


def shape_of(box: Box) -> Shape:
    """Sizes along the axes."""
    return tuple([size(ranges) for ranges in box])


def volume(box: Box) -> int:
    """How many values it holds."""
    total = 1
    for ranges in box:
        total *= size(ranges)
    return total


def is_empty(box: Box) -> bool:
    """Whether it holds nothing."""
    return not all(box)


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of these; an axis keeps its gaps where all have them."""
    found = [box for box in boxes if not is_empty(box)]
    if not found:
        return ()
    return tuple(
        [normalise(r for ranges in axis for r in ranges) for axis in zip(*found, strict=True)]
    )


def intersection(a: Box, b: Box) -> Box:
    """What lies in both."""
    return tuple([intersect(x, y) for x, y in zip(a, b, strict=True)])


@lru_cache(maxsize=65_536)
def within(inner: Box, outer: Box) -> Box:
    """Where ``inner`` lies inside a tensor that holds ``outer`` and nothing else."""
    return tuple([local(x, y) for x, y in zip(inner, outer, strict=True)])


def windows(
    out: Ranges, kernel: int, stride: int, before: int, size_in: int, size_out: int
) -> Ranges:
    """Positions that windows read: window i covers ``stride`` i - ``before`` and ``kernel`` - 1 on.

    Windows at an edge read to the edge, so that a whole output reads its whole input.
    """
    found: list[Range] = []
    for start, stop in out:
        low = 0 if start == 0 else max(0, start * stride - before)
        high = size_in if stop == size_out else min(size_in, (stop - 1) * stride - before + kernel)
        found.append((low, high))
    return normalise(found)


def padding_of(
    out: Box, kernel: int, stride: int, pads: tuple[int, int], before: Shape, after: Shape
) -> tuple[int, ...]:
    """What the windows of a box reach over the edges of its value, whose channels are first.

    Of each side before and after, the last side first, as ``torch.nn.functional.pad`` has it: left,
    right, top, bottom of an image.

    Args:
        pads: positions added before and after each side of the whole value.
        before, after: shapes of the whole input and output.
    """
    found: list[int] = []
    for axis in reversed(range(1, len(out))):
        ((start, stop),) = out[axis]
        if (start, stop) == (0, after[axis]):
            found += pads
        else:
            low = max(0, pads[0] - start * stride)
            high = max(0, (stop - 1) * stride - pads[0] + kernel - before[axis])
            found += (low, high)
    return tuple(found)
