"""What a lane's thread does with a rank's transfers over gloo: one after another, in order."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from orchestrator.execute import distributed
from orchestrator.execute.distributed import GlooTransport
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of

GROUP = (0, 1)


class Dist:
    """Stands in for torch.distributed: an all-reduce doubles, takes a while, and fails on zeros."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def new_group(self, ranks: list[int]) -> object:
        return tuple(ranks)

    def all_reduce(self, tensor: Tensor, group: object) -> None:
        assert group == GROUP
        assert self.lock.acquire(blocking=False), "two at a time"
        time.sleep(0.02)
        self.lock.release()
        if not tensor.any():
            raise RuntimeError("nothing to reduce")
        tensor *= 2


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> GlooTransport:
    monkeypatch.setattr(distributed, "dist", Dist())
    plan = load_plan("data-parallel", ["model.width=0.0625", "model.image_size=64"])
    return GlooTransport(compile_plan(plan, model_of(plan)), rank=0)


def test_collectives_are_posted_at_once_and_carried_out_one_after_another(
    transport: GlooTransport,
) -> None:
    tensors = [torch.full((2,), float(i + 1)) for i in range(4)]
    handles = [transport.collective("ALL_REDUCE", tensor, GROUP) for tensor in tensors]
    assert not handles[-1].done()
    handles[-1].wait()
    assert all(handle.done() for handle in handles)
    assert [tensor[0].item() for tensor in tensors] == [2, 4, 6, 8]
    marks = [handle.marks() for handle in handles]
    for (_, ended), (started, _) in zip(marks, marks[1:], strict=False):
        assert ended <= started


def test_a_collective_that_fails_is_never_done_and_the_next_one_goes_on(
    transport: GlooTransport,
) -> None:
    failed = transport.collective("ALL_REDUCE", torch.zeros(2), GROUP)
    following = transport.collective("ALL_REDUCE", torch.ones(2), GROUP)
    with pytest.raises(RuntimeError, match="nothing to reduce"):
        failed.wait()
    following.wait()
    assert following.done()
    assert not failed.done()
