"""What a picture shows of a plan: its blocks' sizes, its arrows, what is drawn once for many."""

from __future__ import annotations

from functools import cache

import pytest

from orchestrator.observe.picture.layout import Arrow, Picture, lay_out
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from tests.program.small import LINEAR, small_program


@cache
def laid_out(name: str, *overrides: str) -> Picture:
    plan = load_plan(name, list(overrides))
    return lay_out(compile_plan(plan, model_of(plan)))


def shapes(picture: Picture, row: int) -> dict[str, tuple[int, ...]]:
    """By column, the block that a row has."""
    return {
        picture.columns[block.column].layer: block.shape
        for block in sorted(picture.blocks, key=lambda block: block.column)
        if row in block.rows
    }


def arrows(picture: Picture) -> dict[str, tuple[Arrow, ...]]:
    """By the layer that reads, the arrows before it."""
    return {picture.columns[e.column].layer: e.arrows for e in picture.exchanges}


def test_krizhevsky_2012_is_the_papers_figure_2() -> None:
    """Sizes as figure 2 of the paper has them; fc8 is on one GPU in the released code."""
    picture = laid_out("krizhevsky2012")
    column = {
        "image": (3, 224, 224), "conv1": (48, 55, 55), "conv2": (128, 27, 27),
        "conv3": (192, 13, 13), "conv4": (192, 13, 13), "conv5": (128, 13, 13),
        "fc6": (2048,), "fc7": (2048,),
    }  # fmt: skip
    assert shapes(picture, 0) == {**column, "fc8": (1000,)}
    assert shapes(picture, 1) == column
    (image,) = (block for block in picture.blocks if block.column == 0)
    assert image.rows == (0, 1)
    assert [c.kernel for c in picture.columns] == [0, 11, 5, 3, 3, 3, 0, 0, 0]
    assert [c.layer for c in picture.columns if c.stride > 1] == ["conv1"]
    assert [c.layer for c in picture.columns if c.pooled] == ["conv1", "conv2", "conv5"]


def test_the_columns_of_2012_talk_before_conv3_fc6_fc7_and_fc8_only() -> None:
    def both(size: int) -> tuple[Arrow, ...]:
        return (Arrow(0, 1, size, size), Arrow(1, 0, size, size))

    picture = laid_out("krizhevsky2012")
    value = 128 * 4  # float32 of a batch
    assert arrows(picture) == {
        "conv3": both(128 * 13 * 13 * value),
        "fc6": both(128 * 6 * 6 * value),
        "fc7": both(2048 * value),
        "fc8": (Arrow(1, 0, 2048 * value, 2048 * value),),
    }
    assert picture.reductions == ()
    assert (picture.activation_bytes, picture.gradient_bytes) == (60_030_976, 0)


def test_each_conv3_of_four_columns_reads_three() -> None:
    """conv3a reads a, b, c; conv3b a, b, d; conv3c c, d, a; conv3d c, d, b."""
    found = {(arrow.source, arrow.target) for arrow in arrows(laid_out("four-columns"))["conv3"]}
    assert found == {(1, 0), (2, 0), (0, 1), (3, 1), (0, 2), (3, 2), (1, 3), (2, 3)}


def test_data_parallel_ranks_share_nothing_but_gradients() -> None:
    picture = laid_out("data-parallel")
    assert picture.exchanges == ()
    assert [row.images for row in picture.rows] == [64, 64]
    assert [block.rows for block in picture.blocks if block.column == 0] == [(0,), (1,)]
    (reduction,) = picture.reductions
    assert (reduction.rows, reduction.ranks, reduction.sent) == ((0, 1), 2, 243_860_896)
    assert reduction.layers == tuple(c.layer for c in picture.columns[1:])


def test_stages_have_blocks_where_their_layers_are() -> None:
    picture = laid_out("pipeline-interleaved")
    assert set(shapes(picture, 0)) == {"image", "conv1", "conv3", "conv4"}
    assert set(shapes(picture, 1)) == {"conv2", "conv5", "fc6", "fc7", "fc8"}
    assert {c.layer: c.stage for c in picture.columns} == {
        "image": 0, "conv1": 0, "conv2": 1, "conv3": 2, "conv4": 2, "conv5": 3, "fc6": 3,
        "fc7": 3, "fc8": 3,
    }  # fmt: skip
    assert list(arrows(picture)) == ["conv2", "conv3", "conv5"]


def test_one_weird_trick_changes_the_images_of_a_rank() -> None:
    picture = laid_out("one-weird-trick-broadcast")
    changed = {picture.columns[b.column].layer: b.images for b in picture.blocks if b.images}
    assert changed == {"fc6": 128, "loss": 64}
    (reduction,) = picture.reductions
    assert reduction.layers == ("conv1", "conv2", "conv3", "conv4", "conv5")


def test_partial_sums_have_a_column_where_they_are_added_up() -> None:
    picture = laid_out("megatron-fc")
    assert shapes(picture, 0)["fc7"] == (4096,)
    assert shapes(picture, 0)["fc7.sum"] == (2048,)
    assert "fc7" not in arrows(picture)
    assert len(arrows(picture)["fc7.sum"]) == 2


def test_sixty_four_ranks_of_data_parallel_are_one_row() -> None:
    picture = laid_out("data-parallel", "placement.0.ranks=0..63")
    (row,) = picture.rows
    assert (row.rank, row.copies, row.images) == (0, 64, 2)
    (reduction,) = picture.reductions
    assert (reduction.rows, reduction.ranks) == ((0,), 64)


def test_replicas_are_drawn_once() -> None:
    picture = laid_out("krizhevsky2012", "replicas=32")
    assert [(row.rank, row.copies) for row in picture.rows] == [(0, 32), (1, 32)]
    assert len(picture.exchanges) == 4
    assert [(r.rows, r.ranks) for r in picture.reductions] == [((0,), 32), ((1,), 32)]


def test_ranks_of_one_group_that_do_the_same_are_drawn_twice() -> None:
    """The first and the last; every edge of the ranks between them counts."""
    overrides = [f"placement.{i}.ranks=0..7" for i in range(2)]
    picture = laid_out("one-weird-trick-gather", *overrides)
    assert [(row.rank, row.alike_below) for row in picture.rows] == [(0, 6), (7, 0)]
    for exchange in picture.exchanges:
        assert len(exchange.sizes) == 8 * 7
        assert len(exchange.arrows) == 2


def test_unequal_shares_are_not_alike() -> None:
    program = small_program(
        LINEAR, "layers: a..c, ranks: 0..4, split: batch, shares: [2, 1, 1, 1, 1]", batch=6
    )
    assert [(row.rank, row.copies) for row in lay_out(program).rows] == [(0, 1), (1, 4)]


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_every_byte_of_an_exchange_is_on_an_arrow(name: str) -> None:
    """Up to four ranks all are drawn, so the arrows add up to the ledger."""
    picture = laid_out(name)
    assert len(picture.rows) == picture.world_size
    found = [arrow for exchange in picture.exchanges for arrow in exchange.arrows]
    assert sum(a.forward + a.backward for a in found) == picture.activation_bytes
