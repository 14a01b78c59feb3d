"""Layers that put several values together, and the sum of partial sums."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from string import ascii_lowercase
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box, is_empty
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.pieces import take
from orchestrator.models.ranges import intersect, normalise, shift
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import VECTOR_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Sum(Layer):
    """Adds up the partial sums of a layer split on its input; placed by the compiler.

    The pieces are added where they are received, so nothing is left to compute.
    """

    kind: ClassVar[str] = "sum"
    computes: ClassVar[bool] = False
    drawn: ClassVar[str] = "block"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(before, after, same=True)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        return inputs[0]

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        return inputs[0]


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """The sum of values of one shape, such as a residual and what it skipped."""

    kind: ClassVar[str] = "add"
    drawn: ClassVar[str] = "plus"
    input_count: ClassVar[int | None] = None

    def output(self, *inputs: Value) -> Value:
        if len(inputs) < 2 or any(value != inputs[0] for value in inputs):
            shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
            raise InputError(
                f"layer {self.name}: it adds two or more values of one shape, found {shapes}",
                remedy="a projection (a Conv of kernel 1) on the shorter path",
            )
        return inputs[0]

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return (out,) * len(sized.inputs)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        several = len(part.reads) > 2  # the sum of all but the last
        return LayerMemory(
            before, after, forward_extra=after if several else 0, passes_gradient=True
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = total + x
        return total

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch

        return torch.stack(tuple(inputs)).sum(0)


@dataclass(frozen=True, kw_only=True)
class Multiply(Layer):
    """The product of two values of one shape, or of an image and one factor a channel.

    The first is a gated unit's (SwiGLU), the second squeeze and excitation's.
    """

    kind: ClassVar[str] = "multiply"
    drawn: ClassVar[str] = "times"
    input_count: ClassVar[int | None] = 2

    def output(self, *inputs: Value) -> Value:
        a, b = inputs
        gates = b.axes == VECTOR_AXES and b.shape == (a.channels,)
        if a != b and not gates:
            raise InputError(
                f"layer {self.name}: it multiplies two values of one shape, or an image and a "
                f"factor for each of its channels, found {a.shape} and {b.shape}",
                remedy=f"a layer with {a.channels} channels as the second input",
            )
        return a

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        a, b = sized.inputs
        return (out, out if a == b else (a.along(out, "channel"),))

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        a, b = part.sized.inputs
        # the gradient of a factor is a product of the image's size before it is added up
        return LayerMemory(before, after, saves_input=True, backward_extra=after if a != b else 0)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        x, gate = inputs
        return x * self._spread(part.sized, gate)

    @staticmethod
    def _spread(sized: SizedLayer, gate: Tensor) -> Tensor:
        a, b = sized.inputs
        if a == b:
            return gate
        return gate.view(len(gate), *(-1 if axis == "channel" else 1 for axis in a.axes))

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch

        x, gate = inputs
        if x.shape == gate.shape:
            return torch.mul(gate, x)
        letters = ascii_lowercase[: x.dim()]
        channel = "a" + letters[1 + sized.inputs[0].axes.index("channel")]
        return torch.einsum(f"{letters},{channel}->{letters}", x, gate)


@dataclass(frozen=True, kw_only=True)
class Concat(Layer):
    """The channels of several values, one after another."""

    kind: ClassVar[str] = "concat"
    drawn: ClassVar[str] = "bar"
    input_count: ClassVar[int | None] = None

    def output(self, *inputs: Value) -> Value:
        first = inputs[0]
        others = [(v.axes, v.shape[: self._axis(v)] + v.shape[self._axis(v) + 1 :]) for v in inputs]
        if len(inputs) < 2 or any(other != others[0] for other in others):
            shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
            raise InputError(
                f"layer {self.name}: it puts together two or more values that differ in their "
                f"channels only, found {shapes}",
                remedy="paddings and strides that give every tower one height and width",
            )
        shape = list(first.shape)
        shape[self._axis(first)] = sum(value.channels for value in inputs)
        return Value(tuple(shape), first.axes)

    @staticmethod
    def _axis(value: Value) -> int:
        return value.axes.index("channel")

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        axis, start, found = self._axis(sized.output), 0, []
        for value in sized.inputs:
            overlap = intersect(out[axis], ((start, start + value.channels),))
            box = list(out)
            box[axis] = shift(overlap, -start)
            found.append(tuple(box))
            start += value.channels
        return tuple(found)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(before, after, passes_gradient=True)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        used = [x for x, box in zip(inputs, part.reads, strict=True) if not is_empty(box)]
        return torch.cat(used, 1 + self._axis(part.sized.output))

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch

        axis = 1 + self._axis(sized.output)
        return torch.movedim(torch.cat([torch.movedim(x, axis, 0) for x in inputs]), 0, axis)


@dataclass(frozen=True, kw_only=True)
class Flatten(Layer):
    """A value as a vector, first axis first: an image's channels, a sequence's tokens."""

    kind: ClassVar[str] = "flatten"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        return Value((prod(value.shape),), VECTOR_AXES)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        (value,) = sized.inputs
        inner = sized.output.channels // value.shape[0]
        first = normalise((start // inner, -(-stop // inner)) for start, stop in out[0])
        return ((first, *value.whole[1:]),)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(before, after, same=before == after)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        from orchestrator.models.ranges import local

        inner = part.sized.output.channels // part.sized.inputs[0].shape[0]
        has = tuple((a * inner, b * inner) for a, b in part.reads[0][0])
        return take(inputs[0].flatten(1), local(part.out[0], has))

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        return nn.Flatten()(inputs[0])  # type: ignore[no-any-return]
