"""``orchestrator run``: train by a plan; the same as ``python -m orchestrator.run``."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.machine import check_memory
from orchestrator.cli.metrics_options import check, giving_out, metrics_options
from orchestrator.cli.options import one_plan, overrides, positive, split_overrides
from orchestrator.cli.run_view import BarView, LineView, shares_table
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of, recipe_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.train.precision import check_trained

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.execute.finite import Diverged
    from orchestrator.models.model import Model
    from orchestrator.plan import Plan
    from orchestrator.program import Program
    from orchestrator.train.run import Outcome
    from orchestrator.train.run_folder import RunFolder
    from orchestrator.train.worker import Job


PROCESS_BYTES = 50 * 2**20  # of a worker that has imported torch, at the least


@click.command("run")
@one_plan
@click.option(
    "--data", default="digits", show_default=True,
    help="digits, synthetic, synthetic:N or imagefolder:PATH.",
)  # fmt: skip
@click.option("--steps", type=int, help="Training steps; with --resume, further ones.")
@click.option("--epochs", type=int, help="Passes over the data; 1 unless --steps is given.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; runs/PLAN-TIME if not given."
)
@click.option(
    "--resume", type=click.Path(path_type=Path),
    help="Go on from the newest checkpoint of this run folder (or from this checkpoint file).",
)  # fmt: skip
@click.option("--launcher", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@click.option(
    "--checkpoint-every", type=click.IntRange(min=0), default=0,
    help="Steps; by default (0) at the end only.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=float, default=60.0, show_default=True,
    help="Seconds that a rank waits for another before the run fails.",
)  # fmt: skip
@click.option(
    "--threads", type=int, help="CPU threads of a rank; by default its share of the cores."
)
@click.option(
    "--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto", show_default=True,
    help="One GPU for each rank (NCCL), or processors (gloo).",
)  # fmt: skip
@click.option("--cluster", "cluster_source", help="Say what the simulator predicts for it.")
@metrics_options
@click.option("--no-metrics", is_flag=True, help="Serve no metrics.")
@overrides
def command(
    plan_source: str,
    data: str,
    steps: int | None,
    epochs: int | None,
    out: Path | None,
    resume: Path | None,
    launcher: str,
    checkpoint_every: int,
    timeout_s: float,
    threads: int | None,
    device: str,
    cluster_source: str | None,
    metrics_port: int | None,
    metrics_host: str,
    metrics_linger_s: float | None,
    pushgateway: str | None,
    no_metrics: bool,
    overrides: tuple[str, ...],
) -> int:
    """Train as PLAN says, and leave a run folder. PLAN is a path or the name of a shipped plan.

    Every rank is a Ray worker, unless --launcher local runs all of them in this process. With
    RAY_ADDRESS set, or inside a Ray job, the ranks run on that cluster.
    """
    positive("steps", steps)
    positive("epochs", epochs)
    positive("threads", threads)
    if steps and epochs:
        raise InputError("--steps and --epochs both say how long", "--epochs", "leave one out")
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise InputError(f"{timeout_s} is not a number of seconds to wait", "--timeout", "60")
    check(metrics_host, metrics_linger_s, pushgateway)
    metrics = MetricsOptions(
        not no_metrics, metrics_host, metrics_port or 0, metrics_linger_s, pushgateway
    )
    of_plan, of_cluster = split_overrides(overrides)
    plan = load_plan(plan_source, of_plan)
    model = model_of(plan)
    on_processors = launcher == "local" or device == "cpu"
    check_trained(plan, recipe_of(plan, model), processor=on_processors)
    cluster = load_cluster(cluster_source, of_cluster) if cluster_source else None
    if cluster is not None:
        cluster.check_room(plan.world_size, plan.location(("placement",)))
    dtype = precision_of(plan)
    if launcher == "local" or not os.environ.get("RAY_ADDRESS"):  # else on other machines, too
        each = 0 if launcher == "local" else PROCESS_BYTES
        check_memory(plan, model, dtype, process_bytes=each)
    program = compile_plan(plan, model, dtype=dtype)
    screen = console(markup=False, soft_wrap=not sys.stdout.isatty())
    screen.print(
        f"{plan.name}: {model.name}, {program.world_size} ranks, batch {program.global_batch}"
    )
    if data == "digits":
        sides = " x ".join(map(str, model.input_shape[1:]))
        screen.print(
            f"data: scikit-learn's digits{f', enlarged to {sides}' if sides else ''}; real images, "
            "but this checks the machinery: use --data imagefolder:PATH to train for real"
        )
    asked = _Asked(data, steps, epochs, out, resume, launcher, checkpoint_every, timeout_s, threads,
                   {"auto": None, "gpu": True, "cpu": False}[device], metrics,
                   cluster_source)  # fmt: skip
    return _run(plan, model, program, screen, asked, cluster)


@dataclass(frozen=True)
class _Asked:
    """The options of one call."""

    data: str
    steps: int | None
    epochs: int | None
    out: Path | None
    resume: Path | None
    launcher: str
    checkpoint_every: int
    timeout_s: float
    threads: int | None
    use_gpu: bool | None
    metrics: MetricsOptions
    cluster_source: str | None


def _run(
    plan: Plan, model: Model, program: Program, screen: Console, asked: _Asked,
    cluster: Cluster | None,
) -> int:  # fmt: skip
    with _interrupts_wait():
        from orchestrator.execute.finite import Diverged
        from orchestrator.execute.worker_context import WorkerFailed
        from orchestrator.observe.metrics import RunLabels
        from orchestrator.observe.metrics_run import RunMetrics
        from orchestrator.train.run import run
        from orchestrator.train.run_folder import RunFolder

        if asked.data == "digits":
            import sklearn.datasets  # noqa: F401

    job = _job(plan, model, program, asked)
    out, resume = asked.out, asked.resume
    goes_on = (
        resume is not None and resume.is_dir() and (out or resume).resolve() == resume.resolve()
    )
    fresh = Path("runs") / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = resume if goes_on and resume else out or fresh
    metrics = None
    if asked.metrics.wanted:
        labels = RunLabels(path.resolve().name, plan.name, "measured")
        metrics = RunMetrics(program, labels, asked.metrics)
        if asked.metrics.serve:
            job = replace(job, metrics=labels, metrics_host=asked.metrics.host)
    with giving_out(metrics, screen.print) if metrics else nullcontext():
        folder = RunFolder(path, plan, keep_before=job.start if goes_on else None)
        view = (BarView if screen.is_terminal else LineView)(screen, job.start, job.stop)
        try:
            with view:
                outcome = run(
                    plan, program, job, folder, view,
                    launcher=asked.launcher, timeout_s=asked.timeout_s, threads=asked.threads,
                    use_gpu=asked.use_gpu, metrics=metrics,
                )  # fmt: skip
        except KeyboardInterrupt:
            kept = f"{path} holds the steps that ended" if path.exists() else "no step had ended"
            screen.print(f"interrupted; {kept}")
            raise
        except (WorkerFailed, Diverged) as error:
            echo(f"error: {error}", err=True)
            if isinstance(error, Diverged):
                echo(f"  {_remedy(error, job)}", err=True)
            if path.exists():
                echo(f"  {path} holds the steps that ended", err=True)
            return 1
        return _tell(screen, path, outcome, _predicted(program, cluster, folder, outcome), asked)


def _remedy(error: Diverged, job: Job[Program]) -> str:
    divergence, rate = error.divergence, job.recipe.lr
    if divergence.found is not None and divergence.found.of_images:
        return "remedy: look for broken images in the data"
    if divergence.ended == 0:
        return "remedy: smaller start values of the weights; no update had been made"
    if job.recipe.loss_scale not in (1, "dynamic"):
        smaller = f"--set training.loss_scale={float(job.recipe.loss_scale) / 16:g}"
        return f"remedy: a smaller loss scale, such as {smaller}, or a lower rate"
    return f"remedy: a lower rate than {rate:g}, such as --set training.lr={rate / 10:g}"


def _tell(
    screen: Console, path: Path, outcome: Outcome, predicted: dict[str, Any] | None, asked: _Asked
) -> int:
    """What came out; 0 if all of it is as it should be."""
    summary = outcome.summary
    screen.print(shares_table(summary))
    for problem in outcome.problems:
        echo(problem, err=True)
    if summary["ledger_exact"]:
        total = summary["bytes_sent"]
        collectives = " (of collectives the buffers)" if summary["ring_equivalent_bytes"] else ""
        screen.print(
            f"bytes sent a step: {total:,}, counted by the workers{collectives} as predicted"
        )
    if predicted is not None:
        step, real = predicted["step_time_s"], summary["step_time_s"]
        screen.print(
            f"predicted for {predicted['cluster']}: {step:.3f} s a step ({step / real - 1:+.1%}); "
            f"more: orchestrator compare {path} --cluster {asked.cluster_source}"
        )
    screen.print(f"run folder: {path}")
    return 1 if outcome.problems else 0


def _predicted(
    program: Program, cluster: Cluster | None, folder: RunFolder, outcome: Outcome
) -> dict[str, Any] | None:
    """The same step on the simulator's clock, put beside the measured ones in the run's trace."""
    if cluster is None:
        return None
    from orchestrator.observe import trace
    from orchestrator.simulate.epoch import data_of_run
    from orchestrator.simulate.predict import simulate_program
    from orchestrator.simulate.trace_source import trace_source

    prediction = simulate_program(program, cluster, data=data_of_run(outcome.summary))
    with folder.replacing("trace.json") as file:
        trace.write(file, outcome.measured, trace_source(prediction, cluster))
    return {"cluster": cluster.name, **prediction.summary}


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """SIGINT comes after the block: numpy and scipy make other errors of one in their import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _job(plan: Plan, model: Model, program: Program, asked: _Asked) -> Job[Program]:
    """The workers' job. Opens the data here first: what is wrong with it is told at once."""
    from orchestrator.train import checkpoint
    from orchestrator.train.data import SampleOrder, open_for
    from orchestrator.train.worker import Job

    recipe = recipe_of(plan, model)
    dataset = open_for(model, asked.data, recipe.seed)
    order = SampleOrder(dataset.size, program.global_batch, recipe.seed)
    start, file = 0, None
    if asked.resume is not None:
        file = checkpoint.newest(asked.resume).resolve()
        start = checkpoint.load(file, model, recipe.updates).step
    count = asked.steps or (asked.epochs or 1) * order.steps_per_epoch
    return Job(program, recipe, asked.data, start, start + count, file, asked.checkpoint_every)
