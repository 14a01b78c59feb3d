"""The clock: ranks, lanes and links go through a program's ops, time moves from event to event.

What meets is one *activity*: a computation, a send with its receive, a collective of its group. An
activity starts when everything it needs has ended: the ``needs`` of its ops, and the op before each
of them on its lane. That is all the order there is; the program has put it there. Events are taken
from a heap by (time, counter), so two runs are the same to the byte.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from orchestrator.observe.timeline import StepTimes, from_activities
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, SEND, Program
from orchestrator.simulate.collectives import Collectives, Phase
from orchestrator.simulate.network import Load, Network, Route, Topology, bundles
from orchestrator.simulate.processors import Processors, Sharing, Work, drawn


class Costs(Protocol):
    """What the engine asks about durations; all in seconds."""

    def computation(self, program: Program, i: int) -> float:
        """Of a computation, alone on its device."""

    def latency(self, source: int, target: int, size: int) -> float | None:
        """Of a message before its bytes flow, where it was measured; None for the link's own."""

    def phases(self, kind: str, size: int, group: tuple[int, ...]) -> tuple[Phase, ...] | None:
        """Of a collective, where it was measured; None to plan it from the links."""

    def sharing(self) -> Sharing | None:
        """How ranks of a machine disturb each other; None if they do not."""

    def alone(self, program: Program, i: int) -> float:
        """Of a computation while the machine's other ranks rest; asked where there is sharing."""

    @property
    def jitter(self) -> float:
        """Relative standard deviation of a computation's time; asked where there is sharing."""

    def loading(self, rank: int) -> float:
        """Of the load of a rank's next batch, which runs beside the step; as ``alone``."""

    def node(self, rank: int) -> int:
        """The machine that a rank runs on."""


@dataclass(frozen=True)
class Graph:
    """A program's ops as activities.

    Args:
        activity: by op, its activity.
        ops: by activity, its ops; the first names it.
        after: by activity, the activities that need it.
        missing: by activity, how many it needs.
    """

    activity: list[int]
    ops: list[tuple[int, ...]]
    after: list[list[int]]
    missing: list[int]


def build_graph(program: Program) -> Graph:
    """Merge what meets, and turn ``needs`` and lanes into edges."""
    columns = program.columns
    kinds, ranks, all_peers = columns.kind, columns.rank, columns.peers
    lanes = [LANE_OF[kind] for kind in kinds]
    activity = [-1] * len(columns)
    ops: list[tuple[int, ...]] = []
    halves: defaultdict[tuple[int, int], tuple[deque[int], deque[int]]]
    halves = defaultdict(lambda: (deque(), deque()))
    met: defaultdict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
    counts: defaultdict[tuple[tuple[int, ...], int], int] = defaultdict(int)
    for i, lane in enumerate(lanes):
        if lane == COMPUTE:
            activity[i] = len(ops)
            ops.append((i,))
        elif lane == REDUCE:
            group = all_peers[i]
            number = counts[group, ranks[i]]
            counts[group, ranks[i]] = number + 1
            met[group, number].append(i)
        else:
            sent = lane == SEND
            peer = all_peers[i][0]
            sends, receives = halves[(ranks[i], peer) if sent else (peer, ranks[i])]
            others = receives if sent else sends
            if others:
                other = others.popleft()
                activity[i] = activity[other] = len(ops)
                ops.append((i, other) if sent else (other, i))
            else:
                (sends if sent else receives).append(i)
    for members in met.values():
        for i in members:
            activity[i] = len(ops)
        ops.append(tuple(members))
    return Graph(activity, ops, *_edges(program, lanes, activity, len(ops)))


def _edges(
    program: Program, lanes: list[str], activity: list[int], count: int
) -> tuple[list[list[int]], list[int]]:
    columns = program.columns
    ranks, all_peers = columns.rank, columns.peers
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    last: dict[tuple[int, str, int], int] = {}
    for i, needs in enumerate(columns.needs):
        mine = activity[i]
        for need in needs:
            after[activity[need]].append(mine)
        missing[mine] += len(needs)
        lane = lanes[i]
        if lane in ("send", "receive"):
            key = (ranks[i], lane, all_peers[i][0])
        else:
            key = (ranks[i], lane, -1)
        before = last.get(key)
        if before is not None:
            after[before].append(mine)
            missing[mine] += 1
        last[key] = mine
    return after, missing


class _Message(NamedTuple):
    """A send with its receive: ranks, bytes, seconds before the bytes flow."""

    pair: tuple[int, int]
    size: int
    latency: float


class Engine:
    """Runs one step of a program on a topology."""

    def __init__(self, program: Program, topology: Topology, costs: Costs) -> None:
        self.program, self.topology, self.costs = program, topology, costs
        self.collectives = Collectives(topology, program.ranks)
        self.graph = build_graph(program)
        self.step = -1  # how many were played before this one
        self.loaded = [0.0] * len(program.order)  # when each rank's next images are there
        kinds = program.columns.kind
        self.computes = [LANE_OF[kinds[ops[0]]] == COMPUTE for ops in self.graph.ops]
        self.seconds: dict[int, float] = {}  # by computation
        self.messages: dict[int, _Message] = {}
        self._shares: dict[tuple[tuple[int, int], ...], list[tuple[Load, list[int]]]] = {}

    def run(self, begin: Sequence[float] = ()) -> StepTimes:
        """One step.

        Args:
            begin: by rank, when it enters the step, such as when it has left the one before; 0
                for all if not given.
        """
        self._play(begin)
        activity = self.graph.activity
        return from_activities(
            self.program, activity, self.start, self.end, self.entered, self.entry
        )

    def finish(self, begin: Sequence[float] = ()) -> list[float]:
        """One step, of which only the end matters: by rank, when it has left it."""
        self._play(begin)
        ends = [self.end[a] for a in self.graph.activity]
        return [
            max(map(ends.__getitem__, ids), default=entered)
            for ids, entered in zip(self.program.order, self.entry, strict=True)
        ]

    def _play(self, begin: Sequence[float]) -> None:
        self.step += 1
        graph = self.graph
        count = len(graph.ops)
        self.start, self.end = [0.0] * count, [0.0] * count
        self.missing = list(graph.missing)
        self.heap: list[tuple[float, int, int, int]] = []  # time, counter, what, which
        self.counter = 0
        self.network = Network(self.topology.capacity)
        self.starting: list[int] = []  # transfers that start at this moment
        self.waiting: list[tuple[Load, float, list[int]]] = []  # flows behind their latency
        self.phases: dict[int, deque[Phase]] = {}
        self.entered = list(begin) or [0.0] * len(self.program.order)
        # images that are not loaded when the step begins are waited for
        self.entry = [max(at, self.loaded[rank]) for rank, at in enumerate(self.entered)]
        self.all_entered = max(self.entry)
        sharing = self.costs.sharing()
        self.processors: Processors | None = None
        if sharing is not None:
            nodes = [self.costs.node(rank) for rank in self.program.ranks]
            self.processors = Processors(sharing, nodes, lambda at, i: self._push(at, 0, i))
            for rank, at in enumerate(self.entry):
                self._push(at, 3, rank)
        ended = 0
        now = min(self.entry)
        for i in range(count):
            if not self.missing[i]:
                self._enter(i, now)
        while True:
            if self.starting:
                self._start_transfers(now)
            self.network.settle(now)
            now = self._next_time()
            if now == float("inf"):
                break
            ended += self._advance(now)
        assert ended == count, f"{count - ended} activities never started"

    # -- the loop -----------------------------------------------------------------------------

    def _next_time(self) -> float:
        at = self.network.next_end()
        return min(at, self.heap[0][0]) if self.heap else at

    def _advance(self, now: float) -> int:
        """Everything that happens now; returns how many activities end."""
        ended: list[int] = []
        for flow in self.network.take_ended(now):
            ended += self._flow_over(flow.members, now)
        while self.heap and self.heap[0][0] <= now:
            _, _, what, which = heapq.heappop(self.heap)
            if what == 0:
                ended += self._compute_over(which, now)
            elif what == 2:
                self._begin(which, now)
            elif what == 3:
                self._load(which, now)
            else:
                load, size, members = self.waiting[which]
                if load and size > 0:
                    self.network.add(now, load, size, members)
                else:
                    ended += self._flow_over(members, now)
        after, missing = self.graph.after, self.missing
        for i in ended:
            self.end[i] = now
            for other in after[i]:
                missing[other] -= 1
                if not missing[other]:
                    self._enter(other, now)
        return len(ended)

    def _enter(self, i: int, now: float) -> None:
        """Begin an activity, or wait until all its ranks have entered the step."""
        if now < self.all_entered:
            entered = max([self.entry[self.program.columns.rank[op]] for op in self.graph.ops[i]])
            if entered > now:
                self._push(entered, 2, i)
                return
        self._begin(i, now)

    def _push(self, at: float, what: int, which: int) -> None:
        self.counter += 1
        heapq.heappush(self.heap, (at, self.counter, what, which))

    def _begin(self, i: int, now: float) -> None:
        self.start[i] = now
        if not self.computes[i]:
            self.starting.append(i)
            return
        op = self.graph.ops[i][0]
        seconds = self.seconds.get(i)
        if seconds is None:
            seconds = self.seconds[i] = self.costs.computation(self.program, op)
        if self.processors is None:
            self._push(now + seconds, 0, i)
        else:
            work = Work(seconds, self.costs.alone(self.program, op))
            if self.costs.jitter:
                work *= drawn(self.step, op, self.costs.jitter)
            self.processors.begin(self.program.columns.rank[op], i, work, now)

    # -- computation whose speed depends on what else goes on ----------------------------------

    def _load(self, rank: int, now: float) -> None:
        """A rank that enters the step begins to load its next batch; numbered before all ops."""
        assert self.processors is not None
        seconds = self.costs.loading(rank)
        if seconds > 0:
            self.processors.load(rank, -1 - rank, seconds, now)

    def _compute_over(self, i: int, now: float) -> list[int]:
        if self.processors is None:
            return [i]
        place = i if i < 0 else self.program.columns.rank[self.graph.ops[i][0]]
        if not self.processors.has_ended(place, i, now):
            return []
        if i >= 0:
            return [i]
        self.loaded[-1 - i] = now
        return []

    def _count_transfer(self, i: int, by: int, now: float) -> None:
        """A transfer of some ranks begins or ends."""
        assert self.processors is not None
        for op in self.graph.ops[i]:
            self.processors.transfer(self.program.columns.rank[op], by, now)

    # -- transfers ----------------------------------------------------------------------------

    def _start_transfers(self, now: float) -> None:
        """Transfers that start at this moment: those of equal size are put together."""
        kinds = self.program.columns.kind
        alike: defaultdict[tuple[int, float], list[int]] = defaultdict(list)
        begun, self.starting = self.starting, []
        for i in begun:
            if self.processors is not None:
                self._count_transfer(i, 1, now)
            op = self.graph.ops[i][0]
            if LANE_OF[kinds[op]] == REDUCE:
                self._start_collective(i, op, now)
                continue
            message = self.messages.get(i)
            if message is None:
                message = self.messages[i] = self._message(op)
            alike[message.size, message.latency].append(i)
        for (size, latency), members in alike.items():
            for load, places in self._bundled(members):
                self._flow(now + latency, load, size, [members[p] for p in places])

    def _message(self, op: int) -> _Message:
        columns = self.program.columns
        source, target, size = columns.rank[op], columns.peers[op][0], columns.bytes[op]
        latency = self.costs.latency(source, target, size)
        if latency is None:
            latency = self.topology.path(source, target)[1]
        return _Message((source, target), size, latency)

    def _bundled(self, members: list[int]) -> list[tuple[Load, list[int]]]:
        pairs = tuple([self.messages[i].pair for i in members])
        found = self._shares.get(pairs)
        if found is None:
            routes: Sequence[Route] = [self.topology.path(a, b)[0] for a, b in pairs]
            found = self._shares[pairs] = bundles(routes, self.topology.capacity)
        return found

    def _start_collective(self, i: int, op: int, now: float) -> None:
        columns = self.program.columns
        kind, size, group = columns.kind[op], columns.bytes[op], columns.peers[op]
        phases = self.costs.phases(kind, size, group)
        if phases is None:
            phases = self.collectives.plan(kind, size, group).phases
        self.phases[i] = deque(phases)
        self._next_phase(i, now)

    def _next_phase(self, i: int, now: float) -> None:
        phase = self.phases[i].popleft()
        self._flow(now + phase.latency, phase.load, phase.size, [i])

    def _flow(self, at: float, load: Load, size: float, members: list[int]) -> None:
        self.waiting.append((load, size, members))
        self._push(at, 1, len(self.waiting) - 1)

    def _flow_over(self, members: Sequence[int], now: float) -> list[int]:
        """The transfers of a flow that have ended, with their last phase."""
        ended = []
        for i in members:
            if self.phases and self.phases.get(i):
                self._next_phase(i, now)
                continue
            if self.processors is not None:
                self._count_transfer(i, -1, now)
            ended.append(i)
        return ended
