"""Norms over the channels of each example or token: layer norm and root-mean-square norm.

Both subtract a shift and multiply by a scale, two numbers for each example or token that come from
all of its channels. Where a plan cuts the channels over ranks they stay where they are, and the
layer falls in two: moments of each rank's channels cross, three values a token and pair of ranks,
and are put together as batch norm's are (:mod:`orchestrator.models.batch_norm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.batch_norm import MOMENTS, combined
from orchestrator.models.box import Box
from orchestrator.models.fields import Count
from orchestrator.models.layer import Cut, Layer, Statistics
from orchestrator.models.layer_costs import FLOAT32, LayerMemory
from orchestrator.models.parameter import Constant, ParameterSpec
from orchestrator.models.pieces import take, wide
from orchestrator.models.ranges import Ranges, local
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class ChannelNorm(Layer):
    """(x - shift) scale weight + bias, shift and scale from all channels of an example or token.

    Narrower formats than float32 are computed in float32 and rounded at the end.

    Args:
        eps: added under the root.
    """

    eps: float = 1e-5
    drawn: ClassVar[str] = "norm"

    # -- what a kind says

    @property
    def has_bias(self) -> bool:
        """Whether a bias is added."""
        return False

    @property
    def shifts(self) -> bool:
        """Whether a shift is subtracted."""
        return False

    def moments(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Shift (None for none) and scale, (..., 1) each, of values with all channels last."""
        raise NotImplementedError

    def from_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor | None, Tensor]:
        """Shift (None for none) and scale from the mean and variance over all channels."""
        raise NotImplementedError

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """All channels by torch's own function, which computes the statistics on the way."""
        raise NotImplementedError

    def saved(self, rows: int, read: int, computed: int) -> int:
        """How many values the graph of a part holds besides the input.

        Args:
            rows: examples, or tokens of all examples.
            read, computed: channels.
        """
        raise NotImplementedError

    def backward_extra(self, values: int) -> int:
        """How many values the backward of :meth:`fused` needs for a moment.

        Args:
            values: of the input.
        """
        return 0

    # -- what follows from it

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        if value.integer or value.axes[-1:] != ("channel",):  # the statistics are of the last axis
            what = "token numbers" if value.integer else "images"
            raise InputError(
                f"layer {self.name}: a {self.kind.replace('_', ' ')} reads vectors and sequences, "
                f"not {what} of {'x'.join(map(str, value.shape))}",
                remedy="an Embedding before it" if value.integer else "a BatchNorm, for images",
            )
        return value

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((*out[:-1], ((0, sized.output.channels),)),)

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        shape, axes = (inputs[0].channels,), ("channel",)
        weight = ParameterSpec("weight", shape, Constant(1.0), axes, decays=False)
        if not self.has_bias:
            return (weight,)
        return (weight, ParameterSpec("bias", shape, Constant(0.0), axes, decays=False))

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        axis = next((axis for axis in ("channel", "input") if axis in cut.counts), None)
        if axis is None:
            return None
        moments, parts = f"{self.name}.moments", cut.counts[axis]
        return Statistics(
            (axis,),
            ChannelMoments(name=moments, inputs=sized.sources, parts=parts),
            AppliedNorm(name=self.name, inputs=(*sized.sources, moments), norm=self, parts=parts),
            MOMENTS,
        )

    def normalised(
        self,
        x: Tensor,
        shift: Tensor | None,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Some channels, with the statistics of all."""
        centred = x if shift is None else x - shift
        scaled = centred * scale * weight
        return scaled if bias is None else scaled + bias

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:

        (x,) = inputs
        values, weight = wide(x), wide(parameters[0])
        bias = wide(parameters[1]) if self.has_bias else None
        if part.out == part.reads[0]:
            return self.fused(values, weight, bias).to(x.dtype)
        shift, scale = self.moments(values)
        computed = take(values, local(part.out[-1], part.reads[0][-1]), values.dim() - 1)
        return self.normalised(computed, shift, scale, weight, bias).to(x.dtype)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        read, computed = part.input_shapes[0][-1], part.output_shape[-1]
        rows = before // itemsize // read
        width = max(itemsize, FLOAT32)
        values = self.saved(rows, read, computed)
        if itemsize < width:  # wide copies in place of the input and of the weight
            values += rows * read + computed
            if read == computed and self.has_bias:  # the fused function keeps it, too
                values += computed
        narrow = after // itemsize * width if itemsize < width else 0  # the result before rounding
        return LayerMemory(
            before,
            after,
            saves_input=itemsize == width,
            saved=values * width,
            forward_extra=narrow,
            backward_extra=self.backward_extra(rows * read) * width,
            weights=part.parameters * itemsize,
        )


@dataclass(frozen=True, kw_only=True)
class LayerNorm(ChannelNorm):
    """Layer norm (Ba, Kiros, Hinton 2016): (x - mean) / sqrt(variance + eps) weight + bias.

    Args:
        bias: whether there is one.
    """

    bias: bool = True
    kind: ClassVar[str] = "layer_norm"

    @property
    def has_bias(self) -> bool:
        return self.bias

    @property
    def shifts(self) -> bool:
        return True

    def moments(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        import torch

        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return mean, torch.rsqrt(variance + self.eps)

    def from_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor | None, Tensor]:
        return mean, (variance + self.eps).rsqrt()

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        import torch.nn.functional as nnf

        return nnf.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def saved(self, rows: int, read: int, computed: int) -> int:
        if read == computed:
            return 2 * rows  # mean and scale
        return rows * (1 + 2 * computed)  # scale; centred and scaled values

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn
        from torch.func import functional_call

        module = nn.LayerNorm(sized.output.channels, self.eps, bias=self.bias, device="meta")
        return functional_call(module, dict(parameters), tuple(inputs))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class RMSNorm(ChannelNorm):
    """Root-mean-square norm (Zhang, Sennrich 2019): x / sqrt(mean of squares + eps) weight."""

    kind: ClassVar[str] = "rms_norm"

    def moments(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        import torch

        return None, torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def from_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, (variance + mean.square() + self.eps).rsqrt()

    def fused(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        import torch.nn.functional as nnf

        return nnf.rms_norm(x, x.shape[-1:], weight, self.eps)

    def saved(self, rows: int, read: int, computed: int) -> int:
        return rows * (1 + computed)  # scale; scaled values

    def backward_extra(self, values: int) -> int:
        return 2 * values  # torch composes it: of the square x, 2 x and the product with a gradient

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn
        from torch.func import functional_call

        module = nn.RMSNorm(sized.output.channels, self.eps, device="meta")
        return functional_call(module, dict(parameters), tuple(inputs))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ChannelMoments(Layer):
    """The moments of some channels of each example or token; placed by the compiler."""

    parts: Count
    kind: ClassVar[str] = "channel_moments"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        return Value((*value.shape[:-1], self.parts * MOMENTS), value.axes)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((*out[:-1], ((0, sized.inputs[0].channels),)),)

    def gathered(self, sized: SizedLayer, reads: Box, positions: Ranges) -> Box:
        return (*reads[:-1], positions)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        widened = before // itemsize * max(itemsize, FLOAT32)  # distances from the mean; squares
        return LayerMemory(
            before, after, saved=widened, forward_extra=widened, backward_extra=2 * widened
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        x = wide(inputs[0])
        mean = x.mean(-1)
        spread = (x - mean[..., None]).square().sum(-1)
        count = torch.full_like(mean, x.shape[-1])
        return torch.stack((count, mean, spread), -1).to(inputs[0].dtype)


@dataclass(frozen=True, kw_only=True)
class AppliedNorm(Layer):
    """Normalises some channels by the moments of all parts; placed by the compiler.

    Args:
        norm: the layer that it is a half of.
    """

    norm: ChannelNorm
    parts: Count
    kind: ClassVar[str] = "channel_norm"
    input_count: ClassVar[int | None] = 2

    def output(self, *inputs: Value) -> Value:
        return inputs[0]

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return (out, (*out[:-1], ((0, self.parts * MOMENTS),)))

    def parameters(self, *inputs: Value) -> tuple[ParameterSpec, ...]:
        return self.norm.parameters(inputs[0])

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        """The moments of all parts, and what they become: totals, distances, squares. Values that
        are not centred are kept themselves."""
        _, after = part.bytes(examples, itemsize)
        channels, width = part.output_shape[-1], max(itemsize, FLOAT32)
        values = after // itemsize
        rows, keeps_values = values // channels, not self.norm.shifts
        saved = self.norm.saved(rows, 0, channels) + rows * (2 * self.parts + 3 + keeps_values)
        inputs: tuple[int, ...] = (0, 1) if keeps_values else (1,)
        if itemsize < width:  # wide copies of the moments, of the weight and of the values
            saved += rows * self.parts * MOMENTS + channels + values * keeps_values
            inputs = ()
        return LayerMemory(
            after, after, saved=saved * width, saved_inputs=inputs,
            forward_extra=values * width if self.norm.has_bias else 0, backward_extra=after,
            weights=part.parameters * itemsize,
        )  # fmt: skip

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        x, gathered = (wide(t) for t in inputs)
        _, mean, variance = combined(gathered)
        shift, scale = self.norm.from_moments(mean[..., None], variance[..., None])
        weight = wide(parameters[0])
        bias = wide(parameters[1]) if self.norm.has_bias else None
        return self.norm.normalised(x, shift, scale, weight, bias).to(inputs[0].dtype)
