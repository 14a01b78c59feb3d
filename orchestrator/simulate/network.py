"""Links, paths, and how transfers share them: max-min fairness.

A transfer is a *flow*: so many bytes over links, each used with a weight (a ring collective
crosses a bus several times at once). All flows grow at the same speed until a link is full; those
on it are fixed, the others grow on (progressive filling, Bertsekas and Gallager, Data Networks,
1992, section 6.5.2). Speeds change only when a flow begins or ends.

Flows that begin together, have equal bytes and look alike (each link of the one corresponds to a
link of the other with as much capacity and as many of these flows on it) get equal speeds, so they
are kept as one *bundle*: an exchange among 8 x 8 ranks is one thing to follow instead of 64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from typing import Generic, TypeVar

from orchestrator.simulate.cluster import Cluster, Level

Route = tuple[int, ...]  # links of a path
Load = tuple[tuple[int, float], ...]  # (link, weight)

_KEPT = 65_536  # entries of a memo before it is dropped


class Topology:
    """Numbers the links of a cluster and finds paths.

    Args:
        shared_by: ranks of one replica where only the first of many equal replicas is simulated;
            a port or bus that n replicas share then has 1/n of its capacity for the first.
    """

    def __init__(self, cluster: Cluster, shared_by: int = 0) -> None:
        self.cluster, self.shared_by = cluster, shared_by
        self.capacity: list[float] = []
        self._links: dict[tuple[object, ...], int] = {}
        self._paths: dict[tuple[int, int], tuple[Route, float]] = {}
        sizes = [1]
        for level in cluster.network:
            sizes.append(sizes[-1] * level.size)
        self.group_sizes = sizes  # devices in one group of level i - 1, so one port of level i

    def path(self, source: int, target: int) -> tuple[Route, float]:
        """Links that a transfer takes, and its latency in seconds."""
        found = self._paths.get((source, target))
        if found is None:
            i = self.cluster.level_between(source, target)
            level = self.cluster.network[i]
            found = (self._route(i, level, source, target), level.latency)
            self._paths[source, target] = found
        return found

    def _route(self, i: int, level: Level, source: int, target: int) -> Route:
        port = self.group_sizes[i]
        a, b = source // port, target // port
        links = self._inner_ports(i, source, target) if level.nested else []
        if level.device_bandwidth < level.bandwidth and port > 1:
            links.append(self._link(("device out", i, source), level.device_bandwidth, 1))
            links.append(self._link(("device in", i, target), level.device_bandwidth, 1))
        if level.topology == "switch":
            links.append(self._link(("out", i, a), level.bandwidth, port))
            links.append(self._link(("in", i, b), level.bandwidth, port))
        elif level.topology == "shared":
            bus = port * level.size
            links.append(self._link(("bus", i, source // bus), level.bandwidth, bus))
        elif level.topology == "fully_connected":
            links.append(self._link(("pair", i, a, b), level.bandwidth, port))
        else:
            links += self._around(i, level, a, b, port)
        return tuple(links)

    def _inner_ports(self, i: int, source: int, target: int) -> list[int]:
        """The two devices' ports of the levels inside level ``i`` that a transfer crosses."""
        links: list[int] = []
        while self.cluster.network[i].nested:
            i -= 1
            level, port = self.cluster.network[i], self.group_sizes[i]
            if level.topology == "switch":
                links.append(self._link(("out", i, source // port), level.bandwidth, port))
                links.append(self._link(("in", i, target // port), level.bandwidth, port))
            else:
                bus = port * level.size
                for device in (source, target):
                    links.append(self._link(("bus", i, device // bus), level.bandwidth, bus))
        return links

    def from_host(self, i: int, rank: int) -> Route:
        """Links from the memory of a host, which is behind level ``i``, to a device."""
        links: list[int] = []
        nested = True
        while nested:
            level, port = self.cluster.network[i], self.group_sizes[i]
            if level.topology == "switch":
                links.append(self._link(("in", i, rank // port), level.bandwidth, port))
            else:
                bus = port * level.size
                links.append(self._link(("bus", i, rank // bus), level.bandwidth, bus))
            nested, i = level.nested, i - 1
        return tuple(links)

    def _around(self, i: int, level: Level, a: int, b: int, port: int) -> list[int]:
        """Along a ring of groups, the shorter way; forwards if both are as long."""
        base = a // level.size * level.size
        here, there = a - base, b - base
        forward = (there - here) % level.size
        step = 1 if forward <= level.size - forward else -1
        links = []
        while here != there:
            following = (here + step) % level.size
            links.append(
                self._link(("ring", i, base + here, base + following), level.bandwidth, port)
            )
            here = following
        return links

    def _link(self, key: tuple[object, ...], bandwidth: float, devices: int) -> int:
        found = self._links.get(key)
        if found is None:
            found = self._links[key] = len(self.capacity)
            sharing = max(1, devices // self.shared_by) if self.shared_by else 1
            self.capacity.append(bandwidth / sharing)
        return found


T = TypeVar("T")


class Flow(Generic[T]):
    """Bytes on their way over weighted links; ``carries`` is what the caller knows it by."""

    __slots__ = ("carries", "ends", "load", "number", "rate", "remaining", "since")

    def __init__(self, number: int, load: Load, size: float, carries: T) -> None:
        self.number, self.load, self.carries = number, load, carries
        self.remaining, self.rate, self.since, self.ends = size, 0.0, 0.0, 0.0


class Network(Generic[T]):
    """All flows at one moment. The caller moves the time on and asks which flow ends next.

    Args:
        stretch: of what a flow carries, how many times as long as by its share of the links it
            takes, as things stand; nothing else gets what it leaves.
    """

    def __init__(
        self, capacity: Sequence[float], stretch: Callable[[T], float] | None = None
    ) -> None:
        self.capacity, self.stretch = capacity, stretch
        self.flows: dict[int, Flow[T]] = {}
        self._numbers = count()
        self._memo: dict[tuple[Load, ...], list[float]] = {}
        self._changed = False

    def add(self, now: float, load: Load, size: float, carries: T) -> None:
        """A flow begins. Call :meth:`settle` when all that begin or end now are known."""
        flow = Flow(next(self._numbers), load, size, carries)
        flow.since = now
        self.flows[flow.number] = flow
        self._changed = True

    def settle(self, now: float) -> None:
        """Share the links out anew."""
        if not self._changed and (self.stretch is None or not self.flows):
            return
        self._changed = False
        flows = list(self.flows.values())
        key = tuple(flow.load for flow in flows)
        rates = self._memo.get(key)
        if rates is None:
            if len(self._memo) > _KEPT:
                self._memo.clear()
            rates = self._memo[key] = fair_rates(key, self.capacity)
        for flow, share in zip(flows, rates, strict=True):
            rate = share / self.stretch(flow.carries) if self.stretch else share
            if flow.rate != rate:
                flow.remaining -= flow.rate * (now - flow.since)
                flow.rate, flow.since = rate, now
                flow.ends = now + max(0.0, flow.remaining) / rate

    def next_end(self) -> float:
        """When the next flow ends; infinity without flows."""
        return min((flow.ends for flow in self.flows.values()), default=float("inf"))

    def take_ended(self, now: float) -> list[Flow[T]]:
        """Remove the flows that end now."""
        ended = [flow for flow in self.flows.values() if flow.ends <= now]
        for flow in ended:
            del self.flows[flow.number]
        self._changed = self._changed or bool(ended)
        return ended


def fair_rates(loads: Sequence[Load], capacity: Sequence[float]) -> list[float]:
    """Max-min fair speeds, bytes a second.

    Args:
        loads: by flow, the links it uses and how often; every flow uses at least one.
        capacity: by link, bytes a second.
    """
    left = {link: capacity[link] for load in loads for link, _ in load}
    users: dict[int, dict[int, float]] = {link: {} for link in left}
    for i, load in enumerate(loads):
        for link, weight in load:
            users[link][i] = users[link].get(i, 0.0) + weight
    rates = [0.0] * len(loads)
    open_links = {link for link, on in users.items() if on}
    while open_links:
        speed, full = min((left[x] / sum(users[x].values()), x) for x in open_links)
        for i in list(users[full]):
            rates[i] = speed
            for link, _ in loads[i]:
                weight = users[link].pop(i, 0.0)
                left[link] = max(0.0, left[link] - weight * speed)
                if not users[link]:
                    open_links.discard(link)
    return rates


def bundles(routes: Sequence[Route], capacity: Sequence[float]) -> list[tuple[Load, list[int]]]:
    """Flows of equal bytes that begin together: as few bundles as may be followed as one.

    Returns:
        (load of the bundle, positions in ``routes``): one if all look alike, else each alone.
    """
    if len(routes) == 1:
        return [(tuple((link, 1.0) for link in routes[0]), [0])]
    weights: Counter[int] = Counter(chain.from_iterable(routes))
    look = {link: (capacity[link], weight) for link, weight in weights.items()}
    looks = {tuple(sorted([look[link] for link in route])) for route in routes}
    if len(looks) == 1:
        return [(tuple(sorted((x, float(n)) for x, n in weights.items())), [*range(len(routes))])]
    return [(tuple((link, 1.0) for link in route), [i]) for i, route in enumerate(routes)]


def combined(routes: Iterable[Route]) -> Load:
    """The load of flows that go at one speed because they belong together, as a ring's do."""
    weights: Counter[int] = Counter(chain.from_iterable(routes))
    return tuple(sorted((link, float(n)) for link, n in weights.items()))
