"""Collectives through replicas of which only the first is simulated."""

from __future__ import annotations

import pytest

from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.ops import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.network import Topology
from orchestrator.simulate.predict import simulate_program

# Four replicas of two ranks on eight devices: the ring of 0, 2, 4, 6 crosses the host between 2
# and 4, where rank 0 is not. With a slow host that was not seen, and steps were up to a quarter too
# short; in rings over nodes, rank 0 paid for its whole node.
RINGS: list[tuple[str, tuple[str, ...], int]] = [
    ("k20x8", (), 4),
    ("k20x8", ("network.1.GBps=3",), 4),
    ("k20x8", ("network.1.GBps=3", "network.1.nested=false"), 4),
    ("dgx-a100", ("nodes=3", "collectives=null"), 12),
    ("dgx-a100", ("nodes=3",), 12),
    ("dgx-h100", ("nodes=2",), 5),  # four replicas on the one node, one on the other
    ("dgx1-p100", ("nodes=2",), 8),
]


@pytest.mark.parametrize(("name", "settings", "replicas"), RINGS)
@pytest.mark.parametrize("kind", [ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER])
def test_one_replica_sees_the_whole_ring(
    name: str, settings: tuple[str, ...], replicas: int, kind: str
) -> None:
    cluster = load_cluster(name, settings)
    group = tuple(range(0, 2 * replicas, 2))
    folded = Collectives(Topology(cluster, shared_by=2), range(2))
    whole = Collectives(Topology(cluster), range(2 * replicas))
    for size in (10**4, 10**6, 10**8):
        seconds = [
            sum(p.alone(plans.topology.capacity) for p in plans.plan(kind, size, group).phases)
            for plans in (folded, whole)
        ]
        assert seconds[0] == pytest.approx(seconds[1], rel=1e-9)


def test_a_group_inside_a_replica_shares_its_ports() -> None:
    """Two replicas of two on one switch level above: each has half of the host's port."""
    cluster = load_cluster("k20x8")
    shared = Collectives(Topology(cluster, shared_by=2), range(2), "ring")
    (phase,) = shared.plan(ALL_REDUCE, 10**6, (0, 1)).phases
    assert phase.alone(shared.topology.capacity) == pytest.approx(2 * 1e-5 + 10**6 / 6e9)


def test_only_the_hops_that_differ_are_looked_at() -> None:
    """A ring through 4,096 devices is told from its first two nodes and the last."""
    cluster = load_cluster("dgx-h100", ["nodes=512", "collectives=null"])
    plans = Collectives(Topology(cluster, shared_by=2), range(2), "ring")
    (phase,) = plans.plan(ALL_REDUCE, 10**9, tuple(range(0, 4096, 2))).phases
    assert len(plans.topology.capacity) < 20
    rate = 50e9  # one network port: of the device that passes the ring on to the next node
    flowing = phase.alone(plans.topology.capacity) - phase.latency
    assert flowing == pytest.approx(2 * 2047 / 2048 * 10**9 / rate)


@pytest.mark.parametrize(("name", "settings", "replicas"), RINGS)
@pytest.mark.parametrize("sharding", ["none", "zero1"])
def test_a_folded_program_takes_as_long(
    name: str, settings: tuple[str, ...], replicas: int, sharding: str
) -> None:
    cluster = load_cluster(name, settings)
    folded, whole = (_step(cluster, replicas, sharding, fold) for fold in (True, False))
    assert folded == pytest.approx(whole, rel=1e-3)


def _step(cluster: Cluster, replicas: int, sharding: str, fold: bool) -> float:
    changes = [f"replicas={replicas}", f"global_batch_size={16 * replicas}"]
    plan = load_plan("krizhevsky2012", [*changes, f"optimizer_sharding={sharding}"])
    program = compile_plan(plan, model_of(plan), fold=fold)
    assert program.folded == fold
    return float(simulate_program(program, cluster).summary["step_time_s"])
