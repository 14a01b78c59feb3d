"""Options that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from orchestrator.errors import InputError

Command = Callable[..., Any]

overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a plan value by its dotted key, such as training.lr=0.02; repeatable.",
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object, nothing else.")


def one_plan(command: Command) -> Command:
    """A verb's plan, as ``PLAN`` or as ``--plan PLAN``: the argument ``plan_source``."""

    @click.argument("plan_argument", metavar="PLAN", required=False)
    @click.option("--plan", "plan_option", metavar="PLAN", help="The same as the argument PLAN.")
    @wraps(command)
    def with_plan(plan_argument: str | None, plan_option: str | None, **options: Any) -> Any:
        if plan_argument is None and plan_option is None:
            raise click.UsageError("Missing argument 'PLAN'.")
        if plan_argument is not None and plan_option is not None:
            raise click.UsageError(f"two plans, {plan_argument} and {plan_option}; name one")
        return command(plan_source=plan_argument or plan_option, **options)

    return with_plan


def split_overrides(overrides: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Overrides of the plan, and those of the cluster (``cluster.nodes=512``), prefix removed."""
    prefix = "cluster."
    of_cluster = [o.removeprefix(prefix) for o in overrides if o.startswith(prefix)]
    return [o for o in overrides if not o.startswith(prefix)], of_cluster


def positive(what: str, value: int | None) -> None:
    """Refuse a count below one."""
    if value is not None and value < 1:
        raise InputError(f"{value} is not a number of {what}", f"--{what}", f"--{what} 10")
