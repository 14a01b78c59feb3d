"""How fast the simulator is, start-up excluded: ``python -m benchmarks.simulator``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from orchestrator.plan import Plan, load_plan
from orchestrator.plan.load import read_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.predict import simulate

SPANS = (
    "conv1..pool1", "conv2..pool2", "conv3..relu3", "conv4..relu4", "conv5..pool5", "fc6..drop6",
    "fc7..drop7", "fc8",
)  # fmt: skip


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table."""
    print("simulator: compile, two steps, accounting and memory")
    for replicas in (64, 1024):
        plan = columns_in_stages(replicas)
        model, cluster = model_of(plan), load_cluster("dgx-a100", [f"nodes={8 * replicas}"])
        walls = [simulate(plan, model, cluster).summary["simulate_wall_s"] for _ in range(3)]
        print(f"{plan.world_size:,} ranks in {replicas} replicas: {median(walls):.2f} s (of 3)")
    plans = [
        load_plan(name, [f"global_batch_size={128 * i}", *ranks])
        for name, ranks in (
            ("one-weird-trick-gather", ["placement.0.ranks=0..7", "placement.1.ranks=0..7"]),
            ("data-parallel", ["placement.0.ranks=0..7"]),
        )
        for i in range(1, 9)
    ]
    models, cluster = [model_of(plan) for plan in plans], load_cluster("k20x8")
    begun = time.perf_counter()
    for plan, model in zip(plans, models, strict=True):
        simulate(plan, model, cluster)
    rate = len(plans) / (time.perf_counter() - begun)
    print(f"AlexNet configurations of 8 ranks: {rate:.1f} a second")


def columns_in_stages(replicas: int) -> Plan:
    """Eight pipeline stages of eight columns, 1F1B with 64 microbatches of 8 images."""
    entries = "\n".join(
        f"  - {{layers: {span}, ranks: {8 * i}..{8 * i + 7}, split: channel}}"
        for i, span in enumerate(SPANS)
    )
    return read_plan(
        "schema_version: 1\nname: columns-in-stages\nmodel: {name: alexnet2014}\n"
        f"global_batch_size: {512 * replicas}\nn_microbatches: 64\nschedule: 1F1B\n"
        f"replicas: {replicas}\nplacement:\n{entries}\n",
        "columns-in-stages",
    )


if __name__ == "__main__":
    main()
