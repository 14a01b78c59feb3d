"""The clock: ranks, lanes and links go through a program's ops, time moves from event to event.

What meets is one *activity*: a computation, a message with its two sides, a collective of its
group. An activity starts when everything before its ops has ended; what that is,
:mod:`orchestrator.program.order` says. Events are taken from a heap by (time, counter), so two runs
are the same to the byte.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol

from orchestrator.observe.timeline import StepTimes, from_activities
from orchestrator.program.ops import COMPUTE, EXCHANGE, LANE_OF, Program
from orchestrator.program.order import before, meetings
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


GATE = "gate"
"""The lane of an activity that takes no time: it stands for many, before or behind it."""


@dataclass(frozen=True)
class Graph:
    """A program's ops as activities.

    Args:
        of: by op, its activities: one; of an exchange a message each, what is sent first.
        ops: by activity, its ops; the first names it. Of a message the sender's first.
        ranks: by activity, the ranks of its ops.
        lanes: by activity: compute, exchange (a message), reduce or :data:`GATE`.
        sizes: by activity, the bytes of a message or the buffer of a collective.
        after: by activity, the activities that need it.
        missing: by activity, how many it needs.
    """

    of: list[tuple[int, ...]]
    ops: list[tuple[int, ...]]
    ranks: list[tuple[int, ...]]
    lanes: list[str]
    sizes: list[int]
    after: list[list[int]]
    missing: list[int]


def build_graph(program: Program) -> Graph:
    """Merge what meets, and turn the program's order into edges."""
    columns, met = program.columns, meetings(program)
    lanes = [LANE_OF[kind] for kind in columns.kind]
    of: list[tuple[int, ...]] = [()] * len(columns)
    ops: list[tuple[int, ...]] = []
    sizes: list[int] = []
    for i, lane in enumerate(lanes):
        if lane == COMPUTE:
            of[i] = (len(ops),)
            ops.append((i,))
            sizes.append(0)
    for ids in met.collectives:
        for i in ids:
            of[i] = (len(ops),)
        ops.append(ids)
        sizes.append(columns.bytes[ids[0]])
    sides = {i: [0] * len(t.sides) for i, t in enumerate(columns.transfers) if t is not None}
    for send, sent, receive, received in met.messages:
        there = columns.transfers[receive]
        assert there is not None
        sides[send][sent] = sides[receive][len(there.sends) + received] = len(ops)
        ops.append((send, receive))
        sizes.append(there.receives[received][1])
    for i, activities in sides.items():
        of[i] = tuple(activities)
    rank_of = columns.rank
    ranks = [tuple([rank_of[i] for i in ids]) for ids in ops]
    graph = Graph(of, ops, ranks, [lanes[first] for first, *_ in ops], sizes, [], [])
    _link(program, graph)
    return graph


def _link(program: Program, graph: Graph) -> None:
    """The edges. An exchange of many messages begins, or ends, through a gate where several ops are
    before it, or behind it: else each would be before each."""
    of, after, missing = graph.of, graph.after, graph.missing
    after += [[] for _ in graph.ops]
    missing += [0] * len(graph.ops)
    entries, exits = of, of
    order: Iterable[tuple[int, Sequence[int]]] = before(program)
    if any(len(activities) > 2 for activities in of):
        order = listed = list(order)
        entries, exits = _gates(program, graph, listed)
    for i, firsts in order:
        entry, count = entries[i], 0
        for first in firsts:
            leaving = exits[first]
            count += len(leaving)
            for activity in leaving:
                after[activity] += entry
        for activity in entry:
            missing[activity] += count


def _gates(
    program: Program, graph: Graph, order: Sequence[tuple[int, Sequence[int]]]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Put gates in; by op, what it begins with and what it ends with."""
    of, after, missing = graph.of, graph.after, graph.missing
    behind = [0] * len(of)
    for i, firsts in order:
        for first in firsts:
            behind[first] += 2 if len(of[i]) > 2 else 1  # a large one counts as several

    def gate(i: int, first: Sequence[int], then: Sequence[int]) -> int:
        made = len(graph.ops)
        graph.ops.append((i,))
        graph.ranks.append((program.columns.rank[i],))
        graph.lanes.append(GATE)
        graph.sizes.append(0)
        after.append(list(then))
        missing.append(len(first))
        for activity in first:
            after[activity].append(made)
        for activity in then:
            missing[activity] += 1
        return made

    entries, exits = list(of), list(of)
    for i, firsts in order:
        if len(of[i]) > 2:
            if len(firsts) > 1:
                entries[i] = (gate(i, (), of[i]),)
            if behind[i] > 1:
                exits[i] = (gate(i, of[i], ()),)
    return entries, exits


def _posts(program: Program, graph: Graph) -> list[list[tuple[int, int]]]:
    """By activity, ranks and how many transfers each posts between its last computation and this
    activity, which counts if it is a transfer. Of a message the sender is all that is listed."""
    columns = program.columns
    found: list[list[tuple[int, int]]] = [[] for _ in graph.ops]
    for rank, ids in enumerate(program.order):
        count = 0
        for i in ids:
            transfers = columns.transfers[i]
            if transfers is not None:
                count += len(transfers.sides)
                sent = graph.of[i][: len(transfers.sends)]
            else:
                count += LANE_OF[columns.kind[i]] != COMPUTE
                sent = graph.of[i]
            for activity in sent:
                found[activity].append((rank, count))
            if LANE_OF[columns.kind[i]] == COMPUTE:
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
            self.program, self.graph.of, self.start, self.end, self.entered, self.entry
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
        self.ended: list[int] = []  # activities that end now
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
        now = min(self.entry)
        for i in range(count):
            if not graph.missing[i]:
                self._enter(i, now)
        ended = self._over(now)
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
        ended = self.ended = []
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
        return self._over(now)

    def _over(self, now: float) -> int:
        """What ends now has ended; what only waited for that begins. Returns how many end."""
        graph, missing, ended = self.graph, self.missing, self.ended
        enter = self._enter if now < self.all_entered or self.post else self._begin
        for i in ended:  # grows meanwhile: gates take no time
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
        lane = self.graph.lanes[i]
        if lane == GATE:
            self.ended.append(i)
            return
        if lane != COMPUTE:
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
        graph = self.graph
        messages = []
        begun, self.starting = self.starting, []
        for i in begun:
            if graph.lanes[i] == EXCHANGE:
                messages.append(i)
            else:
                self._start_collective(i, now)
        if not messages:
            return
        key = tuple([(graph.sizes[i], graph.ranks[i]) for i in messages])
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
