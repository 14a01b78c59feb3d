"""Grafana's own library for units, overrides, transformations and colours, of version 7 and of 13.

It is `@grafana/data` of the npm registry, run by node. npm puts it into the user's cache folder,
once.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.prometheus_server import Row

Json = dict[str, Any]
VERSIONS = {7: "7.5.17", 13: "13.2.3"}
SCRIPT = Path(__file__).with_name("grafana_panel.js")
_INSTALLS_WITHIN_S = 280.0
_NOW_MS = 1_700_000_000_000


def shown(major: int, jobs: Sequence[tuple[Json, list[Json]]]) -> list[list[Json]]:
    """What that Grafana makes of panels with their frames.

    Returns:
        For each panel its columns, or its values, as grafana_panel.js has them.
    """
    text = json.dumps([{"panel": panel, "frames": frames} for panel, frames in jobs])
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, SCRIPT, library(major)], input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: list[list[Json]] = json.loads(done.stdout)
    return found


@lru_cache
def library(major: int) -> Path:
    """The library's folder. Without npm or registry the test is skipped, or fails if CI is set."""
    version = VERSIONS[major]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "orchestrator-tests" / f"grafana-data-{version}"
    if not folder.exists():
        npm, node = shutil.which("npm"), shutil.which("node")
        if npm is None or node is None:
            _not_here("no `npm` and `node` on the path; on Debian: apt-get install npm")
        assert npm is not None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            command = [npm, "install", "--prefix", temporary, "--ignore-scripts", "--no-audit",
                       "--no-fund", f"@grafana/data@{version}"]  # fmt: skip
            try:
                subprocess.run(
                    command, check=True, capture_output=True, text=True, timeout=_INSTALLS_WITHIN_S
                )
            except subprocess.TimeoutExpired:
                _not_here(f"npm did not end within {_INSTALLS_WITHIN_S:g} s")
            except subprocess.CalledProcessError as error:
                _not_here(f"npm does not install @grafana/data: {error.stderr}")
            try:
                os.rename(temporary, folder)  # whole, or not at all
            except OSError:
                assert folder.exists()  # another process was quicker
            else:
                Path(temporary).mkdir()  # which is removed now
    return folder / "node_modules" / "@grafana" / "data"


def _not_here(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def frames(panel: Json, answers: Sequence[Iterable[Row]]) -> list[Json]:
    """A panel's instant queries as Grafana's Prometheus data source gives them, in 7 as in 13.

    From `result_transformer.ts`: for a table one frame a query, with a column for each label;
    otherwise one frame a row, which holds its labels. A query without an answer gives no frame.
    """
    found = []
    for target, rows in zip(panel["targets"], answers, strict=True):
        rows = list(rows)
        if target.get("format") == "table":
            if rows:
                alone = len(panel["targets"]) == 1
                name = "Value" if alone else f"Value #{target['refId']}"
                found.append(_table(target["refId"], name, rows))
        else:
            found += [_series(target, row) for row in rows]
    return found


def _table(ref: str, value: str, rows: list[Row]) -> Json:
    labels = sorted({label for row in rows for label in row.labels})
    columns = [
        {"name": label, "type": "string", "values": [r.labels.get(label, "") for r in rows]}
        for label in labels
    ]
    numbers = {"name": value, "type": "number", "values": [_number(r.value) for r in rows]}
    return {"refId": ref, "fields": [_time(len(rows)), *columns, numbers]}


def _series(target: Json, row: Row) -> Json:
    name = target.get("legendFormat", "")
    for label, value in row.labels.items():
        name = name.replace(f"{{{{{label}}}}}", value)
    config = {"displayNameFromDS": name} if name else {}
    column = {
        "name": "Value", "type": "number", "labels": row.labels, "config": config,
        "values": [_number(row.value)],
    }  # fmt: skip
    return {"refId": target["refId"], "name": name or None, "fields": [_time(1), column]}


def _time(length: int) -> Json:
    return {"name": "Time", "type": "time", "values": [_NOW_MS] * length}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
