"""Panels as Grafana 7 to 13 read them: what all of those have, and nothing that one of them lacks.

The data source is the string ``"${datasource}"``; an object ``{type, uid}`` stays blank, without an
error, before 8.3. What was renamed on the way stands under both names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

DATA_SOURCE = "${datasource}"
GRID_COLUMNS = 24
# A newer Grafana sees it, and brings a panel's options up to its own version.
WRITTEN_FOR = "7.5.0"

# Grafana's names of units.
SECONDS, BYTES, RATIO, NUMBER, SHORT = "s", "decbytes", "percentunit", "none", "short"


@dataclass(frozen=True)
class Query:
    """One PromQL expression.

    Args:
        legend: name of each series, with labels in ``{{}}``; in a table, the title of the column.
        unit: of a table's column, where it is not the panel's.
        color: of a table's column of shares, drawn as a bar.
    """

    expr: str
    legend: str = ""
    unit: str = ""
    color: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel's JSON, and its size on the grid; where it stands is the dashboard's matter."""

    json: Json
    width: int
    height: int


def heading(title: str) -> Panel:
    """A line over the panels that follow."""
    json: Json = {"type": "row", "title": title, "collapsed": False, "panels": []}
    return Panel(json, GRID_COLUMNS, 1)


def timeseries(
    title: str,
    unit: str,
    about: str,
    *queries: Query,
    width: int = 12,
    stack_colors: Mapping[str, str] | None = None,
    repeat: str = "",
) -> Panel:
    """Values over time.

    Args:
        stack_colors: stack the series, coloured by name, to 1.
        repeat: a variable; the panel is shown once for each of its values.
    """
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 0 if stack_colors else 2,
        "fillOpacity": 85 if stack_colors else 0,
        "showPoints": "never",
        "spanNulls": False,
    }
    defaults: Json = {"unit": unit, "custom": custom, "min": 0}
    overrides: list[Json] = []
    if stack_colors:
        custom["stacking"] = {"mode": "normal", "group": "A"}
        defaults["max"] = 1
        overrides = [
            _named(name, color={"mode": "fixed", "fixedColor": color})
            for name, color in stack_colors.items()
        ]
    json = _panel("timeseries", title, about, defaults, overrides)
    json["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi"},
        "tooltipOptions": {"mode": "multi"},  # its name in 7
    }
    json["targets"] = [_target(i, q.expr, legendFormat=q.legend) for i, q in enumerate(queries)]
    if repeat:
        json |= {"repeat": repeat, "repeatDirection": "h", "maxPerRow": 4}
    return Panel(json, width, 8)


def stat(title: str, unit: str, about: str, query: Query, width: int = 4) -> Panel:
    """The newest value, large, with its course behind it."""
    json = _panel("stat", title, about, {"unit": unit, "color": _ONE_COLOR})
    json["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none",
        "graphMode": "area",
        "textMode": "value_and_name" if "{{" in query.legend else "value",
    }
    json["targets"] = [_target(0, query.expr, legendFormat=query.legend)]
    return Panel(json, width, 4)


def bars(
    title: str, unit: str, about: str, query: Query, width: int = 12, *, signed: bool = False
) -> Panel:
    """The newest values as bars, one for each series.

    Args:
        signed: bars may go below zero.
    """
    bounds: Json = {} if signed else {"min": 0}
    json = _panel("bargauge", title, about, {"unit": unit, "color": _ONE_COLOR, **bounds})
    json["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
    }
    json["targets"] = [_target(0, query.expr, legendFormat=query.legend, instant=True)]
    return Panel(json, width, 10)


def table(
    title: str,
    unit: str,
    about: str,
    by: Sequence[str],
    *queries: Query,
    width: int = 24,
    sort: str = "",
) -> Panel:
    """The newest values, a row for each value of the labels ``by``, a column for each query."""
    overrides = []
    for letter, query in zip(_LETTERS, queries, strict=False):
        # A frame that was alone names its column without the letter.
        names = [f"Value #{letter}", *(["Value"] if len(queries) == 1 else [])]
        for name in names:
            override: Json = {"displayName": query.legend}
            if query.unit:
                override["unit"] = query.unit
            if query.color:
                override |= {
                    "color": {"mode": "fixed", "fixedColor": query.color},
                    "custom.displayMode": "basic",  # a bar; 10 and later translate it
                    "min": 0,
                    "max": 1,
                }
            overrides.append(_named(name, **override))
    json = _panel("table", title, about, {"unit": unit}, overrides)
    json["options"] = {"showHeader": True, "sortBy": _sorted_by(sort)}
    json["targets"] = [
        _target(i, q.expr, instant=True, format="table") for i, q in enumerate(queries)
    ]
    order = {name: i for i, name in enumerate(by)}
    json["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": order}},
    ]
    return Panel(json, width, 10)


def matrix(
    title: str,
    unit: str,
    about: str,
    rows: str,
    columns: str,
    prefix: str,
    expr: str,
    width: int = 12,
) -> Panel:
    """The newest values as a square: a row for each value of one label, a column of the other.

    Args:
        prefix: before a column's value in its title.
        expr: gives the labels ``rows`` and ``columns`` and no other.
    """
    expr = f'label_replace({expr}, "{columns}", "{prefix}$1", "{columns}", "(.*)")'
    custom = {"align": "right", "displayMode": "color-background"}
    defaults = {"unit": unit, "custom": custom, "color": {"mode": "continuous-BlPu"}}
    plain = _named(rows, **{"custom.displayMode": "auto", "unit": "string"})
    json = _panel("table", title, about, defaults, [plain])
    json["options"] = {"showHeader": True, "sortBy": _sorted_by(rows, descending=False)}
    json["targets"] = [_target(0, expr, instant=True, format="time_series")]
    json["transformations"] = [
        {"id": "labelsToFields", "options": {"valueLabel": columns}},
        {"id": "merge", "options": {}},  # labelsToFields merges by itself up to Grafana 8
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True}, "indexByName": {rows: 0}},
        },
    ]
    return Panel(json, width, 10)


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ONE_COLOR = {"mode": "fixed", "fixedColor": "#0072B2"}  # blue, of the palette's eight


def _panel(
    kind: str, title: str, about: str, defaults: Json, overrides: Sequence[Json] = ()
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": DATA_SOURCE,
        "pluginVersion": WRITTEN_FOR,
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
    }


def _target(number: int, expr: str, **more: Any) -> Json:
    return {"refId": _LETTERS[number], "datasource": DATA_SOURCE, "expr": expr, **more}


def _named(name: str, **properties: Any) -> Json:
    """Settings for one series or column."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _sorted_by(column: str, *, descending: bool = True) -> list[Json]:
    return [{"displayName": column, "desc": descending}] if column else []
