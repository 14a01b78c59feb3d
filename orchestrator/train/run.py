"""A run from the driver's side: launch the workers, gather their reports, keep the run folder."""

from __future__ import annotations

import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

import orchestrator
from orchestrator.errors import InputError
from orchestrator.execute.finite import Diverged, Divergence, bad_parameters, earliest
from orchestrator.execute.host_memory import keep_freed_memory
from orchestrator.execute.local import LocalExecutor
from orchestrator.observe import timeline, trace
from orchestrator.observe.accounting import Account, Accountant, summarise
from orchestrator.observe.metrics import Info
from orchestrator.observe.metrics_parts import Part, Parts
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.plan import Plan
from orchestrator.program import Program, find_deadlock, grid
from orchestrator.program.ledger import Buffer, Edge, differences
from orchestrator.train import checkpoint
from orchestrator.train.divergence import DIVERGED, EXAMINED, Examine, Inquiry
from orchestrator.train.run_folder import SCHEMA_VERSION, RunFolder
from orchestrator.train.worker import (
    Job,
    LateFeed,
    StepReport,
    data_feed,
    ended,
    job_of_rank,
    report,
    train,
)

KEPT_TIMELINES = 50  # the last steps whose every op is written down
TRACED = 3  # of them, in the trace


class Observer(Protocol):
    """Who watches a run, as it goes."""

    def status(self, text: str) -> None:
        """Something that is not a step has happened."""

    def step(self, step: int, loss: float, account: Account, images_per_s: float) -> None:
        """A step has ended on all ranks."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        summary: what ``summary.json`` holds.
        problems: one line each; empty if the messages and buffers that the workers counted are
            those of the program.
        measured: the last steps, as ``trace.json`` shows them.
    """

    folder: Path
    summary: dict[str, Any]
    problems: tuple[str, ...]
    measured: trace.Source


@dataclass
class Collector:
    """Puts the ranks' reports together, step by step."""

    job: Job[Program]
    folder: RunFolder
    observer: Observer
    accountant: Accountant
    metrics: RunMetrics | None = None
    ray: str = ""  # its version, where it starts the workers
    offsets: dict[int, float] = field(default_factory=dict)
    waiting: defaultdict[int, dict[int, StepReport]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    losses: dict[int, float] = field(default_factory=dict)
    accounts: list[Account] = field(default_factory=list)
    timelines: list[timeline.StepTimes] = field(default_factory=list)
    states: dict[int, checkpoint.State] = field(default_factory=dict)
    given: Counter[int] = field(default_factory=Counter)
    sent: Counter[Edge] = field(default_factory=Counter)
    handed: Counter[Buffer] = field(default_factory=Counter)
    peaks: dict[int, int] = field(default_factory=dict)
    devices: dict[int, tuple[str, str]] = field(default_factory=dict)  # backend and name
    tell: Callable[[int, object], None] | None = None  # hands a worker something
    writing: dict[int, float] = field(default_factory=dict)  # by step, since when a checkpoint is
    started: float = field(default_factory=time.perf_counter)
    zero: float | None = None  # when the first step began, on rank 0's clock

    def __post_init__(self) -> None:
        self.inquiry = Inquiry(self.job.program.world_size, self._ask)

    def event(self, rank: int, kind: str, payload: Any) -> None:
        """One message of a worker, or of the launcher (rank -1)."""
        if kind == "status":
            self.observer.status(payload)
        elif kind == "offsets":
            self.offsets = payload
        elif kind == "step":
            self._step(rank, payload)
        elif kind == "checkpoint":
            self._checkpoint(*payload)
        elif kind == DIVERGED:
            self.inquiry.add(payload)
        elif kind == EXAMINED:
            self.inquiry.examined(rank, payload)
        elif kind == "end":
            self.inquiry.examined(rank, None)
            self.peaks[rank] = payload
            if self.metrics is not None:
                self.metrics.peaks[rank] = payload
        elif kind == "tell":
            self.tell = payload
        elif kind == "device":
            self._device(rank, *payload)
        elif kind == "metrics" and self.metrics is not None:
            self.metrics.register(rank, payload)
        verdict = self.inquiry.verdict(self._ended)
        if verdict is not None:
            raise Diverged(verdict)

    def _ask(self, rank: int, question: Examine) -> None:
        if self.tell is not None:
            self.tell(rank, question)

    def _ended(self, steps: int) -> bool:
        """Whether so many steps have been reported by all ranks."""
        return steps == self.job.start or steps - 1 in self.losses

    def _device(self, rank: int, backend: str, name: str) -> None:
        self.devices[rank] = (backend, name)
        if self.metrics is not None and len(self.devices) == self.job.program.world_size:
            columns = zip(*self.devices.values(), strict=True)
            backends, names = (", ".join(sorted(set(column))) for column in columns)
            self.metrics.run.info = Info(
                orchestrator.__version__, torch.__version__, self.ray, backends, names
            )

    def _step(self, rank: int, report: StepReport) -> None:
        step = report.times.step
        reports = self.waiting[step]
        reports[rank] = report
        self.sent.update(report.sent)
        self.handed.update(report.handed)
        program = self.job.program
        if len(reports) < program.world_size:
            return
        del self.waiting[step]
        ranks = sorted(reports)
        offsets = {r: self.offsets.get(r, 0.0) for r in ranks}
        if self.zero is None:
            self.zero = min(reports[r].times.begin + offsets[r] for r in ranks)
        since = {r: offsets[r] - self.zero for r in ranks}
        times = timeline.join(program, [reports[r].times for r in ranks], since)
        loss = float(sum(reports[r].loss for r in ranks))
        account = self.accountant.account(times)
        self.losses[step] = loss
        self.accounts.append(account)
        self.timelines = [*self.timelines[1 - KEPT_TIMELINES :], times]
        mean = account.mean
        rate = program.global_batch / account.step_time_s
        row = {"step": step, "loss": loss, "lr": self.job.recipe.lr, "images_per_s": rate}
        self.folder.add_step({**row, **asdict(mean)})
        if self.metrics is not None:
            sent = {r: reports[r].sent for r in ranks}
            self._count(self.metrics.add_step(times, account, sent), loss)
        self.observer.step(step, loss, account, rate)

    def _count(self, parts: list[Part], loss: float) -> None:
        assert self.metrics is not None
        program = self.job.program
        self.metrics.run.add_step(program.global_batch, loss, self.job.recipe.lr)
        if self.tell is not None:
            for part in parts:
                self.tell(part.rank, part)

    def _checkpoint(self, step: int, piece: checkpoint.Piece | checkpoint.Scale | None) -> None:
        program = self.job.program
        if step not in self.states:
            self.writing[step] = time.perf_counter()
            recipe = self.job.recipe
            self.states[step] = checkpoint.State.empty(
                program.model, step, recipe.seed, program.precision, recipe.updates, recipe.lr
            )
        if piece is not None:
            self.states[step].put(piece)
            return
        self.given[step] += 1
        if self.given[step] == program.world_size:
            self.states.pop(step).save(self.folder.checkpoint(step))
            took = time.perf_counter() - self.writing.pop(step)
            if self.metrics is not None:
                self.metrics.run.checkpoint_s = took

    def measured(self) -> trace.Source:
        """The last steps as a trace shows them."""
        return trace.Source("measured", self.job.program, self.timelines[-TRACED:])

    def ledger_problems(self) -> list[str]:
        """Messages and buffers whose counts are not the program's, a line each."""
        steps = self.job.stop - self.job.start
        return differences(self.job.program, steps, self.sent, self.handed)

    def write_down(self, plan: Plan, launcher: str, *, interrupted: bool) -> dict[str, Any]:
        """Put what a run leaves into its folder; returns the summary."""
        summary = self._summary(plan, launcher, interrupted=interrupted)
        self.folder.write_json("summary.json", summary)
        with self.folder.replacing("timeline.jsonl") as file:
            timeline.write(file, self.job.program, self.timelines)
        with self.folder.replacing("trace.json") as file:
            trace.write(file, self.measured())
        return summary

    def _summary(self, plan: Plan, launcher: str, *, interrupted: bool) -> dict[str, Any]:
        """What ``summary.json`` holds: the run, its losses, where the time of a step goes."""
        program = self.job.program
        # the first step sets up caches and connections
        steady = self.accounts[1:] or self.accounts
        timing = summarise(self.accountant, steady, self.peaks) if steady else {}
        losses = [self.losses[s] for s in sorted(self.losses)]
        return {
            "schema_version": SCHEMA_VERSION,
            "name": plan.name,
            "model": program.model.name,
            "source": "measured",
            "world_size": program.world_size,
            "global_batch_size": program.global_batch,
            "data": self.job.data,
            "launcher": launcher,
            "dtype": program.dtype,
            "precision": program.precision.formats,
            "optimizer": program.optimizer.name,
            "program": program.digest(),
            "first_step": self.job.start,
            "steps": len(losses),
            "interrupted": interrupted,
            "restarts": self.folder.restarts,
            "loss_first": losses[0] if losses else None,
            "loss_last": losses[-1] if losses else None,
            "wall_s": time.perf_counter() - self.started,
            "ledger_exact": None if interrupted else not self.ledger_problems(),
            **timing,
            "versions": {
                "orchestrator": orchestrator.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def run(
    plan: Plan,
    program: Program,
    job: Job[Program],
    folder: RunFolder,
    observer: Observer,
    *,
    launcher: str,
    timeout_s: float = 60.0,
    threads: int | None = None,
    use_gpu: bool | None = None,
    metrics: RunMetrics | None = None,
) -> Outcome:
    """Train, and leave a complete run folder.

    Args:
        launcher: ``ray``, or ``local`` for every rank in this process.
        timeout_s: how long a rank waits for a peer.
        threads: of each rank on a processor; None for its share of the cores.
        use_gpu: a GPU for each rank, or none for any; None: where the cluster has GPUs.
        metrics: counts the run; the caller closes it. The folder's ``metrics.json`` tells where
            it serves.

    Raises:
        InputError, WorkerFailed: as the launch raises them; Diverged: a loss, or parameters that
            were to be saved, are not finite; KeyboardInterrupt. The workers are gone and the
            folder tells how far the run came. Where no step has ended, no folder is left.
    """
    ray = version("ray") if launcher == "ray" else ""
    collector = Collector(job, folder, observer, Accountant(program), metrics, ray)
    launch = _launcher(launcher, program, timeout_s, threads, use_gpu)

    if metrics is not None:
        metrics.run.restarts = folder.restarts
        metrics.on_change(lambda where: folder.write_json("metrics.json", where))
    try:
        deadlock = find_deadlock(program)
        if deadlock:
            raise InputError(f"the program would deadlock\n{grid(program, deadlock)}")
        launch(job, collector)
    except BaseException:
        if not collector.accounts:
            folder.discard()  # no step has ended: there is nothing to keep or to resume
        else:
            collector.write_down(plan, launcher, interrupted=True)
            if metrics is not None:
                metrics.take_over()
        raise
    if metrics is not None:
        metrics.take_over()
    summary = collector.write_down(plan, launcher, interrupted=False)
    return Outcome(folder.path, summary, tuple(collector.ledger_problems()), collector.measured())


def _launcher(
    name: str, program: Program, timeout_s: float, threads: int | None, use_gpu: bool | None
) -> Callable[[Job[Program], Collector], None]:
    if name == "local":
        return _run_locally

    def on_ray(job: Job[Program], collector: Collector) -> None:
        collector.observer.status("importing Ray")
        from orchestrator.execute.ray_launch import launch

        parts = Parts(program) if job.metrics is not None else None
        launch(
            train,
            lambda rank: job_of_rank(job, rank, parts),
            world_size=program.world_size,
            on_event=collector.event,
            timeout_s=timeout_s,
            threads_per_worker=threads,
            use_gpu=use_gpu,
        )

    return on_ray


def _run_locally(job: Job[Program], collector: Collector) -> None:
    """Every rank in this process, in lockstep."""
    keep_freed_memory()
    feed = LateFeed()
    executor = LocalExecutor(job.program, feed, job.recipe)
    if job.resume is not None:
        state = checkpoint.load(job.resume, job.program.model, job.recipe.updates)
        for rank in executor.ranks:
            checkpoint.restore(rank, state)
    emit = collector.event
    if collector.metrics is not None:
        collector.metrics.take_over()
    for rank in executor.ranks:
        emit(rank.rank, "device", ("in process", "cpu"))
    with data_feed(job, executor.ranks) as feed.real:
        for step in range(job.start, job.stop):
            executor.step(step)
            for rank in executor.ranks:
                emit(rank.rank, "step", report(ended(rank)))
            if job.checkpoint_after(step):
                found = earliest(map(bad_parameters, executor.ranks))
                if found is not None:
                    raise Diverged(Divergence(found.rank, step + 1, False, found))
                for rank in executor.ranks:
                    for piece in checkpoint.pieces(rank):
                        emit(rank.rank, "checkpoint", (step + 1, piece))
                    emit(rank.rank, "checkpoint", (step + 1, None))
    for rank in executor.ranks:
        emit(rank.rank, "end", 0)
