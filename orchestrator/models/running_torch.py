"""How a layer tells what it has found in a batch: as the gradients of its running averages.

    forward     y = tell(y, running, found)        y passes through
    backward    gradient of y, passed through      gradient of each running average: what was found

So it is counted once for each backward, however often a forward is run again, and goes wherever
gradients go: over microbatches, ranks, replicas and shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tell(y: Tensor, running: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    """A layer's output, whose backward tells what was found.

    Args:
        y: the output, or anything that it is computed from.
        running: the parameters with an update of their own.
        found: of each, this part's share: the sum over all parts of the global batch is the value
            that is averaged. Of the examples of ``draw.batch``, those of ``draw.samples`` are here.
    """
    return _Tell.apply(y, *running, *found)  # type: ignore[no-any-return,no-untyped-call]


class _Tell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *running_and_found: Tensor) -> Tensor:
        count = len(running_and_found) // 2
        ctx.save_for_backward(*(x.detach() for x in running_and_found[count:]))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.saved_tensors
        return (gradient, *(x.clone() for x in found), *[None] * len(found))
