"""``orchestrator compare``: plans against each other, runs against their prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import as_json, overrides, split_overrides
from orchestrator.errors import InputError
from orchestrator.observe.run_record import read_run
from orchestrator.plan import load_plan
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.compare import PARTS, Item, compare
from orchestrator.simulate.predict import simulate

_BAR = 24
_LETTERS = {
    "compute_time_s": ("█", "green"),
    "exposed_communication_time_s": ("▓", "red"),
    "wait_time_s": ("▒", "yellow"),
    "bubble_time_s": ("░", "blue"),
    "other_time_s": ("·", "dim"),
}


@click.command("compare")
@click.argument("sources", metavar="ITEM...", nargs=-1, required=True)
@click.option("--cluster", "cluster_source", help="Simulate on it; needed for plans.")
@overrides
@as_json
def command(
    sources: tuple[str, ...],
    cluster_source: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compare plans (simulated) and run folders (measured, and simulated beside it).

    ITEM is a plan or a run folder. --set changes every plan, or with the prefix cluster. the
    cluster.
    """
    of_plan, of_cluster = split_overrides(overrides)
    cluster = load_cluster(cluster_source, of_cluster) if cluster_source else None
    items = [_item(source, of_plan, cluster) for source in sources]
    found = compare(items, cluster)
    if as_json:
        click.echo(json.dumps(found))
    else:
        _print(found)
    return 0


def _item(source: str, of_plan: list[str], cluster: Cluster | None) -> Item:
    path = Path(source)
    if path.is_dir():
        record = read_run(path)
        model = model_of(record.plan)
        prediction = simulate(record.plan, model, cluster) if cluster else None
        return Item(
            path.name or source, record.plan, model, prediction, record.summary, record.op_seconds
        )
    plan = load_plan(source, of_plan)
    if cluster is None:
        raise InputError(
            f"{source} is a plan: to compare it, it has to be simulated on a cluster",
            "--cluster",
            "--cluster localhost, or another of cluster/",
        )
    model = model_of(plan)
    return Item(plan.name, plan, model, simulate(plan, model, cluster))


def _print(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, header_style="dim")
    table.add_column("")
    for name in ("step", "images/s", "error"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("where the time goes", no_wrap=True)
    for item in found["items"]:
        for source in ("measured", "predicted"):
            row = item[source]
            if row is None:
                continue
            error = item["error_ratio"]
            shown = f"{error:+.1%}" if source == "predicted" and error is not None else ""
            table.add_row(
                f"{item['name']} [dim]({source})[/]", f"{row['step_time_s']:.3g} s",
                f"{row['images_per_s']:,.1f}", shown, _bar(row),
            )  # fmt: skip
    console.print(table)
    legend = "  ".join(f"[{c}]{s}[/] {PARTS[k]}" for k, (s, c) in _LETTERS.items())
    console.print(legend)
    console.print(f"[bold]{found['winner']}[/] wins" if len(found["items"]) > 1 else "")
    for line in found["because"]:
        console.print(f"  {line}")
    if found["mean_absolute_error_ratio"] is not None:
        tau = found["kendall_tau"]
        console.print(
            f"step time predicted with a mean error of {found['mean_absolute_error_ratio']:.1%}, "
            f"at worst {found['worst_error_ratio']:.1%}"
            + (f"; order right to Kendall's tau {tau:.2f}" if tau is not None else "")
        )
        for item in found["items"]:
            if "ops" in item:
                console.print(_op_table(item))


def _bar(row: dict[str, Any]) -> str:
    """Shares of the step as a bar."""
    text, done, total = "", 0.0, 0
    for key, (letter, color) in _LETTERS.items():
        done += max(0.0, row[key]) / row["step_time_s"]
        cells = round(done * _BAR) - total
        total += cells
        if cells > 0:
            text += f"[{color}]{letter * cells}[/]"
    return text


def _op_table(item: dict[str, Any]) -> Table:
    table = Table(
        "", box=None, header_style="dim", title=f"{item['name']}: seconds a step, all ranks",
        title_justify="left",
    )  # fmt: skip
    for name in ("predicted", "measured", "error"):
        table.add_column(name, justify="right")
    for row in item["ops"]:
        error = row["error_ratio"]
        table.add_row(
            row["kind"], f"{row['predicted_s']:.4g}", f"{row['measured_s']:.4g}",
            "" if error is None else f"{error:+.1%}",
        )  # fmt: skip
    for row in item["worst_layers"]:
        table.add_row(
            f"{row['layers']} ({row['what']})", f"{row['predicted_s']:.4g}",
            f"{row['measured_s']:.4g}", "",
        )  # fmt: skip
    return table
