"""A run folder read back: which step stands for the run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import InputError
from orchestrator.observe.run_record import READS_SCHEMA, read_run

PLAN = """
schema_version: 1
name: small
model: {name: lenet5}
global_batch_size: 4
placement:
  - {layers: conv1..fc5, ranks: [0], split: none}
"""


def folder_of(path: Path, steps: dict[int, float]) -> Path:
    """A run of two ops, one on each rank; ``steps``: by number, seconds that the second takes."""
    rows = []
    for step, seconds in steps.items():
        begin = 10.0 * step
        times = [(0, 0, begin, begin, begin + 0.5), (1, 1, begin, begin + 0.5, begin + seconds)]
        for op, rank, ready, start, end in times:
            row = {"step": step, "op": op, "rank": rank, "ready": ready, "start": start, "end": end}
            rows.append(json.dumps(row))
    (path / "timeline.jsonl").write_text("\n".join(reversed(rows)))
    (path / "summary.json").write_text(
        json.dumps({"schema_version": READS_SCHEMA, "step_time_s": 1.0})
    )
    (path / "plan.yaml").write_text(PLAN)
    return path


def test_the_step_of_median_length_stands_for_the_run(tmp_path: Path) -> None:
    record = read_run(folder_of(tmp_path, {0: 9.0, 1: 3.0, 2: 1.0, 3: 2.0}))
    assert record.step is not None
    assert record.step.step == 3  # 0 warms up; of 1, 2, 3 s the 2 s are in the middle
    assert record.step.start == [0.0, 0.5]
    assert record.step.end == [0.5, 2.0]
    assert record.step.begin == {0: 0.0, 1: 0.0}
    assert record.step.finish == {0: 0.5, 1: 2.0}
    assert record.op_seconds == pytest.approx({0: 0.5, 1: 1.5})


def test_a_rank_is_in_its_step_from_when_it_asked_for_its_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {1: 2.0})
    rows = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    for row in rows:
        if row["op"] == 0:
            row["loading"] = [row["start"] - 0.25, row["start"]]
    (folder / "timeline.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = read_run(folder)
    assert record.step is not None
    assert record.step.loading == {0: (0.0, 0.25)}
    assert record.step.begin == {0: 0.0, 1: 0.25}
    assert record.step.start == [0.25, 0.75]
    assert record.op_seconds == pytest.approx({0: 0.5, 1: 1.5}), "loading is no computation"


def test_a_run_of_an_earlier_release_has_no_loading(tmp_path: Path) -> None:
    """It was part of computation, and compare reads it of every run."""
    folder = folder_of(tmp_path, {1: 2.0})
    ranks = [{"rank": 0, "step_time_s": 1.0}]
    old = {"schema_version": READS_SCHEMA, "step_time_s": 1.0, "ranks": ranks}
    (folder / "summary.json").write_text(json.dumps(old))
    found = read_run(folder).summary
    assert found["loading_time_s"] == found["ranks"][0]["loading_time_s"] == 0.0


def test_a_run_of_one_step_is_told_by_it(tmp_path: Path) -> None:
    record = read_run(folder_of(tmp_path, {0: 2.0}))
    assert record.step is not None
    assert record.step.step == 0
    assert record.op_seconds == pytest.approx({0: 0.5, 1: 1.5})


def test_a_run_without_a_timeline_has_no_step(tmp_path: Path) -> None:
    record = read_run(folder_of(tmp_path, {}))
    assert record.step is None
    assert record.op_seconds == {}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"step": 0, "op": 0, "rank": 0, "ready": 0, "start": 0, "end": 0, "loading": 3}',
        '{"step": 1, "op": 0}',
        '{"step": "x"}',
        "3",
    ],
)
def test_a_broken_line_is_refused(tmp_path: Path, line: str) -> None:
    folder = folder_of(tmp_path, {0: 1.0})
    (folder / "timeline.jsonl").write_text(line)
    with pytest.raises(InputError, match="a broken line"):
        read_run(folder)
