"""``orchestrator show``: what a plan gives each rank to hold, to compute and to send."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.options import as_json, overrides, split_overrides
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.models.model import Model
from orchestrator.plan import Plan, load_plan
from orchestrator.program import Program, compile_plan
from orchestrator.program.ledger import (
    GRADIENT,
    Edge,
    activation_bytes,
    by_sender,
    edges,
    sent,
)
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of
from orchestrator.program.selection import entry_layers
from orchestrator.program.text import text
from orchestrator.simulate.cluster import Cluster, load_cluster
from orchestrator.simulate.fit import RankFit, fits, what_would_fit
from orchestrator.simulate.memory import RankMemory, peak_memory

MOST_ROWS = 64  # ranks that are all listed; of more, those of the first replica
MOST_LISTED = 65_536  # ranks in JSON


@click.command("show")
@click.argument("plan_source", metavar="PLAN")
@click.option("--cluster", "cluster_source", help="Say whether the plan fits its memory.")
@click.option(
    "--picture", type=click.Path(path_type=Path),
    help="Draw it as figure 2 of the 2012 paper: a file that ends in .svg or .png.",
)  # fmt: skip
@click.option(
    "--program", "as_program", is_flag=True,
    help="Print the compiled program, an op a line, in place of the tables.",
)  # fmt: skip
@overrides
@as_json
def command(
    plan_source: str,
    cluster_source: str | None,
    picture: Path | None,
    as_program: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """What each rank of PLAN holds, computes and sends, layer by layer.

    PLAN is a path or the name of a shipped plan. --set changes the plan, or with the prefix
    cluster. the cluster.
    """
    if as_program and as_json:
        raise InputError("--program prints text, --json prints JSON", "--program", "leave one out")
    of_plan, of_cluster = split_overrides(overrides)
    plan = load_plan(plan_source, of_plan)
    cluster = load_cluster(cluster_source, of_cluster) if cluster_source else None
    model = model_of(plan)
    dtype = precision_of(plan)
    fold = plan.world_size > MOST_ROWS and not as_program
    if as_json and plan.world_size > MOST_LISTED:
        raise InputError(
            f"{plan.world_size:,} ranks; --json lists each, and at most {MOST_LISTED:,}",
            plan.location(("replicas",)),
            "leave out --json, which shows the first replica, or take fewer replicas",
        )
    program = compile_plan(plan, model, dtype=dtype, fold=fold)
    memories = peak_memory(program, processor=cluster is not None and cluster.on_processors)
    found = describe(plan, program, memories, unfold=as_json)
    ranks: list[RankFit] = []
    if cluster is not None:
        cluster.check_room(plan.world_size, plan.location(("placement",)))
        ranks = fits(program, cluster, memories)
        found["cluster"], found["fits"] = cluster.name, all(rank.fits for rank in ranks)
    if picture is not None:
        _draw(compile_plan(plan, model, dtype=dtype) if program.folded else program, picture)
    if as_json:
        echo(json.dumps(found))
    elif as_program:
        echo(text(program.columns, program.order).removesuffix("\n"))
    else:
        _print(plan, found)
        for rank in ranks:
            echo(str(rank))
    if cluster is None or found["fits"]:
        return 0
    echo(remedies(plan, model, cluster), err=True)
    return 1


def remedies(plan: Plan, model: Model, cluster: Cluster) -> str:
    """What to change in a plan that does not fit, line by line."""
    found = [str(remedy) for remedy in what_would_fit(plan, model, cluster)]
    lines = ["it does not fit; what would:", *(found or ["nothing that a plan can say"])]
    return "\n  ".join(lines)


def describe(
    plan: Plan, program: Program, memories: Sequence[RankMemory], *, unfold: bool = True
) -> dict[str, Any]:
    """The JSON of ``show``: every layer, rank and edge, those of folded replicas, too."""
    model, traffic = program.model, edges(program, unfold=unfold)
    copies = program.replicas if program.folded else 1
    activations = activation_bytes(traffic) * (1 if unfold else copies)
    split_of: dict[str, tuple[Any, list[int]]] = {}
    for number, entry in enumerate(plan.placement):
        split = entry.split if isinstance(entry.split, str) else dict(entry.grid.axes)
        for i in entry_layers(plan, model, number):
            split_of[model.layers[i].name] = (split, list(entry.ranks))
    return {
        "name": plan.name,
        "model": model.name,
        "world_size": program.world_size,
        "global_batch_size": program.global_batch,
        "parameters": model.parameters,
        "macs_forward_per_image": model.macs,
        "bytes_per_step": activations,
        "gradient_bytes_per_step": sent(program)[1] - activations,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "output_shape": list(layer.output_shape),
                "parameters": layer.parameters,
                "macs": layer.macs,
                "split": split_of[layer.name][0],
                "ranks": split_of[layer.name][1],
            }
            for layer in model.layers[:-1]
        ],
        "ranks": _ranks(program, traffic, memories, copies if unfold else 1),
        "edges": _edges(traffic, gradients=False),
        "gradient_edges": _edges(traffic, gradients=True),
    }


def _draw(program: Program, path: Path) -> None:
    from orchestrator.observe.picture import draw_program  # matplotlib takes its time

    try:
        draw_program(program, path)
    except OSError as error:
        message = f"cannot write to {path}: {error.strerror or error}"
        raise InputError(message, "--picture", "a file in a folder where you may write") from error


def _ranks(
    program: Program, traffic: Counter[Edge], memories: Sequence[RankMemory], copies: int
) -> list[dict[str, Any]]:
    of_rank = by_sender(traffic)
    peaks = {m.rank: m.peak_bytes for m in memories}
    rows = []
    for rank in range(len(program.ranks) * copies):
        local = rank % program.ranks_per_replica
        parts = [s.parts[local] for s in program.segments if local in s.parts]
        activations, gradients = of_rank.get(rank, (0, 0))
        rows.append(
            {
                "rank": rank,
                "parameters": sum(part.trained for part in parts),
                "macs_forward_per_image": sum(part.macs_per_example for part in parts),
                "activation_bytes_sent_per_step": activations,
                "gradient_bytes_sent_per_step": gradients,
                "peak_memory_bytes": peaks[rank % len(program.ranks)],
            }
        )
    return rows


def _edges(traffic: Counter[Edge], *, gradients: bool) -> list[dict[str, Any]]:
    return [
        {
            "from_rank": edge.from_rank,
            "to_rank": edge.to_rank,
            "layer": edge.layer,
            "direction": edge.direction,
            "bytes_per_step": size,
        }
        for edge, size in sorted(traffic.items())
        if (edge.direction == GRADIENT) == gradients
    ]


def _print(plan: Plan, found: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        f"[bold]{plan.name}[/]  {escape(found['model'])}, {found['world_size']} ranks, batch "
        f"{plan.global_batch_size} in {plan.n_microbatches} "
        f"microbatch{'es' * (plan.n_microbatches > 1)}, {plan.schedule}"
    )
    if plan.summary:
        screen.print(plan.summary, markup=False)
    table = Table("layer", "kind", "output", box=None, header_style="dim", pad_edge=False)
    for name in ("parameters", "multiply-adds"):
        table.add_column(name, justify="right")
    table.add_column("split")
    table.add_column("ranks")
    for layer in found["layers"]:
        table.add_row(
            escape(layer["name"]), escape(layer["kind"]), "x".join(map(str, layer["output_shape"])),
            f"{layer['parameters']:,}" if layer["parameters"] else "",
            f"{layer['macs']:,}" if layer["macs"] else "",
            _split_text(layer["split"]), _ranks_text(layer["ranks"]),
        )  # fmt: skip
    table.add_row(
        "[bold]all[/]", "", "", f"{found['parameters']:,}",
        f"{found['macs_forward_per_image']:,}", "", "",
    )  # fmt: skip
    screen.print(table)
    screen.print(_rank_table(found))
    for key, title, total, note in (
        ("edges", "activations", found["bytes_per_step"], None),
        (
            "gradient_edges", "gradients", found["gradient_bytes_per_step"],
            "ring equivalent of the collectives",
        ),
    ):  # fmt: skip
        if found[key]:
            screen.print(_edge_table(title, total, found[key], note))
    if not found["edges"] and not found["gradient_edges"]:
        screen.print("No rank talks to another.")


def _rank_table(found: dict[str, Any]) -> Table:
    table = Table(
        "rank", box=None, header_style="dim", pad_edge=False,
        title=_of_first_replica("per step", found), title_justify="left",
        caption_justify="left", caption_style="dim",
        caption="gradient bytes: ring equivalent of the collectives"
        if found["gradient_bytes_per_step"]
        else None,
    )  # fmt: skip
    columns = {
        "parameters": "parameters",
        "macs_forward_per_image": "multiply-adds an image",
        "activation_bytes_sent_per_step": "activation bytes sent",
        "gradient_bytes_sent_per_step": "gradient bytes sent",
    }
    for name in columns.values():
        table.add_column(name, justify="right")
    for row in found["ranks"]:
        table.add_row(str(row["rank"]), *(f"{row[key]:,}" for key in columns))
    return table


def _of_first_replica(title: str, found: dict[str, Any]) -> str:
    """The title, with a word on the ranks that are not listed."""
    copies = found["world_size"] // len(found["ranks"])
    return f"{title}; ranks of the first of {copies:,} replicas" if copies > 1 else title


def _edge_table(
    title: str, total: int, rows: list[dict[str, Any]], note: str | None, most: int = 24
) -> Table:
    table = Table(
        "from", "to", "before", "direction", box=None, header_style="dim", pad_edge=False,
        title=f"{title}: {total:,} bytes a step", title_justify="left",
        caption=note, caption_justify="left", caption_style="dim",
    )  # fmt: skip
    table.add_column("bytes a step", justify="right")
    for row in rows[:most]:
        table.add_row(
            str(row["from_rank"]), str(row["to_rank"]), escape(row["layer"]), row["direction"],
            f"{row['bytes_per_step']:,}",
        )  # fmt: skip
    if len(rows) > most:
        table.add_row("...", "", f"{len(rows) - most} more: --json", "", "")
    return table


def _split_text(split: str | dict[str, int]) -> str:
    if isinstance(split, str):
        return split
    return " x ".join(f"{axis} {count}" for axis, count in split.items())


def _ranks_text(ranks: list[int]) -> str:
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}..{ranks[-1]}"
    return ", ".join(map(str, ranks))
