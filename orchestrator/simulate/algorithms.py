"""Algorithms of collectives: the phases that each consists of, over the links of a cluster.

    ring           n - 1 rounds (twice for an all-reduce), S/n bytes a round to the next rank;
                   Patarasuk and Yuan, 2009
    tree           a reduction up and a broadcast down a double binary tree, pipelined;
                   Sanders, Speck and Träff, 2009; in NCCL since 2.4
    direct         every rank sends its part to every other at once: one latency
    hierarchical   reduce-scatter inside the nodes, the shards across, all-gather inside; the
                   two-level algorithms of NCCL and MPI

An algorithm is a function with a row in :data:`ALGORITHMS`; the simulator takes the quickest one.
It says nothing about runs: a program has an all-reduce as one op, and gloo or NCCL chooses how.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import ceil, log2
from typing import NamedTuple

from orchestrator.program.ops import ALL_REDUCE
from orchestrator.simulate.network import Load, Route, Topology, combined

Ranks = tuple[int, ...]
Pairs = Sequence[tuple[int, int]]

# Beyond a node's devices n² messages at once make receivers drop behind; libraries stop there too.
MOST_DIRECT = 8


class Phase(NamedTuple):
    """A part of a collective: first a latency, then bytes over links.

    Args:
        latency: seconds.
        size: bytes that each rank sends.
        load: links with their weights; () where nothing is sent.
    """

    latency: float
    size: float
    load: Load

    def alone(self, capacity: Sequence[float]) -> float:
        """Seconds on an idle network."""
        if not self.load or self.size <= 0:
            return self.latency
        return self.latency + self.size / speed(self.load, capacity)


def speed(load: Load, capacity: Sequence[float]) -> float:
    """Bytes a second of a flow that is alone on the network."""
    return min(capacity[x] / w for x, w in load)


class Links:
    """What algorithms ask of a cluster: its topology, and what messages within a group load.

    Args:
        listed: ranks that are simulated; of a larger group only these ranks' links are loaded.
    """

    def __init__(self, topology: Topology, listed: range) -> None:
        self.topology, self.listed = topology, listed
        self._rings: dict[Ranks, tuple[Load, float]] = {}
        self._pairs: dict[Ranks, tuple[Load, float]] = {}
        # every port with all of its capacity, where the other has the share of one replica
        self._whole = Topology(topology.cluster) if topology.shared_by else topology

    def nodes(self, group: Ranks) -> list[list[int]]:
        """The group's ranks by machine."""
        nodes: defaultdict[int, list[int]] = defaultdict(list)
        for rank in group:
            nodes[self.topology.cluster.node(rank)].append(rank)
        return list(nodes.values())

    def around(self, group: Ranks) -> tuple[Load, float]:
        """Each rank to the next one: the load on the listed ranks' links, the longest latency."""
        found = self._rings.get(group)
        if found is None:
            found = self._rings[group] = self.messages(self._ring_hops(group), group)
        return found

    def all_pairs(self, group: Ranks) -> tuple[Load, float]:
        """Each rank to each other one: the same."""
        found = self._pairs.get(group)
        if found is None:
            pairs = [(source, target) for source in group for target in group if target != source]
            found = self._pairs[group] = self.messages(pairs, group)
        return found

    def messages(self, pairs: Pairs, group: Ranks) -> tuple[Load, float]:
        """The load of one byte that each of some pairs of a group sends, and the longest latency.

        Where replicas are not simulated, each link of a listed rank stands for the fullest one of
        its kind, wherever that is.
        """
        if self._all_listed(group):
            paths = [self.topology.path(source, target) for source, target in pairs]
            return combined([path[0] for path in paths]), max(path[1] for path in paths)
        whole = self._whole
        routes = [(self._level(a, b), whole.path(a, b)[0]) for a, b in pairs]
        crossings = Counter(link for _, route in routes for link in route)
        fullest: defaultdict[tuple[int, int], float] = defaultdict(float)
        for level, route in routes:
            for place, link in self._kinds(level, route):
                fullest[level, place] = max(
                    fullest[level, place], crossings[link] / whole.capacity[link]
                )
        load: defaultdict[int, float] = defaultdict(float)
        levels = {level for level, _ in routes}
        for rank in group:
            for level in levels if rank in self.listed else ():
                others = (x for x in group if x != rank and self._level(rank, x) == level)
                for other in islice(others, 1):
                    for place, link in self._kinds(level, self.topology.path(rank, other)[0]):
                        share = fullest[level, place] * self.topology.capacity[link]
                        load[link] = max(load[link], share)
        latency = max(self.topology.cluster.network[level].latency for level in levels)
        return as_load(load), latency

    def _ring_hops(self, group: Ranks) -> list[tuple[int, int]]:
        """From each rank to the next. Of a ring through replicas that are not simulated only what
        leaves the first two and the last port of the outermost level: the others repeat those."""
        hops = list(zip(group, (*group[1:], group[0]), strict=True))
        if self._all_listed(group):
            return hops
        port = self.topology.group_sizes[-2]
        ports = {group[0] // port, group[0] // port + 1, group[-1] // port}
        return [hop for hop in hops if hop[0] // port in ports]

    def _all_listed(self, group: Ranks) -> bool:
        return group[0] in self.listed and group[-1] in self.listed

    def _kinds(self, level: int, route: Route) -> Iterator[tuple[int, int]]:
        """The links of a route over a level, each with a number for its kind."""
        around = self.topology.cluster.network[level].topology == "ring"
        return ((0 if around else place, link) for place, link in enumerate(route))

    def _level(self, source: int, target: int) -> int:
        return self.topology.cluster.level_between(source, target)


Algorithm = Callable[[Links, str, int, Ranks], tuple[Phase, ...]]
"""The phases, in order, of an ALL_REDUCE, REDUCE_SCATTER or ALL_GATHER of so many bytes over a
group; () where the algorithm does not suit."""


def ring(links: Links, kind: str, size: int, group: Ranks) -> tuple[Phase, ...]:
    """S/n bytes to the next rank, n - 1 times, or twice that."""
    count = len(group)
    rounds = (count - 1) * (2 if kind == ALL_REDUCE else 1)
    load, latency = links.around(group)
    return (Phase(rounds * latency, rounds * size / count, load),)


def direct(links: Links, kind: str, size: int, group: Ranks) -> tuple[Phase, ...]:
    """All to all at once; loads are of one byte that each rank sends to one other."""
    count = len(group)
    if count > MOST_DIRECT:
        return ()
    times = 2 if kind == ALL_REDUCE else 1
    load, latency = links.all_pairs(group)
    return (Phase(times * latency, times * size / count, load),)


def tree(links: Links, kind: str, size: int, group: Ranks) -> tuple[Phase, ...]:
    """Both directions of the double tree keep every rank's port busy with S up and S down."""
    if kind != ALL_REDUCE:
        return ()
    load, latency = links.around(group)
    return (Phase(2 * ceil(log2(len(group))) * latency, 2.0 * size, load),)


def hierarchical(links: Links, kind: str, size: int, group: Ranks) -> tuple[Phase, ...]:
    """Inside every node, then across nodes for each place in a node at once, then inside."""
    nodes = links.nodes(group)
    inside, across = len(nodes[0]), len(nodes)
    if kind != ALL_REDUCE or across == 1 or inside == 1 or any(len(x) != inside for x in nodes):
        return ()
    listed = [ranks for ranks in nodes if any(r in links.listed for r in ranks)] or nodes[:1]
    hops = [links.around(tuple(ranks)) for ranks in listed]
    latency = max(hop[1] for hop in hops)
    load = as_load({link: w for hop in hops for link, w in hop[0]})
    half = Phase((inside - 1) * latency, (inside - 1) * size / inside, load)
    routes, far = [], 0.0
    for place in range(inside):
        for i, ranks in enumerate(nodes):
            if ranks[place] in links.listed:
                following = nodes[(i + 1) % across][place]
                route, hop = links.topology.path(ranks[place], following)
                routes.append(route)
                far = max(far, hop)
    shard = size / inside
    rounds = 2 * (across - 1)
    flat = Phase(rounds * far, rounds * shard / across, combined(routes))
    deep = Phase(2 * ceil(log2(across)) * far, 2 * shard, combined(routes))
    capacity = links.topology.capacity
    middle = min((flat, deep), key=lambda phase: phase.alone(capacity))
    return (half, middle, half)


ALGORITHMS: dict[str, Algorithm] = {
    "ring": ring,
    "direct": direct,
    "tree": tree,
    "hierarchical": hierarchical,
}
"""By name."""


def as_load(weights: Mapping[int, float]) -> Load:
    """Weights by link as a load."""
    return tuple(sorted(weights.items()))
