"""A grid of ranks: row-major, in the order its axes are written."""

from __future__ import annotations

from orchestrator.plan import Entry, Grid


def test_a_simple_split_is_a_grid_of_one_axis() -> None:
    entry = Entry(layers="conv1", ranks=(2, 5, 1), split="channel")
    assert entry.grid == Grid((("channel", 3),))
    assert entry.grid.axes == (("channel", 3),)


def test_none_is_a_grid_without_axes() -> None:
    entry = Entry(layers="conv1", ranks=(4,), split="none")
    assert entry.grid.axes == ()
    assert entry.grid.size == 1


def test_one_rank_may_be_called_a_batch_of_one_part() -> None:
    entry = Entry(layers="conv1", ranks=(0,), split="batch")
    assert entry.grid.axes == (("batch", 1),)
    assert entry.grid.has("batch")


def test_the_order_of_axes_is_kept_and_counts() -> None:
    one = Grid((("channel", 2), ("batch", 4)))
    other = Grid((("batch", 4), ("channel", 2)))
    assert [one.parts(axis) for axis in ("batch", "channel", "input")] == [4, 2, 1]
    assert one.size == 8
    assert one != other
