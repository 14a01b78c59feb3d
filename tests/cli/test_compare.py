"""``orchestrator compare``: plans, a run beside its prediction, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.observe.run_record import read_run
from orchestrator.simulate.compare import error_ratios
from tests.cli.command import SMALL, command, refused

KEYS = {
    "items", "ranking", "winner", "because", "mean_absolute_error_ratio", "worst_error_ratio",
    "kendall_tau",
}  # fmt: skip


def test_plans_are_ranked_and_the_winner_explained() -> None:
    ended = command("compare", "single", "krizhevsky2012", "--cluster", "gtx580x2", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found.keys() >= KEYS
    assert found["ranking"] == ["krizhevsky2012", "single"]
    assert found["winner"] == "krizhevsky2012"
    assert "what decides is computation" in found["because"][1]
    assert found["kendall_tau"] is found["mean_absolute_error_ratio"] is None


def test_a_run_stands_beside_its_prediction(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--launcher", "local", "--steps", "3", "--out", str(out))
    assert command("run", "--plan", "krizhevsky2012", *options, *SMALL).code == 0
    found = json.loads(command("compare", str(out), "--cluster", "gtx580x2", "--json").out)
    (item,) = found["items"]
    measured, predicted = item["measured"]["step_time_s"], item["predicted"]["step_time_s"]
    assert item["error_ratio"] == pytest.approx(predicted / measured - 1)
    assert item["errors"]["bytes_sent"] == 0
    assert item["measured"]["loading_time_s"] > item["predicted"]["loading_time_s"] == 0
    assert "loading_time_s" in item["errors"]
    assert found["worst_error_ratio"] == abs(item["error_ratio"])
    assert {row["kind"] for row in item["ops"]} >= {"F", "B", "STEP", "SEND_F", "RECV_B"}
    assert read_run(out).op_seconds.keys() == set(range(55))
    (out / "timeline.jsonl").unlink()
    assert "incomplete: no timeline.jsonl" in refused("compare", str(out))


def test_a_plan_needs_a_cluster() -> None:
    assert "--cluster" in refused("compare", "single")


def test_errors_of_small_shares_are_told_as_shares_of_the_step() -> None:
    measured = {"step_time_s": 2.0, "compute_time_s": 1.0, "wait_time_s": 0.001}
    predicted = {"step_time_s": 1.0, "compute_time_s": 1.5, "wait_time_s": 0.101}
    found = error_ratios(predicted, measured)
    assert found == pytest.approx({"step_time_s": -0.5, "compute_time_s": 0.5, "wait_time_s": 0.05})
