"""Segments, what crosses between them, which gradients are summed: a program's static half.

A segment is a run of layers that every rank computes without talking to anyone. It ends where a
rank needs something that another has, where the stage or the chunk changes, and before a layer
whose gradients fill a reduction *bucket*, so that the reduction can start while the backward goes
on. Between two segments lies a *boundary* with its messages:

    producers' parts                 consumers' needs               messages
    rank 0: examples x 0:128    ╳    rank 0: examples x 0:256   ->  0 -> 1, 1 -> 0 and two local
    rank 1: examples x 128:256       rank 1: examples x 0:256
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from orchestrator.models.layers import Shape, SizedLayer, Tile
from orchestrator.models.model import Model
from orchestrator.models.ranges import Ranges, intersect, local, normalise, shift, size
from orchestrator.program.placement import PlacedLayer, Placement

# A reduction takes about this much at once: small enough to start early, large enough that
# latency (0.3 to 0.5 ms over gloo, microseconds over NCCL) does not matter beside it.
BUCKET_BYTES = 4 * 2**20


class LayerPart(NamedTuple):
    """A rank's channels of one layer of a segment; ranks that differ in their examples share it.

    Args:
        sized: the layer.
        out: output channels it computes.
        reads: input channels it needs for them.
        tiles: rectangles of the weight it holds; () without weights.
        bias: output channels whose bias it holds. Where a layer is split on its input, the bias
            is with the rank that has the channel's first fan-in.
        parameters: weight and bias values held.
        macs_per_image: multiply-adds for one image, forward.
    """

    sized: SizedLayer
    out: Ranges
    reads: Ranges
    tiles: tuple[Tile, ...]
    bias: Ranges
    parameters: int
    macs_per_image: int


class SegmentPart(NamedTuple):
    """One rank's share of a segment.

    Args:
        layers: in order; the same object for ranks that differ in their examples only.
        share: number of ``layers`` among those of this segment.
        sizes: of each layer: channels it reads and computes, parameters, tiles of its weight.
        batch: examples within the chunk.
        examples: of each chunk.
        parameters: weight and bias values held.
        macs_per_image: multiply-adds for one image, forward.
    """

    layers: tuple[LayerPart, ...]
    share: int
    sizes: tuple[tuple[int, int, int, int], ...]
    batch: Ranges
    examples: int
    parameters: int
    macs_per_image: int

    @property
    def reads(self) -> Ranges:
        """Channels of the segment's input that this rank needs."""
        return self.layers[0].reads

    @property
    def out(self) -> Ranges:
        """Channels of the segment's output that this rank gives."""
        return self.layers[-1].out

    @property
    def input_shape(self) -> Shape:
        """Shape of the input tensor: examples, channels, ..."""
        first = self.layers[0].sized
        return (self.examples, size(self.reads), *first.input_shape[1:])

    @property
    def output_shape(self) -> Shape:
        """Shape of the output tensor: examples, channels, ..."""
        last = self.layers[-1].sized
        return (self.examples, size(self.out), *last.output_shape[1:])


@dataclass(frozen=True)
class Segment:
    """A run of layers between two exchanges.

    Args:
        index: position in the chain of segments.
        stage: the pipeline stage it is in.
        chunk: examples at once.
        chunks: how many chunks one replica's share of the global batch is.
        parts: by rank within one replica.
        update_chunks: chunks after which its weights are updated; 0 for once a step.
    """

    index: int
    stage: int
    chunk: int
    chunks: int
    parts: dict[int, SegmentPart]
    update_chunks: int

    @cached_property
    def layers(self) -> tuple[SizedLayer, ...]:
        """The layers, whole."""
        return tuple(part.sized for part in next(iter(self.parts.values())).layers)

    @property
    def reader(self) -> str:
        """The layer that reads the segment's input: it names the exchange before it."""
        return self.layers[0].name


Rectangle = tuple[Ranges, Ranges]
"""Examples and channels."""


class Message(NamedTuple):
    """A rectangle of an activation that one rank gives another (or itself).

    Args:
        turn: which of the consumer's chunks within the producer's chunk.
        source, target: ranks within one replica; equal for what stays local.
        taken: examples and channels, as positions in the producer's output tensor.
        given: the same, as positions in the consumer's input tensor.
        values: number of values.
    """

    turn: int
    source: int
    target: int
    taken: tuple[Ranges, Ranges]
    given: tuple[Ranges, Ranges]
    values: int


@dataclass(frozen=True)
class Boundary:
    """What crosses from segment ``index - 1`` to segment ``index``.

    Args:
        turns: consumer chunks per producer chunk.
        messages: by turn; sent in this order.
        summed: the messages are partial sums, which the receiver adds up in order of source.
    """

    index: int
    turns: int
    messages: tuple[tuple[Message, ...], ...]
    summed: bool


@dataclass(frozen=True)
class Bucket:
    """Parameters of one segment that one group of ranks holds alike and updates together.

    Args:
        ranks: the group within one replica, ascending.
        parameters: values.
    """

    segment: int
    ranks: tuple[int, ...]
    parameters: int


def cut(placement: Placement, model: Model, itemsize: int, replicas: int) -> tuple[Segment, ...]:
    """Cut the chain of placed layers into segments."""
    layers, examples = placement.layers, placement.microbatch * placement.n_microbatches
    parts = [_layer_parts(layer) for layer in layers]
    starts = _starts(layers, parts, itemsize, replicas)
    segments = []
    for index, (start, end) in enumerate(pairwise([*starts, len(layers)])):
        first = layers[start]
        segments.append(
            Segment(
                index,
                first.stage,
                first.chunk,
                chunks=examples // first.chunk,
                parts=_segment_parts(first, parts[start:end]),
                update_chunks=first.update // first.chunk,
            )
        )
    return tuple(segments)


LayerParts = dict[int, LayerPart]  # by rank; one object for those that share their channels


def _segment_parts(first: PlacedLayer, by_layer: list[LayerParts]) -> dict[int, SegmentPart]:
    """By rank; what follows from the channels is worked out once for those that share them."""
    groups: dict[tuple[int, ...], dict[int, Ranges]] = {}
    for rank, (batch, _, _) in first.parts.items():
        same = tuple([id(parts[rank]) for parts in by_layer])
        groups.setdefault(same, {})[rank] = batch
    found: dict[int, SegmentPart] = {}
    for share, batches in enumerate(groups.values()):
        any_rank = next(iter(batches))
        layers = tuple([parts[any_rank] for parts in by_layer])
        sizes = tuple([(size(x.reads), size(x.out), x.parameters, len(x.tiles)) for x in layers])
        parameters = sum([layer.parameters for layer in layers])
        macs = sum([layer.macs_per_image for layer in layers])
        for rank, batch in batches.items():
            found[rank] = SegmentPart(layers, share, sizes, batch, size(batch), parameters, macs)
    return {rank: found[rank] for rank in first.parts}


def _layer_parts(layer: PlacedLayer) -> LayerParts:
    sized = layer.sized
    found: LayerParts = {}
    groups: dict[tuple[Ranges, Ranges], list[int]] = {}
    for rank, (_, out, reads) in layer.parts.items():
        groups.setdefault((out, reads), []).append(rank)
    for (out, reads), group in groups.items():
        tiles: tuple[Tile, ...] = ()
        bias: Ranges = ()
        parameters = macs = 0
        if sized.has_weights:
            tiles = sized.tiles(out, reads)
            terms = sized.terms(out, reads)
            bias = normalise(term.out for term in terms if term.fan[0] == 0)
            weights = sized.weights(tiles)
            parameters = weights + size(bias)
            macs = weights * sized.layer.macs_per_weight(sized.input_shape)
        part = LayerPart(sized, out, reads, tiles, bias, parameters, macs)
        found |= dict.fromkeys(group, part)
    return found


def _starts(
    layers: Sequence[PlacedLayer], parts: list[LayerParts], itemsize: int, replicas: int
) -> list[int]:
    """Positions of the layers at which a segment begins."""
    starts = []
    waiting = 0
    for i in range(len(layers) - 1, -1, -1):
        shares = {id(part): part for part in parts[i].values()}
        summed = replicas > 1 or len(shares) < len(parts[i])
        if layers[i].sized.has_weights and summed:
            # a bias for each channel: where the input is split, one rank has it for the others
            waiting += itemsize * max(
                [p.parameters - size(p.bias) + size(p.out) for p in shares.values()]
            )
        if i == 0 or waiting >= BUCKET_BYTES or _differs(layers[i - 1], layers[i]):
            starts.append(i)
            waiting = 0
    return starts[::-1]


def _differs(before: PlacedLayer, after: PlacedLayer) -> bool:
    """Whether something must be exchanged or regrouped between two layers."""
    regrouped = (before.stage, before.chunk, before.update, before.parts.keys()) != (
        after.stage, after.chunk, after.update, after.parts.keys()
    )  # fmt: skip
    if before.partial or regrouped:
        return True
    return any(
        part.batch != after.parts[rank].batch or part.out != after.parts[rank].reads
        for rank, part in before.parts.items()
    )


class TooManyMessages(Exception):
    """More lie between two segments than fit into memory; the argument says how many at least."""


def boundaries(
    segments: tuple[Segment, ...], placement: Placement, most: int
) -> tuple[Boundary, ...]:
    """The boundary before every segment but the first; element 0 is empty.

    Args:
        most: messages in all.

    Raises:
        TooManyMessages: there would be more.
    """
    partial = {layer.sized.name for layer in placement.layers if layer.partial}
    found = [Boundary(0, 1, (), summed=False)]
    for before, after in zip(segments, segments[1:], strict=False):
        turns = before.chunk // after.chunk
        messages = tuple(tuple(_messages(before, after, turn, most)) for turn in range(turns))
        most -= sum(map(len, messages))
        summed = before.layers[-1].name in partial
        found.append(Boundary(after.index, turns, messages, summed))
    return tuple(found)


def _messages(before: Segment, after: Segment, turn: int, most: int) -> list[Message]:
    """Every rectangle that a rank of ``before`` has and a rank of ``after`` needs in this turn.

    A sender goes round its peers starting behind itself, so that nobody is everybody's first.
    """
    values = after.layers[0].in_values
    needs: dict[tuple[Ranges, Ranges], list[int]] = {}  # ranks that need the same share one
    for rank, part in after.parts.items():
        needs.setdefault((shift(part.batch, turn * after.chunk), part.reads), []).append(rank)
    wanted = sorted(needs, key=lambda need: need[0][0][0])  # by first example
    starts = [batch[0][0] for batch, _ in wanted]
    ends = list(accumulate([batch[-1][1] for batch, _ in wanted], max))  # up to each of them
    found: list[Message] = []
    for source, part in before.parts.items():
        has_batch, has_channels = part.batch, part.out
        low, high = has_batch[0][0], has_batch[-1][1]
        pieces: dict[int, tuple[Rectangle, Rectangle, int]] = {}  # by target
        for need in wanted[bisect_right(ends, low) : bisect_left(starts, high)]:
            wants_batch, wants_channels = need
            batch = _overlap(has_batch, wants_batch)
            if not batch.number:
                continue
            channels = _overlap(has_channels, wants_channels)
            if channels.number:
                taken, given = (batch.taken, channels.taken), (batch.given, channels.given)
                piece = taken, given, batch.number * channels.number * values
                pieces.update(dict.fromkeys(needs[need], piece))
        if len(found) + len(pieces) > most:
            raise TooManyMessages(len(found) + len(pieces))
        targets = sorted(pieces)
        behind = bisect_right(targets, source)
        for target in targets[behind:] + targets[:behind]:
            found.append(Message(turn, source, target, *pieces[target]))
    return found


class _Overlap(NamedTuple):
    """What one range has and another wants: positions in the one and in the other, how many."""

    taken: Ranges
    given: Ranges
    number: int


# Pairs of ranks meet in few ways, and every boundary between layers that are split alike is alike.
@lru_cache(maxsize=65_536)
def _overlap(has: Ranges, wants: Ranges) -> _Overlap:
    both = intersect(has, wants)
    return _Overlap(local(both, has), local(both, wants), size(both))


def buckets(segments: tuple[Segment, ...]) -> tuple[tuple[Bucket, ...], ...]:
    """By segment, the groups that share its parameters; () for a segment without weights."""
    found = []
    for segment in segments:
        groups: dict[tuple[tuple[tuple[Tile, ...], Ranges], ...], list[int]] = {}
        for rank, part in segment.parts.items():
            if part.parameters:
                key = tuple([(x.tiles, x.bias) for x in part.layers if x.tiles])
                groups.setdefault(key, []).append(rank)
        found.append(
            tuple(
                Bucket(segment.index, tuple(ranks), segment.parts[ranks[0]].parameters)
                for ranks in groups.values()
            )
        )
    return tuple(found)
