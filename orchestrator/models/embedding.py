"""Tokens as vectors, and their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import INT64, Kernel, LayerMemory, Pass
from orchestrator.models.parameter import Normal, ParameterSpec
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import SEQUENCE_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Embedding(Layer):
    """A trained vector for each token number: (tokens,) -> (tokens, features).

    Args:
        vocabulary: token numbers, 0 to vocabulary - 1.
        features: length of each vector.
        weight_std: initial weights are drawn from N(0, weight_std).
    """

    vocabulary: int
    features: int
    weight_std: float = 0.02
    kind: ClassVar[str] = "embedding"
    drawn: ClassVar[str] = "block"
    reads_tokens: ClassVar[bool] = True

    @property
    def vocabulary_size(self) -> int:
        return self.vocabulary

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        if not value.integer:
            raise InputError(
                f"layer {self.name}: an embedding reads token numbers, found values of "
                f"{'x'.join(map(str, value.shape))}",
                remedy="an input_shape of (tokens,), and the embedding as its only reader",
            )
        if min(self.vocabulary, self.features) < 1:
            raise InputError(
                f"layer {self.name}: vocabulary and features must be at least 1, found "
                f"{self.vocabulary} and {self.features}"
            )
        return Value((*value.shape, self.features), SEQUENCE_AXES)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return (out[:1],)

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape = (self.vocabulary, self.features)
        return (ParameterSpec("weight", shape, Normal(self.weight_std), (None, "channel")),)

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        """Of a table of V rows and n tokens, C channels each::

            forward   n numbers, n rows -> n rows
            backward  zeros -> V rows; then n numbers, n rows of gy, n rows added to -> n rows

        The gradient is dense: torch's ``embedding_dense_backward`` fills a tensor of the table's
        size with zeros, then adds each token's row to it
        (aten/src/ATen/native/Embedding.cpp). Token numbers have no gradient.
        """
        if direction == "backward_input":
            return ()
        numbers = examples * part.output_shape[0] * INT64
        rows = examples * part.written_values * itemsize
        if direction == "forward":
            return (Kernel(0, numbers + 2 * rows),)
        added = examples * part.written_values
        return (Kernel(0, part.parameters * itemsize), Kernel(added, numbers + 3 * rows))

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        numbers = examples * part.output_shape[0] * INT64
        return LayerMemory(before, after, saved=numbers, weights=part.parameters * itemsize)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        return nnf.embedding(inputs[0], parameters[0])

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        weight = parameters["weight"]
        return nnf.one_hot(inputs[0], self.vocabulary).to(weight.dtype) @ weight


@dataclass(frozen=True, kw_only=True)
class PositionEmbedding(Layer):
    """Adds a trained vector for each position of a sequence.

    Args:
        weight_std: initial weights are drawn from N(0, weight_std).
    """

    weight_std: float = 0.02
    kind: ClassVar[str] = "position_embedding"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        if value.axes != SEQUENCE_AXES:
            raise InputError(
                f"layer {self.name}: a position embedding reads sequences, not values of "
                f"{'x'.join(map(str, value.shape))}",
                remedy="an Embedding before it" if value.integer else "",
            )
        return value

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape, axes = inputs[0].shape, SEQUENCE_AXES
        return (ParameterSpec("weight", shape, Normal(self.weight_std), axes),)

    def kernels(
        self, part: LayerPart, examples: int, direction: Pass, itemsize: int
    ) -> tuple[Kernel, ...]:
        """x, w -> y; and gy -> gw, the sum over the examples. gx is gy itself."""
        y, w = examples * part.written_values, part.parameters
        if direction == "forward":
            return (Kernel(y, (2 * y + w) * itemsize),)
        return () if direction == "backward_input" else (Kernel(y, (y + w) * itemsize),)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        return LayerMemory(before, after, weights=part.parameters * itemsize, passes_gradient=True)

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        return inputs[0] + parameters[0]

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch
        import torch.nn.functional as nnf

        (x,) = inputs
        places = torch.arange(x.shape[1], device=x.device)
        return x.add(nnf.embedding(places, parameters["weight"])[None])
