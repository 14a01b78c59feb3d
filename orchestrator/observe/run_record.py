"""Reads a run folder back: its plan, its summary, and how long every op took."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.errors import InputError
from orchestrator.plan import Plan, load_plan

READS_SCHEMA = 1


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Args:
        op_seconds: by op id, the median time between its start and its end; empty if the run
            recorded no timeline.
    """

    folder: Path
    plan: Plan
    summary: dict[str, Any]
    op_seconds: dict[int, float]


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
    plan = load_plan(folder / "plan.yaml")
    return RunRecord(folder, plan, summary, _op_seconds(folder / "timeline.jsonl"))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not JSON: {error}", str(path)) from error
    if not isinstance(found, dict):
        raise InputError("not a JSON object", str(path))
    return found


def _op_seconds(path: Path) -> dict[int, float]:
    durations: defaultdict[int, list[float]] = defaultdict(list)
    first: int | None = None
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                first = row["step"] if first is None else first
                if row["step"] != first or first > 0:  # the very first step of a run warms up
                    durations[row["op"]].append(row["end"] - row["start"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"a broken line: {error}", str(path)) from error
    return {op: median(values) for op, values in durations.items()}
