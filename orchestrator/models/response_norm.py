"""Local response norm across channels (Krizhevsky 2012, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.errors import InputError
from orchestrator.models.box import Box, shape_of
from orchestrator.models.fields import Bounds, Count, Odd
from orchestrator.models.layer import Layer, require_image
from orchestrator.models.layer_costs import LayerMemory
from orchestrator.models.ranges import Ranges, intersect, local, normalise
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw

# input start, input stop, output start, output channels, first input channel used
Piece = tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class ResponseNorm(Layer):
    """x / (k + alpha / window · sum of x² over a window of channels)^beta.

    Args:
        window: channels, an odd number.
        alpha: over ``window``, as in the released code and ``torch.nn.LocalResponseNorm``.
        columns: the channels fall into this many equal columns and the window stops at their
            borders, as in the 2012 code; 1 lets it cross the whole depth.
    """

    window: Annotated[int, Bounds(1), Odd()] = 5
    alpha: Annotated[float, Bounds(0)] = 1e-4
    beta: float = 0.75
    k: Annotated[float, Bounds(0)] = 2.0
    columns: Count = 1
    kind: ClassVar[str] = "norm"

    def output(self, *inputs: Value) -> Value:
        (value,) = inputs
        require_image(self, value, "a response norm")
        if value.channels % self.columns:
            raise InputError(
                f"layer {self.name}: columns: found {self.columns}; allowed: a number that divides "
                f"the {value.channels} channels of its input"
            )
        return value

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((_channel_reads(sized, out[0]), *out[1:]),)

    def signature(self, part: LayerPart) -> str:
        return f"kernel {self.window}"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        pieces = _pieces(part.sized, part.out[0], part.reads[0][0])
        positions = prod(shape_of(part.out)[1:])
        piece = max(stop - start for start, stop, *_ in pieces) * positions * examples * itemsize
        return LayerMemory(
            before, after, saves_input=True, saved=after, forward_extra=2 * piece,
            # direct, crossed and spread; those of the piece before are alive until replaced
            backward_extra=(3 if len(pieces) == 1 else 5) * piece,
        )  # fmt: skip

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ((x + y + y) * itemsize,), ((y + x + y + x) * itemsize,)  # with the base

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        from orchestrator.models.response_norm_torch import response_norm

        pieces = _pieces(part.sized, part.out[0], part.reads[0][0])
        return response_norm(inputs[0], self, pieces)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        import torch
        from torch import nn

        (x,) = inputs
        module = nn.LocalResponseNorm(self.window, self.alpha, self.beta, self.k)
        # torch has it for float32 and float64 alone on a processor
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        columns = wide.reshape(-1, x.shape[1] // self.columns, *x.shape[2:])
        return module(columns).reshape(x.shape).to(x.dtype)  # type: ignore[no-any-return]


def _channel_reads(sized: SizedLayer, out: Ranges) -> Ranges:
    layer = sized.layer
    assert isinstance(layer, ResponseNorm)
    width, half = sized.inputs[0].channels // layer.columns, layer.window // 2
    found = []
    for column in range(layer.columns):
        low, high = column * width, (column + 1) * width
        for start, stop in intersect(out, ((low, high),)):
            found.append((max(low, start - half), min(high, stop + half)))
    return normalise(found)


@lru_cache(maxsize=4096)
def _pieces(sized: SizedLayer, out: Ranges, reads: Ranges) -> tuple[Piece, ...]:
    """Runs of output channels inside one column, each with the run of input it may look at."""
    layer = sized.layer
    assert isinstance(layer, ResponseNorm)
    width = sized.inputs[0].channels // layer.columns
    pieces = []
    for column in range(layer.columns):
        for run in intersect(out, ((column * width, (column + 1) * width),)):
            seen = _channel_reads(sized, (run,))
            ((start, stop),) = local(seen, reads)
            ((first, last),) = local((run,), out)
            pieces.append((start, stop, first, last - first, run[0] - seen[0][0]))
    return tuple(pieces)
