"""Who reads whom: the connectivity of every layer kind, and the shapes that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.models import (
    Conv,
    CrossEntropy,
    Dropout,
    Layer,
    Linear,
    MaxPool,
    Model,
    ReLU,
    ResponseNorm,
    SizedLayer,
    SpatialNorm,
    Value,
)
from orchestrator.models.box import Box, whole
from orchestrator.models.layer import Tile, value_of
from orchestrator.models.ranges import Ranges, normalise, size
from orchestrator.models.terms import part_terms

COLUMN_READS = ((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))


def sized(layer: Layer, *shape: int) -> SizedLayer:
    return SizedLayer.of(layer, value_of(shape))


def reads(layer: SizedLayer, out: Ranges) -> Ranges:
    """Input channels that some output channels need; they need all of every other axis."""
    (box,) = layer.reads((out, *layer.output.whole[1:]))
    assert box[1:] == layer.inputs[0].whole[1:]
    return box[0]


def tiles(layer: SizedLayer, out: Ranges, reads: Ranges) -> list[Box]:
    """The rectangles of the weight behind some output channels and some input channels."""
    part = layer.part((out, *layer.output.whole[1:]), ((reads, *layer.inputs[0].whole[1:]),))
    return [tile.box for tile in part.tiles if tile.parameter == "weight"]


WEIGHTED = [
    sized(Conv(name="plain", channels=6, kernel=3), 5, 8, 8),
    sized(Conv(name="grouped", channels=6, kernel=3, groups=2), 4, 8, 8),
    sized(Conv(name="columns", channels=8, kernel=1, column_reads=COLUMN_READS), 8, 2, 2),
    sized(Linear(name="linear", features=6), 4, 2, 2),
    sized(Linear(name="grouped_linear", features=6, groups=3), 9),
]


def test_a_grouped_convolution_reads_its_group() -> None:
    layer = sized(Conv(name="c", channels=256, kernel=5, padding=2, groups=2), 96, 27, 27)
    assert reads(layer, ((0, 128),)) == ((0, 48),)
    assert reads(layer, ((128, 129),)) == ((48, 96),)
    assert reads(layer, ((100, 200),)) == ((0, 96),)
    assert layer.spec("weight").shape == (256, 48, 5, 5)


def test_partial_connectivity_reads_the_named_columns() -> None:
    layer = WEIGHTED[2]
    found = [reads(layer, ((2 * c, 2 * c + 2),)) for c in range(4)]
    assert found == [((0, 6),), ((0, 4), (6, 8)), ((0, 2), (4, 8)), ((2, 8),)]
    assert layer.spec("weight").shape == (8, 6, 1, 1)


def test_a_norm_reads_two_channels_more_unless_its_column_ends() -> None:
    whole = sized(ResponseNorm(name="n"), 96, 2, 2)
    assert reads(whole, ((0, 48),)) == ((0, 50),)
    assert reads(whole, ((48, 96),)) == ((46, 96),)
    assert reads(whole, ((10, 12), (20, 21))) == ((8, 14), (18, 23))
    columns = sized(ResponseNorm(name="n", columns=2), 96, 2, 2)
    assert reads(columns, ((0, 48),)) == ((0, 48),)
    assert reads(columns, ((24, 60),)) == ((22, 62),)
    assert reads(sized(ResponseNorm(name="n", window=1), 8, 2, 2), ((3, 5),)) == ((3, 5),)


@pytest.mark.parametrize(
    "layer", [ReLU(name="x"), MaxPool(name="x"), SpatialNorm(name="x"), Dropout(name="x")]
)
def test_what_has_no_weights_and_no_window_reads_its_own_channels(layer: Layer) -> None:
    assert reads(sized(layer, 8, 5, 5), ((1, 3), (6, 7))) == ((1, 3), (6, 7))
    assert sized(layer, 8, 5, 5).parameters == sized(layer, 8, 5, 5).macs == 0


def test_the_loss_reads_all_scores() -> None:
    loss = SizedLayer.of(CrossEntropy(name="loss"), value_of((10,)), Value((), (), integer=True))
    assert loss.reads((((0, 1),),)) == ((((0, 10),),), ())


CHANNELS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 9)), min_size=1, max_size=3)


@pytest.mark.parametrize("layer", WEIGHTED, ids=lambda layer: layer.name)
@given(out=CHANNELS.map(normalise), cut=st.integers(0, 9))
def test_terms_and_tiles_count_every_weight_once(layer: SizedLayer, out: Ranges, cut: int) -> None:
    """The weights behind some outputs, told by their inputs below a cut and above it, are all."""
    channels, inputs = layer.output.channels, layer.inputs[0].channels
    out = tuple((a, min(b, channels)) for a, b in out if a < channels)
    cut = min(cut, inputs)
    weight = layer.spec("weight").shape
    (fan_in,) = {t.fan[1] for t in part_terms(layer, ((0, channels),), ((0, inputs),))}
    inner = weight[1] // fan_in
    pairs: list[tuple[int, int]] = []
    for below in (normalise(((0, cut),)), normalise(((cut, inputs),))):
        found = tiles(layer, out, below)
        now = [
            (o, f) for (((a, b),), ((c, d),), *_) in found for o in range(a, b) for f in range(c, d)
        ]
        terms = part_terms(layer, out, below)
        assert all(size(t.reads) == t.fan[1] - t.fan[0] for t in terms)
        assert len(now) == inner * sum((t.out[1] - t.out[0]) * (t.fan[1] - t.fan[0]) for t in terms)
        assert all(box[2:] == whole(weight[2:]) for box in found)
        pairs += now
    everything = {(o, f) for a, b in out for o in range(a, b) for f in range(weight[1])}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == everything


def test_tiles_join_groups_that_touch() -> None:
    grouped, kernel = WEIGHTED[1], (((0, 3),), ((0, 3),))
    assert tiles(grouped, ((0, 6),), ((0, 4),)) == [(((0, 6),), ((0, 2),), *kernel)]
    assert tiles(grouped, ((0, 6),), ((0, 2),)) == [(((0, 3),), ((0, 2),), *kernel)]


def test_the_bias_is_cut_with_its_channels() -> None:
    """Where the input is cut, it is with the part that has the channel's first fan-in."""
    layer = WEIGHTED[4]
    part = layer.part((((1, 5),),), ((((0, 9),),),))
    assert part.tiles[-1] == Tile("bias", (((1, 5),),))
    behind = layer.part((((2, 6),),), ((((4, 9),),),))
    assert behind.tiles[-1] == Tile("bias", (((4, 6),),))


REFUSED = [
    (Conv(name="c", channels=4, kernel=3, groups=3), (3, 8, 8), "do not divide into 3 groups"),
    (Conv(name="c", channels=4, kernel=9), (3, 8, 8), "too small, its output would be 4x0x0"),
    (Conv(name="c", channels=4, kernel=3), (16,), "a convolution reads images"),
    (Conv(name="c", channels=4, kernel=1, column_reads=COLUMN_READS), (6, 2, 2), "into 4 columns"),
    (Conv(name="c", channels=4, kernel=1, column_reads=((0,), (0, 1))), (4, 2, 2), "as many of"),
    (Conv(name="c", channels=4, kernel=1, column_reads=((0,), (2,))), (4, 2, 2), r"columns 0\.\.1"),
    (ResponseNorm(name="c", window=4), (8, 2, 2), "window must be odd"),
    (ResponseNorm(name="c", columns=3), (8, 2, 2), "columns divide 8 channels"),
    (MaxPool(name="c", kernel=3), (8, 2, 2), "too small"),
    (MaxPool(name="c"), (8,), "a pool reads images"),
    (SpatialNorm(name="c"), (8,), "a spatial norm reads images"),
    (Linear(name="c", features=9, groups=2), (8,), "8 -> 9 channels do not divide into 2 groups"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), REFUSED)
def test_a_layer_that_cannot_be_is_named(
    layer: Layer, shape: tuple[int, ...], message: str
) -> None:
    """Whether found by the shape or by the connectivity, it is the user's to mend."""
    with pytest.raises(InputError, match=message) as caught:
        sized(layer, *shape)
    assert "layer c" in str(caught.value)


def test_a_model_refuses_names_and_shapes_that_cannot_be() -> None:
    fc = Linear(name="fc", features=3)
    with pytest.raises(InputError, match="layer name used twice: fc"):
        Model("m", (4,), [fc, ReLU(name="r"), fc])
    with pytest.raises(InputError, match="cannot be 'loss'"):
        Model("m", (4,), [Linear(name="loss", features=3)])
    with pytest.raises(InputError, match="has no layers"):
        Model("m", (4,), [])
    with pytest.raises(InputError, match="must give class scores"):
        Model("m", (3, 8, 8), [Conv(name="c", channels=4, kernel=3)])
    with pytest.raises(InputError, match="do not divide into 2 groups"):
        Model("m", (3,), [Linear(name="fc", features=4, groups=2)])
