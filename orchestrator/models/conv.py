"""Convolution of images: in groups, with partial connectivity, padded on each side as it likes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, padding_of, windows
from orchestrator.models.conv_copies import Convolution, copies
from orchestrator.models.fields import Count, NonNegative
from orchestrator.models.in_turn import backward_extra, forward_extra
from orchestrator.models.layer import require_image, require_nonempty
from orchestrator.models.layer_costs import FLOAT32, Copies, LayerMemory
from orchestrator.models.ranges import normalise, size
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.terms import Term, Weighted
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Conv(Weighted):
    """2-D convolution.

    Args:
        channels: output channels.
        kernel, stride: as in ``torch.nn.Conv2d``, square.
        padding: zeros before and after each side; one number means both. The 2012 code pads conv1
            after only, ``(0, 3)``.
        groups: equal groups; or give ``column_reads``.
        column_reads: for partial connectivity, per column of the output the input columns it
            reads, such as ``((0, 1, 2), (0, 1, 3), (2, 3, 0), (2, 3, 1))``.
        weight_std, bias: initial weights N(0, weight_std), initial bias; None for no bias.
    """

    channels: Count
    kernel: Count
    stride: Count = 1
    padding: NonNegative | tuple[NonNegative, NonNegative] = 0
    column_reads: tuple[tuple[NonNegative, ...], ...] = ()
    kind: ClassVar[str] = "conv"
    drawn: ClassVar[str] = "block"

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and after."""
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        require_image(self, value, "a convolution")
        sides = [(n + sum(self.pads) - self.kernel) // self.stride + 1 for n in value.shape[1:]]
        shape = require_nonempty(self, (self.channels, *sides), value.shape)
        self.terms(value.channels, self.channels)  # refuses groups that do not divide
        return Value(shape, value.axes)

    def uncut(self, sized: SizedLayer, axis: str) -> str:
        if axis in ("height", "width") and max(self.pads) >= self.kernel:
            return f"its padding of {max(self.pads)} gives positions that read no input"
        return ""

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        sides = [
            windows(r, self.kernel, self.stride, self.pads[0], before, after)
            for r, before, after in zip(
                out[1:], sized.input_shape[1:], sized.output_shape[1:], strict=True
            )
        ]
        return ((self.channel_reads(sized, out), *sides),)

    def terms(self, inputs: int, outputs: int) -> tuple[Term, ...]:
        if not self.column_reads:
            return super().terms(inputs, outputs)
        columns = len(self.column_reads)
        inside, outside = inputs // columns, outputs // columns
        fans = {len(set(reads)) for reads in self.column_reads}
        known = all(0 <= c < columns for reads in self.column_reads for c in reads)
        if inside * columns != inputs or outside * columns != outputs:
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

    def weight_shape(self, value: Value, fan_in: int) -> Shape:
        return (self.channels, fan_in, self.kernel, self.kernel)

    @property
    def cone(self) -> tuple[int, int]:
        return (self.kernel, self.stride)

    def words(self) -> str:
        return f"kernel {self.kernel} stride {self.stride}"

    def _padding(self, part: LayerPart) -> tuple[int, ...]:
        """Zeros that a part's windows reach over the edges: left, right, top, bottom."""
        before, after = part.sized.input_shape, part.sized.output_shape
        return padding_of(part.out, self.kernel, self.stride, self.pads, before, after)

    def prepare(self, part: LayerPart, x: Tensor) -> Tensor:
        import torch.nn.functional as nnf

        padding = self._padding(part)
        return x if len(set(padding)) == 1 else nnf.pad(x, padding)

    def multiply(
        self, part: LayerPart, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
    ) -> Tensor:
        import torch.nn.functional as nnf

        padding = self._padding(part)
        sides = padding[0] if len(set(padding)) == 1 else 0
        return nnf.conv2d(x, weight, bias, self.stride, sides, groups=groups)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn
        from torch.func import functional_call

        (x,) = inputs
        weight, groups = parameters["weight"], self.groups
        if self.column_reads:
            weight, groups = self.dense(sized, weight), 1
        module = nn.Conv2d(
            x.shape[1], self.channels, self.kernel, self.stride, groups=groups,
            bias=self.bias is not None, device="meta",
        )  # fmt: skip
        before, after = self.pads
        padded = nn.ZeroPad2d((before, after, before, after))(x)
        return functional_call(module, {**parameters, "weight": weight}, (padded,))  # type: ignore[no-any-return]

    def processor_copies(self, part: LayerPart, examples: int) -> Copies:
        channels, height, width = part.input_shapes[0]
        left, right, top, bottom = padding = self._padding(part)
        if len(set(padding)) > 1:  # padded before the call
            height, width = height + top + bottom, width + left + right
        products = self.products(part)
        each = [
            copies(
                Convolution(
                    examples, size(product.reads), height * width, product.channels,
                    prod(part.output_shape[1:]), self.kernel, self.stride, product.groups,
                )
            )
            for product in products
        ]  # fmt: skip
        if len(each) == 1:
            return each[0]
        before, after = part.bytes(examples, FLOAT32)
        turns = self.turns(part, before, after, each)
        bare = self.turns(part, before, after, [Copies()] * len(each))
        return Copies(
            forward_extra(turns, after) - forward_extra(bare, after),
            backward_extra(turns, before) - backward_extra(bare, before),
            max(own.weights_only for own in each),
            max(own.input_only for own in each),
        )

    def more_memory(
        self, part: LayerPart, per_value: int, found: LayerMemory, *, in_one: bool
    ) -> LayerMemory:
        padding = self._padding(part)
        if len(set(padding)) == 1:
            return found
        channels, height, width = part.input_shapes[0]
        sides = (height + sum(padding[2:])) * (width + sum(padding[:2]))
        padded = per_value * channels * sides
        # The padded copy is kept in place of the input. Its gradient is there first; when that is
        # cropped to the input's, copy and output gradient are gone.
        return found._replace(
            saves_input=False, saved=found.saved + padded,
            input_extra=padded - found.before,
        )  # fmt: skip


def same_size_as_ceil(size_in: int, kernel: int, stride: int) -> int:
    """Zeros to add after one side so that the last window, reaching over the edge, counts."""
    return (ceil((size_in - kernel) / stride)) * stride + kernel - size_in
