"""``orchestrator run``: train by a plan; the same as ``python -m orchestrator.run``."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from orchestrator.cli.options import overrides, positive
from orchestrator.cli.run_view import BarView, LineView, shares_table
from orchestrator.errors import InputError
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of

if TYPE_CHECKING:
    from orchestrator.models.model import Model
    from orchestrator.plan import Plan
    from orchestrator.program import Program
    from orchestrator.train.worker import Job


@click.command("run")
@click.option("--plan", "plan_source", required=True, help="A path, or a shipped plan's name.")
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
    overrides: tuple[str, ...],
) -> int:
    """Train as a plan says, and leave a run folder.

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
    plan = load_plan(plan_source, overrides)
    model = model_of(plan)
    program = compile_plan(plan, model, dtype=plan.training.dtype or "float32")
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    console.print(
        f"{plan.name}: {model.name}, {program.world_size} ranks, batch {program.global_batch}"
    )
    if data == "digits":
        console.print(
            f"data: scikit-learn's digits, enlarged to {model.input_shape[1]} x "
            f"{model.input_shape[2]}; real images, but this checks the machinery: use "
            "--data imagefolder:PATH to train for real"
        )
    return _run(plan, model, program, console, data, steps, epochs, out, resume, launcher,
                checkpoint_every, timeout_s, threads)  # fmt: skip


def _run(
    plan: Plan, model: Model, program: Program, console: Console, data: str, steps: int | None,
    epochs: int | None, out: Path | None, resume: Path | None, launcher: str,
    checkpoint_every: int, timeout_s: float, threads: int | None,
) -> int:  # fmt: skip
    with _interrupts_wait():
        from orchestrator.execute.worker_context import WorkerFailed
        from orchestrator.train.run import run
        from orchestrator.train.run_folder import RunFolder

        if data == "digits":
            import sklearn.datasets  # noqa: F401

    job = _job(plan, model, program, data, steps, epochs, resume, checkpoint_every)
    goes_on = (
        resume is not None and resume.is_dir() and (out or resume).resolve() == resume.resolve()
    )
    fresh = Path("runs") / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = resume if goes_on and resume else out or fresh
    folder = RunFolder(path, plan, keep_before=job.start if goes_on else None)
    view = (BarView if console.is_terminal else LineView)(console, job.start, job.stop)
    try:
        with view:
            outcome = run(
                plan, program, job, folder, view,
                launcher=launcher, timeout_s=timeout_s, threads=threads,
            )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"interrupted; {path} holds the steps that ended")
        raise
    except WorkerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        print(f"  {path} holds the steps that ended", file=sys.stderr)
        return 1
    console.print(shares_table(outcome.summary))
    for problem in outcome.problems:
        print(f"bytes differ: {problem}", file=sys.stderr)
    if not outcome.problems:
        total = outcome.summary["bytes_sent"]
        console.print(f"bytes sent a step: {total:,}, counted by the workers as predicted")
    console.print(f"run folder: {path}")
    return 1 if outcome.problems else 0


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


def _job(
    plan: Plan, model: Model, program: Program, data: str, steps: int | None,
    epochs: int | None, resume: Path | None, checkpoint_every: int,
) -> Job:  # fmt: skip
    """The workers' job. Opens the data here first: what is wrong with it is told at once."""
    from orchestrator.train import checkpoint
    from orchestrator.train.data import SampleOrder, open_dataset
    from orchestrator.train.run import recipe_of
    from orchestrator.train.worker import Job

    recipe = recipe_of(plan, model)
    channels, size, _ = model.input_shape
    dataset = open_dataset(
        data, image_size=size, channels=channels, classes=model.classes, seed=recipe.seed
    )
    order = SampleOrder(dataset.size, program.global_batch, recipe.seed)
    start, file = 0, None
    if resume is not None:
        file = checkpoint.newest(resume).resolve()
        start = checkpoint.load(file, model).step
    count = steps or (epochs or 1) * order.steps_per_epoch
    return Job(program, recipe, data, start, start + count, file, checkpoint_every)
