"""``orchestrator verify``: deadlock proof, byte ledger, parity with one device."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from orchestrator.cli.machine import check_memory
from orchestrator.cli.options import as_json, overrides, positive
from orchestrator.cli.terminal import console, echo
from orchestrator.errors import InputError
from orchestrator.plan import Plan
from orchestrator.plan.load import PlanFile
from orchestrator.program import Precision, compile_plan
from orchestrator.program.placement import update_examples
from orchestrator.program.precision import precision_of
from orchestrator.program.resolve import model_of, recipe_of

if TYPE_CHECKING:
    from orchestrator.execute.verify import Verdict


MOST_BATCHES = 256  # tried, to find one that the plan can cut


@click.command("verify")
@click.argument("plan_sources", metavar="PLAN...", nargs=-1, required=True)
@click.option(
    "--dtype", type=click.Choice(["float64", "float32", "bfloat16"]), default="float64",
    show_default=True,
    help="Number format of the comparison, whatever the plan's training.precision. In bfloat16 "
    "what rounding explains is measured on one device and allowed, so small errors stay hidden.",
)  # fmt: skip
@click.option("--steps", type=int, default=3, show_default=True, help="Training steps to compare.")
@click.option(
    "--batch", type=int, default=None,
    help="Examples a step; by default the smallest batch that the plan can cut.",
)  # fmt: skip
@overrides
@as_json
def command(
    plan_sources: tuple[str, ...],
    dtype: str,
    steps: int,
    batch: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Prove that each PLAN cannot deadlock, hands over exactly the bytes it says, and trains the
    same network as one device: every loss and, after the last step, every parameter.

    One device computes the whole network with torch's own modules, the plan's ranks with the
    layers' functions for parts. Where they differ, the layer, exchange or sum of gradients that is
    wrong first is named.

    Runs on the local executor, at the model's real layer sizes.
    """
    positive("steps", steps)
    positive("batch", batch)
    progress = console(stderr=True)
    plans = [_with_batch(source, overrides, batch) for source in plan_sources]
    for plan in plans:
        check_memory(plan, model_of(plan), dtype)
    verdicts = []
    for plan in plans:
        if not as_json and progress.is_terminal:
            with progress.status(
                f"{plan.name}: {steps} steps of {plan.global_batch_size} examples"
            ):
                verdicts.append(_verify(plan, dtype, steps))
        else:
            verdicts.append(_verify(plan, dtype, steps))
    if as_json:
        echo(json.dumps({"plans": [_json(v) for v in verdicts]}))
    else:
        _print(verdicts, dtype)
        for plan in plans:
            trains = plan.training.precision
            if trains is not None and precision_of(plan) != Precision.of(dtype):
                note = f"{plan.name}: training.precision is {precision_of(plan)}; compared in "
                note += dtype
                echo(note, err=True)
    return 0 if all(v.passed for v in verdicts) else 1


def _verify(plan: Plan, dtype: str, steps: int) -> Verdict:
    from orchestrator.execute.verify import verify

    model = model_of(plan)
    return verify(
        compile_plan(plan, model, dtype=dtype),
        replace(recipe_of(plan, model), loss_scale=1.0),
        update_examples=update_examples(plan, model),
        steps=steps,
    )


def _with_batch(source: str, overrides: tuple[str, ...], batch: int | None) -> Plan:
    """The plan with the wanted batch, or with the smallest one that it can cut."""
    file = PlanFile.read(source)
    plan = file.plan(overrides)
    if any(o.startswith("global_batch_size=") for o in overrides):
        return plan
    if batch is not None:
        return file.plan([*overrides, f"global_batch_size={batch}"])
    model = model_of(plan)
    # what is wrong with the plan itself is told as it stands
    compile_plan(plan, model, fold=True)
    unit = plan.replicas * plan.n_microbatches
    sizes = range(max(unit, 2 * unit if unit < 4 else unit), plan.global_batch_size, unit)
    for size in sizes[:MOST_BATCHES]:
        try:
            small = file.plan([*overrides, f"global_batch_size={size}"])
            compile_plan(small, model, fold=True)
        except InputError:
            continue
        return small
    return plan


def _json(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "deadlock_free": verdict.deadlock_free,
        "ledger_exact": verdict.ledger_exact,
        "loss_relative_error": verdict.loss_relative_error,
        "parameter_relative_error": verdict.parameter_relative_error,
        "passed": verdict.passed,
        "problems": list(verdict.problems),
    }


def _print(verdicts: list[Verdict], dtype: str) -> None:
    title = f"against one device, {dtype}"
    table = Table(box=None, header_style="dim", title=title, title_justify="left")
    heads = ("plan", "no\ndeadlock", "bytes\nexact", "loss\noff by", "weights\noff by", "passed")
    for name in heads:
        table.add_column(name, no_wrap=True)
    for v in verdicts:
        table.add_row(
            v.name, _yes(v.deadlock_free), _yes(v.ledger_exact), f"{v.loss_relative_error:.1e}",
            f"{v.parameter_relative_error:.1e}", _yes(v.passed),
        )  # fmt: skip
    console().print(table)
    for v in verdicts:
        for problem in v.problems:
            echo(f"{v.name}: {problem}", err=True)


def _yes(value: bool) -> str:
    return "[green]yes[/]" if value else "[red]no[/]"
