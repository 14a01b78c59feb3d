"""A collective algorithm that no file of the package knows takes as long as its formula says."""

from __future__ import annotations

from math import log2

import pytest

from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE
from orchestrator.simulate.algorithms import ALGORITHMS, Links, Phase, Ranks
from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.network import Topology
from orchestrator.simulate.predict import simulate
from tests.program.small import LINEAR, small_plan
from tests.simulate.test_network import cluster, level

NAME = "recursive_doubling"
LATENCY, RATE = 1e-6, 1e9  # of a level there
COUNTS = [2, 4, 8, 16]
SIZE = 840_000


def recursive_doubling(links: Links, kind: str, size: int, group: Ranks) -> tuple[Phase, ...]:
    """In round k every rank exchanges all it has with the one whose number differs in bit k;
    Thakur, Rabenseifner and Gropp, 2005, section 4.4."""
    count = len(group)
    if kind != ALL_REDUCE or count & (count - 1):
        return ()
    phases = []
    for k in range(count.bit_length() - 1):
        pairs = [(rank, group[i ^ 1 << k]) for i, rank in enumerate(group)]
        load, latency = links.messages(pairs, group)
        phases.append(Phase(latency, size, load))
    return tuple(phases)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, NAME, recursive_doubling)


def seconds(made: Cluster, algorithm: str, count: int, size: int = SIZE) -> tuple[str, float]:
    plans = Collectives(Topology(made), range(count), algorithm)
    found = plans.plan(ALL_REDUCE, size, tuple(range(count)))
    return found.algorithm, sum(p.alone(plans.topology.capacity) for p in found.phases)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("count", COUNTS)
def test_on_a_switch(count: int) -> None:
    """Every port carries S bytes out and S in, each round."""
    rounds = log2(count)
    expected = rounds * (LATENCY + SIZE / RATE)
    name, found = seconds(cluster(level(count)), NAME, count)
    assert name == NAME
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("count", COUNTS)
def test_on_a_ring(count: int) -> None:
    """In round k messages go 2^k links, and as many share the fullest: S (1 + 2 + ... + n/2)."""
    expected = log2(count) * LATENCY + (count - 1) * SIZE / RATE
    name, found = seconds(cluster(level(count, "ring")), NAME, count)
    assert name == NAME
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("registered")
def test_where_it_is_the_quickest_it_is_taken() -> None:
    """16 ranks, few bytes: four latencies against the ring's 30 and the tree's eight."""
    made = cluster(level(16))
    assert seconds(made, "auto", 16, 64)[0] == NAME
    assert seconds(made, "auto", 16, 10**9)[0] == "ring"
    assert seconds(cluster(level(12)), "auto", 12, 64)[0] == "tree"  # no power of two


@pytest.mark.usefixtures("registered")
def test_where_it_does_not_suit_the_ring_is_taken() -> None:
    plans = Collectives(Topology(cluster(level(8))), range(8), NAME)
    assert plans.plan(ALL_GATHER, SIZE, tuple(range(8))).algorithm == "ring"
    assert plans.plan(ALL_REDUCE, SIZE, (0, 1, 2)).algorithm == "ring"


def test_a_simulated_step_is_shorter_by_what_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen ranks whose gradients are a few hundred bytes: latencies are all that counts."""
    plan = small_plan("layers: all, ranks: 0..15, split: batch", batch=16)
    made = cluster(level(16))
    before = simulate(plan, LINEAR, made).summary["step_time_s"]
    monkeypatch.setitem(ALGORITHMS, NAME, recursive_doubling)
    after = simulate(plan, LINEAR, made).summary["step_time_s"]
    assert after < before
