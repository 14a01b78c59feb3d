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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.fields import Bounds, Matches, Odd, check_fields
from orchestrator.models.model_file import is_of_user, told
from orchestrator.models.ranges import Ranges, at, intersect, local, normalise

if TYPE_CHECKING:
    from orchestrator.models.torch_layers import Generator, Shard, Tensor

Shape = tuple[int, ...]

Count = Annotated[int, Bounds(1)]
Zeros = Annotated[int, Bounds(0)]
Name = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9_]+([.\-/][A-Za-z0-9_]+)*", "of letters, digits and _, with . - or / between"
    ),
]


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
    """One named layer. A kind of layer is a frozen dataclass that extends this one.

    It says what it computes with :meth:`forward`, and where its output's shape is not its input's
    or a channel needs more than itself, :meth:`output_shape` and :meth:`reads`. That is all for a
    kind without weights::

        @dataclass(frozen=True, kw_only=True)
        class Clip(Layer):
            limit: float = 6.0

            def forward(self, x, shard):
                return x.clamp(0, self.limit)

    A kind with weights sets ``has_weights`` and says with :meth:`terms` which input channels each
    output channel takes; it has one weight, and a bias for each output channel::

        @dataclass(frozen=True, kw_only=True)
        class Scale(Layer):
            has_weights: ClassVar[bool] = True

            def terms(self, input_shape):
                return tuple(Term((c, c + 1), (0, 1), ((c, c + 1),)) for c in range(input_shape[0]))

            def forward(self, x, shard):
                (weight,) = shard.weights  # (channels that this rank computes, 1)
                return (x.movedim(1, -1) * weight[:, 0] + shard.bias).movedim(-1, 1)

    Attributes:
        name: unique in its model.
        kind: the field's word for it, used in files and tables; the class's own name in lower
            case, unless it or the kind that it extends says another.
        has_weights: whether it is trained.

    Raises:
        InputError: a field whose value does not fit its annotation.
    """

    name: Name
    kind: ClassVar[str] = ""
    has_weights: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.kind:
            cls.kind = cls.__name__.lower()

    def __post_init__(self) -> None:
        check_fields(self, f"layer {self.name}")

    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one image's output."""
        return input_shape

    def reads(self, input_shape: Shape, out: Ranges) -> Ranges:
        """Input channels that the output channels ``out`` need."""
        return _reads_of_terms(self.terms(input_shape), out) if self.has_weights else out

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        """The output channels of one rank.

        Args:
            x: (n, channels in ``shard.reads``, ...).
            shard: which channels, and the weights that they have.

        Returns:
            (n, channels in ``shard.out``, ...); a partial sum where ``shard.reads`` is less than
            ``shard.out`` needs.
        """
        raise NotImplementedError

    # -- of a kind with weights --

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        """How the weights connect output to input channels; empty without weights."""
        return ()

    def kernel_values(self, input_shape: Shape) -> int:
        """Weight values for one (output channel, fan-in channel) pair."""
        return 1

    def kernel_shape(self, input_shape: Shape) -> Shape:
        """The weight's dimensions behind (output channels, fan-in channels x the rest)."""
        return ()

    def macs_per_weight(self, input_shape: Shape) -> int:
        """Multiply-adds per image that one weight value takes part in."""
        return prod(self.output_shape(input_shape)[1:])

    def initial_weight(self, shape: Shape, generator: Generator) -> Tensor:
        """The whole weight before training: float32, N(0, 0.01) unless a kind says otherwise."""
        from orchestrator.models.torch_layers import normal

        return normal(shape, 0.01, generator)

    def initial_bias(self) -> float:
        """Every bias before training."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class _Weighted(Layer):
    """What convolutions and fully connected layers have in common.

    Args:
        weight_std, bias: initial weights N(0, weight_std), initial bias.
    """

    weight_std: Annotated[float, Bounds(0)] = 0.01
    bias: float = 0.0
    has_weights: ClassVar[bool] = True

    def initial_weight(self, shape: Shape, generator: Generator) -> Tensor:
        from orchestrator.models.torch_layers import normal

        return normal(shape, self.weight_std, generator)

    def initial_bias(self) -> float:
        return self.bias

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        from orchestrator.models.torch_layers import weighted

        return weighted(x, shard)


@dataclass(frozen=True, kw_only=True)
class Conv(_Weighted):
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

    channels: Count
    kernel: Count
    stride: Count = 1
    padding: Zeros | tuple[Zeros, Zeros] = 0
    groups: Count = 1
    column_reads: tuple[tuple[Zeros, ...], ...] = ()
    kind: ClassVar[str] = "conv"

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and after."""
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a convolution reads images, not {input_shape}")
        sides = [(n + sum(self.pads) - self.kernel) // self.stride + 1 for n in input_shape[1:]]
        return _positive(self.name, (self.channels, *sides), input_shape)

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

    def kernel_shape(self, input_shape: Shape) -> Shape:
        return (self.kernel, self.kernel)


@dataclass(frozen=True, kw_only=True)
class Linear(_Weighted):
    """Fully connected with bias; reads images as ``flatten`` orders them, channel first.

    ``groups`` > 1: each group of features reads its own group of input channels only.
    """

    features: Count
    groups: Count = 1
    kind: ClassVar[str] = "linear"

    def output_shape(self, input_shape: Shape) -> Shape:
        return (self.features,)

    def terms(self, input_shape: Shape) -> tuple[Term, ...]:
        return _group_terms(self.name, input_shape[0], self.features, self.groups)

    def kernel_values(self, input_shape: Shape) -> int:
        return prod(input_shape[1:])


@dataclass(frozen=True, kw_only=True)
class ReLU(Layer):
    """max(0, x)."""

    kind: ClassVar[str] = "relu"

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        return x.relu()


@dataclass(frozen=True, kw_only=True)
class ResponseNorm(Layer):
    """Local response norm across channels (Krizhevsky 2012, section 3.3), alpha over ``window``.

    Args:
        columns: the channels fall into this many equal columns and the window stops at their
            borders, as in the 2012 code; 1 lets it cross the whole depth.
    """

    window: Annotated[int, Bounds(1), Odd()] = 5
    alpha: Annotated[float, Bounds(0)] = 1e-4
    beta: float = 0.75
    k: Annotated[float, Bounds(0)] = 2.0
    columns: Count = 1
    kind: ClassVar[str] = "norm"

    def output_shape(self, input_shape: Shape) -> Shape:
        if input_shape[0] % self.columns:
            raise InputError(
                f"layer {self.name}: columns: found {self.columns}; allowed: a number that divides "
                f"the {input_shape[0]} channels of its input"
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

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        from orchestrator.models.torch_layers import response_norm

        return response_norm(x, self, shard)


@dataclass(frozen=True, kw_only=True)
class SpatialNorm(Layer):
    """Response norm over a ``window`` x ``window`` neighbourhood in the same channel.

    x / (k + scale / window² · Σ x²)^power, as the norm of the released 2012 network's conv2.
    """

    window: Annotated[int, Bounds(1), Odd()] = 5
    scale: Annotated[float, Bounds(0)] = 0.001
    power: float = 0.75
    k: Annotated[float, Bounds(0)] = 1.0
    kind: ClassVar[str] = "spatial_norm"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a spatial norm reads images, not {input_shape}")
        return input_shape

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        from orchestrator.models.torch_layers import nnf

        square = nnf.avg_pool2d(x * x, self.window, stride=1, padding=self.window // 2)
        return x * (self.k + self.scale * square).pow(-self.power)


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    """Max pooling; windows overlap where ``kernel`` exceeds ``stride``."""

    kernel: Count = 3
    stride: Count = 2
    kind: ClassVar[str] = "pool"

    def output_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) != 3:
            raise InputError(f"layer {self.name}: a pool reads images, not {input_shape}")
        sides = [(n - self.kernel) // self.stride + 1 for n in input_shape[1:]]
        return _positive(self.name, (input_shape[0], *sides), input_shape)

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        from orchestrator.models.torch_layers import nnf

        return nnf.max_pool2d(x, self.kernel, self.stride)


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """Dropout as in 2012: masks in training, multiplies by (1 - p) at test time."""

    p: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    kind: ClassVar[str] = "dropout"

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        from orchestrator.models.torch_layers import dropout_mask

        if shard.draw is None:
            return x * (1 - self.p)
        return x * dropout_mask(shard.sized, shard.out, shard.draw, x)


@dataclass(frozen=True, kw_only=True)
class Sum(Layer):
    """Adds up the partial sums of a layer split on its input; placed by the compiler."""

    kind: ClassVar[str] = "sum"

    def forward(self, x: Tensor, shard: Shard) -> Tensor:
        return x


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
        if not self.has_weights:
            return ()
        behind = self.layer.kernel_shape(self.input_shape)
        values = self.layer.kernel_values(self.input_shape) // prod(behind)
        return (self.out_channels, self.fan_in * values, *behind)

    @property
    def fan_values(self) -> int:
        """Columns of the weight for each fan-in channel."""
        return self.weight_shape[1] // self.fan_in

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
    if not is_of_user(type(layer)):
        return layer.reads(input_shape, out)
    try:
        found = layer.reads(input_shape, out)
    except Exception as error:
        raise told(error, f"layer {layer.name}: its reads fails for channels {out}") from error
    return check_reads(layer, input_shape, found)


def check_reads(layer: Layer, input_shape: Shape, found: Any) -> Ranges:
    """What a layer says that it reads, if that is ascending ranges of its input channels.

    Raises:
        InputError: it is not.
    """
    pairs = found if isinstance(found, tuple) else ()
    fits = bool(pairs) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
        for pair in pairs
    )
    ends = [end for pair in pairs for end in pair] if fits else []
    if not ends or ends[0] < 0 or ends[-1] > input_shape[0] or ends != sorted(set(ends)):
        raise InputError(
            f"layer {layer.name}: reads gives {found}; allowed: ascending ranges such as "
            f"((0, 4), (6, 8)) of its {input_shape[0]} input channels"
        )
    return pairs


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
            remedy="a larger input (--set model.image_size=...) or a smaller kernel",
        )
    return shape
