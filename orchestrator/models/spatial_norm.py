"""Response norm over a neighbourhood in the same channel, as in the released 2012 network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.models.box import Box, windows
from orchestrator.models.fields import Bounds, Odd
from orchestrator.models.layer import Layer, require_image
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class SpatialNorm(Layer):
    """x / (k + scale / window² · sum of x² over a ``window`` x ``window`` neighbourhood)^power."""

    window: Annotated[int, Bounds(1), Odd()] = 5
    scale: Annotated[float, Bounds(0)] = 0.001
    power: float = 0.75
    k: Annotated[float, Bounds(0)] = 1.0
    kind: ClassVar[str] = "spatial_norm"

    def output(self, *inputs: Value) -> Value:
        require_image(self, inputs[0], "a spatial norm")
        return inputs[0]

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        half = self.window // 2
        sides = [
            windows(ranges, self.window, 1, half, n, n)
            for ranges, n in zip(out[1:], sized.input_shape[1:], strict=True)
        ]
        return ((out[0], *sides),)

    def signature(self, part: LayerPart) -> str:
        return f"kernel {self.window}"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        # x², the base and its power are saved, by three nodes
        return LayerMemory(
            before, after, saves_input=True, saved=3 * before, forward_extra=before,
            backward_extra=2 * before,
        )  # fmt: skip

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ((x + y + y) * itemsize,), ((y + x + y + x) * itemsize,)  # with the base

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        (x,) = inputs
        square = nnf.avg_pool2d(x * x, self.window, stride=1, padding=self.window // 2)
        y = x * (self.k + self.scale * square).pow(-self.power)
        return part.take_out(y)  # without the rows that were read for their neighbours only

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        (x,) = inputs
        pool = nn.AvgPool2d(self.window, 1, self.window // 2, count_include_pad=True)
        square: Tensor = pool(x**2)
        return x / (self.k + self.scale * square) ** self.power
