"""The YAML that a user writes: how a model's layers are split over ranks.

``load_plan`` reads a file or a shipped plan by name and checks all that can be told without
the model; what is wrong comes as one ``InputError`` with file, line, key and remedy.
"""

from orchestrator.plan.grid import AXES, Grid
from orchestrator.plan.load import load_plan, read_plan
from orchestrator.plan.schema import (
    SCHEMA_VERSION,
    Entry,
    Exchange,
    ModelChoice,
    Plan,
    Training,
    json_schema,
)
from orchestrator.plan.shares import Shares
from orchestrator.plan.shipped import shipped, shipped_names

__all__ = [
    "AXES",
    "SCHEMA_VERSION",
    "Entry",
    "Exchange",
    "Grid",
    "ModelChoice",
    "Plan",
    "Shares",
    "Training",
    "json_schema",
    "load_plan",
    "read_plan",
    "shipped",
    "shipped_names",
]
