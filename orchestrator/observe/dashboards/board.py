"""A dashboard: its pickers, and its panels from left to right and from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.observe.dashboards.panels import DATA_SOURCE, GRID_COLUMNS, Json, Panel

TAG = "orchestrator"
DATA_SOURCE_NAME = "orchestrator"
SCHEMA_VERSION = 27  # of Grafana 7.4 and 7.5; later ones bring it up to their own
# Grafana's sorting of a picker, and its way to say that it is not shown.
_AS_QUERIED, _BY_NUMBER = 0, 3
_HIDDEN = 2


@dataclass(frozen=True)
class Variable:
    """A picker.

    Args:
        name: the variable ``$name``.
        query: gives its values: ``label_values(series, label)``, or ``query_result(expression)``,
            whose rows are texts such as ``{run="a"} 1 1700000000000``.
        regex: its first group is the value; the whole where there is none.
        first: what is picked at first; else the first value, or all.
        multi: several can be picked.
        everything: all are picked at first.
        hidden: not shown. Its choice comes and goes with the links between dashboards all the same.
        in_url: part of the address, and so of the links.
        by_number: values in the order of their numbers; else as the query has them.
    """

    name: str
    title: str
    query: str
    regex: str = ""
    first: str = ""
    multi: bool = False
    everything: bool = False
    hidden: bool = False
    in_url: bool = True
    by_number: bool = False

    def carried(self) -> Variable:
        """The same in a dashboard that does not use it: for its links."""
        return replace(self, hidden=True)

    def json(self) -> Json:
        """As Grafana has it."""
        current: Json = {}
        if self.everything:
            current = {"selected": True, "text": ["All"], "value": ["$__all"]}
        elif self.first:
            current = {"selected": True, "text": self.first, "value": self.first}
        return {
            "type": "query",
            "name": self.name,
            "label": self.title,
            "datasource": DATA_SOURCE,
            "definition": self.query,
            "query": self.query,
            "refresh": 2,  # when the time range changes: runs come and go
            "sort": _BY_NUMBER if self.by_number else _AS_QUERIED,
            "multi": self.multi or self.everything,
            "includeAll": self.everything,
            "allValue": ".*" if self.everything else None,
            "current": current,
            "regex": self.regex,
            "hide": _HIDDEN if self.hidden else 0,
            "skipUrlSync": not self.in_url,
            "options": [],
        }


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Args:
        name: of its file, and in its uid.
    """

    name: str
    title: str
    about: str
    variables: Sequence[Variable]
    panels: Sequence[Panel]

    def json(self) -> Json:
        """As Grafana imports it, and as its HTTP API takes it."""
        return {
            "uid": f"orchestrator-{self.name}",
            "title": f"Orchestrator: {self.title}",
            "description": self.about,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,  # one cursor in all panels
            "refresh": "5s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Dashboards",
                    "tags": [TAG],
                    "asDropdown": True,  # side by side they would take a second line
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "templating": {"list": [_data_source(), *(v.json() for v in self.variables)]},
            "panels": _placed(self.panels),
        }


def _data_source() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
        "current": {"selected": True, "text": DATA_SOURCE_NAME, "value": DATA_SOURCE_NAME},
        "refresh": 1,
        "regex": "",
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
        "options": [],
    }


def _placed(panels: Sequence[Panel]) -> list[Json]:
    """Line by line; one that has no room left in its line begins the next."""
    found = []
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > GRID_COLUMNS:
            x, y, line = 0, y + line, 0
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        found.append({"id": number, **panel.json, "gridPos": place})
        x, line = x + panel.width, max(line, panel.height)
    return found
