"""NCCL's model against its own arithmetic, and against published all-reduces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.nccl import Estimate, Nccl, estimates
from orchestrator.simulate.network import Topology
from orchestrator.simulate.sweep import with_bandwidth

A100 = Nccl("ampere", "nvlink", "amd", start=1e-5, channels=24)
EIGHT = tuple(range(8))
BANDWIDTH = 240e9


def ways(nccl: Nccl, kind: str, size: int, ranks: int = 8, nodes: int = 1) -> dict[str, Estimate]:
    found = estimates(nccl, kind, size, ranks, nodes, BANDWIDTH)
    return {f"{way.algorithm} {way.protocol}": way for way in found}


# Eight A100 with 240 GB/s: microseconds of latency and GB/s of the tensor, by hand from tuning.cc.
# A ring takes 14 steps and moves 14/8 of the tensor; a tree moves it twice, at 0.92 of the speed.
BY_HAND = {
    "ring LL": (6.6 + 14 * 0.6, 240 / 4 * 8 / 14),
    "ring LL128": (14 + 14 * 1.9, 240 * 0.92 * 8 / 14),
    "ring Simple": (8.4 + 14 * 3.4, 240 * 8 / 14),
    "tree LL": (6.8 + 14 * 0.6, 240 * 0.92 / 3.8 / 2),
    "tree LL128": (14 + 14 * 1.25, 240 * 0.92 * 7 / 9 / 2),
    "tree Simple": (14 * 28, 240 * 0.92 / 2),
}


@pytest.mark.parametrize("way", BY_HAND)
def test_a_way_takes_its_latency_and_its_bytes(way: str) -> None:
    latency, bandwidth = BY_HAND[way]
    size = 2**30  # where trees reach all of their bandwidth
    found = ways(A100, ALL_REDUCE, size)
    assert set(found) == set(BY_HAND)
    assert found[way].seconds == pytest.approx(1e-5 + latency * 1e-6 + size / bandwidth / 1e9)


def test_trees_reach_less_in_between() -> None:
    """0.6 of the bandwidth at 1 MiB with LL128, as tuning.cc corrects them."""
    latency, bandwidth = BY_HAND["tree LL128"]
    seconds = ways(A100, ALL_REDUCE, 2**20)["tree LL128"].seconds
    assert seconds == pytest.approx(1e-5 + latency * 1e-6 + 2**20 / (bandwidth * 0.6) / 1e9)


def test_halves_of_an_all_reduce_go_round_once() -> None:
    for kind in (REDUCE_SCATTER, ALL_GATHER):
        found = ways(A100, kind, 2**30)
        assert set(found) == {"ring LL", "ring LL128", "ring Simple"}
        assert found["ring Simple"].moved == 2**30 * 7 / 8
        latency = (8.4 + 7 * 3.4) * 1e-6
        assert found["ring Simple"].seconds == pytest.approx(
            1e-5 + latency + 2**30 * 7 / 8 / BANDWIDTH
        )


@pytest.mark.parametrize("nccl", [replace(A100, generation="pascal"), replace(A100, wire="pcie")])
def test_a_protocol_that_the_wires_do_not_keep_in_order_is_not_used(nccl: Nccl) -> None:
    assert not any("LL128" in way for way in ways(nccl, ALL_REDUCE, 2**20))


def test_switches_that_add_up() -> None:
    nccl = replace(A100, generation="hopper", switch_bandwidth=300e9)
    found = ways(nccl, ALL_REDUCE, 2**30)["switch Simple"]
    assert found.moved == 2**30 * 9 / 8
    assert found.seconds == pytest.approx(1e-5 + 23e-6 + found.moved / 300e9)
    for kind, nodes in ((ALL_GATHER, 1), (ALL_REDUCE, 2)):
        assert "switch Simple" not in ways(nccl, kind, 2**30, 16, nodes)


def test_steps_over_the_network_cost_more() -> None:
    """Two nodes: of a ring's 30 steps 4 cross, and none is quicker than the work to post it."""
    found = ways(A100, ALL_REDUCE, 64, 16, 2)
    moved = 64 * 30 / 16
    low = (6.6 + 26 * 2.0 + 4 * 2.7) * 1e-6 + moved / 22.5e9
    assert found["ring LL"].seconds == pytest.approx(1e-5 + low)
    simple = (8.4 + 26 * 6.0 + 4 * 14.0) * 1e-6
    assert found["ring Simple"].seconds == pytest.approx(1e-5 + simple + moved / BANDWIDTH)
    large = 64 * 24 * 16  # from here on a ring waits
    assert ways(A100, ALL_REDUCE, large, 16, 2)["ring Simple"].seconds == pytest.approx(
        1e-5 + 1.4 * simple + large * 30 / 16 / BANDWIDTH
    )


def test_small_ones_take_LL_then_LL128_then_Simple() -> None:  # noqa: N802  names of NCCL's
    plans = Collectives(Topology(load_cluster("dgx-a100")), range(8))
    chosen = [plans.plan(ALL_REDUCE, 2**power, EIGHT).algorithm for power in range(10, 34)]
    kinds = [way.split()[1] for way in chosen]
    assert list(dict.fromkeys(kinds)) == ["LL", "LL128", "Simple"]
    assert kinds == sorted(kinds, key=["LL", "LL128", "Simple"].index)


@pytest.mark.parametrize("name", ["dgx-a100", "dgx-h100", "dgx1-p100", "h200x8"])
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_plan_is_no_quicker_than_its_links(name: str, nodes: int) -> None:
    cluster = load_cluster(name, [f"nodes={nodes}"])
    topology = Topology(cluster)
    group = tuple(range(cluster.device_count))
    plans = Collectives(topology, range(cluster.device_count))
    assert cluster.library is not None
    for kind in (ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER):
        before = 0.0
        for power in range(10, 34):
            (phase,) = plans.plan(kind, 2**power, group).phases
            seconds = phase.alone(topology.capacity)
            assert phase.latency >= cluster.library.start
            assert seconds >= before
            before = seconds


def test_rings_through_nodes_use_every_port() -> None:
    """Large ones: 2 (n-1)/n of the tensor at the speed of a node's eight network ports."""
    cluster = load_cluster("dgx-a100", ["nodes=4"])
    topology = Topology(cluster)
    group, size = tuple(range(32)), 2**36
    (phase,) = Collectives(topology, range(32)).plan(ALL_REDUCE, size, group).phases
    assert phase.alone(topology.capacity) == pytest.approx(2 * 31 / 32 * size / 200e9, rel=1e-2)
    # nodes with one rank each have one port for it
    alone = tuple(range(0, 32, 8))
    (phase,) = Collectives(topology, range(32)).plan(ALL_REDUCE, size, alone).phases
    assert phase.alone(topology.capacity) == pytest.approx(2 * 3 / 4 * size / 25e9, rel=1e-2)


def test_a_faster_network_has_faster_switches() -> None:
    slow, fast = load_cluster("h200x8"), with_bandwidth(load_cluster("h200x8"), 2)
    assert slow.library is not None
    assert slow.library.switch_bandwidth is not None
    assert fast.library == replace(slow.library, switch_bandwidth=2 * slow.library.switch_bandwidth)


def test_machines_without_a_library_go_by_their_links() -> None:
    for name in ("k20x8", "gtx580x2", "titanblack"):
        assert load_cluster(name).library is None


@pytest.mark.parametrize("table", ["nccl_all_reduce", "nccl_all_reduce_h200"])
def test_published_all_reduces(table: str) -> None:
    """Every size is met within 30 %, and the model is nearer than latency and bandwidth alone."""
    published = Path(__file__).parents[2] / "benchmarks" / "published.yaml"
    found: dict[str, Any] = yaml.safe_load(published.read_text())[table]
    topology = Topology(load_cluster(found["cluster"]))

    def errors(algorithm: str) -> list[float]:
        plans = Collectives(topology, range(8), algorithm)
        off = []
        for row in found["rows"]:
            seconds = row["us"] * 1e-6 if "us" in row else row["bytes"] / row["GBps"] / 1e9
            phases = plans.plan(ALL_REDUCE, row["bytes"], EIGHT).phases
            off.append(abs(sum(p.alone(topology.capacity) for p in phases) / seconds - 1))
        return off

    library, links = errors("auto"), errors("ring")
    assert max(library) < 0.30
    assert sum(library) / len(library) < 0.12
    assert sum(library) < sum(links)
