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
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.parameter import Constant, ParameterSpec
from orchestrator.models.pieces import take
from orchestrator.models.ranges import Ranges, local
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import IMAGE_AXES, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw

FLOAT32 = 4  # bytes; the least in which statistics are computed


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
        if value.axes == IMAGE_AXES or value.integer or "channel" not in value.axes:
            what = "images" if value.axes == IMAGE_AXES else "token numbers"
            raise InputError(
                f"layer {self.name}: a {self.kind.replace('_', ' ')} reads vectors and sequences, "
                f"not {what} of {'x'.join(map(str, value.shape))}",
                remedy="a BatchNorm, for images"
                if value.axes == IMAGE_AXES
                else "an Embedding before it",
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
        wide, weight = _wide(x), _wide(parameters[0])
        bias = _wide(parameters[1]) if self.has_bias else None
        if part.out == part.reads[0]:
            return self.fused(wide, weight, bias).to(x.dtype)
        shift, scale = self.moments(wide)
        computed = take(wide, local(part.out[-1], part.reads[0][-1]), wide.dim() - 1)
        return self.normalised(computed, shift, scale, weight, bias).to(x.dtype)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        read, computed = part.input_shapes[0][-1], part.output_shape[-1]
        rows = before // itemsize // read
        wide = max(itemsize, FLOAT32)
        values = self.saved(rows, read, computed)
        if itemsize < wide:  # wide copies in place of the input and of the weight
            values += rows * read + computed
            if read == computed and self.has_bias:  # the fused function keeps it, too
                values += computed
        narrow = after // itemsize * wide if itemsize < wide else 0  # the result before rounding
        return LayerMemory(
            before,
            after,
            saves_input=itemsize == wide,
            saved=values * wide,
            forward_extra=narrow,
            backward_extra=self.backward_extra(rows * read) * wide,
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
        return LayerMemory(
            before, after, saved=before, forward_extra=before, backward_extra=2 * before
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        x = _wide(inputs[0])
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
        _, after = part.bytes(examples, itemsize)
        channels = part.output_shape[-1]
        saved = self.norm.saved(after // itemsize // channels, 0, channels) * itemsize
        shifted = self.norm.kind == "layer_norm"
        return LayerMemory(
            after, after, saved=saved, saved_inputs=(1,) if shifted else (0, 1),
            forward_extra=after if self.norm.has_bias else 0, backward_extra=after,
            weights=part.parameters * itemsize,
        )  # fmt: skip

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        x, gathered = (_wide(t) for t in inputs)
        mean, variance = combined(gathered)
        shift, scale = self.norm.from_moments(mean[..., None], variance[..., None])
        weight = _wide(parameters[0])
        bias = _wide(parameters[1]) if self.norm.has_bias else None
        return self.norm.normalised(x, shift, scale, weight, bias).to(inputs[0].dtype)


def _wide(x: Tensor) -> Tensor:
    """The same in float32 at least."""
    return x if x.element_size() >= FLOAT32 else x.float()
