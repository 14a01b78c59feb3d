"""Fully connected layers: of vectors, of images as they lie in memory, of each token."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape
from orchestrator.models.fields import Count
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.terms import Weighted
from orchestrator.models.value import VECTOR_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Linear(Weighted):
    """Fully connected; reads images as ``flatten`` orders them, channel first, and each token of a
    sequence alone, or whatever positions stand before the channels.

    Args:
        features: output features.
        groups: with more than 1 each group of features reads its own group of input channels only.
        weight_std, bias: initial weights N(0, weight_std), initial bias; None for no bias.
    """

    features: Count
    is_matrix: ClassVar[bool] = True
    kind: ClassVar[str] = "linear"
    drawn: ClassVar[str] = "block"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        self.terms(value.channels, self.features)  # refuses groups that do not divide
        if _by_position(value):
            return Value((*value.shape[:-1], self.features), value.axes)
        if value.axes[:1] != VECTOR_AXES:
            raise InputError(
                f"layer {self.name}: a linear layer reads values whose channels are the first axis "
                f"or the last, not {', '.join(value.axes)}",
                remedy="a layer before it that gives them so",
            )
        return Value((self.features,), VECTOR_AXES)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        (value,) = sized.inputs
        channels = self.channel_reads(sized, out)
        if _by_position(value):
            return ((*out[:-1], channels),)
        return ((channels, *value.whole[1:]),)

    def weight_shape(self, value: Value, fan_in: int) -> Shape:
        inner = 1 if _by_position(value) else prod(value.shape[1:])
        return (self.features, fan_in * inner)

    def multiply(
        self, part: LayerPart, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
    ) -> Tensor:
        import torch
        import torch.nn.functional as nnf

        flat = x if _by_position(part.sized.inputs[0]) else x.flatten(1)
        if groups == 1:
            return nnf.linear(flat, weight, bias)
        shape = flat.shape[:-1]
        grouped = flat.reshape(-1, groups, flat.shape[-1] // groups).transpose(0, 1)
        result = torch.bmm(grouped, weight.view(groups, -1, weight.shape[1]).transpose(1, 2))
        joined = result.transpose(0, 1).reshape(*shape, -1)
        return joined if bias is None else joined + bias

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn
        from torch.func import functional_call

        (x,) = inputs
        weight = parameters["weight"]
        if self.groups > 1:
            weight = self.dense(sized, weight)
        flat = x if _by_position(sized.inputs[0]) else nn.Flatten()(x)
        module = nn.Linear(
            weight.shape[1], self.features, bias=self.bias is not None, device="meta"
        )
        return functional_call(module, {**parameters, "weight": weight}, (flat,))  # type: ignore[no-any-return]

    def more_memory(
        self, part: LayerPart, per_value: int, found: LayerMemory, *, in_one: bool
    ) -> LayerMemory:
        if not in_one:
            return found
        # bmm's order of dimensions, turned, before the bias is added
        return found._replace(forward_extra=(1 if self.bias is None else 2) * found.after)


def _by_position(value: Value) -> bool:
    """Whether it is vectors, one for each position, such as the tokens of a sequence."""
    return len(value.axes) > 1 and value.axes[-1] == "channel"
