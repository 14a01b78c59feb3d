"""Published figures, predicted: ``python -m benchmarks.reproduce [TABLE ...]``.

Prints published, predicted, signed error and mark of every row, a table at a time, and then the
errors by mark: mean (of absolute errors), worst and sign (the mean with signs). The figures, their
sources and their marks are in ``published.yaml`` beside this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.published import Row, figure, lines, over_all, read_published
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
    published = read_published()
    names = [a for a in arguments if not a.startswith("-")] or list(TABLES)
    found: dict[str, list[Row]] = {}
    for name in names:
        table = published[name]
        print(f"\n## {name}\n{table['source']}\nchecked: {table['checked']}\n")
        found[name] = list(TABLES[name](table))
        print(f"marks: {table['marks']}\n", *lines(found[name]), sep="\n")
        if "defaults" in table:
            told = f"{name} with {', '.join(table['defaults'])}"
            print(f"\n### {told}\n", *lines(list(with_defaults(table))), sep="\n")
    print("\n## over all\n", *over_all(found), sep="\n")


def one_weird_trick(table: dict[str, Any], settings: Sequence[str] = ()) -> Iterator[Row]:
    """Step times on 1 to 8 GPUs; the one-GPU row sets the device's efficiency.

    Args:
        settings: changes of the cluster.
    """
    rows = table["rows"]
    steps = [r["hours"] * 3600 / (table["epochs"] * table["images"] / r["batch"]) for r in rows]
    cluster = load_cluster(table["cluster"], settings)
    (first,) = [i for i, r in enumerate(rows) if r.get("sets") == "efficiency"]
    cluster = fitted(cluster, lambda c: owt_step(c, 1, 0), steps[first])
    for r, published in zip(rows, steps, strict=True):
        smaller = r["fc_batch"] if r["fc_batch"] < r["batch"] else 0
        predicted = owt_step(cluster, r["gpus"], smaller)
        what = f"{r['gpus']} GPU{'s' * (r['gpus'] > 1)} ({r['batch']}, {r['fc_batch']})"
        yield figure(what, published * 1e3, predicted * 1e3, "ms a step", r["mark"])


def with_defaults(table: dict[str, Any]) -> Iterator[Row]:
    """One Weird Trick without the keys that were chosen with it: what is left of the fit is the
    efficiency, which one row sets."""
    rows = [r if "sets" in r else r | {"mark": "in sight"} for r in table["rows"]]
    yield from one_weird_trick(table | {"rows": rows}, table["defaults"])


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


def nccl_all_reduce(table: dict[str, Any]) -> Iterator[Row]:
    """One all-reduce over eight devices, alone."""
    topology = Topology(load_cluster(table["cluster"]))
    plans = Collectives(topology, range(8))
    for r in table["rows"]:
        chosen = plans.plan(ALL_REDUCE, r["bytes"], tuple(range(8)))
        predicted = sum(phase.alone(topology.capacity) for phase in chosen.phases) * 1e6
        published = r["us"] if "us" in r else r["bytes"] / r["GBps"] * 1e-3
        yield figure(
            f"{r['bytes']:,} bytes, {chosen.algorithm}", published, predicted, "us", r["mark"]
        )


def two_columns(table: dict[str, Any]) -> Iterator[Row]:
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
    for r in table["rows"]:
        if "days" in r:
            low, high = r["days"]
            days = step * table["epochs"] * (IMAGENET_2012 // 128) / 86400
            shown = f"{low} to {high} days (error: of the middle)"
            error = days / ((low + high) / 2) - 1
            yield Row(f"{table['epochs']} epochs", shown, f"{days:.3g} days", error, r["mark"])
        else:
            ratio = step / found["krizhevsky2012-half"]["step_time_s"]
            shown = f"slightly below {r['over_half_net']}"
            yield Row("two columns over half net", shown, f"{ratio:.3f}", None, r["mark"])


def titan_black(table: dict[str, Any]) -> Iterator[Row]:
    """One device: the total sets its efficiency. No update, as in the benchmark."""
    plan = load_plan("single", ["model={name: alexnet2014}"])
    model = model_of(plan)

    def parts(cluster: Cluster) -> dict[str, float]:
        prediction = simulate(plan, model, cluster)
        times = prediction.times
        took = [end - start for start, end in zip(times.start, times.end, strict=True)]
        kinds = prediction.program.columns.kind
        forward, backward = (
            sum(t for t, k in zip(took, kinds, strict=True) if k == kind) for kind in (F, B)
        )
        both = forward + backward
        return {"forward and backward": both, "forward": forward, "backward": backward}

    (first,) = [r for r in table["rows"] if r.get("sets") == "efficiency"]
    cluster = load_cluster(table["cluster"])
    cluster = fitted(cluster, lambda c: parts(c)[first["part"]], first["ms"] / 1e3)
    predicted = parts(cluster)
    for r in table["rows"]:
        yield figure(r["part"], r["ms"], predicted[r["part"]] * 1e3, "ms", r["mark"])


def gpipe(table: dict[str, Any]) -> Iterator[Row]:
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
    for r in table["rows"]:
        what = f"{r['stages']} stages, microbatches: {r['microbatches']}"
        predicted = rate(r["stages"], r["microbatches"]) / base
        yield figure(what, r["throughput"], predicted, "x", r["mark"])


def daly(table: dict[str, Any]) -> Iterator[Row]:
    """Optimum checkpoint intervals, checkpoints of 5 minutes."""
    for r in table["rows"]:
        predicted = daly_interval(5, r["mtbf"])
        yield figure(f"failure every {r['mtbf']} min", r["interval"], predicted, "min", r["mark"])


TABLES: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "one_weird_trick": one_weird_trick,
    "nccl_all_reduce": nccl_all_reduce,
    "nccl_all_reduce_h200": nccl_all_reduce,
    "two_columns": two_columns,
    "titan_black": titan_black,
    "gpipe": gpipe,
    "daly": daly,
}


if __name__ == "__main__":
    main(sys.argv[1:])
