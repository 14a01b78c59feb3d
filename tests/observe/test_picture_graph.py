"""Pictures of graphs: towers in lanes, skips as arcs, parts as bands, long models made short."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.models import Add, Concat, Conv, Embedding, Layer, Linear, Model, ReLU, RMSNorm
from orchestrator.observe.picture import draw_program
from orchestrator.observe.picture.layout import Band, Picture, Reading, lay_out
from orchestrator.observe.picture.places import gap_labels, place
from orchestrator.observe.picture.scene import compose
from orchestrator.observe.picture.shorten import MOST, shorten
from orchestrator.plan import load_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.resolve import model_of
from tests.networks import (
    bottleneck,
    conv,
    gpt,
    inception,
    linear,
    llama,
    resnet,
    separable,
    squeeze_excitation,
)
from tests.observe.test_picture import clashes, texts
from tests.program.small import small_program

ROOT = Path(__file__).resolve().parents[2]
TOWERS = (
    "layers: stem..relu, ranks: 0..1, split: none",
    "layers: a1..b, ranks: [0], split: none",
    "layers: c1..d, ranks: [1], split: none",
    "layers: joined..fc, ranks: 0..1, split: batch",
)
HEIGHT = (
    "layers: stem..blocks.2.relu3, ranks: 0..1, split: height",
    "layers: mean..fc, ranks: 0..1, split: batch",
)
STAGES = (
    "layers: stem..blocks.0.relu1, ranks: [0], split: none",
    "layers: blocks.0.conv2..blocks.1.conv2, ranks: [1], split: none",
    "layers: blocks.1.relu2..fc, ranks: [2], split: none",
)
MEGATRON = (
    "layers: embedding..blocks.0.norm1, ranks: 0..1, split: none",
    "layers: blocks.0.q..blocks.0.attention, ranks: 0..1, split: channel",
    "layers: blocks.0.project, ranks: 0..1, split: input",
    "layers: blocks.0.drop1..blocks.0.norm2, ranks: 0..1, split: none",
    "layers: blocks.0.up..blocks.0.gelu, ranks: 0..1, split: channel",
    "layers: blocks.0.down, ranks: 0..1, split: input",
    "layers: blocks.0.drop2..head, ranks: 0..1, split: none",
)
QUARTERS = Model("quarters", (3, 10, 8), [conv("stem", 4, 3), ReLU(name="relu"), linear("fc", 5)])
PLANS = {
    "towers on two ranks": (inception(), TOWERS),
    "towers by channel": (
        inception(),
        (
            "layers: stem..joined, ranks: 0..1, split: channel",
            "layers: average..fc, ranks: 0..1, split: batch",
        ),
    ),
    "towers by height": (
        inception(),
        (
            "layers: stem..d, ranks: 0..1, split: height",
            "layers: joined..fc, ranks: [0], split: none",
        ),
    ),
    "residual by height": (resnet(), HEIGHT),
    "residual in stages": (resnet(), STAGES),
    "gate by channel": (
        squeeze_excitation(),
        (
            "layers: stem..relu3, ranks: 0..1, split: channel",
            "layers: mean..fc, ranks: [0], split: none",
        ),
    ),
    "three by height": (
        separable(),
        (
            "layers: stem..relu4, ranks: 0..2, split: height",
            "layers: mean..fc, ranks: [0], split: none",
        ),
    ),
    "quarters": (
        QUARTERS,
        (
            "layers: stem..relu, ranks: 0..3, split: {height: 2, width: 2}",
            "layers: fc, ranks: [0], split: none",
        ),
    ),
    "tokens": (gpt(), ("layers: all, ranks: 0..1, split: token",)),
    "megatron": (gpt(blocks=1), MEGATRON),
    "llama in stages": (
        llama(),
        (
            "layers: embedding..blocks.0.sum2, ranks: [0], split: none",
            "layers: blocks.1.norm1..head, ranks: [1], split: none",
        ),
    ),
}


def laid_out(name: str) -> Picture:
    model, entries = PLANS[name]
    return lay_out(small_program(model, *entries))


def column(picture: Picture, layer: str) -> int:
    return next(i for i, found in enumerate(picture.columns) if found.layer == layer)


def layers(picture: Picture, readings: list[Reading]) -> set[tuple[str, str]]:
    """Who reads whom, by names: (read, reader)."""
    names = [found.layer for found in picture.columns]
    return {(names[x.source], names[x.column]) for x in readings}


@pytest.mark.parametrize("name", PLANS)
def test_no_text_of_a_graph_lies_on_another(name: str) -> None:
    assert clashes(compose(shorten(laid_out(name)))) == []


@pytest.mark.parametrize("name", PLANS)
def test_every_byte_between_layers_of_a_graph_is_on_an_arrow(name: str) -> None:
    picture = laid_out(name)
    found = [arrow for exchange in picture.exchanges for arrow in exchange.arrows]
    assert sum(a.forward + a.backward for a in found) == picture.activation_bytes > 0


def test_a_chain_has_a_level_for_each_column_and_one_lane() -> None:
    plan = load_plan("krizhevsky2012", [])
    picture = lay_out(compile_plan(plan, model_of(plan)))
    assert [c.level for c in picture.columns] == list(range(9))
    assert {c.lane for c in picture.columns} == {0}
    assert shorten(picture) == picture


# -- towers ---------------------------------------------------------------------------------------


def test_towers_stand_above_one_another() -> None:
    picture = laid_out("towers by channel")
    where = {c.layer: (c.level, c.lane) for c in picture.columns}
    assert where == {
        "image": (0, 0), "stem": (1, 0),
        "a1": (2, 0), "b1": (2, 1), "c1": (2, 2), "d1": (2, 3),
        "b3": (3, 1), "c3": (3, 2), "d2": (3, 3),
        "joined": (4, 0), "average": (5, 0), "fc": (6, 0),
    }  # fmt: skip
    assert len({c.region for c in picture.columns if c.level in (2, 3)}) == 1
    places = place(picture)
    for row in range(2):
        ys = [places.boxes[row, column(picture, name)].middle for name in ("a1", "b1", "c1", "d1")]
        assert ys == sorted(ys)
        bar = places.boxes[row, column(picture, "joined")]
        assert bar.y < ys[0]
        assert ys[-1] < bar.y + bar.height


def test_edges_say_who_reads_whom() -> None:
    picture = laid_out("towers on two ranks")
    rows = {
        (picture.columns[x.source].layer, picture.columns[x.column].layer): x.rows
        for x in picture.readings
    }
    assert rows == {
        ("image", "stem"): (0, 1),
        ("stem", "a1"): (0,), ("stem", "b1"): (0,), ("stem", "c1"): (1,), ("stem", "d1"): (1,),
        ("b1", "b3"): (0,), ("c1", "c3"): (1,), ("d1", "d2"): (1,),
        ("a1", "joined"): (0,), ("b3", "joined"): (0,),
        ("c3", "joined"): (1,), ("d2", "joined"): (1,),
        ("joined", "fc"): (0, 1),
    }  # fmt: skip


def test_a_rank_reads_of_its_own_only_what_it_needs() -> None:
    """Channels 0 to 7 of the join are a's four and b's first four, whoever holds the others."""
    picture = laid_out("towers by channel")
    joined = column(picture, "joined")
    rows = {picture.columns[x.source].layer: x.rows for x in picture.readings if x.column == joined}
    assert rows == {"a1": (0,), "b3": (0, 1), "c3": (1,), "d2": (1,)}


def test_what_a_join_gets_from_another_rank_comes_from_the_tower_that_made_it() -> None:
    """Two images of 8 x 8 x channels in float32 cross, from each tower's end."""
    picture = laid_out("towers on two ranks")
    to_joined = [x for x in picture.exchanges if x.column == column(picture, "joined")]
    sent = {picture.columns[x.source].layer: x.sizes for x in to_joined}
    image = 2 * 8 * 8 * 4
    assert sent == {
        "a1": (4 * image,), "b3": (6 * image,), "c3": (2 * image,), "d2": (4 * image,),
    }  # fmt: skip


def test_a_tower_that_ends_early_passes_its_lane_to_the_join() -> None:
    """The arrow from a1 runs beside b3; nothing else stands in its lane."""
    picture = laid_out("towers by channel")
    lane = {(c.level, c.lane): c.layer for c in picture.columns if c.level in (2, 3)}
    assert (3, 0) not in lane
    assert len(lane) == 7


def test_a_pool_of_one_tower_is_a_column_and_one_of_all_is_not() -> None:
    picture = laid_out("towers on two ranks")
    assert {c.layer: c.pooled for c in picture.columns if c.pooled} == {"joined": "average_pool"}
    assert column(picture, "d1")


def test_many_labels_in_one_gap_share_what_is_alike() -> None:
    labels = gap_labels(laid_out("towers by channel"))
    assert [x.text for x in labels[2, 0]] == ["3 × 2.05 kB", "3 × 2.05 kB"]
    assert all(len(found) <= 4 for found in labels.values())


# -- skips ----------------------------------------------------------------------------------------


def test_a_residual_is_an_arc_over_what_it_skips() -> None:
    picture = laid_out("residual by height")
    skips = [x for x in picture.readings if x.skip]
    assert layers(picture, skips) == {("blocks.0.sum", "blocks.1.sum")}
    assert [x.rows for x in skips] == [(0, 1)]
    places = place(picture)
    (reading,) = skips
    for row in range(2):
        for between in range(reading.source, reading.column + 1):
            box = places.wholes[row, between]
            assert places.arcs[row, reading] < box.y - box.oblique[1]
        assert places.rows[row].low < places.arcs[row, reading]


def test_arcs_within_arcs_lie_lower() -> None:
    picture = laid_out("gate by channel")
    inner, outer = sorted((x for x in picture.readings if x.skip), key=lambda x: -x.source)
    assert layers(picture, [inner, outer]) == {("conv", "scaled"), ("stem", "sum")}
    places = place(picture)
    assert places.arcs[0, outer] < places.arcs[0, inner]


def test_a_projected_skip_is_a_tower() -> None:
    picture = laid_out("residual in stages")
    projection, main = column(picture, "blocks.2.projection"), column(picture, "blocks.2.conv1")
    assert picture.columns[projection].level == picture.columns[main].level
    assert (picture.columns[main].lane, picture.columns[projection].lane) == (0, 1)


def test_a_skip_into_another_stage_has_a_track_of_its_own_and_its_bytes() -> None:
    """blocks.0.sum is read in stage 2 by blocks.1.sum: 4 examples of 8 x 4 x 4 in float32."""
    picture = laid_out("residual in stages")
    ends = tuple(column(picture, f"blocks.{n}.sum") for n in range(2))
    (skip,) = (x for x in picture.exchanges if (x.source, x.column) == ends)
    assert skip.sizes == (4 * 8 * 4 * 4 * 4,)
    places = place(picture)
    (y,) = (y for (exchange, _, space), y in places.tracks.items() if exchange == skip)
    assert places.rows[1].high < y < places.rows[2].low


def test_tracks_that_meet_do_not_share_a_height() -> None:
    """Stage 1 reads the first two convolutions again, over one another."""
    model = Model("skips", (3, 4, 4), [
        conv("a", 4, 1), conv("b", 4, 1), conv("c", 4, 1),
        Add(name="one", inputs=("c", "b")), Add(name="two", inputs=("one", "a")),
        linear("fc", 5),
    ])  # fmt: skip
    picture = lay_out(
        small_program(
            model,
            "layers: a..b, ranks: [0], split: none",
            "layers: c..fc, ranks: [1], split: none",
        )
    )
    tracks = place(picture).tracks
    assert len(tracks) == len(set(tracks.values())) == 2
    assert clashes(compose(picture)) == []


def test_stages_follow_each_other_from_left_to_right() -> None:
    picture = laid_out("residual in stages")
    stages = [c.stage for c in sorted(picture.columns, key=lambda c: c.level)]
    assert stages == sorted(stages)


def test_joins_are_signs_and_norms_and_activations_are_not_drawn() -> None:
    picture = laid_out("llama in stages")
    drawn = {c.layer: c.drawn for c in picture.columns if c.drawn != "block"}
    assert drawn == {
        f"blocks.{n}.{name}": sign
        for n in range(2)
        for name, sign in (("sum1", "plus"), ("product", "times"), ("sum2", "plus"))
    }
    names = {c.layer for c in picture.columns}
    # the norm at the start of stage 1 reads what another rank sends
    assert {n for n in names if "norm" in n or "silu" in n} == {"blocks.1.norm1"}


# -- bands and copies -----------------------------------------------------------------------------


def test_rows_of_an_image_are_a_band_of_the_whole() -> None:
    picture = laid_out("three by height")
    stem = [b for b in picture.blocks if b.column == column(picture, "stem")]
    assert [b.bands for b in stem] == [
        (Band("height", 0, 1, 5),), (Band("height", 1, 3, 5),), (Band("height", 3, 5, 5),)
    ]  # fmt: skip
    places = place(picture)
    for block in stem:
        at = (block.rows[0], block.column)
        whole, part = places.wholes[at], places.boxes[at]
        assert part.y == pytest.approx(whole.y + whole.height * block.bands[0].start / 5)
        assert part.height == pytest.approx(whole.height * block.shape[1] / 5)


def test_rows_and_columns_are_bands_of_one_whole() -> None:
    """Columns go into the page: the right half starts half of the oblique side to the right."""
    picture = laid_out("quarters")
    stem = [b for b in picture.blocks if b.column == column(picture, "stem")]
    assert [b.bands for b in stem] == [
        (Band("height", y, y + 5, 10), Band("width", x, x + 4, 8)) for y in (0, 5) for x in (0, 4)
    ]
    places = place(picture)
    for block in stem:
        at = (block.rows[0], block.column)
        whole, part = places.wholes[at], places.boxes[at]
        rows, columns = block.bands
        assert (part.height, part.width) == pytest.approx((whole.height / 2, whole.width / 2))
        right, up = (side * columns.start / 8 for side in whole.oblique)
        assert part.x == pytest.approx(whole.x + right)
        assert part.y == pytest.approx(whole.y + whole.height * rows.start / 10 - up)
    shown = [text.text for text in compose(picture).texts]
    assert "5×4×4\nrows 0:5\ncolumns 4:8" in shown
    assert any("some columns or rows of the whole" in text for text in shown)


def test_neighbours_exchange_halos() -> None:
    """depth1 reads one row above and below: 4 examples of a row of 4 x 4 channels in float32."""
    picture = laid_out("three by height")
    (halo,) = (x for x in picture.exchanges if x.column == column(picture, "depth1"))
    row = 4 * 4 * 4 * 4
    assert {(a.source, a.target): a.forward for a in halo.arrows} == {
        (0, 1): row, (1, 0): row, (1, 2): row, (2, 1): row,
    }  # fmt: skip


def test_tokens_are_bands_and_causal_attention_sends_to_later_ones_only() -> None:
    picture = laid_out("tokens")
    assert picture.columns[0].layer == "tokens"
    bands = {b.rows: b.bands for b in picture.blocks if b.column == column(picture, "head")}
    assert bands == {(0,): (Band("token", 0, 3, 6),), (1,): (Band("token", 3, 6, 6),)}
    arrows = {(a.source, a.target) for x in picture.exchanges for a in x.arrows}
    assert arrows == {(0, 1)}


def test_what_every_rank_computes_whole_says_so_where_it_starts() -> None:
    picture = laid_out("megatron")
    row = [b for b in picture.blocks if b.rows == (0,)]
    whole = {picture.columns[b.column].layer for b in row if b.whole}
    starts = [picture.columns[b.column].layer for b in row if b.says_whole]
    assert starts == ["embedding", "blocks.0.drop1", "blocks.0.drop2"]
    assert {"position", "blocks.0.sum1", "blocks.0.sum2", "head"} < whole
    assert not {"blocks.0.q", "blocks.0.attention", "blocks.0.project.sum"} & whole


def test_where_only_gradients_are_sent_the_arrow_says_back() -> None:
    picture = laid_out("megatron")
    into = [x for x in picture.exchanges if x.column == column(picture, "blocks.0.q")]
    assert [(a.forward, a.backward > 0) for x in into for a in x.arrows] == [(0, True)] * 2


def test_a_borrowed_parameter_comes_from_its_owner() -> None:
    model = Model("tied", (6,), [
        Embedding(name="embedding", vocabulary=12, features=8),
        RMSNorm(name="norm"),
        Linear(name="head", features=12, tied="embedding.weight", bias=None),
    ])  # fmt: skip
    program = small_program(
        model,
        "layers: embedding, ranks: [0], split: none",
        "layers: norm..head, ranks: [1], split: none",
    )
    picture = lay_out(program)
    (tie,) = (x for x in picture.exchanges if x.parameter)
    assert (tie.source, tie.column) == (column(picture, "embedding"), column(picture, "head"))
    assert (tie.parameter, tie.sizes) == ("embedding.weight", (12 * 8 * 4,))
    assert clashes(compose(picture)) == []


# -- long models ----------------------------------------------------------------------------------


def deep(blocks: int) -> Program:
    found: list[Layer] = [conv("stem", 8, 3)]
    for n in range(blocks):
        found += bottleneck(f"blocks.{n}", f"blocks.{n - 1}.relu3" if n else "stem", 4,
                            project=False)  # fmt: skip
    model = Model("deep", (3, 8, 8), [*found, linear("fc", 5)])
    return small_program(
        model,
        f"layers: stem..blocks.{blocks - 1}.relu3, ranks: 0..1, split: height",
        "layers: fc, ranks: [0], split: none",
    )


def test_sixteen_alike_blocks_are_drawn_once() -> None:
    picture = lay_out(deep(16))
    short = shorten(picture)
    assert len(picture.columns) == 2 + 16 * 4 + 1
    assert [(g.name, len(g.others)) for g in short.groups] == [("blocks.0", 15)]
    assert [c.label for c in short.columns] == [
        "image", "stem", "conv1", "conv2", "conv3", "sum", "fc",
    ]  # fmt: skip
    assert [c.level for c in short.columns] == list(range(7))
    assert ("blocks.0.sum", "fc") in layers(short, list(short.readings))
    # what is drawn once counts sixteen times
    once = {x.column: sum(a.forward + a.backward for a in x.arrows) for x in short.exchanges}
    inside = sum(n for i, n in once.items() if short.columns[i].group)
    outside = sum(n for i, n in once.items() if not short.columns[i].group)
    assert 16 * inside + outside == picture.activation_bytes
    assert clashes(compose(short)) == []


def test_few_blocks_are_drawn_one_by_one() -> None:
    assert [(g.name, g.others) for g in shorten(lay_out(deep(3))).groups] == [
        ("blocks.0", ()), ("blocks.1", ()), ("blocks.2", ()),
    ]  # fmt: skip


def test_of_a_long_model_that_repeats_nothing_the_middle_is_left_out() -> None:
    chain = [Conv(name=f"c{n}", channels=4, kernel=3, padding=1) for n in range(70)]
    model = Model("chain", (3, 8, 8), [*chain, Linear(name="fc", features=5)])
    program = small_program(
        model,
        "layers: c0..c69, ranks: 0..1, split: channel",
        "layers: fc, ranks: [0], split: none",
    )
    short = shorten(lay_out(program))
    assert len(short.columns) == MOST
    assert short.left_out is not None
    assert short.left_out.columns == 72 - MOST
    assert (short.left_out.first, short.left_out.last) == ("c19", "c50")
    assert all(x.column - x.source == 1 for x in short.readings)
    assert len(short.readings) == MOST - 2
    assert clashes(compose(short)) == []


def test_blocks_that_a_later_layer_reads_are_not_drawn_once() -> None:
    """Densely connected: the last join reads every block."""
    blocks = [Conv(name=f"blocks.{n}.conv", channels=4, kernel=1) for n in range(24)]
    names = tuple(block.name for block in blocks)
    model = Model("dense", (3, 4, 4), [
        *blocks, Concat(name="all", inputs=names), Linear(name="fc", features=5),
    ])  # fmt: skip
    program = small_program(model, "layers: blocks.0..fc, ranks: [0], split: none")
    picture = shorten(lay_out(program))
    assert len(picture.groups) == 24
    assert all(not group.others for group in picture.groups)


# -- the documentation ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inception-towers", "residual-height"])
def test_the_pictures_of_graphs_in_the_documentation_are_todays(name: str, tmp_path: Path) -> None:
    plan = load_plan(str(ROOT / "docs" / "examples" / f"{name}.yaml"), [])
    program = compile_plan(plan, model_of(plan))
    draw_program(program, tmp_path / "new.svg")
    assert texts(ROOT / "docs" / "images" / f"{name}.svg") == texts(tmp_path / "new.svg")
    assert clashes(compose(shorten(lay_out(program)))) == []
