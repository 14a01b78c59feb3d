"""The figures of AlexNet and its family, written down by hand from their sources.

Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3; the released code's ``layers-145-half``;
Krizhevsky, arXiv 1404.5997 (2014). Parameters and multiply-adds follow from the layer sizes.
"""

from __future__ import annotations

from math import prod

import pytest

from orchestrator.errors import InputError
from orchestrator.models import (
    Conv,
    Dropout,
    Linear,
    MaxPool,
    Model,
    ReLU,
    ResponseNorm,
    SpatialNorm,
    build_model,
)
from orchestrator.models.conv import same_size_as_ceil
from orchestrator.models.ranges import Ranges

# name, output, parameters, multiply-adds per image
ALEXNET_2012 = [
    ("conv1", (96, 55, 55), 34_944, 105_415_200),
    ("conv2", (256, 27, 27), 307_456, 223_948_800),
    ("conv3", (384, 13, 13), 885_120, 149_520_384),
    ("conv4", (384, 13, 13), 663_936, 112_140_288),
    ("conv5", (256, 13, 13), 442_624, 74_760_192),
    ("fc6", (4096,), 37_752_832, 37_748_736),
    ("fc7", (4096,), 16_781_312, 16_777_216),
    ("fc8", (1000,), 4_097_000, 4_096_000),
]
NAMES_2012 = (
    "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
    "fc6 relu6 drop6 fc7 relu7 drop7 fc8 loss"
)
# name, parameters, of them in convolutions, multiply-adds per image
FAMILY = [
    ("alexnet2012", 60_965_224, 2_334_080, 724_406_816),
    ("alexnet2012-half", 59_798_312, 1_167_168, 391_514_384),
    ("alexnet2014", 61_100_840, 2_469_696, 714_188_480),
]


def ungrouped(channels: tuple[int, ...], classes: int) -> Model:
    """An ungrouped AlexNet as other benchmarks use it, written as a user would."""
    first: tuple[int, int, int | tuple[int, int]] = (11, 4, (0, same_size_as_ceil(224, 11, 4)))
    sizes = [first, (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
    chain: list[Conv | MaxPool | Linear] = []
    for n, (width, (kernel, stride, pad)) in enumerate(zip(channels, sizes, strict=True), 1):
        name = f"conv{n}"
        chain.append(Conv(name=name, channels=width, kernel=kernel, stride=stride, padding=pad))
        if n in (1, 2, 5):
            chain.append(MaxPool(name=f"pool{n}"))
    for n, features in enumerate((4096, 4096, classes), 6):
        chain.append(Linear(name=f"fc{n}", features=features))
    return Model("ungrouped", (3, 224, 224), chain)


def test_every_layer_of_2012_has_the_published_size() -> None:
    model = build_model("alexnet2012", {})
    assert [layer.name for layer in model.layers] == NAMES_2012.split()
    for name, shape, parameters, macs in ALEXNET_2012:
        layer = model.layers[model.index[name]]
        assert (layer.output_shape, layer.parameters, layer.macs) == (shape, parameters, macs), name
    assert model.parameters == 60_965_224
    assert model.macs == 724_406_816
    assert model.classes == 1000


def test_the_pools_of_2012_overlap_and_shrink_as_published() -> None:
    model = build_model("alexnet2012", {})
    shapes = {layer.name: layer.output_shape for layer in model.layers}
    assert shapes["pool1"] == (96, 27, 27)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["pool5"] == (256, 6, 6)
    assert shapes["loss"] == (1,)


@pytest.mark.parametrize(("name", "parameters", "in_convs", "macs"), FAMILY)
def test_a_variant_has_its_published_totals(
    name: str, parameters: int, in_convs: int, macs: int
) -> None:
    model = build_model(name, {})
    assert model.parameters == parameters
    assert sum(x.parameters for x in model.layers if x.kind == "conv") == in_convs
    assert model.macs == macs


@pytest.mark.parametrize(
    ("channels", "classes", "parameters", "in_convs", "macs"),
    [
        ((64, 192, 384, 384, 256), 1001, 61_842_345, 3_207_104, 838_792_896),
        ((96, 256, 384, 384, 256), 1000, 62_378_344, 3_747_200, 1_135_256_096),
    ],
)
def test_the_ungrouped_nets_of_other_benchmarks(
    channels: tuple[int, ...], classes: int, parameters: int, in_convs: int, macs: int
) -> None:
    model = ungrouped(channels, classes)
    assert model.parameters == parameters
    assert sum(x.parameters for x in model.layers if x.kind == "conv") == in_convs
    assert model.macs == macs


def test_weights_and_biases_start_as_the_paper_says() -> None:
    """Section 5: N(0, 0.01); bias 1 in conv2, conv4, conv5 and the hidden linear layers, else 0."""
    model = build_model("alexnet2012", {})
    weighted = [x.layer for x in model.layers if isinstance(x.layer, Conv | Linear)]
    assert {layer.weight_std for layer in weighted} == {0.01}
    ones = [layer.name for layer in weighted if layer.bias == 1]
    assert ones == ["conv2", "conv4", "conv5", "fc6", "fc7"]
    assert {layer.bias for layer in weighted} == {0, 1}
    recipe = model.recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 0.0005)


def test_norm_and_dropout_are_the_papers() -> None:
    """Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75; section 4.2: 0.5 on fc6 and fc7."""
    model = build_model("alexnet2012", {})
    norms = [x.layer for x in model.layers if isinstance(x.layer, ResponseNorm)]
    assert [norm.name for norm in norms] == ["norm1", "norm2"]
    assert {(n.k, n.window, n.alpha, n.beta, n.columns) for n in norms} == {(2, 5, 1e-4, 0.75, 2)}
    assert [x.layer.p for x in model.layers if isinstance(x.layer, Dropout)] == [0.5, 0.5]


def test_the_released_net_differs_from_the_paper_as_told() -> None:
    """layers-145: conv1 and conv5 are pooled before their ReLU, conv2 has a spatial norm more."""
    model = build_model("alexnet2012-released", {})
    names = [layer.name for layer in model.layers]
    assert names[:4] == ["conv1", "norm1", "pool1", "relu1"]
    assert names[4:9] == ["conv2", "relu2", "norm2", "snorm2", "pool2"]
    assert names[13:16] == ["conv5", "pool5", "relu5"]
    stds = [x.layer.weight_std for x in model.layers if isinstance(x.layer, Conv)]
    assert stds == [0.01, 0.01, 0.03, 0.03, 0.03]
    (spatial,) = (x.layer for x in model.layers if isinstance(x.layer, SpatialNorm))
    assert (spatial.window, spatial.scale, spatial.power) == (5, 0.001, 0.75)
    assert model.parameters == 60_965_224


def test_isolated_columns_are_4096_wide_each() -> None:
    """layers-150: fc6 has 4096 units in each column, and a unit reads its own column only."""
    model = build_model("alexnet2012-isolated", {})
    layers = {layer.name: layer for layer in model.layers}
    assert layers["fc6"].output_shape == (8192,)
    assert layers["fc6"].parameters == 8192 * 128 * 36 + 8192
    assert layers["conv3"].parameters == 384 * 128 * 9 + 384


def test_four_columns_read_three() -> None:
    """layers-153-4gpu: conv3a reads a, b, c; conv3b a, b, d; conv3c c, d, a; conv3d c, d, b."""
    model = build_model("alexnet2012-fourcolumns", {})
    conv3 = model.layers[model.index["conv3"]]

    def reads(out: Ranges) -> Ranges:
        (box,) = conv3.reads((out, *conv3.output.whole[1:]))
        return box[0]

    a, b, c, d = ((i * 64, i * 64 + 64) for i in range(4))
    assert reads(((0, 96),)) == ((a[0], c[1]),)
    assert reads(((96, 192),)) == ((a[0], b[1]), d)
    assert reads(((192, 288),)) == (a, (c[0], d[1]))
    assert reads(((288, 384),)) == ((b[0], d[1]),)
    assert conv3.parameters == 384 * 192 * 9 + 384
    assert {n.columns for x in model.layers if isinstance(n := x.layer, ResponseNorm)} == {4}


@pytest.mark.parametrize(("norm", "columns"), [("column", [2, 2]), ("whole", [1, 1]), ("none", [])])
def test_option_norm(norm: str, columns: list[int]) -> None:
    model = build_model("alexnet2012", {"norm": norm})
    assert [x.layer.columns for x in model.layers if isinstance(x.layer, ResponseNorm)] == columns


def test_option_classes_changes_the_last_layer_only() -> None:
    small, usual = build_model("alexnet2012", {"classes": 10}), build_model("alexnet2012", {})
    assert small.classes == 10
    assert usual.parameters - small.parameters == 990 * 4097
    assert small.declared[:-1] == usual.declared[:-1]


@pytest.mark.parametrize("size", [64, 96, 127, 224, 227, 256])
def test_option_image_size_gives_every_layer_an_output(size: int) -> None:
    model = build_model("alexnet2012", {"image_size": size})
    assert model.input_shape == (3, size, size)
    # the last window of conv1 may reach over the edge, never lie outside of it
    side = model.layers[0].output_shape[1]
    assert (side - 1) * 4 < size <= (side - 1) * 4 + 11 < size + 4
    assert all(min(layer.output_shape) >= 1 for layer in model.layers)


@pytest.mark.parametrize("width", [0.05, 0.25, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("name", ["alexnet2012", "alexnet2012-fourcolumns", "alexnet2012-isolated"])
def test_option_width_keeps_the_columns_even(name: str, width: float) -> None:
    model = build_model(name, {"width": width, "classes": 7})
    columns = 4 if "four" in name else 2
    hidden = [x for x in model.layers if x.has_weights][:-1]
    assert all(x.output.channels % (2 * columns) == 0 for x in hidden)
    whole = {x.name: x.output.channels for x in build_model(name, {}).layers}
    for layer in hidden:
        assert abs(layer.output.channels - width * whole[layer.name]) <= 2 * columns
    assert model.classes == 7


def test_bad_options_are_told() -> None:
    with pytest.raises(InputError, match="image_size is 63; .* at least 64") as caught:
        build_model("alexnet2012", {"image_size": 63}, "p.yaml:4, model")
    assert caught.value.location == "p.yaml:4, model"
    assert "model.image_size=64" in caught.value.remedy
    with pytest.raises(InputError, match="norm is 'all'; allowed: column, whole, none"):
        build_model("alexnet2012", {"norm": "all"})


def test_lenet5_is_as_in_1998_with_pools() -> None:
    model = build_model("lenet5", {})
    sizes = {x.name: (x.output_shape, x.parameters) for x in model.layers if x.has_weights}
    assert sizes == {
        "conv1": ((6, 28, 28), 156),
        "conv2": ((16, 10, 10), 2_416),
        "fc3": ((120,), 48_120),
        "fc4": ((84,), 10_164),
        "fc5": ((10,), 850),
    }
    assert model.parameters == 61_706
    small = build_model("lenet5", {"width": 0.5, "classes": 3, "image_size": 16})
    assert [x.output.channels for x in small.layers if x.has_weights] == [4, 8, 60, 42, 3]
    with pytest.raises(InputError, match="conv2: its input of 6x4x4 is too small"):
        build_model("lenet5", {"image_size": 12})


def test_multiply_adds_are_weights_times_places() -> None:
    for layer in build_model("alexnet2012", {"width": 0.3}).layers:
        places = prod(layer.output_shape[1:])
        assert layer.macs == (prod(layer.spec("weight").shape) * places if layer.has_weights else 0)
        assert not isinstance(layer.layer, ReLU) or layer.parameters == 0
