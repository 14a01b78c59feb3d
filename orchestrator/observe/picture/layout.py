"""What a picture of a program shows: plain data, no coordinates.

Its parts:

    rows       ranks; ranks and groups of ranks that do the same are shown once or twice
    columns    the image, layers with weights, and every layer before which ranks talk
    blocks     what a rank holds of a column's output
    exchanges  arrows between rows, with their bytes a step
    reductions groups of ranks that sum gradients
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from orchestrator.models.layer import LayerPart, SizedLayer
from orchestrator.models.ranges import Ranges
from orchestrator.program.ledger import (
    GRADIENT,
    Edge,
    activation_bytes,
    edges,
    gradient_bytes,
)
from orchestrator.program.ops import Program

MOST_ROWS = 4  # so many ranks are drawn one by one, whether they do the same or not
IMAGE = "image"


@dataclass(frozen=True)
class Column:
    """One step of the chain from the image to the class scores.

    Args:
        layer: its name; ``image`` for the first column.
        kind: the layer's kind.
        kernel, stride: of a convolution, else 0.
        stage: pipeline stage.
        pooled: the output is max-pooled before the next column reads it.
    """

    layer: str
    kind: str
    kernel: int
    stride: int
    stage: int
    pooled: bool


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


@dataclass(frozen=True)
class Block:
    """What some rows hold of a column's output: one row, or several that read the same images.

    Args:
        rows: positions in ``Picture.rows``.
        column: position in ``Picture.columns``.
        shape: channels, height, width (fewer or more sides where the model has such); or features.
        images: in a step; 0 where it is as many as in the row's block before.
    """

    rows: tuple[int, ...]
    column: int
    shape: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class Arrow:
    """Bytes a step from one row to another: in the forward, and back in the backward."""

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
    """All that is sent before one column.

    Args:
        column: the one that reads.
        arrows: those between rows that are drawn.
        rows: drawn ones that send or receive, be it with ranks that are left out.
        sizes: forward bytes of every edge in the drawn groups, those of left-out ranks included;
            ascending.
    """

    column: int
    arrows: tuple[Arrow, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]


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
        activation_bytes: sent in a step by all ranks, forward and backward.
        gradient_bytes: of parameters, the same.
    """

    name: str
    model: str
    world_size: int
    batch: int
    stages: int
    parameters: int
    activation_bytes: int
    gradient_bytes: int
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    exchanges: tuple[Exchange, ...]
    reductions: tuple[Reduction, ...]


@dataclass(frozen=True)
class _Held:
    """What one rank holds of one column's output, in a step."""

    shape: tuple[int, ...]
    images: int


_Signature = tuple[_Held | None, ...]


def lay_out(program: Program) -> Picture:
    """Choose what to draw of a program whose ops are all listed (not ``folded``)."""
    traffic = edges(program)
    columns = _columns(program, {edge.layer for edge in traffic if edge.direction == "forward"})
    held = _held(program, columns)
    groups = _groups(program, traffic)
    rows = _rows(program, traffic, held, groups)
    row_of = {row.rank: i for i, row in enumerate(rows)}
    return Picture(
        name=program.name,
        model=program.model.name,
        world_size=program.world_size,
        batch=program.global_batch,
        stages=len(program.stages),
        parameters=program.model.parameters,
        activation_bytes=activation_bytes(traffic),
        gradient_bytes=gradient_bytes(traffic),
        rows=rows,
        columns=columns,
        blocks=(*_images(program, rows), *_blocks(columns, held, rows)),
        exchanges=_exchanges(columns, traffic, row_of, groups),
        reductions=_reductions(program, traffic, row_of),
    )


# -- columns and what stands in them --------------------------------------------------------------


def _columns(program: Program, read: set[str]) -> tuple[Column, ...]:
    """The image; then layers with weights, sums, and readers of what another rank sends."""
    found = [Column(IMAGE, IMAGE, 0, 0, 0, pooled=False)]
    for segment in program.segments:
        for sized in segment.layers:
            drawn = sized.layer.drawn
            if drawn == "pool" and sized.name not in read:
                found[-1] = replace(found[-1], pooled=True)
            elif drawn == "block" or sized.has_weights or sized.name in read:
                found.append(_column(sized, segment.stage))
    return tuple(found)


def _column(sized: SizedLayer, stage: int) -> Column:
    kernel, stride = sized.layer.cone
    pooled = sized.layer.drawn == "pool"
    return Column(sized.name, sized.kind, kernel, stride, stage, pooled)


def _held(program: Program, columns: tuple[Column, ...]) -> dict[int, _Signature]:
    """By rank, what it holds of every column but the image; None where it has no part."""
    parts: defaultdict[str, dict[int, _Held]] = defaultdict(dict)
    for segment in program.segments:
        for rank, part in segment.parts.items():
            for layer in part.layers:
                images = part.examples * segment.chunks
                parts[layer.sized.name][rank] = _Held(_shape(layer), images)
    names = [column.layer for column in columns[1:]]
    return {
        rank: tuple(parts[name].get(rank % program.ranks_per_replica) for name in names)
        for rank in program.ranks
    }


def _shape(layer: LayerPart) -> tuple[int, ...]:
    return layer.output_shape


def _images(program: Program, rows: tuple[Row, ...]) -> Iterable[Block]:
    """One block for all rows of a replica that read the same images."""
    first = program.segments[0]
    readers: defaultdict[tuple[int, Ranges], list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        replica, local = divmod(row.rank, program.ranks_per_replica)
        if local in first.parts:
            readers[replica, first.parts[local].batch].append(position)
    for positions in readers.values():
        yield Block(tuple(positions), 0, program.model.input_shape, 0)


def _blocks(
    columns: tuple[Column, ...], held: dict[int, _Signature], rows: tuple[Row, ...]
) -> Iterable[Block]:
    for position, row in enumerate(rows):
        before = row.images
        for column, mine in zip(range(1, len(columns)), held[row.rank], strict=True):
            if mine is not None:
                changed = mine.images if mine.images != before else 0
                yield Block((position,), column, mine.shape, changed)
                before = mine.images


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
        images = next((mine.images for mine in held[rank] if mine), 0)
        return Row(rank, images, alike_below, copies)

    if len(program.ranks) <= MOST_ROWS:
        return tuple(map(row, program.ranks))
    alike: defaultdict[tuple[object, ...], list[list[int]]] = defaultdict(list)
    inside = _traffic_inside(traffic, groups)
    for group in groups:
        alike[tuple(held[rank] for rank in group), inside[group[0]]].append(group)
    found = []
    for same in alike.values():
        first, copies = same[0], len(same)
        for _, run in groupby(first, key=lambda rank: held[rank]):
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


def _exchanges(
    columns: tuple[Column, ...], traffic: Counter[Edge], row_of: dict[int, int],
    groups: list[list[int]],
) -> tuple[Exchange, ...]:  # fmt: skip
    drawn = {rank for group in groups if row_of.keys() & set(group) for rank in group}
    position = {column.layer: i for i, column in enumerate(columns)}
    arrows: defaultdict[int, list[Arrow]] = defaultdict(list)
    talking: defaultdict[int, set[int]] = defaultdict(set)
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for edge, sent in sorted(traffic.items()):
        if edge.direction != "forward" or edge.from_rank not in drawn:
            continue
        column = position[edge.layer]
        sizes[column].append(sent)
        ends = (edge.from_rank, edge.to_rank)
        talking[column].update(row_of[rank] for rank in ends if rank in row_of)
        if edge.from_rank in row_of and edge.to_rank in row_of:
            back = traffic[Edge(edge.to_rank, edge.from_rank, edge.layer, "backward")]
            source, target = row_of[edge.from_rank], row_of[edge.to_rank]
            arrows[column].append(Arrow(source, target, sent, back))
    return tuple(
        Exchange(column, tuple(arrows[column]), tuple(sorted(talking[column])), tuple(sorted(sent)))
        for column, sent in sorted(sizes.items())
    )


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
