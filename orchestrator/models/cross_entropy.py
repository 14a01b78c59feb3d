"""The loss of a classifier, and of a language model.

Where the scores of a sequence are cut over ranks by channel (the vocabulary), they stay where they
are, and three values a token cross instead (Megatron-LM, Shoeybi et al. 2019, section 3):

    parts    of each rank's scores: the largest, the sum of exponentials beside it, and the label's
             score where the rank has it
    joined   reads those of all ranks and gives the loss
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from orchestrator.models.box import Box
from orchestrator.models.layer import Cut, Layer, Statistics
from orchestrator.models.layer_costs import FLOAT32, INT64, LayerMemory
from orchestrator.models.pieces import wide
from orchestrator.models.ranges import Ranges
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import Value

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.models.layer import NamedTensors, Tensors
    from orchestrator.models.randomness import Draw


NUMBERS = 3  # largest score, sum of exponentials, the label's score


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

    def statistics(self, sized: SizedLayer, cut: Cut) -> Statistics | None:
        parts = cut.counts.get("channel", 1)
        if parts == 1 or not sized.inputs[1].shape:
            return None
        name = f"{self.name}.parts"
        return Statistics(
            ("channel",),
            ScoreParts(name=name, inputs=sized.sources, parts=parts),
            JoinedCrossEntropy(name=self.name, inputs=(name,), parts=parts),
            NUMBERS,
        )

    def moved(self, x: int, y: int, itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (2 * x * itemsize,), (2 * x * itemsize,)  # the log of the softmax, there and back

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, _ = part.bytes(examples, itemsize)
        logs = before // itemsize * max(itemsize, FLOAT32)
        scores, _ = part.sized.inputs
        labels = before // itemsize // scores.channels * INT64
        widened = logs if itemsize < FLOAT32 else 0
        return LayerMemory(
            before, itemsize, saved=logs + labels, forward_extra=widened, backward_extra=logs
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch.nn.functional as nnf

        scores, labels = inputs
        return nnf.cross_entropy(wide(scores).flatten(0, -2), labels.flatten(), reduction="sum")

    def whole(
        self, sized: SizedLayer, inputs: Tensors, parameters: NamedTensors, draw: Draw | None
    ) -> Tensor:
        from torch import nn

        scores, labels = inputs
        classes_second = scores.movedim(-1, 1)
        return nn.CrossEntropyLoss(reduction="sum")(classes_second, labels)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class ScoreParts(Layer):
    """What the loss needs of some classes' scores, a token; placed by the compiler."""

    parts: int
    kind: ClassVar[str] = "score_parts"
    input_count: ClassVar[int | None] = 2

    def output(self, *inputs: Value) -> Value:
        scores, _ = inputs
        return Value((*scores.shape[:-1], self.parts * NUMBERS), scores.axes)

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        scores, _ = sized.inputs
        return ((out[0], ((0, scores.channels),)), (out[0],))

    def gathered(self, sized: SizedLayer, reads: Box, positions: Ranges) -> Box:
        return (reads[0], positions)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        """Exponentials and the scores, in float32 at least; of a label its place, and whether it is
        here. The backward lets go of the scores before it needs more than their gradient."""
        before, after = part.bytes(examples, itemsize)
        rows = examples * part.output_shape[0]
        width = max(itemsize, FLOAT32)
        widened = before // itemsize * width
        return LayerMemory(
            before,
            after,
            saves_input=itemsize == width,
            saved=rows * (INT64 + 1) + widened * (1 if itemsize == width else 2),
            forward_extra=widened,
            backward_extra=0 if itemsize == width else widened,
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        import torch

        scores, labels = wide(inputs[0]), inputs[1]
        ((first, last),) = part.reads[0][1]
        largest = scores.detach().amax(-1)  # the loss does not depend on it
        total = (scores - largest[..., None]).exp().sum(-1)
        here = (labels >= first) & (labels < last)
        place = torch.where(here, labels - first, 0)
        label = scores.gather(-1, place[..., None])[..., 0] * here
        return torch.stack((largest, total, label), -1).to(inputs[0].dtype)


@dataclass(frozen=True, kw_only=True)
class JoinedCrossEntropy(Layer):
    """The loss from the parts of the scores; placed by the compiler."""

    parts: int
    kind: ClassVar[str] = "loss"
    is_loss: ClassVar[bool] = True

    def output(self, *inputs: Value) -> Value:
        return Value(inputs[0].shape[:-1], inputs[0].axes[:-1])

    def reads(self, sized: SizedLayer, out: Box) -> tuple[Box, ...]:
        return ((out[0], ((0, self.parts * NUMBERS),)),)

    def memory(self, part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
        before, _ = part.bytes(examples, itemsize)
        rows = examples * part.output_shape[0]
        width = max(itemsize, FLOAT32)
        widened = before // itemsize * width
        saved = rows * (self.parts + 2) * width  # exponentials, their sum, the largest score
        return LayerMemory(
            before,
            itemsize,
            saves_input=itemsize == width,
            saved=saved if itemsize == width else saved + widened,
            forward_extra=widened,
        )

    def compute(
        self, part: LayerPart, inputs: Tensors, parameters: Tensors, draw: Draw | None
    ) -> Tensor:
        largest, total, label = wide(inputs[0]).unflatten(-1, (-1, NUMBERS)).unbind(-1)
        overall = largest.amax(-1, keepdim=True)
        scaled = (total * (largest - overall).exp()).sum(-1)
        losses: Tensor = scaled.log() + overall[..., 0] - label.sum(-1)
        return losses.sum()
