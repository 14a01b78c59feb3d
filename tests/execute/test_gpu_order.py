"""Training on GPUs that are not there: nothing is read, written or freed before its time.

The product's own worker runs, a thread for each rank; its streams, events and transfers are noted,
and every order that CUDA allows is looked at. Each fault that was once found so is put back, and
has to be found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.execute.device import Channel, Cuda
from orchestrator.execute.distributed import StreamHandle
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.local import LocalExecutor
from orchestrator.program import Program
from orchestrator.train import checkpoint, worker
from orchestrator.train.feed import DataFeed
from orchestrator.train.worker import Job, LateFeed, data_feed
from tests.execute.fake_nccl import FakeDist, Message, Work
from tests.execute.fake_run import RECIPE, run, saved
from tests.execute.gpu_trace import Kind
from tests.execute.test_local import PROGRAMS, program_of
from tests.execute.test_tied import MODEL, PLANS
from tests.program.small import small_program

EXCHANGING = ("columns", "turns")  # where a rank sends and receives at once
TIED = ("zero1", "two stages")


def tied(name: str) -> Program:
    entries, more = PLANS[name]
    return small_program(MODEL, *entries, batch=8, more=more)


def kinds(name: str, monkeypatch: pytest.MonkeyPatch, *, prompt: bool = False) -> set[Kind]:
    return {fault.kind for fault in run(program_of(name), monkeypatch, prompt=prompt).faults()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_has_no_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kinds(name, monkeypatch) == set()


@pytest.mark.parametrize("name", ["columns", "zero1", "zero bubble"])
def test_nor_where_the_gpu_is_ahead_of_its_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a transfer are let go as soon as the host is told that it has ended."""
    assert kinds(name, monkeypatch, prompt=True) == set()


@pytest.mark.parametrize("name", TIED)
def test_nor_has_one_with_borrowed_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent where they stand, and the step that changes them has to come behind it."""
    assert run(tied(name), monkeypatch).faults() == []


@pytest.mark.parametrize("name", ["columns", "zero1", "zero bubble"])
def test_it_trains_as_the_processor_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in losses, weights and velocities: what is run to warm up leaves nothing."""
    program = program_of(name)
    feed = LateFeed()
    executor = LocalExecutor(program, feed, RECIPE)
    job = Job(program, RECIPE, f"synthetic:{4 * program.global_batch}", 0, 3)
    with data_feed(job, executor.ranks) as feed.real:
        losses = [executor.step(step) for step in range(3)]
    expected = saved(p for rank in executor.ranks for p in checkpoint.pieces(rank))
    ended = run(program, monkeypatch, steps=3)
    assert list(ended.losses.values()) == losses
    found = saved(ended.pieces)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# -- faults put back ------------------------------------------------------------------------------


class Forgotten(dict[int, Any]):
    """Handles of which a step's end knows none."""

    def values(self) -> Any:
        return ()


def test_weights_that_are_gathered_behind_the_step_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No op of its step needs the last all-gather of a sharded optimizer. A handle on a stream is
    done as soon as it is posted, so nothing ordered the next forward behind it."""
    reset = RankInterpreter._reset

    def forget(self: RankInterpreter) -> None:
        reset(self)
        self.handles = Forgotten()

    monkeypatch.setattr(RankInterpreter, "_reset", forget)
    faults = run(program_of("zero1"), monkeypatch).faults(Kind.UNORDERED)
    assert any("ALL_GATHER0) writes it" in f.text and "(0F0) reads it" in f.text for f in faults)


def test_a_kernel_that_is_loaded_while_a_receive_spins_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The receive waits for a peer that waits for this rank, whose host waits for the receive."""
    monkeypatch.setattr(worker, "warm_up", lambda interpreter, step: None)
    faults = run(program_of("pipeline"), monkeypatch).faults(Kind.LAZY)
    assert any("rank 1: convolution" in f.text or "rank 1: addmm" in f.text for f in faults)
    assert all("may spin" in f.text for f in faults)


@pytest.mark.parametrize("name", EXCHANGING)
def test_an_exchange_that_is_not_one_group_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA promises no progress between streams: of two ranks one may begin with what it sends, and
    the other with its own send."""

    def apart(self: FakeDist, operations: list[Message]) -> list[Work]:
        return [self._exchange([operation]) for operation in operations]

    monkeypatch.setattr(FakeDist, "batch_isend_irecv", apart)
    faults = run(program_of(name), monkeypatch).faults(Kind.SPLIT)
    assert {f.text.split(":")[0] for f in faults} == {"rank 0", "rank 1"}


def test_a_buffer_that_is_freed_before_its_transfer_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory would be the next tensor's, while the send still reads it."""
    made = StreamHandle.__init__

    def holds_nothing(
        self: StreamHandle, device: Cuda, channel: Channel, began: Any, tensors: Sequence[Tensor]
    ) -> None:
        made(self, device, channel, began, ())

    monkeypatch.setattr(StreamHandle, "__init__", holds_nothing)
    faults = run(program_of("columns"), monkeypatch).faults(Kind.FREED)
    assert any("SEND" in f.text for f in faults)


def test_one_that_is_let_go_once_it_has_been_posted_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lane's next transfer lets go of those that the device has ended, and of no others."""
    monkeypatch.setattr(Cuda, "reached", lambda self, mark: True)
    faults = run(program_of("zero bubble"), monkeypatch).faults(Kind.FREED)
    assert any("SEND" in f.text for f in faults)


def test_images_that_are_pinned_within_the_step_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cuda, "load", lambda self, x: x.pin_memory().to(self.torch))
    faults = run(program_of("data"), monkeypatch).faults()
    assert {f.kind for f in faults} == {Kind.PINNED}
    assert {f.text.split(":")[0] for f in faults} == {"rank 0", "rank 1", "rank 2"}


def test_so_is_staging_memory_that_is_made_for_every_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = DataFeed._load

    def afresh(self: DataFeed, step: int) -> Any:
        self._stagings = None
        return load(self, step)

    monkeypatch.setattr(DataFeed, "_load", afresh)
    assert run(program_of("data"), monkeypatch, steps=4).faults(Kind.PINNED)
