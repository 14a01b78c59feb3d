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
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

from orchestrator.program.boundary import Route
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, Program


def before(program: Program) -> Iterator[tuple[int, int]]:
    """Pairs of ops of one rank of which the first must end before the second begins: ``needs``, and
    whatever of the order does not follow from them."""
    columns = program.columns
    lanes = [LANE_OF[kind] for kind in columns.kind]
    for ids in program.order:
        newest = -1  # computation
        last: dict[str | Route, int] = {}  # by channel, transfers
        since: set[int] = set()  # transfers that need not have ended before it
        waited: set[int] = set()  # transfers that a transfer listed behind it needs
        for i in ids:
            needs = columns.needs[i]
            for need in needs:
                yield need, i
            if newest >= 0 and newest not in needs:
                yield newest, i
            for need in waited.difference(needs):
                yield need, i
            if lanes[i] == COMPUTE:
                since.difference_update(needs, waited)
                waited.clear()
                newest = i
                continue
            transfers = columns.transfers[i]
            channel = transfers.route if transfers is not None else lanes[i]
            previous = last.get(channel, -1)
            if previous in since and previous not in needs and previous not in waited:
                yield previous, i
            waited.update([need for need in needs if lanes[need] != COMPUTE])
            since.add(i)
            last[channel] = i


class Message(NamedTuple):
    """The two sides of a message.

    Args:
        send, receive: the ops.
        sent: its place among what the one sends.
        received: its place among what the other receives.
    """

    send: int
    sent: int
    receive: int
    received: int


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
    sends: defaultdict[tuple[Route, int, int], list[tuple[int, int]]] = defaultdict(list)
    receives: defaultdict[tuple[Route, int, int], list[tuple[int, int]]] = defaultdict(list)
    groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
    known: dict[int, dict[int, list[int]]] = {}  # groups may be large: each object compared once
    columns = program.columns
    for rank, ids in enumerate(program.order):
        for i in ids:
            transfers = columns.transfers[i]
            if transfers is not None:
                for place, (peer, _) in enumerate(transfers.sends):
                    sends[transfers.route, rank, peer].append((i, place))
                for place, (peer, _) in enumerate(transfers.receives):
                    receives[transfers.route, peer, rank].append((i, place))
            elif LANE_OF[columns.kind[i]] == REDUCE:
                peers = columns.peers[i]
                if id(peers) not in known:
                    known[id(peers)] = groups.setdefault(peers, defaultdict(list))
                known[id(peers)][rank].append(i)
    return Meetings(_messages(program, sends, receives), _collectives(program, groups))


_Sides = dict[tuple[Route, int, int], list[tuple[int, int]]]


def _messages(program: Program, sends: _Sides, receives: _Sides) -> list[Message]:
    transfers = program.columns.transfers
    found = []
    for key in sends.keys() | receives.keys():
        for a, b in zip_longest(sends.get(key, ()), receives.get(key, ())):
            what = f"a transfer from rank {key[1]} to rank {key[2]} meets"
            if a is None or b is None:
                raise Mismatch(f"{what} no partner", (a or b)[0])
            sender, receiver = transfers[a[0]], transfers[b[0]]
            assert sender is not None
            assert receiver is not None
            if sender.sends[a[1]][1] != receiver.receives[b[1]][1]:
                raise Mismatch(f"{what} a partner of another size", a[0], b[0])
            found.append(Message(*a, *b))
    found.sort()
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
