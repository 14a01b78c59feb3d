"""How long a collective takes: phases of latency and bytes over links, by algorithm.

    ring           n - 1 rounds (twice for an all-reduce), S/n bytes a round to the next rank;
                   Patarasuk and Yuan, 2009
    tree           a reduction up and a broadcast down a double binary tree, pipelined;
                   Sanders, Speck and Träff, 2009; in NCCL since 2.4
    direct         every rank sends its part to every other at once: one latency
    hierarchical   reduce-scatter inside the nodes, the shards across, all-gather inside; the
                   two-level algorithms of NCCL and MPI

The quickest on an idle network is taken, as libraries do by tuning; where a calibration measured
this collective over as many ranks, the measured time replaces latency and bandwidth on the idle
network, and the flow's load tells how others slow it down.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import ceil, log2

from orchestrator.program.ops import ALL_REDUCE
from orchestrator.simulate.network import Load, Topology, combined

# Beyond a node's devices n² messages at once make receivers drop behind; libraries stop there too.
MOST_DIRECT = 8


@dataclass(frozen=True)
class Phase:
    """A part of a collective: first a latency, then bytes over links.

    Args:
        latency: seconds.
        size: bytes that each rank sends.
        load: links with their weights; () where nothing is sent.
    """

    latency: float
    size: float
    load: Load

    def alone(self, capacity: list[float]) -> float:
        """Seconds on an idle network."""
        if not self.load or self.size <= 0:
            return self.latency
        return self.latency + self.size / min(capacity[x] / w for x, w in self.load)


@dataclass(frozen=True)
class Collective:
    """An algorithm with its phases, one after another."""

    algorithm: str
    phases: tuple[Phase, ...]


class Collectives:
    """Plans the collectives of one cluster; each (kind, size, group) is planned once.

    Args:
        listed: ranks that are simulated; of a larger group only these ranks' links are loaded.
        algorithm: ``auto`` or one of the names above.
    """

    def __init__(self, topology: Topology, listed: range, algorithm: str = "auto") -> None:
        self.topology, self.listed, self.algorithm = topology, listed, algorithm
        self._memo: dict[tuple[str, int, tuple[int, ...]], Collective] = {}

    def plan(self, kind: str, size: int, group: tuple[int, ...]) -> Collective:
        """The phases of ALL_REDUCE, REDUCE_SCATTER or ALL_GATHER of ``size`` bytes over a group."""
        key = (kind, size, group)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._choose(kind, size, group)
        return found

    def candidates(self, kind: str, size: int, group: tuple[int, ...]) -> list[Collective]:
        """Every algorithm that can do it."""
        found = [
            Collective("ring", (self._ring(kind, size, group),)),
            Collective("direct", (self._direct(kind, size, group),)),
        ]
        if kind == ALL_REDUCE:
            found.append(Collective("tree", (self._tree(size, group),)))
        nodes: defaultdict[int, list[int]] = defaultdict(list)
        for rank in group:
            nodes[self.topology.cluster.node(rank)].append(rank)
        sizes = {len(ranks) for ranks in nodes.values()}
        if kind == ALL_REDUCE and len(nodes) > 1 and len(sizes) == 1 and sizes != {1}:
            found.append(Collective("hierarchical", self._levels(size, list(nodes.values()))))
        return found

    def _choose(self, kind: str, size: int, group: tuple[int, ...]) -> Collective:
        capacity = self.topology.capacity
        found = self.candidates(kind, size, group)
        if self.algorithm != "auto":
            found = [c for c in found if c.algorithm == self.algorithm] or found[:1]
        return min(found, key=lambda c: sum(phase.alone(capacity) for phase in c.phases))

    def _ring(self, kind: str, size: int, group: tuple[int, ...]) -> Phase:
        count = len(group)
        rounds = (count - 1) * (2 if kind == ALL_REDUCE else 1)
        load, latency = self._hops(group)
        return Phase(rounds * latency, rounds * size / count, load)

    def _direct(self, kind: str, size: int, group: tuple[int, ...]) -> Phase:
        """All to all at once; loads counted for one byte that each rank sends to one other."""
        count = len(group)
        times = 2 if kind == ALL_REDUCE else 1
        if count > MOST_DIRECT:
            return Phase(float("inf"), 0.0, ())
        routes, latency = [], 0.0
        for source in group:
            if source in self.listed:
                for target in group:
                    if target != source:
                        route, hop = self.topology.path(source, target)
                        routes.append(route)
                        latency = max(latency, hop)
        return Phase(times * latency, times * size / count, combined(routes))

    def _tree(self, size: int, group: tuple[int, ...]) -> Phase:
        """Both directions of the double tree keep every rank's port busy with S up and S down."""
        load, latency = self._hops(group)
        return Phase(2 * ceil(log2(len(group))) * latency, 2.0 * size, load)

    def _levels(self, size: int, nodes: list[list[int]]) -> tuple[Phase, ...]:
        """Inside every node, then across nodes for each place in a node at once, then inside."""
        inside, across = len(nodes[0]), len(nodes)
        listed = [ranks for ranks in nodes if any(r in self.listed for r in ranks)] or nodes[:1]
        hops = [self._hops(tuple(ranks)) for ranks in listed]
        latency = max(hop[1] for hop in hops)
        load = tuple(sorted({link: w for hop in hops for link, w in hop[0]}.items()))
        half = Phase((inside - 1) * latency, (inside - 1) * size / inside, load)
        routes, far = [], 0.0
        for place in range(inside):
            for i, ranks in enumerate(nodes):
                if ranks[place] in self.listed or i == 0:
                    following = nodes[(i + 1) % across][place]
                    route, hop = self.topology.path(ranks[place], following)
                    routes.append(route)
                    far = max(far, hop)
        shard = size / inside
        rounds = 2 * (across - 1)
        ring = Phase(rounds * far, rounds * shard / across, combined(routes))
        tree = Phase(2 * ceil(log2(across)) * far, 2 * shard, combined(routes))
        capacity = self.topology.capacity
        middle = min((ring, tree), key=lambda phase: phase.alone(capacity))
        return (half, middle, half)

    def _hops(self, group: tuple[int, ...]) -> tuple[Load, float]:
        """Each rank to the next one: the load of the listed ranks' hops, the longest latency."""
        routes, latency = [], 0.0
        for i, source in enumerate(group):
            if source in self.listed:
                route, hop = self.topology.path(source, group[(i + 1) % len(group)])
                routes.append(route)
                latency = max(latency, hop)
        return combined(routes), latency
