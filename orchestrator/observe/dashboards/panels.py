"""Panels as Grafana 7 to 13 read them: what all of those have, and nothing that one of them lacks.

The data source is the string ``"${datasource}"``; an object ``{type, uid}`` stays blank, without an
error, before 8.3. What was renamed on the way stands under both names.

A stat, a bar or a table shows the last value in the dashboard's time range: its queries are instant
ones over the whole range, so they answer for a run that has ended, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

DATA_SOURCE = "${datasource}"
GRID_COLUMNS = 24
# A newer Grafana sees it, and brings a panel's options up to its own version.
WRITTEN_FOR = "7.5.0"

# Grafana's names of units. `percentunit` implies a range of 0 to 1 up to 8.4, and what lies outside
# is not drawn there: it is for shares of a whole alone. The last two have no range of their own.
SECONDS, BYTES, SHARE, NUMBER, SHORT = "s", "bytes", "percentunit", "none", "short"
FACTOR, PERCENT = "suffix:×", "suffix:%"
_DECIMALS = {SHARE: 1, FACTOR: 2, PERCENT: 1}

MOST_COLUMNS = 64  # of a matrix that are put in order
LEAST_WIDTH_PX = 60  # of a column without a width, in Grafana 8 and later; 150 in 7


@dataclass(frozen=True)
class Query:
    """One PromQL expression.

    Args:
        legend: name of each series, with labels in ``{{}}``; in a table, the title of the column.
        color: of the series, or of a table's column of shares, drawn as a bar.
        dashed: a second line of the same colour.
        unit: of a table's column, where it is not the panel's.
        width: of a table's column in pixels; 0 for its part of what the others leave.
    """

    expr: str
    legend: str = ""
    color: str = ""
    dashed: bool = False
    unit: str = ""
    width: int = 0


@dataclass(frozen=True)
class Label:
    """A column of a table that holds a label's values.

    Args:
        width: in pixels; 0 for its part of what the others leave.
    """

    name: str
    width: int = 0


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
    legend: bool = True,
    stacked: bool = False,
    signed: bool = False,
    repeat: str = "",
) -> Panel:
    """Values over time.

    Args:
        legend: name the series; one alone needs no name.
        stacked: the parts of 1, on top of each other. Grafana 7 cannot, and draws them as lines
            over faint areas, so that none hides another.
        signed: values may be below zero.
        repeat: a variable; the panel is shown once for each of its values.
    """
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 20 if stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
    }
    defaults: Json = {"unit": unit, "custom": custom, "color": {"mode": "palette-classic"}}
    if not signed:
        defaults["min"] = 0
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
        defaults["max"] = 1
    overrides = [_named(q.legend, **_look(q)) for q in queries if q.color]
    json = _panel("timeseries", title, about, defaults, overrides)
    json["options"] = {
        "legend": {
            "displayMode": "list" if legend else "hidden",
            "showLegend": legend,  # 9 and later
            "placement": "bottom",
            "calcs": [],
        },
        "tooltip": {"mode": "multi"},
        "tooltipOptions": {"mode": "multi"},  # its name in 7
    }
    json["targets"] = [_target(i, q.expr, legendFormat=q.legend) for i, q in enumerate(queries)]
    if repeat:
        json |= {"repeat": repeat, "repeatDirection": "h", "maxPerRow": 4}
    return Panel(json, width, 8)


def stat(title: str, unit: str, about: str, query: Query, width: int = 4, *, empty: str) -> Panel:
    """The last value, large.

    Args:
        empty: what is said where there is none.
    """
    json = _panel("stat", title, about, {"unit": unit, "color": _fixed(_ONE_COLOR)}, empty=empty)
    json["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none",
        "graphMode": "none",
        "textMode": "value_and_name" if query.legend else "value",
    }
    json["targets"] = [_target(0, query.expr, legendFormat=query.legend, instant=True)]
    return Panel(json, width, 4)


def bars(
    title: str, unit: str, about: str, query: Query, width: int = 12, *, name: str, empty: str
) -> Panel:
    """The last values as bars, one for each series.

    Args:
        name: of a bar, with labels in ``{{}}``; Grafana gives a single bar none by itself.
        empty: what is said where there is no bar.
    """
    defaults = {"unit": unit, "color": _fixed(query.color or _ONE_COLOR), "min": 0}
    defaults["displayName"] = name.replace("{{", "${__field.labels.").replace("}}", "}")
    json = _panel("bargauge", title, about, defaults, empty=empty)
    json["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
    }
    json["targets"] = [_target(0, query.expr, legendFormat=name, instant=True)]
    return Panel(json, width, 9)


def table(
    title: str,
    unit: str,
    about: str,
    labels: Sequence[Label],
    *queries: Query,
    width: int = 24,
    height: int = 8,
    sort: str = "",
    descending: bool = True,
) -> Panel:
    """The last values, a row for each value of the labels, a column for each query, in order."""
    overrides = [_named(label.name, **_text(label.width)) for label in labels]
    order = [label.name for label in labels]
    for letter, query in zip(_LETTERS, queries, strict=False):
        # A frame that was alone names its column without the letter.
        names = [f"Value #{letter}", *(["Value"] if len(queries) == 1 else [])]
        overrides += [_named(name, **_column(query)) for name in names]
        order += names
    json = _panel("table", title, about, {"unit": unit, "custom": _narrow()}, overrides, empty="–")
    json["options"] = {"showHeader": True, "sortBy": _sorted_by(sort, descending)}
    json["targets"] = [
        _target(i, q.expr, instant=True, format="table") for i, q in enumerate(queries)
    ]
    json["transformations"] = [{"id": "merge", "options": {}}, _organized(order)]
    return Panel(json, width, height)


def matrix(
    title: str,
    unit: str,
    about: str,
    rows: str,
    columns: str,
    prefix: str,
    expr: str,
    *,
    hue: Sequence[str],
    last_column: str = "",
) -> Panel:
    """The last values as a square: a row for each value of one label, a column of the other.

    Colours are of a quarter of the largest value each. A cell without a value has the panel's own.

    Args:
        prefix: before a column's value in its title.
        expr: gives the labels ``rows`` and ``columns`` and no other; values above 0.
        hue: four colours, from the smallest values to the largest.
        last_column: a value of ``columns`` that is no number.
    """
    expr = f'label_replace({expr}, "{columns}", "{prefix}$1", "{columns}", "(.*)")'
    colors = ["panel-bg", *hue]
    steps = [None, 1e-9, 25, 50, 75]  # percent of the largest value
    defaults: Json = {
        "unit": unit,
        "custom": {"align": "right", **_cell("color-background"), **_narrow()},
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "percentage",
            "steps": [{"value": v, "color": c} for v, c in zip(steps, colors, strict=True)],
        },
        "min": 0,  # or where all values are equal, all are the least
    }
    plain = {f"custom.{key}": value for key, value in _cell("auto").items()}
    json = _panel("table", title, about, defaults, [_named(rows, **plain, **_text(80))])
    json["options"] = {"showHeader": True, "sortBy": _sorted_by(rows, False)}
    json["targets"] = [_target(0, expr, instant=True, format="time_series")]
    order = [rows, *(f"{prefix}{n}" for n in range(MOST_COLUMNS)), f"{prefix}{last_column}"]
    json["transformations"] = [
        {"id": "labelsToFields", "options": {"valueLabel": columns}},
        {"id": "merge", "options": {}},  # labelsToFields merges by itself up to Grafana 8
        _organized(order),
    ]
    return Panel(json, GRID_COLUMNS, 9)


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ONE_COLOR = "#0072B2"  # blue, of the palette's eight


def _panel(
    kind: str,
    title: str,
    about: str,
    defaults: Json,
    overrides: Sequence[Json] = (),
    empty: str = "",
) -> Json:
    if (decimals := _DECIMALS.get(defaults["unit"])) is not None and kind != "timeseries":
        defaults = {**defaults, "decimals": decimals}
    if empty:
        defaults = {**defaults, "noValue": empty}
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


def _look(query: Query) -> Json:
    """Of a series."""
    look: Json = {"color": _fixed(query.color)}
    if query.dashed:
        look["custom.lineStyle"] = {"fill": "dash", "dash": [8, 8]}
    return look


def _column(query: Query) -> Json:
    """Of a table's column of values."""
    column: Json = {"displayName": query.legend}
    if query.unit:
        column["unit"] = query.unit
        if query.unit in _DECIMALS:
            column["decimals"] = _DECIMALS[query.unit]
    if query.width:
        column["custom.width"] = query.width
    if query.color:
        column |= {"color": _fixed(query.color), "min": 0, "max": 1}
        column |= {f"custom.{key}": value for key, value in _cell("basic").items()}
    return column


def _text(width: int) -> Json:
    """Of a column of names, which the panel's unit would make numbers of."""
    column: Json = {"unit": "string", "custom.align": "left"}
    return {**column, "custom.width": width} if width else column


def _cell(mode: str) -> Json:
    """How a cell is drawn; under its name of today, too, to which 9 and later bring the old one."""
    kinds: dict[str, Json] = {
        "auto": {"type": "auto"},
        "basic": {"type": "gauge", "mode": "basic"},
        "color-background": {"type": "color-background", "mode": "basic"},
    }
    return {"displayMode": mode, "cellOptions": kinds[mode]}


def _narrow() -> Json:
    return {"minWidth": LEAST_WIDTH_PX}


def _fixed(color: str) -> Json:
    return {"mode": "fixed", "fixedColor": color}


def _organized(order: Sequence[str]) -> Json:
    index = {name: i for i, name in enumerate(order)}
    return {
        "id": "organize",
        "options": {"excludeByName": {"Time": True}, "indexByName": index, "renameByName": {}},
    }


def _sorted_by(column: str, descending: bool) -> list[Json]:
    return [{"displayName": column, "desc": descending}] if column else []
