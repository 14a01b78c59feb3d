"""The traces that commands leave, loaded by Perfetto."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.cli.command import SMALL, command
from tests.observe.perfetto_engine import TraceProcessor

SLICES = """
select process.name as source, thread.name as track, slice.name,
  extract_arg(slice.arg_set_id, 'args.step') as step
from slice join thread_track on slice.track_id = thread_track.id
join thread using (utid) join process using (upid)
"""
COUNTERS = """
select process.name as source, track.name as name, max(value) as most
from counter join process_counter_track as track on counter.track_id = track.id
join process using (upid) group by process.name, track.name
"""
# Two replicas, so that the simulator alone would fold one of them away.
PLAN = ("pipeline-x-data", *SMALL, "--set", "global_batch_size=16")


def loaded(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Slices and counters of a folder's trace."""
    with TraceProcessor(folder / "trace.json") as perfetto:
        assert perfetto.problems() == {}
        return perfetto.query(SLICES), perfetto.query(COUNTERS)


def test_a_run_with_a_cluster_leaves_measured_and_simulated_side_by_side(tmp_path: Path) -> None:
    ended = command(
        "run", "--plan", *PLAN, "--launcher", "local", "--data", "synthetic", "--steps", "2",
        "--cluster", "k20x8", "--no-metrics", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    slices, counters = loaded(tmp_path / "run")
    ops: dict[str, Counter[tuple[str, str, str]]] = {"measured": Counter(), "simulated": Counter()}
    for row in slices:
        if row["step"] == 1 and row["name"] != "loading":
            _, rank, lane, *_ = row["track"].split()  # further tracks of a lane are numbered
            ops[row["source"]][rank, lane, row["name"]] += 1
    assert ops["measured"] == ops["simulated"]
    assert {rank for rank, _, _ in ops["measured"]} == {"0", "1", "2", "3"}
    assert {row["name"] for row in counters} == {f"rank {r} memory bytes" for r in range(4)}
    assert {row["source"] for row in counters} == {"simulated"}


def test_a_run_without_a_cluster_leaves_what_was_measured(tmp_path: Path) -> None:
    ended = command(
        "run", "--plan", *PLAN, "--launcher", "local", "--data", "synthetic", "--steps", "1",
        "--no-metrics", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    slices, counters = loaded(tmp_path / "run")
    assert {row["source"] for row in slices} == {"measured"}
    assert counters == []


def test_a_simulation_leaves_its_memory_too(tmp_path: Path) -> None:
    ended = command(
        "simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", "--json",
        "--out", str(tmp_path / "simulated"),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    slices, counters = loaded(tmp_path / "simulated")
    assert {row["source"] for row in slices} == {"simulated"}
    peaks = {row["rank"]: row["peak_memory_bytes"] for row in json.loads(ended.out)["ranks"]}
    assert {row["name"]: row["most"] for row in counters} == {
        f"rank {rank} memory bytes": peak for rank, peak in peaks.items()
    }
