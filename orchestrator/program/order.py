"""The order of a program's ops, defined once: for the check, the simulator and the transports.

* A rank goes through its list. At every op it waits until the op's ``needs`` have ended; it
  computes where it stands, and posts a transfer and goes on.
* A transfer begins when it has been posted and the one before it on its channel has ended:
  collectives, and the exchanges of each route, go one after another.
* A message moves when the exchanges of both its sides have begun. On one route, what one rank sends
  another is received in the order in which it is sent; there are no tags. An exchange ends with the
  last of its messages.
* A collective moves when all of its group have begun it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.program.boundary import Route
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, Program, Transfers


def before(program: Program) -> Iterator[tuple[int, Sequence[int]]]:
    """Of every op, those of its rank that must end before it begins: its ``needs``, and whatever of
    the order does not follow from them."""
    columns = program.columns
    all_needs, all_transfers = columns.needs, columns.transfers
    lanes = [LANE_OF[kind] for kind in columns.kind]
    for ids in program.order:
        newest = -1  # computation
        last: dict[int | str, int] = {}  # by channel, transfers
        numbers = _Numbers()
        since: set[int] = set()  # transfers that need not have ended before it
        waited: set[int] = set()  # transfers that a transfer listed behind it needs
        for i in ids:
            needs = all_needs[i]
            further = [newest] if newest >= 0 and newest not in needs else []
            if waited:
                further += waited.difference(needs)
            if lanes[i] == COMPUTE:
                if since:
                    since.difference_update(needs, waited)
                    waited.clear()
                newest = i
            else:
                transfers = all_transfers[i]
                channel = numbers.of(transfers.route) if transfers is not None else lanes[i]
                previous = last.get(channel, -1)
                if previous in since and previous not in needs and previous not in waited:
                    further.append(previous)
                waited.update([need for need in needs if lanes[need] != COMPUTE])
                since.add(i)
                last[channel] = i
            yield i, ([*needs, *further] if further else needs)


class _Numbers:
    """Numbers for routes, which may be long: each object is hashed once."""

    def __init__(self) -> None:
        self._by_id: dict[int, int] = {}
        self._by_route: dict[Route, int] = {}

    def of(self, route: Route) -> int:
        """Equal for equal routes."""
        found = self._by_id.get(id(route))
        if found is None:
            found = self._by_route.setdefault(route, len(self._by_route))
            self._by_id[id(route)] = found
        return found


Message = tuple[int, int, int, int]
"""The op that sends it, its place among what that sends; the op that receives it, its place among
what that receives."""


class Meetings(NamedTuple):
    """What ranks do together.

    Args:
        messages: every message, both sides.
        collectives: every collective, one op of each listed rank of its group.
    """

    messages: list[Message]
    collectives: list[tuple[int, ...]]


class Mismatch(Exception):
    """Ops that should meet do not.

    Args:
        reason: one line.
        ops: their ids.
    """

    def __init__(self, reason: str, *ops: int) -> None:
        super().__init__(reason, *ops)
        self.reason, self.ops = reason, ops


def meetings(program: Program) -> Meetings:
    """What meets what.

    Raises:
        Mismatch: something meets nothing, or something else.
    """
    # by route, sender and receiver: (op, place) of what is sent, and of what is received
    pairs: dict[tuple[Route, int, int], tuple[_Sides, _Sides]] = {}
    groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
    known: dict[int, dict[int, list[int]]] = {}  # groups may be large: each object compared once
    columns = program.columns
    for rank, ids in enumerate(program.order):
        queues_of: dict[int, list[tuple[_Sides, int]]] = {}  # by side of an exchange, which recur
        for i in ids:
            transfers = columns.transfers[i]
            if transfers is not None:
                queues = queues_of.get(id(transfers))
                if queues is None:
                    queues = queues_of[id(transfers)] = _queues(pairs, rank, transfers)
                for queue, place in queues:
                    queue.append((i, place))
            elif LANE_OF[columns.kind[i]] == REDUCE:
                peers = columns.peers[i]
                if id(peers) not in known:
                    known[id(peers)] = groups.setdefault(peers, defaultdict(list))
                known[id(peers)][rank].append(i)
    return Meetings(_messages(program, pairs), _collectives(program, groups))


_Sides = list[tuple[int, int]]


def _queues(
    pairs: dict[tuple[Route, int, int], tuple[_Sides, _Sides]], rank: int, transfers: Transfers
) -> list[tuple[_Sides, int]]:
    """Where each side of an exchange's messages waits for the other, and its place."""
    route, sends, receives = transfers
    found = []
    for place, (peer, _) in enumerate(sends):
        found.append((pairs.setdefault((route, rank, peer), ([], []))[0], place))
    for place, (peer, _) in enumerate(receives):
        found.append((pairs.setdefault((route, peer, rank), ([], []))[1], place))
    return found


def _messages(
    program: Program, pairs: dict[tuple[Route, int, int], tuple[_Sides, _Sides]]
) -> list[Message]:
    transfers = program.columns.transfers
    found: list[Message] = []
    for (_, source, target), (mine, theirs) in pairs.items():
        if len(mine) != len(theirs):
            longer, count = max(mine, theirs, key=len), min(len(mine), len(theirs))
            raise Mismatch(
                f"a transfer from rank {source} to rank {target} meets no partner", longer[count][0]
            )
        for (a, sent), (b, received) in zip(mine, theirs, strict=True):
            if transfers[a].sends[sent][1] != transfers[b].receives[received][1]:  # type: ignore[union-attr]
                raise Mismatch(
                    f"a transfer from rank {source} to rank {target} meets a partner of another "
                    "size", a, b,
                )  # fmt: skip
            found.append((a, sent, b, received))
    return found


def _collectives(
    program: Program, groups: dict[tuple[int, ...], dict[int, list[int]]]
) -> list[tuple[int, ...]]:
    columns, found = program.columns, []
    for group, by_rank in groups.items():
        rows = [by_rank.get(rank, []) for rank in group if rank in program.ranks]
        if len({len(row) for row in rows}) != 1:
            longest = max(rows, key=len)
            raise Mismatch(f"a collective over ranks {group} is not joined by all", longest[-1])
        for ids in zip(*rows, strict=True):
            if len({(columns.kind[i], columns.bytes[i]) for i in ids}) != 1:
                raise Mismatch(f"different collectives meet over ranks {group}", *ids)
            found.append(ids)
    found.sort()
    return found
