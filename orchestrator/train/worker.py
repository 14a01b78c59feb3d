"""What every worker of a run does: connect, build its part, train step after step, report."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.cuda_environment import check_cuda_environment
from orchestrator.execute.device import Cpu, Cuda, Device
from orchestrator.execute.distributed import clock_offsets, connect
from orchestrator.execute.host_memory import keep_freed_memory
from orchestrator.execute.interpreter import LossNotFinite, RankInterpreter, Unread
from orchestrator.execute.memory_meter import MemoryMeter
from orchestrator.execute.parameters import Slot, initial_value
from orchestrator.execute.warm_up import warm_up
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.model import Recipe
from orchestrator.models.value import INPUT, LABELS
from orchestrator.observe.metrics import Page, RankTotals, RunLabels, stage_of
from orchestrator.observe.metrics_options import LOOPBACK, is_loopback, worker_host
from orchestrator.observe.metrics_parts import Part, Parts
from orchestrator.observe.metrics_server import METRICS, PageServer, application
from orchestrator.observe.timeline import RankTimes
from orchestrator.program.ledger import Buffer, Edge
from orchestrator.program.ops import Program, RankProgram, Static
from orchestrator.train import checkpoint, divergence
from orchestrator.train.data import SampleOrder, open_for
from orchestrator.train.feed import DataFeed

P = TypeVar("P", bound=Static)


@dataclass(frozen=True)
class Job(Generic[P]):
    """What a run does; or, with one rank's part of the program, what that rank's worker is told.

    Args:
        data: as ``--data``.
        start, stop: first step, and the step to end before.
        resume: checkpoint file to take the weights from.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        timed: record every op's times.
        metrics: what the workers' metrics are labelled with, None for none.
        metrics_host: address at which the driver serves its own.
        series: of one rank, its pipeline stages and its metrics' series at zero.
    """

    program: P
    recipe: Recipe
    data: str
    start: int
    stop: int
    resume: Path | None = None
    checkpoint_every: int = 0
    timed: bool = True
    metrics: RunLabels | None = None
    metrics_host: str = LOOPBACK
    series: tuple[str, Part] | None = None

    def checkpoint_after(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        done = step + 1
        return done == self.stop or (
            self.checkpoint_every > 0 and done % self.checkpoint_every == 0
        )


def job_of_rank(job: Job[Program], rank: int, parts: Parts | None = None) -> Job[RankProgram]:
    """One rank's part of a job.

    Args:
        parts: of the program, where the run has metrics.
    """
    series = (stage_of(job.program, rank), parts.zero(rank)) if parts is not None else None
    shared = {field.name: getattr(job, field.name) for field in fields(job)}
    return Job(**{**shared, "program": job.program.for_rank(rank), "series": series})


@dataclass(frozen=True)
class StepReport:
    """One rank's report of one step.

    Args:
        loss: this rank's part of the mean loss.
        sent: the bytes that it sent, of collectives the ring equivalent.
        handed: the buffers that it handed to collectives.
    """

    loss: float
    times: RankTimes
    sent: Counter[Edge]
    handed: Counter[Buffer]


def train(context: WorkerContext, job: Job[RankProgram]) -> None:
    """Run one rank of a job.

    Emits ``offsets`` (rank 0), ``device``, ``metrics``, ``step``, ``checkpoint`` and ``end``; and
    ``diverged`` and ``examined`` where a loss or a parameter is not finite.

    Raises:
        Diverged: so it is, and nobody else ends this rank.
        InputError: CUDA is set up in a way that a run refuses.
    """
    program, recipe = job.program, job.recipe
    device, tf32 = None, program.precision.compute == "tfloat32"
    if context.device != "cpu":
        check_cuda_environment(os.environ)
        device = Cuda(torch.device(context.device).index, tf32=tf32)
    elif tf32:
        raise InputError(
            f"rank {context.rank} computes on a processor, which has no products in tfloat32",
            "training.precision",
            "training.precision: float32",
        )
    else:
        keep_freed_memory()
    transport = connect(program, device, context.timeout_s)
    offsets = clock_offsets(context.rank, context.world_size, context.timeout_s)
    if offsets:
        context.emit("offsets", offsets)
    meter = MemoryMeter(device)
    name = device.name if device else "cpu"
    context.emit("device", (dist.get_backend(), name))
    wholes: dict[str, Tensor] = {}

    def value(slot: Slot) -> Tensor:
        return initial_value(slot, recipe.seed, wholes)

    feed = LateFeed()
    with serving_metrics(context, job, meter):
        interpreter = RankInterpreter(program, transport, feed, recipe, device or Cpu(), value)
        wholes.clear()
        if job.resume is not None:
            state = checkpoint.load(job.resume, program.model, recipe.updates)
            checkpoint.restore(interpreter, state)
        divergence.answer(context, interpreter)
        gc.collect()
        with data_feed(job, [interpreter], device) as feed.real:
            if device is not None and job.start < job.stop:
                feed.real.begin(job.start)  # which may make its pinned memory now, not later
                warm_up(interpreter, job.start)
                meter.restart()
            context.emit("ready", None)
            train_steps(context, job, interpreter, meter)
    context.emit("end", meter.peak_bytes())


def train_steps(
    context: WorkerContext, job: Job[RankProgram], interpreter: RankInterpreter, meter: MemoryMeter
) -> None:
    """Train and report, step after step."""
    unread: Ended | None = None
    for step in range(job.start, job.stop):
        watched = meter.watching(interpreter.state_bytes()) if step == job.start else nullcontext()
        try:
            with watched:
                drive(interpreter, step)
        except LossNotFinite:
            if unread is not None:
                context.emit("step", report(unread))
            divergence.stop_at_loss(context, interpreter, step)
        except RuntimeError as error:
            divergence.explain(context, interpreter, error)
            raise
        if unread is not None:
            context.emit("step", report(unread))
        unread = ended(interpreter)
        saves = job.checkpoint_after(step)
        if context.device == "cpu" or saves or step + 1 == job.stop:
            context.emit("step", report(unread))  # reading waits for a GPU, not for a CPU
            unread = None
        if saves:
            divergence.check_saved(context, interpreter, step + 1)
            for piece in checkpoint.pieces(interpreter):
                context.emit("checkpoint", (step + 1, piece))
            context.emit("checkpoint", (step + 1, None))
            interpreter.rest()


@contextmanager
def serving_metrics(
    context: WorkerContext, job: Job[RankProgram], meter: MemoryMeter
) -> Iterator[None]:
    """Serve this rank's metrics. The driver tells them, so a step does nothing for it.

    Where they cannot be served, or not be read from where the driver's are, the driver is asked to.
    """
    if job.metrics is None or job.series is None:
        yield
        return
    totals = RankTotals(*job.series, meter.peak_bytes)
    page = application(Page(job.metrics, [totals]))
    known_as = None if is_loopback(context.node) else context.node
    host = worker_host(job.metrics_host, context.node, context.driver_node)
    try:
        server = PageServer(host, 0, {METRICS: page}.get, known_as) if host is not None else None
    except InputError as error:
        context.emit("status", f"rank {context.rank} {error.message}; the driver serves them")
        server = None
    if server is None:
        context.emit("metrics", None)
        yield
        return
    with server:
        context.listen(Part, totals.add)
        context.emit("metrics", server.url + METRICS)
        yield


Ended = tuple[Unread, "Counter[Edge]", "Counter[Buffer]"]


def ended(interpreter: RankInterpreter) -> Ended:
    """The step that has just ended: what is left to be read of it, and what it has counted."""
    sent, interpreter.sent = interpreter.sent, Counter()
    transport = interpreter.transport
    handed, transport.buffers = transport.buffers, Counter()
    return interpreter.unread(), sent, handed


def report(step: Ended) -> StepReport:
    """Read a step's loss and times; waits for a GPU."""
    unread, sent, handed = step
    return StepReport(float(unread.loss), unread.read(), sent, handed)


def drive(interpreter: RankInterpreter, step: int) -> None:
    """Run one step, blocking on what it has to wait for.

    Raises:
        RuntimeError: a transfer failed; the message says who waited for whom, at which op.
    """
    for handle in interpreter.step(step):
        try:
            handle.wait()
        except RuntimeError as error:
            what = interpreter.waits_for(handle)
            raise RuntimeError(f"step {step + 1}: {what}: {error}") from error


class LateFeed:
    """A feed that is given its data after the interpreters that tell which data they need."""

    real: DataFeed

    def images(self, step: int, samples: Tensor) -> Tensor:
        return self.real.images(step, samples)

    def labels(self, step: int, samples: Tensor) -> Tensor:
        return self.real.labels(step, samples)


def data_feed(
    job: Job[P], interpreters: list[RankInterpreter], device: Device | None = None
) -> DataFeed:
    """The job's data, as far as these ranks need it."""
    program = job.program
    dataset = open_for(program.model, job.data, job.recipe.seed)
    return DataFeed(
        dataset,
        SampleOrder(dataset.size, program.global_batch, job.recipe.seed),
        image_samples=torch.cat([i.samples_of(INPUT) for i in interpreters]),
        label_samples=torch.cat([i.samples_of(LABELS) for i in interpreters]),
        start=job.start,
        stop=job.stop,
        device=device,
    )
