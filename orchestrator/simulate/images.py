"""The next batch's images on their way from the host's memory to the devices, beside the step."""

from __future__ import annotations

from math import prod

from orchestrator.program.ops import Program
from orchestrator.simulate.algorithms import Phase
from orchestrator.simulate.network import Topology


def host_copies(program: Program, topology: Topology) -> dict[int, Phase]:
    """By listed rank, the copy of its images of a step; {} where the cluster does not say through
    which ports they go."""
    levels = topology.cluster.network
    level = next((i for i, level in enumerate(levels) if level.host), None)
    if level is None:
        return {}
    first = program.segments[0]
    found = {}
    for rank in program.ranks:
        part = first.parts.get(rank % program.ranks_per_replica)
        if part is not None and part.examples:
            size = prod(part.import_shape(0)) * first.chunks * program.itemsize
            load = tuple((link, 1.0) for link in topology.from_host(level, rank))
            found[rank] = Phase(levels[level].latency, float(size), load)
    return found
