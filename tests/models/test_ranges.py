"""Ranges of integers behave as the sets of integers they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.ranges import Ranges, at, intersect, local, normalise, shift, size, text

PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5)
RANGES = PAIRS.map(normalise)


def members(ranges: Ranges) -> list[int]:
    return [i for start, stop in ranges for i in range(start, stop)]


@given(PAIRS)
def test_normalise_keeps_the_integers_sorted_and_apart(pairs: list[tuple[int, int]]) -> None:
    found = normalise(pairs)
    assert set(members(found)) == {i for a, b in pairs for i in range(a, b)}
    assert all(start < stop for start, stop in found)
    assert all(a[1] < b[0] for a, b in zip(found, found[1:], strict=False))


@given(RANGES, RANGES)
def test_intersect_is_that_of_sets(a: Ranges, b: Ranges) -> None:
    found = intersect(a, b)
    assert members(found) == sorted(set(members(a)) & set(members(b)))
    assert intersect(b, a) == found == normalise(found)


@given(RANGES, st.integers(-40, 40))
def test_shift_moves_every_integer(a: Ranges, by: int) -> None:
    assert members(shift(a, by)) == [i + by for i in members(a)]
    assert size(a) == len(members(a))


@given(RANGES, RANGES)
def test_local_gives_places_in_the_concatenation(inner: Ranges, outer: Ranges) -> None:
    held = members(outer)
    places = [held.index(i) for i in sorted(set(members(inner)) & set(held))]
    assert members(local(inner, outer)) == places


@given(RANGES, st.integers(0, 40), st.integers(0, 40))
def test_at_is_the_inverse_of_local(outer: Ranges, low: int, count: int) -> None:
    found = at((low, low + count), outer)
    assert members(found) == members(outer)[low : low + count]
    assert members(local(found, outer)) == list(range(size(outer)))[low : low + count]


def test_text_is_as_a_reader_writes_slices() -> None:
    assert text(((0, 48), (96, 144))) == "0:48,96:144"
    assert local(((50, 60),), ((0, 10), (48, 64))) == ((12, 22),)
