"""Computations of ranks that share a machine: each goes on at a speed that depends on the others.

On processors, ranks share caches and memory, transfers are carried by the cores that compute, and
the next batch is loaded meanwhile. A calibration measures a computation while all ranks of a
machine do the same, and while the others rest. How much longer the former takes is the
computation's *pressure* on memory. Two that run at once each take as much longer as the geometric
mean of their pressures, so what needs no memory neither disturbs nor is disturbed:

    seconds = alone * (1 + mean over the other ranks of sqrt(pressure * theirs)) * crowding
    pressure = together / alone - 1, theirs 0 for one that rests
    crowding = threads that run / cores, if more than one

and a rank whose transfer is under way loses a measured fraction of its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log1p
from random import Random
from typing import NamedTuple


@dataclass(frozen=True)
class Sharing:
    """How the ranks of a machine disturb each other.

    Args:
        ranks: of a machine; each has cores for its threads. 1: no two disturb each other.
        threads: of each rank's computation; what loads its data is one more.
        slowdown: fraction of its speed that computation loses under a transfer.
    """

    ranks: int
    threads: int
    slowdown: float


@dataclass(frozen=True)
class Work:
    """A computation: its seconds while all ranks do the same, and while the others rest."""

    together: float
    alone: float

    @property
    def pressure(self) -> float:
        """On the memory that ranks share."""
        return max(0.0, self.together / self.alone - 1) if self.alone > 0 else 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.together + other.together, self.alone + other.alone)

    def __mul__(self, factor: float) -> Work:
        return Work(self.together * factor, self.alone * factor)


def drawn(step: int, op: int, relative_std: float) -> float:
    """A factor of mean 1 for one computation's time: log-normal, the same whenever it is asked."""
    variance = log1p(relative_std**2)
    return Random(step << 32 | op).lognormvariate(-variance / 2, variance**0.5)


class _Running(NamedTuple):
    """What is left of a piece of work (1 at its start) at a moment, and its speed, 1/s."""

    number: int
    work: Work
    left: float
    since: float
    speed: float


class Processors:
    """What runs now on every rank: one computation at most, and one load of data at most.

    Args:
        nodes: by rank, its machine.
        announce: called with (time, number) when a piece of work would end, as things stand; a
            later call for the same number replaces it.
    """

    def __init__(
        self, sharing: Sharing, nodes: Sequence[int], announce: Callable[[float, int], None]
    ) -> None:
        self.sharing, self.announce = sharing, announce
        self.transfers = [0] * len(nodes)  # under way, by rank
        alike = {node: [r for r, n in enumerate(nodes) if n == node] for node in set(nodes)}
        self.near = [alike[node] for node in nodes]
        self.running: dict[int, _Running] = {}  # by rank; a load by -1 - rank

    def begin(self, rank: int, number: int, work: Work, now: float) -> None:
        """A computation begins."""
        self.running[rank] = _Running(number, work, 1.0, now, 0.0)
        self._retime(rank, now)

    def load(self, rank: int, number: int, seconds: float, now: float) -> None:
        """A rank begins to load its next batch."""
        self.running[-1 - rank] = _Running(number, Work(seconds, seconds), 1.0, now, 0.0)
        self._retime(rank, now)

    def has_ended(self, place: int, number: int, now: float) -> bool:
        """Whether what was announced is over, or was announced anew since.

        Args:
            place: the rank of a computation, or -1 - rank of a load.
        """
        running = self.running.get(place)
        if running is None or running.number != number:
            return False
        if running.left / running.speed + running.since > now * (1 + 1e-12) + 1e-15:
            return False
        del self.running[place]
        self._retime(max(place, -1 - place), now)
        return True

    def transfer(self, rank: int, by: int, now: float) -> None:
        """A transfer of a rank begins (+1) or ends (-1)."""
        before = self.transfers[rank]
        self.transfers[rank] = before + by
        if before == 0 or before + by == 0:
            self._retime(rank, now)

    def _retime(self, rank: int, now: float) -> None:
        """What runs on a rank's machine gets the speed that it has from now on."""
        near = self.near[rank]
        places = [p for r in near for p in (r, -1 - r) if p in self.running]
        busy = sum(place >= 0 for place in places)
        sharing = self.sharing
        cores = sharing.ranks * sharing.threads
        crowding = max(1.0, (busy * sharing.threads + len(places) - busy) / cores)
        others = max(1, sharing.ranks - 1)
        roots = {p: self.running[p].work.pressure ** 0.5 for p in places if p >= 0}
        total = sum(roots.values())
        for place in places:
            running = self.running[place]
            root = roots.get(place, 0.0)
            seconds = running.work.alone * (1 + root * (total - root) / others) * crowding
            if place >= 0 and self.transfers[place]:
                seconds /= 1 - sharing.slowdown
            speed = 1 / max(seconds, 1e-12)
            if speed != running.speed:
                left = max(0.0, running.left - (now - running.since) * running.speed)
                self.running[place] = running._replace(left=left, since=now, speed=speed)
                self.announce(now + left / speed, running.number)
