"""Functions of each value alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.sized import LayerPart, SizedLayer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Pointwise(Layer):
    """A function of each value alone.

    ``keeps`` says what its derivative is computed from: its ``input`` or its ``output``.
    """

    keeps: ClassVar[str] = "input"

    def function(self, x: Tensor) -> Tensor:
        """The function, in torch."""
        raise NotImplementedError

    def module(self) -> nn.Module:
        """The same as torch has it."""
        raise NotImplementedError

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        return self.function(inputs[0])

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        return self.module()(inputs[0])  # type: ignore[no-any-return]

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        saved = y if self.keeps == "output" else x
        return ((x + y) * itemsize,), ((y + saved + x) * itemsize,)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        saves_output = self.keeps == "output"
        return LayerMemory(before, after, saves_input=not saves_output, saves_output=saves_output)


@dataclass(frozen=True, kw_only=True)
class ReLU(Pointwise):
    """max(0, x)."""

    kind: ClassVar[str] = "relu"
    keeps: ClassVar[str] = "output"

    def function(self, x: Tensor) -> Tensor:
        import torch

        return torch.relu(x)

    def module(self) -> nn.Module:
        from torch import nn

        return nn.ReLU()


@dataclass(frozen=True, kw_only=True)
class Tanh(Pointwise):
    """Hyperbolic tangent."""

    kind: ClassVar[str] = "tanh"
    keeps: ClassVar[str] = "output"

    def function(self, x: Tensor) -> Tensor:
        import torch

        return torch.tanh(x)

    def module(self) -> nn.Module:
        from torch import nn

        return nn.Tanh()


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Pointwise):
    """1 / (1 + e^-x)."""

    kind: ClassVar[str] = "sigmoid"
    keeps: ClassVar[str] = "output"

    def function(self, x: Tensor) -> Tensor:
        import torch

        return torch.sigmoid(x)

    def module(self) -> nn.Module:
        from torch import nn

        return nn.Sigmoid()


@dataclass(frozen=True, kw_only=True)
class GELU(Pointwise):
    """x times the standard normal distribution's cumulative function (Hendrycks, Gimpel 2016).

    Args:
        tanh: GPT-2's approximation by a hyperbolic tangent.
    """

    tanh: bool = False
    kind: ClassVar[str] = "gelu"

    @property
    def _approximate(self) -> str:
        return "tanh" if self.tanh else "none"

    def function(self, x: Tensor) -> Tensor:
        import torch.nn.functional as nnf

        return nnf.gelu(x, approximate=self._approximate)

    def module(self) -> nn.Module:
        from torch import nn

        return nn.GELU(approximate=self._approximate)


@dataclass(frozen=True, kw_only=True)
class SiLU(Pointwise):
    """x times its sigmoid."""

    kind: ClassVar[str] = "silu"

    def function(self, x: Tensor) -> Tensor:
        import torch.nn.functional as nnf

        return nnf.silu(x)

    def module(self) -> nn.Module:
        from torch import nn

        return nn.SiLU()
