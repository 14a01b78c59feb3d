"""The trace as Perfetto reads it: every op a slice that it will not drop, every transfer an arrow.

Perfetto's rules are those of its slice tracker (src/trace_processor/importers/common, v49): slices
of a track nest or lie apart, else they are dropped; a slice is over at the moment of its end.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.models.model import Recipe
from orchestrator.observe import trace
from orchestrator.observe.timeline import StepTimes
from orchestrator.program import Program
from orchestrator.program.ops import SEND
from tests.observe.timelines import PROGRAMS
from tests.program.small import LINEAR, small_program

Event = dict[str, Any]


def executed(program: Program, steps: int) -> list[StepTimes]:
    executor = LocalExecutor(program, RandomFeed(program.model, program.global_batch), Recipe())
    found = []
    for step in range(steps):
        executor.step(step)
        found.append(executor.times())
    return found


def written(program: Program, steps: list[StepTimes], file: Path) -> list[Event]:
    trace.write(file, program, steps, "measured")
    whole = json.loads(file.read_text())
    assert whole["displayTimeUnit"] == "ms"
    events: list[Event] = whole["traceEvents"]
    return events


def nanoseconds(event: Event) -> tuple[int, int]:
    """Start and end as Perfetto counts them."""
    start = round(event["ts"] * 1000)
    return start, start + round(event["dur"] * 1000)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_op_of_every_step_is_one_slice_on_its_ranks_track(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    events = written(program, executed(program, 2), tmp_path / "trace.json")
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    expected = [(step, op.id) for step in (0, 1) for op in program.ops()]
    assert [(e["args"]["step"], e["args"]["op"]) for e in slices] == expected
    for event in slices:
        op = program.op(event["args"]["op"])
        assert (event["name"], event["cat"]) == (str(op), op.kind)
        assert names[event["tid"]].startswith(f"rank {op.rank} {op.lane}")
        assert (event["args"]["bytes"], event["args"]["peers"]) == (op.bytes, list(op.peers))
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    (process,) = (e for e in events if e["name"] == "process_name")
    assert process["args"]["name"] == "measured"
    assert {e["pid"] for e in events} == {process["pid"]}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_send_has_an_arrow_to_its_receive(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    events = written(program, executed(program, 2), tmp_path / "trace.json")
    flows: defaultdict[str, dict[str, Event]] = defaultdict(dict)
    for event in events:
        if event["ph"] in "sf":
            assert event["ph"] not in flows[event["id"]], "an id of its own for every arrow"
            flows[event["id"]][event["ph"]] = event
    sends = [op for op in program.ops() if op.lane == SEND]
    assert len(flows) == 2 * len(sends)
    ends: Counter[tuple[str, str]] = Counter()
    for ends_of in flows.values():
        source, target = (slice_at(events, ends_of[phase]) for phase in "sf")
        assert ends_of["s"]["ts"] <= ends_of["f"]["ts"]
        assert source["cat"][:4] == "SEND"
        assert target["cat"] == source["cat"].replace("SEND", "RECV")
        assert source["args"]["step"] == target["args"]["step"]
        ends[source["name"], target["name"]] += 1
    assert all(a.replace("SEND", "RECV") == b for a, b in ends)


def slice_at(events: list[Event], flow: Event) -> Event:
    """The slice to which Perfetto binds an end of an arrow: begun last on its track by then."""
    track = [e for e in events if e["ph"] == "X" and e["tid"] == flow["tid"]]
    last = max((e for e in track if e["ts"] <= flow["ts"]), key=lambda e: float(e["ts"]))
    start, end = nanoseconds(last)
    assert start <= round(flow["ts"] * 1000)
    assert round(flow["ts"] * 1000) < end or start == end
    return last


def test_slices_of_a_track_never_cross(tmp_path: Path) -> None:
    """Perfetto drops a slice that begins inside another one and ends after it.

    Rank 0 sends to rank 1 from 1 to 3 and to rank 2 from 2 to 4.
    """
    program = small_program(
        LINEAR, "layers: a, ranks: [0], split: none",
        "layers: relu..b, ranks: 0..2, split: batch", "layers: c, ranks: [0], split: none",
        batch=6,
    )  # fmt: skip
    start = [float(op.rank + max(op.peers, default=0)) for op in program.ops()]
    end = [at + 2 for at in start]
    ranks = dict.fromkeys(program.ranks, 0.0)
    events = written(program, [StepTimes(0, start, start, end, ranks, ranks)], tmp_path / "t.json")
    tracks: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["tid"]].append(nanoseconds(event))
    for spans in tracks.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert len(set(names)) == len(names)
    assert {"rank 0 send", "rank 0 send 2"} <= set(names)


def test_a_run_without_a_step_has_an_empty_trace(tmp_path: Path) -> None:
    events = written(PROGRAMS["data"], [], tmp_path / "trace.json")
    assert {e["ph"] for e in events} == {"M"}
