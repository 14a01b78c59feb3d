"""What forward and backward of one segment part keep in memory, and what they need for a moment.

Each kind of layer says what autograd saves for it (:meth:`Layer.memory`); here it is added up over
the layers of a segment, in the order in which they are computed and walked back::

    a value    is alive from the layer that makes it to the last one that reads it, or for as long
               as a graph holds it
    a gradient of a value is alive from the first of its readers to the layer that made it; two
               values may share one, as the inputs of a sum do

autograd adds a second gradient of a value to the first in place, unless somebody else holds that:
another value, or whoever handed it in from outside.

Copies that a convolution library makes for itself are counted on processors, where they were
measured (:meth:`Layer.processor_copies`). Those of GPUs are not.

A tensor that two layers keep is counted once. The segment's imports and exports are counted by the
walk over the program (:mod:`orchestrator.simulate.memory`), since they outlive it.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import NamedTuple

from orchestrator.models.layer_costs import Copies
from orchestrator.program.segments import Segment, SegmentPart


class ImportGradient(NamedTuple):
    """Where an import's gradient lies: in its own tensor, or as a view in one that others share.

    Args:
        size: its bytes.
        tensor: which; below 0 the gradient of an output, -1 - its place among the outputs.
        held: bytes of the tensor; 0 of an output's, which is there before.
    """

    size: int
    tensor: int
    held: int


class Footprint(NamedTuple):
    """Bytes of one segment part for one chunk; "most" is above what was alive before.

    Args:
        imports: of each import's tensor; 0 for labels.
        import_gradients: None for those computed from nothing that is trained.
        outputs: by export; 0 for one that is an import itself.
        owed: by export, whether W needs its gradient, too.
        weights: parameters, and so a set of gradients.
        forward_most: in F, outputs included; keeping the graph.
        saved: after F, besides imports and outputs.
        bare_forward_most: in F without a graph, where the backward will recompute.
        backward_most: in B (or I), the gradients of imports included, the graph being there.
        kept_after_input: after I, besides imports and outputs: what W needs.
        weight_most: in W.
    """

    imports: tuple[int, ...]
    import_gradients: tuple[ImportGradient | None, ...]
    outputs: tuple[int, ...]
    owed: tuple[bool, ...]
    weights: int
    forward_most: int
    saved: int
    bare_forward_most: int
    backward_most: int
    kept_after_input: int
    weight_most: int


class _Graph:
    """The values of a segment part and who reads them.

    A value is the position of its layer, or -1 - that of an import; a layer that gives what it was
    given has no value of its own.
    """

    def __init__(
        self, segment: Segment, part: SegmentPart, itemsize: int, *, split: bool, onednn: bool
    ) -> None:
        self.segment, self.split = segment, split
        self.copies = [
            x.sized.layer.processor_copies(x, part.examples) if onednn else Copies()
            for x in part.layers
        ]
        self.layers = [x.memory(part.examples, itemsize) for x in part.layers]
        self.of: dict[int, int] = {-1 - n: -1 - n for n in range(len(segment.imports))}
        for i, layer in enumerate(self.layers):
            self.of[i] = self.of[segment.sources[i][0]] if layer.same else i
        self.sources = [
            () if layer.same else tuple(dict.fromkeys(self.of[s] for s in sources))
            for layer, sources in zip(self.layers, segment.sources, strict=True)
        ]
        self.saved_inputs = [
            {self.of[s] for n, s in enumerate(sources) if layer.holds(n)}
            for layer, sources in zip(self.layers, segment.sources, strict=True)
        ]
        self.exports = [self.of[n] for n in segment.exports] or [self.of[len(self.layers) - 1]]
        self.bytes: dict[int, int] = {
            -1 - n: 0 if found.value.integer else prod(part.import_shape(n)) * itemsize
            for n, found in enumerate(segment.imports)
        }
        for i, layer in enumerate(self.layers):
            self.bytes[i] = layer.after
        self.runs = self._runs()

    def _runs(self) -> list[list[int]]:
        """Layers of each graph: cut around those with weights for zero-bubble schedules."""
        runs: list[list[int]] = []
        for i, layer in enumerate(self.layers):
            alone = self.split and (layer.weights or (runs and self.layers[runs[-1][0]].weights))
            if alone or not runs:
                runs.append([])
            runs[-1].append(i)
        return runs

    def leaving(self) -> set[int]:
        """Values that are handed from one graph to another."""
        run_of = {i: n for n, run in enumerate(self.runs) for i in run}
        return {
            s for i, sources in enumerate(self.sources) for s in sources
            if s >= 0 and run_of[s] != run_of[i]
        }  # fmt: skip


def footprint(
    segment: Segment, part: SegmentPart, itemsize: int, *, split: bool, onednn: bool
) -> Footprint:
    """A segment part's bytes.

    Args:
        split: the backward is done as I and W, so graphs are cut around layers with weights.
        onednn: count the copies that convolutions make on a processor.
    """
    graph = _Graph(segment, part, itemsize, split=split, onednn=onednn)
    freed = [0] * len(graph.layers)
    forward_most, alive = _forward(graph, freed, keep=True)
    bare_most, _ = _forward(graph, [0] * len(graph.layers), keep=False)
    backward = _Backward(graph, freed)
    backward_most, left = backward.walk()
    outputs = tuple(0 if n < 0 else graph.bytes[n] for n in graph.exports)
    own = sum(graph.bytes[n] for n in set(graph.exports) if n >= 0)
    weights = sum(layer.weights for layer in graph.layers)
    return Footprint(
        imports=tuple(graph.bytes[-1 - n] for n in range(len(segment.imports))),
        import_gradients=backward.import_gradients(),
        outputs=outputs,
        owed=tuple(backward.given[n] in backward.owed for n in graph.exports),
        weights=weights,
        forward_most=forward_most,
        saved=alive - own,
        bare_forward_most=bare_most,
        backward_most=backward_most,
        kept_after_input=left,
        weight_most=_weights(graph),
    )


def _forward(graph: _Graph, freed: list[int], *, keep: bool) -> tuple[int, int]:
    """Bytes at most, and at the end, above the imports.

    Args:
        freed: by layer, what its node frees when the backward has walked it; filled here. What
            goes from graph to graph outlives its graph, so it is no layer's to free.
    """
    unread = Counter(s for sources in graph.sources for s in sources)
    given = set(graph.exports)
    leaving = graph.leaving() if keep else set[int]()
    held = {n for n in graph.of if n < 0} | leaving | (given if keep else set())
    alive = most = 0
    for i, (layer, sources) in enumerate(zip(graph.layers, graph.sources, strict=True)):
        if layer.same:
            continue
        extra = layer.forward_extra + graph.copies[i].forward
        most = max(most, alive + layer.after + layer.saved + extra)
        if keep:
            alive += layer.saved
            freed[i] += layer.saved
            for s in graph.saved_inputs[i] - held:
                held.add(s)
                freed[i] += graph.bytes[s]
        for s in sources:
            unread[s] -= 1
            if not unread[s] and s not in held and s not in given:
                alive -= graph.bytes[s]
        alive += layer.after
        if keep and layer.saves_output and i not in held:
            held.add(i)
            freed[i] += layer.after
    return most, alive


class Gradient:
    """A tensor, and how many hold it: values whose gradient it is, and whoever needs it later."""

    def __init__(self, size: int, references: int = 1) -> None:
        self.size, self.references = size, references


class _Backward:
    """B, or where it is split I, in bytes above what is alive before it.

    Args:
        freed: by layer, what its node frees when the backward has walked it.
    """

    def __init__(self, graph: _Graph, freed: list[int]) -> None:
        self.graph, self.freed = graph, freed
        self.now = self.most = 0
        self.wanted = _wanted(graph)
        # of outputs: held by the caller, who counts them
        self.given = {n: Gradient(0, 2) for n in graph.exports}
        self.gradients = dict(self.given)
        self.between = graph.leaving()  # graphs: what they return is added up in new tensors
        self.owed: set[Gradient] = set()

    def walk(self) -> tuple[int, int]:
        """Bytes at most, and what the graph has left."""
        graph = self.graph
        left = sum(self.freed) + sum(graph.bytes[n] for n in self.between - set(graph.exports))
        for run in reversed(graph.runs):
            deferred = graph.split and bool(graph.layers[run[0]].weights)
            for i in reversed(run):
                if not graph.layers[i].same:
                    self._layer(i, deferred=deferred)
                    left -= 0 if deferred else self.freed[i]
        return self.most, left + sum(gradient.size for gradient in self.owed)

    def import_gradients(self) -> tuple[ImportGradient | None, ...]:
        """Where the walk has left them."""
        tensors = {self.given[n]: -1 - k for k, n in reversed([*enumerate(self.graph.exports)])}
        found: list[ImportGradient | None] = []
        for n, read in enumerate(self.graph.segment.imports):
            size = self.graph.bytes[-1 - n]
            gradient = self.gradients.get(-1 - n) or Gradient(size)
            tensor = tensors.setdefault(gradient, n)
            found.append(ImportGradient(size, tensor, gradient.size) if read.trained else None)
        return tuple(found)

    def _layer(self, i: int, *, deferred: bool) -> None:
        """Gradients of what a layer reads, and unless they are deferred of its weights."""
        graph, layer = self.graph, self.graph.layers[i]
        made = [s for s in graph.sources[i] if self.wanted[i] and self._has_gradient(s)]
        mine = self.gradients.pop(i, None)
        weights = 0 if deferred else layer.weights
        if layer.passes_gradient:
            passed = mine or Gradient(0, 0)
            passed.references += len(made)
            given = [passed] * len(made)
        else:
            given = [Gradient(graph.bytes[s]) for s in made]
            self.now += sum(gradient.size for gradient in given)
        self.now += weights
        if weights or (made and not layer.passes_gradient):
            extra = layer.backward_extra + (layer.input_extra if made else 0)
            self._note(extra + self._copies(i, bool(made), bool(weights)))
        if deferred and mine is not None:
            self.owed.add(mine)
        elif mine is not None:
            self._release(mine)
        if not deferred:
            self.now -= self.freed[i]
        for s, gradient in zip(made, given, strict=True):
            self._accumulate(s, gradient)

    def _copies(self, i: int, of_input: bool, of_weights: bool) -> int:
        copies = self.graph.copies[i]
        if of_input and of_weights:
            return copies.backward
        return copies.input_only if of_input else copies.weights_only

    def _has_gradient(self, value: int) -> bool:
        """Whether a value wants one: integers and what nothing trained has made do not."""
        return value >= 0 or self.graph.segment.imports[-1 - value].trained

    def _accumulate(self, value: int, gradient: Gradient) -> None:
        before = self.gradients.get(value)
        if before is None:
            self.gradients[value] = gradient
            return
        if before.references > 1 or value in self.between:
            total = Gradient(self.graph.bytes[value])
            self.now += total.size
            self._note(0)
            self._release(before)
            self.gradients[value] = total
        self._release(gradient)

    def _release(self, gradient: Gradient) -> None:
        gradient.references -= 1
        if not gradient.references:
            self.now -= gradient.size

    def _note(self, extra: int) -> None:
        self.most = max(self.most, self.now + extra)


def _weights(graph: _Graph) -> int:
    """W: gradients of the weights, from the last layer to the first; bytes at most."""
    now = most = 0
    for layer, copies in zip(reversed(graph.layers), reversed(graph.copies), strict=True):
        if layer.weights:
            now += layer.weights
            most = max(most, now + layer.backward_extra + copies.weights_only)
            now -= layer.saved
    return most


def _wanted(graph: _Graph) -> list[bool]:
    """By layer, whether gradients of its inputs are computed."""
    if not graph.split:
        return list(graph.segment.needs_input_grad)
    # every graph but the first is given inputs that want a gradient
    first = len(graph.runs[0])
    return [needed or i >= first for i, needed in enumerate(graph.segment.needs_input_grad)]
