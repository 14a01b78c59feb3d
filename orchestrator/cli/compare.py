"""``orchestrator compare``: plans against each other, runs against their prediction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from orchestrator.cli.compare_view import show
from orchestrator.cli.options import as_json, overrides, split_overrides
from orchestrator.cli.terminal import echo
from orchestrator.errors import InputError
from orchestrator.observe.run_record import RunRecord, read_run
from orchestrator.plan import load_plan, shipped_names
from orchestrator.program import compile_plan
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.compare import Item, compare
from orchestrator.simulate.epoch import data_of_run
from orchestrator.simulate.predict import simulate
from orchestrator.simulate.sweep import Sweep

MACHINE = "gtx580x2"  # the one of the first paper, for the remedy


@click.command("compare")
@click.argument("sources", metavar="ITEM...", nargs=-1, required=True)
@click.option("--cluster", "cluster_source", help="Simulate on it; needed for plans.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the comparison as one page that works offline.",
)  # fmt: skip
@overrides
@as_json
def command(
    sources: tuple[str, ...],
    cluster_source: str | None,
    html: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compare plans (simulated) and run folders (measured, and simulated beside it).

    ITEM is a plan or a run folder. --set changes every plan, or with the prefix cluster. the
    cluster.
    """
    of_plan, of_cluster = split_overrides(overrides)
    cluster = load_cluster(cluster_source, of_cluster) if cluster_source else None
    sweep = Sweep(cluster) if cluster else None
    entries = [_entry(source, of_plan, cluster) for source in sources]
    found = compare([entry.item for entry in entries], cluster, sweep)
    if html is not None:
        _write(html, entries, found, cluster, sweep)
    if as_json:
        echo(json.dumps(found))
    else:
        show(found)
        if html is not None:
            echo(f"page: {html}")
    return 0


@dataclass(frozen=True)
class Entry:
    """An item as named on the command line.

    Args:
        source: the argument.
        record: of a run folder.
    """

    source: str
    item: Item
    record: RunRecord | None = None


def _entry(source: str, of_plan: list[str], cluster: Cluster | None) -> Entry:
    path = Path(source)
    if path.is_dir():
        return _run_entry(source, read_run(path), cluster)
    plan = load_plan(source, of_plan)
    if cluster is None:
        raise InputError(
            f"{source} is a plan: to compare it, it has to be simulated on a cluster",
            "--cluster",
            f"--cluster {MACHINE}, or another: {', '.join(shipped_names('cluster'))}; or a path",
        )
    model = model_of(plan)
    return Entry(source, Item(plan.name, plan, model, simulate(plan, model, cluster)))


def _run_entry(source: str, record: RunRecord, cluster: Cluster | None) -> Entry:
    plan = record.plan
    model = model_of(plan)
    data = data_of_run(record.summary)
    prediction = simulate(plan, model, cluster, data=data) if cluster else None
    program = compile_plan(plan, model, dtype=precision_of(plan))
    # Another release may have compiled the plan to other ops; then ids say nothing here.
    known = program.digest() == record.summary.get("program")
    item = Item(
        record.folder.name or source, plan, model, prediction, record.summary,
        record.op_seconds if known else {}, program if known else None, data,
    )  # fmt: skip
    return Entry(source, item, record)


def _write(
    path: Path, entries: list[Entry], found: dict[str, object], cluster: Cluster | None,
    sweep: Sweep | None,
) -> None:  # fmt: skip
    # The chart library takes a moment to import, and only the page needs it.
    from orchestrator.cli.compare_report import describe
    from orchestrator.observe.report.page import write

    write(path, describe(entries, found, cluster, sweep))
