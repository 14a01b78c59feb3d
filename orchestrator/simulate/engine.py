"""The clock: ranks, lanes and links go through a program's ops, time moves from event to event.

What meets is one *activity*: a computation, a send with its receive, a collective of its group. An
activity starts when everything it needs has ended: the ``needs`` of its ops, and the op before each
of them on its lane. That is all the order there is; the program has put it there. Events are taken
from a heap by (time, counter), so two runs are the same to the byte.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

from orchestrator.observe.timeline import StepTimes, from_activities
from orchestrator.program.ops import COMPUTE, LANE_OF, RECEIVE, REDUCE, SEND, Program
from orchestrator.simulate.algorithms import Phase
from orchestrator.simulate.collectives import Collectives
from orchestrator.simulate.network import Load, Network, Topology, bundles
from orchestrator.simulate.processors import Cover, Processors, Sharing, Work, drawn


class Costs(Protocol):
    """What the engine asks about durations; all in seconds."""

    def work(self, program: Program, i: int) -> Work:
        """Of a computation."""

    def message(self, source: int, target: int, size: int) -> tuple[float, float] | None:
        """Of a message before its bytes flow, and how many flow, where it was measured; None for
        the link's latency and all of them."""

    def phases(self, kind: str, size: int, group: tuple[int, ...]) -> tuple[Phase, ...] | None:
        """Of a collective, where it was measured; None to plan it from the links."""

    def sharing(self) -> Sharing | None:
        """How ranks of a machine disturb each other; None if they do not."""

    @property
    def jitter(self) -> float:
        """Relative standard deviation of a computation's time; asked where there is sharing."""

    def loading(self, rank: int) -> float:
        """Of the load of a rank's next batch, which runs beside the step; on idle cores."""

    def node(self, rank: int) -> int:
        """The machine that a rank runs on."""


@dataclass(frozen=True)
class Graph:
    """A program's ops as activities.

    Args:
        activity: by op, its activity.
        ops: by activity, its ops; the first names it.
        ranks: by activity, the ranks of its ops; of a message the sender first.
        lanes: by activity, the lane of the op that names it: compute, send or reduce.
        after: by activity, the activities that need it.
        missing: by activity, how many it needs.
    """

    activity: list[int]
    ops: list[tuple[int, ...]]
    ranks: list[tuple[int, ...]]
    lanes: list[str]
    after: list[list[int]]
    missing: list[int]


def build_graph(program: Program) -> Graph:
    """Merge what meets, and turn ``needs`` and lanes into edges."""
    columns = program.columns
    ranks, all_peers = columns.rank, columns.peers
    lanes = [LANE_OF[kind] for kind in columns.kind]
    activity = [-1] * len(columns)
    ops: list[tuple[int, ...]] = []
    meeting: list[tuple[int, ...]] = []  # by activity, its ranks
    unmet: defaultdict[tuple[int, int], deque[int]] = defaultdict(deque)
    met: defaultdict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
    counts: defaultdict[tuple[tuple[int, ...], int], int] = defaultdict(int)
    for i, lane in enumerate(lanes):
        if lane == COMPUTE:
            activity[i] = len(ops)
            ops.append((i,))
            meeting.append((ranks[i],))
        elif lane == REDUCE:
            group = all_peers[i]
            number = counts[group, ranks[i]]
            counts[group, ranks[i]] = number + 1
            met[group, number].append(i)
        else:
            sent = lane == SEND
            peer = all_peers[i][0]
            pair = (ranks[i], peer) if sent else (peer, ranks[i])
            sides = unmet[pair]  # all of them sends, or all receives
            if sides and lanes[sides[0]] != lane:
                other = sides.popleft()
                activity[i] = activity[other] = len(ops)
                ops.append((i, other) if sent else (other, i))
                meeting.append(pair)
            else:
                sides.append(i)
    for members in met.values():
        for i in members:
            activity[i] = len(ops)
        ops.append(tuple(members))
        meeting.append(tuple([ranks[i] for i in members]))
    lane_of = [lanes[first] for first, *_ in ops]
    after, missing = _edges(program, lanes, activity, len(ops))
    return Graph(activity, ops, meeting, lane_of, after, missing)


def _edges(
    program: Program, lanes: list[str], activity: list[int], count: int
) -> tuple[list[list[int]], list[int]]:
    """By activity, those behind it and how many are before it.

    The order of what two ranks send each other is the same on the sender's lane and on the
    receiver's: the sender's tells it.
    """
    columns = program.columns
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    nothing = [-1] * len(program.order)
    last: dict[str, list[int]] = {COMPUTE: nothing, REDUCE: list(nothing)}  # by lane and rank
    last_sent: dict[tuple[int, int], int] = {}
    for needs, mine, rank, lane, peers in zip(
        columns.needs, activity, columns.rank, lanes, columns.peers, strict=True
    ):
        for need in needs:
            after[activity[need]].append(mine)
        missing[mine] += len(needs)
        if lane == RECEIVE:
            continue
        if lane == SEND:
            pair = (rank, peers[0])
            before = last_sent.get(pair, -1)
            last_sent[pair] = mine
        else:
            before = last[lane][rank]
            last[lane][rank] = mine
        if before >= 0:
            after[before].append(mine)
            missing[mine] += 1
    return after, missing


def _posts(program: Program, graph: Graph) -> list[list[tuple[int, int]]]:
    """By activity, ranks and how many transfers each posts between its last computation and this
    activity, which counts if it is a transfer. Of a message the sender is all that is listed."""
    kinds = program.columns.kind
    found: list[list[tuple[int, int]]] = [[] for _ in graph.ops]
    for rank, ids in enumerate(program.order):
        count = 0
        for i in ids:
            lane = LANE_OF[kinds[i]]
            count += lane != COMPUTE
            if lane != RECEIVE:
                found[graph.activity[i]].append((rank, count))
            if lane == COMPUTE:
                count = 0
    return found


class _Transfer(NamedTuple):
    """Activities whose bytes are followed as one flow, and the ranks that it keeps busy."""

    activities: Sequence[int]
    ranks: Sequence[int]


class _Bundle(NamedTuple):
    """Of messages that start together: seconds before bytes flow, the flow, which messages."""

    latency: float
    size: float
    load: Load
    places: list[int]
    ranks: tuple[int, ...]


class Engine:
    """Runs steps of a program on a topology, one after another.

    Every step has a clock of its own, which starts when the first rank enters it: a step whose
    ranks enter it as they have entered the one before is that one again.

    Args:
        copies: by rank, the transfer of the next step's images that begins as it enters a step.
    """

    def __init__(
        self,
        program: Program,
        topology: Topology,
        costs: Costs,
        copies: Mapping[int, Phase] | None = None,
    ) -> None:
        self.program, self.topology, self.costs = program, topology, costs
        self.collectives = Collectives(topology, program.ranks)
        self.graph = build_graph(program)
        self.sharing = costs.sharing()
        self.jitter = costs.jitter if self.sharing is not None else 0.0
        self.post = self.sharing.post if self.sharing is not None else 0.0
        self.posts = _posts(program, self.graph) if self.post else []
        self.step = -1  # how many were played before this one
        self.counter = 0  # events of the newest step
        self.entered: list[float] = []
        self.entry: list[float] = []
        self.loaded = [0.0] * len(program.order)  # when each rank's next images are there
        self.copies = copies or {}
        self.work: dict[int, Work] = {}  # by computation
        self.covers: dict[int, Cover] = {}  # by computation of the newest step, where it matters
        self._covered: dict[int, float] = {}  # seconds of its rank's transfers when it began
        self._shares: dict[tuple[tuple[int, ...], ...], list[tuple[Load, list[int]]]] = {}
        self._bundles: dict[tuple[tuple[int, tuple[int, ...]], ...], list[_Bundle]] = {}

    def run(self, begin: Sequence[float] = ()) -> StepTimes:
        """One step, on its own clock.

        Args:
            begin: by rank, when it enters the step, such as when it has left the one before, on
                any clock; all at once if not given.
        """
        self._play(begin)
        return from_activities(
            self.program, self.graph.activity, self.start, self.end, self.entered, self.entry
        )

    def finish(self, begin: Sequence[float] = ()) -> list[float]:
        """One step, of which only the end matters: by rank, when it has left it."""
        self._play(begin)
        left = list(self.entry)
        for ranks, end in zip(self.graph.ranks, self.end, strict=True):
            for rank in ranks:
                if end > left[rank]:
                    left[rank] = end
        return left

    def _play(self, begin: Sequence[float]) -> None:
        self.step += 1
        zero = min(begin, default=0.0)
        self.entered = [at - zero for at in begin] or [0.0] * len(self.program.order)
        # images that are not loaded when the step begins are waited for
        entry = [max(at, old - zero) for at, old in zip(self.entered, self.loaded, strict=True)]
        if entry == self.entry and not self.jitter:
            return
        self.entry, self.all_entered = entry, max(entry)
        self.computed = list(entry)  # by rank, when its last computation has ended
        graph = self.graph
        count = len(graph.ops)
        self.start, self.end = [0.0] * count, [0.0] * count
        self.missing = list(graph.missing)
        self.heap: list[tuple[float, int, int, int]] = []  # time, counter, what, which
        self.counter = 0
        self.starting: list[int] = []  # transfers that start at this moment
        self.waiting: list[tuple[Load, float, _Transfer]] = []  # flows behind their latency
        self.phases: dict[int, deque[Phase]] = {}
        self.processors: Processors | None = None
        if self.sharing is not None:
            nodes = [self.costs.node(rank) for rank in self.program.ranks]
            self.processors = Processors(self.sharing, nodes, self._announce)
        if self.processors is not None or self.copies:
            for rank, at in enumerate(self.entry):
                self._push(at, 3, rank)
        self.network = self._network()
        ended = 0
        now = min(self.entry)
        for i in range(count):
            if not self.missing[i]:
                self._enter(i, now)
        while True:
            if self.starting:
                self._start_transfers(now)
            self.network.settle(now)
            if self.processors is not None:
                self.processors.settle(now)
            now = self._next_time()
            if now == float("inf"):
                break
            ended += self._advance(now)
        self.processors = self.network.stretch = None  # they know this engine: a circle
        assert ended == count, f"{count - ended} activities never started"

    def _network(self) -> Network[_Transfer]:
        processors = self.processors
        if processors is None or processors.sharing.stretch == 1:
            return Network(self.topology.capacity)
        return Network(self.topology.capacity, lambda t: processors.stretch(t.ranks))

    # -- the loop -----------------------------------------------------------------------------

    def _next_time(self) -> float:
        at = self.network.next_end()
        return min(at, self.heap[0][0]) if self.heap else at

    def _advance(self, now: float) -> int:
        """Everything that happens now; returns how many activities end."""
        ended: list[int] = []
        for flow in self.network.take_ended(now):
            ended += self._flow_over(flow.carries, now)
        while self.heap and self.heap[0][0] <= now:
            _, _, what, which = heapq.heappop(self.heap)
            if what == 0:
                if self._is_over(which, now):
                    ended.append(which)
            elif what == 2:
                self._begin(which, now)
            elif what == 3:
                self._load(which, now)
            else:
                load, size, transfer = self.waiting[which]
                if load and size > 0:
                    self.network.add(now, load, size, transfer)
                else:
                    ended += self._flow_over(transfer, now)
        graph, missing = self.graph, self.missing
        enter = self._enter if now < self.all_entered or self.post else self._begin
        for i in ended:
            self.end[i] = now
            if self.processors is not None and graph.lanes[i] == COMPUTE:
                rank = graph.ranks[i][0]
                self.computed[rank] = now
                covered = self.processors.covered(rank, now) - self._covered[i]
                still = self.processors.transfers[rank] > 0
                self.covers[i] = Cover(now - self.start[i] - covered, covered, still)
            for other in graph.after[i]:
                missing[other] -= 1
                if not missing[other]:
                    enter(other, now)
        return len(ended)

    def _enter(self, i: int, now: float) -> None:
        """Begin an activity, or wait until all its ranks have entered the step and have posted
        what comes before it."""
        at = max([self.entry[rank] for rank in self.graph.ranks[i]])
        if self.post:
            posted = [self.computed[rank] + count * self.post for rank, count in self.posts[i]]
            at = max(at, *posted)
        if at > now:
            self._push(at, 2, i)
        else:
            self._begin(i, now)

    def _push(self, at: float, what: int, which: int) -> None:
        self.counter += 1
        heapq.heappush(self.heap, (at, self.counter, what, which))

    def _announce(self, at: float, i: int) -> None:
        """When a computation would end, as things stand."""
        self.counter += 1
        heapq.heappush(self.heap, (at, self.counter, 0, i))

    def _begin(self, i: int, now: float) -> None:
        self.start[i] = now
        if self.graph.lanes[i] != COMPUTE:
            self.starting.append(i)
            return
        work = self.work.get(i)
        if work is None:
            work = self.work[i] = self.costs.work(self.program, self.graph.ops[i][0])
        if self.processors is None:
            self._push(now + work.together, 0, i)
            return
        if self.jitter:
            work *= drawn(self.step, self.graph.ops[i][0], self.jitter)
        rank = self.graph.ranks[i][0]
        self._covered[i] = self.processors.covered(rank, now)
        self.processors.begin(rank, i, work, now)

    # -- computation whose speed depends on what else goes on ----------------------------------

    def _load(self, rank: int, now: float) -> None:
        """A rank that enters the step begins to load its next batch; numbered before all ops."""
        copy = self.copies.get(rank)
        if copy is not None:
            transfer = _Transfer([-1 - rank], (rank,))
            self._count(transfer, 1, now)
            self._flow(now + copy.latency, copy.load, copy.size, transfer)
        if self.processors is None:
            return
        seconds = self.costs.loading(rank)
        if seconds > 0:
            self.processors.load(rank, -1 - rank, seconds, now)

    def _is_over(self, i: int, now: float) -> bool:
        """Whether an activity ends now; a load, which is none, may do so too."""
        if self.processors is None:
            return True
        rank = self.graph.ranks[i][0] if i >= 0 else -1 - i
        if not self.processors.has_ended(rank, i, now):
            return False
        if i < 0:
            self.loaded[rank] = now
        return i >= 0

    # -- transfers ----------------------------------------------------------------------------

    def _start_transfers(self, now: float) -> None:
        """Transfers that start at this moment: those of equal size are put together."""
        columns, graph = self.program.columns, self.graph
        messages = []
        begun, self.starting = self.starting, []
        for i in begun:
            if graph.lanes[i] == SEND:
                messages.append(i)
            else:
                self._start_collective(i, now)
        if not messages:
            return
        key = tuple([(columns.bytes[graph.ops[i][0]], graph.ranks[i]) for i in messages])
        bundled = self._bundles.get(key)
        if bundled is None:
            bundled = self._bundles[key] = self._bundled(key)
        for latency, size, load, places, ranks in bundled:
            transfer = _Transfer([messages[p] for p in places], ranks)
            self._count(transfer, 1, now)
            self._flow(now + latency, load, size, transfer)

    def _bundled(self, messages: Sequence[tuple[int, tuple[int, ...]]]) -> list[_Bundle]:
        """Messages of so many bytes from rank to rank: as few flows as they can be followed as."""
        alike: defaultdict[tuple[float, float], list[int]] = defaultdict(list)
        paths = [self.topology.path(source, target) for _, (source, target) in messages]
        for place, (size, (source, target)) in enumerate(messages):
            measured = self.costs.message(source, target, size)
            alike[measured or (paths[place][1], size)].append(place)
        found = []
        for (latency, flowing), members in alike.items():
            pairs = tuple([messages[place][1] for place in members])
            shares = self._shares.get(pairs)
            if shares is None:
                routes = [paths[place][0] for place in members]
                shares = self._shares[pairs] = bundles(routes, self.topology.capacity)
            for load, chosen in shares:
                ranks = tuple(dict.fromkeys(chain.from_iterable([pairs[m] for m in chosen])))
                places = [members[m] for m in chosen]
                found.append(_Bundle(latency, flowing, load, places, ranks))
        return found

    def _start_collective(self, i: int, now: float) -> None:
        columns, op = self.program.columns, self.graph.ops[i][0]
        kind, size, group = columns.kind[op], columns.bytes[op], columns.peers[op]
        phases = self.costs.phases(kind, size, group)
        if phases is None:
            phases = self.collectives.plan(kind, size, group).phases
        self.phases[i] = deque(phases)
        transfer = _Transfer([i], self.graph.ranks[i])
        self._count(transfer, 1, now)
        self._next_phase(transfer, now)

    def _next_phase(self, transfer: _Transfer, now: float) -> None:
        phase = self.phases[transfer.activities[0]].popleft()
        self._flow(now + phase.latency, phase.load, phase.size, transfer)

    def _flow(self, at: float, load: Load, size: float, transfer: _Transfer) -> None:
        self.waiting.append((load, size, transfer))
        self._push(at, 1, len(self.waiting) - 1)

    def _flow_over(self, transfer: _Transfer, now: float) -> Sequence[int]:
        """The activities that have ended with a flow: none if a phase of a collective follows."""
        if self.phases.get(transfer.activities[0]):
            self._next_phase(transfer, now)
            return ()
        self._count(transfer, -1, now)
        if transfer.activities[0] < 0:  # images
            self.loaded[transfer.ranks[0]] = now
            return ()
        return transfer.activities

    def _count(self, transfer: _Transfer, by: int, now: float) -> None:
        """A transfer begins or ends."""
        if self.processors is not None:
            self.processors.transfer(transfer.ranks, by, now)
