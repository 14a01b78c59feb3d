"""What every worker of a run does: connect, build its part, train step after step, report."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import InputError
from orchestrator.execute.device import Cpu, Cuda
from orchestrator.execute.distributed import clock_offsets, connect
from orchestrator.execute.host_memory import keep_freed_memory
from orchestrator.execute.interpreter import LossNotFinite, RankInterpreter, Unread
from orchestrator.execute.memory_meter import MemoryMeter
from orchestrator.execute.parameters import Slot, initial_value
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.models.model import Recipe
from orchestrator.models.value import INPUT, LABELS
from orchestrator.observe.metrics import Page, RankTotals, RunLabels, stage_of
from orchestrator.observe.metrics_options import LOOPBACK, is_loopback, worker_host
from orchestrator.observe.metrics_parts import Part, Parts
from orchestrator.observe.metrics_server import METRICS, PageServer, application
from orchestrator.observe.timeline import RankTimes
from orchestrator.program.ledger import Buffer, Edge
from orchestrator.program.ops import Program
from orchestrator.train import checkpoint, divergence
from orchestrator.train.data import SampleOrder, open_for
from orchestrator.train.feed import DataFeed


@dataclass(frozen=True)
class Job:
    """What a run's workers are told.

    Args:
        data: as ``--data``.
        start, stop: first step, and the step to end before.
        resume: checkpoint file to take the weights from.
        checkpoint_every: steps between checkpoints; 0 for one at the end only.
        timed: record every op's times.
        metrics: what the workers' metrics are labelled with, None for none.
        metrics_host: address at which the driver serves its own.
    """

    program: Program
    recipe: Recipe
    data: str
    start: int
    stop: int
    resume: Path | None = None
    checkpoint_every: int = 0
    timed: bool = True
    metrics: RunLabels | None = None
    metrics_host: str = LOOPBACK

    def checkpoint_after(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        done = step + 1
        return done == self.stop or (
            self.checkpoint_every > 0 and done % self.checkpoint_every == 0
        )


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


def train(context: WorkerContext, job: Job) -> None:
    """Run one rank of a job.

    Emits ``offsets`` (rank 0), ``device``, ``metrics``, ``step``, ``checkpoint`` and ``end``; and
    ``diverged`` and ``examined`` where a loss or a parameter is not finite.

    Raises:
        Diverged: so it is, and nobody else ends this rank.
    """
    program, recipe = job.program, job.recipe
    device = Cuda(torch.device(context.device).index) if context.device != "cpu" else None
    tfloat32 = program.precision.compute == "tfloat32"
    if device is None:
        if tfloat32:
            raise InputError(
                f"rank {context.rank} computes on a processor, which has no products in tfloat32",
                "training.precision",
                "training.precision: float32",
            )
        keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tfloat32
    transport = connect(program, context.rank, device, context.timeout_s)
    offsets = clock_offsets(context.rank, context.world_size, context.timeout_s)
    if offsets:
        context.emit("offsets", offsets)
    meter = MemoryMeter(device)
    name = torch.cuda.get_device_name(device.torch) if device else "cpu"
    context.emit("device", (dist.get_backend(), name))
    wholes: dict[str, Tensor] = {}

    def value(slot: Slot) -> Tensor:
        return initial_value(slot, recipe.seed, wholes)

    feed = LateFeed()
    with serving_metrics(context, job, meter):
        interpreter = RankInterpreter(
            program, context.rank, transport, feed, recipe, device or Cpu(), value
        )
        wholes.clear()
        if job.resume is not None:
            state = checkpoint.load(job.resume, program.model, recipe.updates)
            checkpoint.restore(interpreter, state)
        divergence.answer(context, interpreter)
        gc.collect()
        with data_feed(job, [interpreter]) as feed.real:
            context.emit("ready", None)
            train_steps(context, job, interpreter, meter)
    context.emit("end", meter.peak_bytes())


def train_steps(
    context: WorkerContext, job: Job, interpreter: RankInterpreter, meter: MemoryMeter
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
def serving_metrics(context: WorkerContext, job: Job, meter: MemoryMeter) -> Iterator[None]:
    """Serve this rank's metrics. The driver tells them, so a step does nothing for it.

    Where they cannot be served, or not be read from where the driver's are, the driver is asked to.
    """
    if job.metrics is None:
        yield
        return
    zero = Parts(job.program).zero(context.rank)
    totals = RankTotals(stage_of(job.program, context.rank), zero, meter.peak_bytes)
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


def data_feed(job: Job, interpreters: list[RankInterpreter]) -> DataFeed:
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
    )
