"""How fast the simulator is, start-up excluded: ``python -m benchmarks.simulator [--plot FILE]``.

The plot is of time over ops: a straight line is what "time grows linearly with ops" looks like.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from orchestrator.models import Linear, Model
from orchestrator.plan import Plan, load_plan
from orchestrator.plan.load import read_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.predict import simulate

SPANS = (
    "conv1..pool1", "conv2..pool2", "conv3..relu3", "conv4..relu4", "conv5..pool5", "fc6..drop6",
    "fc7..drop7", "fc8",
)  # fmt: skip
# Stages and microbatches of 1F1B pipelines of about 1,000 to 500,000 ops.
PIPELINES = ((8, 24), (8, 64), (16, 128), (32, 256), (64, 512), (64, 1300))


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables, and with ``--plot`` draw the second one."""
    print("simulator: compile, two steps, accounting and memory")
    for replicas in (64, 1024):
        plan = columns_in_stages(replicas)
        model, cluster = model_of(plan), load_cluster("dgx-a100", [f"nodes={8 * replicas}"])
        walls = [simulate(plan, model, cluster).summary["simulate_wall_s"] for _ in range(3)]
        print(f"{plan.world_size:,} ranks in {replicas} replicas: {median(walls):.2f} s (of 3)")
    rates = [configurations_a_second() for _ in range(3)]
    print(f"AlexNet configurations of 8 ranks: {median(rates):.1f} a second (of 3)")
    rows = [pipeline_time(*shape) for shape in PIPELINES]
    print("     ops   seconds     ops/s")
    for ops, seconds in rows:
        print(f"{ops:8,}  {seconds:8.3f}  {ops / seconds:8,.0f}")
    if "--plot" in arguments:
        plot(rows, Path(arguments[arguments.index("--plot") + 1]))


def configurations_a_second() -> float:
    """Plans with eight batch sizes each, one after another in this process."""
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
    return len(plans) / (time.perf_counter() - begun)


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


def pipeline_time(stages: int, microbatches: int) -> tuple[int, float]:
    """Ops and seconds of a pipeline with one layer a stage; the median of 3."""
    entries = "\n".join(f"  - {{layers: fc{i}, ranks: [{i}], split: none}}" for i in range(stages))
    plan = read_plan(
        f"schema_version: 1\nname: pipeline\nmodel: {{name: any}}\n"
        f"global_batch_size: {microbatches}\nn_microbatches: {microbatches}\nschedule: 1F1B\n"
        f"placement:\n{entries}\n",
        "pipeline",
    )
    model = Model("chain", (256,), [Linear(name=f"fc{i}", features=256) for i in range(stages)])
    cluster = load_cluster("dgx-a100", [f"nodes={-(-stages // 8)}"])
    found = [simulate(plan, model, cluster) for _ in range(3)]
    ops = len(found[0].program.columns)
    return ops, median(prediction.summary["simulate_wall_s"] for prediction in found)


def plot(rows: Sequence[tuple[int, float]], path: Path) -> None:
    """Both axes logarithmic, with the line of the largest program's rate."""
    from matplotlib.figure import Figure

    ops, seconds = zip(*rows, strict=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(ops, seconds, "o", label="measured")
    line = [n * seconds[-1] / ops[-1] for n in ops]
    axes.loglog(ops, line, "--", color="grey", label=f"{ops[-1] / seconds[-1]:,.0f} ops a second")
    axes.set_xlabel("ops of the program")
    axes.set_ylabel("seconds: compile, two steps, accounting, memory")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
