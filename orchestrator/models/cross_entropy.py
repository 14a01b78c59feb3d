"""The loss of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.models.box import Box
from orchestrator.models.layer import INT64, Layer, LayerMemory, LayerPart, SizedLayer, Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.randomness import Draw


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Layer):
    """Softmax cross-entropy of scores and labels, summed over the examples (and tokens) of a part.

    It reads the scores and :data:`orchestrator.models.layer.LABELS`, and counts as one value an
    example (or token).
    """

    kind: ClassVar[str] = "loss"
    input_count: ClassVar[int | None] = 2
    is_loss: ClassVar[bool] = True

    def output(self, *inputs: Value) -> Value:
        scores, labels = inputs
        return labels if labels.shape else Value((1,), scores.axes)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        scores, labels = sized.inputs
        classes = ((0, scores.channels),)
        if labels.shape:
            return ((out[0], classes), out)
        return ((classes,), ())

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, _ = part.bytes(examples, itemsize)
        logs = before // itemsize * max(itemsize, 4)  # at least in float32
        scores, _ = part.sized.inputs
        labels = before // itemsize // scores.channels * INT64
        wide = logs if itemsize < 4 else 0
        return LayerMemory(
            before, itemsize, kept=logs + labels, forward_extra=wide, backward_extra=logs
        )

    def compute(
        self,
        part: LayerPart,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        draw: Draw | None,
    ) -> Tensor:
        import torch
        import torch.nn.functional as nnf

        scores, labels = inputs
        wide = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        return nnf.cross_entropy(wide.flatten(0, -2), labels.flatten(), reduction="sum")

    def whole(
        self,
        sized: SizedLayer,
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        draw: Draw | None,
    ) -> Tensor:
        from torch import nn

        scores, labels = inputs
        classes_second = scores.movedim(-1, 1)
        return nn.CrossEntropyLoss(reduction="sum")(classes_second, labels)  # type: ignore[no-any-return]
