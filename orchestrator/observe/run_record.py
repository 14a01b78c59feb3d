"""Reads a run folder back: its plan, its summary, how long every op took, and one step of it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.errors import InputError
from orchestrator.observe.timeline import Interval, StepTimes, from_zero
from orchestrator.plan import Plan, load_plan

READS_SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Args:
        op_seconds: by op id, the median time between its start and its end; empty if the run
            recorded no timeline.
        step: the recorded step with the median length, on a clock that starts at 0; None if the
            run recorded no timeline.
        ended: when its summary was written, by the clock and the time zone of this machine.
    """

    folder: Path
    plan: Plan
    summary: dict[str, Any]
    op_seconds: dict[int, float]
    step: StepTimes | None
    ended: datetime


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        InputError: a file is missing or broken, the run did not finish a step, another schema.
    """
    missing = [
        n for n in ("plan.yaml", "summary.json", "timeline.jsonl") if not (folder / n).is_file()
    ]
    if missing:
        raise InputError(
            f"the run folder is incomplete: no {', '.join(missing)}",
            str(folder),
            "name a folder that `orchestrator run --out` has written to its end",
        )
    summary = _json(folder / "summary.json")
    if summary.get("schema_version") != READS_SCHEMA:
        raise InputError(
            f"a run folder of schema {summary.get('schema_version')}; this release reads "
            f"{READS_SCHEMA}",
            str(folder / "summary.json"),
        )
    if "step_time_s" not in summary:
        raise InputError("the run ended before its first step did", str(folder))
    for row in (summary, *summary.get("ranks", ())):
        row.setdefault("loading_time_s", 0.0)  # earlier releases counted it as computation
    plan = load_plan(folder / "plan.yaml")
    steps = _timeline(folder / "timeline.jsonl")
    ended = datetime.fromtimestamp((folder / "summary.json").stat().st_mtime).astimezone()
    return RunRecord(folder, plan, summary, _op_seconds(steps), _median_step(steps), ended)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not JSON: {error}", str(path)) from error
    if not isinstance(found, dict):
        raise InputError("not a JSON object", str(path))
    return found


@dataclass(frozen=True)
class _Row:
    """A line of the timeline."""

    op: int
    rank: int
    ready: float
    start: float
    end: float
    loading: Interval | None
    messages: list[Interval]


def _timeline(path: Path) -> dict[int, list[_Row]]:
    """Rows by step, without the very first step of a run, which warms up, if there are others."""
    steps: defaultdict[int, list[_Row]] = defaultdict(list)
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                ready, start, end = (float(row[key]) for key in ("ready", "start", "end"))
                steps[int(row["step"])].append(
                    _Row(
                        int(row["op"]), int(row["rank"]), ready, start, end,
                        _interval(row.get("loading")),
                        [(float(low), float(high)) for low, high in row.get("messages", ())],
                    )
                )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"a broken line: {error}", str(path)) from error
    if len(steps) > 1:
        steps.pop(0, None)
    return dict(steps)


def _interval(found: Any) -> Interval | None:
    if found is None:
        return None
    low, high = found
    return float(low), float(high)


def _op_seconds(steps: dict[int, list[_Row]]) -> dict[int, float]:
    durations: defaultdict[int, list[float]] = defaultdict(list)
    for rows in steps.values():
        for row in rows:
            durations[row.op].append(row.end - row.start)
    return {op: median(values) for op, values in durations.items()}


def _median_step(steps: dict[int, list[_Row]]) -> StepTimes | None:
    """The step of median length; a rank is in it from when its first op could have begun, but for
    its data, to its last op's end."""
    if not steps:
        return None

    def seconds(step: int) -> float:
        return max(row.end for row in steps[step]) - min(map(_entered, steps[step]))

    step = sorted(steps, key=seconds)[(len(steps) - 1) // 2]
    rows = sorted(steps[step], key=lambda row: row.op)
    begin: dict[int, float] = {}
    finish: dict[int, float] = {}
    for row in rows:
        begin[row.rank] = min(_entered(row), begin.get(row.rank, row.ready))
        finish[row.rank] = max(row.end, finish.get(row.rank, row.end))
    ready, start, end = ([getattr(r, name) for r in rows] for name in ("ready", "start", "end"))
    loading = {row.op: row.loading for row in rows if row.loading is not None}
    messages = {row.op: row.messages for row in rows if row.messages}
    return from_zero(StepTimes(step, ready, start, end, begin, finish, loading, messages))


def _entered(row: _Row) -> float:
    return row.ready if row.loading is None else min(row.ready, row.loading[0])
