"""What a layer is: the one interface that everything else asks, and the words it answers in.

A layer maps values to a value, one example at a time. A value has named axes: ``channel, height,
width`` for images, ``token, channel`` for sequences, ``channel`` for vectors, or what a kind of a
user's own calls them: a plan cuts any of them by its name. To split a layer is to give out *boxes*
of its output, so the question that everything else asks is :meth:`Layer.reads`: which box of each
input does a box of the output need?

A kind of layer is a frozen dataclass that extends :class:`Layer` and says all about itself: shapes,
what it reads, parameters, its function in torch (as a part and as a whole), what autograd keeps for
it, its arithmetic, and how it is drawn. Nothing outside asks which kind it is. Kinds import torch
inside their functions, so that descriptions need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape
from orchestrator.models.fields import Matches, check_fields
from orchestrator.models.layer_costs import Copies, Kernel, LayerMemory, Pass
from orchestrator.models.parameter import ParameterSpec, Tile
from orchestrator.models.pieces import cut_out
from orchestrator.models.ranges import Ranges
from orchestrator.models.value import IMAGE_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.randomness import Draw
    from orchestrator.models.sized import LayerPart, SizedLayer

    Tensors = Sequence[Tensor]
    NamedTensors = Mapping[str, Tensor]

Name = Annotated[
    str,
    Matches(
        r"[A-Za-z0-9_]+([.\-/][A-Za-z0-9_]+)*", "of letters, digits and _, with . - or / between"
    ),
]


class Cut(NamedTuple):
    """How an entry of a plan cuts its layers.

    Args:
        counts: by axis, ``batch`` included, how many parts.
        batches: each rank's examples, within the chunk.
        chunk: examples at once.
        replica_batch: examples of a step in one copy of the placement.
        global_batch: in all.
        evaluating: nothing is trained, so statistics of the batch are not asked for.
    """

    counts: dict[str, int]
    batches: tuple[Ranges, ...]
    chunk: int
    replica_batch: int
    global_batch: int
    evaluating: bool = False


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
        drawn: in the picture: ``block``; ``pool``; ``plus``, ``times`` or ``bar`` for what joins
            values; ``norm`` for nothing of its own; "" for a block where it is trained, else
            nothing.
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
        """The tensors that it keeps from step to step, whole: its trained ones."""
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

    def gathered(self, sized: SizedLayer, reads: Box, positions: Ranges) -> Box:
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
            before, after, saves_input=True, saves_output=True, backward_extra=before,
            weights=part.parameters * itemsize,
        )  # fmt: skip

    def processor_copies(self, part: LayerPart, examples: int) -> Copies:
        """What the library of a processor (oneDNN, of float32) copies besides :meth:`memory`."""
        return Copies()

    # -- torch

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        """A box of the output.

        Args:
            inputs: (n, sizes of the box that it reads) of each input.
            parameters: one for each of ``part.tiles``.
            draw: which examples are trained on, and randomness; None in evaluation.

        Returns:
            (n, sizes of ``part.out``); a partial sum where ``part.reads`` is less than it needs.
        """
        raise NotImplementedError(f"layer kind {type(self).__name__} has no compute()")

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        """The whole output by torch's own modules: what :meth:`compute` is held against.

        A kind without it is held against its own :meth:`compute` of everything.
        """
        everything = sized.output.whole
        part = sized.part(everything, sized.reads(everything))
        tensors = [cut_out(parameters[tile.parameter], tile.box) for tile in part.tiles]
        return part.compute(inputs, tensors, draw)


def require_image(layer: Layer, value: Value, what: str) -> None:
    """Refuse what is no image.

    Raises:
        InputError: naming the layer.
    """
    if value.axes != IMAGE_AXES:
        raise InputError(f"layer {layer.name}: {what} reads images, not {value.shape}")


def require_nonempty(layer: Layer, shape: Shape, before: Shape) -> Shape:
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
