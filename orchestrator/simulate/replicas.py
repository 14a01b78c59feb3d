"""Which replicas are alike: the same devices, and no rank slower than in the other."""

from __future__ import annotations

from collections import defaultdict

from orchestrator.program.ops import Program
from orchestrator.simulate.cluster import Cluster, Device

Hardware = tuple[int, float]  # position in the cluster's kinds of devices; slowness


def hardware(cluster: Cluster, rank: int) -> Hardware:
    """Equal for two ranks that take the same time for the same computation."""
    devices = [device for device, _ in cluster.kinds]
    return devices.index(cluster.device(rank)), cluster.slowness(rank)


def classes(program: Program, cluster: Cluster) -> list[int]:
    """By copy of the listed ranks, its class; numbered in order of their first copies.

    The copies are the replicas where they are folded, else there is one.
    """
    each = len(program.ranks)
    slow: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for rank, factor in sorted(cluster.slow.items()):
        slow[rank // each].append((rank % each, factor))
    numbers: dict[object, int] = {}
    found = []
    for replica in range(program.world_size // each):
        devices: tuple[int, ...] = ()
        if len(cluster.kinds) > 1:
            ranks = range(replica * each, (replica + 1) * each)
            devices = tuple(hardware(cluster, rank)[0] for rank in ranks)
        found.append(numbers.setdefault((devices, tuple(slow.get(replica, ()))), len(numbers)))
    return found


def smallest_device(program: Program, cluster: Cluster, rank: int) -> Device:
    """The one with the least memory among the devices of a listed rank and of its copies."""
    if len(cluster.kinds) == 1:
        return cluster.device(rank)
    copies = range(rank, program.world_size, len(program.ranks))
    return min((cluster.device(copy) for copy in copies), key=lambda device: device.usable_bytes)
