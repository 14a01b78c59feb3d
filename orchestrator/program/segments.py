"""Segments, what crosses between them, which gradients are summed: a program's static half.

A segment is a run of layers that every rank computes without talking to anyone. It ends where a
rank needs something that another has, where something is sent, where the stage or the chunk
changes, and before a layer whose gradients fill a reduction *bucket*, so that the reduction can
start while the backward goes on. What a segment reads from others are its *imports*, what others
read of it are its *exports*. Before each import lies a *boundary* with its messages:

    producer's parts                 consumer's needs               messages
    rank 0: examples x 0:128    ╳    rank 0: examples x 0:256   ->  0 -> 1, 1 -> 0 and two local
    rank 1: examples x 128:256       rank 1: examples x 0:256

In a chain of layers every segment has one import and one export, and boundary n lies before
segment n. Boundary 0 stands for the model's input, which every rank loads for itself.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from orchestrator.errors import InputError
from orchestrator.models.box import Box, Shape, hull, is_empty, shape_of, volume
from orchestrator.models.parameter import Tile
from orchestrator.models.ranges import Ranges, intersect, local, normalise, shift, size
from orchestrator.models.sized import LayerPart, SizedLayer
from orchestrator.models.value import INPUT, LABELS, Value
from orchestrator.program.boundary import Boundary, Message
from orchestrator.program.placement import FROM_INPUT, FROM_LABELS, PlacedLayer, Placement

# A reduction takes about this much at once: small enough to start early, large enough that
# latency (0.3 to 0.5 ms over gloo, microseconds over NCCL) does not matter beside it.
BUCKET_BYTES = 4 * 2**20


class Import(NamedTuple):
    """A value that a segment reads from elsewhere.

    Args:
        value: what one example of it is, whole.
        source: name of the layer that makes it, or ``input``, or ``labels``.
        boundary: number of the boundary that it crosses, from 1; -1 for data.
        readers: the layers of the segment that read it, by position, and which of their inputs.
        trained: it was computed from something that is trained, so its gradient goes back.
    """

    value: Value
    source: str
    boundary: int
    readers: tuple[tuple[int, int], ...]
    trained: bool


class SegmentPart(NamedTuple):
    """One rank's share of a segment.

    Args:
        layers: in order; the same object for ranks that differ in their examples only.
        share: number of ``layers`` among those of this segment.
        sizes: of each layer: values it reads and computes, parameters, tiles.
        imports: the box of each import.
        batch: examples within the chunk.
        examples: of each chunk.
        parameters: values held and updated, those that are not trained included.
        borrowed: values of parameters that are another layer's.
        macs_per_example: multiply-adds for one example, forward.
        import_rows, rows: of each import and each layer's output; None where all have one row for
            each example.
    """

    layers: tuple[LayerPart, ...]
    share: int
    sizes: tuple[tuple[int, int, int, int], ...]
    imports: tuple[Box, ...]
    batch: Ranges
    examples: int
    parameters: int
    borrowed: int
    macs_per_example: int
    import_rows: tuple[Ranges, ...] | None = None
    rows: tuple[Ranges, ...] | None = None

    @property
    def trained(self) -> int:
        """Of the values held and updated, those that are trained."""
        return self.parameters - sum(layer.running_values for layer in self.layers)

    def import_box(self, number: int) -> Box:
        """Rows and box of an import."""
        rows = self.import_rows[number] if self.import_rows else self.batch
        return (rows, *self.imports[number])

    def output_box(self, layer: int) -> Box:
        """Rows and box of a layer's output."""
        return (self.rows[layer] if self.rows else self.batch, *self.layers[layer].out)

    def import_shape(self, number: int) -> Shape:
        """Shape of an import's tensor: examples, then the sizes of its box."""
        return shape_of(self.import_box(number))

    def output_shape(self, layer: int) -> Shape:
        """Shape of a layer's output tensor: examples, then the sizes of its box."""
        return shape_of(self.output_box(layer))


@dataclass(frozen=True)
class Segment:
    """A run of layers between two exchanges.

    Args:
        index: position in the order of segments.
        stage: the pipeline stage it is in.
        chunk: examples at once.
        chunks: how many chunks one replica's share of the global batch is.
        parts: by rank within one replica.
        update_chunks: chunks after which its weights are updated; 0 for once a step.
        sources: for each layer and input: the position of the layer of this segment that makes it,
            or -1 - the position of the import.
        imports: what it reads from other segments and from the data.
        exports: positions of the layers whose output other segments read.
        needs_input_grad: by layer, whether an input was computed from something that is trained.
        replicated: every rank computes all of it.
    """

    index: int
    stage: int
    chunk: int
    chunks: int
    parts: dict[int, SegmentPart]
    update_chunks: int
    sources: tuple[tuple[int, ...], ...]
    imports: tuple[Import, ...]
    exports: tuple[int, ...]
    needs_input_grad: tuple[bool, ...]
    replicated: bool

    @cached_property
    def layers(self) -> tuple[SizedLayer, ...]:
        """The layers, whole."""
        return tuple(part.sized for part in next(iter(self.parts.values())).layers)

    @property
    def reader(self) -> str:
        """The first layer, which names the segment."""
        return self.layers[0].name

    @cached_property
    def trained(self) -> bool:
        """Whether gradients reach it: something in it, or before it, is trained."""
        return any(self.needs_input_grad) or any(layer.has_weights for layer in self.layers)

    @property
    def has_loss(self) -> bool:
        """Whether it ends in the loss."""
        return any(layer.layer.is_loss for layer in self.layers)

    def microbatch_of(self, chunk: int, n_microbatches: int) -> int:
        """The microbatch that a chunk belongs to."""
        return chunk // (self.chunks // n_microbatches)


@dataclass(frozen=True)
class Bucket:
    """Parameters of one segment that one group of ranks holds alike and updates together.

    Args:
        ranks: the group within one replica, ascending; each of its ranks has a part of the
            gradient.
        parameters: values.
    """

    segment: int
    ranks: tuple[int, ...]
    parameters: int


# -- cutting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """The static half of a program.

    Args:
        segments, boundaries: see there.
        buckets: by segment, the groups that share its parameters; () for one without.
    """

    segments: tuple[Segment, ...]
    boundaries: tuple[Boundary, ...]
    buckets: tuple[tuple[Bucket, ...], ...]


def leaving(
    segments: Sequence[Segment], boundaries: Sequence[Boundary]
) -> tuple[tuple[Boundary, ...], ...]:
    """By segment, the boundaries over which its outputs leave it."""
    found: list[list[Boundary]] = [[] for _ in segments]
    for boundary in boundaries:
        if boundary.producer >= 0 and not boundary.parameter:
            found[boundary.producer].append(boundary)
    return tuple(map(tuple, found))


def cut(placement: Placement, itemsize: int, replicas: int, most: int) -> Cut:
    """Cut the placed layers into segments, and find what crosses between them.

    Args:
        most: messages in all.

    Raises:
        TooManyMessages: there would be more.
    """
    layers, examples = placement.layers, placement.microbatch * placement.n_microbatches
    parts = [_layer_parts(layer) for layer in layers]
    starts = [*_starts(layers, parts, itemsize, replicas), len(layers)]
    segment_of = [
        index for index, (start, end) in enumerate(pairwise(starts)) for _ in range(start, end)
    ]
    exported: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for i, layer in enumerate(layers):
        for source in layer.sources:
            if source >= 0 and segment_of[source] != segment_of[i]:
                exported[segment_of[source]][source] = None
    trained: list[bool] = []
    for layer in layers:
        trained.append(layer.sized.has_weights or _any_trained(layer, trained))
    segments: list[Segment] = []
    crossings: list[_Crossing] = []
    for index, (start, end) in enumerate(pairwise(starts)):
        first = layers[start]
        sources, imports = _imports(layers, start, end, trained)
        numbered = []
        for number, (source, found) in enumerate(imports):
            boundary = len(crossings) + 1 if source >= 0 else -1
            if source >= 0:
                crossings.append(_Crossing(source, segment_of[source], index, number, found))
            numbered.append(found._replace(boundary=boundary))
        segments.append(
            Segment(
                index,
                first.stage,
                first.chunk,
                chunks=examples // first.chunk,
                parts=_segment_parts(layers[start:end], parts[start:end], imports),
                update_chunks=first.update // first.chunk,
                sources=sources,
                imports=tuple(numbered),
                exports=tuple(sorted(source - start for source in exported[index])),
                needs_input_grad=tuple(_any_trained(layer, trained) for layer in layers[start:end]),
                replicated=first.replicated,
            )
        )
    boundaries = [Boundary(0, -1, 0, 0, 0, segments[0].reader, 1, (), (), summed=False)]
    for number, crossing in enumerate(crossings, 1):
        boundaries.append(_boundary(number, crossing, segments, layers, starts, most))
        most -= sum(len(turn) for turn in boundaries[-1].messages)
    for layer in layers:
        for name in sorted(layer.sized.tied):
            boundaries.append(_tie(len(boundaries), layer.sized, name, segments, most))
    return Cut(tuple(segments), tuple(boundaries), _buckets(segments))


def _any_trained(layer: PlacedLayer, trained: Sequence[bool]) -> bool:
    """Whether an input was computed from something that is trained."""
    return any(source >= 0 and trained[source] for source in layer.sources)


class _Crossing(NamedTuple):
    """A placed layer whose output a later segment imports."""

    source: int
    producer: int
    consumer: int
    number: int
    found: Import


def _imports(
    layers: Sequence[PlacedLayer], start: int, end: int, trained: Sequence[bool]
) -> tuple[tuple[tuple[int, ...], ...], list[tuple[int, Import]]]:
    """Where each layer's inputs come from, and the imports with their placed sources.

    The labels come last, whatever reads them.
    """
    readers: dict[int, list[tuple[int, int]]] = {}
    for i in range(start, end):
        for number, source in enumerate(layers[i].sources):
            if not start <= source < end:
                readers.setdefault(source, []).append((i - start, number))
    order = sorted(readers, key=lambda source: source == FROM_LABELS)
    imports = []
    for source in order:
        name = {FROM_INPUT: INPUT, FROM_LABELS: LABELS}.get(source) or layers[source].sized.name
        (at, number), *_ = readers[source]
        value = layers[start + at].sized.inputs[number]
        reading = tuple(readers[source])
        imports.append((source, Import(value, name, -1, reading, source >= 0 and trained[source])))
    sources = tuple(
        tuple(
            source - start if start <= source < end else -1 - order.index(source)
            for source in layers[i].sources
        )
        for i in range(start, end)
    )
    return sources, imports


LayerParts = dict[int, LayerPart]  # by rank; one object for those that share their boxes


def _segment_parts(
    placed: Sequence[PlacedLayer], by_layer: list[LayerParts], imports: list[tuple[int, Import]]
) -> dict[int, SegmentPart]:
    """By rank; what follows from the boxes is worked out once for those that share them."""
    groups: dict[tuple[int, ...], dict[int, Ranges]] = {}
    first = placed[0]
    for rank, part in first.parts.items():
        same = tuple([id(parts[rank]) for parts in by_layer])
        groups.setdefault(same, {})[rank] = part.batch
    grouped = any(layer.sized.layer.has_rows for layer in placed)
    found: dict[int, SegmentPart] = {}
    for share, batches in enumerate(groups.values()):
        any_rank = next(iter(batches))
        layers = tuple([parts[any_rank] for parts in by_layer])
        sizes = tuple([_sizes(layer) for layer in layers])
        boxes = tuple(
            [
                _import_box([layers[at].reads[number] for at, number in one.readers])
                for _, one in imports
            ]
        )
        borrowed = sum([_borrowed(layer) for layer in layers])
        parameters = sum([layer.parameters for layer in layers]) - borrowed
        macs = sum([layer.macs_per_example for layer in layers])
        for rank, batch in batches.items():
            rows = _rows(placed, rank, imports) if grouped else (None, None)
            found[rank] = SegmentPart(
                layers, share, sizes, boxes, batch, size(batch), parameters, borrowed, macs, *rows
            )
    return {rank: found[rank] for rank in first.parts}


def _rows(
    placed: Sequence[PlacedLayer], rank: int, imports: list[tuple[int, Import]]
) -> tuple[tuple[Ranges, ...], tuple[Ranges, ...]]:
    """Rows of a rank's imports, and of its layers' outputs."""
    parts = [layer.parts[rank] for layer in placed]
    read = []
    for _, found in imports:
        rows = [parts[at].batches or (parts[at].batch,) * (n + 1) for at, n in found.readers]
        wanted = [mine[n] for mine, (_, n) in zip(rows, found.readers, strict=True)]
        read.append(normalise(r for ranges in wanted for r in ranges))
    return tuple(read), tuple([part.rows or part.batch for part in parts])


def _borrowed(layer: LayerPart) -> int:
    tied = layer.sized.tied
    return sum(volume(tile.box) for tile in layer.tiles if tile.parameter in tied) if tied else 0


def _sizes(layer: LayerPart) -> tuple[int, int, int, int]:
    values = sum([volume(box) for box in layer.reads])
    return values, volume(layer.out), layer.parameters, len(layer.tiles)


def _import_box(boxes: list[Box]) -> Box:
    """What all readers of an import need of it."""
    return boxes[0] if len(boxes) == 1 else hull(boxes) or boxes[0]


def _layer_parts(layer: PlacedLayer) -> LayerParts:
    found: LayerParts = {}
    groups: dict[tuple[Box, tuple[Box, ...]], list[int]] = {}
    for rank, part in layer.parts.items():
        groups.setdefault((part.out, part.reads), []).append(rank)
    for (out, reads), group in groups.items():
        found |= dict.fromkeys(group, layer.sized.part(out, reads))
    return found


def _starts(
    layers: Sequence[PlacedLayer], parts: list[LayerParts], itemsize: int, replicas: int
) -> list[int]:
    """Positions of the layers at which a segment begins."""
    ends = _ends(layers)
    starts = []
    waiting = 0
    sharing: tuple[int, ...] = ()  # of the layers with weights of the segment behind
    for i in range(len(layers) - 1, -1, -1):
        if layers[i].sized.has_weights:
            holders = () if layers[i].replicated else _holders(parts[i])
            if sharing and holders != sharing and i + 1 not in starts:
                starts.append(i + 1)
                waiting = 0
            sharing = holders
        shares = {id(part): part for part in parts[i].values()}
        copies = len(parts[i]) if not layers[i].replicated else len(shares)
        summed = replicas > 1 or len(shares) < copies
        if layers[i].sized.has_weights and summed:
            waiting += itemsize * max([_reduced(p) for p in shares.values()])
        if i == 0 or waiting >= BUCKET_BYTES or i in ends:
            starts.append(i)
            waiting = 0
            sharing = ()
    return starts[::-1]


def _holders(parts: LayerParts) -> tuple[int, ...]:
    """By rank, a number that ranks with the same parameters have in common.

    A segment's parameters are summed together, so they must be shared by the same ranks: under
    ``split: token`` each rank has its own rows of a position embedding, and all of what follows.

    Raises:
        InputError: a layer of which ranks share one parameter and not another.
    """
    numbers: dict[int, int] = {}  # by part
    by_tiles: dict[tuple[Tile, ...], int] = {}
    by_tile: dict[Tile, int] = {}
    for part in parts.values():
        if id(part) in numbers:
            continue
        owned = _owned(part)
        number = numbers[id(part)] = by_tiles.setdefault(owned, len(by_tiles))
        for tile in owned:
            if by_tile.setdefault(tile, number) != number:
                raise InputError(
                    f"{part.sized.name}: ranks that hold the same of {tile.parameter} differ in "
                    "its other parameters, so their gradients cannot be summed together",
                    remedy=f"a layer of its own for {tile.parameter}",
                )
    return tuple([numbers[id(part)] for part in parts.values()])


def _reduced(part: LayerPart) -> int:
    """Values that a rank's share of a layer may add to a reduction: with a bias for each channel,
    since where the input is split one rank has it for the others."""
    output = part.sized.output
    if "channel" not in output.axes or all(x.name != "bias" for x in part.sized.specs):
        return part.parameters
    bias = sum([volume(tile.box) for tile in part.tiles if tile.parameter == "bias"])
    return part.parameters - bias + size(output.along(part.out, "channel"))


def _ends(layers: Sequence[PlacedLayer]) -> set[int]:
    """Layers that cannot be in one segment with the one before: the two are computed in other ways,
    this one reads what has to be exchanged, or the one before gives it."""
    found = {i for i in range(1, len(layers)) if not _alike(layers[i - 1], layers[i])}
    for i, layer in enumerate(layers):
        for number, source in enumerate(layer.sources):
            if source >= 0 and _differs(layers[source], layer, number):
                found |= {i, source + 1}
    return found


def _alike(before: PlacedLayer, after: PlacedLayer) -> bool:
    """Whether the same ranks compute both layers, of the same examples, in the same turns."""
    a, b = before, after
    if (a.stage, a.chunk, a.update, a.replicated) != (b.stage, b.chunk, b.update, b.replicated):
        return False
    if a.parts is b.parts:
        return True
    return a.parts.keys() == b.parts.keys() and all(
        part.batch == b.parts[rank].batch for rank, part in a.parts.items()
    )


class TooManyMessages(Exception):
    """More lie between two segments than fit into memory; the argument says how many at least."""


def _differs(before: PlacedLayer, after: PlacedLayer, number: int) -> bool:
    """Whether a value must be exchanged or regrouped between its layer and input ``number`` of
    another."""
    if before.partial or not _alike(before, after):
        return True
    for rank, part in before.parts.items():
        reader = after.parts[rank]
        wanted = reader.batches[number] if reader.batches else reader.batch
        if part.out != reader.reads[number] or (part.rows or part.batch) != wanted:
            return True
    return False


# -- messages -------------------------------------------------------------------------------------


def _boundary(
    index: int,
    crossing: _Crossing,
    segments: Sequence[Segment],
    layers: Sequence[PlacedLayer],
    starts: Sequence[int],
    most: int,
) -> Boundary:
    before, after = segments[crossing.producer], segments[crossing.consumer]
    position = crossing.source - starts[crossing.producer]
    turns = before.chunk // after.chunk
    has = {rank: part.output_box(position) for rank, part in before.parts.items()}
    needs = {
        rank: part.import_box(crossing.number)
        for rank, part in after.parts.items()
        if not is_empty(part.imports[crossing.number])
    }
    at, _ = crossing.found.readers[0]
    wanted = [
        {rank: (shift(box[0], turn * after.chunk), *box[1:]) for rank, box in needs.items()}
        for turn in range(turns)
    ]
    messages = [
        tuple(_messages(turn, has, now, _copies(before), {}, most))
        for turn, now in enumerate(wanted)
    ]
    gradients = messages
    if before.replicated or after.replicated:
        gradients = [
            tuple(_messages(turn, has, now, {}, _copies(after), most))
            for turn, now in enumerate(wanted)
        ]
    return Boundary(
        index, crossing.producer, crossing.consumer, position, crossing.number,
        after.layers[at].name, turns, tuple(messages), tuple(gradients),
        summed=layers[crossing.source].partial,
    )  # fmt: skip


def _copies(segment: Segment) -> dict[int, tuple[int, ...]]:
    """By rank, all ranks that compute the same; {} where each computes something else."""
    ranks = tuple(segment.parts)
    return dict.fromkeys(ranks, ranks) if segment.replicated else {}


def _chosen(rank: int, peer: int, copies: dict[int, tuple[int, ...]]) -> bool:
    """Whether, of the ranks that compute the same as ``rank``, this one serves ``peer``: itself if
    it is one of them, else they take turns."""
    same = copies.get(rank)
    if not same:
        return True
    return rank == (peer if peer in same else same[peer % len(same)])


def _messages(
    turn: int,
    has: dict[int, Box],
    wanted: dict[int, Box],
    sources: dict[int, tuple[int, ...]],
    targets: dict[int, tuple[int, ...]],
    most: int,
) -> list[Message]:
    """Every box that a rank of the producer has and a rank of the consumer needs in this turn.

    A sender goes round its peers starting behind itself, so that nobody is everybody's first.

    Args:
        has, wanted: by rank, examples and box.
        sources, targets: ranks that compute the same, of which one is enough.
        most: messages in all.

    Raises:
        TooManyMessages: there would be more.
    """
    needs: dict[Box, list[int]] = {}  # ranks that need the same share one
    for rank, box in wanted.items():
        needs.setdefault(box, []).append(rank)
    boxes = sorted(needs, key=lambda box: box[0][0][0])  # by first example
    starts = [box[0][0][0] for box in boxes]
    ends = list(accumulate([box[0][-1][1] for box in boxes], max))  # up to each of them
    found: list[Message] = []
    for source, mine in has.items():
        low, high = mine[0][0][0], mine[0][-1][1]
        pieces: dict[int, tuple[Box, Box, int]] = {}  # by target
        for box in boxes[bisect_right(ends, low) : bisect_left(starts, high)]:
            piece = _piece(mine, box)
            if piece is not None:
                pieces.update(dict.fromkeys(needs[box], piece))
        if len(found) + len(pieces) > most:
            raise TooManyMessages(len(found) + len(pieces))
        ranks = sorted(pieces)
        behind = bisect_right(ranks, source)
        for target in ranks[behind:] + ranks[:behind]:
            if _chosen(source, target, sources) and _chosen(target, source, targets):
                found.append(Message(turn, source, target, *pieces[target]))
    return found


def _piece(has: Box, needed: Box) -> tuple[Box, Box, int] | None:
    """Where what both boxes hold lies in the one and in the other, and how many values it is."""
    taken, given, number = [], [], 1
    for a, b in zip(has, needed, strict=True):
        overlap = _overlap(a, b)
        if not overlap.number:
            return None
        taken.append(overlap.taken)
        given.append(overlap.given)
        number *= overlap.number
    return tuple(taken), tuple(given), number


class _Overlap(NamedTuple):
    """Positions of what two ranges share, in the one and in the other, and how many they are."""

    taken: Ranges
    given: Ranges
    number: int


# Pairs of ranks meet in few ways, and every boundary between layers that are split alike is alike.
@lru_cache(maxsize=65_536)
def _overlap(has: Ranges, needed: Ranges) -> _Overlap:
    both = intersect(has, needed)
    return _Overlap(local(both, has), local(both, needed), size(both))


# -- parameters -----------------------------------------------------------------------------------


def _tie(
    index: int, borrower: SizedLayer, name: str, segments: Sequence[Segment], most: int
) -> Boundary:
    """The boundary over which a layer borrows another's parameter."""
    parameter = borrower.spec(name).tied_to
    owner, _, of_owner = parameter.rpartition(".")
    producer, has = _tiles(segments, owner, of_owner)
    consumer, wanted = _tiles(segments, borrower.name, name)
    # of the ranks that hold the same, one gives; it gets the gradient, and shares it with the
    # others when theirs are summed. Replicated ones are not summed, so each gets it.
    alike: defaultdict[Box, list[int]] = defaultdict(list)
    for rank, box in has.items():
        alike[box].append(rank)
    same = {rank: tuple(alike[box]) for rank, box in has.items()}
    messages = _messages(0, has, wanted, same, {}, most)
    takers, owners = (has, {}) if producer.replicated else (has, same)
    if consumer.replicated and not producer.replicated:  # all of it, so once: to one of the owners
        takers, owners = {}, {}
        for box, ranks in alike.items():
            takers[next((rank for rank in ranks if rank in wanted), ranks[0])] = box
    gradients = _messages(0, takers, wanted, owners, _copies(consumer), most)
    return Boundary(
        index, producer.index, consumer.index, 0, 0, borrower.name, 1,
        (tuple(messages),), (tuple(gradients),), summed=False, parameter=parameter,
        borrowed_as=name,
    )  # fmt: skip


def _tiles(
    segments: Sequence[Segment], layer: str, parameter: str
) -> tuple[Segment, dict[int, Box]]:
    """The segment of a layer, and by rank the box of one of its parameters."""
    for segment in segments:
        found = {
            rank: tile.box
            for rank, part in segment.parts.items()
            for one in part.layers if one.sized.name == layer
            for tile in one.tiles if tile.parameter == parameter
        }  # fmt: skip
        if found:
            return segment, found
    raise AssertionError(f"{layer}.{parameter} is nobody's")


def _owned(layer: LayerPart) -> tuple[Tile, ...]:
    """Its tiles, without those of parameters that it borrows."""
    return tuple([tile for tile in layer.tiles if tile.parameter not in layer.sized.tied])


def _buckets(segments: Iterable[Segment]) -> tuple[tuple[Bucket, ...], ...]:
    """By segment, the groups that share its parameters and have parts of their gradients."""
    found = []
    for segment in segments:
        groups: dict[tuple[object, ...], list[int]] = {}
        for rank, part in segment.parts.items():
            if part.parameters:
                key: tuple[object, ...] = tuple([_owned(x) for x in part.layers if x.tiles])
                if segment.replicated:  # each has the whole gradient
                    key = (*key, rank)
                groups.setdefault(key, []).append(rank)
        found.append(
            tuple(
                Bucket(segment.index, tuple(ranks), segment.parts[ranks[0]].parameters)
                for ranks in groups.values()
            )
        )
    return tuple(found)
