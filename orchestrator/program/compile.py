"""Plan and model in, program out. A chain of small passes, each pure:

    place     plan, model   -> placed layers       who computes which part of each layer
    cut       placed layers -> segments            runs without communication, and what lies between
    schedule  stages        -> actions per group   which microbatch when
    linearise actions       -> one global order    a witness that the order is legal
    emit      order         -> ops                 sends, receives, reductions and steps put in

Ops are emitted in one global order in which the sides of an exchange come together. Every rank's
list is a part of that order, except that a rank that only receives does so ahead of the compute op
before, so that transfers run under computation; on each route that keeps the order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import compress, takewhile
from typing import NamedTuple, NoReturn

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan
from orchestrator.program.boundary import Boundary, Direction, Route, Side
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    REDUCE_SCATTER,
    STEP,
    B,
    Columns,
    F,
    Program,
    Transfers,
    W,
    others_of,
    size_of,
)
from orchestrator.program.optimizer import check_optimizer
from orchestrator.program.placement import Placement, place
from orchestrator.program.precision import ITEMSIZE, Precision
from orchestrator.program.resolve import recipe_of
from orchestrator.program.segments import (
    Bucket,
    Cut,
    Segment,
    SegmentPart,
    TooManyMessages,
    cut,
    leaving,
)
from orchestrator.schedules import SCHEDULES, Action

MOST_OPS = 2**20  # takes some 10 s and 0.7 GB


def compile_plan(
    plan: Plan, model: Model, *, dtype: str | Precision = "float32", fold: bool = False
) -> Program:
    """The program that runs one training step of ``model`` as ``plan`` splits it.

    Args:
        dtype: number formats, or the one that stands for them (:meth:`Precision.of`).
        fold: list the ops of the first replica only; the others do the same at other ranks. For
            the simulator; workers need their own.

    Raises:
        InputError: what the plan asks for cannot be done, with the line of the plan; or it would
            have more than ``MOST_OPS`` ops.
    """
    listed = 1 if fold else plan.replicas
    _check_count(plan, listed, plan.ranks_per_replica * plan.n_microbatches)
    placement = place(plan, model)
    precision = Precision.of(dtype) if isinstance(dtype, str) else dtype
    optimizer = recipe_of(plan, model).updates
    order = _global_order(plan, placement)
    try:
        pieces = cut(placement, ITEMSIZE[precision.reduce], plan.replicas, MOST_OPS // listed)
    except TooManyMessages as error:
        _refuse_count(plan, listed, error.args[0])
    _check_count(plan, listed, _ops_at_least(pieces))
    check_optimizer(plan, optimizer, pieces)
    # microbatches whose backward runs the forward again
    recompute = {"never": 0, "except_last": plan.n_microbatches - 1}.get(
        plan.activation_checkpoint, plan.n_microbatches
    )
    emitter = _Emitter(
        pieces,
        replicas=plan.replicas,
        listed=listed,
        ranks_per_replica=plan.ranks_per_replica,
        precision=precision,
        sharded=plan.optimizer_sharding == "zero1",
        recompute=recompute,
        n_microbatches=plan.n_microbatches,
    )
    columns, ranks = emitter.emit(order)
    return Program(
        name=plan.name,
        model=model,
        precision=precision,
        optimizer=optimizer,
        global_batch=plan.global_batch_size,
        n_microbatches=plan.n_microbatches,
        replicas=plan.replicas,
        folded=fold and plan.replicas > 1,
        ranks_per_replica=plan.ranks_per_replica,
        stages=placement.stages,
        segments=pieces.segments,
        boundaries=pieces.boundaries,
        buckets=pieces.buckets,
        recompute=recompute,
        sharded=plan.optimizer_sharding == "zero1",
        columns=columns,
        order=ranks,
    )


def _ops_at_least(cut: Cut) -> int:
    """Ops of a replica, no fewer: forwards and backwards of every chunk, and their exchanges."""
    computed = sum((1 + s.trained) * len(s.parts) * s.chunks for s in cut.segments)
    exchanged = 0
    for boundary in cut.boundaries[1:]:
        consumer = cut.segments[boundary.consumer]
        chunks = 1 if boundary.parameter else consumer.chunks
        returned = boundary.parameter or consumer.imports[boundary.number].trained
        for direction in (boundary.forward, boundary.backward) if returned else (boundary.forward,):
            exchanged += sum(map(len, direction.sides)) * chunks // boundary.turns
    return computed + exchanged


def _check_count(plan: Plan, listed: int, ops: int) -> None:
    """Refuse early what would take minutes and gigabytes to write down."""
    if ops * listed > MOST_OPS:
        _refuse_count(plan, listed, ops)


def _refuse_count(plan: Plan, listed: int, ops: int) -> NoReturn:
    key = "n_microbatches" if plan.n_microbatches >= listed else "replicas"
    raise InputError(
        f"a step of this plan has at least {ops * listed:,} ops (listed replicas: {listed:,}, "
        f"microbatches of each: {plan.n_microbatches:,}); allowed: {MOST_OPS:,}",
        plan.location((key,)),
        "fewer microbatches, ranks or replicas",
    )


def _global_order(plan: Plan, placement: Placement) -> list[Action]:
    """All actions in one legal order, after checking that the schedule fits the stages."""
    stages, microbatches = placement.stages, plan.n_microbatches
    schedule = SCHEDULES[plan.schedule]
    misfit = schedule.misfit(stages, microbatches)
    if misfit is None:
        return schedule.order(stages, microbatches)
    if misfit.microbatches:
        raise InputError(
            f"{plan.schedule} {misfit.reason}",
            plan.location(("n_microbatches",)),
            f"n_microbatches: {misfit.microbatches}",
        )
    found = ", ".join(str(list(r)) if len(r) > 1 else str(r[0]) for r in stages)
    raise InputError(
        f"{plan.schedule} {misfit.reason}; the stages here are on ranks {found}",
        plan.location(("schedule",)),
        "change the placement, or use schedule: GPipe, which takes any",
    )


def _input_gradient_flops(segment: Segment, part: SegmentPart) -> int:
    """Of the layers whose inputs were computed from something that is trained."""
    layers = compress(part.layers, segment.needs_input_grad)
    return 2 * part.examples * sum(layer.macs_per_example for layer in layers)


Arrived = defaultdict[int, list[int]]


def _nothing_yet() -> Arrived:
    return defaultdict(list)


class _Emitter:
    """Turns the global order of actions into ops, once for every listed replica."""

    def __init__(
        self,
        cut: Cut,
        *,
        replicas: int,
        listed: int,
        ranks_per_replica: int,
        precision: Precision,
        sharded: bool,
        recompute: int,
        n_microbatches: int,
    ) -> None:
        self.segments, self.boundaries, self.buckets = cut.segments, cut.boundaries, cut.buckets
        self.replicas, self.sharded = replicas, sharded
        self.sent_size = ITEMSIZE[precision.send]
        self.reduced_size = precision.item_of(gathered=False)
        self.held_size = precision.item_of(gathered=True)
        self.ranks_per_replica = ranks_per_replica
        self.offsets = [r * ranks_per_replica for r in range(listed)]
        self.recompute, self.n_microbatches = recompute, n_microbatches
        segments = cut.segments
        self.has_weights = [
            any(p.parameters or p.borrowed for p in s.parts.values()) for s in segments
        ]
        # by segment: boundaries behind it, and those before it through which gradients go back
        self.ties = [b for b in cut.boundaries if b.parameter]
        self.leaving = leaving(segments, cut.boundaries)
        self.returning = [
            [cut.boundaries[x.boundary] for x in s.imports if x.trained] for s in segments
        ]
        # by segment and rank within a replica, of one chunk
        self.forward_flops = [
            {rank: 2 * part.macs_per_example * part.examples for rank, part in s.parts.items()}
            for s in segments
        ]
        self.input_gradient_flops = [
            {rank: _input_gradient_flops(s, part) for rank, part in s.parts.items()}
            for s in segments
        ]
        # from here on segments work in turns, forward and backward of each before the next
        self.turning = next(
            (s.index for s in segments if s.chunk < segments[0].chunk or s.update_chunks),
            len(segments),
        )
        self.columns = Columns()
        count = listed * ranks_per_replica
        self.order: list[list[int]] = [[] for _ in range(count)]
        self.last_compute = [-1] * count  # where the newest compute op stands in order[rank]
        self.newest: list[tuple[int, ...]] = [()] * count  # compute op, by rank
        self.before: list[tuple[int, ...]] = [()] * count  # the one before that
        # by rank and route: its newest compute op when it last posted an exchange there
        self.newest_on: dict[tuple[int, Route], tuple[int, ...]] = {}
        self.groups: dict[tuple[int, ...], tuple[int, ...]] = {}
        # by boundary and turn, forward and backward: each rank's side of the exchange
        self.sides: dict[tuple[int, int, bool], list[_Posted]] = {}
        # by (segment, chunk) and rank: its ops, and those that have brought what it reads
        self.forward: dict[tuple[int, int], dict[int, int]] = {}
        self.backward: dict[tuple[int, int], dict[int, int]] = {}
        self.arrived_f: defaultdict[tuple[int, int], Arrived] = defaultdict(_nothing_yet)
        self.arrived_b: defaultdict[tuple[int, int], Arrived] = defaultdict(_nothing_yet)
        self.ended = [0] * len(segments)  # chunks whose weight gradients exist
        # by segment: its ops that have made the last of them, by rank; and its newest chunk
        self.made: dict[int, tuple[dict[int, int], int]] = {}
        # by segment and rank: what has brought the gradients of those who borrow its parameters
        self.lent: defaultdict[int, Arrived] = defaultdict(_nothing_yet)
        # by (segment, rank): what has brought weights that its next forward needs
        self.weights: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.to_step: list[tuple[int, list[tuple[int, list[int]]]]] = []

    # -- the walk over the actions ------------------------------------------------------------

    def emit(self, order: list[Action]) -> tuple[Columns, tuple[tuple[int, ...], ...]]:
        """All ops of a step."""
        by_stage: dict[int, list[int]] = {}
        for segment in self.segments:
            segments = by_stage.setdefault(segment.stage, [])
            if segment.index < self.turning:
                segments.append(segment.index)
        for tie in self.ties:
            self.lend(tie)
        for kind, stage, microbatch in order:
            segments = by_stage[stage]
            if kind == F:
                self.forwards(segments, microbatch)
            elif kind == W:
                for s in reversed(segments):
                    self.weight_gradients(s, microbatch)
            else:
                for s in reversed(segments):
                    self.backwards(s, microbatch, kind)
        for segment_index, reduced in self.to_step:
            self.step(segment_index, reduced)
        return self.columns, tuple(map(tuple, self.order))

    def forwards(self, segments: list[int], chunk: int) -> None:
        """The forward of some segments in a row, and of all finer chunks behind the last one."""
        for s in segments:
            self.compute_forward(s, chunk)
            for boundary in self.leaving[s]:
                if not self.in_turns(boundary):
                    self.send_forward(boundary, chunk, gated=False)
        following = segments[-1] + 1 if segments else len(self.segments)
        if following < len(self.segments) and self.begins_turns(following):
            self.take_turns(following, chunk)

    def begins_turns(self, s: int) -> bool:
        """Whether segments from here on take turns of what comes before."""
        return s == self.turning or self.segments[s].chunk < self.segments[s - 1].chunk

    def in_turns(self, boundary: Boundary) -> bool:
        """Whether it leads into segments that take turns, from what comes before them."""
        a, b = boundary.producer, boundary.consumer
        return boundary.turns > 1 or a < self.turning <= b

    def take_turns(self, s: int, chunk: int) -> None:
        """Forward and backward of segment ``s`` and all behind it, turn by turn.

        The next turn's transfer starts when this turn's computation does.
        """
        turns = self.segments[s - 1].chunk // self.segments[s].chunk
        size = self.segments[s].chunk
        segments = [x.index for x in takewhile(lambda x: x.chunk == size, self.segments[s:])]
        entering = [
            b for b in self.boundaries
            if b.consumer in segments and 0 <= b.producer < s and self.in_turns(b)
            and not b.parameter
        ]  # fmt: skip
        for boundary in entering:
            self.send_forward(boundary, chunk * turns, gated=True)
        for turn in range(turns):
            now = chunk * turns + turn
            if turn + 1 < turns:
                for boundary in entering:
                    self.send_forward(boundary, now + 1, gated=True)
            self.forwards(segments, now)
            for x in reversed(segments):
                self.backwards(x, now, B)

    # -- computation --------------------------------------------------------------------------

    def compute_forward(self, s: int, chunk: int) -> None:
        arrived = self.arrived_f.pop((s, chunk), _nothing_yet())
        ids = self.forward[s, chunk] = {}
        for offset in self.offsets:
            for local_rank, flops in self.forward_flops[s].items():
                rank = offset + local_rank
                needs = [*self.weights.pop((s, rank), ()), *arrived[rank]]
                ids[rank] = self.compute(rank, F, s, chunk, flops, needs)

    def backwards(self, s: int, chunk: int, kind: str) -> None:
        """B or I of one chunk on every rank, then its gradients sent back, then reductions."""
        if not self.segments[s].trained:
            return
        forwards = (kind == B) + self.recomputed(s, chunk)  # as much work as so many
        arrived = self.arrived_b.pop((s, chunk), _nothing_yet())
        made, ids = self.forward[s, chunk], {}
        for offset in self.offsets:
            for local_rank, forward in self.forward_flops[s].items():
                rank = offset + local_rank
                needs = [made[rank], *arrived[rank]]
                flops = self.input_gradient_flops[s][local_rank] + forwards * forward
                ids[rank] = self.compute(rank, kind, s, chunk, flops, needs)
        self.backward[s, chunk] = ids
        for boundary in self.returning[s]:
            self.send_backward(boundary, chunk)
        if kind == B:
            self.count_gradients(s, ids, chunk)

    def weight_gradients(self, s: int, chunk: int) -> None:
        """W of one chunk on every rank."""
        if not self.has_weights[s]:
            return
        made, ids = self.backward[s, chunk], {}
        for offset in self.offsets:
            for local_rank, flops in self.forward_flops[s].items():
                rank = offset + local_rank
                ids[rank] = self.compute(rank, W, s, chunk, flops, [made[rank]])
        self.count_gradients(s, ids, chunk)

    def recomputed(self, s: int, chunk: int) -> bool:
        return self.segments[s].microbatch_of(chunk, self.n_microbatches) < self.recompute

    # -- communication ------------------------------------------------------------------------

    def send_forward(self, boundary: Boundary, chunk: int, *, gated: bool) -> None:
        """What the consumer reads for a chunk; ``gated``: not before the newest compute op."""
        source_chunk = chunk // boundary.turns
        made = self.forward[boundary.producer, source_chunk]
        arrived = self.arrived_f[boundary.consumer, chunk]
        for rank in self.kept(boundary.forward, chunk % boundary.turns):
            arrived[rank].append(made[rank])
        self.exchange(boundary, F, chunk, made, arrived, gated=gated)

    def send_backward(self, boundary: Boundary, chunk: int) -> None:
        """The gradients of what the consumer read, each back to the rank that it came from."""
        source_chunk = chunk // boundary.turns
        made = self.backward[boundary.consumer, chunk]
        arrived = self.arrived_b[boundary.producer, source_chunk]
        for rank in self.kept(boundary.backward, chunk % boundary.turns):
            arrived[rank].append(made[rank])
        self.exchange(boundary, B, chunk, made, arrived)

    def kept(self, direction: Direction, turn: int) -> list[int]:
        """Ranks that keep something for themselves."""
        kept = direction.kept[turn]
        return [offset + message.source for offset in self.offsets for message in kept]

    def exchange(
        self, boundary: Boundary, way: str, chunk: int, made: dict[int, int], arrived: Arrived, *,
        gated: bool = False,
    ) -> None:  # fmt: skip
        """One exchange, on all ranks that have a part in it.

        Args:
            way: F or B.
            made: by rank, the op that makes what it sends; none of a parameter that is lent.
            arrived: by rank, to be added to: what brings what it receives.
            gated: nothing is sent before the newest compute op of its rank.
        """
        for posted in self.sides_of(boundary, chunk % boundary.turns, forward=way == F):
            rank, transfers = posted.rank, posted.transfers
            key = rank, transfers.route
            needs: tuple[int, ...]
            if transfers.sends:
                needs = (made[rank],) if rank in made else ()
                if gated:
                    needs = tuple(sorted({*needs, *self.newest[rank]}))
                ahead = False
            else:
                # Not past an exchange of its own route: the others have it in that order, too.
                ahead = bool(self.newest[rank]) and self.newest_on.get(key) != self.newest[rank]
                needs = self.before[rank] if ahead else self.newest[rank]
            found = self.add(
                rank, posted.kind, boundary.index, chunk, posted.peers, posted.bytes, 0, needs,
                transfers,
            )  # fmt: skip
            self.put(rank, found, ahead=ahead)
            if not ahead:
                self.newest_on[key] = self.newest[rank]
            if transfers.receives:
                arrived[rank].append(found)

    def sides_of(self, boundary: Boundary, turn: int, *, forward: bool) -> list[_Posted]:
        """Each rank's side of an exchange, of all listed replicas; worked out once."""
        key = boundary.index, turn, forward
        if key not in self.sides:
            direction = boundary.forward if forward else boundary.backward
            routes = boundary.routes[0 if forward else 1]
            self.sides[key] = [
                _posted(
                    offset + rank, _transfers(side, routes[rank], offset, self.sent_size),
                    forward=forward,
                )
                for offset in self.offsets
                for rank, side in direction.sides[turn].items()
            ]  # fmt: skip
        return self.sides[key]

    def count_gradients(self, s: int, ids: dict[int, int], chunk: int) -> None:
        """After the last chunk (or the last before an update): sum gradients over their ranks.

        Args:
            ids: by rank, the op that has made the gradients of this chunk's weights.
        """
        if not self.has_weights[s]:
            return
        segment = self.segments[s]
        self.ended[s] += 1
        if self.ended[s] % (segment.update_chunks or segment.chunks):
            return
        self.made[s] = ids, chunk
        borrows = [tie for tie in self.ties if tie.consumer == s]
        for tie in borrows:
            self.give_back(tie, ids, chunk)
        for owner in dict.fromkeys([s, *(tie.producer for tie in borrows)]):
            lenders = [tie.consumer for tie in self.ties if tie.producer == owner]
            if all(x in self.made for x in (owner, *lenders)):
                self.reduce(owner)

    def reduce(self, s: int) -> None:
        """Sum a segment's gradients over the ranks that hold the same parameters."""
        segment = self.segments[s]
        ids, chunk = self.made[s]
        reduced = []
        for bucket in self.buckets[s]:
            group = self.group(bucket)
            for offset in self.offsets:
                for rank in (offset + r for r in bucket.ranks):
                    needs = [ids[rank], *self.lent[s][rank]]
                    if len(group) > 1:
                        size = self.padded(bucket, len(group)) * self.reduced_size
                        kind = REDUCE_SCATTER if self.sharded else ALL_REDUCE
                        needs = [self.post(rank, kind, s, chunk, group, size, sorted(needs))]
                    reduced.append((rank, needs))
        if not reduced:
            return
        if segment.update_chunks:
            self.step(s, reduced)
        else:
            self.to_step.append((s, reduced))

    def lend(self, tie: Boundary) -> None:
        """A parameter to those who borrow it, before the first of them computes."""
        received = _nothing_yet()
        self.exchange(tie, F, 0, {}, received)
        for rank, ids in received.items():
            self.weights[tie.consumer, rank] += ids

    def give_back(self, tie: Boundary, ids: dict[int, int], chunk: int) -> None:
        """The gradient of a borrowed parameter to its owners."""
        lent = self.lent[tie.producer]
        for rank in self.kept(tie.backward, 0):
            lent[rank].append(ids[rank])
        self.exchange(tie, B, chunk, ids, lent)

    def step(self, s: int, reduced: list[tuple[int, list[int]]]) -> None:
        """The update of one segment's parameters on every rank that holds them."""
        groups = [self.group(bucket) for bucket in self.buckets[s]]
        number_of = {r: n for n, bucket in enumerate(self.buckets[s]) for r in bucket.ranks}
        gathers = []
        chunk = self.made[s][1]
        for rank, needs in reduced:
            number = number_of[rank % self.ranks_per_replica]
            bucket, group = self.buckets[s][number], groups[number]
            sharded = self.sharded and len(group) > 1
            padded = self.padded(bucket, len(group))
            values = padded // len(group) if sharded else bucket.parameters
            done = self.compute(rank, STEP, s, chunk, 0, sorted(needs), values * self.held_size)
            if sharded:
                gathers.append((rank, done, group, padded * self.held_size))
        for rank, done, group, size in gathers:
            gathered = self.post(rank, ALL_GATHER, s, chunk, group, size, [done])
            self.weights[s, rank].append(gathered)

    def group(self, bucket: Bucket) -> tuple[int, ...]:
        """A bucket's ranks over all replicas, listed or not; one tuple for all ops, since it may
        be as long as the world."""
        found = self.groups.get(bucket.ranks)
        if found is None:
            starts = range(0, self.replicas * self.ranks_per_replica, self.ranks_per_replica)
            found = tuple([start + rank for start in starts for rank in bucket.ranks])
            self.groups[bucket.ranks] = found
        return found

    def padded(self, bucket: Bucket, count: int) -> int:
        """Values of the reduction's buffer; a sharded optimizer needs equal shards."""
        return -(-bucket.parameters // count) * count if self.sharded else bucket.parameters

    # -- putting ops down ---------------------------------------------------------------------

    def add(
        self, rank: int, kind: str, s: int, chunk: int, peers: tuple[int, ...], size: int,
        flops: int, needs: Sequence[int], transfers: Transfers | None = None,
    ) -> int:  # fmt: skip
        columns = self.columns
        columns.rank.append(rank)
        columns.kind.append(kind)
        columns.segment.append(s)
        columns.microbatch.append(chunk)
        columns.peers.append(peers)
        columns.bytes.append(size)
        columns.flops.append(flops)
        columns.needs.append(tuple(needs))
        columns.transfers.append(transfers)
        return len(columns.rank) - 1

    def compute(
        self, rank: int, kind: str, s: int, chunk: int, flops: int, needs: Sequence[int],
        size: int = 0,
    ) -> int:  # fmt: skip
        found = self.add(rank, kind, s, chunk, (), size, flops, needs)
        self.last_compute[rank] = len(self.order[rank])
        self.order[rank].append(found)
        self.before[rank], self.newest[rank] = self.newest[rank], (found,)
        return found

    def post(
        self, rank: int, kind: str, s: int, chunk: int, peers: tuple[int, ...], size: int,
        needs: Sequence[int],
    ) -> int:  # fmt: skip
        found = self.add(rank, kind, s, chunk, peers, size, 0, needs)
        self.order[rank].append(found)
        return found

    def put(self, rank: int, op: int, *, ahead: bool) -> None:
        """An op into its rank's list: at the end, or ahead of the newest compute op."""
        if not ahead:
            self.order[rank].append(op)
            return
        self.order[rank].insert(self.last_compute[rank], op)
        self.last_compute[rank] += 1


class _Posted(NamedTuple):
    """One rank's side of an exchange, as its op will tell it."""

    rank: int
    kind: str
    transfers: Transfers
    peers: tuple[int, ...]
    bytes: int


def _posted(rank: int, transfers: Transfers, *, forward: bool) -> _Posted:
    kind = transfers.kind(forward=forward)
    return _Posted(rank, kind, transfers, others_of(transfers), size_of(transfers))


def _transfers(side: Side, route: Route, offset: int, itemsize: int) -> Transfers:
    """In the replica whose ranks begin at ``offset``, in bytes."""
    route = Route(*[tuple([offset + rank for rank in ranks]) for ranks in route])
    sends, receives = (
        tuple([(offset + peer, message.values * itemsize) for peer, message in entries])
        for entries in (side.sends, side.receives)
    )
    return Transfers(route, sends, receives)
