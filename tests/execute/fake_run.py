"""A run on GPUs that are not there: the product's own worker, a thread for each rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, cast

import pytest
from torch import Tensor

from orchestrator.execute import device, distributed
from orchestrator.execute.cuda_environment import cuda_environment
from orchestrator.execute.distributed import NcclTransport
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.model import Recipe
from orchestrator.program import Program
from orchestrator.program.ops import Op
from orchestrator.train import worker
from orchestrator.train.checkpoint import Piece, Scale
from orchestrator.train.worker import Job, StepReport, job_of_rank
from tests.execute.fake_cuda import FakeCuda, FakeDevice, pin
from tests.execute.fake_nccl import FakeDist
from tests.execute.gpu_trace import Fault, Kind, Trace
from tests.execute.turns import Turns

RECIPE = Recipe(lr=0.1, seed=1)


@dataclass
class Ended:
    """What came of a run.

    Attributes:
        losses: of every step, the sum over the ranks.
        pieces: of the last checkpoint.
    """

    trace: Trace
    losses: dict[int, float] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def faults(self, *kinds: Kind) -> list[Fault]:
        """Of these kinds, or of all."""
        return [f for f in self.trace.faults() if not kinds or f.kind in kinds]


class NoMeter:
    """Stands in for a meter of the GPU's allocator."""

    def __init__(self, device: object) -> None:
        pass

    def peak_bytes(self) -> int:
        return 0

    def restart(self) -> None:
        pass

    def watching(self, held: int) -> AbstractContextManager[None]:
        return nullcontext()


def run(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    *,
    steps: int = 2,
    prompt: bool = False,
) -> Ended:
    """Train a few steps on a fake GPU for each rank.

    Args:
        prompt: see :class:`FakeCuda`.
    """
    trace = Trace()
    gpu = FakeCuda(trace, Turns(program.world_size), prompt=prompt)
    dist = FakeDist(gpu)
    _put_in_place(gpu, dist, monkeypatch)
    ended = Ended(trace)
    job = Job(program, RECIPE, f"synthetic:{4 * program.global_batch}", 0, steps)
    losses: defaultdict[int, dict[int, float]] = defaultdict(dict)

    def emit_of(rank: int) -> Callable[[str, object], None]:
        def emit(kind: str, payload: object) -> None:
            if isinstance(payload, StepReport):
                losses[payload.times.step][rank] = payload.loss
            elif kind == "checkpoint":
                _, piece = cast("tuple[int, Piece | None]", payload)
                if piece is not None:
                    ended.pieces.append(deepcopy(piece))

        return emit

    def host(rank: int) -> None:
        context = WorkerContext(
            rank=rank, world_size=program.world_size, local_rank=rank, node="localhost",
            driver_node="localhost", device="cuda:0", emit=emit_of(rank),
            stop_requested=lambda: False, listen=lambda kind, hear: None, timeout_s=60.0,
            driven=False,
        )  # fmt: skip
        try:
            with gpu.rank(rank):
                worker.train(context, job_of_rank(job, rank))
        except BaseException as error:
            ended.errors.append(error)

    threads = [Thread(target=host, args=(rank,), daemon=True) for rank in program.ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    trace.recording = False
    if ended.errors:
        raise ended.errors[0]
    ended.losses = {
        step: sum(parts[rank] for rank in sorted(parts)) for step, parts in sorted(losses.items())
    }
    return ended


def _put_in_place(gpu: FakeCuda, dist: FakeDist, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what would reach for a GPU or another process."""
    trace = gpu.trace
    for name, value in cuda_environment({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "cuda", gpu)
    monkeypatch.setattr(distributed, "dist", dist)
    monkeypatch.setattr(worker, "dist", dist)
    monkeypatch.setattr(worker, "MemoryMeter", NoMeter)
    monkeypatch.setattr(worker, "Cuda", lambda index, tf32: FakeDevice(gpu))
    monkeypatch.setattr(worker, "connect", NcclTransport)
    monkeypatch.setattr(worker, "clock_offsets", lambda *args: {})
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pin(gpu, tensor))

    post, compute, drive = RankInterpreter._post, RankInterpreter._compute, worker.drive

    def watched_post(self: RankInterpreter, op: Op) -> Any:
        trace.operation[self.rank] = str(op)
        messages = exchange_of(op)
        dist.exchange[self.rank] = messages and (self.number, *messages)
        return post(self, op)

    def watched_compute(self: RankInterpreter, op: Op, *args: Any) -> None:
        trace.operation[self.rank] = str(op)
        compute(self, op, *args)

    def watched_drive(interpreter: RankInterpreter, step: int) -> None:
        trace.in_step.add(interpreter.rank)
        drive(interpreter, step)
        trace.in_step.discard(interpreter.rank)

    monkeypatch.setattr(RankInterpreter, "_post", watched_post)
    monkeypatch.setattr(RankInterpreter, "_compute", watched_compute)
    monkeypatch.setattr(worker, "drive", watched_drive)


def exchange_of(op: Op) -> tuple[object, ...] | None:
    """Messages of a rank that are posted as one have the same; None for collectives."""
    return None if op.transfers is None else (op.id,)


Saved = dict[tuple[str, str, int], Tensor]


def saved(pieces: Iterable[Piece | Scale]) -> Saved:
    """What a checkpoint holds, by tensor, parameter with its tile, and where in it."""
    return {
        (p.name, f"{p.slot.name} {p.slot.tile}", p.start): p.values
        for p in pieces
        if isinstance(p, Piece)
    }
