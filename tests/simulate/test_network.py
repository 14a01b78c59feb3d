"""Sharing of links against a brute-force reference, and paths through each kind of level."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from orchestrator.simulate.cluster import Cluster, Device, Level
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.network import Load, Network, Topology, bundles, fair_rates
from orchestrator.simulate.predict import daly_interval

DEVICE = Device("any", 2**30, 1e9, {"float32": 1e12})


def cluster(*levels: Level, per_node: int | None = None) -> Cluster:
    count = 1
    for level in levels:
        count *= level.size
    per_node = per_node or count
    return Cluster("c", count // per_node, per_node, ((DEVICE, count),), tuple(levels))


def level(size: int, topology: str = "switch", bandwidth: float = 1e9) -> Level:
    return Level(topology, size, bandwidth, 1e-6, topology, bandwidth)  # type: ignore[arg-type]


@st.composite
def flows(draw: st.DrawFn) -> tuple[list[Load], list[float]]:
    links = draw(st.integers(1, 5))
    capacity = draw(st.lists(st.integers(1, 20), min_size=links, max_size=links))
    loads = draw(
        st.lists(
            st.dictionaries(
                st.integers(0, links - 1), st.integers(1, 3), min_size=1, max_size=links
            ),
            min_size=1,
            max_size=6,
        )
    )
    return [tuple((k, float(v)) for k, v in d.items()) for d in loads], [float(c) for c in capacity]


def filled_in_small_steps(loads: list[Load], capacity: list[float]) -> list[float]:
    """Let all flows grow by a little, again and again, until a link of theirs is full."""
    step = 1e-3
    rates = [0.0] * len(loads)
    growing = set(range(len(loads)))
    while growing:
        for i in list(growing):
            used = [sum(w * rates[j] for j, load in enumerate(loads) for x, w in load if x == link)
                    for link, _ in loads[i]]  # fmt: skip
            more = [
                sum(w for j in growing for x, w in loads[j] if x == link) for link, _ in loads[i]
            ]
            if any(u + m * step > capacity[link] + 1e-9
                   for u, m, (link, _) in zip(used, more, loads[i], strict=True)):  # fmt: skip
                growing.discard(i)
        for i in growing:
            rates[i] += step
    return rates


@given(flows())
def test_sharing_is_max_min_fair(case: tuple[list[Load], list[float]]) -> None:
    """Nobody can get more without taking from one who has no more: each has a full link on which
    no other goes faster; and no link is overfull."""
    loads, capacity = case
    rates = fair_rates(loads, capacity)
    used = [0.0] * len(capacity)
    for load, rate in zip(loads, rates, strict=True):
        for link, weight in load:
            used[link] += weight * rate
    assert all(u <= c * (1 + 1e-9) for u, c in zip(used, capacity, strict=True))
    for load, rate in zip(loads, rates, strict=True):
        assert any(
            used[link] >= capacity[link] * (1 - 1e-9)
            and all(rates[j] <= rate * (1 + 1e-9)
                    for j, other in enumerate(loads) if any(x == link for x, _ in other))
            for link, _ in load
        )  # fmt: skip


@pytest.mark.parametrize(
    ("loads", "capacity"),
    [
        ([((0, 1.0),), ((0, 1.0), (1, 1.0)), ((1, 1.0),)], [1.0, 2.0]),
        ([((0, 2.0),), ((0, 1.0),), ((1, 1.0), (0, 1.0))], [2.0, 0.25]),
        ([((0, 1.0), (1, 1.0), (2, 1.0)), ((0, 1.0),), ((1, 1.0),), ((2, 1.0),)], [1.0, 2.0, 3.0]),
    ],
)
def test_sharing_agrees_with_filling_in_small_steps(
    loads: list[Load], capacity: list[float]
) -> None:
    assert fair_rates(loads, capacity) == pytest.approx(
        filled_in_small_steps(loads, capacity), abs=5e-3
    )


def test_a_flow_speeds_up_when_another_ends() -> None:
    """10 bytes and 30 over one link of 1 byte a second: the first ends at 20, the second at 40."""
    network: Network[list[int]] = Network([1.0])
    network.add(0.0, ((0, 1.0),), 10, [0])
    network.add(0.0, ((0, 1.0),), 30, [1])
    network.settle(0.0)
    ends = []
    while network.flows:
        now = network.next_end()
        ends += [(now, m) for flow in network.take_ended(now) for m in flow.carries]
        network.settle(now)
    assert ends == [(20.0, 0), (40.0, 1)]


def test_an_exchange_among_equals_is_one_bundle() -> None:
    topology = Topology(cluster(level(4)))
    routes = [topology.path(a, b)[0] for a in range(4) for b in range(4) if a != b]
    found = bundles(routes, topology.capacity)
    assert len(found) == 1
    alone = fair_rates([tuple((x, 1.0) for x in r) for r in routes], topology.capacity)
    assert fair_rates([found[0][0]], topology.capacity) == pytest.approx([alone[0]])
    uneven = bundles([*routes, topology.path(0, 1)[0]], topology.capacity)
    assert len(uneven) == len(routes) + 1


@pytest.mark.parametrize(
    ("topology", "expected"),
    [("switch", 1e9), ("shared", 1e9 / 12), ("fully_connected", 1e9), ("ring", 1e9 / 3)],
)
def test_all_to_all_over_each_kind_of_level(topology: str, expected: float) -> None:
    """Four devices, each sending to each: the bus carries 12 messages, a switch's port 3, ..."""
    made = Topology(cluster(level(4, topology)))
    loads = [
        tuple((x, 1.0) for x in made.path(a, b)[0]) for a in range(4) for b in range(4) if a != b
    ]
    slowest = min(fair_rates(loads, made.capacity))
    assert slowest == pytest.approx(expected / (3 if topology == "switch" else 1))


def test_traffic_between_nodes_takes_the_outer_level() -> None:
    inner, outer = level(4), level(2, bandwidth=1e8)
    made = Topology(cluster(inner, outer, per_node=4))
    within, _ = made.path(0, 3)
    across, _ = made.path(0, 4)
    assert {made.capacity[x] for x in within} == {1e9}
    assert {made.capacity[x] for x in across} == {1e8}
    assert made.path(1, 5)[0] == across  # the node's port is shared


def test_nested_levels_share_the_ports_of_the_devices() -> None:
    """One slot a card: what it sends near and far goes through the same port."""
    outer = replace(level(2, bandwidth=2e9), nested=True)
    made = Topology(cluster(level(4), outer))
    near, far = made.path(0, 1)[0], made.path(0, 4)[0]
    assert near[0] in far
    assert len(far) == 4  # out of the card, up from its switch, down to the other, into the card
    assert set(made.path(1, 5)[0]) & set(far) == {x for x in far if made.capacity[x] == 2e9}
    rates = fair_rates([tuple((x, 1.0) for x in route) for route in (near, far)], made.capacity)
    assert rates == [5e8, 5e8]


@pytest.mark.parametrize("count", range(2, 9))
def test_a_ring_sends_what_the_formula_says(count: int) -> None:
    """2 (n-1)/n of the buffer for an all-reduce, (n-1)/n for its halves; NCCL's bus bandwidth."""
    group = tuple(range(count))
    plans = Collectives(Topology(cluster(level(8))), range(8), "ring")
    size = 840_000
    for kind, factor in ((ALL_REDUCE, 2), (REDUCE_SCATTER, 1), (ALL_GATHER, 1)):
        (phase,) = plans.plan(kind, size, group).phases
        assert phase.size == pytest.approx(factor * (count - 1) / count * size)
        assert phase.latency == pytest.approx(factor * (count - 1) * 1e-6)
        assert phase.alone(plans.topology.capacity) == pytest.approx(
            phase.latency + phase.size / 1e9
        )


def test_small_messages_take_the_tree_and_large_ones_the_ring() -> None:
    plans = Collectives(Topology(cluster(level(64))), range(64))
    group = tuple(range(64))
    assert plans.plan(ALL_REDUCE, 1024, group).algorithm in ("tree", "direct")
    assert plans.plan(ALL_REDUCE, 10**9, group).algorithm == "ring"


def test_nodes_with_a_slow_network_reduce_inside_first() -> None:
    inner, outer = level(8), level(4, bandwidth=1e8)
    plans = Collectives(Topology(cluster(inner, outer, per_node=8)), range(32))
    found = plans.plan(ALL_REDUCE, 10**8, tuple(range(32)))
    ring = Collectives(plans.topology, range(32), "ring").plan(ALL_REDUCE, 10**8, tuple(range(32)))
    capacity = plans.topology.capacity
    assert sum(p.alone(capacity) for p in found.phases) <= ring.phases[0].alone(capacity)


@pytest.mark.parametrize(("mtbf_min", "published"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_dalys_table(mtbf_min: float, published: float) -> None:
    """Daly 2006: checkpoints of 5 minutes; optimum interval in minutes as printed there."""
    assert daly_interval(5, mtbf_min) == pytest.approx(published, abs=0.5)


def test_a_stretched_flow_takes_longer_and_leaves_its_share_unused() -> None:
    """Two flows share 2 bytes a second; one is stretched to 4 times until second 2."""
    slow = {"a": 4.0, "b": 1.0}
    network: Network[str] = Network([2.0], slow.__getitem__)
    for name in slow:
        network.add(0.0, ((0, 1.0),), 4.0, name)
    network.settle(0.0)
    assert [flow.ends for flow in network.flows.values()] == [16.0, 4.0]
    slow["a"] = 1.0
    network.settle(2.0)
    # of a 3.5 bytes are left; both go at 1 a second, until b ends and a has the link alone
    assert [flow.ends for flow in network.flows.values()] == [5.5, 4.0]
    assert [flow.carries for flow in network.take_ended(4.0)] == ["b"]
    network.settle(4.0)
    assert network.next_end() == 4.0 + 1.5 / 2
