"""How long a collective takes: phases of latency and bytes over links, by algorithm.

    ring           n - 1 rounds (twice for an all-reduce), S/n bytes a round to the next rank;
                   Patarasuk and Yuan, 2009
    tree           a reduction up and a broadcast down a double binary tree, pipelined;
                   Sanders, Speck and Träff, 2009; in NCCL since 2.4
    direct         every rank sends its part to every other at once: one latency
    hierarchical   reduce-scatter inside the nodes, the shards across, all-gather inside; the
                   two-level algorithms of NCCL and MPI

The quickest on an idle network is taken, as libraries do by tuning. Where the cluster names its
library, the library's own model says how long each of its ways takes; where a calibration measured
this collective over as many ranks, the measured time does. Both replace latency and bandwidth on
the idle network, and the flow's load tells how others slow it down.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import ceil, log2
from typing import NamedTuple

from orchestrator.program.ops import ALL_REDUCE
from orchestrator.simulate.nccl import Nccl, estimates
from orchestrator.simulate.network import Load, Route, Topology, combined

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
        return self.latency + self.size / _speed(self.load, capacity)


class Collective(NamedTuple):
    """An algorithm with its phases, one after another."""

    algorithm: str
    phases: tuple[Phase, ...]


def _speed(load: Load, capacity: Sequence[float]) -> float:
    """Bytes a second of a flow that is alone on the network."""
    return min(capacity[x] / w for x, w in load)


class Collectives:
    """Plans the collectives of one cluster; each (kind, size, group) is planned once.

    Args:
        listed: ranks that are simulated; of a larger group only these ranks' links are loaded.
        algorithm: ``auto`` (a library's, where the cluster names one) or one of the names above.
    """

    def __init__(self, topology: Topology, listed: range, algorithm: str = "auto") -> None:
        self.topology, self.listed, self.algorithm = topology, listed, algorithm
        self._memo: dict[tuple[str, int, tuple[int, ...]], Collective] = {}
        self._rings: dict[tuple[int, ...], tuple[Load, float]] = {}
        self._pairs: dict[tuple[int, ...], tuple[Load, float]] = {}
        self._flows: dict[tuple[int, ...], tuple[int, Load]] = {}
        # every port with all of its capacity, where the other has the share of one replica
        self._whole = Topology(topology.cluster) if topology.shared_by else topology

    def plan(self, kind: str, size: int, group: tuple[int, ...]) -> Collective:
        """The phases of ALL_REDUCE, REDUCE_SCATTER or ALL_GATHER of ``size`` bytes over a group."""
        key = (kind, size, group)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._choose(kind, size, group)
        return found

    def candidates(self, kind: str, size: int, group: tuple[int, ...]) -> list[Collective]:
        """Every algorithm that can do it, from the links' bandwidths and latencies alone."""
        found = [
            Collective("ring", (self._ring(kind, size, group),)),
            Collective("direct", (self._direct(kind, size, group),)),
        ]
        if kind == ALL_REDUCE:
            found.append(Collective("tree", (self._tree(size, group),)))
        nodes = self._nodes(group)
        sizes = {len(ranks) for ranks in nodes}
        if kind == ALL_REDUCE and len(nodes) > 1 and len(sizes) == 1 and sizes != {1}:
            found.append(Collective("hierarchical", self._levels(size, nodes)))
        return found

    def _nodes(self, group: tuple[int, ...]) -> list[list[int]]:
        """The group's ranks by machine."""
        nodes: defaultdict[int, list[int]] = defaultdict(list)
        for rank in group:
            nodes[self.topology.cluster.node(rank)].append(rank)
        return list(nodes.values())

    def _choose(self, kind: str, size: int, group: tuple[int, ...]) -> Collective:
        capacity = self.topology.capacity
        library = self.topology.cluster.library
        if library is not None and self.algorithm == "auto":
            return self._by_library(library, kind, size, group)
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
        found = self._pairs.get(group)
        if found is None:
            pairs = [(source, target) for source in group for target in group if target != source]
            found = self._pairs[group] = self._together(pairs, group)
        load, latency = found
        return Phase(times * latency, times * size / count, load)

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
        load = _as_load({link: w for hop in hops for link, w in hop[0]})
        half = Phase((inside - 1) * latency, (inside - 1) * size / inside, load)
        routes, far = [], 0.0
        for place in range(inside):
            for i, ranks in enumerate(nodes):
                if ranks[place] in self.listed:
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
        """Each rank to the next one: the load on the listed ranks' links, the longest latency."""
        found = self._rings.get(group)
        if found is None:
            found = self._rings[group] = self._together(self._ring_hops(group), group)
        return found

    def _ring_hops(self, group: tuple[int, ...]) -> list[tuple[int, int]]:
        """From each rank to the next. Of a ring through replicas that are not simulated only what
        leaves the first two and the last port of the outermost level: the others repeat those."""
        hops = list(zip(group, (*group[1:], group[0]), strict=True))
        if self._all_listed(group):
            return hops
        port = self.topology.group_sizes[-2]
        ports = {group[0] // port, group[0] // port + 1, group[-1] // port}
        return [hop for hop in hops if hop[0] // port in ports]

    def _together(
        self, hops: Sequence[tuple[int, int]], group: tuple[int, ...]
    ) -> tuple[Load, float]:
        """The load of equal messages over hops of a group, and the longest latency.

        Where replicas are not simulated, each link of a listed rank stands for the fullest one of
        its kind, wherever that is.
        """
        if self._all_listed(group):
            paths = [self.topology.path(source, target) for source, target in hops]
            return combined([path[0] for path in paths]), max(path[1] for path in paths)
        whole = self._whole
        routes = [(self._level(a, b), whole.path(a, b)[0]) for a, b in hops]
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
        return _as_load(load), latency

    def _all_listed(self, group: tuple[int, ...]) -> bool:
        return group[0] in self.listed and group[-1] in self.listed

    def _kinds(self, level: int, route: Route) -> Iterator[tuple[int, int]]:
        """The links of a route over a level, each with a number for its kind."""
        around = self.topology.cluster.network[level].topology == "ring"
        return ((0 if around else place, link) for place, link in enumerate(route))

    def _level(self, source: int, target: int) -> int:
        return self.topology.cluster.level_between(source, target)

    # -- by the model of a library ----------------------------------------------------------------

    def _by_library(
        self, library: Nccl, kind: str, size: int, group: tuple[int, ...]
    ) -> Collective:
        """The quickest of its ways: bytes at the speed of the links, and all else as latency."""
        nodes, load = self._flowing(group)
        speed = _speed(load, self.topology.capacity)
        ways = estimates(library, kind, size, len(group), nodes, speed)
        best = min(ways, key=lambda way: way.seconds)
        latency = max(0.0, best.seconds - best.moved / speed)
        phase = Phase(latency, best.moved, load)
        return Collective(f"{best.algorithm} {best.protocol}", (phase,))

    def _flowing(self, group: tuple[int, ...]) -> tuple[int, Load]:
        """How many machines a group is on, and the load for one byte that each rank sends."""
        found = self._flows.get(group)
        if found is None:
            nodes = self._nodes(group)
            load = self._through_nodes(nodes) if len(nodes) > 1 else self._widest(group)
            found = self._flows[group] = len(nodes), load
        return found

    def _widest(self, group: tuple[int, ...]) -> Load:
        """One ring through a machine, or as many as there are ways from each rank to the others:
        what moves more."""
        one, capacity = self._hops(group)[0], self.topology.capacity
        if not 2 < len(group) <= MOST_DIRECT:
            return one
        paths = len(group) - 1
        many = tuple((x, w / paths) for x, w in self._direct(ALL_REDUCE, 0, group).load)
        return max(one, many, key=lambda load: _speed(load, capacity))

    def _through_nodes(self, nodes: list[list[int]]) -> Load:
        """As many rings as each machine has ranks in the group; each leaves it from another one."""
        load: defaultdict[int, float] = defaultdict(float)
        rings = min(map(len, nodes))
        for here, ranks in enumerate(nodes):
            if not any(rank in self.listed for rank in ranks):
                continue
            following = nodes[(here + 1) % len(nodes)]
            for rank, target in zip(ranks[:rings], following, strict=False):
                if rank in self.listed:
                    for link in self.topology.path(rank, target)[0]:
                        load[link] += 1 / rings
            if len(ranks) > 1:
                for link, weight in self._hops(tuple(ranks))[0]:
                    load[link] += weight * (len(ranks) - 1) / len(ranks)
        return _as_load(load)


def _as_load(weights: Mapping[int, float]) -> Load:
    return tuple(sorted(weights.items()))
