"""Traces in the Chrome JSON format, which Perfetto (ui.perfetto.dev) opens.

A process per source (measured, simulated), a track per rank and lane, a slice per op, an arrow from
every send to its receive. Format: "Trace Event Format", Google, section "JSON Object Format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.observe.timeline import StepTimes, meetings
from orchestrator.program.ops import COMPUTE, RECEIVE, REDUCE, SEND, Program

LANES = (COMPUTE, SEND, RECEIVE, REDUCE)


def write(path: Path, program: Program, steps: Iterable[StepTimes], source: str) -> None:
    """Write the trace of some steps; times start at 0."""
    found = list(steps)
    events = [*_names(program, source), *_slices(program, found, source)]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _names(program: Program, source: str) -> Iterator[dict[str, Any]]:
    pid = _process(source)
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": source}}
    for rank in program.ranks:
        for number, lane in enumerate(LANES):
            tid = rank * len(LANES) + number
            named = {"name": f"rank {rank} {lane}"}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": named}
            order = {"sort_index": tid}
            yield {"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": order}


def _slices(program: Program, steps: list[StepTimes], source: str) -> Iterator[dict[str, Any]]:
    if not steps:
        return
    zero = min(steps[0].begin.values())
    pid = _process(source)

    def micro(seconds: float) -> float:
        return round((seconds - zero) * 1e6, 3)

    for times in steps:
        for op in program.ops():
            tid = op.rank * len(LANES) + LANES.index(op.lane)
            start, end = micro(times.start[op.id]), micro(times.end[op.id])
            segment = program.segments[op.segment]
            args = {
                "op": op.id, "step": times.step, "bytes": op.bytes, "flops": op.flops,
                "layers": " ".join(layer.name for layer in segment.layers),
                "ready_us": micro(times.ready[op.id]), "peers": list(op.peers),
            }  # fmt: skip
            yield {
                "ph": "X", "pid": pid, "tid": tid, "name": str(op), "cat": op.kind,
                "ts": start, "dur": round(end - start, 3), "args": args,
            }  # fmt: skip
        for number, ids in enumerate(meetings(program)):
            if len(ids) == 2 and program.op(ids[0]).lane == SEND:
                flow = f"{times.step}.{number}"
                for i, phase in zip(ids, ("s", "f"), strict=True):
                    op = program.op(i)
                    tid = op.rank * len(LANES) + LANES.index(op.lane)
                    at = times.start[i] if phase == "s" else times.end[i]
                    yield {
                        "ph": phase, "pid": pid, "tid": tid, "name": "transfer", "cat": "transfer",
                        "id": flow, "ts": micro(at), "bp": "e",
                    }  # fmt: skip


def _process(source: str) -> int:
    return 1 if source == "measured" else 2
