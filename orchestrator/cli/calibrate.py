"""``orchestrator calibrate``: measure this machine, or a Ray cluster, and write a cluster file."""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from orchestrator import __version__
from orchestrator.cli.options import positive
from orchestrator.errors import InputError
from orchestrator.plan import load_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.calibration import (
    Calibration,
    CollectiveTime,
    LayerTime,
    LinkTime,
    OptimizerTime,
    shape_key,
)
from orchestrator.simulate.cluster import Cluster, Device, Level, load_cluster
from orchestrator.simulate.cluster_write import cluster_yaml

if TYPE_CHECKING:
    from orchestrator.execute.measure import Measured

# Any program over all ranks serves to connect them.
_SMALL = ("model.width=0.0625", "model.image_size=64", "model.classes=16")


@click.command("calibrate")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--ranks", type=int, help="Workers to measure on; by default one per core.")
@click.option(
    "--plan", "plans", multiple=True, default=("single", "krizhevsky2012"), show_default=True,
    help="Plans whose layer parts are measured; repeatable.",
)  # fmt: skip
@click.option(
    "--batch", "batches", type=int, multiple=True, default=(16, 64, 128), show_default=True,
    help="Examples at once; repeatable.",
)  # fmt: skip
@click.option(
    "--seconds", type=float, default=8.0, show_default=True,
    help="Time for one plan's layers at one batch size.",
)  # fmt: skip
@click.option("--threads", type=int, help="Threads of a rank; by default its share of the cores.")
def command(
    out: Path,
    ranks: int | None,
    plans: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    threads: int | None,
) -> int:
    """Measure layers, optimizer, messages, all-reduces on Ray workers, and write a cluster file.

    Runs on a Ray of its own on this machine, or with RAY_ADDRESS set on that cluster.
    """
    positive("ranks", ranks)
    positive("threads", threads)
    for batch in batches:
        positive("batch", batch)
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", "--out", f"mkdir -p {out.parent}")
    count = ranks or len(os.sched_getaffinity(0))
    programs = tuple(_program(p, b, replicas=1) for p in plans for b in batches)
    link = _program("single", count, replicas=count, options=_SMALL)
    console = Console(highlight=False)
    begun = time.perf_counter()
    found, nodes = _measure(console, programs, link, count, seconds, threads)
    cluster = _cluster(out.stem, found, nodes, threads or max(1, (os.cpu_count() or 1) // count))
    source = f"orchestrator calibrate, {time.strftime('%Y-%m-%d')}"
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(cluster_yaml(cluster, source), encoding="utf-8")
    load_cluster(temporary)  # what cannot be read back is not put in place
    temporary.replace(out)
    rows = len(cluster.calibration.layers) if cluster.calibration else 0
    console.print(f"{out}: {rows} layer times, in {time.perf_counter() - begun:.0f} s")
    return 0


def _program(source: str, batch: int, *, replicas: int, options: tuple[str, ...] = ()) -> Program:
    settings = [f"global_batch_size={batch}", f"replicas={replicas}", *options]
    plan = load_plan(source, settings)
    return compile_plan(plan, model_of(plan), dtype=plan.training.dtype or "float32")


def _measure(
    console: Console, programs: tuple[Program, ...], link: Program, count: int, seconds: float,
    threads: int | None,
) -> tuple[dict[int, Measured], dict[int, str]]:  # fmt: skip
    from orchestrator.execute.measure import MeasureJob, measure
    from orchestrator.execute.ray_launch import launch

    found: dict[int, Any] = {}
    nodes: dict[int, str] = {}
    steps = len(programs) + 5
    done = 0

    def on_event(rank: int, kind: str, payload: Any) -> None:
        nonlocal done
        if kind == "status":
            console.print(payload)
        elif kind == "progress":
            done += 1
            console.print(f"[{done}/{steps}] {payload}")
        elif kind == "node":
            nodes[rank] = payload
        elif kind == "measured":
            found[rank] = payload

    launch(
        measure, MeasureJob(programs, link, seconds), world_size=count, on_event=on_event,
        threads_per_worker=threads,
    )  # fmt: skip
    return found, nodes


def _cluster(name: str, found: dict[int, Measured], nodes: dict[int, str], threads: int) -> Cluster:
    """What the measurements say, as a cluster."""
    per_node = max(list(nodes.values()).count(n) for n in nodes.values()) if nodes else len(found)
    node_count = len(found) // per_node
    calibration = _calibration(found, nodes, threads)
    copy = 2 * 33_554_432 / _median([x for m in found.values() for x in m.copies])
    rates = _rates(found)
    peak = max(rates.values())
    device = Device(
        name=f"{threads} thread{'s' * (threads > 1)} of {_processor()}",
        memory_bytes=_memory() // per_node,
        memory_bandwidth=copy,
        flops={"float32": peak},
        efficiency={kind: rate / peak for kind, rate in rates.items()} | {"memory": 1.0},
    )
    network = []
    for level, size in (("node", per_node), ("network", node_count)):
        if size > 1:
            points = [(r.bytes, r.seconds) for r in calibration.links if r.level == level]
            latency = min(points)[1] if points else 1e-6
            (b0, t0), (b1, t1) = points[-2:] if len(points) > 1 else [(0, 0.0), (1, 1e-9)]
            bandwidth = (b1 - b0) / max(t1 - t0, 1e-9)
            network.append(Level(level, size, bandwidth, latency, "switch", bandwidth))
    return Cluster(
        name=name, nodes=node_count, devices_per_node=per_node,
        kinds=((device, len(found)),), network=tuple(network), calibration=calibration,
        summary=f"{len(found)} ranks on {node_count} machine(s), as measured",
    )  # fmt: skip


def _calibration(found: dict[int, Measured], nodes: dict[int, str], threads: int) -> Calibration:
    import torch

    merged: defaultdict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for measured in found.values():
        for (part, examples, direction), seconds in measured.layers.items():
            merged[part.sized.kind, shape_key(part), examples, direction] += seconds
    links: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for (peer, size), seconds in found[0].links.items():
        level = "node" if nodes.get(peer) == nodes.get(0) else "network"
        links[level, size] += seconds
    return Calibration(
        date=time.strftime("%Y-%m-%d"),
        hardware=_processor(),
        model="alexnet2012",
        versions={"orchestrator": __version__, "torch": torch.__version__},
        threads=threads,
        compute_slowdown=_median([m.compute_slowdown for m in found.values()]),
        alone_speedup=found[0].alone_speedup,
        layers=tuple(
            LayerTime(kind, shape, "float32", batch, direction, _median(s), _spread(s))  # type: ignore[arg-type]
            for (kind, shape, batch, direction), s in merged.items()
        ),
        optimizer=tuple(
            OptimizerTime(size, _median(s), _spread(s))
            for size in found[0].optimizer
            if (s := [x for m in found.values() for x in m.optimizer[size]])
        ),
        links=tuple(LinkTime(lv, size, _median(s), _spread(s)) for (lv, size), s in links.items()),
        collectives=tuple(
            CollectiveTime("ALL_REDUCE", len(found), size, _median(s), _spread(s))
            for size in found[0].reductions
            if (s := [x for m in found.values() for x in m.reductions[size]])
        ),
    )


def _rates(found: dict[int, Measured]) -> dict[str, float]:
    """FLOP a second by kind of layer with weights, median over parts."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for measured in found.values():
        for (part, examples, direction), seconds in measured.layers.items():
            if part.tiles and direction == "forward":
                flops = 2 * part.macs_per_image * examples
                rates[part.sized.kind].append(flops / _median(seconds))
    return {kind: _median(values) for kind, values in rates.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _spread(values: list[float]) -> float:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2 / max(_median(values), 1e-12)
