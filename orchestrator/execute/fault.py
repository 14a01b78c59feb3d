"""Which layer is wrong: one step, layer by layer, as the ranks do it and as one device does.

A wrong value spreads: after a step every parameter differs. So the first wrong one is looked for,
in the order in which values are made::

    forward     in the model's order     what a layer reads on each rank, what it gives
    backward    from the loss on         what its readers return to it, what it passes on
    reduction   at the end               the summed gradients that the ranks update with

What a layer tells of a batch for its running averages goes where gradients go, and is compared so.

What one layer gives and another does not get is the fault of the exchange between them. A layer
that a plan takes in two halves (``fc6`` and ``fc6.sum``) is judged as one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.execute.finite import Diverged
from orchestrator.execute.interpreter import Feed, RankInterpreter, Recording
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.recording import Pass, Recorder
from orchestrator.execute.reference import Reference
from orchestrator.models.box import Box, is_empty, within
from orchestrator.models.model import Recipe
from orchestrator.models.parameter import ParameterSpec
from orchestrator.models.pieces import cut_out, put_in
from orchestrator.models.ranges import shift
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import INPUT, LABELS
from orchestrator.program import Program
from orchestrator.program.boundary import Boundary
from orchestrator.program.segments import Segment, SegmentPart


def first_fault(
    program: Program,
    feed: Feed,
    recipe: Recipe,
    update_examples: Mapping[str, int],
    tolerance: float,
) -> str:
    """What is wrong first in a first step, in one line that names the layer; "" for nothing.

    Args:
        tolerance: relative error allowed, of the largest value of what is compared.
    """
    split = LocalExecutor(program, feed, recipe, strict=True)
    recordings = [rank.record() for rank in split.ranks]
    whole = Reference(
        program.model, feed, recipe, global_batch=program.global_batch, dtype=program.precision,
        update_examples=update_examples,
    )  # fmt: skip
    recorder: Recorder[tuple[str, int]] = Recorder()
    whole.recorder = recorder
    start = {name: w.detach().clone() for name, w in whole.weights.items()}
    whole.step(0)
    with suppress(Diverged):  # the forward is recorded
        split.step(0)
    recorded = list(zip(split.ranks, recordings, strict=True))
    expected = _Expected(whole, recorder, start)
    return next(iter(_Comparison(program, recorded, expected, tolerance).faults()), "")


class _Node(NamedTuple):
    """A placed layer: one of the model, or one of the halves that one was taken into.

    Args:
        segment, position: where it is.
        layer: name of the model's layer.
        sources: of each input, the segment and position of the layer that makes it; None for data.
        partial: its output is a partial sum.
        compared: one device has what it gives.
    """

    segment: Segment
    position: int
    layer: str
    sources: tuple[tuple[int, int] | None, ...]
    partial: bool
    compared: bool

    @property
    def sized(self) -> SizedLayer:
        return self.segment.layers[self.position]

    @property
    def name(self) -> str:
        return self.sized.name

    @property
    def key(self) -> tuple[int, int]:
        return self.segment.index, self.position


class _Use(NamedTuple):
    """A node's forward and backward of one chunk on one rank.

    Args:
        base: the chunk's first example, within the step's global batch.
    """

    rank: RankInterpreter
    part: SegmentPart
    node: _Node
    chunk: int
    base: int
    seen: Pass

    @property
    def layer(self) -> LayerPart:
        return self.part.layers[self.node.position]

    def output_box(self) -> Box:
        """Examples of the step, and box, of its output."""
        rows, *box = self.part.output_box(self.node.position)
        return (shift(rows, self.base), *box)

    def input_box(self, number: int) -> Box:
        """Examples of the step, and box, of one of its inputs."""
        source = self.node.segment.sources[self.node.position][number]
        part = self.part
        rows = part.import_box(-1 - source)[0] if source < 0 else part.output_box(source)[0]
        return (shift(rows, self.base), *self.layer.reads[number])

    def add_input_gradient(self, number: int, total: Tensor) -> None:
        """Add the gradient of one of its inputs, if there is one, to that of the whole value."""
        gradient = self.seen.input_gradients.get(number)
        if gradient is not None and not is_empty(self.layer.reads[number]):
            put_in(total, self.input_box(number), gradient, add=True)


class _Expected:
    """What one device has, by layer of the model. All of a step unless ``examples`` are named.

    Args:
        start: parameters before the step.
    """

    def __init__(
        self, whole: Reference, recorder: Recorder[tuple[str, int]], start: dict[str, Tensor]
    ) -> None:
        self.start, self.dtype = start, whole.dtype
        self.model = whole.model
        self.passes: defaultdict[str, list[Pass]] = defaultdict(list)  # by slice
        for (name, _), found in sorted(recorder.passes.items(), key=lambda item: item[0]):
            self.passes[name].append(found)
        self.edges = [
            (layer.name, number, source)
            for layer in self.model.layers
            for number, source in enumerate(layer.sources)
        ]

    def loss(self, slices: int) -> Tensor:
        """Of the step's first slices, summed over examples."""
        found = self.passes[self.model.layers[-1].name][:slices]
        return sum((one.output for one in found if one.output is not None), torch.zeros(()))

    def output(self, layer: str) -> Tensor:
        """(examples, ...)."""
        return torch.cat([one.output for one in self.passes[layer] if one.output is not None])

    def data(self, layer: str, source: str) -> Tensor:
        """The step's images or labels, as a layer reads them."""
        number = self.model.layers[self.model.index[layer]].sources.index(source)
        return torch.cat([one.inputs[number] for one in self.passes[layer]])

    def returned(self, source: str, layer: str = "") -> Tensor:
        """The gradient that one reader of a layer, or all, pass back to it: (examples, ...)."""
        total = torch.zeros((), dtype=self.dtype)
        for reader, number, read in self.edges:
            if read == source and layer in ("", reader):
                total = total + torch.cat(
                    [
                        one.input_gradients.get(number, torch.zeros_like(one.inputs[number]))
                        for one in self.passes[reader]
                    ]
                )
        return total

    def gradient(self, layer: str, name: str) -> Tensor:
        """What one layer contributes to a parameter's gradient, until its first update."""
        sized = self.model.layers[self.model.index[layer]]
        number = [spec.name for spec in sized.specs].index(name)
        zeros = torch.zeros(sized.specs[number].shape, dtype=self.dtype)
        return self.passes[layer][0].parameter_gradients.get(number, zeros)

    def summed(self, parameter: str) -> Tensor:
        """A parameter's gradient, of all layers that use it."""
        total = torch.zeros((), dtype=self.dtype)
        for sized in self.model.layers:
            for spec in sized.specs:
                if parameter in (spec.tied_to, f"{sized.name}.{spec.name}"):
                    total = total + self.gradient(sized.name, spec.name)
        return total


class _Comparison:
    """Goes through what was recorded in the order in which it was made."""

    def __init__(
        self,
        program: Program,
        recorded: list[tuple[RankInterpreter, Recording]],
        expected: _Expected,
        tolerance: float,
    ) -> None:
        self.program, self.model, self.recorded = program, program.model, recorded
        self.expected, self.tolerance = expected, tolerance
        self.nodes = {node.key: node for node in _nodes(program)}
        self.halves: defaultdict[str, list[_Node]] = defaultdict(list)  # by layer of the model
        for node in self.nodes.values():
            self.halves[node.layer].append(node)

    def faults(self) -> Iterator[str]:
        """Everything that is wrong, in the order in which it came to be."""
        names = [layer.name for layer in self.model.layers]
        updated = [n for n in names if self.halves[n][0].segment.update_chunks]
        once = [n for n in names if n not in updated]
        for name in names:
            yield from self.forward(name)
        for name in reversed(updated):
            yield from self.backward(name)
        yield from self.reductions(updated)
        for name in updated:  # of what follows the first update, too
            for found in self.forward(name, later=True):
                yield f"{found}, after the step's first update"
        for name in reversed(once):
            yield from self.backward(name)
        yield from self.reductions(once)

    # -- forward ------------------------------------------------------------------------------

    def forward(self, layer: str, *, later: bool = False) -> Iterator[str]:
        """What a layer reads, and what it gives."""
        for node in self.halves[layer]:
            uses = list(self.uses(node, later=later))
            yield from self.what_is_read(node, uses)
            yield from self.what_is_borrowed(node)
            if node.sized.layer.is_loss:
                yield from self.the_loss(node, uses, later=later)
            elif node.partial:
                yield from self.the_sum(node, uses)
            elif node.compared:
                expected = self.expected.output(layer)
                for use in uses:
                    assert use.seen.output is not None
                    yield from self.differs(
                        use.seen.output, cut_out(expected, use.output_box()), expected,
                        f"{layer}: its output on rank {use.rank.rank} differs", "forward",
                    )  # fmt: skip

    def what_is_read(self, node: _Node, uses: list[_Use]) -> Iterator[str]:
        for number, source in enumerate(node.sources):
            if source is None:
                name = "the data"
                expected = self.expected.data(node.layer, node.sized.sources[number])
            else:
                name, expected = self.nodes[source].name, self.given(self.nodes[source])
            reader = node.layer if source is None or name != node.layer else node.name
            for use in uses:
                if not is_empty(use.layer.reads[number]):
                    yield from self.differs(
                        use.seen.inputs[number], cut_out(expected, use.input_box(number)), expected,
                        f"what {reader} reads on rank {use.rank.rank} differs from what {name} "
                        "gives", "exchange",
                    )  # fmt: skip

    def what_is_borrowed(self, node: _Node) -> Iterator[str]:
        for rank, _ in self.recorded:
            parameters = rank.parameters.get(node.segment.index)
            if parameters is None:
                continue
            for number, borrowed in parameters.borrowed.items():
                slot = parameters.every[number]
                if slot.layer.name != node.name:
                    continue
                owner = self.expected.start[slot.spec.tied_to]
                yield from self.differs(
                    borrowed, slot.of(owner), owner,
                    f"what {node.layer} borrows of {slot.spec.tied_to} on rank {rank.rank} differs",
                    "exchange",
                )  # fmt: skip

    def the_loss(self, node: _Node, uses: list[_Use], *, later: bool) -> Iterator[str]:
        total = sum((u.seen.output.sum() for u in uses if u.seen.output is not None), 0.0)
        if all(use.seen.output is not None for use in uses):
            slices = len(self.expected.passes[node.layer]) if later else 1
            predictions = self.program.global_batch * self.model.predictions
            expected = self.expected.loss(slices) / predictions
            yield from self.differs(
                torch.as_tensor(total), expected, expected, f"{node.layer}: it differs", "forward"
            )

    def the_sum(self, node: _Node, uses: list[_Use]) -> Iterator[str]:
        expected = self.expected.output(node.layer)
        total = torch.zeros_like(expected)
        rows = 0
        for use in uses:
            assert use.seen.output is not None
            put_in(total, use.output_box(), use.seen.output, add=True)
            rows = max(rows, use.output_box()[0][-1][1])
        yield from self.differs(
            total[:rows], expected[:rows], expected,
            f"{node.layer}: its output, summed over its ranks, differs", "forward",
        )  # fmt: skip

    def given(self, node: _Node) -> Tensor:
        """What a node gives to those that read it: (examples, ...)."""
        if node.compared:
            return self.expected.output(node.layer)
        return self.assembled(node)

    def assembled(self, node: _Node) -> Tensor:
        """What the ranks' parts of a node's output are together; zeros where nobody has one."""
        total = torch.zeros(self.program.global_batch, *node.sized.output.shape).double()
        for use in self.uses(node, later=True):
            if use.seen.output is not None:
                put_in(total, use.output_box(), use.seen.output.double(), add=False)
        return total

    # -- backward -----------------------------------------------------------------------------

    def backward(self, layer: str) -> Iterator[str]:
        """What a layer gets back, and what it passes on."""
        for node in reversed(self.halves[layer]):
            if not node.sized.layer.is_loss:
                yield from self.what_comes_back(node)
        for source in self.trained_sources(layer):
            yield from self.cut_off(source)
        everything = [self.passed_back(layer, source) for source in self.trained_sources(layer)]
        sized = self.model.layers[self.model.index[layer]]
        # one scale for all: a bias before a norm has no gradient but rounding
        passed = [_largest(expected) for _, _, expected in everything]
        gradients = {x: self.expected.gradient(layer, x.name) for x in sized.specs}
        largest = max([_scale(gradients, trained=True), *passed])
        for source, found, expected in everything:
            for where, gradient, rows in found:
                yield from self.differs(
                    gradient[:rows], expected[:rows], torch.tensor(largest),
                    f"{layer}: the gradient of its input {source}{where} differs", "backward",
                )  # fmt: skip
        for spec, expected in gradients.items():
            scale, what = largest, "the gradient of"
            if spec.update is not None:
                scale, what = _scale(gradients, trained=False), "what it finds in the batch for"
            for where, gradient in self.contributions(layer, spec.name, expected):
                yield from self.differs(
                    gradient, expected, torch.tensor(scale),
                    f"{layer}: {what} its {spec.name}{where} differs", "backward",
                )  # fmt: skip

    def trained_sources(self, layer: str) -> list[str]:
        """The layers that it reads and that are, or read, something trained."""
        sources = dict.fromkeys(self.model.layers[self.model.index[layer]].sources)
        return [
            source for source in sources
            if source not in (INPUT, LABELS) and self.expected.passes[source][0].needs_grad
        ]  # fmt: skip

    def cut_off(self, layer: str) -> Iterator[str]:
        """A layer, or one before it, whose output autograd cannot follow to what it read."""
        without = [
            use for node in self.halves[layer] for use in self.uses(node) if not use.seen.needs_grad
        ]
        for use in without:
            if use.seen.reads_trained:
                yield (
                    f"{layer}: its output on rank {use.rank.rank} passes no gradient back in "
                    "step 1 (backward)"
                )
        for source in self.trained_sources(layer) if without else ():
            yield from self.cut_off(source)

    def what_comes_back(self, node: _Node) -> Iterator[str]:
        uses = [use for use in self.uses(node) if use.seen.needs_grad]
        if not uses:
            return
        if node.compared:
            expected = self.expected.returned(node.layer)
        else:
            expected = self.returned_by_readers(node)
        for boundary in self.program.boundaries[1:]:
            if (boundary.producer, boundary.layer) == node.key and not boundary.parameter:
                yield from self.messages_back(node, boundary, expected)
        readers = " and ".join(
            dict.fromkeys(
                reader.name if reader.layer == node.layer else reader.layer
                for reader, _ in self.readers(node)
            )
        )
        for use in uses:
            assert use.seen.output is not None
            got = use.seen.output_gradient
            yield from self.differs(
                torch.zeros_like(use.seen.output) if got is None else got,
                cut_out(expected, use.output_box()), expected,
                f"the gradient of {node.name} on rank {use.rank.rank} differs from what {readers} "
                "returns", "exchange",
            )  # fmt: skip

    def readers(self, node: _Node) -> Iterator[tuple[_Node, int]]:
        for reader in self.nodes.values():
            for number, source in enumerate(reader.sources):
                if source == node.key:
                    yield reader, number

    def returned_by_readers(self, node: _Node) -> Tensor:
        total = torch.zeros(self.program.global_batch, *node.sized.output.shape).double()
        for reader, number in self.readers(node):
            for use in self.uses(reader):
                use.add_input_gradient(number, total)
        return total

    def messages_back(self, node: _Node, boundary: Boundary, scale: Tensor) -> Iterator[str]:
        """Each message's gradient, as it was made and as it came back."""
        consumer = self.program.segments[boundary.consumer]
        by_rank = {rank.rank: recording for rank, recording in self.recorded}
        for rank, recording in self.recorded:
            for (index, chunk, message), piece in recording.returned.items():
                if index != boundary.index or chunk >= _first_chunks(consumer):
                    continue
                reader = rank.replica * self.program.ranks_per_replica + message.target
                part = consumer.parts[message.target]
                made = torch.zeros(part.import_shape(boundary.number), dtype=piece.dtype)
                for at, number in consumer.imports[boundary.number].readers:
                    seen = by_rank[reader].passes.passes[consumer.index, at, chunk]
                    box = part.layers[at].reads[number]
                    if number in seen.input_gradients and not is_empty(box):
                        rows = ((0, len(made)),)
                        inside = (rows, *within(box, part.imports[boundary.number]))
                        put_in(made, inside, seen.input_gradients[number], add=True)
                where = (
                    f"on rank {reader}" if reader == rank.rank
                    else f"from rank {reader} to rank {rank.rank}"
                )  # fmt: skip
                yield from self.differs(
                    piece, cut_out(made, message.given), scale,
                    f"the gradient that {boundary.reader} returns to {node.name} {where} differs",
                    "exchange",
                )  # fmt: skip

    def passed_back(
        self, layer: str, source: str
    ) -> tuple[str, list[tuple[str, Tensor, int]], Tensor]:
        """The gradient of what a layer reads of another: as its ranks have it in words, values and
        examples; and as one device has it."""
        expected = self.expected.returned(source, layer)
        found: dict[str, tuple[Tensor, int]] = {}
        for node in self.halves[layer]:
            for number, key in enumerate(node.sources):
                if key is None or self.nodes[key].layer != source:
                    continue
                for use in self.uses(node):
                    where = _where(use)
                    total, rows = found.get(where) or (torch.zeros_like(expected), 0)
                    use.add_input_gradient(number, total)
                    found[where] = total, max(rows, use.input_box(number)[0][-1][1])
        return source, [(where, total, rows) for where, (total, rows) in found.items()], expected

    def contributions(
        self, layer: str, name: str, expected: Tensor
    ) -> Iterable[tuple[str, Tensor]]:
        """A parameter's gradient from this layer, in words where and what."""
        found: dict[str, Tensor] = {}
        for node in self.halves[layer]:
            for use in self.uses(node):
                for number, tile in enumerate(use.layer.tiles):
                    if tile.parameter != name:
                        continue
                    total = found.setdefault(_where(use), torch.zeros_like(expected))
                    gradient = use.seen.parameter_gradients.get(number)
                    if gradient is not None:
                        put_in(total, tile.box, gradient, add=True)
        return found.items()

    # -- reductions ---------------------------------------------------------------------------

    def reductions(self, layers: list[str]) -> Iterator[str]:
        """The summed gradients with which each rank updates its own parameters."""
        for rank, recording in self.recorded:
            for index, found in recording.updated.items():
                parameters = rank.parameters[index]
                if self.nodes[index, 0].layer not in layers:
                    continue
                for slot, low, high, gradient in parameters.pieces(found):
                    whole = self.expected.summed(slot.name)
                    expected = slot.of(whole).flatten()[low:high]
                    users = [
                        f"{sized.name}.{spec.name}"
                        for sized in self.model.layers
                        for spec in sized.specs if spec.tied_to == slot.name
                    ]  # fmt: skip
                    tied = f" (tied to {', '.join(users)})" if users else ""
                    name = slot.layer.name
                    alike = {
                        spec: self.expected.summed(f"{name}.{spec.name}")
                        for spec in slot.layer.specs
                    }
                    largest = _scale(alike, trained=slot.trained)
                    what = "the gradient of" if slot.trained else "what is found for"
                    yield from self.differs(
                        gradient, expected, torch.tensor(largest),
                        f"{name}: {what} {slot.name}{tied}, summed over those "
                        f"who share it, differs on rank {rank.rank}", "reduction",
                    )  # fmt: skip

    # -- what all of these need ---------------------------------------------------------------

    def uses(self, node: _Node, *, later: bool = False) -> Iterator[_Use]:
        """What the ranks recorded of a node; until its first update, or after it, ``later``."""
        program, segment = self.program, node.segment
        chunks = segment.chunks if later else _first_chunks(segment)
        for rank, recording in self.recorded:
            part = segment.parts.get(rank.local_rank)
            for chunk in range(chunks) if part else ():
                seen = recording.passes.passes.get((*node.key, chunk))
                if seen is None or seen.output is None:  # the step has ended before
                    continue
                base = chunk * segment.chunk
                base += rank.replica * (program.global_batch // program.replicas)
                assert part is not None
                yield _Use(rank, part, node, chunk, base, seen)

    def differs(
        self, found: Tensor, expected: Tensor, scale: Tensor, what: str, kind: str
    ) -> Iterator[str]:
        a, b = found.detach().double(), expected.detach().double()
        same = (a == b) | (a.isnan() & b.isnan())
        worst = _largest(torch.where(same, 0.0, a - b))
        error = worst / max(_largest(scale), 1e-300)
        if not error <= self.tolerance:
            yield f"{what} by {error:.1e} in step 1 ({kind})"


def _nodes(program: Program) -> Iterator[_Node]:
    summed = {(b.producer, b.layer) for b in program.boundaries if b.summed}
    for segment in program.segments:
        for position, sized in enumerate(segment.layers):
            sources: list[tuple[int, int] | None] = []
            for source in segment.sources[position]:
                if source >= 0:
                    sources.append((segment.index, source))
                    continue
                found = segment.imports[-1 - source]
                boundary = program.boundaries[found.boundary] if found.boundary > 0 else None
                sources.append((boundary.producer, boundary.layer) if boundary else None)
            key = (segment.index, position)
            compared = not sized.half_of or any(source in summed for source in sources)
            yield _Node(
                segment, position, sized.model_layer, tuple(sources), key in summed, compared
            )


def _first_chunks(segment: Segment) -> int:
    return segment.update_chunks or segment.chunks


def _where(use: _Use) -> str:
    """Replicated ranks have all of a gradient each, others a part of it."""
    return f" on rank {use.rank.local_rank}" if use.node.segment.replicated else ""


def _scale(gradients: Mapping[ParameterSpec, Tensor], *, trained: bool) -> float:
    """The largest of what is trained, or of what is found for running averages."""
    found = [_largest(x) for spec, x in gradients.items() if (spec.update is None) == trained]
    return max(found, default=0.0)


def _largest(x: Tensor) -> float:
    if not x.numel():
        return 0.0
    found = float(x.detach().double().abs().max())
    return found if found == found else float("inf")
