"""The Grafana dashboards: built here, shipped as JSON in ``dashboards/``, pushed from there.

``python -m orchestrator.observe.dashboards`` writes the JSON anew after a change; a test compares.
"""

from __future__ import annotations

import json
from copy import deepcopy

from orchestrator.errors import InputError
from orchestrator.observe.dashboards import links, overview, pipeline, plans, predicted
from orchestrator.observe.dashboards.board import DATA_SOURCE_NAME
from orchestrator.observe.dashboards.panels import Json
from orchestrator.plan.shipped import shipped

__all__ = ["DATA_SOURCE_NAME", "build", "shipped_dashboards", "written"]


def build() -> dict[str, Json]:
    """Every dashboard by the name of its file in ``dashboards/``."""
    boards = [module.board() for module in (overview, links, pipeline, plans, predicted)]
    return {f"{board.name}.json": board.json() for board in boards}


def shipped_dashboards(data_source: str = DATA_SOURCE_NAME) -> dict[str, Json]:
    """The dashboards of ``dashboards/``, by file name, as they stand there, edited or not.

    Args:
        data_source: name of the Prometheus that they open with.

    Raises:
        InputError: a file that somebody edited is no dashboard any more.
    """
    found = {}
    for path in sorted(shipped("dashboards").glob("*.json")):
        try:
            dashboard = json.loads(path.read_text(encoding="utf-8"))
            found[path.name] = _reading(dashboard, data_source)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"not a dashboard: {error!r}", str(path), "take the file as it was shipped"
            ) from error
    return found


def written(dashboard: Json) -> str:
    """A dashboard as its file has it."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _reading(dashboard: Json, data_source: str) -> Json:
    found = deepcopy(dashboard)
    for variable in found["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] |= {"text": data_source, "value": data_source}
    if not (found["uid"] and found["title"]):
        raise ValueError("no uid or no title")
    return found
