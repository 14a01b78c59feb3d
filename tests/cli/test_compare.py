"""``orchestrator compare``: plans, a run beside its prediction, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.observe.run_record import read_run
from orchestrator.plan import load_plan
from orchestrator.simulate.compare import error_ratios
from tests.cli.command import SMALL, command, refused

GTX = ("--cluster", "gtx580x2")
KEYS = {
    "items", "networks", "ranking", "winner", "because", "mean_absolute_error_ratio",
    "worst_error_ratio", "kendall_tau",
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


def test_different_networks_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    """The half as wide network once won by its images a second, without a word."""
    page = tmp_path / "page.html"
    call = ("compare", "single", "krizhevsky2012", "krizhevsky2012-half", "--cluster", "gtx580x2")
    found = json.loads(command(*call, "--json").out)
    assert (found["ranking"], found["winner"]) == ([], None)
    (why,) = found["because"]
    assert why.startswith("alexnet2012 (60,965,224 parameters) and alexnet2012-half (")
    assert "different networks" in why
    first, second = found["networks"]
    assert (first["model"], first["winner"]) == ("alexnet2012", "krizhevsky2012")
    assert first["ranking"] == ["krizhevsky2012", "single"]
    assert "what decides is computation" in first["because"][1]
    assert (second["ranking"], second["winner"]) == (["krizhevsky2012-half"], None)
    assert {item["model"] for item in found["items"]} == {"alexnet2012", "alexnet2012-half"}
    told = command(*call, "--html", str(page)).out
    assert "different networks" in told
    assert "krizhevsky2012 wins among plans of alexnet2012\n" in told
    assert "half wins" not in told
    assert "different networks" in page.read_text()


def test_options_make_a_different_network(tmp_path: Path) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text(load_plan("single", ["model.width=0.5"]).to_yaml())
    found = json.loads(command("compare", "single", str(wide), *GTX, "--json").out)
    assert found["winner"] is None
    assert [network["model"] for network in found["networks"]] == ["alexnet2012"] * 2


def test_order_is_judged_within_a_network(tmp_path: Path) -> None:
    """Two runs of two networks give no pair whose order could be right or wrong."""
    outs = []
    for number, width in enumerate(("0.0625", "0.125")):
        outs.append(str(tmp_path / str(number)))
        options = ("--launcher", "local", "--steps", "2", "--out", outs[-1])
        words = (*options, *SMALL, "--set", f"model.width={width}")
        assert command("run", "--plan", "single", *words).code == 0
    found = json.loads(command("compare", *outs, *GTX, "--json").out)
    assert found["kendall_tau"] is None
    assert found["winner"] is None
    assert found["mean_absolute_error_ratio"] > 0


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
    assert {row["kind"] for row in item["ops"]} >= {"F", "B", "STEP", "EXCHANGE_F", "RECV_B"}
    assert read_run(out).op_seconds.keys() == set(range(43))
    (out / "timeline.jsonl").unlink()
    assert "incomplete: no timeline.jsonl" in refused("compare", str(out))


def test_a_plan_needs_a_cluster() -> None:
    assert "--cluster" in refused("compare", "single")


def test_errors_of_small_shares_are_told_as_shares_of_the_step() -> None:
    measured = {"step_time_s": 2.0, "compute_time_s": 1.0, "wait_time_s": 0.001}
    predicted = {"step_time_s": 1.0, "compute_time_s": 1.5, "wait_time_s": 0.101}
    found = error_ratios(predicted, measured)
    assert found == pytest.approx({"step_time_s": -0.5, "compute_time_s": 0.5, "wait_time_s": 0.05})
