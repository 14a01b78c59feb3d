"""How long NCCL takes for a collective: its own model, by algorithm and protocol.

NCCL has three protocols. LL sends a flag with every 4 bytes and needs no fence: little latency, a
quarter of the bandwidth. LL128 sends 120 bytes of every 128, where the link keeps 128 bytes in
order. Simple sends large chunks behind a fence. It estimates each with each algorithm as

    seconds = latency(algorithm, protocol, steps) + bytes / bandwidth(algorithm, protocol)

and takes the quickest, so small collectives are slower than latency and bandwidth of the links say.

Source of all figures here: NVIDIA/nccl 2.20.3 at b647562 (2024), src/graph/tuning.cc. Left out are
its limits per channel, which are above the bandwidth of every machine in ``cluster/``, and CollNet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from orchestrator.program.ops import ALL_REDUCE

Generation = Literal["pascal", "volta", "ampere", "hopper"]
Wire = Literal["nvlink", "pcie"]
Processor = Literal["intel", "amd"]

RING: Final = "ring"
TREE: Final = "tree"
SWITCH: Final = "switch"  # NVLS: the NVLink switches add up

_LL, _LL128, _SIMPLE = 0, 1, 2
_PROTOCOLS = ("LL", "LL128", "Simple")
_MICRO, _GIGA = 1e-6, 1e9

# Microseconds by protocol: of a collective, and of each step over a wire.
_BASE = {RING: (6.6, 14.0, 8.4), TREE: (6.8, 14.0, 0.0)}
_STEP = {
    "nvlink": {RING: (0.6, 1.9, 3.4), TREE: (0.6, 1.25, 28.0)},
    "pcie": {RING: (1.0, 2.5, 5.7), TREE: (1.0, 1.9, 28.0)},
    "network": {RING: (2.7, 4.0, 14.0), TREE: (5.0, 8.5, 28.0)},
}
_SWITCH_US = 23.0
_POST_US = {"intel": 1.0, "amd": 2.0}  # a step's work for the network; three times that for Simple

# The most that LL reaches, 10^9 bytes a second: in one node, in two, in more.
_LL_ALONE = {"pascal": 39.0, "volta": 39.0, "ampere": 87.7, "hopper": 87.7}
_LL_NODES = {"intel": (39.0, 20.4), "amd": (22.5, 19.0)}

# What a tree reaches of its bandwidth at 2^6 bytes, 2^7, ...: 2^28, by protocol; above, all.
_TREE_REACHES = (
    (1, 1, 1, 1, .9, .8, .7, .7, .7, .7, .6, .5, .4, .4, .5, .6, .7, .8, .9, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, .9, .8, .8, .8, .7, .6, .6, .6, .6, .6, .6, .8, .9, .9, .9, .9, 1, 1),
    (.9, .9, .9, .9, .9, .9, .9, .8, .7, .6, .6, .5, .5, .5, .5, .6, .7, .8, .7, .7, .8, .9, .9),
)  # fmt: skip
# From so many bytes a rank and channel, a ring over nodes has this times its latency.
_PLATEAU = {"pascal": 1.9, "volta": 1.9, "ampere": 1.4, "hopper": 1.4}
_PLATEAU_BYTES = 64


@dataclass(frozen=True)
class Nccl:
    """NCCL on one kind of machine.

    Args:
        generation: of the devices.
        wire: what joins those of a node.
        processor: of the hosts.
        start: seconds from the call until the devices are at it; NCCL's own model leaves it out.
        switch_bandwidth: bytes a second that a device's port carries while the switches add up;
            None if they cannot.
        channels: rings that run at once.
    """

    generation: Generation
    wire: Wire
    processor: Processor
    start: float
    channels: int
    switch_bandwidth: float | None = None


class Estimate(NamedTuple):
    """One way to do a collective: seconds on an idle network, and the bytes that a rank sends."""

    algorithm: str
    protocol: str
    seconds: float
    moved: float


def estimates(
    nccl: Nccl, kind: str, size: int, ranks: int, nodes: int, bandwidth: float
) -> Iterator[Estimate]:
    """Every way that NCCL has.

    Args:
        kind: ALL_REDUCE, REDUCE_SCATTER or ALL_GATHER.
        size: bytes of the whole tensor.
        ranks: in the group, on so many ``nodes``.
        bandwidth: bytes a second that a ring over them moves at most: of each rank to the next.
    """
    for algorithm in (RING, TREE) if kind == ALL_REDUCE else (RING,):
        for protocol in (_LL, _LL128, _SIMPLE):
            if protocol == _LL128 and (nccl.generation == "pascal" or nccl.wire != "nvlink"):
                continue
            latency = _latency(nccl, kind, algorithm, protocol, ranks, nodes)
            if (algorithm, protocol, kind) == (RING, _SIMPLE, ALL_REDUCE) and nodes > 1:
                large = size >= _PLATEAU_BYTES * nccl.channels * ranks
                latency *= _PLATEAU[nccl.generation] if large else 1.0
            reached = _reached(nccl, kind, algorithm, protocol, ranks, nodes, bandwidth)
            if algorithm == TREE:
                step = max(0, size.bit_length() - 7)
                table = _TREE_REACHES[protocol]
                reached *= table[step] if step < len(table) else 1.0
            moved = 2.0 * size if algorithm == TREE else _steps(kind, ranks) * size / ranks
            seconds = nccl.start + latency + moved / reached
            yield Estimate(algorithm, _PROTOCOLS[protocol], seconds, moved)
    if nccl.switch_bandwidth is not None and kind == ALL_REDUCE and nodes == 1 and ranks > 2:
        # the sums read all of every device's tensor, and each device sends its share of them to all
        moved = size * (1 + 1 / ranks)
        seconds = nccl.start + _SWITCH_US * _MICRO + moved / nccl.switch_bandwidth
        yield Estimate(SWITCH, _PROTOCOLS[_SIMPLE], seconds, moved)


def _steps(kind: str, ranks: int) -> int:
    return (ranks - 1) * (2 if kind == ALL_REDUCE else 1)


def _latency(nccl: Nccl, kind: str, algorithm: str, protocol: int, ranks: int, nodes: int) -> float:
    """Seconds before the bytes count."""
    near = _STEP[nccl.wire][algorithm][protocol]
    far = _STEP["network"][algorithm][protocol]
    if algorithm == TREE:  # a chain inside each node, a double binary tree over the nodes
        steps = 2 * ((ranks / nodes - 1) * near + (nodes.bit_length() - 1) * far)
    else:
        across = 0 if nodes == 1 else 2 * nodes if kind == ALL_REDUCE else nodes - 1
        if nodes > 1:
            near = max(near, _POST_US[nccl.processor] * (3 if protocol == _SIMPLE else 1))
        steps = max(0, _steps(kind, ranks) - across) * near + across * far
    return (_BASE[algorithm][protocol] + steps) * _MICRO


def _reached(
    nccl: Nccl, kind: str, algorithm: str, protocol: int, ranks: int, nodes: int, bandwidth: float
) -> float:
    """Of a ring's ``bandwidth``, what this algorithm and protocol reach; bytes a second."""
    alone = _LL_ALONE[nccl.generation]
    most = (alone if nodes == 1 else _LL_NODES[nccl.processor][nodes > 2]) * _GIGA
    if algorithm == TREE:
        bandwidth *= 0.92
        if protocol == _LL:
            return min(bandwidth / 3.8, most)
        return bandwidth * ((7 / 9 if nodes == 1 else 120 / 128) if protocol == _LL128 else 1.0)
    if protocol == _LL:
        return min(bandwidth / (4 if nodes > 1 or kind == ALL_REDUCE else 3), most)
    if protocol == _LL128:
        return bandwidth * (0.7 if ranks < 2 * nodes else 0.92)
    return bandwidth
