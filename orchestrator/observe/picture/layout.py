"""What a picture of a program shows: plain data, no coordinates.

Its parts:

    rows       ranks; ranks and groups of ranks that do the same are shown once or twice
    columns    the image, layers with weights, joins, and every layer before which ranks talk
    blocks     what a rank holds of a column's output
    readings   which column reads which, within a row
    exchanges  arrows between rows, with their bytes a step
    reductions groups of ranks that sum gradients
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from orchestrator.models.box import is_empty
from orchestrator.models.ranges import Ranges
from orchestrator.models.sized import LayerPart
from orchestrator.models.value import IMAGE_AXES, INPUT, Value
from orchestrator.observe.picture.graph import JOINS, Graph, Node, graph_of
from orchestrator.program.ledger import (
    GRADIENT,
    Edge,
    activation_bytes,
    edges,
    gradient_bytes,
)
from orchestrator.program.ops import FORWARD, Program

MOST_ROWS = 4  # so many ranks are drawn one by one, whether they do the same or not
IMAGE, TOKENS = "image", "tokens"


@dataclass(frozen=True)
class Column:
    """A layer on the way from the image to the class scores.

    Args:
        layer: its name; ``image``, ``tokens`` or ``input`` for the first column.
        kind: the layer's kind.
        drawn: ``block``; ``plus``, ``times`` or ``bar`` for what joins several.
        kernel, stride: of a convolution, else 0.
        stage: pipeline stage.
        pooled: kind of the pool through which the next column reads the output; else "".
        axes: of the output.
        level: place from left to right; towers that stand above one another share it.
        region, lane: the split that it stands behind, and its place there from top to bottom.
        group: the block of layers under whose heading it stands; "" for none.
    """

    layer: str
    kind: str
    drawn: str
    kernel: int
    stride: int
    stage: int
    pooled: str
    axes: tuple[str, ...]
    level: int
    region: int
    lane: int
    group: str = ""

    @property
    def label(self) -> str:
        """The layer's name, as it stands below the heading of its group."""
        return self.layer.removeprefix(f"{self.group}.") if self.group else self.layer

    @property
    def joins(self) -> bool:
        """Whether it is drawn small, as a sign."""
        return self.drawn in JOINS


@dataclass(frozen=True)
class Row:
    """One rank.

    Args:
        rank: its number.
        images: that pass through it in a step, at its first block.
        alike_below: ranks between this row and the next that do the same and are left out.
        copies: groups of ranks that do the same as this row's group; only the first is drawn.
    """

    rank: int
    images: int
    alike_below: int
    copies: int


class Group(NamedTuple):
    """Columns ``first`` to ``last``, of one block of layers; ``others`` do the same after it, and
    are not drawn."""

    name: str
    first: int
    last: int
    others: tuple[str, ...]


class LeftOut(NamedTuple):
    """So many columns are left out before a level, ``first`` to ``last``."""

    level: int
    columns: int
    first: str
    last: str


class Band(NamedTuple):
    """What a rank holds of an axis that is drawn whole: ``start:stop`` of ``size`` positions."""

    axis: str
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Block:
    """What some rows hold of a column's output: one row, or several that read the same images.

    Args:
        rows: positions in ``Picture.rows``.
        column: position in ``Picture.columns``.
        shape: channels, height, width (fewer or more sides where the model has such); or features.
        images: in a step; 0 where it is as many as in the row's block before.
        axes: of the shape.
        bands: where it lies in the whole, of every axis that is split, channels apart.
        whole: several ranks compute all of it, each for itself.
        says_whole: the row's block before is not so.
    """

    rows: tuple[int, ...]
    column: int
    shape: tuple[int, ...]
    images: int
    axes: tuple[str, ...]
    bands: tuple[Band, ...] = ()
    whole: bool = False
    says_whole: bool = False

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape, with all positions along the axes that are split."""
        sizes = {band.axis: band.size for band in self.bands}
        return tuple(sizes.get(axis, n) for axis, n in zip(self.axes, self.shape, strict=True))


@dataclass(frozen=True)
class Reading:
    """One column reads another.

    Args:
        rows: that read what they hold themselves.
        skip: there is a longer way from the one to the other, too.
    """

    source: int
    column: int
    rows: tuple[int, ...]
    skip: bool


@dataclass(frozen=True)
class Arrow:
    """Bytes a step from one row to another: in the forward, and back in the backward.

    Either may be 0 beside a layer that several ranks compute whole.
    """

    source: int
    target: int
    forward: int
    backward: int

    @property
    def space(self) -> int:
        """The row below which, half way between the two, the arrow's label stands."""
        low, high = sorted((self.source, self.target))
        return low + (high - low - 1) // 2


@dataclass(frozen=True)
class Exchange:
    """All that is sent from one column to another.

    Args:
        source: the one that is read.
        column: the one that reads.
        arrows: those between rows that are drawn.
        rows: drawn ones that send or receive, be it with ranks that are left out.
        sizes: bytes of every edge in the drawn groups, those of left-out ranks included; forward,
            or where nothing is sent forward, back; ascending.
        parameter: ``layer.parameter`` where that is sent, once a step, and no activation.
    """

    source: int
    column: int
    arrows: tuple[Arrow, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    parameter: str = ""


@dataclass(frozen=True)
class Reduction:
    """Ranks that sum the gradients of parameters which they hold alike.

    Args:
        rows: of the group, as far as they are drawn.
        ranks: in the group.
        layers: names, in order.
        sent: most bytes that one of them sends in a step.
    """

    rows: tuple[int, ...]
    ranks: int
    layers: tuple[str, ...]
    sent: int


@dataclass(frozen=True)
class Picture:
    """A program as it is drawn.

    Args:
        batch: images of a step.
        examples: what they are: images, sequences or examples.
        activation_bytes: sent in a step by all ranks, forward and backward.
        gradient_bytes: of parameters, the same.
    """

    name: str
    model: str
    world_size: int
    batch: int
    examples: str
    stages: int
    parameters: int
    activation_bytes: int
    gradient_bytes: int
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    readings: tuple[Reading, ...]
    exchanges: tuple[Exchange, ...]
    reductions: tuple[Reduction, ...]
    groups: tuple[Group, ...] = ()
    left_out: LeftOut | None = None


@dataclass(frozen=True)
class _Held:
    """What one rank holds of one column's output, in a step."""

    shape: tuple[int, ...]
    images: int
    bands: tuple[Band, ...]
    whole: bool
    sources: frozenset[int]

    @property
    def alike(self) -> _Held:
        """The same for ranks that differ only in which part of a band they hold."""
        return replace(self, bands=tuple(band._replace(start=0, stop=0) for band in self.bands))


_Signature = tuple[_Held | None, ...]


def lay_out(program: Program) -> Picture:
    """Choose what to draw of a program whose ops are all listed (not ``folded``)."""
    traffic = edges(program)
    graph = graph_of(program, {edge.layer for edge in traffic if edge.direction != GRADIENT})
    columns = tuple(_column(program, graph, i) for i in range(len(graph.nodes)))
    held = _held(program, graph)
    groups = _groups(program, traffic)
    rows = _rows(program, traffic, held, groups)
    row_of = {row.rank: i for i, row in enumerate(rows)}
    blocks = (*_images(program, columns[0], rows), *_blocks(columns, held, rows))
    return Picture(
        name=program.name,
        model=program.model.name,
        world_size=program.world_size,
        batch=program.global_batch,
        examples=_examples(program.model.input),
        stages=len(program.stages),
        parameters=program.model.parameters,
        activation_bytes=activation_bytes(traffic),
        gradient_bytes=gradient_bytes(traffic),
        rows=rows,
        columns=columns,
        blocks=blocks,
        readings=_readings(graph, held, rows, blocks),
        exchanges=_exchanges(program, graph, row_of, groups),
        reductions=_reductions(program, traffic, row_of),
    )


def _examples(value: Value) -> str:
    if value.axes == IMAGE_AXES:
        return "images"
    return "sequences" if "token" in value.axes else "examples"


# -- columns and what stands in them --------------------------------------------------------------


def _column(program: Program, graph: Graph, position: int) -> Column:
    node: Node = graph.nodes[position]
    where = (graph.levels[position], graph.regions[position], graph.lanes[position])
    if node.sized is None:
        value = program.model.input
        name = IMAGE if value.axes == IMAGE_AXES else TOKENS if value.integer else INPUT
        return Column(name, IMAGE, "block", 0, 0, 0, node.pooled, value.axes, *where)
    layer = node.sized.layer
    drawn = layer.drawn if layer.drawn in JOINS else "block"
    return Column(
        node.name, node.sized.kind, drawn, *layer.cone, node.stage, node.pooled,
        node.sized.output.axes, *where,
    )  # fmt: skip


def _held(program: Program, graph: Graph) -> dict[int, _Signature]:
    """By rank, what it holds of every column but the image; None where it has no part."""
    parts: defaultdict[str, dict[int, _Held]] = defaultdict(dict)
    for segment in program.segments:
        names = [x.source for x in segment.imports]
        inputs = [
            [segment.layers[s].name if s >= 0 else names[-1 - s] for s in sources]
            for sources in segment.sources
        ]
        whole = segment.replicated and len(segment.parts) > 1
        for rank, part in segment.parts.items():
            for layer, read in zip(part.layers, inputs, strict=True):
                sources = frozenset(
                    graph.node_of[name]
                    for name, box in zip(read, layer.reads, strict=True)
                    if name in graph.node_of and not is_empty(box)
                )
                images = part.examples * segment.chunks
                parts[layer.sized.name][rank] = _Held(
                    layer.output_shape, images, _bands(layer), whole, sources
                )
    return {
        rank: tuple(
            parts[node.name].get(rank % program.ranks_per_replica) for node in graph.nodes[1:]
        )
        for rank in program.ranks
    }


def _bands(layer: LayerPart) -> tuple[Band, ...]:
    value = layer.sized.output
    return tuple(
        Band(axis, ranges[0][0], ranges[-1][1], size)
        for axis, ranges, size in zip(value.axes, layer.out, value.shape, strict=True)
        if axis != "channel" and ranges and ranges != ((0, size),)
    )


def _images(program: Program, column: Column, rows: tuple[Row, ...]) -> Iterable[Block]:
    """One block for all rows of a replica that read the same images."""
    readers: defaultdict[tuple[int, Ranges], list[int]] = defaultdict(list)
    reading = [s for s in program.segments if any(x.source == INPUT for x in s.imports)]
    for position, row in enumerate(rows):
        replica, local = divmod(row.rank, program.ranks_per_replica)
        part = next((s.parts[local] for s in reading if local in s.parts), None)
        if part is not None:
            readers[replica, part.batch].append(position)
    for positions in readers.values():
        yield Block(tuple(positions), 0, program.model.input_shape, 0, column.axes)


def _blocks(
    columns: tuple[Column, ...], held: dict[int, _Signature], rows: tuple[Row, ...]
) -> Iterable[Block]:
    for position, row in enumerate(rows):
        before, whole = row.images, False
        for i, shard in enumerate(held[row.rank], 1):
            if shard is not None:
                changed = shard.images if shard.images != before else 0
                yield Block(
                    (position,), i, shard.shape, changed, columns[i].axes, shard.bands, shard.whole,
                    shard.whole and not whole,
                )  # fmt: skip
                before, whole = shard.images, shard.whole


def _readings(
    graph: Graph, held: dict[int, _Signature], rows: tuple[Row, ...], blocks: tuple[Block, ...]
) -> tuple[Reading, ...]:
    has = {(row, block.column) for block in blocks for row in block.rows}
    found = []
    for column, node in enumerate(graph.nodes):
        for source in node.sources:
            reading = []
            for position, row in enumerate(rows):
                shard = held[row.rank][column - 1]
                if shard and source in shard.sources and (position, source) in has:
                    reading.append(position)
            skip = (source, column) in graph.skips
            found.append(Reading(source, column, tuple(reading), skip))
    return tuple(found)


# -- rows -----------------------------------------------------------------------------------------


def _groups(program: Program, traffic: Counter[Edge]) -> list[list[int]]:
    """Ranks that exchange activations, directly or through others, ascending."""
    leader = {rank: rank for rank in program.ranks}

    def find(rank: int) -> int:
        while leader[rank] != rank:
            leader[rank] = leader[leader[rank]]
            rank = leader[rank]
        return rank

    for edge in traffic:
        if edge.direction != GRADIENT:
            a, b = sorted((find(edge.from_rank), find(edge.to_rank)))
            leader[b] = a
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for rank in program.ranks:
        groups[find(rank)].append(rank)
    return list(groups.values())


def _rows(
    program: Program, traffic: Counter[Edge], held: dict[int, _Signature], groups: list[list[int]]
) -> tuple[Row, ...]:
    def row(rank: int, alike_below: int = 0, copies: int = 1) -> Row:
        images = next((shard.images for shard in held[rank] if shard), 0)
        return Row(rank, images, alike_below, copies)

    if len(program.ranks) <= MOST_ROWS:
        return tuple(map(row, program.ranks))
    alike: defaultdict[tuple[object, ...], list[list[int]]] = defaultdict(list)
    inside = _traffic_inside(traffic, groups)
    does = {rank: tuple(shard and shard.alike for shard in held[rank]) for rank in program.ranks}
    for group in groups:
        alike[tuple(does[rank] for rank in group), inside[group[0]]].append(group)
    found = []
    for same in alike.values():
        first, copies = same[0], len(same)
        for _, run in groupby(first, key=does.__getitem__):
            ranks = list(run)
            if len(first) <= MOST_ROWS or len(ranks) <= 3:
                found += [row(rank, 0, copies) for rank in ranks]
            else:
                found += [row(ranks[0], len(ranks) - 2, copies), row(ranks[-1], 0, copies)]
    return tuple(found)


def _traffic_inside(
    traffic: Counter[Edge], groups: list[list[int]]
) -> dict[int, tuple[tuple[int, int, str, str, int], ...]]:
    """By a group's first rank, who of it sends what to whom; equal for groups that do the same."""
    place = {}
    found: dict[int, list[tuple[int, int, str, str, int]]] = {}
    for group in groups:
        found[group[0]] = []
        place.update({rank: (group[0], position) for position, rank in enumerate(group)})
    for edge, sent in traffic.items():
        if edge.direction != GRADIENT:
            (first, source), (_, target) = place[edge.from_rank], place[edge.to_rank]
            found[first].append((source, target, edge.layer, edge.direction, sent))
    return {first: tuple(sorted(rows)) for first, rows in found.items()}


# -- what ranks send ------------------------------------------------------------------------------


class _Way(NamedTuple):
    """From one column to another; with a name, of a parameter."""

    column: int
    source: int
    parameter: str


def _exchanges(
    program: Program, graph: Graph, row_of: dict[int, int], groups: list[list[int]]
) -> tuple[Exchange, ...]:
    drawn = {rank for group in groups if row_of.keys() & set(group) for rank in group}
    found = []
    for way, sent in sorted(_sent(program, graph).items()):
        arrows: list[Arrow] = []
        talking: set[int] = set()
        sizes: list[int] = []
        for (source, target), (forward, backward) in sorted(sent.items()):
            if source not in drawn:
                continue
            sizes.append(forward or backward)
            talking.update(row_of[rank] for rank in (source, target) if rank in row_of)
            if source in row_of and target in row_of:
                arrows.append(Arrow(row_of[source], row_of[target], forward, backward))
        if sizes:
            found.append(
                Exchange(
                    way.source,
                    way.column,
                    tuple(arrows),
                    tuple(sorted(talking)),
                    tuple(sorted(sizes)),
                    way.parameter,
                )  # fmt: skip
            )
    return tuple(found)


def _sent(program: Program, graph: Graph) -> dict[_Way, dict[tuple[int, int], tuple[int, int]]]:
    """Bytes a step forward and back, by way and by sender and receiver of the forward."""
    ways = [_way(program, graph, i) for i in range(len(program.boundaries))]
    found: defaultdict[_Way, dict[tuple[int, int], tuple[int, int]]] = defaultdict(dict)
    c = program.columns
    for kind, rank, boundary, transfers in zip(c.kind, c.rank, c.segment, c.transfers, strict=True):
        for peer, size in transfers.sends if transfers is not None else ():
            ends = (rank, peer) if kind in FORWARD else (peer, rank)
            forward, backward = found[ways[boundary]].get(ends, (0, 0))
            if kind in FORWARD:
                forward += size
            else:
                backward += size
            found[ways[boundary]][ends] = (forward, backward)
    return found


def _way(program: Program, graph: Graph, index: int) -> _Way:
    boundary = program.boundaries[index]
    if boundary.parameter:
        source = boundary.parameter.rpartition(".")[0]
    elif boundary.producer < 0:
        source = INPUT
    else:
        source = program.segments[boundary.producer].layers[boundary.layer].name
    return _Way(graph.node_of[boundary.reader], graph.node_of[source], boundary.parameter)


def _reductions(
    program: Program, traffic: Counter[Edge], row_of: dict[int, int]
) -> tuple[Reduction, ...]:
    layers: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for segment, buckets in zip(program.segments, program.buckets, strict=True):
        for bucket in buckets:
            group = tuple(
                replica * program.ranks_per_replica + rank
                for replica in range(program.replicas)
                for rank in bucket.ranks
            )
            if len(group) > 1:
                layers[group] += [x.name for x in segment.layers if x.has_weights]
    sent: Counter[tuple[int, str]] = Counter()
    for edge, count in traffic.items():
        if edge.direction == GRADIENT:
            sent[edge.from_rank, edge.layer] += count
    readers = {x.name: s.reader for s in program.segments for x in s.layers}
    found = []
    for group, names in layers.items():
        rows = tuple(row_of[rank] for rank in group if rank in row_of)
        edges_of = {readers[name] for name in names}
        most = max(sum(sent[rank, layer] for layer in edges_of) for rank in group)
        if rows:
            found.append(Reduction(rows, len(group), tuple(names), most))
    return tuple(found)
