"""Options that several verbs have."""

from __future__ import annotations

import click

from orchestrator.errors import InputError

overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override a plan value by its dotted key, such as training.lr=0.02; repeatable.",
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object, nothing else.")


def split_overrides(overrides: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Overrides of the plan, and those of the cluster (``cluster.nodes=512``), prefix removed."""
    prefix = "cluster."
    of_cluster = [o.removeprefix(prefix) for o in overrides if o.startswith(prefix)]
    return [o for o in overrides if not o.startswith(prefix)], of_cluster


def positive(what: str, value: int | None) -> None:
    """Refuse a count below one."""
    if value is not None and value < 1:
        raise InputError(f"{value} is not a number of {what}", f"--{what}", f"--{what} 10")
