"""Calibration and runs in turns: ``python -m benchmarks.turns FOLDER TURNS PLAN...``.

A shared machine changes its speed from minute to minute, and what is measured at one time predicts
another time badly, however good the model. So one launch on Ray holds everything: a round of
``calibrate``, then two steps of every plan, again and again. Of two steps in a row the second one
counts, which its ranks enter as they have left the first. FOLDER then has ``here.yaml``, the
calibrated cluster, and a run folder for each plan, as if each had been run by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from orchestrator.cli.calibrate import load_seconds, measured_programs, write
from orchestrator.cli.calibrated import cluster_of
from orchestrator.execute.device import Cpu
from orchestrator.execute.distributed import GlooTransport, clock_offsets, connect
from orchestrator.execute.host_memory import keep_freed_memory
from orchestrator.execute.interpreter import RankInterpreter
from orchestrator.execute.measure import Measured, MeasureJob, Meter
from orchestrator.execute.measure_transfers import measured_routes
from orchestrator.execute.memory_meter import MemoryMeter
from orchestrator.execute.parameters import Slot, initial_value
from orchestrator.execute.worker_context import WorkerContext
from orchestrator.observe.accounting import Account, Accountant
from orchestrator.plan import Plan, load_plan
from orchestrator.program import compile_plan
from orchestrator.program.ops import Program, RankProgram
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of, recipe_of
from orchestrator.train.run import Collector
from orchestrator.train.run_folder import RunFolder
from orchestrator.train.worker import (
    Job,
    LateFeed,
    data_feed,
    drive,
    ended,
    job_of_rank,
    report,
)

BATCH = 32
CALIBRATED = ("single", "krizhevsky2012")  # the layer parts of these and no others are measured
SETTINGS = {"one-weird-trick-gather": ("model={name: alexnet2012}",)}  # all plans of one network


@dataclass(frozen=True)
class Turns:
    """What the workers are told."""

    calibration: MeasureJob
    jobs: dict[str, Job[Program]]
    count: int


def take_turns(folder: Path, count: int, names: Sequence[str]) -> None:
    """So many turns of calibration and all plans, on as many ranks as the widest plan has."""
    from orchestrator.execute.ray_launch import launch

    plans = {name: plan_of(name) for name in names}
    jobs = {name: job_of(plan, count) for name, plan in plans.items()}
    collectors = {
        name: Collector(
            job, RunFolder(folder / name, plans[name]), Quiet(), Accountant(job.program)
        )
        for name, job in jobs.items()
    }
    ranks = max(plan.world_size for plan in plans.values())
    measured, link = measured_programs(CALIBRATED, (BATCH // 8, BATCH // 2, BATCH), ranks)
    found: dict[int, Measured] = {}
    nodes: dict[int, str] = {}

    def on_event(rank: int, kind: str, payload: Any) -> None:
        if kind in ("step", "end"):
            name, what = payload
            collectors[name].event(rank, kind, what)
        elif kind == "offsets":
            for collector in collectors.values():
                collector.offsets = payload
        elif kind == "node":
            nodes[rank] = payload
        elif kind == "measured":
            found[rank] = payload
        elif kind == "status":
            print(payload, flush=True)

    turns = Turns(MeasureJob(measured, link, 0.0), jobs, count)
    load_s = load_seconds(measured[0].model)
    launch(
        work,
        lambda _: turns,
        world_size=ranks,
        on_event=on_event,
        threads_per_worker=1,
        timeout_s=600.0,
        use_gpu=False,
    )
    for name, collector in collectors.items():
        collector.write_down(plans[name], "ray", interrupted=False)
        problems = collector.ledger_problems()
        if problems:
            raise SystemExit(f"{name}: {'; '.join(problems)}")
    write(cluster_of("here", "alexnet2012", found, nodes, 1, load_s), folder / "here.yaml")


def plan_of(name: str) -> Plan:
    """A shipped plan at the size of this benchmark."""
    return load_plan(name, [f"global_batch_size={BATCH}", *SETTINGS.get(name, ())])


def job_of(plan: Plan, turns: int) -> Job[Program]:
    """Two steps a turn."""
    model = model_of(plan)
    program = compile_plan(plan, model, dtype=precision_of(plan))
    return Job(program, recipe_of(plan, model), "synthetic", 0, 2 * turns)


# -- on a worker ----------------------------------------------------------------------------------


def work(context: WorkerContext, turns: Turns) -> None:
    """One rank of all plans. Emits ``step`` and ``end`` with the plan's name, ``measured``."""
    keep_freed_memory()
    context.emit("node", context.node)
    offsets = clock_offsets(context.rank, context.world_size, context.timeout_s)
    if offsets:
        context.emit("offsets", offsets)
    routes = measured_routes(context.world_size)
    program = turns.calibration.link.for_rank(context.rank)
    link = connect(program, None, context.timeout_s, routes)
    meter = Meter(context, turns.calibration, link)
    with ExitStack() as stack:
        plans: dict[str, PlanOnRank] = {}
        for name, job in turns.jobs.items():
            # All ranks make its groups.
            rank = min(context.rank, job.program.world_size - 1)
            transport = GlooTransport(job.program.for_rank(rank), context.timeout_s)
            if context.rank < job.program.world_size:
                plans[name] = stack.enter_context(
                    closing(PlanOnRank(context, name, job_of_rank(job, rank), transport))
                )
        meter.warm_up()
        for turn in range(turns.count):
            if context.rank == 0:
                context.emit("status", f"turn {turn + 1} of {turns.count}")
            meter.round()
            meter.communicate()
            names = list(turns.jobs)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                dist.barrier()
                if name in plans:
                    plans[name].turn()
        for name, plan in plans.items():
            context.emit("end", (name, plan.memory.peak_bytes()))
    context.emit("measured", meter.measured())


class PlanOnRank:
    """One rank of one plan, which goes on when it is its turn."""

    def __init__(
        self, context: WorkerContext, name: str, job: Job[RankProgram], transport: GlooTransport
    ) -> None:
        self.context, self.name = context, name
        self.memory = MemoryMeter(None)
        self.step = 0
        self.feed = LateFeed()
        wholes: dict[str, Tensor] = {}

        def value(slot: Slot) -> Tensor:
            return initial_value(slot, job.recipe.seed, wholes)

        self.interpreter = RankInterpreter(
            job.program, transport, self.feed, job.recipe, Cpu(), value
        )
        self.feed.real = data_feed(job, [self.interpreter])

    def turn(self) -> None:
        """Two steps, of which the second is told, with the bytes of both."""
        interpreter = self.interpreter
        first = self.memory.watching(interpreter.state_bytes()) if not self.step else nullcontext()
        with first:
            drive(interpreter, self.step)
        drive(interpreter, self.step + 1)
        self.step += 2
        self.context.emit("step", (self.name, report(ended(interpreter))))
        interpreter.rest()

    def close(self) -> None:
        """Stop loading data."""
        self.feed.real.close()


class Quiet:
    """Watches a run and says nothing."""

    def status(self, text: str) -> None:
        pass

    def step(self, step: int, loss: float, account: Account, images_per_s: float) -> None:
        pass


if __name__ == "__main__":
    take_turns(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
