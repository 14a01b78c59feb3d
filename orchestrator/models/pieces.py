"""Tensors as layers take them: boxes cut out of them and put into them, and in wider numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.models.box import Box
from orchestrator.models.layer_costs import FLOAT32
from orchestrator.models.ranges import Ranges

if TYPE_CHECKING:
    from torch import Tensor


def take(x: Tensor, ranges: Ranges, dimension: int = 1) -> Tensor:
    """Some positions along a dimension, without a copy where they are one run."""
    import torch

    if ranges == ((0, x.shape[dimension]),):
        return x
    pieces = [x.narrow(dimension, start, stop - start) for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)


def cut_out(x: Tensor, box: Box) -> Tensor:
    """A box of a tensor with one dimension for each of its axes, as a view where they are one run
    each."""
    for dimension, ranges in enumerate(box):
        x = take(x, ranges, dimension)
    return x


def put_in(x: Tensor, box: Box, piece: Tensor, *, add: bool) -> None:
    """Write (or add) a piece where it belongs in x."""
    dimension = next((d for d, ranges in enumerate(box) if len(ranges) > 1), None)
    if dimension is None:
        for d, ((start, stop),) in enumerate(box):
            x = x.narrow(d, start, stop - start)
        if add:
            x += piece
        else:
            x.copy_(piece)
        return
    done = 0
    for start, stop in box[dimension]:
        inner = (*box[:dimension], ((start, stop),), *box[dimension + 1 :])
        put_in(x, inner, piece.narrow(dimension, done, stop - start), add=add)
        done += stop - start


def wide(x: Tensor) -> Tensor:
    """The same in float32 at least."""
    return x if x.element_size() >= FLOAT32 else x.float()
