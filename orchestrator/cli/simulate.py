"""``orchestrator simulate``: one step of a plan on a cluster that need not exist."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import as_json, overrides, positive, split_overrides
from orchestrator.cli.run_view import shares_table
from orchestrator.errors import InputError
from orchestrator.observe import timeline, trace
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.predict import STEADY, Prediction, simulate


@click.command("simulate")
@click.option("--plan", "plan_source", required=True, help="A path, or a shipped plan's name.")
@click.option("--cluster", "cluster_source", required=True, help="A path, or a shipped cluster.")
@click.option(
    "--steps", type=int, default=STEADY, show_default=True,
    help="Steps to simulate; the last one is shown.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write timeline, trace and summary.")
@overrides
@as_json
def command(
    plan_source: str,
    cluster_source: str,
    steps: int,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict one training step of a plan on a cluster: time, where it goes, memory, money.

    --set changes the plan, or with the prefix cluster. the cluster: --set cluster.nodes=512.
    """
    of_plan, of_cluster = split_overrides(overrides)
    plan = load_plan(plan_source, of_plan)
    cluster = load_cluster(cluster_source, of_cluster)
    positive("steps", steps)
    prediction = simulate(plan, model_of(plan), cluster, steps)
    found = describe(prediction, cluster)
    if out is not None:
        try:
            _write(out, prediction, found)
        except OSError as error:
            message = f"cannot write to {out}: {error.strerror or error}"
            raise InputError(message, "--out", "a folder where you may write") from error
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found, prediction, cluster)
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


def _write(out: Path, prediction: Prediction, found: dict[str, Any]) -> None:
    if (out / "steps.jsonl").exists():
        raise InputError(f"{out} holds a measured run", "--out", "another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    timeline.write(out / "timeline.jsonl", prediction.program, [prediction.times])
    trace.write(out / "trace.json", prediction.program, [prediction.times], "simulated")


def _print(found: dict[str, Any], prediction: Prediction, cluster: Cluster) -> None:
    console = Console(highlight=False)
    folded = prediction.program.replicas
    console.print(
        f"[bold]{found['name']}[/] on [bold]{cluster.name}[/]: {found['world_size']} ranks, batch "
        f"{found['global_batch_size']}" + (f"; ranks of one of {folded} replicas" * (folded > 1))
    )
    console.print(shares_table(found))
    table = Table(box=None, show_header=False)
    table.add_row("an epoch of ImageNet 2012", _duration(found["epoch_time_s"]))
    for key, label, unit in (
        ("dollars_per_epoch", "cost of an epoch", "$"),
        ("kWh_per_epoch", "energy of an epoch", "kWh"),
    ):
        if found[key] is not None:
            table.add_row(label, f"{found[key]:,.2f} {unit}")
    if found["goodput_ratio"] is not None:
        table.add_row("left after failures and checkpoints", f"{found['goodput_ratio']:.2%}")
    console.print(table)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False)
    if not found["fits"]:
        _print_misfit(prediction, cluster)


def _print_misfit(prediction: Prediction, cluster: Cluster) -> None:
    for m in prediction.memory:
        room = cluster.device(m.rank).usable_bytes
        if m.peak_bytes > room:
            print(
                f"does not fit: rank {m.rank} needs {m.peak_bytes / 2**30:.2f} GiB at op "
                f"{m.peak_op}, {cluster.device(m.rank).name} has {room / 2**30:.2f} GiB",
                file=sys.stderr,
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"
