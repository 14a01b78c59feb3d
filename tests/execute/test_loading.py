"""Waiting for data is told apart from computation, and is as long as it was made to be.

It once counted as the forward's computation, so a slow disk looked like a slow processor.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from orchestrator.execute.device import Cpu
from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.model import Recipe
from orchestrator.observe.accounting import Accountant, Shares
from orchestrator.observe.timeline import join
from orchestrator.program import Program
from orchestrator.program.ops import F
from orchestrator.train import worker
from orchestrator.train.data import Indices
from orchestrator.train.data.synthetic import Synthetic
from orchestrator.train.worker import Job, job_of_rank
from tests.program.small import LENET, small_program

DELAY_S = 0.4
TOLERANCE = 0.1
WHOLE = ("layers: conv1..fc5, ranks: [0], split: none",)
STAGES = (
    "layers: conv1..pool1, ranks: [0], split: none",
    "layers: conv2..pool2, ranks: [1], split: none",
    "layers: fc3..fc5, ranks: [2], split: none",
)


class SlowFeed(RandomFeed):
    """Takes its time for the first images and labels of step 1."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.model, program.global_batch)
        # Seconds in step 1; a busy machine sleeps longer than asked.
        self.spent: defaultdict[str, float] = defaultdict(float)

    def images(self, step: int, samples: Tensor) -> Tensor:
        with self._slow("images", step):
            return super().images(step, samples)

    def labels(self, step: int, samples: Tensor) -> Tensor:
        with self._slow("labels", step):
            return super().labels(step, samples)

    @contextmanager
    def _slow(self, what: str, step: int) -> Iterator[None]:
        begun = time.perf_counter()
        if step == 1 and what not in self.spent:
            time.sleep(DELAY_S)
        yield
        if step == 1:
            self.spent[what] += time.perf_counter() - begun


class SlowCopies(Cpu):
    """A device to which a copy of images keeps the host waiting."""

    spent = 0.0

    def load(self, tensor: Tensor) -> Tensor:
        begun = time.perf_counter()
        if tensor.is_floating_point():
            time.sleep(DELAY_S)
            self.spent += time.perf_counter() - begun
        return tensor


def check_adds_up(shares: Shares) -> None:
    parts = (
        shares.compute_time_s, shares.exposed_communication_time_s, shares.wait_time_s,
        shares.bubble_time_s, shares.loading_time_s, shares.other_time_s,
    )  # fmt: skip
    assert sum(parts) == pytest.approx(shares.step_time_s)
    assert min(parts) >= 0


@pytest.mark.parametrize("microbatches", [1, 4])
def test_each_end_of_a_pipeline_waits_for_its_own_data(microbatches: int) -> None:
    """Images at the first stage, labels at the last; the stage between reads neither."""
    program = small_program(LENET, *STAGES, batch=8, more=f"n_microbatches: {microbatches}")
    feed = SlowFeed(program)
    executor = LocalExecutor(program, feed, Recipe())
    for step in (0, 1):  # the first one sets up caches
        executor.step(step)
    times = executor.times()
    assert set(times.loading) == {
        op.id for op in program.ops() if op.kind == F and op.rank in (0, 2)
    }  # fmt: skip
    for i, (low, high) in times.loading.items():
        assert low <= high == times.start[i] == times.ready[i]
    ranks = Accountant(program).account(times).ranks
    assert min(feed.spent.values()) >= DELAY_S
    assert ranks[0].loading_time_s == pytest.approx(feed.spent["images"], rel=TOLERANCE)
    assert ranks[1].loading_time_s == 0
    assert ranks[2].loading_time_s == pytest.approx(feed.spent["labels"], rel=TOLERANCE)
    for shares in ranks.values():
        check_adds_up(shares)


def test_a_copy_that_blocks_is_loading() -> None:
    program = small_program(LENET, *WHOLE, batch=4)
    feed = RandomFeed(program.model, program.global_batch)
    device = SlowCopies()
    executor = LocalExecutor(program, feed, Recipe(), device=device)
    executor.step(0)
    (shares,) = Accountant(program).account(executor.times()).ranks.values()
    assert shares.loading_time_s == pytest.approx(device.spent, rel=TOLERANCE)
    check_adds_up(shares)


class SlowImages(Synthetic):
    """A data set of which every batch takes its time."""

    def images(self, indices: Indices) -> Tensor:
        time.sleep(DELAY_S)
        return super().images(indices)

    def labels(self, indices: Indices) -> Tensor:
        ENDED.append(time.perf_counter())
        return super().labels(indices)


ENDED: list[float] = []  # when each batch's images were there


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_worker_waits_for_what_is_not_loaded_ahead_in_time(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is begun when the one before has been taken, so a step that computes next to nothing
    waits for nearly all of it; and however busy the machine is, from when it asks to the end."""
    ENDED.clear()
    data = SlowImages(size=64, shape=(1, 16, 16), classes=10, seed=0)
    monkeypatch.setattr(worker, "open_for", lambda *_: data)
    program = small_program(LENET, *WHOLE, batch=4)
    emitted: list[tuple[str, Any]] = []
    context = WorkerContext(
        rank=0, world_size=1, local_rank=0, node="here", driver_node="here", device="cpu",
        emit=lambda kind, payload: emitted.append((kind, payload)),
        stop_requested=lambda: False, listen=lambda kind, hear: None, timeout_s=60, driven=True,
    )  # fmt: skip
    job = Job(program, Recipe(), "slow", start=0, stop=4)
    worker.train(context, job_of_rank(job, 0))
    accountant = Accountant(program)
    records = [payload.times for kind, payload in emitted if kind == "step"]
    assert len(records) == len(ENDED) == 4
    waited = []
    for record, ended in zip(records, ENDED, strict=True):
        ((asked, _),) = record.loading.values()
        shares = accountant.account(join(program, [record], {})).ranks[0]
        check_adds_up(shares)
        expected = max(0.0, ended - asked)
        assert shares.loading_time_s == pytest.approx(expected, abs=DELAY_S * TOLERANCE)
        waited.append(shares.loading_time_s)
    assert max(waited[1:]) > DELAY_S / 2
