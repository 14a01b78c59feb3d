"""Images from the host: closed forms of one step, and what they share links with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.images import host_copies
from orchestrator.simulate.network import Topology
from orchestrator.simulate.predict import simulate_program

IMAGE = 3 * 224 * 224 * 4
K20X8 = load_cluster("k20x8")


def step(cluster: Cluster, ranks: int, slowdown: float, *, host: bool = True) -> float:
    """Seconds of a step of the 2014 net, 128 images a rank, data parallel."""
    kinds = tuple((replace(d, transfer_slowdown=slowdown), n) for d, n in cluster.kinds)
    levels = (*cluster.network[:-1], replace(cluster.network[-1], host=host))
    made = replace(cluster, kinds=kinds, network=levels)
    name = "single" if ranks == 1 else "data-parallel"
    settings = ["model={name: alexnet2014}", f"global_batch_size={128 * ranks}"]
    if ranks > 1:
        settings.append(f"placement.0.ranks=0..{ranks - 1}")
    plan = load_plan(name, settings)
    program = compile_plan(plan, model_of(plan), dtype="float32")
    return float(simulate_program(program, made).summary["step_time_s"])


def test_each_rank_gets_its_own_images() -> None:
    plan = load_plan("data-parallel", ["global_batch_size=64", "n_microbatches=2"])
    program = compile_plan(plan, model_of(plan), dtype="float32")
    copies = host_copies(program, Topology(K20X8))
    assert {rank: copy.size for rank, copy in copies.items()} == {0: 32 * IMAGE, 1: 32 * IMAGE}
    assert host_copies(program, Topology(load_cluster("gtx580x2"))) == {}


def test_every_column_gets_all_images() -> None:
    plan = load_plan("krizhevsky2012")
    program = compile_plan(plan, model_of(plan), dtype="float32")
    sizes = [copy.size for copy in host_copies(program, Topology(K20X8)).values()]
    assert sizes == [128 * IMAGE, 128 * IMAGE]


@pytest.mark.parametrize(("ranks", "rate"), [(1, 6e9), (2, 6e9), (4, 3e9)])
def test_copies_as_kernels_take_the_links_time_from_computation(ranks: int, rate: float) -> None:
    """Two cards fill the two links of their switch; four have half of a link each."""
    longer = step(K20X8, ranks, 0.99) - step(K20X8, ranks, 0.99, host=False)
    copying = 128 * IMAGE / rate
    assert longer == pytest.approx(0.99 * copying + 10e-6, rel=5e-3)


def test_copies_beside_computation_cost_nothing_while_they_are_shorter() -> None:
    assert step(K20X8, 4, 0.0) == step(K20X8, 4, 0.0, host=False)


def test_a_step_waits_for_its_images() -> None:
    slow = replace(K20X8.network[-1], bandwidth=4e8)
    cluster = replace(K20X8, network=(*K20X8.network[:-1], slow))
    assert step(cluster, 4, 0.0) == pytest.approx(20e-6 + 4 * 128 * IMAGE / 4e8, rel=1e-6)
