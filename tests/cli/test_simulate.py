"""``orchestrator simulate``: CONTRACT's keys, exit codes, and the files of ``--out``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.plan import shipped_names
from tests.cli.command import command, refused

TIMES = (
    "compute_time_s", "exposed_communication_time_s", "wait_time_s", "bubble_time_s",
    "loading_time_s", "other_time_s",
)  # fmt: skip
TIMING = {
    "step_time_s", *TIMES, "communication_time_s", "overlap_ratio", "bytes_sent", "images_per_s",
    "peak_memory_bytes",
}  # fmt: skip
ONLY_SIMULATED = {
    "simulate_wall_s", "fits", "epoch_time_s", "dollars_per_epoch", "kWh_per_epoch",
    "goodput_ratio",
}  # fmt: skip


def simulated(plan: str, cluster: str, *more: str) -> dict[str, Any]:
    ended = command("simulate", "--plan", plan, "--cluster", cluster, "--json", *more)
    found: dict[str, Any] = json.loads(ended.out)
    assert ended.code == (0 if found["fits"] else 1)
    assert found["fits"] == (ended.err == "")  # where it does not fit, what would
    return found


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_shares_of_every_rank_add_up_to_the_step(name: str) -> None:
    found = simulated(name, "dgx1-p100")
    assert found.keys() >= TIMING | ONLY_SIMULATED | {"ranks"}
    for row in (found, *found["ranks"]):
        assert row.keys() >= TIMING
        assert sum(row[key] for key in TIMES) == pytest.approx(row["step_time_s"], rel=1e-9)
        assert min(row[key] for key in TIMES) >= -1e-12
        assert row["images_per_s"] == pytest.approx(128 / row["step_time_s"])


@pytest.mark.parametrize("name", shipped_names("partitions"))
def test_what_is_sent_is_what_show_says(name: str) -> None:
    """Of replicas that are alike one is simulated, and once its bytes were told as those of all."""
    shown = json.loads(command("show", name, "--json").out)
    found = simulated(name, "dgx1-p100")
    assert found["bytes_sent"] == shown["bytes_per_step"] + shown["gradient_bytes_per_step"]
    for row, rank in zip(found["ranks"], shown["ranks"], strict=False):
        assert row["bytes_sent"] == (
            rank["activation_bytes_sent_per_step"] + rank["gradient_bytes_sent_per_step"]
        )


def test_the_same_call_gives_the_same_answer() -> None:
    first, second = (simulated("one-weird-trick-scatter", "gtx580x2") for _ in range(2))
    first.pop("simulate_wall_s")
    second.pop("simulate_wall_s")
    assert first == second


def test_what_does_not_fit_exits_1() -> None:
    big = ("--set", "global_batch_size=4096")
    assert simulated("krizhevsky2012", "gtx580x2", *big)["fits"] is False
    ended = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", *big)
    assert ended.code == 1
    assert "does not fit: rank 0 needs" in ended.err


def test_the_cluster_can_be_overridden() -> None:
    fast = simulated("data-parallel", "gtx580x2", "--set", "cluster.network.0.GBps=600")
    slow = simulated("data-parallel", "gtx580x2")
    assert fast["communication_time_s"] < slow["communication_time_s"] / 10


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out
    assert "60,030,976" in ended.out


def test_the_files_of_out(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    found = simulated("krizhevsky2012", "gtx580x2", "--out", str(out))
    written = json.loads((out / "summary.json").read_text())
    assert written["step_time_s"] == found["step_time_s"]
    rows = [json.loads(line) for line in (out / "timeline.jsonl").read_text().splitlines()]
    longest = max(rank["step_time_s"] for rank in found["ranks"])
    # rank 0 enters last, since it was the last to leave the step before
    assert found["step_time_s"] <= max(row["end"] for row in rows) <= 1.05 * longest
    trace = json.loads((out / "trace.json").read_text())
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == len(rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plan", "nonsense", "--cluster", "gtx580x2"), "nonsense"),
        (("--plan", "single", "--cluster", "nonsense"), "gtx580x2"),
        (("--plan", "single"), "--cluster"),
        (("--plan", "four-columns", "--cluster", "gtx580x2"), "4 ranks"),
        (("--plan", "single", "--cluster", "gtx580x2", "--set", "cluster.x=1"), "x"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused("simulate", *arguments)


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_folder_that_cannot_be_written_is_refused(below: str, tmp_path: Path) -> None:
    """Once a traceback."""
    (tmp_path / "file").write_text("")
    out = f"{tmp_path}/file{below}"
    message = refused("simulate", "--plan", "single", "--cluster", "gtx580x2", "--out", out)
    assert "cannot write" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
