"""The trace as Perfetto reads it: its own trace processor loads each and is asked in SQL."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.models.model import Recipe
from orchestrator.observe import trace
from orchestrator.observe.timeline import StepTimes
from orchestrator.observe.trace import Source
from orchestrator.program import Program
from orchestrator.program.ops import STEP, Op
from orchestrator.program.order import meetings
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.memory import peak_memory
from orchestrator.simulate.predict import simulate_program
from orchestrator.simulate.trace_source import trace_source
from tests.observe.perfetto_engine import TraceProcessor
from tests.observe.timelines import PROGRAMS
from tests.program.small import LINEAR, small_program

SLICES = """
select slice.id, slice.name, slice.category, ts, dur, process.name as source,
  thread.name as track,
  extract_arg(slice.arg_set_id, 'args.op') as op,
  extract_arg(slice.arg_set_id, 'args.step') as step,
  extract_arg(slice.arg_set_id, 'args.bytes') as bytes,
  extract_arg(slice.arg_set_id, 'args.flops') as flops,
  extract_arg(slice.arg_set_id, 'args.peers') as peers,
  extract_arg(slice.arg_set_id, 'args.for') as for
from slice join thread_track on slice.track_id = thread_track.id
join thread using (utid) join process using (upid)
"""
COUNTERS = """
select process.name as source, track.name as name, ts, value
from counter join process_counter_track as track on counter.track_id = track.id
join process using (upid) order by ts
"""


def executed(program: Program, steps: int) -> Source:
    """Steps of the local executor."""
    executor = LocalExecutor(program, RandomFeed(program.model, program.global_batch), Recipe())
    found = []
    for step in range(steps):
        executor.step(step)
        found.append(executor.times())
    return Source("measured", program, found)


def predicted(program: Program) -> Source:
    cluster = load_cluster("k20x8")
    return trace_source(simulate_program(program, cluster), cluster)


@pytest.fixture(scope="module", params=PROGRAMS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Program, dict[str, Source], TraceProcessor]]:
    """Two measured steps and a simulated one in one trace, loaded."""
    program = PROGRAMS[request.param]
    sources = (executed(program, 2), predicted(program))
    file = tmp_path_factory.mktemp("trace") / "trace.json"
    trace.write(file, *sources)
    with TraceProcessor(file) as perfetto:
        yield program, {source.name: source for source in sources}, perfetto


Both = tuple[Program, dict[str, Source], TraceProcessor]


def slices_of(op: Op) -> Iterator[tuple[Op, int, str, str, int]]:
    """The op, the place of a message in it, the lane, peers and bytes."""
    if op.transfers is None:
        yield op, 0, op.lane, ",".join(map(str, op.peers)), op.bytes
        return
    sides = [("send", side) for side in op.transfers.sends]
    sides += [("receive", side) for side in op.transfers.receives]
    for place, (lane, (peer, size)) in enumerate(sides):
        yield op, place, lane, str(peer), size


def test_perfetto_finds_every_op_with_its_duration(both: Both) -> None:
    program, sources, perfetto = both
    assert perfetto.problems() == {}
    found = [row for row in perfetto.query(SLICES) if row["category"] != "loading"]
    by_slice = {
        (row["source"], row["step"], row["op"], row["track"].split()[2], row["peers"] or ""): row
        for row in found
    }
    expected = [slice_ for op in program.ops() for slice_ in slices_of(op)]
    assert len(by_slice) == len(found) == 3 * len(expected)
    for name, source in sources.items():
        zero = min(source.steps[0].begin.values())
        for times in source.steps:
            for op, place, lane, peers, size in expected:
                row = by_slice[name, times.step, op.id, lane, peers]
                assert (row["name"], row["category"]) == (str(op), op.kind)
                assert row["track"].startswith(f"rank {op.rank} ")
                assert (row["bytes"] or 0, row["flops"] or 0) == (size, op.flops)
                spans = times.messages.get(op.id, [(times.start[op.id], times.end[op.id])])
                start, end = (at - zero for at in spans[place])
                assert row["ts"] == pytest.approx(start * 1e9, abs=1)
                assert row["dur"] == pytest.approx((end - start) * 1e9, abs=2)


def test_perfetto_finds_every_wait_for_data(both: Both) -> None:
    """On the track of the computation that reads it, up to its start."""
    program, sources, perfetto = both
    rows = perfetto.query(SLICES)
    starts = {(row["source"], row["track"], row["ts"]): row for row in rows}
    found = [row for row in rows if row["category"] == "loading"]
    measured = sources["measured"].steps
    assert len(found) == sum(len(times.loading) for times in measured) > 0
    for row in found:
        reader = starts["measured", row["track"], row["ts"] + row["dur"]]
        zero = min(measured[0].begin.values())
        low, high = measured[row["step"]].loading[reader["op"]]
        assert (row["name"], row["for"]) == ("loading", reader["name"])
        assert row["ts"] == pytest.approx((low - zero) * 1e9, abs=1)
        assert row["dur"] == pytest.approx((high - low) * 1e9, abs=2)


def test_both_sources_have_the_same_tracks(both: Both) -> None:
    program, sources, perfetto = both
    tracks = defaultdict(set)
    for row in perfetto.query(
        "select process.name as source, thread.name as track from thread join process using (upid)"
        " where process.name is not null and thread.name is not null"
    ):
        tracks[row["source"]].add(row["track"])
    assert tracks.keys() == sources.keys()
    lanes = {f"rank {rank} {lane}" for rank in program.ranks for lane in trace.LANES}
    assert all(lanes <= found for found in tracks.values())
    # A track that it takes for a main thread would be put first, whatever its rank and lane.
    assert perfetto.query("select name from thread where is_main_thread and name is not null") == []


def test_perfetto_draws_an_arrow_from_every_send_to_its_receive(both: Both) -> None:
    program, _, perfetto = both
    rows = {row["id"]: row for row in perfetto.query(SLICES)}
    arrows = [
        (rows[flow["slice_out"]], rows[flow["slice_in"]])
        for flow in perfetto.query("select slice_out, slice_in from flow")
    ]
    transfers = [(send, receive) for send, _, receive, _ in meetings(program).messages]
    assert {row["source"] for ends in arrows for row in ends} <= {"measured", "simulated"}
    assert all(a["source"] == b["source"] and a["step"] == b["step"] for a, b in arrows)
    found = {(a["source"], a["step"], a["op"], b["op"]) for a, b in arrows}
    assert len(arrows) == len(found) == 3 * len(transfers)
    assert {(a, b) for _, _, a, b in found} == set(transfers)


def test_perfetto_counts_the_simulated_memory(both: Both) -> None:
    program, _, perfetto = both
    rows = perfetto.query(COUNTERS)
    assert {row["source"] for row in rows} == {"simulated"}, "measured runs have no series"
    for memory in peak_memory(program):
        name = f"rank {memory.rank} memory bytes"
        values = [row["value"] for row in rows if row["name"] == name]
        assert max(values) == memory.peak_bytes
        assert all(a != b for a, b in zip(values, values[1:], strict=False)), "only changes"


def test_memory_stands_at_the_computation_under_which_it_is_held(tmp_path: Path) -> None:
    """A transfer is posted with the computation before it; what is posted together is one value."""
    program = PROGRAMS["columns"]
    order = program.order[0]
    start = [float(10 + i) for i in range(len(program.columns))]
    times = StepTimes(0, start, start, start, dict.fromkeys(program.ranks, 10.0), {})
    series = {0: [(i, 100 + place) for place, i in enumerate(order)]}
    file = tmp_path / "trace.json"
    trace.write(file, Source("simulated", program, [times], series))
    found = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "C"]
    # Up to the next computation the largest value holds; before the first one the step's begin.
    expected: dict[float, int] = {}
    now = 10.0
    for place, i in enumerate(order):
        if program.op(i).lane == "compute":
            now = start[i]
        expected[now] = 100 + place
    assert [(e["ts"], e["args"]["bytes"]) for e in found] == [
        ((moment - 10) * 1e6, size) for moment, size in expected.items()
    ]


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
    source = Source("measured", program, [StepTimes(0, start, start, end, ranks, ranks)])
    trace.write(tmp_path / "t.json", source)
    with TraceProcessor(tmp_path / "t.json") as perfetto:
        assert perfetto.problems() == {}
        rows = perfetto.query(SLICES)
    sides = [len(op.transfers.sides) if op.transfers else 1 for op in program.ops()]
    assert len(rows) == sum(sides)
    assert {"rank 0 send", "rank 0 send 2"} <= {row["track"] for row in rows}
    tracks: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        tracks[row["track"]].append((row["ts"], row["ts"] + row["dur"]))
    for spans in tracks.values():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_a_slice_tells_its_layers_and_what_it_waited_for(tmp_path: Path) -> None:
    program = PROGRAMS["columns"]
    count = len(program.columns)
    ranks = dict.fromkeys(program.ranks, 0.0)
    times = StepTimes(7, [1.0] * count, [1.5] * count, [2.0] * count, ranks, ranks)
    trace.write(tmp_path / "t.json", Source("measured", program, [times]))
    events: list[dict[str, Any]] = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    for event in (e for e in events if e["ph"] == "X"):
        op = program.op(event["args"]["op"])
        layers = [layer.name for layer in program.segments[op.segment].layers]
        assert event["args"]["layers"] in (layers[0], f"{layers[0]}..{layers[-1]}")
        assert event["args"]["waited_us"] == 500_000
        assert ("flops" in event["args"]) == (op.lane == "compute" and op.kind != STEP)


def test_a_run_without_a_step_has_a_trace_without_a_slice(tmp_path: Path) -> None:
    trace.write(tmp_path / "t.json", Source("measured", PROGRAMS["data"], []))
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}


def test_a_slice_takes_few_bytes(tmp_path: Path) -> None:
    """64 ranks with 10,000 slices each are 160 MB, which Perfetto loads."""
    program = small_program(
        LINEAR, "layers: a..c, ranks: 0..3, split: channel", batch=16,
        more="replicas: 2\nn_microbatches: 8\n",
    )  # fmt: skip
    trace.write(tmp_path / "t.json", predicted(program))
    slices = sum(len(op.transfers.sides) if op.transfers else 1 for op in program.ops())
    assert (tmp_path / "t.json").stat().st_size < 250 * slices
