"""Reads a plan file, with overrides from the command line, and says what is wrong and where.

::

    bytes -> text -> Document (values and lines) -> overrides -> Plan
              |          |                              |         |
              +----------+--------- InputError ---------+---------+
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from pydantic import ValidationError

from orchestrator.plan.explain import explain
from orchestrator.plan.problem import input_error
from orchestrator.plan.schema import Plan
from orchestrator.plan.source import (
    FileKind,
    find_file,
    folder_of,
    label_of,
    read_text,
    read_values,
)

PLAN = FileKind("plan", "partitions", "single", "training.lr=0.1")


def load_plan(source: str | FilePath, overrides: Sequence[str] = ()) -> Plan:
    """Loads a plan.

    Args:
        source: a path, the name of a shipped plan, with or without its suffix and folder, or ``-``
            for standard input.
        overrides: ``KEY=VALUE`` by dotted key, such as ``placement.0.split=batch``; the value
            is YAML. Later ones win.

    Raises:
        InputError: whatever is wrong, in one message with place and remedy.
    """
    return PlanFile.read(source).plan(overrides)


@dataclass(frozen=True)
class PlanFile:
    """A plan's text, read once: a pipe can be read no second time.

    Args:
        text: the YAML.
        label: what messages call it.
        folder: where paths in the plan start.
    """

    text: str
    label: str
    folder: FilePath

    @classmethod
    def read(cls, source: str | FilePath) -> PlanFile:
        """The file of a path or of a shipped name; see :func:`load_plan`."""
        path = find_file(source, PLAN)
        return cls(read_text(path, PLAN), label_of(path), folder_of(path))

    def plan(self, overrides: Sequence[str] = ()) -> Plan:
        """The plan that it holds; see :func:`load_plan`."""
        return read_plan(self.text, self.label, self.folder, overrides)


def read_plan(
    text: str, label: str = "plan", folder: FilePath = FilePath(), overrides: Sequence[str] = ()
) -> Plan:
    """A plan from its YAML text.

    Args:
        text: the YAML.
        label: what messages call it.
        folder: where paths in the plan start.
        overrides: as in :func:`load_plan`.

    Raises:
        InputError: whatever is wrong, in one message with place and remedy.
    """
    values, origin = read_values(text, label, folder, overrides, PLAN)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise input_error(explain(error), origin.location) from None
    plan._origin = origin
    return plan
