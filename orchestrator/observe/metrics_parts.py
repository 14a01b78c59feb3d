"""What a rank's metrics count of one step: its shares, and who or what each of them is due to.

Every breakdown adds up to the share that it breaks down, so sums over labels mean what
:mod:`orchestrator.observe.accounting` says:

    compute        by phase          to compute_time_s
    communication  by op and peer    to communication_time_s
    wait           by peer           to wait_time_s
    sent           by op, peer and the layer that reads     to the bytes that the rank counted

Where several transfers are in progress, or several peers are late, at the same moment, the moment
is divided among them equally.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.observe.accounting import Account, Shares
from orchestrator.observe.timeline import StepTimes
from orchestrator.program.ledger import Edge, edges_by_kind
from orchestrator.program.ops import (
    ALL_GATHER,
    ALL_REDUCE,
    COMPUTE,
    EXCHANGE_B,
    EXCHANGE_F,
    FORWARD,
    LANE_OF,
    REDUCE_SCATTER,
    SEND_B,
    SEND_F,
    STEP,
    B,
    F,
    I,
    Program,
    W,
)
from orchestrator.program.order import meetings

PHASE = {
    F: "forward", B: "backward", I: "backward_input", W: "backward_weight", STEP: "update",
}  # fmt: skip
OP = {
    SEND_F: "send_forward", SEND_B: "send_backward",  # of an exchange, what it sends
    EXCHANGE_F: "send_forward", EXCHANGE_B: "send_backward",
    ALL_REDUCE: "all_reduce", REDUCE_SCATTER: "reduce_scatter", ALL_GATHER: "all_gather",
}  # fmt: skip
# In a larger group it is not told which rank was the last, or series would grow with its square.
MOST_PEERS_TOLD = 16
GROUP = "group"

Count = dict[tuple[str, ...], float]  # by label values
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Part:
    """One rank's part of a step, by label values; seconds, bytes.

    Args:
        step_s: how long the step took the rank; None for the zero that series begin with.
        compute: by phase.
        communication: by op and peer, an exchange by its messages; of a collective the peer is
            the next rank of the ring.
        wait: by the peer that was late.
        sent: by op, peer and layer.
    """

    rank: int
    step_s: float | None
    compute: Count
    communication: Count
    exposed: Count
    wait: Count
    bubble: Count
    loading: Count
    other: Count
    sent: Count


class Parts:
    """Splits the steps of one program into the ranks' parts.

    Which label values occur follows from the program alone.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        columns = program.columns
        self.sides: dict[int, tuple[int, ...]] = {}  # of collectives of groups not too large
        for ids in meetings(program).collectives:
            if len(columns.peers[ids[0]]) <= MOST_PEERS_TOLD:
                self.sides |= dict.fromkeys(ids, ids)
        self.kinds: defaultdict[Edge, dict[str, int]] = defaultdict(dict)
        for (edge, kind), size in edges_by_kind(program).items():
            self.kinds[edge][OP[kind]] = size
        self.ranks = {rank: _RankOps(program, rank) for rank in program.ranks}

    def zero(self, rank: int) -> Part:
        """Every series of a rank, at zero."""
        ops = self.ranks[rank]
        late = {i for needs in (*ops.late.values(), ops.late_transfers) for i in needs}
        return Part(
            rank,
            None,
            compute={(PHASE[self.program.columns.kind[i]],): 0.0 for i in ops.compute},
            communication={key: 0.0 for keys in ops.transfers.values() for key in keys},
            exposed={(): 0.0},
            wait={(peer,): 0.0 for i in sorted(late) for peer in self._possible_peers(i)},
            bubble={(): 0.0},
            loading={(): 0.0},
            other={(): 0.0},
            sent=self._by_op({e: 0 for e in self.kinds if e.from_rank == rank}),
        )

    def of(
        self, times: StepTimes, account: Account, sent: Mapping[int, Mapping[Edge, int]]
    ) -> list[Part]:
        """Every rank's part of a step.

        Args:
            times: on one clock, as :func:`timeline.join` gives them.
            account: of the same step.
            sent: by rank, the bytes that it counted in this step.
        """
        return [self._part(r, times, account.ranks[r], sent[r]) for r in self.program.ranks]

    def _part(self, rank: int, times: StepTimes, shares: Shares, sent: Mapping[Edge, int]) -> Part:
        ops = self.ranks[rank]
        compute: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for i in ops.compute:
            compute[PHASE[self.program.columns.kind[i]],] += times.end[i] - times.start[i]
        claims = [
            (start, end, key)
            for i, keys in ops.transfers.items()
            for (start, end), key in zip(times.of_messages(i, len(keys)), keys, strict=True)
        ]
        busy = [(start, end) for start, end, _ in claims]
        loads = [times.loading[i] for i in ops.compute if i in times.loading]
        return Part(
            rank,
            shares.step_time_s,
            compute=dict(compute),
            communication=divide(claims),
            exposed={(): shares.exposed_communication_time_s},
            wait=divide(self._late(ops, times), [*busy, *loads]),
            bubble={(): shares.bubble_time_s},
            loading={(): shares.loading_time_s},
            other={(): shares.other_time_s},
            sent=self._by_op(sent),
        )

    def _late(
        self, ops: _RankOps, times: StepTimes
    ) -> Iterable[tuple[float, float, tuple[str, ...]]]:
        """When this rank computed nothing since a peer of its stage had not started, and who."""
        at = times.begin[ops.rank]
        for i in (*ops.compute, None):
            start = times.finish[ops.rank] if i is None else times.start[i]
            if start > at:
                for need in ops.late_transfers if i is None else ops.late[i]:
                    peers = self._peers_waited_for(need, times)
                    for (begun, _), peer in zip(
                        times.of_messages(need, len(peers)), peers, strict=True
                    ):
                        low, high = max(at, times.ready[need]), min(start, begun)
                        if low < high:
                            yield low, high, (peer,)
            at = at if i is None else max(at, times.end[i])

    def _peers_waited_for(self, i: int, times: StepTimes) -> list[str]:
        """Of each message of an exchange its peer; of a collective the last to come."""
        transfers = self.program.columns.transfers[i]
        if transfers is not None:
            return [str(peer) for peer, _ in transfers.sides]
        others = self._others(i)
        if not others:
            return [GROUP]
        return [str(self.program.columns.rank[max(others, key=times.ready.__getitem__)])]

    def _possible_peers(self, i: int) -> list[str]:
        transfers = self.program.columns.transfers[i]
        if transfers is not None:
            return [str(peer) for peer in self.program.columns.peers[i]]
        return [str(self.program.columns.rank[side]) for side in self._others(i)] or [GROUP]

    def _others(self, i: int) -> list[int]:
        return [side for side in self.sides.get(i, ()) if side != i]

    def _by_op(self, sent: Mapping[Edge, int]) -> Count:
        """Bytes by op, peer and layer.

        Bytes are counted by edge. One that two kinds of op share, as those of a sharded optimizer
        do, is divided as the program divides it; the sum stays what was counted.
        """
        found: Counter[tuple[str, ...]] = Counter()
        for edge, size in sent.items():
            parts = self.kinds.get(edge, {edge.direction: size})
            left, whole = size, sum(parts.values())
            for op, part in parts.items():
                share = size * part // whole if whole else 0
                found[op, str(edge.to_rank), edge.layer] += share
                left -= share
            found[op, str(edge.to_rank), edge.layer] += left
        return dict(found)


class _RankOps:
    """One rank's ops, sorted out once.

    Args:
        late: by computation, the transfers it needs whose other side is in the same stage; a peer
            that is late there is waited for.
    """

    def __init__(self, program: Program, rank: int) -> None:
        columns = program.columns
        self.rank = rank
        self.compute: list[int] = []
        # to op and peer, of every message
        self.transfers: dict[int, list[tuple[str, ...]]] = {}
        self.late: dict[int, list[int]] = {}
        for i in program.order[rank]:
            kind, peers, transfers = columns.kind[i], columns.peers[i], columns.transfers[i]
            if LANE_OF[kind] == COMPUTE:
                self.compute.append(i)
                self.late[i] = [n for n in columns.needs[i] if _within_stage(program, n)]
            elif transfers is not None:
                way = "forward" if kind in FORWARD else "backward"
                self.transfers[i] = [(f"send_{way}", str(peer)) for peer, _ in transfers.sends]
                self.transfers[i] += [(f"receive_{way}", str(p)) for p, _ in transfers.receives]
            else:
                following = (peers.index(rank) + 1) % len(peers)
                self.transfers[i] = [(OP[kind], str(peers[following]))]
        self.late_transfers = [i for i in self.transfers if _within_stage(program, i)]


def _within_stage(program: Program, i: int) -> bool:
    transfer = LANE_OF[program.columns.kind[i]] != COMPUTE
    return transfer and not program.is_interstage(program.op(i))


def divide(
    claims: Iterable[tuple[float, float, K]], taken: Iterable[tuple[float, float]] = ()
) -> dict[K, float]:
    """Length of time by claimant; what several claim at once is divided among them equally.

    Args:
        claims: (start, end, who), in any order.
        taken: times that nobody gets.
    """
    owners = [(start, end, who) for start, end, who in claims if start < end]
    moments = [
        (moment, change, number)
        for number, (start, end, _) in enumerate(owners)
        for moment, change in ((start, 1), (end, -1))
    ]
    moments += [
        (moment, change, -1) for start, end in taken for moment, change in ((start, 1), (end, -1))
    ]
    found: defaultdict[K, float] = defaultdict(float)
    got = 0.0  # what a claim that is open since the beginning has got
    at_start: dict[int, float] = {}
    claiming = taking = 0
    before = 0.0
    for moment, change, number in sorted(moments):
        if claiming and not taking:
            got += (moment - before) / claiming
        before = moment
        if number < 0:
            taking += change
            continue
        claiming += change
        if change > 0:
            at_start[number] = got
        else:
            found[owners[number][2]] += got - at_start[number]
    return dict(found)
