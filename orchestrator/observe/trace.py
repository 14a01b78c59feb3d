"""Traces in the Chrome JSON format, which Perfetto (ui.perfetto.dev) opens.

A process per source (measured, simulated), tracks per rank and lane, a slice per op, an arrow from
every send to its receive. Format: "Trace Event Format", Google, section "JSON Object Format".

Perfetto drops a slice that begins inside another of its track and ends after it, as transfers with
different peers may; these go to further tracks of their lane:

    rank 0 send      |--- to 1 ---|      |-- to 1 --|
    rank 0 send 2         |--- to 2 ---|
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.observe.timeline import StepTimes, meetings
from orchestrator.program.ops import COMPUTE, RECEIVE, REDUCE, SEND, Op, Program

LANES = (COMPUTE, SEND, RECEIVE, REDUCE)


def write(path: Path, program: Program, steps: Iterable[StepTimes], source: str) -> None:
    """Write the trace of some steps; times start at 0."""
    found = list(steps)
    tracks = _tracks(program, found)
    events = [*_names(program, source, tracks), *_slices(program, found, source, tracks)]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


@dataclass(frozen=True)
class _Tracks:
    """Where every op is drawn.

    Args:
        of: by number of the step in the trace and op id, which of its lane's tracks.
        count: by rank and lane, tracks in use; one at least.
    """

    of: dict[tuple[int, int], int]
    count: dict[tuple[int, str], int]

    def tid(self, rank: int, lane: str, track: int) -> int:
        """A track's number; those of a lane follow one another."""
        return (rank * len(LANES) + LANES.index(lane)) * self.widest + track

    @cached_property
    def widest(self) -> int:
        """Tracks of the lane that has most."""
        return max(self.count.values())


def _tracks(program: Program, steps: list[StepTimes]) -> _Tracks:
    of: dict[tuple[int, int], int] = {}
    free: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [float("-inf")])
    for number, times in enumerate(steps):
        for op in sorted(program.ops(), key=lambda op: (times.start[op.id], times.end[op.id])):
            ends = free[op.rank, op.lane]  # of each track's last slice
            start = times.start[op.id]
            track = next((k for k, end in enumerate(ends) if end <= start), len(ends))
            ends[track:] = [times.end[op.id], *ends[track + 1 :]]
            of[number, op.id] = track
    return _Tracks(of, {(r, lane): len(free[r, lane]) for r in program.ranks for lane in LANES})


def _names(program: Program, source: str, tracks: _Tracks) -> Iterator[dict[str, Any]]:
    pid = _process(source)
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": source}}
    for (rank, lane), count in tracks.count.items():
        for track in range(count):
            tid = tracks.tid(rank, lane, track)
            named = {"name": f"rank {rank} {lane}" + (f" {track + 1}" if track else "")}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": named}
            order = {"sort_index": tid}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": order}


def _slices(
    program: Program, steps: list[StepTimes], source: str, tracks: _Tracks
) -> Iterator[dict[str, Any]]:
    if not steps:
        return
    zero = min(steps[0].begin.values())
    pid = _process(source)

    def micro(seconds: float) -> float:
        return round((seconds - zero) * 1e6, 3)

    def tid(number: int, op: Op) -> int:
        return tracks.tid(op.rank, op.lane, tracks.of[number, op.id])

    for number, times in enumerate(steps):
        for op in program.ops():
            start, end = micro(times.start[op.id]), micro(times.end[op.id])
            segment = program.segments[op.segment]
            args = {
                "op": op.id, "step": times.step, "bytes": op.bytes, "flops": op.flops,
                "layers": " ".join(layer.name for layer in segment.layers),
                "ready_us": micro(times.ready[op.id]), "peers": list(op.peers),
            }  # fmt: skip
            yield {
                "ph": "X", "pid": pid, "tid": tid(number, op), "name": str(op), "cat": op.kind,
                "ts": start, "dur": round(end - start, 3), "args": args,
            }  # fmt: skip
        for flow, ids in enumerate(meetings(program)):
            sides = sorted(map(program.op, ids), key=lambda op: op.lane != SEND)
            if sides[0].lane == SEND:
                for op, phase in zip(sides, ("s", "f"), strict=True):
                    # Both at the slice's start: where it ends, Perfetto counts it as over.
                    yield {
                        "ph": phase, "pid": pid, "tid": tid(number, op), "name": "transfer",
                        "cat": "transfer", "id": f"{times.step}.{flow}",
                        "ts": micro(times.start[op.id]), "bp": "e",
                    }  # fmt: skip


def _process(source: str) -> int:
    return 1 if source == "measured" else 2
