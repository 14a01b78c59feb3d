"""What forward and backward of one segment part keep in memory, and what they need for a moment.

The terms follow what autograd saves for the executor's layers (torch 2.13's ``derivatives.yaml``
and :mod:`orchestrator.models.torch_layers`), for one chunk of n examples::

    layer      keeps for its backward                 needs for a moment
    conv       its input (padded copy if lopsided)    copies of channels, where it reads some only
    linear     its input                              -
    relu       its output                             -
    norm       its input and the base k + a sum x²    root and its root; backward: three of its size
    pool       its input and an int64 place a value   -
    dropout    the mask                               three int64 a value, to draw it
    loss       the log of the softmax                 the same once more in the backward
    a user's   its input and its output               backward: one of the input's size

Not counted: copies that a convolution library makes for itself. Measured on a CPU they are nothing
at the peak of most AlexNet plans and 1.7 % of it without norms; in LeNet-5, whose 6 channels oneDNN
pads to 8 or 16, they are a fifth.

A tensor that two layers keep is counted once. The segment's input and output are counted by the
walk over the program (:mod:`orchestrator.simulate.memory`), since they outlive it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from orchestrator.models.layers import (
    Conv,
    CrossEntropy,
    Dropout,
    Linear,
    MaxPool,
    ReLU,
    ResponseNorm,
    SizedLayer,
    SpatialNorm,
    Sum,
)
from orchestrator.models.ranges import Ranges, intersect, local, size
from orchestrator.program.segments import LayerPart, SegmentPart

INT64 = 8  # bytes: pooling's places, labels, and the hash behind dropout's mask


class LayerMemory(NamedTuple):
    """Bytes of one layer part for one chunk.

    Args:
        before, after: its input and output.
        keeps_input, keeps_output: whether the graph holds them for the backward.
        kept: what else the graph holds.
        forward_extra, backward_extra: what is needed for a moment besides.
        weights: its parameters, and so their gradients.
        same: the output is the input, no new tensor.
    """

    before: int
    after: int
    keeps_input: bool = False
    keeps_output: bool = False
    kept: int = 0
    forward_extra: int = 0
    backward_extra: int = 0
    weights: int = 0
    same: bool = False


class Footprint(NamedTuple):
    """Bytes of one segment part for one chunk; "most" is above what was alive before.

    Args:
        input, output: its input and output tensors; output is 0 if it is the input itself.
        input_gradient: 0 if nothing before it is trained.
        weights: parameters, and so a set of gradients.
        forward_most: in F, output included; keeping the graph.
        kept: after F, besides input and output.
        bare_forward_most: in F without a graph, where the backward will recompute.
        backward_most: in B (or I), the input gradient included, the graph being there.
        kept_after_input: after I, besides input and output: what W needs.
        weight_most: in W.
    """

    input: int
    output: int
    input_gradient: int
    weights: int
    forward_most: int
    kept: int
    bare_forward_most: int
    backward_most: int
    kept_after_input: int
    weight_most: int


def layer_memory(part: LayerPart, examples: int, itemsize: int) -> LayerMemory:
    """One layer part over ``examples`` images."""
    sized, layer = part.sized, part.sized.layer
    n_before = examples * size(part.reads) * sized.in_values
    n_after = examples * size(part.out) * sized.out_values
    before, after = n_before * itemsize, n_after * itemsize
    if isinstance(layer, Conv | Linear):
        return _weighted(part, examples, itemsize, before, after)
    if isinstance(layer, ResponseNorm):
        piece, pieces = _norm_piece(sized, layer, part.out)
        piece *= examples * sized.in_values * itemsize
        return LayerMemory(
            before, after, keeps_input=True, kept=after, forward_extra=2 * piece,
            # direct, crossed and spread; those of the piece before are alive until replaced
            backward_extra=(3 if pieces == 1 else 5) * piece,
        )  # fmt: skip
    if isinstance(layer, MaxPool):
        return LayerMemory(before, after, keeps_input=True, kept=n_after * INT64)
    if isinstance(layer, Dropout):
        drawing = 3 * INT64 * n_after  # x, x >> 16 and their xor, before mask and output exist
        return LayerMemory(before, after, kept=after, forward_extra=max(0, drawing - 2 * after))
    if isinstance(layer, SpatialNorm):  # x², the base and its power are saved, by three nodes
        return LayerMemory(
            before, after, keeps_input=True, kept=3 * after, forward_extra=after,
            backward_extra=3 * before,
        )  # fmt: skip
    if isinstance(layer, Sum):
        return LayerMemory(before, after, same=True)
    if isinstance(layer, ReLU):
        return LayerMemory(before, after, keeps_output=True)
    if isinstance(layer, CrossEntropy):
        logs = n_before * max(itemsize, 4)  # at least in float32
        labels = examples * INT64
        wide = logs if itemsize < 4 else 0
        return LayerMemory(
            before, itemsize, kept=logs + labels, forward_extra=wide, backward_extra=logs
        )
    return LayerMemory(
        before, after, keeps_input=True, keeps_output=True, backward_extra=before,
        weights=part.parameters * itemsize,
    )  # fmt: skip


def _weighted(
    part: LayerPart, examples: int, itemsize: int, before: int, after: int
) -> LayerMemory:
    sized, layer = part.sized, part.sized.layer
    weights = part.parameters * itemsize
    terms = sized.terms(part.out, part.reads)
    in_one = len(terms) == 1 or len(part.tiles) == 1  # equal groups are one call
    kept = forward_extra = backward_extra = 0
    keeps_input = True
    if isinstance(layer, Conv) and layer.pads[0] != layer.pads[1]:
        sides = [n + sum(layer.pads) for n in sized.input_shape[1:]]
        kept = examples * size(part.reads) * prod(sides) * itemsize
        keeps_input = False  # the padded copy is
        backward_extra = kept  # its gradient, before it is cropped
    if not in_one:
        channels = [local(term.reads, part.reads) for term in terms]
        per_channel = examples * sized.in_values * itemsize
        # channels in several runs are put together in a copy, which the product then keeps
        kept += sum(size(c) for c in channels if len(c) > 1) * per_channel
        widest = max(size(c) for c in channels) * per_channel
        forward_extra = after + widest  # the pieces of the output, and one input in one run
        backward_extra += before + widest
    if isinstance(layer, Linear) and len(terms) > 1 and in_one:
        forward_extra, backward_extra = 2 * after, before  # bmm's order of dimensions, turned
    return LayerMemory(
        before, after, keeps_input=keeps_input, kept=kept, forward_extra=forward_extra,
        backward_extra=backward_extra, weights=weights,
    )  # fmt: skip


def _norm_piece(sized: SizedLayer, layer: ResponseNorm, out: Ranges) -> tuple[int, int]:
    """Channels of the largest piece that the norm is computed in, and the number of pieces."""
    width = sized.in_channels // layer.columns
    runs = [
        run
        for column in range(layer.columns)
        for run in intersect(out, ((column * width, (column + 1) * width),))
    ]
    return max(size(sized.reads((run,))) for run in runs), len(runs)


def footprint(
    part: SegmentPart, itemsize: int, *, needs_input_gradient: bool, split: bool
) -> Footprint:
    """A segment part's bytes.

    Args:
        split: the backward is done as I and W, so graphs are cut around layers with weights.
    """
    layers = [layer_memory(layer, part.examples, itemsize) for layer in part.layers]
    runs = _runs(layers) if split else [layers]
    forward = _Forward(keep=True)
    kept_by_run = [forward.run(run) for run in runs]
    bare = _Forward(keep=False)
    bare.run(layers)
    output = 0 if all(layer.same for layer in layers) else layers[-1].after
    back = _backward(runs, kept_by_run, split=split, needs_input_gradient=needs_input_gradient)
    weights = sum(layer.weights for layer in layers)
    return Footprint(
        input=prod(part.input_shape) * itemsize,
        output=output,
        input_gradient=layers[0].before if needs_input_gradient else 0,
        weights=weights,
        forward_most=forward.most,
        kept=forward.alive - (0 if forward.is_input else output),
        bare_forward_most=bare.most,
        backward_most=back.most,
        kept_after_input=back.kept,
        weight_most=weights + max(layer.backward_extra if layer.weights else 0 for layer in layers),
    )


def _runs(layers: list[LayerMemory]) -> list[list[LayerMemory]]:
    """Cut around every layer with weights, as the executor does for zero-bubble schedules."""
    runs: list[list[LayerMemory]] = []
    for layer in layers:
        if layer.weights or not runs or runs[-1][0].weights:
            runs.append([])
        runs[-1].append(layer)
    return runs


class _Forward:
    """Bytes alive while layers are computed one after another, the segment's input left out."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.alive = self.most = 0
        self.is_input = True  # the newest tensor is the segment's input
        self.held = True  # it stays alive whatever comes next

    def run(self, layers: list[LayerMemory]) -> list[int]:
        """One graph; returns by layer what its node frees when the backward has walked it.

        A run's first input and last output outlive its graph, so they are no layer's to free.
        """
        freed = [0] * len(layers)
        for i, layer in enumerate(layers):
            if layer.same:
                continue
            now = self.alive + layer.after + layer.kept + layer.forward_extra
            self.most = max(self.most, now)
            if self.keep:
                self.alive += layer.kept
                freed[i] += layer.kept
                if layer.keeps_input and not self.held:
                    self.held = True
                    freed[i] += layer.before
            if not self.held:
                self.alive -= layer.before
            self.alive += layer.after
            self.is_input, self.held = False, False
            if i + 1 == len(layers):
                self.held = self.keep
            elif self.keep and layer.keeps_output:
                self.held = True
                freed[i] += layer.after
        return freed


@dataclass
class _Backward:
    most: int
    kept: int


def _backward(
    runs: list[list[LayerMemory]],
    freed: list[list[int]],
    *,
    split: bool,
    needs_input_gradient: bool,
) -> _Backward:
    """B, or with ``split`` I: bytes above what is alive before it, and what the graph has left."""
    now = most = 0  # bytes above the start
    owed = 0  # gradients that W will need
    graph = sum(map(sum, freed)) + sum(run[-1].after for run in runs[:-1])
    gradient = 0  # the newest gradient, if it is nobody else's
    trained = needs_input_gradient
    wants = []  # whether each layer's input needs a gradient
    for run in runs:
        for layer in run:
            wants.append(trained)
            trained = trained or bool(layer.weights) or split
    position = len(wants)
    for run, free in zip(reversed(runs), reversed(freed), strict=True):
        deferred = split and bool(run[0].weights)
        if deferred:
            owed += gradient
            gradient = 0  # it stays alive for W
        for layer, freed_here in zip(reversed(run), reversed(free), strict=True):
            position -= 1
            if layer.same:
                continue
            made = layer.before if wants[position] else 0
            found = 0 if deferred else layer.weights
            extra = layer.backward_extra if made or found else 0
            most = max(most, now + made + found + extra)
            now += made + found - gradient
            gradient = made
            if not deferred:
                now -= freed_here
                graph -= freed_here
    return _Backward(most, graph + owed)
