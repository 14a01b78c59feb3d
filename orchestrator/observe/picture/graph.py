"""Which layers are drawn, who of them reads whom, and where they stand: levels, lanes, skips.

            ┌─ a1 ────────┐  lane 0       level: from left to right, behind all that it reads
    stem ───┼─ b1 ── b3 ──┼─ joined       lane: towers between a split and a join have one each
            └─ c1 ── c3 ──┘  lane 2       skip: a reading beside a longer way, as a residual

A layer that is not drawn, such as an activation, is part of the drawn one that it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.models.sized import SizedLayer
from orchestrator.models.value import INPUT, LABELS
from orchestrator.program.ops import Program
from orchestrator.program.segments import Segment

JOINS = ("plus", "times", "bar")
DRAWN = ("block", "pool", *JOINS)


@dataclass(frozen=True)
class Node:
    """A drawn layer; the first stands for the model's input.

    Args:
        sized: the layer; None for the input.
        sources: the nodes that it reads, ascending.
        pooled: kind of the pool between it and the next node, where that is not drawn; else "".
    """

    name: str
    sized: SizedLayer | None
    stage: int
    sources: tuple[int, ...]
    pooled: str = ""


@dataclass(frozen=True)
class Graph:
    """The drawn layers, each behind those that it reads.

    Args:
        nodes: the input first.
        node_of: by layer, drawn or not, the position of the node that it is part of.
        levels: by node, its place from left to right.
        regions: by node, the number of the split that it stands behind; each node that everything
            passes through has a number of its own.
        lanes: by node, which of the towers of its region it is in, from top to bottom.
        skips: readings (source, reader) beside a longer way from the one to the other.
    """

    nodes: tuple[Node, ...]
    node_of: dict[str, int]
    levels: tuple[int, ...]
    regions: tuple[int, ...]
    lanes: tuple[int, ...]
    skips: frozenset[tuple[int, int]]


def graph_of(program: Program, talking: set[str]) -> Graph:
    """The graph of a program's drawn layers.

    Args:
        talking: layers before which ranks talk; these are drawn, whatever they are.
    """
    nodes, node_of = _nodes(program, talking)
    nodes, node_of = _without_pools(nodes, node_of, talking)
    skips = frozenset(_skips(nodes))
    levels = _levels(nodes)
    regions, lanes = _lanes(nodes, levels, skips)
    return Graph(tuple(nodes), node_of, levels, regions, lanes, skips)


def _nodes(program: Program, talking: set[str]) -> tuple[list[Node], dict[str, int]]:
    nodes = [Node(INPUT, None, 0, ())]
    node_of = {INPUT: 0}
    for segment in program.segments:
        for position, sized in enumerate(segment.layers):
            sources = {node_of[name] for name in _sources(segment, position) if name != LABELS} or {
                0
            }
            if sized.name in talking or len(sources) > 1 or _is_drawn(sized):
                node_of[sized.name] = len(nodes)
                nodes.append(Node(sized.name, sized, segment.stage, tuple(sorted(sources))))
            else:
                (node_of[sized.name],) = sources
    return nodes, node_of


def _sources(segment: Segment, position: int) -> Iterator[str]:
    """Names of the layers that a layer of a segment reads."""
    for source in segment.sources[position]:
        if source >= 0:
            yield segment.layers[source].name
        else:
            yield segment.imports[-1 - source].source


def _is_drawn(sized: SizedLayer) -> bool:
    drawn = sized.layer.drawn
    return drawn in DRAWN or (sized.has_weights and drawn != "norm")


def _without_pools(
    nodes: list[Node], node_of: dict[str, int], talking: set[str]
) -> tuple[list[Node], dict[str, int]]:
    """Pools are written between two nodes, not drawn, where there is but one way from the one to
    the other and no rank talks."""
    through = _through(nodes, set(_skips(nodes)))
    readers = _readers(nodes)
    new: dict[int, int] = {}
    found: list[Node] = []
    for i, node in enumerate(nodes):
        sized = node.sized
        if (
            sized is not None
            and sized.layer.drawn == "pool"
            and node.name not in talking
            and all(through[at] for at in (i, *node.sources))
            and readers[node.sources[0]] == [i]
        ):
            new[i] = new[node.sources[0]]
            found[-1] = replace(found[-1], pooled=sized.kind)
        else:
            new[i] = len(found)
            found.append(replace(node, sources=tuple(sorted({new[s] for s in node.sources}))))
    return found, {name: new[i] for name, i in node_of.items()}


def _readers(nodes: Sequence[Node]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for source in node.sources:
            found[source].append(i)
    return found


def _skips(nodes: Sequence[Node]) -> Iterator[tuple[int, int]]:
    before: list[int] = []  # by node, a bit for each node before it
    for i, node in enumerate(nodes):
        before.append(0)
        for source in node.sources:
            before[i] |= before[source] | 1 << source
        for source in node.sources:
            if any(before[other] >> source & 1 for other in node.sources):
                yield source, i


def _through(nodes: Sequence[Node], skips: set[tuple[int, int]] | frozenset[tuple[int, int]]
             ) -> list[bool]:  # fmt: skip
    """By node, whether every way from the input to the end that is no skip passes through it."""
    found = []
    furthest = 0
    last = [max((r for r in found_readers if (i, r) not in skips), default=i)
            for i, found_readers in enumerate(_readers(nodes))]  # fmt: skip
    for i, reader in enumerate(last):
        found.append(furthest <= i)
        furthest = max(furthest, reader)
    return found


def _levels(nodes: Sequence[Node]) -> tuple[int, ...]:
    """A stage starts behind everything of the stages before it."""
    found: list[int] = []
    start = stage = 0
    for node in nodes:
        if node.stage != stage:
            start, stage = max(found) + 1, node.stage
        found.append(max([start, *(found[source] + 1 for source in node.sources)]))
    return tuple(found)


def _lanes(
    nodes: Sequence[Node], levels: tuple[int, ...], skips: frozenset[tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Regions and lanes. A node's first reader goes on in its lane, the others have new ones; a
    lane is kept free up to where its last node is read."""
    through = _through(nodes, skips)
    heir = [
        next((r for r in readers if (i, r) not in skips), -1)
        for i, readers in enumerate(_readers(nodes))
    ]
    regions: list[int] = []
    lanes: list[int] = []
    region = 0
    taken: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for i, node in enumerate(nodes):
        if through[i]:
            region += 1 + (i > 0)
            regions.append(region)
            lanes.append(0)
            continue
        column = region + 1
        sources = [s for s in node.sources if (s, i) not in skips]
        high = max(levels[i], levels[heir[i]] - 1)
        before = [s for s in sources if regions[s] == column and heir[s] == i]
        low = levels[i] if before else min(levels[i], levels[sources[0]] + 1)
        choices = [*(lanes[s] for s in before), *range(len(nodes))]
        lane = next(
            lane
            for lane in choices
            if all(high < start or end < low for start, end in taken[column, lane])
        )
        taken[column, lane].append((low, high))
        regions.append(column)
        lanes.append(lane)
    return tuple(regions), tuple(lanes)
