"""The kernels of one pass of a layer part: what each computes, reads and writes.

x and y are a layer's input and output, w its parameters; gx, gy and gw are their gradients::

    layer          forward                backward
    conv, linear   x, w -> y              gy, w -> gx    and    x, gy -> gw
    relu           x -> y                 gy, y -> gx
    dropout        x -> y, mask           gy, mask -> gx
    norms          x -> y, base           gy, x, base -> gx
    pool           x -> y, places         0 -> gx        and    gy, places -> gx
    loss           x -> log of softmax    log of softmax -> gx
    others         x -> y                 gy, x -> gx

The tensors are those that the executor's layers keep (:mod:`orchestrator.simulate.footprint`); a
place is an int64. Each kernel reads and writes each of its tensors once: what a window reads twice
comes from a cache.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.models.ranges import size
from orchestrator.program.segments import LayerPart
from orchestrator.simulate.calibration import Pass
from orchestrator.simulate.footprint import INT64


class Kernel(NamedTuple):
    """One kernel.

    Args:
        flops: operations; a multiply-add is two.
        bytes: read from memory and written to it.
        product: values of the matrix that it computes, where it is a product; else 0.
    """

    flops: int
    bytes: int
    product: int = 0


def kernels(layer: LayerPart, examples: int, direction: Pass, itemsize: int) -> tuple[Kernel, ...]:
    """What a device runs for one pass.

    Args:
        layer: a rank's part of a layer.
        examples: images of the chunk.
        itemsize: bytes a value.
    """
    x = examples * size(layer.reads) * layer.sized.in_values
    y = examples * size(layer.out) * layer.sized.out_values
    if not layer.tiles:
        moved = _forward if direction == "forward" else _backward
        return tuple(Kernel(0, bytes_) for bytes_ in moved(layer.sized.kind, x, y, itemsize))
    flops = 2 * layer.macs_per_image * examples
    moves = (x + y + layer.parameters) * itemsize  # each of the three products has x, y and w
    matrix = layer.sized.kind == "linear"
    read, written = (n // examples if matrix else 0 for n in (x, y))
    forward = Kernel(flops, moves, examples * written)
    of_input = Kernel(flops, moves, examples * read)
    of_weight = Kernel(flops, moves, read * written)
    return {
        "forward": (forward,),
        "backward": (of_input, of_weight),
        "backward_input": (of_input,),
        "backward_weight": (of_weight,),
    }[direction]


def _forward(kind: str, x: int, y: int, itemsize: int) -> tuple[int, ...]:
    """By kernel, the bytes of a layer without weights: of so many values before and after it."""
    if kind == "pool":
        return ((x + y) * itemsize + y * INT64,)
    if kind == "loss":
        return (2 * x * itemsize,)
    kept = y if kind in ("dropout", "norm", "spatial_norm") else 0
    return ((x + y + kept) * itemsize,)


def _backward(kind: str, x: int, y: int, itemsize: int) -> tuple[int, ...]:
    if kind == "pool":
        return x * itemsize, (y + x) * itemsize + y * INT64
    if kind == "loss":
        return (2 * x * itemsize,)
    kept = y if kind in ("relu", "dropout") else x + y if kind in ("norm", "spatial_norm") else x
    return ((y + kept + x) * itemsize,)
