"""What crosses between two segments: its messages, and what each rank sends and receives of them.

A boundary's messages of one turn and one direction are one *exchange*: a rank posts all that it
sends and receives together, as a group. The ranks that talk over a boundary, whether directly or by
way of others, are a *route*; every exchange among them goes over the same one, in order:

    rank 0 ──► rank 2        two routes, 0>2 and 1>3
    rank 1 ──► rank 3

    rank 0 ──► rank 2        one route, 0-1>2-3
         └───► rank 3
    rank 1 ──► rank 3
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from orchestrator.models.box import Box


class Message(NamedTuple):
    """A box of a value that one rank gives another (or itself).

    Args:
        turn: which of the consumer's chunks within the producer's chunk.
        source, target: ranks within one replica, of the forward; equal for what stays local.
        taken: examples and box, as positions in the producer's output tensor.
        given: the same, as positions in the consumer's input tensor.
        values: number of values.
    """

    turn: int
    source: int
    target: int
    taken: Box
    given: Box
    values: int


@dataclass(frozen=True)
class Boundary:
    """What crosses from one segment into an import of another.

    Args:
        index: position among the boundaries.
        producer, consumer: the segments; producer -1 for data.
        layer: position in the producer of the layer whose output crosses.
        number: which import of the consumer it is.
        reader: name of the layer that reads: it names the exchange.
        turns: consumer chunks per producer chunk.
        messages: of the forward, by turn.
        gradients: the messages whose gradients go back, by turn: the same, but where an end is
            replicated.
        summed: the messages are partial sums, which the receiver adds up in order of source.
        parameter: ``layer.parameter`` of the producer, where what crosses is no activation but a
            parameter that the consumer borrows: once a step, and its gradient back.
        borrowed_as: what the reader calls that parameter.
    """

    index: int
    producer: int
    consumer: int
    layer: int
    number: int
    reader: str
    turns: int
    messages: tuple[tuple[Message, ...], ...]
    gradients: tuple[tuple[Message, ...], ...]
    summed: bool
    parameter: str = ""
    borrowed_as: str = ""

    @cached_property
    def forward(self) -> Direction:
        """How its values go."""
        return _direction(_ends(self.messages))

    @cached_property
    def backward(self) -> Direction:
        """How their gradients go back."""
        return _direction([[(b, a, m) for a, b, m in turn] for turn in _ends(self.gradients)])

    @cached_property
    def routes(self) -> tuple[dict[int, Route], dict[int, Route]]:
        """By rank, the routes of the values and of their gradients."""
        return (
            _routes((a, b) for turn in _ends(self.messages) for a, b, _ in turn),
            _routes((b, a) for turn in _ends(self.gradients) for a, b, _ in turn),
        )

    def for_rank(self, rank: int) -> Boundary:
        """With what one rank gives, gets or keeps alone; its ``routes`` are not to be asked for."""
        own, returned = (found.get(rank, ()) for found in self._by_rank)
        return replace(
            self,
            messages=_in_turns(own, len(self.messages)),
            gradients=_in_turns(returned, len(self.gradients)),
        )

    @cached_property
    def _by_rank(self) -> tuple[dict[int, list[Message]], dict[int, list[Message]]]:
        found: tuple[dict[int, list[Message]], dict[int, list[Message]]] = ({}, {})
        for by_rank, turns in zip(found, (self.messages, self.gradients), strict=True):
            for turn in turns:
                for message in turn:
                    for rank in {message.source, message.target}:
                        by_rank.setdefault(rank, []).append(message)
        return found


class Route(NamedTuple):
    """Ranks that talk over a boundary.

    Args:
        senders, receivers: ascending; a rank may be both.
    """

    senders: tuple[int, ...]
    receivers: tuple[int, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """All of them, ascending."""
        return tuple(sorted({*self.senders, *self.receivers}))


class Side(NamedTuple):
    """What one rank sends and receives in an exchange.

    Args:
        sends, receives: the other rank and what goes there or comes from there, by rank.
    """

    sends: tuple[tuple[int, Message], ...]
    receives: tuple[tuple[int, Message], ...]


class Direction(NamedTuple):
    """One direction of a boundary.

    Args:
        sides: by turn and rank, of the ranks that talk.
        kept: by turn, what ranks keep for themselves.
    """

    sides: tuple[dict[int, Side], ...]
    kept: tuple[tuple[Message, ...], ...]


def _in_turns(messages: Sequence[Message], count: int) -> tuple[tuple[Message, ...], ...]:
    return tuple([tuple([m for m in messages if m.turn == turn]) for turn in range(count)])


def _ends(turns: Iterable[Iterable[Message]]) -> list[list[tuple[int, int, Message]]]:
    return [[(m.source, m.target, m) for m in turn] for turn in turns]


def _direction(turns: Iterable[Iterable[tuple[int, int, Message]]]) -> Direction:
    """From the sender, the receiver and the message of each that there is, by turn."""
    listed = [list(turn) for turn in turns]
    sides = []
    for turn in listed:
        sends: dict[int, list[tuple[int, Message]]] = {}
        receives: dict[int, list[tuple[int, Message]]] = {}
        for a, b, message in turn:
            if a != b:
                sends.setdefault(a, []).append((b, message))
                receives.setdefault(b, []).append((a, message))
        sides.append(
            {
                rank: Side(
                    tuple(sorted(sends.get(rank, ()), key=_peer)),
                    tuple(sorted(receives.get(rank, ()), key=_peer)),
                )
                for rank in sorted(sends.keys() | receives.keys())
            }
        )
    kept = tuple([tuple([m for a, b, m in turn if a == b]) for turn in listed])
    return Direction(tuple(sides), kept)


def _peer(entry: tuple[int, Message]) -> int:
    return entry[0]


def _routes(pairs: Iterable[tuple[int, int]]) -> dict[int, Route]:
    """By rank, its route: ranks are put together that send to each other (union-find)."""
    parent: dict[int, int] = {}

    def root(rank: int) -> int:
        while parent.setdefault(rank, rank) != rank:
            parent[rank] = rank = parent[parent[rank]]
        return rank

    known = [(a, b) for a, b in dict.fromkeys(pairs) if a != b]
    for a, b in known:
        parent[root(a)] = root(b)
    senders: dict[int, set[int]] = {}
    receivers: dict[int, set[int]] = {}
    for a, b in known:
        senders.setdefault(root(a), set()).add(a)
        receivers.setdefault(root(b), set()).add(b)
    found = {
        top: Route(tuple(sorted(senders[top])), tuple(sorted(receivers[top]))) for top in senders
    }
    return {rank: found[root(rank)] for rank in parent}
