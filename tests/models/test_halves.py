"""Halves of layers that a cut takes apart: what autograd keeps for them, and in which format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.models import LayerNorm, RMSNorm, SizedLayer, Value
from orchestrator.models.cross_entropy import JoinedCrossEntropy, ScoreParts
from orchestrator.models.layer_norm import AppliedNorm, ChannelMoments, ChannelNorm
from orchestrator.models.sized import LayerPart
from tests.models.kinds import held_by, sequence

EXAMPLES, TOKENS, CLASSES = 16, 5, 8  # classes of each of two ranks
LABELS = Value((TOKENS,), ("token",), integer=True)
ALL = ((0, TOKENS),)


def score_parts(rank: int, classes: int = CLASSES) -> LayerPart:
    layer = ScoreParts(name="loss.parts", parts=2)
    sized = SizedLayer.of(layer, sequence(TOKENS, 2 * classes), LABELS)
    out = (ALL, ((3 * rank, 3 * rank + 3),))
    return sized.part(out, ((ALL, ((classes * rank, classes * (rank + 1)),)), (ALL,)))


def joined() -> LayerPart:
    layer = JoinedCrossEntropy(name="loss", parts=2)
    sized = SizedLayer.of(layer, sequence(TOKENS, 6))
    return sized.part(sized.output.whole, sized.reads(sized.output.whole))


def moments() -> LayerPart:
    layer = ChannelMoments(name="norm.moments", parts=2)
    sized = SizedLayer.of(layer, sequence(TOKENS, 2 * CLASSES))
    return sized.part((ALL, ((0, 3),)), ((ALL, ((0, CLASSES),)),))


def applied(norm: ChannelNorm) -> LayerPart:
    layer = AppliedNorm(name=f"{norm.kind}.applied", norm=norm, parts=2)
    sized = SizedLayer.of(layer, sequence(TOKENS, 2 * CLASSES), sequence(TOKENS, 6))
    out = (ALL, ((0, CLASSES),))
    return sized.part(out, sized.reads(out))


def noise(part: LayerPart, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, value in zip(part.input_shapes, part.sized.inputs, strict=True):
        x = torch.rand((EXAMPLES, *shape), generator=generator, dtype=torch.float64)
        found.append((2 * CLASSES * x).long() if value.integer else x.to(dtype).requires_grad_())
    return found


PARTS = [
    score_parts(0), joined(), moments(), applied(LayerNorm(name="n")), applied(RMSNorm(name="n"))
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.sized.name)
def test_what_autograd_keeps_is_told(part: LayerPart, dtype: torch.dtype) -> None:
    tiles = [torch.ones(CLASSES, dtype=dtype).requires_grad_() for _ in part.tiles]
    predicted, measured = held_by(part, noise(part, dtype), tiles)
    assert predicted == measured


def test_scores_of_bfloat16_are_subtracted_and_added_up_in_float32() -> None:
    """Both scores are numbers of bfloat16, their difference of 7.046875 is none: it was rounded to
    7.0625, and a thousand such exponentials were 1.6 % too small."""
    scores = torch.full((EXAMPLES, TOKENS, 1000), -4.03125)
    scores[..., 7] = 3.015625
    labels = torch.full((EXAMPLES, TOKENS), 7)
    part = score_parts(0, 1000)

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = scores.to(dtype).requires_grad_()
        y = part.sized.layer.compute(part, [x, labels], [], None)
        assert y.dtype == dtype
        (gradient,) = torch.autograd.grad(y[..., 1].sum(), x)
        return y.detach().double(), gradient.double()

    for narrow, exact in zip(run(torch.bfloat16), run(torch.float64), strict=True):
        torch.testing.assert_close(narrow, exact, rtol=2**-8, atol=0)
