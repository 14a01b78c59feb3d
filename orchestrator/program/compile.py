"""Plan and model in, program out. A chain of small passes, each pure:

    place     plan, model   -> placed layers       who computes which part of each layer
    cut       placed layers -> segments            runs without communication, and what lies between
    schedule  stages        -> actions per group   which microbatch when
    linearise actions       -> one global order    a witness that the order is legal
    emit      order         -> ops                 sends, receives, reductions and steps put in

Ops are emitted in one global order in which a send and its receive come together. Every rank's
list is a part of that order, except that receives are moved ahead of the compute op before them
so that transfers run under computation; that keeps first-in-first-out per ordered pair of ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import NoReturn

from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    RECV_B,
    RECV_F,
    REDUCE_SCATTER,
    SEND_B,
    SEND_F,
    STEP,
    B,
    Columns,
    F,
    Program,
    W,
)
from orchestrator.program.placement import Placement, place
from orchestrator.program.schedule import (
    BUILDERS,
    Action,
    linearise,
)
from orchestrator.program.segments import (
    Boundary,
    Bucket,
    Segment,
    SegmentPart,
    TooManyMessages,
    boundaries,
    buckets,
    cut,
)

MOST_OPS = 2**20  # takes some 10 s and 0.7 GB
ITEMSIZE = {"float64": 8, "float32": 4, "tfloat32": 4, "float16": 2, "bfloat16": 2}


def compile_plan(
    plan: Plan, model: Model, *, dtype: str = "float32", fold: bool = False
) -> Program:
    """The program that runs one training step of ``model`` as ``plan`` splits it.

    Args:
        dtype: of weights, activations and gradients, a key of ``ITEMSIZE``; ``tfloat32`` is float32
            whose products are in tfloat32.
        fold: list the ops of the first replica only; the others do the same at other ranks. For
            the simulator; workers need their own.

    Raises:
        InputError: what the plan asks for cannot be done, with the line of the plan; or it would
            have more than ``MOST_OPS`` ops.
    """
    listed = 1 if fold else plan.replicas
    _check_count(plan, listed, sum(len(e.ranks) for e in plan.placement) * plan.n_microbatches)
    placement = place(plan, model)
    order = _global_order(plan, placement)
    segments = cut(placement, model, ITEMSIZE[dtype], plan.replicas)
    try:
        bounds = boundaries(segments, placement, MOST_OPS // listed)
    except TooManyMessages as error:
        _refuse_count(plan, listed, error.args[0])
    _check_count(plan, listed, _ops_at_least(segments, bounds))
    emitter = _Emitter(
        segments,
        bounds,
        buckets(segments),
        replicas=plan.replicas,
        listed=listed,
        ranks_per_replica=plan.ranks_per_replica,
        itemsize=ITEMSIZE[dtype],
        sharded=plan.optimizer_sharding == "zero1",
        recompute={"never": 0, "except_last": plan.n_microbatches - 1}.get(
            plan.activation_checkpoint, plan.n_microbatches
        ),
        n_microbatches=plan.n_microbatches,
    )
    columns, ranks = emitter.emit(order)
    return Program(
        name=plan.name,
        model=model,
        dtype=dtype,
        itemsize=ITEMSIZE[dtype],
        global_batch=plan.global_batch_size,
        n_microbatches=plan.n_microbatches,
        replicas=plan.replicas,
        folded=fold and plan.replicas > 1,
        ranks_per_replica=plan.ranks_per_replica,
        stages=placement.stages,
        segments=segments,
        boundaries=emitter.boundaries,
        buckets=emitter.buckets,
        checkpoint=plan.activation_checkpoint,
        sharded=plan.optimizer_sharding == "zero1",
        columns=columns,
        order=ranks,
    )


def _ops_at_least(segments: Sequence[Segment], bounds: Sequence[Boundary]) -> int:
    """Ops of a replica: a forward and a backward of every chunk, and its messages both ways."""
    computed = sum(2 * len(segment.parts) * segment.chunks for segment in segments)
    sent = 0
    for segment, boundary in zip(segments, bounds, strict=True):
        crossing = sum(m.source != m.target for turn in boundary.messages for m in turn)
        sent += 4 * crossing * segment.chunks // max(1, boundary.turns)
    return computed + sent


def _check_count(plan: Plan, listed: int, ops: int) -> None:
    """Refuse early what would take minutes and gigabytes to write down."""
    if ops * listed > MOST_OPS:
        _refuse_count(plan, listed, ops)


def _refuse_count(plan: Plan, listed: int, ops: int) -> NoReturn:
    key = "n_microbatches" if plan.n_microbatches >= listed else "replicas"
    raise InputError(
        f"a step of this plan has at least {ops * listed:,} ops (listed replicas: {listed:,}, "
        f"microbatches of each: {plan.n_microbatches:,}); allowed: {MOST_OPS:,}",
        plan.place((key,)),
        "fewer microbatches, ranks or replicas",
    )


def _global_order(plan: Plan, placement: Placement) -> list[Action]:
    """All actions in one legal order, after checking that the schedule fits the stages."""
    stages, microbatches = placement.stages, plan.n_microbatches
    count = len(stages)
    groups = len(set(stages))
    if plan.schedule == "GPipe":
        # One group of all stages: breadth first is legal whatever ranks they share.
        return linearise(BUILDERS["GPipe"](1, count, microbatches), count)
    if plan.schedule == "1F1B":
        shape, expected = "every stage on ranks of its own", stages
        groups = count
        legal = len(set(stages)) == count
    elif plan.schedule == "ZBVZeroBubble":
        shape = "an even number of entries that run down the ranks and back up, such as 0, 1, 1, 0"
        expected = stages[: count // 2] + stages[: count // 2][::-1]
        legal = count % 2 == 0 and stages == expected and groups == count // 2
    else:
        shape = "stages that go round the same ranks in turn, such as 0, 1, 0, 1"
        expected = tuple(stages[i % groups] for i in range(count))
        legal = count % groups == 0 and stages == expected
    disjoint = sum(map(len, set(stages))) == len({r for ranks in stages for r in ranks})
    if not legal or not disjoint:
        found = ", ".join(str(list(r)) if len(r) > 1 else str(r[0]) for r in stages)
        raise InputError(
            f"{plan.schedule} needs {shape}; the stages here are on ranks {found}",
            plan.place(("schedule",)),
            "change the placement, or use schedule: GPipe, which takes any",
        )
    if plan.schedule.startswith("Interleaved") and microbatches % groups:
        raise InputError(
            f"{plan.schedule} goes in rounds of {groups} microbatches (one per group of ranks); "
            f"{microbatches} do not divide",
            plan.place(("n_microbatches",)),
            f"n_microbatches: {-(-microbatches // groups) * groups}",
        )
    return linearise(BUILDERS[plan.schedule](groups, count, microbatches), count)


def _input_gradient_flops(part: SegmentPart, needed: bool) -> int:
    """Of all layers, but not of the very first with weights, whose input is the image."""
    macs = part.macs_per_image
    if not needed:
        first = next((x for x in part.layers if x.tiles), None)
        macs -= first.macs_per_image if first else 0
    return 2 * macs * part.examples


Arrived = defaultdict[int, list[int]]


def _nothing_yet() -> Arrived:
    return defaultdict(list)


class _Emitter:
    """Turns the global order of actions into ops, once for every listed replica."""

    def __init__(
        self,
        segments: tuple[Segment, ...],
        bounds: tuple[Boundary, ...],
        groups: tuple[tuple[Bucket, ...], ...],
        *,
        replicas: int,
        listed: int,
        ranks_per_replica: int,
        itemsize: int,
        sharded: bool,
        recompute: int,
        n_microbatches: int,
    ) -> None:
        self.segments, self.boundaries, self.buckets = segments, bounds, groups
        self.replicas, self.itemsize, self.sharded = replicas, itemsize, sharded
        self.ranks_per_replica = ranks_per_replica
        self.offsets = [r * ranks_per_replica for r in range(listed)]
        self.recompute, self.n_microbatches = recompute, n_microbatches
        weighted = [any(p.parameters for p in s.parts.values()) for s in segments]
        self.has_weights = weighted
        self.needs_input_gradient = [any(weighted[:i]) for i in range(len(segments))]
        # by segment and rank within a replica, of one chunk
        self.forward_flops = [
            {rank: 2 * part.macs_per_image * part.examples for rank, part in s.parts.items()}
            for s in segments
        ]
        self.input_gradient_flops = [
            {rank: _input_gradient_flops(part, needed) for rank, part in s.parts.items()}
            for s, needed in zip(segments, self.needs_input_gradient, strict=True)
        ]
        # from here on segments work in turns, forward and backward of each before the next
        self.turning = next(
            (s.index for s in segments if s.chunk < segments[0].chunk or s.update_chunks),
            len(segments),
        )
        # by segment and turn: source, target, bytes
        self.hops = [
            [[(m.source, m.target, m.values * itemsize) for m in turn] for turn in b.messages]
            for b in bounds
        ]
        self.columns = Columns()
        count = listed * ranks_per_replica
        self.order: list[list[int]] = [[] for _ in range(count)]
        self.last_compute = [-1] * count  # where the newest compute op stands in order[rank]
        self.newest: list[tuple[int, ...]] = [()] * count  # compute op, by rank
        self.before: list[tuple[int, ...]] = [()] * count  # the one before that
        self.peer = [(rank,) for rank in range(count)]
        # by (segment, chunk) and rank: its ops, and those that have brought what it reads
        self.forward: dict[tuple[int, int], dict[int, int]] = {}
        self.backward: dict[tuple[int, int], dict[int, int]] = {}
        self.arrived_f: defaultdict[tuple[int, int], Arrived] = defaultdict(_nothing_yet)
        self.arrived_b: defaultdict[tuple[int, int], Arrived] = defaultdict(_nothing_yet)
        self.ended = [0] * len(segments)  # chunks whose weight gradients exist
        self.gathered: dict[tuple[int, int], int] = {}  # (segment, rank) -> its weights are whole
        self.to_step: list[tuple[int, list[tuple[int, int]]]] = []

    # -- the walk over the actions ------------------------------------------------------------

    def emit(self, order: list[Action]) -> tuple[Columns, tuple[tuple[int, ...], ...]]:
        """All ops of a step."""
        by_stage: dict[int, list[int]] = {}
        for segment in self.segments:
            mine = by_stage.setdefault(segment.stage, [])
            if segment.index < self.turning:
                mine.append(segment.index)
        for kind, stage, microbatch in order:
            mine = by_stage[stage]
            if kind == F:
                self.forwards(mine, microbatch)
            elif kind == W:
                for s in reversed(mine):
                    self.weight_gradients(s, microbatch)
            else:
                for s in reversed(mine):
                    self.backwards(s, microbatch, kind)
        for segment_index, reduced in self.to_step:
            self.step(segment_index, reduced)
        return self.columns, tuple(map(tuple, self.order))

    def forwards(self, mine: list[int], chunk: int) -> None:
        """The forward of some segments in a row, and of all finer chunks behind the last one."""
        for s in mine:
            self.compute_forward(s, chunk)
            following = s + 1
            if following == len(self.segments):
                return
            if following == self.turning or self.boundaries[following].turns > 1:
                self.take_turns(following, chunk)
            else:
                self.send_forward(following, chunk, gated=False)

    def take_turns(self, s: int, chunk: int) -> None:
        """Forward and backward of segment ``s`` and all behind it, turn by turn.

        The next turn's transfer starts when this turn's computation does.
        """
        turns = self.boundaries[s].turns
        size = self.segments[s].chunk
        mine = [x.index for x in takewhile(lambda x: x.chunk == size, self.segments[s:])]
        self.send_forward(s, chunk * turns, gated=True)
        for turn in range(turns):
            now = chunk * turns + turn
            if turn + 1 < turns:
                self.send_forward(s, now + 1, gated=True)
            self.forwards(mine, now)
            for x in reversed(mine):
                self.backwards(x, now, B)

    # -- computation --------------------------------------------------------------------------

    def compute_forward(self, s: int, chunk: int) -> None:
        arrived = self.arrived_f.pop((s, chunk), _nothing_yet())
        ids = self.forward[s, chunk] = {}
        for offset in self.offsets:
            for local_rank, flops in self.forward_flops[s].items():
                rank = offset + local_rank
                needs = arrived[rank]
                if (s, rank) in self.gathered:  # weights updated within the step, on shards
                    needs = [*needs, self.gathered.pop((s, rank))]
                ids[rank] = self.compute(rank, F, s, chunk, flops, needs)

    def backwards(self, s: int, chunk: int, kind: str) -> None:
        """B or I of one chunk on every rank, then its gradients sent back, then reductions."""
        if not (self.has_weights[s] or self.needs_input_gradient[s]):
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
        if self.needs_input_gradient[s]:
            self.send_backward(s, chunk)
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
        return chunk // (self.segments[s].chunks // self.n_microbatches) < self.recompute

    # -- communication ------------------------------------------------------------------------

    def send_forward(self, s: int, chunk: int, *, gated: bool) -> None:
        """What segment ``s`` reads for a chunk; ``gated``: not before the newest compute op."""
        source_chunk, turn = divmod(chunk, self.boundaries[s].turns)
        made, arrived = self.forward[s - 1, source_chunk], self.arrived_f[s, chunk]
        for offset in self.offsets:
            for a, b, size in self.hops[s][turn]:
                source, target = offset + a, offset + b
                if source == target:
                    arrived[target].append(made[source])
                    continue
                needs = [made[source]]
                if gated:
                    needs = sorted({*needs, *self.newest[source]})
                self.post(source, SEND_F, s, chunk, self.peer[target], size, needs)
                arrived[target].append(self.post_receive(target, RECV_F, s, chunk, source, size))

    def send_backward(self, s: int, chunk: int) -> None:
        """The gradients of what segment ``s`` read, each back to the rank that it came from."""
        source_chunk, turn = divmod(chunk, self.boundaries[s].turns)
        made, arrived = self.backward[s, chunk], self.arrived_b[s - 1, source_chunk]
        for offset in self.offsets:
            for a, b, size in self.hops[s][turn]:
                source, target = offset + b, offset + a
                if source == target:
                    arrived[target].append(made[source])
                    continue
                self.post(source, SEND_B, s, chunk, self.peer[target], size, (made[source],))
                arrived[target].append(self.post_receive(target, RECV_B, s, chunk, source, size))

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
        reduced = []
        for bucket in self.buckets[s]:
            group = self.group(bucket)
            for offset in self.offsets:
                for rank in (offset + r for r in bucket.ranks):
                    need = ids[rank]
                    if len(group) > 1:
                        size = self.padded(bucket, len(group)) * self.itemsize
                        kind = REDUCE_SCATTER if self.sharded else ALL_REDUCE
                        need = self.post(rank, kind, s, chunk, group, size, [need])
                    reduced.append((rank, need))
        if segment.update_chunks:
            self.step(s, reduced)
        else:
            self.to_step.append((s, reduced))

    def step(self, s: int, reduced: list[tuple[int, int]]) -> None:
        """The update of one segment's parameters on every rank that holds them."""
        groups = [self.group(bucket) for bucket in self.buckets[s]]
        number_of = {r: n for n, bucket in enumerate(self.buckets[s]) for r in bucket.ranks}
        gathers = []
        chunk = self.columns.microbatch[reduced[0][1]]
        for rank, need in reduced:
            number = number_of[rank % self.ranks_per_replica]
            bucket, group = self.buckets[s][number], groups[number]
            sharded = self.sharded and len(group) > 1
            padded = self.padded(bucket, len(group))
            values = padded // len(group) if sharded else bucket.parameters
            done = self.compute(rank, STEP, s, chunk, 0, [need], values * self.itemsize)
            if sharded:
                gathers.append((rank, done, group, padded * self.itemsize))
        for rank, done, group, size in gathers:
            self.gathered[s, rank] = self.post(rank, ALL_GATHER, s, chunk, group, size, [done])

    def group(self, bucket: Bucket) -> tuple[int, ...]:
        """A bucket's ranks over all replicas, listed or not."""
        starts = range(0, self.replicas * self.ranks_per_replica, self.ranks_per_replica)
        return tuple([start + rank for start in starts for rank in bucket.ranks])

    def padded(self, bucket: Bucket, count: int) -> int:
        """Values of the reduction's buffer; a sharded optimizer needs equal shards."""
        return -(-bucket.parameters // count) * count if self.sharded else bucket.parameters

    # -- putting ops down ---------------------------------------------------------------------

    def add(
        self, rank: int, kind: str, s: int, chunk: int, peers: tuple[int, ...], size: int,
        flops: int, needs: Sequence[int],
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

    def post_receive(self, rank: int, kind: str, s: int, chunk: int, peer: int, size: int) -> int:
        """A receive, ahead of the rank's newest compute op; after the compute op before that."""
        found = self.add(rank, kind, s, chunk, self.peer[peer], size, 0, self.before[rank])
        place = self.last_compute[rank]
        if place < 0:
            self.order[rank].append(found)
        else:
            self.order[rank].insert(place, found)
            self.last_compute[rank] = place + 1
        return found
