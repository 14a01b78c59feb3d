"""Runs over real Ray workers: the local run's bits, the predicted bytes, and clean ends.

Two workers of one Ray cluster for the module; the interrupted run, first, starts a Ray of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cli.run_view import LineView
from orchestrator.execute.worker_context import WorkerUp
from orchestrator.observe.accounting import Account
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.ledger import Edge, edges
from orchestrator.program.resolve import model_of
from tests import own_kinds
from tests.train.small_runs import (
    check_consistent,
    checkpoint,
    lines,
    losses,
    plan_file,
    run,
    same,
    summary,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
pytest.importorskip("ray")

_ENDS_WITHIN_S = 15


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie has ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True)
    states = dict(line.split() for line in listed.stdout.splitlines())
    return [pid for pid in pids if not states.get(str(pid), "Z").startswith("Z")]


def gone(pids: list[int]) -> bool:
    """Whether all end within the time a user has patience for."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pids)


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that these have."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    parents = {int(p): int(pp) for p, pp in map(str.split, listed.stdout.splitlines())}
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def test_ctrl_c_ends_a_run_in_seconds_and_leaves_no_process(tmp_path: Path) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it."""
    plan, out = plan_file(tmp_path, "columns"), tmp_path / "out"
    command = [sys.executable, "-m", "orchestrator.run", "--plan", str(plan), "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*command, "--steps", "1000000", "--checkpoint-every", "2"], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("step "):
                break
        assert process.poll() is None, told
        time.sleep(0.5)  # well inside a step, or a checkpoint
        started = descendants(process.pid)
        assert len(started) >= 4, "the raylet, its store and two workers at least"
        os.killpg(process.pid, signal.SIGINT)
        rest, err = process.communicate(timeout=_ENDS_WITHIN_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in "".join(told) + rest + err
    assert err.strip() == "interrupted"
    assert f"interrupted; {out} holds the steps that ended" in rest
    assert gone(started)
    check_consistent(out)
    found = summary(out)
    assert found["interrupted"] is True
    assert found["steps"] >= 1


def test_no_cluster_at_the_address_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ended = run(plan_file(tmp_path, "columns"), tmp_path / "out", 1, launcher="ray")
    assert ended.code == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from orchestrator.execute import ray_launch

    with ray_launch._environment(), ray_launch._connected("local", 2, lambda text: None):
        yield


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """By rank, the process ids of the workers of the next run, one thread each."""
    from orchestrator.execute import ray_launch

    found: dict[int, int] = {}
    where = ray_launch._where

    def recorded(up: dict[int, WorkerUp]) -> str:
        found.update({rank: worker.pid for rank, worker in up.items()})
        return where(up)

    monkeypatch.setattr(ray_launch, "_where", recorded)
    one_thread = partial(ray_launch.launch, threads_per_worker=1)
    monkeypatch.setattr(ray_launch, "launch", one_thread)
    return found


def test_a_run_over_ray_is_the_local_run_to_the_last_bit(
    cluster: None, workers: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sends, sums and a sharded optimizer; one thread a rank, so that sums have one order."""
    from orchestrator.train import run as driver

    sent: Counter[Edge] = Counter()
    event = driver.Collector.event

    def recorded(self: driver.Collector, rank: int, kind: str, payload: Any) -> None:
        if kind == "step":
            assert {edge.from_rank for edge in payload.sent} == {rank}
            sent.update(payload.sent)
        event(self, rank, kind, payload)

    plan, local, over_ray = plan_file(tmp_path, "everything"), tmp_path / "local", tmp_path / "ray"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run(plan, local, 4).code == 0
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(driver.Collector, "event", recorded)
    ended = run(plan, over_ray, 4, launcher="ray")
    assert (ended.code, ended.err) == (0, "")
    assert "workers up: ranks 0-1 on node" in ended.out

    assert losses(over_ray) == losses(local)
    assert same(checkpoint(over_ray, 4), checkpoint(local, 4))

    program = compile_plan(load_plan(plan), model_of(load_plan(plan)))
    predicted = edges(program)
    assert {edge.direction for edge in predicted} == {"forward", "backward", "gradient"}
    assert sent == Counter({edge: 4 * size for edge, size in predicted.items()})

    check_consistent(over_ray)
    found = summary(over_ray)
    assert (found["launcher"], found["ledger_exact"]) == ("ray", True)
    assert found["program"] == summary(local)["program"] == program.digest()
    assert all(row["peak_memory_bytes"] > 0 for row in found["ranks"])
    rows = lines(over_ray / "timeline.jsonl")
    assert [(row["step"], row["op"]) for row in rows] == [
        (step, op.id) for step in range(4) for op in program.ops()
    ]
    assert all(0 <= row["ready"] <= row["start"] <= row["end"] for row in rows)
    assert gone(list(workers.values()))


def test_kinds_of_ones_own_reach_the_workers(
    cluster: None, workers: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers can import neither a model file nor its neighbours by name; one of these is imported
    by a function that runs there."""
    folder, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    plan, local, over_ray = Path(own_kinds.plan(folder)), tmp_path / "local", tmp_path / "ray"
    monkeypatch.chdir(elsewhere)
    for number in range(8):  # files of other folders, whose neighbours are called alike
        other = tmp_path / f"other{number}"
        other.mkdir()
        stranger = load_plan(own_kinds.plan(other))
        (other / "later.py").write_text("")
        model_of(stranger)
    assert run(plan, local, 2).code == 0
    ended = run(plan, over_ray, 2, launcher="ray")
    assert ended.code == 0, ended.err
    assert losses(over_ray) == pytest.approx(losses(local), rel=1e-5)
    assert summary(over_ray)["ledger_exact"] is True


def test_a_loss_that_is_not_finite_names_a_layer_on_another_rank(
    cluster: None, workers: dict[int, int], tmp_path: Path
) -> None:
    """Rank 1 sees it in its loss; rank 0, which waits for a gradient, has the layer."""
    plan = plan_file(tmp_path, "stages")
    net = tmp_path / "net.py"
    net.write_text(net.read_text().replace("weight_std=0.3", "weight_std=2e38"))
    begun = time.monotonic()
    ended = run(plan, tmp_path / "out", 1_000_000, "--timeout", "60", launcher="ray")
    assert time.monotonic() - begun < 60
    assert ended.code == 1
    assert ended.err.startswith(
        "error: step 1: the loss on rank 1 is not finite; first in the forward: the parameters of "
        "conv1 on rank 0 are not finite\n"
    )
    assert "Traceback" not in ended.err + ended.out
    assert gone(list(workers.values()))


def test_a_killed_worker_is_named_and_ends_the_run(
    cluster: None, workers: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, killed_at = LineView.step, []

    def kill(self: LineView, step: int, loss: float, account: Account, rate: float) -> None:
        printed(self, step, loss, account, rate)
        if step == 2:
            killed_at.append(time.monotonic())
            os.kill(workers[1], signal.SIGKILL)

    monkeypatch.setattr(LineView, "step", kill)
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, "everything"), out, 1_000_000, launcher="ray")
    assert time.monotonic() - killed_at[0] < _ENDS_WITHIN_S
    assert ended.code == 1
    assert f"error: rank 1 failed: its process (pid {workers[1]} on " in ended.err
    assert f"{out} holds the steps that ended" in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert gone(list(workers.values()))
    check_consistent(out)
    assert summary(out)["interrupted"] is True
    assert summary(out)["steps"] >= 3


def test_an_interrupted_run_frees_the_workers_of_a_cluster_that_stays(
    cluster: None, workers: dict[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: LineView, step: int, loss: float, account: Account, rate: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LineView, "step", interrupt)
    out = tmp_path / "out"
    ended = run(plan_file(tmp_path, "columns"), out, 1_000_000, launcher="ray")
    assert ended.code == 130
    assert len(workers) == 2
    assert gone(list(workers.values()))
    check_consistent(out)


def test_more_workers_than_the_cluster_has_leave_no_folder(cluster: None, tmp_path: Path) -> None:
    import ray

    ranks = int(ray.cluster_resources()["CPU"]) + 1
    plan = plan_file(tmp_path, "data", batch=ranks)
    placement = f"placement.0.ranks=0..{ranks - 1}"
    out = tmp_path / "new" / "out"
    ended = run(plan, out, 1, "--set", placement, launcher="ray")
    assert ended.code == 2
    assert f"error: the run needs {ranks} workers" in ended.err
    assert "remedy: " in ended.err
    assert not (tmp_path / "new").exists()
