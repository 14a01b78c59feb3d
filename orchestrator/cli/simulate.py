"""``orchestrator simulate``: one step of a plan on a cluster that need not exist."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.figures import duration, footnote, mark, seconds, share, three_digits
from orchestrator.cli.metrics_options import check, giving_out, metrics_options
from orchestrator.cli.options import as_json, one_plan, overrides, positive, split_overrides
from orchestrator.cli.run_view import shares_table
from orchestrator.cli.show import remedies
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.files import open_regular, replacing, write_text
from orchestrator.models.model import Model
from orchestrator.observe import timeline, trace
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.assumed import assumed_behind
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.epoch import DataSet, data_set, usual_data
from orchestrator.simulate.fit import fits
from orchestrator.simulate.predict import STEADY, Prediction, simulate
from orchestrator.simulate.trace_source import trace_source


@click.command("simulate")
@one_plan
@click.option("--cluster", "cluster_source", required=True, help="A path, or a shipped cluster.")
@click.option(
    "--steps", type=int, default=STEADY, show_default=True,
    help="Steps to simulate; the last one is shown.",
)  # fmt: skip
@click.option(
    "--jitter", type=float, default=0.0, show_default=True,
    help="Standard deviation of every computation's time over its mean, such as 0.02.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the jitter.")
@click.option(
    "--data",
    help="The data set of an epoch, and of loading where that was measured: imagenet, digits, "
    "synthetic, synthetic:N or imagefolder:PATH. By default an epoch is of imagenet for 1,000 "
    "classes of colour images, of digits for ten classes of gray ones.",
)
@click.option("--examples", type=int, help="Images in an epoch, instead of the data set's own.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Write timeline, trace and summary to this folder: a new one, or a simulation's.",
)  # fmt: skip
@metrics_options
@overrides
@as_json
def command(
    plan_source: str,
    cluster_source: str,
    steps: int,
    jitter: float,
    seed: int,
    data: str | None,
    examples: int | None,
    out: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    metrics_linger_s: float | None,
    pushgateway: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict one training step of PLAN on a cluster: time, where it goes, memory, money.

    With --metrics-port or --pushgateway the step is told to Prometheus, too, under the names of a
    run's metrics and source="simulated". Served, it stays until Ctrl-C, or for --metrics-linger.

    --set changes the plan, or with the prefix cluster. the cluster: --set cluster.nodes=512.
    """
    check(metrics_host, metrics_linger_s, pushgateway)
    if metrics_port is None and metrics_linger_s is not None:
        raise InputError("nothing is served that could stay", "--metrics-linger",
                         "--metrics-port 0 beside it")  # fmt: skip
    for_s = math.inf if metrics_linger_s is None else metrics_linger_s
    metrics = MetricsOptions(
        metrics_port is not None, metrics_host, metrics_port or 0, for_s, pushgateway
    )
    of_plan, of_cluster = split_overrides(overrides)
    plan = load_plan(plan_source, of_plan)
    cluster = load_cluster(cluster_source, of_cluster)
    positive("steps", steps)
    positive("examples", examples)
    model = model_of(plan)
    if out is not None:
        with _telling_of(out):
            _check_out(out)
    prediction = simulate(
        plan, model, cluster, steps,
        data=_data_of(model, data, examples), jitter=jitter, seed=seed,
    )  # fmt: skip
    found = describe(prediction, cluster)
    if out is not None:
        with _telling_of(out):
            _write(out, prediction, cluster, found)
    if as_json:
        echo(json.dumps(found))
    else:
        _print(found, prediction, cluster)
    if not found["fits"]:
        _tell_misfit(prediction, cluster)
        echo(remedies(plan, model, cluster), err=True)
    if metrics.wanted:
        _give_out(prediction, cluster, metrics, out)
    return 0 if found["fits"] else 1


def describe(prediction: Prediction, cluster: Cluster) -> dict[str, Any]:
    """The JSON of ``simulate``, and ``summary.json`` of its folder."""
    program = prediction.program
    return {
        "name": program.name,
        "model": program.model.name,
        "cluster": cluster.name,
        "source": "simulated",
        "world_size": program.world_size,
        "global_batch_size": program.global_batch,
        **prediction.summary,
        "notes": list(prediction.notes),
        "assumed": list(cluster.assumed()),
    }


def _give_out(
    prediction: Prediction, cluster: Cluster, options: MetricsOptions, out: Path | None
) -> None:
    from orchestrator.simulate.export import export

    run = out.resolve().name if out is not None else f"{prediction.program.name}-{cluster.name}"
    metrics = export(prediction, cluster, run, options)
    with giving_out(metrics, lambda text: echo(text, err=True)):
        if out is not None and metrics.discovery is not None:
            where = metrics.discovery.describe()
            with _telling_of(out):
                write_text(out / "metrics.json", json.dumps(where, indent=1) + "\n")


def _data_of(model: Model, data: str | None, examples: int | None) -> DataSet:
    """The data set that the options name, else that which the network is made for.

    Raises:
        InputError: no such data.
    """
    if data is None:
        return usual_data(model) if examples is None else DataSet("", examples)
    kind = data.partition(":")[0]
    found = data_set(data)
    if found is None and kind == "imagefolder":
        from orchestrator.train.data import open_for  # brings torch along

        folder = open_for(model, data, 0)
        found = DataSet(data, folder.size)
    elif found is None:
        raise InputError(
            "no such data",
            f"--data {data}",
            "one of imagenet, digits, synthetic, synthetic:N or imagefolder:PATH; or --examples N",
        )
    return found if examples is None else DataSet(found.name, examples)


@contextmanager
def _telling_of(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write to {out}: {error.strerror or error}"
        raise InputError(message, "--out", "a folder where you may write") from error


def _check_out(out: Path) -> None:
    """Refuse a folder of somebody else's: a simulation writes over its own files only.

    Raises:
        InputError: the folder holds something that no simulation has written.
        OSError: it cannot be read.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise InputError(f"cannot write to {out}: it is no folder", "--out", "a new folder")
    if (out / "steps.jsonl").exists():
        raise InputError(f"{out} holds a measured run", "--out", "another folder")
    try:
        with open_regular(out / "summary.json") as file:
            summary = json.load(file)
    except (OSError, ValueError):
        summary = None
    if not isinstance(summary, dict) or summary.get("source") != "simulated":
        raise InputError(
            f"{out} is not empty, and no simulation has written it", "--out", "a new folder"
        )


def _write(out: Path, prediction: Prediction, cluster: Cluster, found: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "summary.json", json.dumps(found, indent=1) + "\n")  # says whose folder it is
    with replacing(out / "timeline.jsonl") as file:
        timeline.write(file, prediction.program, [prediction.times])
    with replacing(out / "trace.json") as file:
        trace.write(file, trace_source(prediction, cluster))


def _print(found: dict[str, Any], prediction: Prediction, cluster: Cluster) -> None:
    screen = console()
    folded = prediction.program.replicas
    screen.print(
        f"[bold]{found['name']}[/] on [bold]{cluster.name}[/]: {found['world_size']} ranks, batch "
        f"{found['global_batch_size']}" + (f"; ranks of one of {folded} replicas" * (folded > 1))
    )
    assumed = assumed_behind(cluster, prediction)
    footnotes = dict.fromkeys(assumed.time)
    screen.print(shares_table(found, predicted=assumed.time))
    table = Table(box=None, show_header=False)
    table.add_row(*_epoch_row(found, mark(assumed.time)))
    if "replicas" in found:
        each = found["replicas"]["compute_time_s"]
        table.add_row(
            "slowest replica",
            f"{found['replicas']['slowest']}: its busiest rank computes {seconds(each['max'])}, "
            f"that of the others {seconds(each['mean'])} on average",
        )
    for key, label, unit, keys in (
        ("dollars_per_epoch", "cost of an epoch", "$", assumed.dollars),
        ("kWh_per_epoch", "energy of an epoch", "kWh", assumed.energy),
    ):
        if found[key] is not None:
            table.add_row(label, f"{mark(keys)}{three_digits(found[key])} {unit}")
            footnotes |= dict.fromkeys(keys)
    if found["goodput_ratio"] is not None:
        left = mark(assumed.goodput) + share(found["goodput_ratio"])
        table.add_row("left after failures and checkpoints", left)
        footnotes |= dict.fromkeys(assumed.goodput)
    screen.print(table)
    if footnotes:
        screen.print(footnote(cluster.name, [*footnotes]), markup=False)
    for note in found["notes"]:
        screen.print(f"note: {note}", markup=False)


def _tell_misfit(prediction: Prediction, cluster: Cluster) -> None:
    for rank in fits(prediction.program, cluster, prediction.memory):
        if not rank.fits:
            echo(str(rank), err=True)


def _epoch_row(found: dict[str, Any], assumed: str) -> tuple[str, str]:
    """What an epoch is of, and how long it takes; ``assumed`` marks what rests on assumptions."""
    epoch = found["epoch"]
    if epoch["steps"] is None:
        return "an epoch", f"not known: {escape(epoch['because'])}"
    of = f"{escape(epoch['data'])}, " if epoch["data"] else ""
    steps = f"{epoch['steps']:,} step{'s' * (epoch['steps'] > 1)}"
    return (
        f"an epoch of {of}{epoch['examples']:,} images",
        f"{assumed}{duration(found['epoch_time_s'])}, {steps}",
    )
