"""Dropout with masks that hang on the sample, not on the rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from orchestrator.models.fields import Bounds
from orchestrator.models.layer import Layer
from orchestrator.models.layer_costs import INT64, LayerMemory
from orchestrator.models.randomness import keep_mask
from orchestrator.models.sized import LayerPart, SizedLayer

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """Masks each value with probability p in training.

    Args:
        p: what is masked, as a fraction.
        inverted: what is left is divided by (1 - p) in training, and nothing is done in evaluation,
            as by ``torch.nn.Dropout``. Else, as in 2012, evaluation multiplies by (1 - p).
    """

    p: Annotated[float, Bounds(0, 1, below=True)] = 0.5
    inverted: bool = False
    kind: ClassVar[str] = "dropout"

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, after = part.bytes(examples, itemsize)
        # x, x >> 16 and their xor, before mask and output exist; and the places of an example
        values = after // itemsize
        drawing = INT64 * (3 * values + values // examples)
        return LayerMemory(before, after, saved=after, forward_extra=max(0, drawing - 2 * after))

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return ((x + y + y) * itemsize,), ((y + y + x) * itemsize,)  # with the mask

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        (x,) = inputs
        if draw is None:
            return x if self.inverted else x * (1 - self.p)
        keep = keep_mask(self.name, part.sized.output_shape, part.out, self.p, draw, x)
        return x * (keep.div_(1 - self.p) if self.inverted else keep)

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        (x,) = inputs
        scale = 1 - self.p
        if draw is None:
            return x if self.inverted else scale * x
        everything = sized.output.whole
        keep = keep_mask(self.name, sized.output_shape, everything, self.p, draw, x)
        masked = x.masked_fill(keep == 0, 0.0)
        return masked / scale if self.inverted else masked
