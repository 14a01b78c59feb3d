"""What ``calibrate`` has measured, as a cluster: medians, and what follows from them."""

from __future__ import annotations

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import log
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.cli.machine import memory_bytes
from orchestrator.simulate.calibration import (
    BytesTime,
    Calibration,
    CollectiveTime,
    LayerTime,
    LinkTime,
    shape_key,
)
from orchestrator.simulate.cluster import Cluster, Device, Level

if TYPE_CHECKING:
    from orchestrator.execute.measure import Measured


def cluster_of(
    name: str,
    models: str,
    found: Mapping[int, Measured],
    nodes: Mapping[int, str],
    threads: int,
    load_s: Mapping[str, float],
) -> Cluster:
    """A cluster of as many devices as workers measured, less what makes nodes unequal.

    Args:
        models: names of the models whose layers were measured.
        found: by rank, its measurements.
        nodes: by rank, its machine.
        threads: of each rank.
        load_s: seconds of loading one image, by data set.
    """
    counts = Counter(nodes.values()) or Counter({"": len(found)})
    per_node, node_count = min(counts.values()), len(counts)  # unequal ones: see unequal_nodes
    # Ranks alone on their nodes were measured among all others: nodes can be parts of one machine.
    neighbours = len(found) if per_node == 1 else 0
    calibration = replace(
        _calibration(models, found, nodes, threads, load_s), neighbours=neighbours
    )
    largest = calibration.copies[-1]
    copy = 2 * largest.bytes / largest.seconds
    rates = _rates(found)
    peak = max(rates.values())
    device = Device(
        name=f"{threads} thread{'s' * (threads > 1)} of {_processor()}",
        memory_bytes=memory_bytes() // per_node,
        memory_bandwidth=copy,
        flops={"float32": peak},
        efficiency={**{kind: rate / peak for kind, rate in rates.items()}, "memory": 1.0},
    )
    network = []
    for level, size in (("node", per_node), ("network", node_count)):
        if size > 1:
            points = [(r.bytes, r.seconds) for r in calibration.links if r.level == level]
            latency = min(points)[1] if points else 1e-6
            (b0, t0), (b1, t1) = points[-2:] if len(points) > 1 else [(0, 0.0), (1, 1e-9)]
            bandwidth = (b1 - b0) / max(t1 - t0, 1e-9)
            network.append(Level(level, size, bandwidth, latency, "switch", bandwidth))
    levels = {level.name for level in network}
    links = tuple(row for row in calibration.links if row.level in levels)
    summary = f"{len(found)} ranks on {node_count} machine(s), as measured"
    if unequal := unequal_nodes(nodes):
        summary += f"; {unequal}"
    return Cluster(
        name=name, nodes=node_count, devices_per_node=per_node,
        kinds=((device, node_count * per_node),), network=tuple(network),
        calibration=replace(calibration, links=links), summary=summary,
    )  # fmt: skip


def unequal_nodes(nodes: Mapping[int, str]) -> str:
    """What is written in place of nodes of different sizes, which a cluster file cannot say.

    Args:
        nodes: by rank, its machine.

    Returns:
        A sentence; "" where all nodes have as many ranks.
    """
    counts = sorted(Counter(nodes.values()).values(), reverse=True)
    if len(set(counts)) < 2:
        return ""
    sizes = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}"
    return (
        f"a cluster file has equal nodes, so those of {sizes} ranks are written as {len(counts)} "
        f"of {counts[-1]}"
    )


def _calibration(
    models: str,
    found: Mapping[int, Measured],
    nodes: Mapping[int, str],
    threads: int,
    load_s: Mapping[str, float],
) -> Calibration:
    import torch

    merged: defaultdict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for measured in found.values():
        for (part, examples, direction), seconds in measured.layers.items():
            merged[part.sized.kind, shape_key(part), examples, direction] += seconds
    reliefs: defaultdict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    for measured in found.values():
        for (part, examples, direction), ratios in measured.layers_relief.items():
            reliefs[part.sized.kind, shape_key(part), examples, direction] += ratios
    links: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for (peer, size), seconds in found[0].links.items():
        level = "node" if nodes.get(peer) == nodes.get(0) else "network"
        links[level, size] += seconds
    return Calibration(
        date=time.strftime("%Y-%m-%d"),
        hardware=_processor(),
        model=models,
        versions={"orchestrator": __version__, "torch": torch.__version__},
        threads=threads,
        compute_slowdown=min(0.95, median([m.compute_slowdown for m in found.values()])),
        transfer_stretch=median([m.transfer_stretch for m in found.values()]),
        post_s=_mean([x for m in found.values() for x in m.posts] or [0.0]),
        jitter=_jitter(found),
        load_s=load_s,
        layers=tuple(
            LayerTime(
                kind,
                shape,
                "float32",
                batch,
                direction,  # type: ignore[arg-type]
                median(s),
                median(s) * _relief(reliefs[kind, shape, batch, direction]),
                _spread(s),
            )
            for (kind, shape, batch, direction), s in merged.items()
        ),
        optimizer=_bytes_times([(m.optimizer, m.optimizer_relief) for m in found.values()]),
        copies=_bytes_times([(m.copies, m.copies_relief) for m in found.values()]),
        links=tuple(LinkTime(lv, size, _mean(s), _spread(s)) for (lv, size), s in links.items()),
        collectives=tuple(
            CollectiveTime("ALL_REDUCE", len(found), size, median(s), _spread(s))
            for size in found[0].reductions
            if (s := [x for m in found.values() for x in m.reductions[size]])
        ),
    )


def _bytes_times(
    found: Sequence[tuple[Mapping[int, list[float]], Mapping[int, list[float]]]],
) -> tuple[BytesTime, ...]:
    """By bytes ascending, from every rank's times and reliefs."""
    rows = []
    for size in sorted(found[0][0]):
        times = [x for seconds, _ in found for x in seconds[size]]
        ratios = [x for _, reliefs in found for x in reliefs[size]]
        rows.append(BytesTime(size, median(times), median(times) * _relief(ratios), _spread(times)))
    return tuple(rows)


def _mean(times: Sequence[float]) -> float:
    """But for the largest fiftieth, one at least: in those the machine has stalled."""
    kept = sorted(times)[: -max(1, len(times) // 50)] if len(times) > 1 else times
    return mean(kept)


def _relief(ratios: list[float]) -> float:
    """Time alone over time among others: 1 at most, for company never helps."""
    return min(1.0, median(ratios)) if ratios else 1.0


def _jitter(found: Mapping[int, Measured]) -> float:
    """Relative standard deviation of a rank's computation about that of others at the same time.

    From passes over a whole network that all ranks make at once: what changes the speed of the
    machine as a whole changes it for all of them. Robust: 1.4826 times the median deviation.
    """
    rounds: defaultdict[tuple[int, str, int], dict[int, float]] = defaultdict(dict)
    for rank, measured in found.items():
        for (part, examples, direction), seconds in measured.layers.items():
            if all(any(key.part == part for key in m.layers) for m in found.values()):
                for i, value in enumerate(seconds):
                    sums = rounds[examples, direction, i]
                    sums[rank] = sums.get(rank, 0.0) + value
    deviations = [
        abs(log(one) - log(other)) / 2**0.5
        for sums in rounds.values()
        for one, other in combinations(sums.values(), 2)
    ]
    return 1.4826 * median(deviations) if deviations else 0.0


def _rates(found: Mapping[int, Measured]) -> dict[str, float]:
    """FLOP a second by kind of layer with weights that multiplies, median over parts."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for measured in found.values():
        for (part, examples, direction), seconds in measured.layers.items():
            if part.tiles and part.macs_per_example and direction == "forward":
                flops = 2 * part.macs_per_example * examples
                rates[part.sized.kind].append(flops / median(seconds))
    return {kind: median(values) for kind, values in rates.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _spread(values: list[float]) -> float:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2 / max(median(values), 1e-12)
