"""How long a collective takes: phases of latency and bytes over links.

The quickest algorithm on an idle network is taken, as libraries do by tuning. Where the cluster
names its library, the library's own model says how long each of its ways takes; where a calibration
measured this collective over as many ranks, the measured time does. Both replace latency and
bandwidth on the idle network, and the flow's load tells how others slow it down.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from orchestrator.simulate.algorithms import (
    ALGORITHMS,
    MOST_DIRECT,
    Links,
    Phase,
    Ranks,
    as_load,
    speed,
)
from orchestrator.simulate.nccl import Nccl, estimates
from orchestrator.simulate.network import Load, Topology


class Collective(NamedTuple):
    """An algorithm with its phases, one after another."""

    algorithm: str
    phases: tuple[Phase, ...]


class Collectives:
    """Plans the collectives of one cluster; each (kind, size, group) is planned once.

    Args:
        listed: ranks that are simulated; of a larger group only these ranks' links are loaded.
        algorithm: ``auto`` (a library's, where the cluster names one) or a name of
            :data:`orchestrator.simulate.algorithms.ALGORITHMS`, ``ring`` where that does not suit.
    """

    def __init__(self, topology: Topology, listed: range, algorithm: str = "auto") -> None:
        self.topology, self.links, self.algorithm = topology, Links(topology, listed), algorithm
        self._memo: dict[tuple[str, int, Ranks], Collective] = {}
        self._flows: dict[Ranks, tuple[int, Load]] = {}

    def plan(self, kind: str, size: int, group: Ranks) -> Collective:
        """The phases of ALL_REDUCE, REDUCE_SCATTER or ALL_GATHER of ``size`` bytes over a group."""
        key = (kind, size, group)
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._choose(kind, size, group)
        return found

    def by(self, algorithm: str, kind: str, size: int, group: Ranks) -> Collective | None:
        """By one algorithm, from the links' bandwidths and latencies alone; None where it does not
        suit."""
        phases = ALGORITHMS[algorithm](self.links, kind, size, group)
        return Collective(algorithm, phases) if phases else None

    def _choose(self, kind: str, size: int, group: Ranks) -> Collective:
        capacity = self.topology.capacity
        library = self.topology.cluster.library
        if self.algorithm != "auto":
            found = [self.by(name, kind, size, group) for name in (self.algorithm, "ring")]
            return next(c for c in found if c)
        if library is not None:
            return self._by_library(library, kind, size, group)
        found = [self.by(name, kind, size, group) for name in ALGORITHMS]
        return min(
            (c for c in found if c), key=lambda c: sum(phase.alone(capacity) for phase in c.phases)
        )

    # -- by the model of a library ----------------------------------------------------------------

    def _by_library(self, library: Nccl, kind: str, size: int, group: Ranks) -> Collective:
        """The quickest of its ways: bytes at the speed of the links, and all else as latency."""
        nodes, load = self._flowing(group)
        rate = speed(load, self.topology.capacity)
        ways = estimates(library, kind, size, len(group), nodes, rate)
        best = min(ways, key=lambda way: way.seconds)
        latency = max(0.0, best.seconds - best.moved / rate)
        phase = Phase(latency, best.moved, load)
        return Collective(f"{best.algorithm} {best.protocol}", (phase,))

    def _flowing(self, group: Ranks) -> tuple[int, Load]:
        """How many machines a group is on, and the load for one byte that each rank sends."""
        found = self._flows.get(group)
        if found is None:
            nodes = self.links.nodes(group)
            load = self._through_nodes(nodes) if len(nodes) > 1 else self._widest(group)
            found = self._flows[group] = len(nodes), load
        return found

    def _widest(self, group: Ranks) -> Load:
        """One ring through a machine, or as many as there are ways from each rank to the others:
        what moves more."""
        one, capacity = self.links.around(group)[0], self.topology.capacity
        if not 2 < len(group) <= MOST_DIRECT:
            return one
        paths = len(group) - 1
        many = tuple((x, w / paths) for x, w in self.links.all_pairs(group)[0])
        return max(one, many, key=lambda load: speed(load, capacity))

    def _through_nodes(self, nodes: list[list[int]]) -> Load:
        """As many rings as each machine has ranks in the group; each leaves it from another one."""
        load: defaultdict[int, float] = defaultdict(float)
        rings = min(map(len, nodes))
        for here, ranks in enumerate(nodes):
            if not any(rank in self.links.listed for rank in ranks):
                continue
            following = nodes[(here + 1) % len(nodes)]
            for rank, target in zip(ranks[:rings], following, strict=False):
                if rank in self.links.listed:
                    for link in self.topology.path(rank, target)[0]:
                        load[link] += 1 / rings
            if len(ranks) > 1:
                for link, weight in self.links.around(tuple(ranks))[0]:
                    load[link] += weight * (len(ranks) - 1) / len(ranks)
        return as_load(load)
