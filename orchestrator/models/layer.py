"""What a layer is: the one interface that everything else asks, and the words it answers in.

A layer maps values to a value, one example at a time. A value has named axes: ``channel, height,
width`` for images, ``token, channel`` for sequences, ``channel`` for vectors. To split a layer is
to give out *boxes* of its output, so the question that everything else asks is
:meth:`Layer.reads`: which box of each input does a box of the output need?

A kind of layer is a frozen dataclass that extends :class:`Layer` and says all about itself: shapes,
what it reads, parameters, its function in torch (as a part and as a whole), what autograd keeps for
it, its arithmetic, and how it is drawn. Nothing outside asks which kind it is. Kinds import torch
inside their functions, so that descriptions need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, shape_of, volume, whole
from orchestrator.models.fields import Bounds, Matches, check_fields
from orchestrator.models.model_file import is_of_user, told
from orchestrator.models.ranges import Ranges

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from orchestrator.models.randomness import Draw

Count = Annotated[int, Bounds(1)]
Zeros = Annotated[int, Bounds(0)]
Name = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9_]+([.\-/][A-Za-z0-9_]+)*", "of letters, digits and _, with . - or / between"
    ),
]
Pass = Literal["forward", "backward", "backward_input", "backward_weight"]

INPUT, LABELS = "input", "labels"  # what a model reads from its data, as if they were layers
IMAGE_AXES = ("channel", "height", "width")
VECTOR_AXES = ("channel",)
SEQUENCE_AXES = ("token", "channel")


class Value(NamedTuple):
    """What a layer gives for one example.

    Args:
        shape: sizes, in the order of the tensor's dimensions behind the first, the examples.
        axes: their names.
        integer: class or token numbers, which have no gradient.
    """

    shape: Shape
    axes: tuple[str, ...]
    integer: bool = False

    def size(self, axis: str) -> int:
        """Positions along an axis; 1 where the value does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def channels(self) -> int:
        """Channels, or features."""
        return self.size("channel")

    @property
    def whole(self) -> Box:
        """The box that is all of it."""
        return whole(self.shape)

    def along(self, box: Box, axis: str) -> Ranges:
        """A box's ranges along one axis."""
        return box[self.axes.index(axis)]


def value_of(shape: Shape) -> Value:
    """An image of (channels, height, width), a sequence of (tokens, features) or a vector of
    (features,)."""
    axes = {3: IMAGE_AXES, 2: SEQUENCE_AXES, 1: VECTOR_AXES}.get(len(shape))
    if axes is None:
        raise InputError(
            f"an input of {len(shape)} dimensions; allowed: (channels, height, width), "
            "(tokens, features), (features,), or (tokens,) where an Embedding reads it"
        )
    return Value(tuple(shape), axes)


# -- parameters -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normal:
    """Initial values drawn from N(0, std)."""

    std: float

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.empty(shape).normal_(0, self.std, generator=generator)


@dataclass(frozen=True)
class Uniform:
    """Initial values drawn evenly from -bound to bound."""

    bound: float

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.empty(shape).uniform_(-self.bound, self.bound, generator=generator)


@dataclass(frozen=True)
class Constant:
    """Initial values that are all the same."""

    value: float

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        """Float32 values."""
        import torch

        return torch.full(shape, float(self.value))


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor of a layer that is trained.

    Args:
        name: within the layer, such as ``weight``.
        shape: as torch keeps it.
        initial: its initial values.
        axes: by dimension, the axis of the output whose box cuts it; None for one that is never
            cut. Kinds that cut in another way override :meth:`Layer.tiles`.
        decays: whether weight decay applies.
        tied_to: ``layer.parameter`` whose tensor this is; it has no values of its own.
    """

    name: str
    shape: Shape
    initial: Normal | Uniform | Constant
    axes: tuple[str | None, ...] = ()
    decays: bool = True
    tied_to: str = ""


class Tile(NamedTuple):
    """A rank's part of one parameter: a box of it, kept as a tensor of its own."""

    parameter: str
    box: Box


# -- what a layer costs in memory -----------------------------------------------------------------


class LayerMemory(NamedTuple):
    """Bytes of one layer part for one chunk.

    Args:
        before, after: its input and output.
        keeps_input, keeps_output: whether the graph holds them for the backward.
        kept: what else the graph holds.
        forward_extra, backward_extra: what is needed for a moment besides.
        weights: its parameters, and so their gradients.
        same: the output is the input, no new tensor.
    """

    before: int
    after: int
    keeps_input: bool = False
    keeps_output: bool = False
    kept: int = 0
    forward_extra: int = 0
    backward_extra: int = 0
    weights: int = 0
    same: bool = False


INT64 = 8  # bytes: places of maxima, labels, and the hash behind a dropout mask


class Kernel(NamedTuple):
    """One kernel of a pass, which reads and writes each of its tensors once: what a window reads
    twice comes from a cache.

    Args:
        flops: operations; a multiply-add is two.
        bytes: read from memory and written to it.
        product: values of the matrix that it computes, where it is a product; else 0.
    """

    flops: int
    bytes: int
    product: int = 0


# -- how a plan takes a layer apart ----------------------------------------------------------------


class Cut(NamedTuple):
    """How an entry of a plan cuts its layers.

    Args:
        counts: by axis, ``batch`` included, how many parts.
        batches: each rank's examples, within the chunk.
        chunk: examples at once.
        replica_batch: examples of a step in one copy of the placement.
        global_batch: in all.
    """

    counts: dict[str, int]
    batches: tuple[Ranges, ...]
    chunk: int
    replica_batch: int
    global_batch: int


class Statistics(NamedTuple):
    """A layer in two halves, with an exchange between them.

    Args:
        axes: the cut along these is what takes it apart; their parts are numbered row by row.
        gather: what is needed of each part: part i gives ``width`` positions of the last axis from
            ``width * i`` on.
        apply: reads what the layer read, or not, and then what ``gather`` gave of all parts.
        width: positions of the last axis for each part.
    """

    axes: tuple[str, ...]
    gather: Layer
    apply: Layer
    width: int


# -- the layer ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One named layer. A kind of layer is a frozen dataclass that extends this one.

    It says what it computes with :meth:`compute`, and where its output is not shaped as its input,
    or a box of it needs more than the same box, :meth:`output` and :meth:`reads`. That is all for
    a kind without parameters::

        @dataclass(frozen=True, kw_only=True)
        class Clip(Layer):
            limit: float = 6.0

            def compute(self, part, inputs, parameters, draw):
                return inputs[0].clamp(0, self.limit)

    A kind that is trained says its parameters, and along which axis of the output each of their
    dimensions is cut::

        @dataclass(frozen=True, kw_only=True)
        class Scale(Layer):
            def parameters(self, value):
                return (ParameterSpec("weight", (value.channels,), Constant(1.0), ("channel",)),)

            def compute(self, part, inputs, parameters, draw):
                (weight,) = parameters  # of the channels that this rank computes
                return (inputs[0].movedim(1, -1) * weight).movedim(-1, 1)

    Attributes:
        name: unique in its model.
        inputs: names of the layers that it reads; () for the layer before.
        kind: the field's word for it, used in files and tables; the class's own name in lower
            case, unless it or the kind that it extends says another.
        drawn: in the picture: ``block``, ``pool``, or "" for nothing of its own.
        input_count: how many values it reads; None for any number.
        reads_tokens: its input is token numbers.
        is_loss: its output, added up, is what is minimised.
        has_rows: it reads or gives rows that are not one for each example.
        computes: whether anything is left to do once its inputs are there.

    Raises:
        InputError: a field whose value does not fit its annotation.
    """

    name: Name
    inputs: tuple[str, ...] = ()
    kind: ClassVar[str] = ""
    drawn: ClassVar[str] = ""
    input_count: ClassVar[int | None] = 1
    reads_tokens: ClassVar[bool] = False
    is_loss: ClassVar[bool] = False
    has_rows: ClassVar[bool] = False
    computes: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.kind:
            cls.kind = cls.__name__.lower()

    def __post_init__(self) -> None:
        check_fields(self, f"layer {self.name}")

    @property
    def cone(self) -> tuple[int, int]:
        """Kernel and stride that the picture draws; (0, 0) for none."""
        return (0, 0)

    @property
    def vocabulary_size(self) -> int:
        """How many token numbers it knows; 0 where it reads none."""
        return 0

    # -- shapes and connectivity

    def output(self, *inputs: Value) -> Value:
        """What it gives, from what it reads.

        Raises:
            InputError: values that it cannot read.
        """
        return inputs[0]

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        """The box of each input that the box ``out`` of the output needs."""
        return (out,)

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        """Its trained tensors, whole."""
        return ()

    def tiles(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> tuple[Tile, ...]:
        """The parts of its parameters that compute ``out`` from ``reads`` only."""
        found = []
        for spec in sized.specs:
            axes = spec.axes or (None,) * len(spec.shape)
            cut = [
                ((0, n),) if axis is None else sized.output.along(out, axis)
                for axis, n in zip(axes, spec.shape, strict=True)
            ]
            found.append(Tile(spec.name, tuple(cut)))
        return tuple(found)

    def uncut(self, sized: SizedLayer, axis: str) -> str:
        """Why its output cannot be cut along an axis that it has; "" if it can."""
        return ""

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        """Where a cut takes apart what an output value needs, as a norm's mean: the layer that
        says of each part what is needed of it, and the one that puts this together.

        Raises:
            InputError: a cut that cannot be, with its remedy.
        """
        return None

    def rows(self, batch: Ranges) -> Ranges:
        """Of its output, the rows that it gives for these examples: one for each, but where it
        gives one for a group of them, which stands at the group's first."""
        return batch

    def input_rows(self, number: int, batch: Ranges) -> Ranges:
        """Of an input, the rows that it needs for these examples."""
        return batch

    def gathered(self, sized: SizedLayer, reads: Box, mine: Ranges) -> Box:
        """Of a layer that gathers: the box that a part gives which reads this box, at its positions
        of the last axis."""
        raise NotImplementedError(f"layer kind {type(self).__name__} gathers nothing")

    def from_inputs(self, sized: SizedLayer, channels: Ranges) -> Box | None:
        """The output to which some input channels contribute a partial sum; None if it is no sum
        over its input channels."""
        return None

    # -- arithmetic

    def macs(self, sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> int:
        """Multiply-adds for one example, forward."""
        return 0

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        """What a device runs for one pass over some examples.

        Of x and y, a layer's input and output, w, its parameters, and their gradients gx, gy, gw::

            forward          x, w -> y
            backward_input   gy, x, w -> gx
            backward_weight  gy, x -> gw
        """
        x, y = examples * part.read_values, examples * part.written_values
        flops, w = 2 * examples * part.macs_per_example, part.parameters
        forward, backward = self.moved(x, y, itemsize)
        if direction == "forward":
            return tuple(Kernel(flops, bytes_ + w * itemsize) for bytes_ in forward)
        of_input = tuple(Kernel(flops, bytes_ + w * itemsize) for bytes_ in backward)
        of_weight = (Kernel(flops, (x + y + w) * itemsize),) if part.tiles else ()
        return {
            "backward": (*of_input, *of_weight),
            "backward_input": of_input,
            "backward_weight": of_weight,
        }[direction]

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bytes that each kernel of a forward, and of a backward, reads and writes, parameters left
        out.

        Args:
            x, y: values before and after the layer.
        """
        return ((x + y) * itemsize,), ((x + y + x) * itemsize,)

    def signature(self, part: LayerPart) -> str:
        """What a part's time depends on besides shapes, in words: ``kernel 5 stride 1``."""
        return ""

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        """Bytes of a part over some examples, as autograd keeps them for :meth:`compute`.

        Without a better word: input and output are kept, as by a function of both.
        """
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(
            before, after, keeps_input=True, keeps_output=True, backward_extra=before,
            weights=part.parameters * itemsize,
        )  # fmt: skip

    # -- torch

    def compute(
        self,
        part: LayerPart,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        draw: Draw | None,
    ) -> Tensor:
        """A box of the output.

        Args:
            inputs: (n, sizes of the box that it reads) of each input.
            parameters: one for each of ``part.tiles``.
            draw: randomness; None at test time.

        Returns:
            (n, sizes of ``part.out``); a partial sum where ``part.reads`` is less than it needs.
        """
        raise NotImplementedError(f"layer kind {type(self).__name__} has no compute()")

    def whole(
        self,
        sized: SizedLayer,
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        draw: Draw | None,
    ) -> Tensor:
        """The whole output by torch's own modules: what :meth:`compute` is held against.

        A kind without it is held against its own :meth:`compute` of everything.
        """
        everything = sized.output.whole
        part = sized.part(everything, sized.reads(everything))
        tensors = []
        for tile in part.tiles:
            x = parameters[tile.parameter]
            for dimension, ((start, stop),) in enumerate(tile.box):
                x = x.narrow(dimension, start, stop - start)
            tensors.append(x)
        return run(part, inputs, tensors, draw)


@dataclass(frozen=True)
class SizedLayer:
    """A layer at its place in a model.

    Args:
        layer: the layer.
        inputs: what it reads.
        output: what it gives.
        sources: names of the layers that it reads from, :data:`INPUT` and :data:`LABELS` included.
    """

    layer: Layer
    inputs: tuple[Value, ...]
    output: Value
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, layer: Layer, *inputs: Value, sources: tuple[str, ...] = ()) -> SizedLayer:
        """The layer behind these values."""
        return cls(layer, inputs, layer.output(*inputs), sources)

    @cached_property
    def _hash(self) -> int:
        return hash((self.layer, self.inputs, self.output, self.sources))

    def __hash__(self) -> int:
        return self._hash  # asked for by every memo

    @property
    def name(self) -> str:
        """The layer's name, unique in its model."""
        return self.layer.name

    @property
    def kind(self) -> str:
        """The kind of layer: conv, linear, relu, ..."""
        return self.layer.kind

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input."""
        return self.inputs[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the output."""
        return self.output.shape

    @cached_property
    def tied(self) -> frozenset[str]:
        """Names of its parameters that are another layer's."""
        return frozenset(spec.name for spec in self.specs if spec.tied_to)

    @cached_property
    def specs(self) -> tuple[ParameterSpec, ...]:
        """The layer's parameters."""
        return self.layer.parameters(*self.inputs)

    @property
    def has_weights(self) -> bool:
        """Whether the layer is trained."""
        return bool(self.specs)

    def spec(self, name: str) -> ParameterSpec:
        """A parameter by its name."""
        return next(spec for spec in self.specs if spec.name == name)

    @cached_property
    def parameters(self) -> int:
        """Values of the whole layer's parameters; those of a tied one are counted at its owner."""
        return sum(prod(spec.shape) for spec in self.specs if not spec.tied_to)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the whole layer for one example, forward."""
        everything = self.output.whole
        return self.layer.macs(self, everything, self.reads(everything))

    def reads(self, out: Box) -> tuple[Box, ...]:
        """The box of each input that the box ``out`` of the output needs."""
        return _reads(self, out)

    def part(self, out: Box, reads: tuple[Box, ...]) -> LayerPart:
        """The part that computes ``out`` from ``reads``."""
        return _part(self, out, reads)


class LayerPart(NamedTuple):
    """A rank's part of one layer; ranks that differ in their examples share it.

    Args:
        sized: the layer.
        out: the box of the output that it computes.
        reads: the box of each input that it needs.
        tiles: the parts of its parameters that it holds.
        parameters: values in them.
        macs_per_example: multiply-adds for one example, forward.
    """

    sized: SizedLayer
    out: Box
    reads: tuple[Box, ...]
    tiles: tuple[Tile, ...]
    parameters: int
    macs_per_example: int

    @property
    def read_values(self) -> int:
        """Values of one example's inputs, integers left out."""
        both = zip(self.reads, self.sized.inputs, strict=True)
        return sum(volume(box) for box, value in both if not value.integer)

    @property
    def written_values(self) -> int:
        """Values of one example's output."""
        return volume(self.out)

    def bytes(self, examples: int, itemsize: int) -> tuple[int, int]:
        """Of its inputs, integers left out, and of its output."""
        each = examples * itemsize
        return each * self.read_values, each * self.written_values

    @property
    def input_shapes(self) -> tuple[Shape, ...]:
        """Of one example's inputs."""
        return tuple([shape_of(box) for box in self.reads])

    @property
    def output_shape(self) -> Shape:
        """Of one example's output."""
        return shape_of(self.out)


# Every rank of every plan asks a layer the same few questions, so the answers are kept.
@lru_cache(maxsize=65_536)
def _reads(sized: SizedLayer, out: Box) -> tuple[Box, ...]:
    if not is_of_user(type(sized.layer)):
        return sized.layer.reads(sized, out)
    try:
        found = sized.layer.reads(sized, out)
    except Exception as error:
        raise told(error, f"layer {sized.name}: its reads fails for the box {out}") from error
    return _check_reads(sized, found)


def _check_reads(sized: SizedLayer, found: Any) -> tuple[Box, ...]:
    """What a layer says that it reads, if that is a box of each of its inputs.

    Raises:
        InputError: it is not.
    """
    fits = isinstance(found, tuple) and len(found) == len(sized.inputs)
    for box, value in zip(found, sized.inputs, strict=True) if fits else ():
        fits = fits and isinstance(box, tuple) and len(box) == len(value.shape)
        fits = fits and all(_are_ranges(r, n) for r, n in zip(box, value.shape, strict=True))
    if not fits:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in sized.inputs)
        raise InputError(
            f"layer {sized.name}: reads gives {found}; allowed: for each input ({shapes}) a box: "
            "for each of its axes ascending ranges such as ((0, 4), (6, 8))"
        )
    return found  # type: ignore[no-any-return]


def _are_ranges(ranges: Any, size: int) -> bool:
    pairs = ranges if isinstance(ranges, tuple) else (None,)
    if not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
        for pair in pairs
    ):
        return False
    ends = [end for pair in pairs for end in pair]
    return not ends or (ends[0] >= 0 and ends[-1] <= size and ends == sorted(set(ends)))


@lru_cache(maxsize=65_536)
def _part(sized: SizedLayer, out: Box, reads: tuple[Box, ...]) -> LayerPart:
    tiles = sized.layer.tiles(sized, out, reads) if sized.has_weights else ()
    parameters = sum(volume(tile.box) for tile in tiles)
    return LayerPart(sized, out, reads, tiles, parameters, sized.layer.macs(sized, out, reads))


def run(
    part: LayerPart, inputs: Sequence[Tensor], parameters: Sequence[Tensor], draw: Draw | None
) -> Tensor:
    """A part's :meth:`Layer.compute`; of a user's own kind, what it gives is checked.

    Raises:
        InputError: a user's code fails, or gives what it should not.
    """
    layer = part.sized.layer
    if not is_of_user(type(layer)):
        return layer.compute(part, inputs, parameters, draw)
    import torch

    what = f"layer {part.sized.name}"
    try:
        y = layer.compute(part, inputs, parameters, draw)
    except Exception as error:
        raise told(error, f"{what} fails") from error
    examples, dtype = len(inputs[0]), inputs[0].dtype
    shape = (examples, *part.output_shape)
    if not isinstance(y, torch.Tensor):
        raise InputError(f"{what}: its compute gives {type(y).__name__}; allowed: a tensor")
    floats = inputs[0].is_floating_point()
    if tuple(y.shape) != shape or (floats and y.dtype != dtype):
        raise InputError(
            f"{what}: its compute gives {tuple(y.shape)} in {y.dtype}; allowed: {shape} in {dtype}"
        )
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *parameters))
    if needs and not y.requires_grad:
        raise InputError(
            f"{what}: its compute gives what autograd cannot follow to its input",
            remedy="no detach(), no_grad() or numpy in it",
        )
    return y


def wants_image(layer: Layer, value: Value, what: str) -> None:
    """Refuse what is no image.

    Raises:
        InputError: naming the layer.
    """
    if value.axes != IMAGE_AXES:
        raise InputError(f"layer {layer.name}: {what} reads images, not {value.shape}")


def positive(layer: Layer, shape: Shape, before: Shape) -> Shape:
    """The shape, if it holds anything.

    Raises:
        InputError: naming the layer, and the remedy.
    """
    if min(shape) < 1:
        sides = "x".join(map(str, before))
        raise InputError(
            f"layer {layer.name}: its input of {sides} is too small, its output would be "
            f"{'x'.join(map(str, shape))}",
            remedy="a larger input (--set model.image_size=...) or a smaller kernel",
        )
    return shape
