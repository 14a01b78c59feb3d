"""Traces in the Chrome JSON format, which Perfetto (ui.perfetto.dev) opens.

A process per source (measured, simulated), with the same tracks in each: per rank and lane, a slice
per op and an arrow from every send to its receive; before a forward that waits for its images or
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
from itertools import count
from pathlib import Path
from typing import Any

from orchestrator.observe.timeline import StepTimes, meetings
from orchestrator.program.ops import COMPUTE, LANE_OF, RECEIVE, REDUCE, SEND, Op, Program
from orchestrator.program.segments import Segment

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
    arrows = count(1)  # an id of its own for every arrow of the file
    for pid, source in enumerate(sources, 1):
        tracks = _tracks(source)
        yield from _names(pid, source.name, tracks)
        if not source.steps:
            continue
        zero = min(source.steps[0].begin.values())
        for number, times in enumerate(source.steps):
            yield from _slices(pid, source.program, times, zero, tracks.of[number], tracks, arrows)
            for rank, series in source.memory.items():
                yield from _memory(pid, source.program, times, zero, rank, series)


@dataclass(frozen=True)
class _Tracks:
    """Where every op is drawn.

    Args:
        of: by number of the step in the trace and op id, which of its lane's tracks.
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


def _tracks(source: Source) -> _Tracks:
    columns, ranks = source.program.columns, source.program.ranks
    of: list[list[int]] = []
    free: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [float("-inf")])
    for times in source.steps:
        of.append([0] * len(columns))
        for i in sorted(range(len(columns)), key=lambda i: (times.start[i], times.end[i])):
            ends = free[columns.rank[i], LANE_OF[columns.kind[i]]]  # of each track's last slice
            start = times.start[i]
            track = next((k for k, end in enumerate(ends) if end <= start), len(ends))
            ends[track:] = [times.end[i], *ends[track + 1 :]]
            of[-1][i] = track
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
    pid: int, program: Program, times: StepTimes, zero: float, on: list[int], tracks: _Tracks,
    arrows: Iterator[int],
) -> Iterator[Event]:  # fmt: skip
    layers = [_layers(segment) for segment in program.segments]
    arrow_of = {
        i: arrow
        for ids in meetings(program)
        if LANE_OF[program.columns.kind[ids[0]]] in (SEND, RECEIVE)
        for arrow in (next(arrows),)
        for i in ids
    }
    for op in program.ops():
        start, end = _micro(times.start[op.id] - zero), _micro(times.end[op.id] - zero)
        tid = tracks.tid(op.rank, op.lane, on[op.id])
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
        if op.lane in (SEND, RECEIVE):
            event["bind_id"] = arrow_of[op.id]
            event["flow_out" if op.lane == SEND else "flow_in"] = True
        waited = _micro(times.start[op.id] - times.ready[op.id])
        event["args"] = _details(op, times.step, layers[program.segment_of(op.id).index], waited)
        yield event


def _details(op: Op, step: int, layers: str, waited_us: float) -> dict[str, Any]:
    """What a click on a slice shows; zeros are left out."""
    found: dict[str, Any] = {"op": op.id, "step": step, "layers": layers}
    if waited_us > 0:
        found["waited_us"] = waited_us
    if op.bytes:
        found["bytes"] = op.bytes
    if op.flops:
        found["flops"] = op.flops
    if op.peers:
        found["peers"] = ",".join(map(str, op.peers))
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
