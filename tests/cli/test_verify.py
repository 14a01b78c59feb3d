"""``orchestrator verify``: what it answers, and how it exits; and that it passes shipped plans."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from orchestrator.execute import transport
from orchestrator.plan import shipped_names
from tests.cli.command import SMALL, Ended, command, refused

NAMES = shipped_names("partitions")
KEYS = {
    "name", "deadlock_free", "ledger_exact", "loss_relative_error", "parameter_relative_error",
    "passed",
}  # fmt: skip


def verdicts(ended: Ended) -> list[dict[str, Any]]:
    found = json.loads(ended.out)
    assert found.keys() == {"plans"}
    plans: list[dict[str, Any]] = found["plans"]
    for plan in plans:
        assert plan.keys() >= KEYS
    return plans


def check_passed(ended: Ended, name: str) -> None:
    (plan,) = verdicts(ended)
    assert ended.code == 0, plan
    assert ended.err == ""
    assert plan["name"] == name
    assert plan["deadlock_free"] is plan["ledger_exact"] is plan["passed"] is True
    assert plan["loss_relative_error"] <= 1e-9
    assert plan["parameter_relative_error"] <= 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_plan_passes_with_its_smallest_batch(name: str) -> None:
    check_passed(command("verify", name, *SMALL, "--json"), name)


@pytest.fixture
def all_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_plan_passes_at_the_models_real_sizes(name: str) -> None:
    """Three steps in float64 of 61 million parameters, dropout on; up to 6 GB."""
    check_passed(command("verify", name, "--json"), name)


def test_several_plans_are_told_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ("single", "krizhevsky2012", "one-weird-trick-broadcast")
    ended = command("verify", *names, *SMALL, "--steps", "1")
    assert (ended.code, ended.err) == (0, "")
    rows = [line.split() for line in ended.out.splitlines()]
    for name in names:
        (row,) = (r for r in rows if r[:1] == [name])
        assert row[1:3] == ["yes", "yes"]
        assert row[-1] == "yes"
        assert float(row[3]) <= 1e-9
        assert float(row[4]) <= 1e-9
    assert "…" not in ended.out


def test_float32_is_held_to_its_own_bound() -> None:
    ended = command("verify", "krizhevsky2012", *SMALL, "--dtype", "float32", "--json")
    (plan,) = verdicts(ended)
    assert ended.code == 0
    assert 1e-9 < plan["parameter_relative_error"] <= 1e-4


def test_bfloat16_is_held_to_what_rounding_explains() -> None:
    """With the optimizer and the sharding that the plan asks for."""
    asked = ("--set", "training.optimizer=adamw", "--set", "optimizer_sharding=zero1")
    ended = command("verify", "data-parallel", *SMALL, *asked, "--dtype", "bfloat16", "--json")
    (plan,) = verdicts(ended)
    assert ended.code == 0, ended.err
    assert 1e-4 < plan["parameter_relative_error"] < 0.3


def test_a_plan_that_trains_in_another_format_is_told_which_one_was_compared() -> None:
    bfloat16 = ("--set", "training.precision=bfloat16", "--steps", "1")
    ended = command("verify", "single", *SMALL, *bfloat16)
    assert ended.code == 0
    assert "against one device, float64" in ended.out
    assert ended.err == "single: training.precision is bfloat16; compared in float64\n"


def test_the_help_says_what_is_compared() -> None:
    told = " ".join(command("verify", "--help").out.split())
    assert "One device computes the whole network with torch's own modules" in told


SUMMED = "conv1: the gradient of conv1.weight, summed over those who share it, differs on rank 0"


@pytest.mark.parametrize("as_json", [True, False])
def test_a_plan_that_fails_exits_1_and_says_why_though_another_passes(
    as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_collect", lambda kind, tensors: None)  # sums nothing
    plans = ("single", "data-parallel")
    ended = command("verify", *plans, *SMALL, "--steps", "1", *["--json"] * as_json)
    assert ended.code == 1
    if as_json:
        assert [plan["passed"] for plan in verdicts(ended)] == [True, False]
        assert SUMMED in verdicts(ended)[1]["problems"][0]
    else:
        rows = [line.split() for line in ended.out.splitlines()]
        assert [row[-1] for row in rows if row[:1] and row[0] in plans] == ["yes", "no"]
        assert f"data-parallel: {SUMMED}" in ended.err


def test_the_batch_can_be_said() -> None:
    message = refused("verify", "data-parallel", "--batch", "3")
    assert "2 batch parts" in message
    (plan,) = verdicts(command("verify", "data-parallel", *SMALL, "--batch", "4", "--json"))
    assert plan["passed"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "0"), "--steps"),
        (("--batch", "0"), "--batch"),
        (("--dtype", "float16"), "not one of 'float64', 'float32', 'bfloat16'"),
        (("--set", "schedule=gpipe"), "GPipe"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_input_is_refused_before_anything_is_run(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("verify", "single", *arguments)
