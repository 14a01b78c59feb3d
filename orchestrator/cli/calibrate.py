"""``orchestrator calibrate``: measure this machine, or a Ray cluster, and write a cluster file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter, ValidationError
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator.cli.calibrated import cluster_of, unequal_nodes
from orchestrator.cli.options import positive
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.files import check_writable, write_text
from orchestrator.plan import load_plan
from orchestrator.program import Precision, Program, compile_plan
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster, read_cluster
from orchestrator.simulate.cluster_schema import ClusterName
from orchestrator.simulate.cluster_write import cluster_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.execute.measure import Measured
    from orchestrator.models.model import Model

_AROUND_S = 40.0  # start, messages and all-reduces, for the progress bar

# Any program over all ranks serves to connect them.
_SMALL = ("model.width=0.0625", "model.image_size=64", "model.classes=16")


@click.command("calibrate")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--ranks", type=int, help="Workers to measure on; by default one per core.")
@click.option(
    "--plan", "plans", multiple=True, default=("single", "krizhevsky2012"), show_default=True,
    help="Plans whose layer parts are measured; repeatable.",
)  # fmt: skip
@click.option(
    "--batch", "batches", type=int, multiple=True, default=(4, 16, 64), show_default=True,
    help="Examples at once; repeatable.",
)  # fmt: skip
@click.option(
    "--seconds", type=float, default=90.0, show_default=True,
    help="Time to measure, about; Ray and what is begun take some seconds more.",
)  # fmt: skip
@click.option("--threads", type=int, help="Threads of a rank; by default its share of the cores.")
def command(
    out: Path,
    ranks: int | None,
    plans: tuple[str, ...],
    batches: tuple[int, ...],
    seconds: float,
    threads: int | None,
) -> int:
    """Measure layers, optimizer, messages, all-reduces on Ray workers, and write a cluster file.

    Runs on a Ray of its own on this machine, or with RAY_ADDRESS set on that cluster.
    """
    positive("ranks", ranks)
    positive("threads", threads)
    for batch in batches:
        positive("batch", batch)
    check_out(out)
    count = ranks or len(os.sched_getaffinity(0))
    programs, link = measured_programs(plans, batches, count)
    screen = console(markup=False)
    begun = time.perf_counter()
    load_s = load_seconds(programs[0].model)
    found, nodes = _measure(screen, programs, link, count, seconds, threads)
    threads = threads or max(1, (os.cpu_count() or 1) // count)
    names = " ".join(dict.fromkeys(program.model.name for program in programs))
    cluster = cluster_of(out.stem, names, found, nodes, threads, load_s)
    write(cluster, out)
    if unequal := unequal_nodes(nodes):
        echo(f"warning: {unequal}", err=True)
    rows = len(cluster.calibration.layers) if cluster.calibration else 0
    screen.print(f"{out}: {rows} layer times, in {time.perf_counter() - begun:.0f} s")
    return 0


def check_out(out: Path) -> None:
    """Refuse before measuring what could not be written after it.

    Raises:
        InputError: no folder, no right to write, a name that no cluster can have, or a file that
            is there and is not a calibrated cluster's.
    """
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent}", "--out", f"mkdir -p {out.parent}")
    try:
        TypeAdapter(ClusterName).validate_python(out.stem)
    except ValidationError:
        raise InputError(
            f"{out.stem!r} cannot be a cluster's name; allowed: letters, digits, . _ -, the first "
            "of them a letter or digit",
            f"--out {out}",
            f"--out {out.with_name('here.yaml')}",
        ) from None
    try:
        check_writable(out)
        is_there = out.is_file()
    except OSError as error:
        raise _cannot_write(out, error) from error
    if not is_there:
        return
    try:
        is_ours = load_cluster(out).calibration is not None
    except InputError:
        is_ours = False
    if not is_ours:
        raise InputError(
            f"{out} exists and is no calibrated cluster, so it is not written over",
            "--out",
            "another file",
        )


def write(cluster: Cluster, out: Path) -> None:
    """Put a cluster file in place.

    Raises:
        InputError: it cannot be written.
    """
    source = f"orchestrator calibrate, {time.strftime('%Y-%m-%d')}"
    text = cluster_yaml(cluster, source)
    read_cluster(text, str(out))  # what cannot be read back is not put in place
    try:
        write_text(out, text)
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> InputError:
    message = f"cannot write {out}: {error.strerror or error}"
    return InputError(message, "--out", "a file that you may write")


def measured_programs(
    plans: Sequence[str], batches: Sequence[int], ranks: int
) -> tuple[tuple[Program, ...], Program]:
    """What :class:`MeasureJob` asks for: programs whose layer parts are measured, and the link."""
    programs = tuple(_program(p, b, replicas=1) for p in plans for b in batches)
    return programs, _program("single", ranks, replicas=ranks, options=_SMALL)


def _program(source: str, batch: int, *, replicas: int, options: tuple[str, ...] = ()) -> Program:
    settings = [f"global_batch_size={batch}", f"replicas={replicas}", *options]
    plan = load_plan(source, settings)
    precision = precision_of(plan)
    if precision != Precision.of("float32"):
        place = plan.location(("training", "precision"))
        message = f"calibrate measures float32; {plan.name} asks for {precision}"
        raise InputError(message, place, "leave training.precision out of the plan to measure it")
    return compile_plan(plan, model_of(plan))


def _measure(
    screen: Console, programs: tuple[Program, ...], link: Program, count: int, seconds: float,
    threads: int | None,
) -> tuple[dict[int, Measured], dict[int, str]]:  # fmt: skip
    from orchestrator.execute.measure import MeasureJob, measure
    from orchestrator.execute.ray_launch import launch

    found: dict[int, Any] = {}
    nodes: dict[int, str] = {}
    bar = Progress(
        BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=screen, transient=True, disable=not screen.is_terminal,
    )  # fmt: skip

    def on_event(rank: int, kind: str, payload: Any) -> None:
        if kind in ("status", "progress"):
            bar.update(task, description=payload, completed=time.perf_counter() - begun)
            if bar.disable:
                screen.print(payload)
        elif kind == "node":
            nodes[rank] = payload
        elif kind == "measured":
            found[rank] = payload

    with bar:
        begun = time.perf_counter()
        task = bar.add_task("starting", total=seconds + _AROUND_S)
        launch(
            measure,
            lambda _: MeasureJob(programs, link, seconds),
            world_size=count,
            on_event=on_event,
            threads_per_worker=threads,
        )
    return found, nodes


def load_seconds(model: Model) -> dict[str, float]:
    """Seconds of loading one image of each built-in data set that the model can read."""
    import numpy as np

    from orchestrator.train.data import open_for

    found = {}
    for name in ("digits", "synthetic"):
        try:
            data = open_for(model, name, 0)
        except InputError:
            continue  # no run of this model can use it either
        times = []
        for i in range(6):
            begun = time.perf_counter()
            data.images(np.arange(16 * i, 16 * i + 16))
            times.append((time.perf_counter() - begun) / 16)
        found[name] = median(times[1:])
    return found
