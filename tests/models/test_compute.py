"""Each layer, whole and in any channel ranges, against plain ``torch.nn`` in float64.

``plain`` is written from the layers' descriptions with modules of torch and shares no code with
what it checks. A part of a layer must give the values and the gradients of that part of the whole.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.execute.parameters import initial_parameter
from orchestrator.models import (
    Conv,
    CrossEntropy,
    Dropout,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    ResponseNorm,
    SizedLayer,
    SpatialNorm,
    Sum,
    Value,
)
from orchestrator.models.box import Box
from orchestrator.models.pieces import take
from orchestrator.models.randomness import Draw, keep_mask
from orchestrator.models.ranges import Ranges, normalise, size
from orchestrator.models.value import value_of

COLUMN_READS = ((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))


def strong(name: str, columns: int = 1, window: int = 5, beta: float = 0.75) -> ResponseNorm:
    """Constants far from the paper's, so that the window's part of the value is not small."""
    return ResponseNorm(name=name, alpha=3.0, k=1.5, columns=columns, window=window, beta=beta)


LAYERS: list[tuple[Layer, tuple[int, ...]]] = [
    (Conv(name="conv", channels=6, kernel=3, padding=1), (4, 5, 5)),
    (Conv(name="conv2groups", channels=8, kernel=3, stride=2, groups=2), (6, 7, 7)),
    (Conv(name="conv_over_the_edge", channels=4, kernel=4, stride=3, padding=(0, 2)), (3, 8, 8)),
    (Conv(name="conv_columns", channels=8, kernel=2, column_reads=COLUMN_READS), (8, 3, 3)),
    (Linear(name="linear_on_images", features=6), (4, 2, 2)),
    (Linear(name="linear", features=5), (7,)),
    (Linear(name="linear_groups", features=6, groups=3), (9,)),
    (Linear(name="linear_groups_on_images", features=8, groups=2), (4, 2, 2)),
    (strong("norm"), (11, 2, 2)),
    (strong("norm_columns", columns=2), (12, 2, 2)),
    (strong("norm_of_three", columns=4, window=3), (12, 2, 2)),
    (strong("norm_power", beta=0.6), (8, 2, 2)),
    (SpatialNorm(name="spatial", scale=2.0), (4, 6, 6)),
    (MaxPool(name="pool"), (5, 7, 7)),
    (MaxPool(name="pool_apart", kernel=2, stride=2), (5, 7, 7)),
    (ReLU(name="relu"), (8, 2, 2)),
    (Sum(name="sum"), (8,)),
]
SIZED = [SizedLayer.of(layer, value_of(shape)) for layer, shape in LAYERS]
RANGES = st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), min_size=1, max_size=3)


def convolved(layer: Conv, x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    before, after = layer.pads
    conv = nn.Conv2d(
        x.shape[1], len(weight), layer.kernel, layer.stride, groups=groups, dtype=x.dtype
    )
    named = {"weight": weight, "bias": bias}
    padded = nn.ZeroPad2d((before, after, before, after))(x)
    result = torch.func.functional_call(conv, named, (padded,))
    assert isinstance(result, Tensor)
    return result


def plain(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The whole layer with modules of torch."""
    result: Tensor
    if isinstance(layer, Conv) and layer.column_reads:
        columns, weights, biases = x.chunk(4, 1), weight.chunk(4), bias.chunk(4)
        return torch.cat(
            [
                convolved(layer, torch.cat([columns[i] for i in sorted(reads)], 1), w, b, 1)
                for reads, w, b in zip(layer.column_reads, weights, biases, strict=True)
            ],
            1,
        )
    if isinstance(layer, Conv):
        return convolved(layer, x, weight, bias, layer.groups)
    if isinstance(layer, Linear):
        parts = []
        groups = (
            tensor.chunk(layer.groups, dim) for tensor, dim in ((x, 1), (weight, 0), (bias, 0))
        )
        for part, w, b in zip(*groups, strict=True):
            flat = nn.Flatten()(part)
            linear = nn.Linear(flat.shape[1], len(w), dtype=x.dtype)
            parts.append(torch.func.functional_call(linear, {"weight": w, "bias": b}, (flat,)))
        return torch.cat(parts, 1)
    if isinstance(layer, ResponseNorm):
        norm = nn.LocalResponseNorm(layer.window, layer.alpha, layer.beta, layer.k)
        return torch.cat([norm(column) for column in x.chunk(layer.columns, 1)], 1)
    if isinstance(layer, SpatialNorm):
        half = layer.window // 2
        square = nn.ZeroPad2d(half)(x) ** 2
        height, width = x.shape[2:]
        shifts = [(i, j) for i in range(layer.window) for j in range(layer.window)]
        summed = sum((square[:, :, i : i + height, j : j + width] for i, j in shifts), x * 0)
        result = x / (layer.k + layer.scale / layer.window**2 * summed) ** layer.power
        return result
    if isinstance(layer, MaxPool):
        result = nn.MaxPool2d(layer.kernel, layer.stride)(x)
        return result
    result = nn.ReLU()(x) if isinstance(layer, ReLU) else nn.Identity()(x)
    return result


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def leaves(sized: SizedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Input, whole weight and bias, to be differentiated."""
    x = noise(3, *sized.input_shape).requires_grad_()
    weight = noise(*(sized.spec("weight").shape if sized.has_weights else (1,)), seed=1)
    bias = noise(sized.output.channels, seed=2)
    return x, weight.requires_grad_(), bias.requires_grad_()


def of_channels(value: Value, channels: Ranges) -> Box:
    """Some channels, all of the other axes."""
    return (channels, *value.whole[1:])


def cut_out(x: Tensor, box: Box) -> Tensor:
    for dimension, ranges in enumerate(box):
        x = take(x, ranges, dimension)
    return x


def part_of(
    sized: SizedLayer,
    leaf: tuple[Tensor, Tensor, Tensor],
    out: Ranges,
    reads: Ranges,
    draw: Draw | None = None,
) -> Tensor:
    """Output channels ``out`` from input channels ``reads``, tiles cut from the whole weight."""
    x, weight, bias = leaf
    whole = {"weight": weight, "bias": bias}
    part = sized.part(of_channels(sized.output, out), (of_channels(sized.inputs[0], reads),))
    tiles = [cut_out(whole[tile.parameter], tile.box) for tile in part.tiles]
    return sized.layer.compute(part, (take(x, reads),), tiles, draw)


def all_of(sized: SizedLayer, leaf: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return part_of(sized, leaf, sized.output.whole[0], sized.inputs[0].whole[0])


def modules_of(sized: SizedLayer, leaf: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """What one device computes in ``verify``."""
    x, weight, bias = leaf
    parameters = {"weight": weight, "bias": bias} if sized.has_weights else {}
    return sized.layer.whole(sized, (x,), parameters, None)


def gradients(y: Tensor, g: Tensor, leaf: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(y, leaf, g, allow_unused=True)
    return [torch.zeros_like(x) if f is None else f for f, x in zip(found, leaf, strict=True)]


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("computed", [all_of, modules_of])
@pytest.mark.parametrize("sized", SIZED, ids=lambda sized: sized.name)
def test_a_whole_layer_is_torchs(
    sized: SizedLayer, computed: Callable[[SizedLayer, tuple[Tensor, Tensor, Tensor]], Tensor]
) -> None:
    leaf = leaves(sized)
    expected = plain(sized.layer, *leaf)
    ours = computed(sized, leaf)
    assert ours.shape == (3, *sized.output_shape)
    same(ours, expected)
    g = noise(*expected.shape, seed=3)
    for mine, theirs in zip(gradients(ours, g, leaf), gradients(expected, g, leaf), strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("sized", SIZED, ids=lambda sized: sized.name)
@settings(max_examples=25)
@given(wanted=RANGES)
def test_any_channels_of_a_layer_are_those_of_the_whole(
    sized: SizedLayer, wanted: list[tuple[int, int]]
) -> None:
    top = sized.output.channels
    out = normalise((min(a, top - 1), min(max(a + 1, b), top)) for a, b in wanted) or ((0, 1),)
    leaf = leaves(sized)
    expected = take(plain(sized.layer, *leaf), out)
    (reads,) = sized.reads(of_channels(sized.output, out))
    ours = part_of(sized, leaf, out, reads[0])
    same(ours, expected)
    g = noise(*expected.shape, seed=3)
    for mine, theirs in zip(gradients(ours, g, leaf), gradients(expected, g, leaf), strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("sized", [s for s in SIZED if s.has_weights], ids=lambda s: s.name)
@settings(max_examples=25)
@given(cut=st.integers(1, 8))
def test_partial_sums_over_input_channels_add_up(sized: SizedLayer, cut: int) -> None:
    """As a layer split on its input is computed: parts of the fan-in, the bias with the first."""
    inputs = sized.inputs[0].channels
    cut = min(cut, inputs - 1)
    leaf = leaves(sized)
    total = torch.zeros(3, *sized.output_shape, dtype=torch.float64)
    for reads in (((0, cut),), ((cut, inputs),)):
        touched = sized.layer.from_inputs(sized, reads)
        assert touched is not None
        part, column = part_of(sized, leaf, touched[0], reads), 0
        for start, stop in touched[0]:
            total[:, start:stop] += part[:, column : column + stop - start]
            column += stop - start
    same(total, plain(sized.layer, *leaf))


def test_the_bias_is_added_to_its_own_channels_only() -> None:
    sized = SIZED[5]
    leaf = leaves(sized)
    x, weight, bias = leaf
    same(part_of(sized, leaf, ((1, 5),), ((0, 7),)), x @ weight[1:5].T + bias[1:5])
    first = part_of(sized, leaf, ((1, 5),), ((0, 3),))
    same(first, x[:, :3] @ weight[1:5, :3].T + bias[1:5])
    behind = part_of(sized, leaf, ((1, 5),), ((3, 7),))
    same(behind, x[:, 3:] @ weight[1:5, 3:].T)
    # three groups of three inputs: of inputs 4..8 only the last group has its first
    grouped = SIZED[6]
    leaf = leaves(grouped)
    x, weight, bias = leaf
    both = part_of(grouped, leaf, ((2, 6),), ((4, 9),))
    same(both[:, :2], x[:, 4:6] @ weight[2:4, 1:].T)
    same(both[:, 2:], x[:, 6:] @ weight[4:].T + bias[4:])


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("beta", [0.75, 0.4])
@pytest.mark.parametrize("out", [((0, 9),), ((2, 5),), ((0, 2), (4, 5), (8, 9))])
def test_the_norms_own_backward_is_its_derivative(out: Ranges, beta: float, columns: int) -> None:
    layer = ResponseNorm(name="n", alpha=2.0, beta=beta, k=1.0, columns=columns)
    sized = SizedLayer.of(layer, value_of((9, 2, 1)))
    box = of_channels(sized.output, out)
    part = sized.part(box, sized.reads(box))
    x = noise(2, *part.input_shapes[0]).requires_grad_()

    def norm(x: Tensor) -> Tensor:
        return layer.compute(part, (x,), (), None)

    assert torch.autograd.gradcheck(norm, (x,), atol=1e-7)


def test_the_loss_is_torchs() -> None:
    layer = CrossEntropy(name="loss")
    sized = SizedLayer.of(layer, value_of((4,)), Value((), (), integer=True))
    part = sized.part(sized.output.whole, sized.reads(sized.output.whole))
    x, labels = noise(5, 4).requires_grad_(), torch.tensor([0, 3, 1, 1, 2])
    expected = nn.CrossEntropyLoss(reduction="sum")(x, labels)
    for ours in (
        layer.compute(part, (x, labels), (), None),
        layer.whole(sized, (x, labels), {}, None),
    ):
        same(ours, expected)
        same(
            torch.autograd.grad(ours, x)[0], torch.autograd.grad(expected, x, retain_graph=True)[0]
        )
    narrow = layer.compute(part, (x.detach().bfloat16(), labels), (), None)
    assert narrow.dtype == torch.float32


# -- randomness hangs on what is drawn for --------------------------------------------------------

DROP = Dropout(name="drop", p=0.3)
IMAGES = SizedLayer.of(DROP, value_of((8, 3, 3)))
ALL = ((0, 8),)


def mask(
    samples: list[int], out: Ranges = ALL, *, seed: int = 0, step: int = 0, name: str = "drop"
) -> Tensor:
    like = torch.empty(len(samples), size(out), 3, 3)
    box = of_channels(IMAGES.output, out)
    draw = Draw(seed, step, torch.tensor(samples), 16)
    return keep_mask(name, IMAGES.output_shape, box, 0.3, draw, like)


@given(
    samples=st.lists(st.integers(0, 10_000), min_size=1, max_size=6),
    channels=RANGES.map(lambda r: normalise((min(a, 7), min(max(a + 1, b), 8)) for a, b in r)),
)
def test_a_mask_does_not_depend_on_who_else_is_drawn(samples: list[int], channels: Ranges) -> None:
    channels = channels or ((0, 1),)
    part = mask(samples, channels)
    for row, sample in zip(part, samples, strict=True):
        assert torch.equal(row, take(mask([sample]), channels)[0])


def test_a_mask_zeroes_a_part_p_of_the_values() -> None:
    wide = mask(list(range(3000)))
    n = wide.numel()
    assert set(wide.unique().tolist()) == {0.0, 1.0}
    # five standard deviations of a mean of n draws; rows and columns each with fewer draws
    assert abs(float(wide.mean()) - 0.7) < 5 * (0.21 / n) ** 0.5
    assert float((wide.mean(0) - 0.7).abs().max()) < 5 * (0.21 / 3000) ** 0.5
    assert float((wide.flatten(1).mean(1) - 0.7).abs().max()) < 6 * (0.21 / 72) ** 0.5


def test_masks_of_neighbours_are_independent() -> None:
    """Neighbouring samples, values, steps, layers and seeds agree as often as strangers do."""
    wide = mask(list(range(2000)))
    expected, allowed = 0.7**2 + 0.3**2, 5 * (0.58 * 0.42 / (1999 * 72)) ** 0.5
    strangers = [
        (wide[:-1], wide[1:]),
        (wide.flatten(1)[:, :-1], wide.flatten(1)[:, 1:]),
        (wide, mask(list(range(2000)), step=1)),
        (wide, mask(list(range(2000)), seed=1)),
        (wide, mask(list(range(2000)), name="drop2")),
    ]
    for a, b in strangers:
        assert abs(float((a == b).double().mean()) - expected) < allowed


def test_dropout_masks_in_training_and_scales_at_test_time() -> None:
    x = noise(4, 8, 3, 3)
    draw = Draw(0, 5, torch.arange(4), 4)
    everything = IMAGES.output.whole
    keep = keep_mask("drop", (8, 3, 3), everything, 0.3, draw, x)

    def both(sized: SizedLayer, draw: Draw | None) -> tuple[Tensor, Tensor]:
        part = sized.part(everything, (everything,))
        return (
            sized.layer.compute(part, (x,), (), draw), sized.layer.whole(sized, (x,), {}, draw)
        )  # fmt: skip

    for trained in (*both(IMAGES, draw), *both(IMAGES, draw)):
        assert torch.equal(trained, x * keep)
    for tested in both(IMAGES, None):
        assert torch.equal(tested, x * 0.7)
    never = SizedLayer.of(Dropout(name="drop", p=0.0), value_of((8, 3, 3)))
    for kept in both(never, draw):
        assert torch.equal(kept, x)


def normal_weight(name: str, seed: int) -> Tensor:
    layer = Linear(name=name, features=300, weight_std=0.02)
    sized = SizedLayer.of(layer, value_of((200,)))
    return initial_parameter(sized, sized.spec("weight"), seed)


def test_initial_weights_are_drawn_from_seed_and_layer() -> None:
    """Nothing else is asked for: no rank, no split, no earlier draw."""
    first = normal_weight("fc6", 0)
    torch.rand(7)
    assert torch.equal(first, normal_weight("fc6", 0))
    others: list[Callable[[], Tensor]] = [
        lambda: normal_weight("fc7", 0),
        lambda: normal_weight("fc6", 1),
    ]
    assert not any(torch.equal(first, draw()) for draw in others)
    assert (first.shape, first.dtype) == ((300, 200), torch.float32)
    assert abs(float(first.mean())) < 5 * 0.02 / 60_000**0.5
    assert abs(float(first.std()) / 0.02 - 1) < 0.02
