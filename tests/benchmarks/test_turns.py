"""Calibration and runs in turns leave what ``calibrate`` and ``run`` would have left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import turns
from benchmarks.oneself import report, told_apart
from tests.cli.command import command
from tests.small_network import SMALL

PLAN = f"""\
schema_version: 1
name: small
model: {SMALL}
global_batch_size: 8
placement:
  - {{layers: conv1..fc8, ranks: [0], split: none}}
"""


@pytest.mark.ray
def test_two_plans_and_their_calibration_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("single", "krizhevsky2012")
    plan = tmp_path / "small.yaml"
    plan.write_text(PLAN)
    monkeypatch.setattr(turns, "BATCH", 8)
    monkeypatch.setattr(turns, "CALIBRATED", (str(plan),))
    monkeypatch.setattr(turns, "SETTINGS", dict.fromkeys(names, (f"model={SMALL}",)))
    turns.take_turns(tmp_path / "turns", 3, names)

    runs = [tmp_path / "turns" / name for name in names]
    for run in runs:
        steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        assert [step["step"] for step in steps] == [1, 3, 5]  # the second of each two
        summary = json.loads((run / "summary.json").read_text())
        assert summary["ledger_exact"] is True
        assert summary["peak_memory_bytes"] > 0
    cluster = str(tmp_path / "turns" / "here.yaml")
    ended = command("compare", *map(str, runs), "--cluster", cluster, "--json")
    assert ended.code == 0, ended.err
    items = json.loads(ended.out)["items"]
    assert [item["name"] for item in items] == list(names)
    assert all(item["error_ratio"] is not None for item in items)


def test_the_report_is_of_medians(capsys: pytest.CaptureFixture[str]) -> None:
    def row(name: str, times: list[float], predicted: float) -> dict[str, object]:
        exposed = {"exposed_communication_time_s": 0.25}
        return {
            "name": name,
            "steps": [{"step_time_s": t, **exposed} for t in times],
            "measured": {"peak_memory_bytes": 100e6},
            "predicted": {"step_time_s": predicted, "peak_memory_bytes": 90e6, **exposed},
        }

    rows = [
        row("a", [1.0, 2.0, 9.0], 2.2),  # quartiles 1.5 and 5.5
        row("b", [4.0, 4.0, 4.0], 3.0),
        row("c", [8.0, 8.0, 8.0], 8.0),
    ]
    report(rows)
    told = capsys.readouterr().out
    assert (
        "| a | 2.000 | 1.50 to 5.50 | 2.200 | +10.0% | 0.2500 | 0.250 to 0.250 | 0.2500 "
        "| 100 | 90 (-10%) |"
    ) in told
    assert "mean absolute error 11.7%, worst 25.0%, Kendall's tau 1.00" in told
    assert told_apart(rows) == 2  # a and b overlap
