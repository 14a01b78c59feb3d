"""Traces in the Chrome JSON format, which Perfetto (ui.perfetto.dev) opens.

A process per source (measured, simulated), with the same tracks in each: per rank a slice for each
computation, each message that it sends or receives and each collective, with an arrow from every
send to its receive; before a forward that waits for its images or
labels a slice ``loading``; per rank a counter of memory, where the source has one. Format: "Trace
Event Format", Google; complete events with ``bind_id`` for arrows.

Perfetto drops a slice that begins inside another of its track and ends after it, as transfers with
different peers may; these go to further tracks of their lane:

    rank 0 send      |--- to 1 ---|      |-- to 1 --|
    rank 0 send 2         |--- to 2 ---|

Perfetto takes thread 0 of every process for one and the same, and a thread with the number of its
process for the main one, which it shows first: so tracks have numbers of their own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.observe.timeline import StepTimes
from orchestrator.program.ops import COMPUTE, LANE_OF, REDUCE, Op, Program
from orchestrator.program.order import meetings
from orchestrator.program.segments import Segment

SEND, RECEIVE = "send", "receive"
LANES = (COMPUTE, SEND, RECEIVE, REDUCE)
FIRST_TRACK = 10  # above the numbers of the processes

Event = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One process of a trace.

    Args:
        name: such as ``measured`` or ``simulated``.
        steps: of ``program``; the first one begins at 0.
        memory: by rank, (op id, most bytes alive during it) in posting order; empty if unknown.
    """

    name: str
    program: Program
    steps: Sequence[StepTimes]
    memory: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)


def write(path: Path, *sources: Source) -> None:
    """Write the trace of some sources, an event a line."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        for number, event in enumerate(_events(sources)):
            file.write(",\n" if number else "\n")
            file.write(encode(event))
        file.write("\n]}\n")


def _events(sources: Iterable[Source]) -> Iterator[Event]:
    arrows = 1  # an id of its own for every arrow of the file
    for pid, source in enumerate(sources, 1):
        drawn = _drawn(source.program)
        tracks = _tracks(source, drawn)
        yield from _names(pid, source.name, tracks)
        if not source.steps:
            continue
        zero = min(source.steps[0].begin.values())
        for number, times in enumerate(source.steps):
            yield from _slices(pid, source.program, times, zero, number, tracks, drawn, arrows)
            arrows += sum(one.lane == SEND for one in drawn)
            for rank, series in source.memory.items():
                yield from _memory(pid, source.program, times, zero, rank, series)


class _Drawn(NamedTuple):
    """One slice of every step.

    Args:
        place: of a message, its place among its exchange's.
        peer: of a message.
        bytes: of a message or an op.
        arrow: of a message, its number among all.
    """

    op: Op
    lane: str
    place: int = 0
    peer: int = -1
    bytes: int = 0
    arrow: int = -1

    def span(self, times: StepTimes) -> tuple[float, float]:
        """From when to when."""
        return times.of_messages(self.op.id, self.place + 1)[self.place]


def _drawn(program: Program) -> list[_Drawn]:
    """The slices of a step, in the order of ops; but receives behind all that is sent, since an
    arrow to a slice of the same moment is dropped if it is not known where it comes from."""
    arrow_of: dict[tuple[int, int], int] = {}
    for number, (send, sent, receive, received) in enumerate(meetings(program).messages):
        there = program.columns.transfers[receive]
        assert there is not None
        arrow_of[send, sent] = arrow_of[receive, len(there.sends) + received] = number
    found = []
    for op in program.ops():
        if op.transfers is None:
            found.append(_Drawn(op, op.lane, bytes=op.bytes))
            continue
        for place, (peer, size) in enumerate(op.transfers.sides):
            lane = SEND if place < len(op.transfers.sends) else RECEIVE
            found.append(_Drawn(op, lane, place, peer, size, arrow_of[op.id, place]))
    return sorted(found, key=lambda one: one.lane == RECEIVE)


@dataclass(frozen=True)
class _Tracks:
    """Where every slice is drawn.

    Args:
        of: by number of the step in the trace and of the slice, which of its lane's tracks.
        count: by rank and lane, tracks in use; one at least.
    """

    of: list[list[int]]
    count: dict[tuple[int, str], int]

    def tid(self, rank: int, lane: str, track: int) -> int:
        """A track's number; those of a lane follow one another."""
        return FIRST_TRACK + (rank * len(LANES) + LANES.index(lane)) * self.widest + track

    @cached_property
    def widest(self) -> int:
        """Tracks of the lane that has most."""
        return max(self.count.values())


def _tracks(source: Source, drawn: Sequence[_Drawn]) -> _Tracks:
    of: list[list[int]] = []
    free: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [float("-inf")])
    for times in source.steps:
        of.append([0] * len(drawn))
        spans = [one.span(times) for one in drawn]
        for n in sorted(range(len(drawn)), key=spans.__getitem__):
            ends = free[drawn[n].op.rank, drawn[n].lane]  # of each track's last slice
            start, stop = spans[n]
            track = next((k for k, end in enumerate(ends) if end <= start), len(ends))
            ends[track:] = [stop, *ends[track + 1 :]]
            of[-1][n] = track
    ranks = source.program.ranks
    return _Tracks(of, {(r, lane): len(free[r, lane]) for r in ranks for lane in LANES})


def _names(pid: int, name: str, tracks: _Tracks) -> Iterator[Event]:
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
    for (rank, lane), number in tracks.count.items():
        for track in range(number):
            tid = tracks.tid(rank, lane, track)
            named = {"name": f"rank {rank} {lane}" + (f" {track + 1}" if track else "")}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": named}
            order = {"sort_index": tid}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": order}


def _slices(
    pid: int, program: Program, times: StepTimes, zero: float, number: int, tracks: _Tracks,
    drawn: Sequence[_Drawn], arrows: int,
) -> Iterator[Event]:  # fmt: skip
    layers = [_layers(segment) for segment in program.segments]
    for one, track in zip(drawn, tracks.of[number], strict=True):
        op = one.op
        start, end = (_micro(at - zero) for at in one.span(times))
        tid = tracks.tid(op.rank, one.lane, track)
        if op.id in times.loading:
            since, until = (_micro(at - zero) for at in times.loading[op.id])
            if since < until:
                yield {
                    "ph": "X", "pid": pid, "tid": tid, "name": "loading", "cat": "loading",
                    "ts": since, "dur": round(until - since, 3),
                    "args": {"for": str(op), "step": times.step},
                }  # fmt: skip
        event: Event = {
            "ph": "X", "pid": pid, "tid": tid,
            "name": str(op), "cat": op.kind, "ts": start, "dur": round(end - start, 3),
        }  # fmt: skip
        if one.arrow >= 0:
            event["bind_id"] = arrows + one.arrow
            event["flow_out" if one.lane == SEND else "flow_in"] = True
        waited = _micro(one.span(times)[0] - times.ready[op.id])
        event["args"] = _details(one, times.step, layers[program.segment_of(op.id).index], waited)
        yield event


def _details(one: _Drawn, step: int, layers: str, waited_us: float) -> dict[str, Any]:
    """What a click on a slice shows; zeros are left out."""
    found: dict[str, Any] = {"op": one.op.id, "step": step, "layers": layers}
    if waited_us > 0:
        found["waited_us"] = waited_us
    if one.bytes:
        found["bytes"] = one.bytes
    if one.op.flops:
        found["flops"] = one.op.flops
    if one.arrow >= 0:
        found["peers"] = str(one.peer)
    elif one.op.peers:
        found["peers"] = ",".join(map(str, one.op.peers))
    return found


def _layers(segment: Segment) -> str:
    first, last = segment.layers[0].name, segment.layers[-1].name
    return first if first == last else f"{first}..{last}"


def _memory(
    pid: int, program: Program, times: StepTimes, zero: float, rank: int,
    series: Sequence[tuple[int, int]],
) -> Iterator[Event]:  # fmt: skip
    """A rank's counter, a value per computation and only where it changes.

    A transfer is posted with the computation before it and counts from that one's start.
    """
    most: dict[float, int] = {}  # by moment, which only grow
    now = times.begin[rank]
    for i, size in series:
        if LANE_OF[program.columns.kind[i]] == COMPUTE:
            now = max(now, times.start[i])
        most[now] = max(size, most.get(now, 0))
    before = None
    for moment, size in most.items():
        if size != before:
            yield {
                "ph": "C", "pid": pid, "ts": _micro(moment - zero), "name": f"rank {rank} memory",
                "args": {"bytes": size},
            }  # fmt: skip
        before = size


def _micro(seconds: float) -> float:
    """Microseconds, to the nanosecond that Perfetto counts in."""
    return round(seconds * 1e6, 3)
