"""What a layer computes, told without torch: shapes, connectivity, parameters, multiply-adds.

A layer maps images of ``(channels, height, width)`` or feature vectors ``(features,)`` to the same
kind of thing, one image at a time. Splitting a layer means giving out *channel ranges* (a feature
of a linear layer counts as a channel), so the one question everything else asks is
:meth:`Layer.reads`: which input channels does a set of output channels need?

A layer with weights is a list of *terms*: output channels that read the same input channels.

    grouped convolution, 2 groups          partial connectivity (four columns, conv3)

      out 0:128  <- in 0:48                  out 0:96   <- in columns a, b, c
      out 128:256 <- in 48:96                out 96:192 <- in columns a, b, d   ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import ClassVar, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.ranges import Ranges, at, intersect, local, normalise

Shape = tuple[int, ...]


class Term(NamedTuple):
    """Output channels ``out`` take the weights of fan-in channels ``fan`` times input ``reads``.

    ``fan`` counts along the second dimension of the weight, in channels, from 0 for each output
    channel, so that a grouped convolution's second group has ``fan`` (0, 48), ``reads`` (48, 96).
    """

    out: tuple[int, int]
    fan: tuple[int, int]
    reads: Ranges


class Tile(NamedTuple):
    """A rectangle of a layer's weight: output channels x fan-in channels, both half-open."""

    out: tuple[int, int]
    fan: tuple[int, int]

    @property
    def channels(self) -> int:
        """Output channels times fan-in channels."""
        return (self.out[1] - self.out[0]) * (self.fan[1] - self.fan[0])


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One named layer. ``kind`` is the field's word for it, used in files and tables."""

    name: str
    kind: ClassVar[str] = ""
    has_weights: ClassVar[bool] = False

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one image's output."""
        return input_shape

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        """Input channels that the output channels ``out`` need."""
        return out

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        """How the weights connect output to input channels; empty without weights."""
        return ()

    def kernel_values(self, input_shape: Shape) -> int:
        """Weight values for one (output channel, fan-in channel) pair."""
        return 0

    def macs_per_weight(self, input_shape: Shape) -> int:
        """Multiply-adds per image that one weight value takes part in."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Conv(Layer):
    """2-D convolution with bias.

    Args:
        channels: output channels.
        kernel, stride: as in ``torch.nn.Conv2d``, square.
        padding: zeros before and after each side; one number means both. The 2012 code pads conv1
            after only, ``(0, 3)``.
        groups: equal groups; or give ``columns`` and ``column_reads``.
        column_reads: for partial connectivity, per column of the output the input columns it
            reads, such as ``((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))``.
        weight_std, bias: initial weights N(0, weight_std), initial bias.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int | tuple[int, int] = 0
    groups: int = 1
    column_reads: tuple[tuple[int, ...], ...] = ()
    weight_std: float = 0.01
    bias: float = 0.0
    kind: ClassVar[str] = "conv"
    has_weights: ClassVar[bool] = True

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and after."""
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a convolution reads images, not {input_shape}")
        sides = [(n + sum(self.pads) - self.kernel) // self.stride + 1 for n in input_shape[1:]]
        return _positive(self.name, (self.channels, *sides), input_shape)

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        return _reads_of_terms(self.terms(input_shape), out)

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        if self.column_reads:
            return self._column_terms(input_shape[0])
        return _group_terms(self.name, input_shape[0], self.channels, self.groups)

    def _column_terms(self, in_channels: int) -> tuple[Term, ...]:
        columns = len(self.column_reads)
        inside, outside = in_channels // columns, self.channels // columns
        fans = {len(set(reads)) for reads in self.column_reads}
        known = all(0 <= c < columns for reads in self.column_reads for c in reads)
        if inside * columns != in_channels or outside * columns != self.channels:
            raise InputError(f"layer {self.name}: channels do not divide into {columns} columns")
        if len(fans) != 1 or not known:
            raise InputError(
                f"layer {self.name}: column_reads must name as many of the columns 0.."
                f"{columns - 1} for each column, found {self.column_reads}"
            )
        fan = fans.pop() * inside
        return tuple(
            Term(
                (c * outside, (c + 1) * outside),
                (0, fan),
                normalise((i * inside, (i + 1) * inside) for i in reads),
            )
            for c, reads in enumerate(self.column_reads)
        )

    def kernel_values(self, input_shape: Shape) -> int:
        return self.kernel**2

    def macs_per_weight(self, input_shape: Shape) -> int:
        return prod(self.output_shape(input_shape)[1:])


@dataclass(frozen=True, kw_only=True)
class Linear(Layer):
    """Fully connected with bias; reads images as ``flatten`` orders them, channel first.

    ``groups`` > 1: each group of features reads its own group of input channels only.
    """

    features: int
    groups: int = 1
    weight_std: float = 0.01
    bias: float = 0.0
    kind: ClassVar[str] = "linear"
    has_weights: ClassVar[bool] = True

    def output_shape(self, input_shape: Shape) -> Shape:
        return (self.features,)

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        return _reads_of_terms(self.terms(input_shape), out)

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        return _group_terms(self.name, input_shape[0], self.features, self.groups)

    def kernel_values(self, input_shape: Shape) -> int:
        return prod(input_shape[1:])

    def macs_per_weight(self, input_shape: Shape) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class ReLU(Layer):
    """max(0, x)."""

    kind: ClassVar[str] = "relu"


@dataclass(frozen=True, kw_only=True)
class ResponseNorm(Layer):
    """Local response norm across channels (Krizhevsky 2012, section 3.3), alpha over ``window``.

    Args:
        columns: the channels fall into this many equal columns and the window stops at their
            borders, as in the 2012 code; 1 lets it cross the whole depth.
    """

    window: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    columns: int = 1
    kind: ClassVar[str] = "norm"

    def output_shape(self, input_shape: Shape) -> Shape:
        if self.window % 2 == 0 or input_shape[0] % self.columns:
            raise InputError(
                f"layer {self.name}: the window must be odd and the columns divide "
                f"{input_shape[0]} channels, found window {self.window}, columns {self.columns}"
            )
        return input_shape

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        width, half = input_shape[0] // self.columns, self.window // 2
        found = []
        for column in range(self.columns):
            low, high = column * width, (column + 1) * width
            for start, stop in intersect(out, ((low, high),)):
                found.append((max(low, start - half), min(high, stop + half)))
        return normalise(found)


@dataclass(frozen=True, kw_only=True)
class SpatialNorm(Layer):
    """Response norm over a ``window`` x ``window`` neighbourhood in the same channel.

    x / (k + scale / window² · Σ x²)^power, as the norm of the released 2012 network's conv2.
    """

    window: int = 5
    scale: float = 0.001
    power: float = 0.75
    k: float = 1.0
    kind: ClassVar[str] = "spatial_norm"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a spatial norm reads images, not {input_shape}")
        return input_shape


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    """Max pooling; windows overlap where ``kernel`` exceeds ``stride``."""

    kernel: int = 3
    stride: int = 2
    kind: ClassVar[str] = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a pool reads images, not {input_shape}")
        sides = [(n - self.kernel) // self.stride + 1 for n in input_shape[1:]]
        return _positive(self.name, (input_shape[0], *sides), input_shape)


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """Dropout as in 2012: masks in training, multiplies by (1 - p) at test time."""

    p: float = 0.5
    kind: ClassVar[str] = "dropout"


@dataclass(frozen=True, kw_only=True)
class Sum(Layer):
    """Adds up the partial sums of a layer split on its input; placed by the compiler."""

    kind: ClassVar[str] = "sum"


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Layer):
    """Softmax cross-entropy, summed over the images; gives one value an image."""

    kind: ClassVar[str] = "loss"

    def output_shape(self, input_shape: Shape) -> Shape:
        return (1,)

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        return ((0, input_shape[0]),)


@dataclass(frozen=True)
class SizedLayer:
    """A layer at its place in a model, with the shapes of one image before and after it."""

    layer: Layer
    input_shape: Shape
    output_shape: Shape

    @property
    def name(self) -> str:
        """The layer's name, unique in its model."""
        return self.layer.name

    @property
    def kind(self) -> str:
        """The kind of layer: conv, linear, relu, ..."""
        return self.layer.kind

    @property
    def has_weights(self) -> bool:
        """Whether the layer is trained."""
        return self.layer.has_weights

    @property
    def in_channels(self) -> int:
        """Channels (features) of the input."""
        return self.input_shape[0]

    @property
    def out_channels(self) -> int:
        """Channels (features) of the output."""
        return self.output_shape[0]

    @property
    def in_values(self) -> int:
        """Values per image and input channel."""
        return prod(self.input_shape[1:])

    @property
    def out_values(self) -> int:
        """Values per image and output channel."""
        return prod(self.output_shape[1:])

    @property
    def fan_in(self) -> int:
        """Fan-in channels of each output channel; 0 without weights."""
        terms = self.layer.terms(self.input_shape)
        return terms[0].fan[1] if terms else 0

    @property
    def weight_shape(self) -> Shape:
        """Shape of the whole weight as torch keeps it; () without weights."""
        if isinstance(self.layer, Conv):
            return (self.out_channels, self.fan_in, self.layer.kernel, self.layer.kernel)
        if isinstance(self.layer, Linear):
            return (self.out_channels, self.fan_in * self.in_values)
        return ()

    def reads(self, out: Ranges) -> Ranges:
        """Input channels that the output channels ``out`` need."""
        return _reads(self.layer, self.input_shape, out)

    def terms(self, out: Ranges, reads: Ranges) -> tuple[Term, ...]:
        """The terms that compute ``out`` from input channels ``reads`` only."""
        return _terms(self.layer, self.input_shape, out, reads)

    def tiles(self, out: Ranges, reads: Ranges) -> tuple[Tile, ...]:
        """The rectangles of the weight behind ``terms(out, reads)``, joined where they touch."""
        return _tiles(self.layer, self.input_shape, out, reads)

    def weights(self, tiles: tuple[Tile, ...]) -> int:
        """Weight values in ``tiles``."""
        return sum(tile.channels for tile in tiles) * self.layer.kernel_values(self.input_shape)

    @property
    def parameters(self) -> int:
        """Weights and biases of the whole layer."""
        if not self.has_weights:
            return 0
        everything = ((0, self.out_channels),)
        return self.weights(self.tiles(everything, ((0, self.in_channels),))) + self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole layer for one image, forward."""
        if not self.has_weights:
            return 0
        return (self.parameters - self.out_channels) * self.layer.macs_per_weight(self.input_shape)


def same_size_as_ceil(size_in: int, kernel: int, stride: int) -> int:
    """Zeros to add after one side so that the last window, reaching over the edge, counts."""
    return (ceil((size_in - kernel) / stride)) * stride + kernel - size_in


# Every rank of every plan asks a layer the same few questions, so the answers are kept.
@lru_cache(maxsize=65_536)
def _reads(layer: Layer, input_shape: Shape, out: Ranges) -> Ranges:
    return layer.reads(input_shape, out)


@lru_cache(maxsize=65_536)
def _terms(layer: Layer, input_shape: Shape, out: Ranges, reads: Ranges) -> tuple[Term, ...]:
    found = []
    for term in layer.terms(input_shape):
        for part in intersect((term.out,), out):
            inside = intersect(term.reads, reads)
            for fan in local(inside, term.reads):
                found.append(Term(part, fan, at(fan, term.reads)))
    return tuple(found)


@lru_cache(maxsize=65_536)
def _tiles(layer: Layer, input_shape: Shape, out: Ranges, reads: Ranges) -> tuple[Tile, ...]:
    tiles: list[Tile] = []
    for term in _terms(layer, input_shape, out, reads):
        last = tiles[-1] if tiles else None
        if last and last.fan == term.fan and last.out[1] == term.out[0]:
            tiles[-1] = Tile((last.out[0], term.out[1]), last.fan)
        else:
            tiles.append(Tile(term.out, term.fan))
    return tuple(tiles)


def _reads_of_terms(terms: tuple[Term, ...], out: Ranges) -> Ranges:
    return normalise(r for term in terms if intersect((term.out,), out) for r in term.reads)


def _group_terms(name: str, inputs: int, outputs: int, groups: int) -> tuple[Term, ...]:
    inside, outside = (inputs // groups, outputs // groups) if groups > 0 else (0, 0)
    if groups < 1 or inside * groups != inputs or outside * groups != outputs:
        raise InputError(
            f"layer {name}: {inputs} -> {outputs} channels do not divide into {groups} groups"
        )
    return tuple(
        Term((g * outside, (g + 1) * outside), (0, inside), ((g * inside, (g + 1) * inside),))
        for g in range(groups)
    )


def _positive(name: str, shape: Shape, input_shape: Shape) -> Shape:
    if min(shape) < 1:
        sides = "x".join(map(str, input_shape))
        raise InputError(
            f"layer {name}: its input of {sides} is too small, its output would be "
            f"{'x'.join(map(str, shape))}",
            remedy="a larger model.image_size",
        )
    return shape
