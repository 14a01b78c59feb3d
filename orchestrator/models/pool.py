"""Pooling of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box, padding_of, windows
from orchestrator.models.fields import Count, NonNegative
from orchestrator.models.layer import Layer, require_image, require_nonempty
from orchestrator.models.layer_costs import INT64, LayerMemory
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import VECTOR_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class _Pool(Layer):
    """Windows of ``kernel`` x ``kernel``, every ``stride`` positions; they overlap where ``kernel``
    exceeds ``stride``.

    Args:
        padding: positions added on each side.
    """

    kernel: Count = 3
    stride: Count = 2
    padding: NonNegative = 0
    drawn: ClassVar[str] = "pool"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        require_image(self, value, "a pool")
        if 2 * self.padding > self.kernel:
            raise InputError(
                f"layer {self.name}: padding: found {self.padding}; allowed: at most half of the "
                f"kernel of {self.kernel}"
            )
        sides = [(n + 2 * self.padding - self.kernel) // self.stride + 1 for n in value.shape[1:]]
        return Value(require_nonempty(self, (value.channels, *sides), value.shape), value.axes)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        sides = [
            windows(r, self.kernel, self.stride, self.padding, before, after)
            for r, before, after in zip(
                out[1:], sized.input_shape[1:], sized.output_shape[1:], strict=True
            )
        ]
        return ((out[0], *sides),)

    def signature(self, part: LayerPart) -> str:
        return f"kernel {self.kernel}"

    def _padding(self, part: LayerPart) -> tuple[int, ...]:
        """What a part's windows reach over the edges: left, right, top, bottom."""
        before, after, pads = part.sized.input_shape, part.sized.output_shape, (self.padding,) * 2
        return padding_of(part.out, self.kernel, self.stride, pads, before, after)

    def _window_memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        """Of the windows: the input is kept, or in its place the copy that is padded unevenly."""
        before, after = part.bytes(examples, itemsize)
        padding = self._padding(part)
        if len(set(padding)) == 1:
            return LayerMemory(before, after, saves_input=True)
        channels, height, width = part.input_shapes[0]
        padded = channels * (height + sum(padding[2:])) * (width + sum(padding[:2]))
        padded *= examples * itemsize
        # its gradient is there first; when that is cropped to the input's, the copy is gone
        return LayerMemory(before, after, saved=padded, backward_extra=padded - before)


@dataclass(frozen=True, kw_only=True)
class MaxPool(_Pool):
    """Max pooling; positions over the edge never count."""

    kind: ClassVar[str] = "pool"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        found = self._window_memory(part, examples, itemsize)
        places = found.after // itemsize * INT64
        return found._replace(saved=found.saved + places)

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        places = y * INT64  # the backward zeroes gx, then adds gy at the places
        return ((x + y) * itemsize + places,), (x * itemsize, (y + x) * itemsize + places)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        (x,) = inputs
        padding = self._padding(part)
        if len(set(padding)) == 1:
            return nnf.max_pool2d(x, self.kernel, self.stride, padding[0])
        return nnf.max_pool2d(nnf.pad(x, padding, value=float("-inf")), self.kernel, self.stride)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        return nn.MaxPool2d(self.kernel, self.stride, self.padding)(inputs[0])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class AveragePool(_Pool):
    """Average pooling; positions over the edge count as zeros."""

    kind: ClassVar[str] = "average_pool"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        return self._window_memory(part, examples, itemsize)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        (x,) = inputs
        padding = self._padding(part)
        if len(set(padding)) == 1:
            return nnf.avg_pool2d(x, self.kernel, self.stride, padding[0])
        return nnf.avg_pool2d(nnf.pad(x, padding), self.kernel, self.stride)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        return nn.AvgPool2d(self.kernel, self.stride, self.padding)(inputs[0])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class GlobalAveragePool(Layer):
    """The mean of each channel over all positions: (channels, height, width) -> (channels,)."""

    kind: ClassVar[str] = "global_pool"
    drawn: ClassVar[str] = "pool"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        require_image(self, value, "a pool")
        return Value((value.channels,), VECTOR_AXES)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((out[0], *sized.inputs[0].whole[1:]),)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(before, after)

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ((x + y) * itemsize,), ((y + x) * itemsize,)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        return inputs[0].mean((2, 3))

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())(inputs[0])  # type: ignore[no-any-return]
