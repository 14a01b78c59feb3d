"""Ray Train really starts here, once for the module; the worker functions are a few lines each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.execute.worker_context import (
    Cause,
    DriverLine,
    Event,
    Failure,
    WorkerContext,
    WorkerDone,
    WorkerFailed,
    WorkerLines,
    WorkerUp,
    failure_from,
    first_cause,
)

ray = pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]


class Recorder(list[tuple[int, str, object]]):
    """Keeps the events of a launch, in order of arrival."""

    def __call__(self, rank: int, kind: str, payload: object) -> None:
        self.append((rank, kind, payload))

    def of(self, rank: int, kind: str) -> list[object]:
        return [payload for r, k, payload in self if (r, k) == (rank, kind)]


# Without Ray: the socket and the choice of the cause.


def test_events_arrive_in_order_and_all_of_them() -> None:
    lines = WorkerLines("127.0.0.1")
    line = DriverLine(lines.address, lines.key, WorkerUp(0, 0, "here", "cpu", os.getpid()))
    for i in range(1000):
        line.emit("n", i)
    line.end(WorkerDone(0))
    got = []
    while (message := lines.next(1.0)) != WorkerDone(0):
        got.append(message)
    assert got == [WorkerUp(0, 0, "here", "cpu", os.getpid())] + [
        Event(0, "n", i) for i in range(1000)
    ]
    assert lines.open_lines() == 0
    lines.close()


def test_a_payload_may_be_changed_after_emit() -> None:
    lines = WorkerLines("127.0.0.1")
    line = DriverLine(lines.address, lines.key, WorkerUp(0, 0, "here", "cpu", 1))
    payload = [1]
    line.emit("list", payload)
    payload.append(2)
    line.end(WorkerDone(0))
    lines.next(1.0)
    assert lines.next(1.0) == Event(0, "list", [1])
    lines.close()


def test_the_driver_asks_to_stop() -> None:
    lines = WorkerLines("127.0.0.1")
    line = DriverLine(lines.address, lines.key, WorkerUp(0, 0, "here", "cpu", 1))
    assert not line.stop_requested()
    lines.stop()
    deadline = time.monotonic() + 5
    while not line.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert line.stop_requested()
    line.end(WorkerDone(0))
    lines.close()


def test_first_cause_is_not_the_peer_that_complains_first() -> None:
    peer = failure_from(0, RuntimeError("[gloo/transport/tcp] Connection closed by peer"))
    late = failure_from(0, RuntimeError("[gloo/unbound_buffer] Timed out waiting 8000ms for recv"))
    died = Failure(1, Cause.DIED, "its process ended without a word")
    raised = failure_from(1, ValueError("fc6 is not there"))
    user = failure_from(2, InputError("no such plan"))
    assert (peer.cause, late.cause, raised.cause) == (Cause.PEER_LOST, Cause.TIMED_OUT, Cause.OWN)
    assert first_cause([peer, died]) is died
    assert first_cause([late, died]) is late  # the launcher ended the others after the timeout
    assert first_cause([peer, raised, died]) is raised
    assert first_cause([raised, user]) is user


# With Ray.


def _add(context: WorkerContext, count: int) -> None:
    import torch
    import torch.distributed as dist

    total = torch.ones(2) * (context.rank + 1)
    dist.all_reduce(total)
    context.emit("sum", total.tolist())
    context.emit("threads", torch.get_num_threads())
    context.emit("folder", os.getcwd())
    context.emit("context", (context.world_size, context.local_rank, context.device))
    for i in range(count):
        context.emit("n", i)


def _raise(context: WorkerContext, kind: str) -> None:
    import torch.distributed as dist

    if context.rank == 1:
        raise InputError("no class 11", "plan.yaml:3") if kind == "input" else KeyError("fc6")
    dist.barrier()


def _die(context: WorkerContext, _: None) -> None:
    import torch.distributed as dist

    context.emit("dies at", time.time())
    time.sleep(0.3)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from orchestrator.execute import ray_launch

    with ray_launch._environment(), ray_launch._connected("local", 2, lambda text: None):
        yield


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_every_event_arrives_before_launch_returns(cluster: None) -> None:
    from orchestrator.execute.ray_launch import launch

    events = Recorder()
    launch(_add, lambda _: 500, world_size=2, on_event=events, threads_per_worker=1)
    for rank in (0, 1):
        assert events.of(rank, "sum") == [[3.0, 3.0]]
        assert events.of(rank, "n") == list(range(500))
        assert events.of(rank, "threads") == [1]
        assert events.of(rank, "folder") == [os.getcwd()]
        assert events.of(rank, "context") == [(2, rank, "cpu")]
    status = events.of(-1, "status")
    assert status[0] == "waiting for 2 workers"
    assert str(status[1]).startswith("workers up: ranks 0-1 on node ")


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_killed_worker_ends_the_run_in_seconds_and_is_named(cluster: None) -> None:
    from orchestrator.execute.ray_launch import launch

    events = Recorder()
    with pytest.raises(WorkerFailed, match="rank 1 failed: its process") as caught:
        launch(_die, lambda _: None, world_size=2, on_event=events)
    (dies_at,) = events.of(1, "dies at")
    assert isinstance(dies_at, float)
    assert caught.value.rank == 1
    assert time.time() - dies_at < 10


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["input", "other"])
def test_a_worker_exception_comes_back_as_one_message(cluster: None, kind: str) -> None:
    from orchestrator.execute.ray_launch import launch

    expected = InputError if kind == "input" else WorkerFailed
    with pytest.raises(expected) as caught:
        launch(_raise, lambda _: kind, world_size=2, on_event=Recorder())
    if isinstance(caught.value, WorkerFailed):
        assert str(caught.value) == "rank 1 failed: KeyError: 'fc6'"
        assert "_raise" in caught.value.traceback_text
    else:
        assert str(caught.value) == "plan.yaml:3: no class 11"


@pytest.mark.ray
def test_too_many_workers_are_refused_with_numbers(cluster: None) -> None:
    from orchestrator.execute.ray_launch import launch

    with pytest.raises(InputError, match=r"needs 99 workers .* holds \d+ in all") as caught:
        launch(_add, lambda _: 1, world_size=99, on_event=Recorder())
    assert "fewer ranks" in caught.value.remedy
    with pytest.raises(InputError, match="need 2 GPUs"):
        launch(_add, lambda _: 1, world_size=2, use_gpu=True, on_event=Recorder())


@pytest.mark.ray
def test_a_busy_cluster_is_told_from_a_small_one(cluster: None) -> None:
    from orchestrator.execute.ray_launch import launch

    class Holder:
        def ready(self) -> None: ...

    holder = ray.remote(num_cpus=ray.cluster_resources()["CPU"] - 1)(Holder).remote()
    ray.get(holder.ready.remote())
    try:
        with pytest.raises(InputError, match="but has 1 free now") as caught:
            launch(_add, lambda _: 1, world_size=2, on_event=Recorder())
        assert "wait until other jobs end" in caught.value.remedy
    finally:
        ray.kill(holder)


@pytest.mark.ray
def test_ray_train_restarts_nothing_behind_the_drivers_back() -> None:
    """Left alone it would start all workers anew, without end, where a node was preempted."""
    import ray.train.torch  # noqa: F401  (first: the modules below import it in a circle)
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2._internal.execution.failure_handling import FailureDecision
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

    from orchestrator.execute import ray_launch

    taken_away: Any = SimpleNamespace(preempted_ranks=[1])
    failures = [
        WorkerGroupError("a worker died", {1: RuntimeError("killed")}),
        ControllerError(WorkerGroupStartupTimeoutError(2)),
        PreemptionError(taken_away),
    ]
    for failure in failures:
        decision = DefaultFailurePolicy(ray_launch._one_attempt()).make_decision(failure)
        assert decision is FailureDecision.RAISE


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    from orchestrator.execute import ray_launch

    with pytest.raises(InputError, match="no Ray cluster answers at 127.0.0.1:1"):
        ray_launch._attach("127.0.0.1:1", {}, lambda text: None)
    with pytest.raises(InputError, match="not one a driver can join"):
        ray_launch._attach("http://127.0.0.1:8265", {}, lambda text: None)


# torchrun needs no Ray.


def test_two_ranks_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import torch, torch.distributed as dist
        from orchestrator.execute.torchrun_launch import run_under_torchrun

        def add(context, start):
            total = torch.ones(1) * (start + context.rank)
            dist.all_reduce(total)
            context.listen(str, print)  # and hears nothing, for there is no driver
            context.emit("sum", (total.item(), context.world_size, context.device))

        def show(rank, kind, payload):
            print(f"<{rank} {kind} {payload}>", flush=True)  # one write a line

        run_under_torchrun(add, lambda rank: 10, 30.0, show)
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"<{rank} sum (21.0, 2, 'cpu')>" in done.stdout


def test_outside_torchrun_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.execute.torchrun_launch import run_under_torchrun

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="not started by torchrun: RANK"):
        run_under_torchrun(lambda *_: None, lambda rank: None, 1.0, Recorder())
