"""Which assumed figures of a cluster a prediction rests on."""

from __future__ import annotations

import re
from typing import NamedTuple

from orchestrator.simulate.cluster import Cluster
from orchestrator.simulate.predict import Prediction

_ROOM = ("memory_GiB", "reserved_GiB")


class Assumed(NamedTuple):
    """Dotted keys of a cluster file, by what rests on them; () where all have a source.

    Args:
        time: of a step and its parts, images a second, an epoch.
        dollars, energy: of an epoch.
        goodput: what failures and checkpoints leave.
    """

    time: tuple[str, ...]
    dollars: tuple[str, ...]
    energy: tuple[str, ...]
    goodput: tuple[str, ...]


def assumed_behind(cluster: Cluster, prediction: Prediction) -> Assumed:
    """The assumed figures behind a prediction.

    Of the network the levels that something goes over count, and of the peaks the one of the
    plan's precision. What is counted, bytes sent and memory, rests on no figure.
    """
    crossed = _levels_crossed(cluster, prediction)
    time, dollars, energy, goodput = [], [], [], []
    for key in cluster.assumed():
        parts = re.split(r"[.\[\]]+", key)
        block, last = parts[0], parts[-1]
        if last in _ROOM or (block == "collectives" and not crossed):
            continue
        if block == "network" and int(parts[1]) >= crossed:
            continue
        if last == "dollars_per_hour":
            dollars.append(key)
        elif last == "power_W":
            energy.append(key)
        elif block == "reliability":
            goodput.append(key)
        elif "tflops" not in parts or last == prediction.program.dtype:
            time.append(key)
    return Assumed(tuple(time), tuple(time + dollars), tuple(time + energy), tuple(goodput))


def _levels_crossed(cluster: Cluster, prediction: Prediction) -> int:
    """How many levels of the network, from the innermost, something goes over."""
    count = 0
    if prediction.summary["bytes_sent"] > 0:
        count = 1 + cluster.level_between(0, prediction.program.world_size - 1)
    hosts = [i + 1 for i, level in enumerate(cluster.network) if level.host]
    return max(count, *hosts, 0)
