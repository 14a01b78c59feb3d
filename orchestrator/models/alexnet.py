"""AlexNet and its family.

Sources: Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3 and figure 2; the 2012 source
code released by the Computer History Museum (folder ``layers/``); Krizhevsky,
"One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997 (2014).

    2012, two columns:   conv1 ─ conv2 ═╳═ conv3 ─ conv4 ─ conv5 ═╳═ fc6 ═╳═ fc7 ═╳═ fc8
                         conv1 ─ conv2 ═╳═ conv3 ─ conv4 ─ conv5 ═╳═ fc6 ═╳═ fc7 ═╝
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.errors import InputError
from orchestrator.models.activations import ReLU
from orchestrator.models.conv import Conv, same_size_as_ceil
from orchestrator.models.dropout import Dropout
from orchestrator.models.layer import Layer
from orchestrator.models.linear import Linear
from orchestrator.models.model import Model
from orchestrator.models.pool import MaxPool
from orchestrator.models.response_norm import ResponseNorm
from orchestrator.models.spatial_norm import SpatialNorm

NORMS = ("column", "whole", "none")


@dataclass(frozen=True)
class _Net:
    """What sets one member of the family apart from another."""

    convs: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    features: tuple[int, int] = (4096, 4096)
    columns: int = 2
    groups: tuple[int, int, int, int, int] = (1, 2, 1, 2, 2)
    feature_groups: int = 1
    mixing: tuple[tuple[int, ...], ...] = ()  # conv3's columns, where it reads only some
    norm: str = "column"
    biases: tuple[float, ...] = (0, 1, 0, 1, 1)
    stds: tuple[float, ...] = (0.01,) * 5
    released_order: bool = False


def _scaled(channels: int, width: float, multiple: int) -> int:
    return max(1, round(channels * width / multiple)) * multiple


def _chain(net: _Net, classes: int, image_size: int, width: float) -> Iterator[Layer]:
    """conv1..fc8 of ``net``; ``width`` scales every layer but the class scores."""
    multiple = 2 * net.columns if width != 1 else 1
    channels = [_scaled(c, width, multiple) for c in net.convs]
    kernels, strides, paddings = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (0, 2, 1, 1, 1)
    for i in range(5):
        n = i + 1
        # conv1 reaches over the right and bottom edge, which gives 55 x 55 out of 224 x 224
        padding = (0, same_size_as_ceil(image_size, 11, 4)) if i == 0 else paddings[i]
        mixing = net.mixing if n == 3 else ()
        yield Conv(
            name=f"conv{n}", channels=channels[i], kernel=kernels[i], stride=strides[i],
            padding=padding, groups=net.groups[i], column_reads=mixing,
            weight_std=net.stds[i], bias=net.biases[i],
        )  # fmt: skip
        yield from _after_conv(net, n)
    for n, features in zip((6, 7), net.features, strict=True):
        wide = _scaled(features, width, multiple)
        yield Linear(name=f"fc{n}", features=wide, groups=net.feature_groups, bias=1)
        yield ReLU(name=f"relu{n}")
        yield Dropout(name=f"drop{n}")
    yield Linear(name="fc8", features=classes)


def _after_conv(net: _Net, n: int) -> Iterator[Layer]:
    """ReLU, norm and pool behind conv ``n``, in the paper's order or the released code's."""
    pooled, normed = n in (1, 2, 5), n in (1, 2) and net.norm != "none"
    relu_last = net.released_order and n in (1, 5)
    if not relu_last:
        yield ReLU(name=f"relu{n}")
    if normed:
        yield ResponseNorm(name=f"norm{n}", columns=net.columns if net.norm == "column" else 1)
    if net.released_order and n == 2:
        yield SpatialNorm(name="snorm2")
    if pooled:
        yield MaxPool(name=f"pool{n}")
    if relu_last:
        yield ReLU(name=f"relu{n}")


FAMILY = {
    "alexnet2012": _Net(),
    "alexnet2012-released": _Net(released_order=True, stds=(0.01, 0.01, 0.03, 0.03, 0.03)),
    # One column alone: half the kernels in conv1..conv4, conv5 and the rest as wide as before.
    "alexnet2012-half": _Net(
        convs=(48, 128, 192, 192, 256), columns=1, groups=(1, 1, 1, 1, 1)
    ),
    # The columns never talk: fc6 is 4096 wide in each, fc7 reads its own, only fc8 joins them.
    "alexnet2012-isolated": _Net(
        features=(8192, 4096), groups=(1, 2, 2, 2, 2), feature_groups=2
    ),
    "alexnet2012-fourcolumns": _Net(
        columns=4, groups=(1, 4, 1, 4, 4), mixing=((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))
    ),
    "alexnet2014": _Net(
        convs=(64, 192, 384, 256, 256), columns=1, groups=(1, 1, 1, 1, 1), norm="none",
        stds=(0.01, 0.01, 0.03, 0.03, 0.03),
    ),
}  # fmt: skip


def build_alexnet(
    name: str,
    classes: int = 1000,
    image_size: int = 224,
    width: float = 1.0,
    norm: str | None = None,
) -> Model:
    """One of the family by name.

    Args:
        classes: class scores.
        image_size: side of the square input.
        width: factor on every channel and feature count but the classes.
        norm: ``column`` (stops at the columns, as in 2012), ``whole`` (crosses them), ``none``.
    """
    if image_size < 64:
        raise InputError(
            f"model option image_size is {image_size}; {name} needs at least 64",
            remedy="--set model.image_size=64",
        )
    net = FAMILY[name]
    if norm is not None:
        if norm not in NORMS:
            raise InputError(f"model option norm is {norm!r}; allowed: {', '.join(NORMS)}")
        net = replace(net, norm=norm)
    return Model(name, (3, image_size, image_size), _chain(net, classes, image_size, width))
