"""Replicas that are not alike: slow ranks, mixed devices, computations whose times jitter.

The program lists the first replica only, and the engine has run it: so the order of everything is
known, and how long each transfer takes beside the others. Here that replica is computed for all at
once, every time a vector with one element a replica:

    replica                  0     1     2     3
    F on rank 0  starts    0.0   0.0   0.0   0.0      its seconds are each replica's own
                 ends      1.0   1.0   1.5   1.0
    send         ends      1.2   1.2   1.7   1.2      elementwise: replicas do not wait for others
    all-reduce   starts    1.7   1.7   1.7   1.7      over replicas: all wait for the last
                 ends      2.0   2.0   2.0   2.0

Replicas whose ranks are equally fast are one element (a *class*), so a few slow ranks among
thousands of replicas cost little. With jitter every replica is a class of its own.

What is not followed: every transfer takes as long as the engine found, whatever else is on its
links at that moment in another replica; the loading of images on processors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.observe.accounting import Account, Accountant, Shares
from orchestrator.observe.timeline import StepTimes, from_activities
from orchestrator.program.boundary import Route
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, Program
from orchestrator.simulate.costs import CostModel
from orchestrator.simulate.engine import Graph
from orchestrator.simulate.processors import Cover
from orchestrator.simulate.replicas import Hardware, classes, hardware

Vector = NDArray[np.float64]

# Where a step's time goes is worked out for so many classes; an account of each of a thousand
# replicas would take a thousand times as long as one.
SAMPLED = 4


@dataclass(frozen=True)
class Jitter:
    """Random computation times.

    Args:
        relative_std: standard deviation of a computation's time over its mean. Times are
            log-normal, so never negative, and their mean is the time without jitter.
        seed: of the draws; the same seed gives the same times.
    """

    relative_std: float = 0.0
    seed: int = 0

    def factors(self, step: int, op: int, replicas: int) -> Vector:
        """By replica, the time of one computation over its mean.

        Drawn by counter (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
        2011) from (seed, step, op), so that no draw depends on another.
        """
        draws = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, op, step]))
        variance = np.log1p(self.relative_std**2)
        normal = draws.standard_normal(replicas)
        factors: Vector = np.exp(normal * variance**0.5 - variance / 2)
        return factors


@dataclass(frozen=True)
class Unequal:
    """The last of some steps of all replicas.

    Args:
        times, account: of the first replica.
        mean: of all ranks of all replicas. Step and computation time are exact; how the rest
            divides is taken from ``sampled`` classes.
        step_time_s: by replica, mean over its ranks.
        compute_time_s: by replica, that of its rank that computes longest.
        slowest: the replica with the largest such; the others wait for it.
        slowest_account: its shares.
        sampled, classes: how many classes were accounted for, and how many there are.
    """

    times: StepTimes
    account: Account
    mean: Shares
    step_time_s: Vector
    compute_time_s: Vector
    slowest: int
    slowest_account: Account
    sampled: int
    classes: int

    def summary(self) -> dict[str, Any]:
        """``replicas`` of the summary: what the totals do not tell."""
        slowest = self.slowest_account
        return {
            "replicas": {
                "step_time_s": {"mean": float(self.step_time_s.mean()),
                                "max": float(self.step_time_s.max())},
                "compute_time_s": {"mean": float(self.compute_time_s.mean()),
                                   "max": float(self.compute_time_s.max())},
                "slowest": self.slowest,
                "slowest_ranks": [
                    {"rank": rank, **asdict(shares)} for rank, shares in slowest.ranks.items()
                ],
                "classes": self.classes,
                "accounted_classes": self.sampled,
            }
        }  # fmt: skip


def run_unequal(
    program: Program,
    graph: Graph,
    first: StepTimes,
    costs: CostModel,
    accountant: Accountant,
    steps: int,
    jitter: Jitter,
    covers: Mapping[int, Cover],
) -> Unequal:
    """Some steps of all replicas.

    Args:
        graph: of the program.
        first: a step of the first replica as the engine ran it.
        accountant: of the program.
        covers: by activity, how much of a computation of the first replica transfers disturb.
    """
    class_of = np.array(classes(program, costs.cluster))
    if jitter.relative_std:
        class_of = np.arange(len(class_of))
    firsts = [int(x) for x in np.unique(class_of, return_index=True)[1]]
    replay = _Replay(program, graph, first, costs, jitter, firsts, covers)
    entry = [np.zeros(len(firsts)) for _ in program.ranks]
    for step in range(steps - 1):
        entry = replay.run(step, entry).finish
    last = replay.run(steps - 1, entry)
    lengths = np.mean([f - e for f, e in zip(last.finish, entry, strict=True)], axis=0)
    longest = np.max(last.computed, axis=0)  # of a replica's ranks
    slowest = int(np.argmax(longest))
    sample = sorted({i * len(firsts) // SAMPLED for i in range(SAMPLED)})  # at equal distances
    chosen = sorted({slowest, *sample})
    again = replay.run(steps - 1, [x[chosen] for x in entry], chosen, last.met)
    times = {c: again.times(program, graph.of, i) for i, c in enumerate(chosen)}
    accounts = {c: accountant.account(of_class) for c, of_class in times.items()}
    weights = np.bincount(class_of) / len(class_of)
    if len(chosen) == len(firsts):
        sample = chosen
    mean = _mean(
        [(accounts[c].mean, float(weights[c])) for c in sample],
        step_s=float(lengths @ weights),
        compute_s=float(np.mean(last.computed, axis=0) @ weights),
    )
    return Unequal(
        times=times[0],
        account=accounts[0],
        mean=mean,
        step_time_s=lengths[class_of],
        compute_time_s=longest[class_of],
        slowest=firsts[slowest],
        slowest_account=accounts[slowest],
        sampled=len(sample),
        classes=len(firsts),
    )


def _mean(sample: Sequence[tuple[Shares, float]], *, step_s: float, compute_s: float) -> Shares:
    """Mean over all ranks: idle time divides as in the sample, whose classes have these weights."""
    total = sum(weight for _, weight in sample)

    def of(name: str) -> float:
        return float(sum(getattr(shares, name) * weight for shares, weight in sample)) / total

    idle = of("step_time_s") - of("compute_time_s")
    scale = (step_s - compute_s) / idle if idle > 0 else 1.0
    exposed = scale * of("exposed_communication_time_s")
    hidden = of("communication_time_s") - of("exposed_communication_time_s")
    return Shares(
        step_time_s=step_s,
        compute_time_s=compute_s,
        communication_time_s=hidden + exposed,
        exposed_communication_time_s=exposed,
        wait_time_s=scale * of("wait_time_s"),
        bubble_time_s=scale * of("bubble_time_s"),
        loading_time_s=scale * of("loading_time_s"),
        other_time_s=scale * of("other_time_s"),
    )


@dataclass
class _Step:
    """What came out of one step: vectors over classes.

    Args:
        entry, finish: by rank, when it enters and leaves the step.
        computed: by rank, seconds of its computations.
        met: by collective, when it starts, in all replicas.
        start, end: by activity; only what is still needed, unless all is kept.
    """

    entry: list[Vector]
    finish: list[Vector]
    computed: list[Vector]
    met: dict[int, float]
    start: dict[int, Vector]
    end: dict[int, Vector]

    def times(self, program: Program, of: Sequence[tuple[int, ...]], place: int) -> StepTimes:
        """Of one class."""
        count = range(len(self.end))
        start = [float(self.start[a][place]) for a in count]
        end = [float(self.end[a][place]) for a in count]
        entry = [float(at[place]) for at in self.entry]
        return from_activities(program, of, start, end, entry)


class _Replay:
    """Runs a step of all classes of replicas, or again a step of some of them.

    Args:
        first: a step of the first replica as the engine ran it.
        firsts: the first replica of each class.
        covers: see :func:`run_unequal`.
    """

    def __init__(
        self,
        program: Program,
        graph: Graph,
        first: StepTimes,
        costs: CostModel,
        jitter: Jitter,
        firsts: Sequence[int],
        covers: Mapping[int, Cover],
    ) -> None:
        self.program, self.graph, self.jitter, self.firsts = program, graph, jitter, firsts
        columns = program.columns
        speeds = _Speeds(program, costs, firsts)
        self.seconds: list[float | Vector] = []  # by activity, without jitter
        took = first.took(graph.of, len(graph.ops))
        for a, (i, *_) in enumerate(graph.ops):
            if graph.lanes[a] == COMPUTE:
                self.seconds.append(speeds.seconds(i, took[a], covers.get(a, Cover())))
            else:
                self.seconds.append(took[a])
        self.lanes = graph.lanes
        self.before: list[list[int]] = [[] for _ in graph.ops]
        self.followers = []
        for a, after in enumerate(graph.after):
            followers = set(after)
            self.followers.append(len(followers))
            for other in followers:
                self.before[other].append(a)
        self.order = _topological(graph)
        last = _last_ops(program)
        self.entering = [
            [columns.rank[i] for i in ops if not columns.needs[i]] for ops in graph.ops
        ]
        self.leaving = [[columns.rank[i] for i in ops if i in last] for ops in graph.ops]

    def run(
        self,
        step: int,
        entry: list[Vector],
        chosen: Sequence[int] | None = None,
        met: dict[int, float] | None = None,
    ) -> _Step:
        """One step.

        Args:
            entry: by rank, when it enters.
            chosen: follow these classes only and keep every time; ``entry`` is of these.
            met: then, when the collectives start.
        """
        found = _Step(entry, [*entry], [np.zeros_like(at) for at in entry], met or {}, {}, {})
        ends, lanes = found.end, self.lanes
        waiting = list(self.followers)
        for a in self.order:
            before = self.before[a]
            after = [entry[rank] for rank in self.entering[a]] + [ends[other] for other in before]
            start = after[0]
            for at in after[1:]:
                start = np.maximum(start, at)
            seconds = self.seconds[a]
            if lanes[a] == COMPUTE:
                seconds = self._computation(step, a, chosen)
                rank = self.program.columns.rank[self.graph.ops[a][0]]
                found.computed[rank] += seconds
            elif lanes[a] == REDUCE:  # all replicas take part
                if chosen is None:
                    found.met[a] = float(start.max())
                start = np.full_like(start, found.met[a])
            ends[a] = end = start + seconds
            for rank in self.leaving[a]:
                found.finish[rank] = np.maximum(found.finish[rank], end)
            if chosen is not None:
                found.start[a] = start
                continue
            for other in before:
                waiting[other] -= 1
                if not waiting[other]:
                    del ends[other]
        return found

    def _computation(self, step: int, a: int, chosen: Sequence[int] | None) -> float | Vector:
        seconds = self.seconds[a]
        if self.jitter.relative_std:
            op = self.graph.ops[a][0]
            seconds = seconds * self.jitter.factors(step, op, len(self.firsts))
        if chosen is not None and isinstance(seconds, np.ndarray):
            seconds = seconds[list(chosen)]
        return seconds


class _Speeds:
    """How long the classes take for what the first replica does.

    Args:
        firsts: the first replica of each class.
    """

    def __init__(self, program: Program, costs: CostModel, firsts: Sequence[int]) -> None:
        self.program, self.costs = program, costs
        each = len(program.ranks)
        self.shifted: dict[int, Program] = {}
        # by rank, the replicas that stand for its kinds of hardware, and the kind of each class
        self.kinds: list[tuple[list[int], NDArray[np.intp]]] = []
        for rank in program.ranks:
            found: dict[Hardware, int] = {}
            numbers = [
                found.setdefault(hardware(costs.cluster, replica * each + rank), len(found))
                for replica in firsts
            ]
            stand_in = [firsts[numbers.index(n)] for n in range(len(found))]
            self.kinds.append((stand_in, np.array(numbers)))

    def seconds(self, i: int, took: float, cover: Cover) -> float | Vector:
        """Of computation ``i`` by class.

        Args:
            took: seconds in the first replica.
            cover: how much of that transfers disturb; they take as long in every replica.
        """
        replicas, kind_of_class = self.kinds[self.program.columns.rank[i]]
        if len(replicas) == 1:
            return took
        each = []
        for replica in replicas:
            there = self._on(replica)
            slowdown = self.costs.slowdown(there.columns.rank[i])
            work = self.costs.work(there, i)
            each.append(cover.stretched(work.together, slowdown))
        scale = took / each[0] if each[0] else 1.0
        found: Vector = scale * np.array(each)[kind_of_class]
        return found

    def _on(self, replica: int) -> Program:
        """The program as it stands, but on the ranks of another replica."""
        if replica not in self.shifted:
            columns = self.program.columns
            by = replica * len(self.program.ranks)
            there = replace(columns, rank=[rank + by for rank in columns.rank])
            self.shifted[replica] = replace(self.program, columns=there)
        return self.shifted[replica]


def _topological(graph: Graph) -> list[int]:
    """Every activity after all that it needs (Kahn 1962)."""
    missing = list(graph.missing)
    order = [a for a, n in enumerate(missing) if not n]
    for a in order:  # grows while it is walked
        for other in graph.after[a]:
            missing[other] -= 1
            if not missing[other]:
                order.append(other)
    return order


def _last_ops(program: Program) -> set[int]:
    """Ops that no other of the same rank waits for: a rank leaves the step with one of these."""
    columns = program.columns
    of_channel: dict[tuple[int, str | Route], int] = {}
    for rank, ids in enumerate(program.order):
        for i in ids:
            transfers = columns.transfers[i]
            channel = transfers.route if transfers is not None else LANE_OF[columns.kind[i]]
            of_channel[rank, channel] = i
    return set(of_channel.values()) - {need for needs in columns.needs for need in needs}
