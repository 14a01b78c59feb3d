"""Forward and backward of one segment on one rank: ordinary autograd on detached inputs.

A chunk's forward keeps what its backward needs, under the chunk's number. Three ways to keep it:

    whole        one graph from input to output; B walks it once
    recomputed   the input only; B runs the forward again first
    split        a chain of graphs, cut around every layer with weights, so that I (input gradients)
                 and W (weight gradients) walk no node twice
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.execute.parameters import SegmentParameters
from orchestrator.models.layers import CrossEntropy
from orchestrator.models.torch_layers import Draw, apply_layer, loss_sum
from orchestrator.program.segments import SegmentPart


class Link(NamedTuple):
    """One graph: a run of layers, its detached input and its output."""

    weights: slice
    x: Tensor
    y: Tensor


@dataclass
class Kept:
    """What a chunk's forward leaves for its backward."""

    x: Tensor
    draw: Draw
    labels: Tensor | None
    links: list[Link] = field(default_factory=list)
    owed: list[tuple[Link, Tensor]] = field(default_factory=list)  # for W: graphs and gradients


class SegmentRunner:
    """Runs one segment part.

    Args:
        part: which layers and which share of them.
        parameters: its weights; gradients are accumulated there.
        needs_input_gradient: whether anything before it is trained.
        loss_scale: factor on the summed loss: one over the global batch.
        split: keep the graphs so that the backward can be done in two halves.
    """

    def __init__(
        self,
        part: SegmentPart,
        parameters: SegmentParameters,
        *,
        needs_input_gradient: bool,
        loss_scale: float,
        split: bool,
    ) -> None:
        self.part, self.parameters = part, parameters
        self.needs_input_gradient = needs_input_gradient
        self.loss_scale = loss_scale
        self.kept: dict[int, Kept] = {}
        self.runs = _runs(part, split=split)
        self.starts = _weight_starts(part)

    def forward(
        self, chunk: int, x: Tensor, draw: Draw, labels: Tensor | None, *, recompute: bool
    ) -> Tensor:
        """Output of the segment, or the summed loss; keeps what the backward needs.

        Args:
            x: ``part.input_shape``.
            labels: (n,) where the segment ends in the loss.
            recompute: keep the input only.
        """
        kept = Kept(x, draw, labels)
        self.kept[chunk] = kept
        if recompute:
            with torch.no_grad():
                return self._through(x, slice(0, len(self.part.layers)), draw, labels)
        self._build(kept)
        return kept.links[-1].y.detach()

    def backward(self, chunk: int, gradient: Tensor | None) -> Tensor | None:
        """B: gradient of the output in (None for the loss), gradient of the input out."""
        kept = self.kept.pop(chunk)
        if not kept.links:
            self._build(kept)
        wanted = self._walk(kept, gradient, with_weights=True)
        return wanted

    def backward_input(self, chunk: int, gradient: Tensor | None) -> Tensor | None:
        """I: as ``backward``, leaving the weight gradients for W."""
        kept = self.kept[chunk]
        if not kept.links:
            self._build(kept)
        wanted = self._walk(kept, gradient, with_weights=False)
        if not self.parameters.weights:  # no W will come for it
            del self.kept[chunk]
        return wanted

    def backward_weight(self, chunk: int) -> None:
        """W: the weight gradients of a chunk whose I has ended."""
        kept = self.kept.pop(chunk)
        found: dict[int, Tensor] = {}
        for link, gradient in kept.owed:
            wanted = self.parameters.weights[link.weights]
            for i, g in enumerate(torch.autograd.grad(link.y, wanted, gradient)):
                found[link.weights.start + i] = g
        self.parameters.accumulate(tuple(found[i] for i in sorted(found)))

    def layer(self, number: int, x: Tensor, kept: Kept) -> Tensor:
        """One layer of the segment, as the forward that left ``kept`` computed it."""
        return self._through(x, slice(number, number + 1), kept.draw, kept.labels)

    def _build(self, kept: Kept) -> None:
        """Run the forward and keep its graphs."""
        x = kept.x
        for i, run in enumerate(self.runs):
            wants = self.needs_input_gradient if i == 0 else True
            x = x.detach().requires_grad_(wants and x.is_floating_point())
            with torch.enable_grad():
                y = self._through(x, run, kept.draw, kept.labels)
            weights = slice(self.starts[run.start], self.starts[run.stop])
            kept.links.append(Link(weights, x, y))
            x = y

    def _through(self, x: Tensor, run: slice, draw: Draw, labels: Tensor | None) -> Tensor:
        for number in range(run.start, run.stop):
            layer = self.part.layers[number]
            if isinstance(layer.sized.layer, CrossEntropy):
                assert labels is not None
                return loss_sum(layer.sized.layer, x, labels) * self.loss_scale
            tensors = self.parameters.weights[self.starts[number] : self.starts[number + 1]]
            count = len(layer.tiles)
            x = apply_layer(
                layer.sized, x, out=layer.out, reads=layer.reads,
                weights=tensors[:count], bias=tensors[count] if layer.bias else None,
                bias_channels=layer.bias, draw=draw,
            )  # fmt: skip
        return x

    def _walk(self, kept: Kept, gradient: Tensor | None, *, with_weights: bool) -> Tensor | None:
        found: dict[int, Tensor] = {}
        for link in reversed(kept.links):
            weights = self.parameters.weights[link.weights]
            inputs = [link.x] if link.x.requires_grad else []
            now = weights if with_weights else []
            grads: tuple[Tensor, ...] = ()
            if inputs or now:
                grads = torch.autograd.grad(
                    link.y, [*inputs, *now], gradient, retain_graph=bool(weights) and not now
                )
            if weights and not with_weights:
                owed = torch.ones_like(link.y) if gradient is None else gradient
                kept.owed.append((link, owed))
            for i, g in enumerate(grads[len(inputs) :]):
                found[link.weights.start + i] = g
            gradient = grads[0] if inputs else None
        if found:
            self.parameters.accumulate(tuple(found[i] for i in sorted(found)))
        return gradient


def _runs(part: SegmentPart, *, split: bool) -> list[slice]:
    """The layers of each graph: all in one, or cut around every layer with weights."""
    count = len(part.layers)
    if not split:
        return [slice(0, count)]
    cuts = {0, count}
    for i, layer in enumerate(part.layers):
        if layer.tiles:
            cuts |= {i, i + 1}
    ordered = sorted(cuts)
    return [slice(a, b) for a, b in zip(ordered, ordered[1:], strict=False)]


def _weight_starts(part: SegmentPart) -> list[int]:
    """Where each layer's tensors begin in the segment's list; one more entry for the end."""
    starts = [0]
    for layer in part.layers:
        starts.append(starts[-1] + len(layer.tiles) + bool(layer.bias))
    return starts
