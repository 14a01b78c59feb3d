"""Published figures, predicted: ``python -m benchmarks.reproduce [TABLE ...]``.

Prints published, predicted and signed error, a table at a time, and which rows calibrated. The
figures and their sources are in ``published.yaml`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from orchestrator.models import Linear, Model
from orchestrator.plan import load_plan
from orchestrator.plan.load import read_plan
from orchestrator.program.ops import ALL_REDUCE, B, F
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.epoch import IMAGENET_2012
from orchestrator.simulate.network import Topology
from orchestrator.simulate.predict import daly_interval, simulate

GPIPE_LAYERS = 48
SCHEME = "one-weird-trick-broadcast"  # of the three schemes of the paper


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables that are named, or all."""
    published = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
    tables: dict[str, Callable[[dict[str, Any]], None]] = {
        "one_weird_trick": one_weird_trick,
        "nccl_all_reduce": nccl_all_reduce,
        "nccl_all_reduce_h200": nccl_all_reduce,
        "two_columns": two_columns,
        "titan_black": titan_black,
        "gpipe": gpipe,
        "daly": daly,
    }
    names = [a for a in arguments if not a.startswith("-")] or list(tables)
    for name in names:
        print(f"\n## {name}\n{published[name]['source']}\nchecked: {published[name]['checked']}\n")
        tables[name](published[name])


def row(what: str, published: float, predicted: float, unit: str, *, calibrates: bool) -> str:
    """One line of a table."""
    note = "calibrated on it" if calibrates else f"{predicted / published - 1:+.1%}"
    return f"| {what} | {published:.4g} {unit} | {predicted:.4g} {unit} | {note} |"


HEAD = "| what | published | predicted | error |\n|---|---|---|---|"


def one_weird_trick(table: dict[str, Any]) -> None:
    """Step times on 1 to 8 GPUs; the one-GPU row sets the device's efficiency."""
    steps = [
        r["hours"] * 3600 / (table["epochs"] * table["images"] / r["batch"]) for r in table["rows"]
    ]
    cluster = load_cluster(table["cluster"])
    (first,) = [i for i, r in enumerate(table["rows"]) if r.get("calibrates")]
    cluster = fitted(cluster, lambda c: owt_step(c, 1, 0), steps[first])
    print(HEAD)
    speeds = []
    for r, published in zip(table["rows"], steps, strict=True):
        smaller = r["fc_batch"] if r["fc_batch"] < r["batch"] else 0
        predicted = owt_step(cluster, r["gpus"], smaller)
        speeds.append((r, published / r["batch"], predicted / r["batch"]))
        what = f"{r['gpus']} GPUs ({r['batch']}, {r['fc_batch']})"
        calibrates = bool(r.get("calibrates"))
        print(row(what, published * 1e3, predicted * 1e3, "ms a step", calibrates=calibrates))
    for r, published, predicted in speeds[-2:]:
        what = f"speed-up on {r['gpus']} ({r['batch']}, {r['fc_batch']})"
        print(row(what, speeds[0][1] / published, speeds[0][2] / predicted, "x", calibrates=False))


def owt_step(cluster: Cluster, gpus: int, fc_batch: int) -> float:
    """Seconds of a step with 128 images a GPU."""
    if gpus == 1:
        plan = load_plan("single", ["model={name: alexnet2014}"])
    else:
        ranks = [f"placement.{i}.ranks=0..{gpus - 1}" for i in (0, 1)]
        update = [f"training.layer_batch.fc6..fc8={fc_batch}"] if fc_batch else []
        plan = load_plan(SCHEME, [f"global_batch_size={128 * gpus}", *ranks, *update])
    return float(simulate(plan, model_of(plan), cluster).summary["step_time_s"])


def fitted(cluster: Cluster, measure: Callable[[Cluster], float], wanted: float) -> Cluster:
    """The cluster with all efficiencies scaled alike, so that ``measure`` gives what is wanted."""
    low, high = 0.1, 10.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        if measure(_scaled(cluster, middle)) > wanted:
            low = middle
        else:
            high = middle
    return _scaled(cluster, high)


def _scaled(cluster: Cluster, factor: float) -> Cluster:
    kinds = tuple(
        (replace(d, efficiency={k: e * factor for k, e in d.efficiency.items()}), count)
        for d, count in cluster.kinds
    )
    return replace(cluster, kinds=kinds)


def nccl_all_reduce(table: dict[str, Any]) -> None:
    """One all-reduce over eight devices, alone."""
    topology = Topology(load_cluster(table["cluster"]))
    plans = Collectives(topology, range(8))
    print(HEAD)
    for r in table["rows"]:
        chosen = plans.plan(ALL_REDUCE, r["bytes"], tuple(range(8)))
        predicted = sum(phase.alone(topology.capacity) for phase in chosen.phases) * 1e6
        published = r["us"] if "us" in r else r["bytes"] / r["GBps"] * 1e-3
        calibrates = bool(r.get("calibrates"))
        what = f"{r['bytes']:,} bytes, {chosen.algorithm}"
        print(row(what, published, predicted, "us", calibrates=calibrates))


def two_columns(table: dict[str, Any]) -> None:
    """The paper's own run: days, and against the half net on one GPU."""
    cluster = load_cluster(table["cluster"])
    found = {}
    for name in ("krizhevsky2012", "krizhevsky2012-half", "single"):
        plan = load_plan(name)
        summary = simulate(plan, model_of(plan), cluster).summary
        found[name] = summary
        room = cluster.device(0).usable_bytes / 2**30
        word = "fits" if summary["fits"] else "does not fit"
        need = summary["peak_memory_bytes"] / 2**30
        print(
            f"{name}: {summary['step_time_s']:.3f} s a step, {need:.2f} of {room:.2f} GiB: {word}"
        )
    step = found["krizhevsky2012"]["step_time_s"]
    days = step * table["epochs"] * (IMAGENET_2012 // 128) / 86400
    low, high = table["days"]
    print(f"{table['epochs']} epochs: published {low} to {high} days, predicted {days:.2f}")
    half = found["krizhevsky2012-half"]["step_time_s"]
    print(f"two columns over half net: published slightly below 1, predicted {step / half:.3f}")


def titan_black(table: dict[str, Any]) -> None:
    """One device: the total calibrates, the parts are judged. No update, as in the benchmark."""
    plan = load_plan("single", ["model={name: alexnet2014}"])
    model = model_of(plan)

    def parts(cluster: Cluster) -> tuple[float, float]:
        prediction = simulate(plan, model, cluster)
        times = prediction.times
        took = [end - start for start, end in zip(times.start, times.end, strict=True)]
        kinds = prediction.program.columns.kind
        forward, backward = (
            sum(t for t, k in zip(took, kinds, strict=True) if k == kind) for kind in (F, B)
        )
        return forward, backward

    cluster = load_cluster(table["cluster"])
    cluster = fitted(cluster, lambda c: sum(parts(c)), table["total_ms"] / 1e3)
    forward, backward = parts(cluster)
    print(HEAD)
    total = (forward + backward) * 1e3
    print(row("forward and backward", table["total_ms"], total, "ms", calibrates=True))
    print(row("forward", table["forward_ms"], forward * 1e3, "ms", calibrates=False))
    print(row("backward", table["backward_ms"], backward * 1e3, "ms", calibrates=False))


def gpipe(table: dict[str, Any]) -> None:
    """Equal stages, recomputed, images a second over those of two stages and one microbatch."""

    def rate(stages: int, microbatches: int) -> float:
        each = GPIPE_LAYERS // stages
        entries = "".join(
            f"  - {{layers: fc{i * each}..fc{i * each + each - 1}, ranks: [{i}], split: none}}\n"
            for i in range(stages)
        )
        plan = read_plan(
            f"schema_version: 1\nname: gpipe\nmodel: {{name: alexnet2012}}\n"
            f"global_batch_size: {8 * microbatches}\nn_microbatches: {microbatches}\n"
            f"schedule: GPipe\nactivation_checkpoint: always\nplacement:\n{entries}",
            "gpipe",
        )
        layers = [Linear(name=f"fc{i}", features=1024) for i in range(GPIPE_LAYERS)]
        model = Model("equal", (1024,), layers)
        cluster = load_cluster("dgx-h100", ["network.0.GBps=1000000", "network.0.latency_us=0.001"])
        return float(simulate(plan, model, cluster).summary["images_per_s"])

    base = rate(2, 1)
    print(HEAD)
    for r in table["rows"]:
        what = f"{r['stages']} stages, {r['microbatches']} microbatches"
        predicted = rate(r["stages"], r["microbatches"]) / base
        print(row(what, r["throughput"], predicted, "x", calibrates=False))


def daly(table: dict[str, Any]) -> None:
    """Optimum checkpoint intervals, checkpoints of 5 minutes."""
    print(HEAD)
    for r in table["rows"]:
        predicted = daly_interval(5, r["mtbf"])
        print(
            row(f"failure every {r['mtbf']} min", r["interval"], predicted, "min", calibrates=False)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
