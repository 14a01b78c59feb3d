"""Who reads whom: the connectivity of every layer kind, and the shapes that are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import models
from orchestrator.errors import InputError
from orchestrator.execute.parameters import initial_parameter
from orchestrator.models import (
    Constant,
    Conv,
    CrossEntropy,
    Dropout,
    Layer,
    LayerPart,
    Linear,
    MaxPool,
    Model,
    Normal,
    ParameterSpec,
    Recipe,
    ReLU,
    ResponseNorm,
    SizedLayer,
    SpatialNorm,
    Sum,
    Uniform,
    Value,
)
from orchestrator.models.box import Box, Shape, whole
from orchestrator.models.fields import Bounds
from orchestrator.models.layer_costs import Kernel, LayerMemory, Pass
from orchestrator.models.parameter import Initial, Tile
from orchestrator.models.ranges import Ranges, normalise, size
from orchestrator.models.terms import part_terms
from orchestrator.models.value import value_of

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
    (ResponseNorm(name="c", columns=3), (8, 2, 2), "divides the 8 channels of its input"),
    (MaxPool(name="c", kernel=3), (8, 2, 2), "too small"),
    (MaxPool(name="c"), (8,), "a pool reads images"),
    (MaxPool(name="c", padding=2), (8, 9, 9), "padding: found 2; allowed: at most half of the ker"),
    (ResponseNorm(name="c"), (9, 4), "a response norm reads images"),
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


WRONG_FIELDS = [
    (
        Conv,
        {"channels": 16.0, "kernel": 3},
        "channels: found 16.0 (float); allowed: a whole number of 1 or more",
    ),
    (Conv, {"channels": True, "kernel": 3}, "channels: found True (bool); allowed: a whole"),
    (Conv, {"channels": "16", "kernel": 3}, "channels: found '16'; allowed: a whole"),
    (Conv, {"channels": None, "kernel": 3}, "channels: found None (NoneType); allowed: a whole"),
    (Conv, {"channels": 0, "kernel": 3}, "channels: found 0; allowed: a whole number of 1 or more"),
    (Conv, {"channels": 4, "kernel": (3, 3)}, "kernel: found (3, 3) (tuple); allowed: a whole"),
    (Conv, {"channels": 4, "kernel": 3, "stride": 0}, "stride: found 0"),
    (Conv, {"channels": 4, "kernel": 3, "groups": -1}, "groups: found -1"),
    (
        Conv,
        {"channels": 4, "kernel": 3, "padding": -1},
        "padding: found -1; allowed: a whole number of 0 or more, or a tuple of 2, each of it a "
        "whole number of 0 or more",
    ),
    (Conv, {"channels": 4, "kernel": 3, "padding": (0, -1)}, "padding: found (0, -1) (tuple)"),
    (Conv, {"channels": 4, "kernel": 3, "padding": (1, 1, 1)}, "padding: found (1, 1, 1)"),
    (Conv, {"channels": 4, "kernel": 3, "padding": [1, 1]}, "padding: found [1, 1] (list)"),
    (Conv, {"channels": 4, "kernel": 3, "column_reads": [[0], [1]]}, "column_reads: found [[0]"),
    (
        Conv,
        {"channels": 4, "kernel": 3, "column_reads": ((0.0,),)},
        "column_reads: found ((0.0,),)",
    ),
    (Conv, {"channels": 4, "kernel": 3, "weight_std": -0.1}, "weight_std: found -0.1 (float)"),
    (
        Conv,
        {"channels": 4, "kernel": 3, "bias": float("nan")},
        "bias: found nan (float); allowed: a number",
    ),
    (Linear, {"features": 0}, "features: found 0; allowed: a whole number of 1 or more"),
    (Linear, {"features": 4.0}, "features: found 4.0 (float)"),
    (Linear, {"features": 4, "groups": 0}, "groups: found 0"),
    (Linear, {"features": 4, "bias": "1"}, "bias: found '1'; allowed: a number"),
    (ResponseNorm, {"window": 4}, "window: found 4; allowed: a whole number of 1 or more and odd"),
    (ResponseNorm, {"columns": 0}, "columns: found 0"),
    (ResponseNorm, {"alpha": True}, "alpha: found True (bool)"),
    (SpatialNorm, {"window": 2}, "window: found 2"),
    (SpatialNorm, {"scale": float("inf")}, "scale: found inf"),
    (MaxPool, {"kernel": 0}, "kernel: found 0"),
    (MaxPool, {"stride": 2.0}, "stride: found 2.0 (float)"),
    (Dropout, {"p": 1}, "p: found 1; allowed: a number from 0 to less than 1"),
    (Dropout, {"p": -0.5}, "p: found -0.5"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG_FIELDS)
def test_a_field_that_does_not_fit_is_told(
    kind: type[Layer], values: dict[str, Any], message: str
) -> None:
    """``Conv(channels=16.0)`` once ended deep in torch, and ``groups=0`` in a division."""
    with pytest.raises(InputError) as caught:
        kind(name="c", **values)
    assert caught.value.message.startswith(f"layer c: {message}"), caught.value.message


def test_every_field_of_every_kind_is_checked() -> None:
    """A kind that is added without limits on its numbers shows here."""
    kinds = {
        kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, Layer)
    }
    assert {Conv, Linear, ReLU, ResponseNorm, SpatialNorm, MaxPool, Dropout, Sum} <= kinds
    for kind in kinds:
        needed = [field.name for field in fields(kind) if field.default is MISSING]
        for field in fields(kind):
            values: dict[str, Any] = {**dict.fromkeys(needed, 4), "name": "c", field.name: object()}
            with pytest.raises(InputError, match=f": {field.name}: found <object"):
                kind(**values)


@pytest.mark.parametrize("name", [3, "", "a b", "a..b", "ä", "loss.", None])
def test_a_name_that_no_plan_could_use_is_told(name: object) -> None:
    with pytest.raises(InputError, match="name: found"):
        ReLU(name=name)  # type: ignore[arg-type]
    ReLU(name="blocks.0/norm-1_a")


@dataclass(frozen=True, kw_only=True)
class Odd(Layer):
    """A kind of one's own, as a file without postponed annotations has it."""

    limit: Annotated[float, Bounds(0)] = 1.0
    free: object = None

    def compute(
        self, part: LayerPart, inputs: Sequence[Tensor], parameters: Sequence[Tensor], draw: object
    ) -> Tensor:
        return inputs[0]


def test_a_kind_of_ones_own_is_checked_alike_and_named_after_its_class() -> None:
    assert Odd(name="o").kind == "odd"
    assert Odd(name="o", limit=2, free=[1]).limit == 2
    with pytest.raises(InputError, match=r"layer o: limit: found -1; allowed: a number of 0 or"):
        Odd(name="o", limit=-1)


@dataclass(frozen=True, kw_only=True)
class Silent(Layer):
    """Says nothing of what it computes."""


@dataclass(frozen=True, kw_only=True)
class Says(Odd):
    """Says of each thing what it is told to; a function raises or computes it."""

    outputs: Any = None
    needs: Any = None
    trains: Any = ()
    parts: Any = None
    counts: Any = 0

    def output(self, *inputs: Value) -> Value:
        return _said(self.outputs, inputs[0], *inputs)  # type: ignore[no-any-return]

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return _said(self.needs, (out,) * len(sized.inputs), out)  # type: ignore[no-any-return]

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        return _said(self.trains, (), *inputs)  # type: ignore[no-any-return]

    def tiles(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> tuple[Tile, ...]:
        default = super().tiles(sized, out, reads)
        return _said(self.parts, default, out)  # type: ignore[no-any-return]

    def macs(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> int:
        return _said(self.counts, 0, out)  # type: ignore[no-any-return]


def _said(value: Any, default: Any, *given: object) -> Any:
    found = value(*given) if callable(value) else value
    return default if found is None else found


def fails(*_: object) -> None:
    raise KeyError("why")


ONES = Constant(1.0)


def spec(name: Any = "w", shape: Any = (4,), initial: Any = ONES, **more: Any) -> Any:
    return ParameterSpec(name, shape, initial, **more)


def trained(*specs: object, **more: Any) -> Says:
    return Says(name="s", trains=specs, **more)


class Lossy(Odd):
    """Another loss than the model's."""

    is_loss = True


FC = Linear(name="fc", features=3)
WRONG_CHAINS = [
    ((4,), [Silent(name="s"), FC], "layer s: Silent does not say what it computes"),
    ((4,), [CrossEntropy(name="s"), FC], "layer s: the model adds its loss itself"),
    ((4,), [Lossy(name="s"), FC], "layer s: the model adds its loss itself"),
    ((4,), [Odd(name="s", free=[]), FC], "layer s: unhashable type: 'list'"),
    ((4,), [object(), FC], "model m, layer 0: found builtins.object, which is no layer"),
    ((4,), 3, "layers: found a int; allowed: a tuple or a list"),
    ((4,), [ReLU(name="r")], "no layer has weights, so there is nothing to train"),
    ((4,), [FC, ReLU(name="fc.sum"), FC], "layer name used twice"),
    ((4,), [FC, FC], "layer name used twice: fc"),
    ((4,), [], "it has no layers"),
    ((), [FC], "input_shape is empty"),
    (4, [FC], "input_shape: found a int"),
    ((3, 8.0, 8), [FC], r"input_shape: found \(3, 8.0, 8\)"),
    ((3, 0, 8), [FC], r"input_shape: found \(3, 0, 8\)"),
]


@pytest.mark.parametrize(("shape", "chain", "message"), WRONG_CHAINS)
def test_a_model_that_cannot_be_is_told(shape: Any, chain: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model("m", shape, chain)


HALF = Value((2.0,), ("channel",))  # type: ignore[arg-type]
COVER = r"tiles of the whole output give .* of w; allowed: all of its \(.,\), nothing twice"
TILES = r"layer s: tiles gives .*; allowed: Tiles of its parameters \(w \(4,\)\)"
READS = r"; allowed: for each input \(4\) a box: for each of its axes ascending ranges that"
WRONG_WORDS = [
    (Says(name="s", outputs=HALF), r"layer s: output of \(4,\): found \(2.0,\)"),
    (Says(name="s", outputs=Value((0,), ("channel",))), r"layer s: output of \(4,\): found \(0,\)"),
    (Says(name="s", outputs=(4,)), r"layer s: its output gives \(4,\); allowed: a Value with"),
    (Says(name="s", outputs=Value((4,), ())), "its output gives .*; allowed: a Value with an axis"),
    (Says(name="s", outputs=Value((2, 2), ("channel",) * 2)), "its output gives .* no axis twice"),
    (Says(name="s", outputs=fails), r"layer s: its output fails: KeyError: 'why' \(test_layers.py"),
    (Says(name="s", needs=((((0, 5),),),)), r"reads gives \(\(\(\(0, 5\),\),\),\)" + READS),
    (Says(name="s", needs=((((2, 4), (0, 1)),),)), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=((((0, 2.0),),),)), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=((((-1, 2),),),)), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=(((0, 4),),)), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=(((),),)), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=()), "layer s: reads gives .*" + READS),
    (Says(name="s", needs=3), "layer s: reads gives 3" + READS),
    (Says(name="s", needs=fails), "layer s: its reads fails for the box .*KeyError"),
    (Says(name="s", trains=3), "layer s: parameters gives 3; allowed: a tuple of ParameterSpecs"),
    (Says(name="s", trains=(3,)), r"parameters gives \(3,\); allowed: a tuple of ParameterSpecs"),
    (Says(name="s", trains=fails), r"its parameters fails: KeyError: 'why' \(test_layers.py"),
    (trained(spec(name="a b")), "layer s: name of a parameter: found 'a b'"),
    (trained(spec(), spec()), "layer s: parameter name used twice: w"),
    (trained(spec(shape=(0,))), r"layer s: shape of w: found \(0,\)"),
    (Says(name="s", trains=lambda _: (spec(shape=[4]),)), r"layer s: shape of w: found \[4\]"),
    (trained(spec(initial=1.0)), r"initial of w: found 1.0; allowed: such as Normal\(0.01\)"),
    (trained(spec(decays=1)), "layer s: decays of w: found 1"),
    (trained(spec(tied_to=None)), "layer s: tied_to of w: found None"),
    (trained(spec(tied_to="x.y")), "s.w, .* is tied to x.y, which is no parameter of the model"),
    (trained(spec(axes=("row",))), "layer s: axes of w are .'row',.; allowed: for each of its 1"),
    (trained(spec(shape=(4, 2), axes=("channel",))), "layer s: axes of w .* for each of its 2"),
    (trained(spec(shape=(8,), axes=("channel",))), COVER),
    (trained(spec(), parts=()), COVER),
    (trained(spec(), parts=(Tile("w", (((0, 2),),)),)), COVER),
    (trained(spec(), parts=(Tile("w", (((0, 2),),)), Tile("w", (((1, 3),),)))), COVER),
    (trained(spec(), parts=(Tile("v", (((0, 4),),)),)), TILES),
    (trained(spec(), parts=(Tile("w", (((0, 4),), ((0, 1),))),)), TILES),
    (trained(spec(), parts=(("w", (((0, 4),),)),)), TILES),
    (trained(spec(), parts=(Tile("w", (((0, 4.0),),)),)), TILES),  # type: ignore[arg-type]
    (trained(spec(), parts=3), TILES),
    (trained(spec(), parts=fails), r"layer s: its tiles fails for the box .*: KeyError: 'why'"),
    (Says(name="s", counts=-1), r"layer s: macs of the box .*: found -1; allowed: a whole number"),
    (Says(name="s", counts=1.5), r"layer s: macs of the box .*: found 1.5"),
    (Says(name="s", counts=fails), r"layer s: its macs fails for the box .*: KeyError: 'why'"),
    (Says(name="s", inputs=("input", "input")), "layer s: a odd reads 1 value, found inputs"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "message"), WRONG_WORDS)
def test_what_a_kind_of_ones_own_says_is_checked(layer: Layer, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model("m", (4,), [layer, FC])


def test_a_kind_that_cannot_say_what_a_part_is_is_told_where() -> None:
    """What fails for a part is found where it is cut, and told with its line."""

    def for_the_whole_only(box: Box) -> None:
        if box != (((0, 4),),):
            fails()

    reads = Model("m", (4,), [Says(name="s", needs=for_the_whole_only), FC]).layers[0]
    with pytest.raises(InputError, match=r"layer s: its reads fails for the box .*test_layers.py"):
        reads.reads((((0, 2),),))
    layer = trained(spec(axes=("channel",)), parts=for_the_whole_only)
    tiles = Model("m", (4,), [layer, FC]).layers[0]
    with pytest.raises(InputError, match=r"layer s: its tiles fails for the box .*test_layers.py"):
        tiles.part((((0, 2),),), ((((0, 2),),),))


@pytest.mark.parametrize(
    ("initial", "values", "message"),
    [
        (Normal, (-1,), "initial values, Normal: std: found -1; allowed: a number of 0 or more"),
        (Normal, ("1",), "initial values, Normal: std: found '1'"),
        (Uniform, (-0.5,), "initial values, Uniform: bound: found -0.5"),
        (Constant, (float("nan"),), "initial values, Constant: value: found nan"),
    ],
)
def test_initial_values_that_cannot_be_are_told(initial: Any, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        initial(*values)


@dataclass(frozen=True)
class Drawn(Initial):
    """Initial values of one's own: what it is told to give."""

    gives: Any

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return _said(self.gives, None, shape)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (fails, r"layer s: its initial w fails: KeyError: 'why' \(test_layers.py"),
        (3, r"layer s: its initial w gives int; allowed: \(4,\) in torch.float32"),
        (
            lambda _: torch.zeros(5),
            r"layer s: its initial w gives \(5,\) in torch.float32; allowed",
        ),
        (lambda shape: torch.zeros(shape).double(), r"gives \(4,\) in torch.float64; allowed"),
    ],
)
def test_initial_values_of_ones_own_are_checked(gives: Any, message: str) -> None:
    sized = Model("m", (4,), [trained(spec(initial=Drawn(gives))), FC]).layers[0]
    with pytest.raises(InputError, match=message):
        initial_parameter(sized, sized.spec("w"), seed=0)


def test_initial_values_of_ones_own_are_used() -> None:
    ones = Drawn(lambda shape: torch.ones(shape))
    sized = Model("m", (4,), [trained(spec(initial=ones)), FC]).layers[0]
    assert torch.equal(initial_parameter(sized, sized.spec("w"), seed=0), torch.ones(4))


@dataclass(frozen=True, kw_only=True)
class Costly(Odd):
    """Says what it costs, wrongly."""

    what: Any = None

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        return _said(self.what, None)  # type: ignore[no-any-return]

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        return _said(self.what, None)  # type: ignore[no-any-return]

    def signature(self, part: LayerPart) -> str:
        return _said(self.what, None)  # type: ignore[no-any-return]

    def uncut(self, sized: SizedLayer, axis: str) -> str:
        return _said(self.what, "")  # type: ignore[no-any-return]

    def from_inputs(self, sized: SizedLayer, channels: Ranges) -> Box | None:
        return _said(self.what, None)  # type: ignore[no-any-return]


def test_what_a_kind_of_ones_own_says_of_its_costs_is_checked() -> None:
    def of(what: Any) -> LayerPart:
        sized = Model("m", (4,), [Costly(name="s", what=what), FC]).layers[0]
        return sized.part(sized.output.whole, sized.reads(sized.output.whole))

    with pytest.raises(InputError, match="layer s: its memory gives 3; allowed: LayerMemory of wh"):
        of(3).memory(2, 4)
    with pytest.raises(InputError, match="its memory gives LayerMemory.*2.5.*; allowed: LayerM"):
        of(LayerMemory(2.5, 4)).memory(2, 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="its memory gives LayerMemory.*saved_inputs=1.*; allowed"):
        of(LayerMemory(2, 4, saved_inputs=1)).memory(2, 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layer s: its kernels gives 3; allowed: a tuple of Kern"):
        of(3).kernels(2, "forward", 4)
    with pytest.raises(InputError, match="layer s: its signature gives 3; allowed: text"):
        of(3).signature()
    ask: dict[str, Callable[[LayerPart], object]] = {
        "memory": lambda part: part.memory(2, 4),
        "kernels": lambda part: part.kernels(2, "forward", 4),
        "signature": lambda part: part.signature(),
        "uncut": lambda part: part.sized.uncut("channel"),
        "from_inputs": lambda part: part.sized.from_inputs(((0, 1),)),
    }
    for word, asked in ask.items():
        with pytest.raises(InputError, match=rf"layer s: its {word} fails.*why.*\(test_layers.py"):
            asked(of(fails))


def test_a_part_takes_its_box_out_of_what_it_reads() -> None:
    layer = sized(Says(name="s", needs=((((1, 4),), ((0, 2), (4, 6)), ((0, 5),)),)), 4, 6, 5)
    out = (((1, 2), (3, 4)), ((1, 2), (4, 5)), ((2, 5),))
    part = layer.part(out, layer.reads(out))
    whole_value = torch.arange(2 * 4 * 6 * 5).view(2, 4, 6, 5)
    read = whole_value[:, 1:4, [0, 1, 4, 5]]
    assert torch.equal(part.take_out(read), whole_value[:, [1, 3]][:, :, [1, 4]][..., 2:5])


@pytest.mark.parametrize("name", [3, "", "[/x]", "a\x1b[31m", "x" * 101])
def test_a_models_name_that_no_table_could_show_is_told(name: Any) -> None:
    with pytest.raises(InputError, match="model: name: found"):
        Model(name, (4,), [FC])


@pytest.mark.parametrize("kind", [3, "[/x]", "a b"])
def test_a_kinds_name_that_no_table_could_show_is_told(kind: Any) -> None:
    named = type("Named", (Odd,), {"kind": kind})
    with pytest.raises(InputError, match="layer s: kind of Named: found"):
        Model("m", (4,), [named(name="s"), FC])


def test_a_recipe_that_cannot_be_is_told() -> None:
    with pytest.raises(InputError, match="recipe: lr: found '0.1'; allowed: a number of 0 or more"):
        Recipe(lr="0.1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="recipe is a dict, not a Recipe"):
        Model("m", (4,), [FC], {"lr": 0.1})  # type: ignore[arg-type]


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
