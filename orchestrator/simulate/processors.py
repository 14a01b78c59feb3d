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
from functools import lru_cache
from math import exp, log1p
from random import Random
from statistics import NormalDist
from typing import NamedTuple


@dataclass(frozen=True)
class Sharing:
    """How the ranks of a machine disturb each other.

    Args:
        ranks: of a machine; each has cores for its threads. 1: no two disturb each other.
        threads: of each rank's computation; what loads its data is one more.
        slowdown: by rank, the fraction of its speed that computation loses under a transfer.
        stretch: times as long as a transfer takes while all its ranks compute.
        post: seconds that a rank's computation waits for each transfer that it posts.
    """

    ranks: int
    threads: int
    slowdown: Sequence[float]
    stretch: float = 1.0
    post: float = 0.0


@dataclass(slots=True)
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


class Cover(NamedTuple):
    """How much of a computation transfers of its rank disturb.

    Args:
        free, covered: seconds of it in which none was under way, and in which some were.
        to_the_end: whether one was still under way when it ended.
    """

    free: float = 0.0
    covered: float = 0.0
    to_the_end: bool = False

    def stretched(self, seconds: float, slowdown: float) -> float:
        """Seconds of a computation beside the same transfers, which takes so many without them.

        Args:
            slowdown: fraction of its speed that it loses under them; less than 1.
        """
        if self.to_the_end:
            free = min(seconds, self.free)
            return free + (seconds - free) / (1 - slowdown)
        return min(seconds + self.covered * slowdown, seconds / (1 - slowdown))


DRAWS = 15


def drawn(step: int, op: int, relative_std: float) -> float:
    """A factor of median 1 for a computation's time: log-normal, the same whenever it is asked.

    In ``DRAWS`` steps in a row a computation meets each of so many equally likely factors once, in
    an order of its own, so that already so few steps have a steady median (Latin hypercube
    sampling; McKay, Beckman, Conover, Technometrics 21, 1979).
    """
    return _factors(relative_std)[_order(op)[step % DRAWS]]


@lru_cache
def _factors(relative_std: float) -> list[float]:
    """Middles of equal parts of the log-normal distribution."""
    sigma = log1p(relative_std**2) ** 0.5
    normal = NormalDist()
    return [exp(sigma * normal.inv_cdf((i + 0.5) / DRAWS)) for i in range(DRAWS)]


@lru_cache(maxsize=65_536)
def _order(op: int) -> list[int]:
    return Random(op).sample(range(DRAWS), DRAWS)


class _Running:
    """What is left of a piece of work (1 at its start) at a moment, and its speed, 1/s."""

    __slots__ = ("alone", "left", "number", "rank", "root", "since", "speed")

    def __init__(self, rank: int, number: int, work: Work, now: float) -> None:
        self.rank = rank  # whose transfers slow it down; -1: none, it is a load
        self.number, self.alone = number, work.alone
        self.root = work.pressure**0.5 if rank >= 0 else 0.0
        self.left, self.since, self.speed = 1.0, now, 0.0


class Processors:
    """What runs now on every rank: one computation at most, and one load of data at most.

    Speeds change when something begins or ends: call :meth:`settle` when all that does so at one
    moment is known.

    Args:
        nodes: by rank, its machine.
        announce: called with (time, number) when a piece of work would end, as things stand; a
            later call for the same number replaces it.
    """

    def __init__(
        self, sharing: Sharing, nodes: Sequence[int], announce: Callable[[float, int], None]
    ) -> None:
        self.sharing, self.announce, self.nodes = sharing, announce, nodes
        self.transfers = [0] * len(nodes)  # under way, by rank
        self._covered = [0.0] * len(nodes)  # seconds in which some were, before those of now
        self._since = [0.0] * len(nodes)
        self.computing = [0] * len(nodes)  # computations that run, by rank
        # by machine and number
        self.running: dict[int, dict[int, _Running]] = {node: {} for node in nodes}
        self._changed: dict[int, None] = {}  # machines, as an ordered set

    def begin(self, rank: int, number: int, work: Work, now: float) -> None:
        """A computation begins."""
        self.computing[rank] += 1
        self._begin(rank, _Running(rank, number, work, now))

    def load(self, rank: int, number: int, seconds: float, now: float) -> None:
        """A rank begins to load its next batch."""
        self._begin(rank, _Running(-1, number, Work(seconds, seconds), now))

    def _begin(self, rank: int, running: _Running) -> None:
        node = self.nodes[rank]
        self.running[node][running.number] = running
        self._changed[node] = None

    def has_ended(self, rank: int, number: int, now: float) -> bool:
        """Whether what was announced is over, or was announced anew since."""
        node = self.nodes[rank]
        running = self.running[node].get(number)
        if running is None:
            return False
        if running.left / running.speed + running.since > now * (1 + 1e-12) + 1e-15:
            return False
        del self.running[node][number]
        self.computing[rank] -= running.rank >= 0
        self._changed[node] = None
        return True

    def transfer(self, ranks: Sequence[int], by: int, now: float) -> None:
        """A transfer of some ranks begins (+1) or ends (-1)."""
        for rank in ranks:
            before = self.transfers[rank]
            self.transfers[rank] = before + by
            if before == 0:
                self._since[rank] = now
            elif before + by == 0:
                self._covered[rank] += now - self._since[rank]
            if before == 0 or before + by == 0:
                self._changed[self.nodes[rank]] = None

    def covered(self, rank: int, now: float) -> float:
        """Seconds until now in which a transfer of the rank was under way."""
        return self._covered[rank] + (now - self._since[rank] if self.transfers[rank] else 0.0)

    def stretch(self, ranks: Sequence[int]) -> float:
        """Times as long as a transfer between these ranks takes, as things stand."""
        share = sum([self.computing[rank] > 0 for rank in ranks]) / len(ranks)
        return 1 + share * (self.sharing.stretch - 1)

    def settle(self, now: float) -> None:
        """What runs on machines where something has changed gets the speed it has from now on."""
        for node in self._changed:
            if self.running[node]:
                self._retime([*self.running[node].values()], now)
        self._changed.clear()

    def _retime(self, together: list[_Running], now: float) -> None:
        sharing = self.sharing
        crowding, others, total = 1.0, 1, together[0].root
        if len(together) > 1:
            busy = sum([running.rank >= 0 for running in together])
            cores = sharing.ranks * sharing.threads
            crowding = max(1.0, (busy * sharing.threads + len(together) - busy) / cores)
            others = max(1, sharing.ranks - 1)
            total = sum([running.root for running in together])
        for running in together:
            root = running.root
            seconds = running.alone * (1 + root * (total - root) / others) * crowding
            if running.rank >= 0 and self.transfers[running.rank]:
                seconds /= 1 - sharing.slowdown[running.rank]
            speed = 1 / max(seconds, 1e-12)
            if speed != running.speed:
                running.left = max(0.0, running.left - (now - running.since) * running.speed)
                running.since, running.speed = now, speed
                self.announce(now + running.left / speed, running.number)
