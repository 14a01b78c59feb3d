"""Sorted, disjoint, half-open integer ranges such as ``((0, 48), (96, 144))``: pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

Range = tuple[int, int]
Ranges = tuple[Range, ...]


def normalise(ranges: Iterable[Range]) -> Ranges:
    """Sort, drop the empty ones and join those that touch or overlap."""
    joined: list[Range] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((start, stop))
    return tuple(joined)


def size(ranges: Ranges) -> int:
    """How many integers the ranges hold."""
    total = 0
    for start, stop in ranges:
        total += stop - start
    return total


def intersect(a: Ranges, b: Ranges) -> Ranges:
    """The integers that are in both."""
    if len(a) == 1 and len(b) == 1:  # by far the most frequent case
        (x,), (y,) = a, b
        start = x[0] if x[0] > y[0] else y[0]
        stop = x[1] if x[1] < y[1] else y[1]
        return ((start, stop),) if start < stop else ()
    found = []
    for x in a:
        for y in b:
            start, stop = max(x[0], y[0]), min(x[1], y[1])
            if start < stop:
                found.append((start, stop))
    return tuple(sorted(found))


def shift(ranges: Ranges, by: int) -> Ranges:
    """Every range moved by ``by``."""
    return tuple((start + by, stop + by) for start, stop in ranges) if by else ranges


@lru_cache(maxsize=65_536)
def local(inner: Ranges, outer: Ranges) -> Ranges:
    """Where ``inner`` lies inside a tensor that holds the integers of ``outer`` one after another.

    ``local(((50, 60),), ((0, 10), (48, 64)))`` is ``((12, 22),)``.
    """
    found = []
    offset = 0
    for start, stop in outer:
        for a, b in inner:
            low, high = max(a, start), min(b, stop)
            if low < high:
                found.append((offset + low - start, offset + high - start))
        offset += stop - start
    return normalise(found)


def at(inner: Range, outer: Ranges) -> Ranges:
    """The integers of ``outer`` at the positions ``inner`` of their concatenation."""
    found, offset = [], 0
    for start, stop in outer:
        low = max(inner[0] - offset, 0)
        high = min(inner[1] - offset, stop - start)
        if low < high:
            found.append((start + low, start + high))
        offset += stop - start
    return tuple(found)


def text(ranges: Ranges) -> str:
    """``0:48,96:144``."""
    return ",".join(f"{start}:{stop}" for start, stop in ranges)
