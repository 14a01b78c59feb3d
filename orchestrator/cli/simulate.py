"""``orchestrator simulate``: one step of a plan on a cluster that need not exist."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from orchestrator.cli.metrics_options import check, giving_out, metrics_options
from orchestrator.cli.options import as_json, overrides, positive, split_overrides
from orchestrator.cli.run_view import shares_table
from orchestrator.cli.show import remedies
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.observe import timeline, trace
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.predict import STEADY, Prediction, simulate
from orchestrator.simulate.replicas import smallest_device
from orchestrator.simulate.trace_source import trace_source


@click.command("simulate")
@click.option("--plan", "plan_source", required=True, help="A path, or a shipped plan's name.")
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
@click.option("--out", type=click.Path(path_type=Path), help="Write timeline, trace and summary.")
@metrics_options
@overrides
@as_json
def command(
    plan_source: str,
    cluster_source: str,
    steps: int,
    jitter: float,
    seed: int,
    out: Path | None,
    metrics_port: int | None,
    metrics_host: str,
    metrics_linger_s: float | None,
    pushgateway: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict one training step of a plan on a cluster: time, where it goes, memory, money.

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
    model = model_of(plan)
    prediction = simulate(plan, model, cluster, steps, jitter=jitter, seed=seed)
    found = describe(prediction, cluster)
    if out is not None:
        try:
            _write(out, prediction, found)
        except OSError as error:
            message = f"cannot write to {out}: {error.strerror or error}"
            raise InputError(message, "--out", "a folder where you may write") from error
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
    """CONTRACT's JSON of ``simulate``."""
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
            (out / "metrics.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")


def _write(out: Path, prediction: Prediction, found: dict[str, Any]) -> None:
    if (out / "steps.jsonl").exists():
        raise InputError(f"{out} holds a measured run", "--out", "another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    timeline.write(out / "timeline.jsonl", prediction.program, [prediction.times])
    trace.write(out / "trace.json", trace_source(prediction))


def _print(found: dict[str, Any], prediction: Prediction, cluster: Cluster) -> None:
    screen = console()
    folded = prediction.program.replicas
    screen.print(
        f"[bold]{found['name']}[/] on [bold]{cluster.name}[/]: {found['world_size']} ranks, batch "
        f"{found['global_batch_size']}" + (f"; ranks of one of {folded} replicas" * (folded > 1))
    )
    screen.print(shares_table(found))
    table = Table(box=None, show_header=False)
    table.add_row("an epoch of ImageNet 2012", _duration(found["epoch_time_s"]))
    if "replicas" in found:
        each = found["replicas"]["compute_time_s"]
        table.add_row(
            "slowest replica",
            f"{found['replicas']['slowest']}: its busiest rank computes {each['max']:.4g} s, "
            f"that of the others {each['mean']:.4g} s on average",
        )
    for key, label, unit in (
        ("dollars_per_epoch", "cost of an epoch", "$"),
        ("kWh_per_epoch", "energy of an epoch", "kWh"),
    ):
        if found[key] is not None:
            table.add_row(label, f"{found[key]:,.2f} {unit}")
    if found["goodput_ratio"] is not None:
        table.add_row("left after failures and checkpoints", f"{found['goodput_ratio']:.2%}")
    screen.print(table)
    for note in found["notes"]:
        screen.print(f"note: {note}", markup=False)


def _tell_misfit(prediction: Prediction, cluster: Cluster) -> None:
    for m in prediction.memory:
        device = smallest_device(prediction.program, cluster, m.rank)
        if m.peak_bytes > device.usable_bytes:
            echo(
                f"does not fit: rank {m.rank} needs {m.peak_bytes / 2**30:.2f} GiB at op "
                f"{m.peak_op}, {device.name} has {device.usable_bytes / 2**30:.2f} GiB",
                err=True,
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"
