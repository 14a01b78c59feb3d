"""Pipeline schedules: for each pipeline group, its actions in order, as plain data.

A schedule is a file here that ends in a row, ``SCHEDULE``; the registry is made of them. Plans
take their names from it and compile its orders. Interpreters of programs know no schedule.

In the pictures a row is a pipeline group and a column one unit of time; ``1F0`` is stage 1,
forward, microbatch 0. In formulas p is the number of groups, m that of microbatches, v that of
stages a group; t_F, t_B, t_I and t_W are the seconds of an action on one stage.
"""

from importlib import import_module
from pkgutil import iter_modules

from orchestrator.schedules.schedule import (
    Action,
    Misfit,
    Schedule,
    Stages,
    Timetable,
    ends_with,
    in_rounds,
    linearise,
    looped,
    needs_of,
    play,
    straight,
    v_shaped,
)


def _rows() -> dict[str, Schedule]:
    """The row of every file here, the oldest paper first."""
    files = [import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__)]
    rows: list[Schedule] = [file.SCHEDULE for file in files if hasattr(file, "SCHEDULE")]
    return {row.name: row for row in sorted(rows, key=lambda row: (row.year, row.name))}


SCHEDULES = _rows()
"""By name, as plans write it."""

__all__ = [
    "SCHEDULES",
    "Action",
    "Misfit",
    "Schedule",
    "Stages",
    "Timetable",
    "ends_with",
    "in_rounds",
    "linearise",
    "looped",
    "needs_of",
    "play",
    "straight",
    "v_shaped",
]
