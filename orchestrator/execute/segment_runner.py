"""Forward and backward of one segment on one rank: ordinary autograd on detached inputs.

A chunk's forward keeps what its backward needs, under the chunk's number. Three ways to keep it:

    whole        one graph from inputs to outputs; B walks it once
    recomputed   the inputs only; B runs the forward again first
    split        a chain of graphs, cut around every layer with weights, so that I (input gradients)
                 and W (weight gradients) walk no node twice
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.execute.parameters import SegmentParameters
from orchestrator.execute.recording import Recorder
from orchestrator.models.box import Box, is_empty, within
from orchestrator.models.pieces import cut_out
from orchestrator.models.randomness import Draw
from orchestrator.program.segments import Segment, SegmentPart

# A value of a segment: the position of the layer that makes it, or -1 - that of an import.
Values = dict[int, Tensor]
Place = tuple[int, int, int]  # of a recorded pass: segment, position of the layer, chunk


class Link(NamedTuple):
    """One graph: a run of layers, its detached inputs and its outputs, by value."""

    weights: slice
    inputs: Values
    outputs: Values


class Owed(NamedTuple):
    """What W computes: gradients of a graph's weights from those of its outputs."""

    weights: slice
    outputs: list[Tensor]
    gradients: list[Tensor]


@dataclass
class Saved:
    """What a chunk's forward leaves for its backward."""

    chunk: int
    imports: tuple[Tensor, ...]
    draw: Draw | None
    links: list[Link] = field(default_factory=list)
    owed: list[Owed] = field(default_factory=list)


class SegmentRunner:
    """Runs one segment part.

    Args:
        segment, part: which layers, and which share of them.
        parameters: its weights; gradients are accumulated there.
        loss_scale: factor on the summed loss: one over the number of labels of a step, and what
            keeps small gradients in range.
        split: keep the graphs so that the backward can be done in two halves.
    """

    def __init__(
        self,
        segment: Segment,
        part: SegmentPart,
        parameters: SegmentParameters,
        *,
        loss_scale: float,
        split: bool,
    ) -> None:
        self.segment, self.part, self.parameters = segment, part, parameters
        self.loss_scale = loss_scale
        self.saved: dict[int, Saved] = {}
        self.recorder: Recorder[Place] | None = None
        self.given = {*segment.exports, len(part.layers) - 1}
        self.runs = _runs(segment, part, self.given, split=split)
        self.starts = _weight_starts(part)
        self.cuts = _cuts(segment, part)
        self.spent = _spent(segment, self.given)

    def forward(
        self, chunk: int, imports: tuple[Tensor, ...], draw: Draw, *, recompute: bool
    ) -> Values:
        """Outputs that others read, and that of the last layer, by the layer's position; the loss
        is summed over the examples and scaled. Keeps what the backward needs.

        Args:
            imports: ``part.import_shape(n)`` of each.
            recompute: keep the imports only.
        """
        saved = Saved(chunk, imports, draw)
        self.saved[chunk] = saved
        if recompute:
            values = {-1 - n: x for n, x in enumerate(imports)}
            with torch.no_grad():
                self._through(values, slice(0, len(self.part.layers)), saved)
            return {n: values[n] for n in self.given}
        self._build(saved)
        return {
            n: y.detach() for link in saved.links for n, y in link.outputs.items()
            if n in self.given
        }  # fmt: skip

    def evaluate(self, imports: tuple[Tensor, ...]) -> Values:
        """As at test time, of any examples: outputs by position as ``forward`` gives them, and of
        a segment with the loss the class scores that it reads. Keeps nothing.
        """
        values = {-1 - n: x for n, x in enumerate(imports)}
        passing = Saved(-1, imports, None)
        count, loss = len(self.part.layers), int(self.segment.has_loss)
        with torch.no_grad():
            self._through(values, slice(0, count - loss), passing)
            scores = self.segment.sources[-1][0]
            found = {scores: values[scores]} if loss else {}
            self._through(values, slice(count - loss, count), passing)
        return found | {n: values[n] for n in self.given}

    def backward(self, chunk: int, gradients: Mapping[int, Tensor]) -> list[Tensor | None]:
        """B: gradients of outputs in, by the layer's position (none for the loss); gradients of
        imports out, None for those that want none."""
        saved = self.saved.pop(chunk)
        if not saved.links:
            self._build(saved)
        return self._walk(saved, dict(gradients), with_weights=True)

    def backward_input(self, chunk: int, gradients: Mapping[int, Tensor]) -> list[Tensor | None]:
        """I: as ``backward``, leaving the weight gradients for W."""
        saved = self.saved[chunk]
        if not saved.links:
            self._build(saved)
        wanted = self._walk(saved, dict(gradients), with_weights=False)
        if not self.parameters.weights:  # no W will come for it
            del self.saved[chunk]
        return wanted

    def backward_weight(self, chunk: int) -> None:
        """W: the weight gradients of a chunk whose I has ended."""
        saved = self.saved.pop(chunk)
        found: dict[int, Tensor] = {}
        for owed in saved.owed:
            wanted = self.parameters.weights[owed.weights]
            gradients = torch.autograd.grad(
                owed.outputs, wanted, owed.gradients, materialize_grads=True
            )
            found |= zip(range(owed.weights.start, owed.weights.stop), gradients, strict=True)
            del gradients
        self._accumulate(found)

    def again(self, saved: Saved) -> Iterator[Tensor]:
        """The output of one layer after the other, as the forward that left ``saved`` had it."""
        values = {-1 - n: x for n, x in enumerate(saved.imports)}
        for number in range(len(self.part.layers)):
            with torch.no_grad():
                self._through(values, slice(number, number + 1), saved)
            yield values[number]

    def _build(self, saved: Saved) -> None:
        """Run the forward and keep its graphs."""
        values = {-1 - n: x for n, x in enumerate(saved.imports)}
        for layers, entering, unused, leaving in self.runs:
            inputs = {}
            for n in entering:
                needs_grad = n >= 0 or self.segment.imports[-1 - n].trained
                x = values[n].detach()
                inputs[n] = x.requires_grad_(
                    needs_grad and n not in unused and x.is_floating_point()
                )
            inside = dict(inputs)
            with torch.enable_grad():
                self._through(inside, layers, saved)
            outputs = {n: inside[n] for n in leaving}
            values.update(outputs)
            weights = slice(self.starts[layers.start], self.starts[layers.stop])
            saved.links.append(Link(weights, inputs, outputs))

    def _through(self, values: Values, layers: slice, saved: Saved) -> None:
        """Compute some layers, from what they read to what they give; what no later one reads is
        let go at once."""
        for number in range(layers.start, layers.stop):
            part = self.part.layers[number]
            inputs = []
            for source, box in zip(self.segment.sources[number], self.cuts[number], strict=True):
                x = values[source]
                inputs.append(x if box is None else cut_out(x, (((0, len(x)),), *box)))
            weights = self.parameters.weights[self.starts[number] : self.starts[number + 1]]
            key = (self.segment.index, number, saved.chunk)
            if self.recorder is not None:
                inputs, weights = self.recorder.reads(key, inputs, weights)
            y = part.compute(inputs, weights, saved.draw)
            if part.sized.layer.is_loss:
                y = y * self.loss_scale
            values[number] = y if self.recorder is None else self.recorder.gives(key, y)
            del inputs, y
            for n in self.spent[number]:
                del values[n]

    def _walk(self, saved: Saved, gradients: Values, *, with_weights: bool) -> list[Tensor | None]:
        found: dict[int, Tensor] = {}
        for link in reversed(saved.links):
            weights = self.parameters.weights[link.weights]
            wanted = [n for n, x in link.inputs.items() if x.requires_grad]
            inputs = [link.inputs[n] for n in wanted]
            now = weights if with_weights else []
            outputs = [y for y in link.outputs.values() if y.requires_grad]
            given = [gradients.pop(n, None) for n, y in link.outputs.items() if y.requires_grad]
            grads: Sequence[Tensor] = ()
            if inputs or now:
                # zeros of what a kind does not use: it may be wrong, and is then seen to be
                grads = torch.autograd.grad(
                    outputs, [*inputs, *now], given, retain_graph=bool(weights) and not now,
                    materialize_grads=True,
                )  # fmt: skip
            if weights and not with_weights:
                owed = [
                    torch.ones_like(y) if g is None else g
                    for y, g in zip(outputs, given, strict=True)
                ]
                saved.owed.append(Owed(link.weights, outputs, owed))
            if now:
                places = range(link.weights.start, link.weights.stop)
                found |= zip(places, grads[len(inputs) :], strict=True)
            del given
            for n, g in zip(wanted, grads, strict=False):
                gradients[n] = gradients[n] + g if n in gradients else g
            grads = ()
        if found:
            self._accumulate(found)
        return [gradients.get(-1 - n) for n in range(len(self.segment.imports))]

    def _accumulate(self, gradients: dict[int, Tensor]) -> None:
        """Add gradients, by weight; each is let go as soon as it is added."""
        self.parameters.accumulate(gradients.pop(i) for i in sorted(gradients))


class Run(NamedTuple):
    """The layers of one graph, the values that it reads and those that are read behind it.

    ``unused`` are those that enter and of which this part's boxes hold nothing: a rank with the
    first channels of a concatenation has none of the second value's.
    """

    layers: slice
    entering: tuple[int, ...]
    unused: frozenset[int]
    leaving: tuple[int, ...]


def _runs(segment: Segment, part: SegmentPart, given: set[int], *, split: bool) -> list[Run]:
    """All layers in one graph, or cut around every layer with weights."""
    count = len(part.layers)
    cuts = {0, count}
    if split:
        for i, layer in enumerate(part.layers):
            if layer.tiles:
                cuts |= {i, i + 1}
    ordered = sorted(cuts)
    found = []
    for start, stop in zip(ordered, ordered[1:], strict=False):
        read = [n for i in range(start, stop) for n in segment.sources[i]]
        later = {n for i in range(stop, count) for n in segment.sources[i]} | given
        entering = tuple(dict.fromkeys(n for n in read if not start <= n < stop))
        used = {
            n
            for i in range(start, stop)
            for n, box in zip(segment.sources[i], part.layers[i].reads, strict=True)
            if not is_empty(box)
        }
        leaving = tuple(n for n in range(start, stop) if n in later)
        unused = frozenset(entering) - used
        found.append(Run(slice(start, stop), entering, unused, leaving))
    return found


def _spent(segment: Segment, given: set[int]) -> list[list[int]]:
    """By layer, the values that it is the last to read."""
    last: dict[int, int] = {}
    for number, sources in enumerate(segment.sources):
        last |= dict.fromkeys(sources, number)
    found: list[list[int]] = [[] for _ in segment.sources]
    for n, number in last.items():
        if n not in given:
            found[number].append(n)
    return found


def _weight_starts(part: SegmentPart) -> list[int]:
    """Where each layer's tensors begin in the segment's list; one more entry for the end."""
    starts = [0]
    for layer in part.layers:
        starts.append(starts[-1] + len(layer.tiles))
    return starts


def _cuts(segment: Segment, part: SegmentPart) -> list[tuple[Box | None, ...]]:
    """By layer and input, where its box lies in the value that it is cut from; None for all of
    it."""
    found = []
    for layer, sources in zip(part.layers, segment.sources, strict=True):
        cuts: list[Box | None] = []
        for source, box in zip(sources, layer.reads, strict=True):
            has = part.layers[source].out if source >= 0 else part.imports[-1 - source]
            cuts.append(None if box == has or is_empty(box) else within(box, has))
        found.append(tuple(cuts))
    return found
