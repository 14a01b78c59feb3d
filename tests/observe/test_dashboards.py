"""The shipped dashboards: what the builder writes, and what Grafana 7 to 13 can read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import InputError
from orchestrator.observe.dashboards import DATA_SOURCE_NAME, build, shipped_dashboards, written
from orchestrator.observe.dashboards.prometheus import prometheus_files
from orchestrator.observe.dashboards.queries import COLORS as QUERY_COLORS
from orchestrator.observe.palette import (
    BUBBLE,
    COMPUTE,
    EXPOSED,
    LOADING,
    OTHER,
    SHARE_COLORS,
    WAIT,
)
from orchestrator.plan.shipped import shipped

BOARDS = build()
PANELS = [
    pytest.param(panel, id=f"{name.removesuffix('.json')}-{panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]
KINDS = {"timeseries", "stat", "gauge", "bargauge", "table", "heatmap"}
# One unit for bytes. `percentunit` implies a range up to Grafana 8.4, and hides what is outside.
UNITS = {"s", "bytes", "percentunit", "suffix:×", "suffix:%", "none", "short"}
COLORS = {
    "compute": COMPUTE, "exposed": EXPOSED, "wait": WAIT, "bubble": BUBBLE, "loading": LOADING,
    "other": OTHER,
}  # fmt: skip
PREDICTED = "predicted-and-measured.json"
GRID_PX = 1093  # for panels, at 1440 px, beside the menu of a newer Grafana
each_board = pytest.mark.parametrize("name", BOARDS)
each_panel = pytest.mark.parametrize("panel", PANELS)

# A picker; `$1` is the group of a label_replace, `$__all` Grafana's own.
VARIABLE = re.compile(r"\$\{?([a-z]\w*)")


def test_the_files_are_what_the_builder_writes() -> None:
    """If not: python -m orchestrator.observe.dashboards."""
    folder = shipped("dashboards")
    assert {path.name for path in folder.glob("*.json")} == BOARDS.keys()
    for name, board in BOARDS.items():
        assert (folder / name).read_text(encoding="utf-8") == written(board), name
    configuration = (folder / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert configuration == prometheus_files()["prometheus.yml"]


def test_the_five() -> None:
    titles = [board["title"].removeprefix("Orchestrator: ") for board in BOARDS.values()]
    assert titles == ["Overview", "Links", "Pipeline", "Plans", "Predicted and measured"]
    assert len({board["uid"] for board in BOARDS.values()}) == 5


@each_board
def test_a_dashboard(name: str) -> None:
    board = BOARDS[name]
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert board["schemaVersion"] == 27  # of Grafana 7.5; a higher one is refused there
    assert "id" not in board
    assert "version" not in board
    assert board["links"][0]["tags"] == board["tags"]  # to all the others
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@each_board
def test_panels_fill_the_grid_without_overlapping(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    line: dict[int, int] = {}
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["h"] == line.setdefault(at["y"], at["h"]), "a line of panels has one height"
        assert at["x"] + at["w"] <= 24
        taken |= cells


@each_board
def test_pickers(name: str) -> None:
    board = BOARDS[name]
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"plan", "run"} <= variables.keys()
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["datasource"] == "${datasource}"
    used = set(VARIABLE.findall(json.dumps(board)))
    carried = {n for n, v in variables.items() if v.get("hide") == 2} & {"run", "runs"}
    assert used | carried == variables.keys()


@each_board
def test_links_keep_what_was_picked(name: str) -> None:
    """One run where one is shown, all of them where several are: the link to Plans kept one."""
    board = BOARDS[name]
    [link] = board["links"]
    assert link["includeVars"]
    assert link["keepTime"]
    assert link["asDropdown"]  # five buttons took a second line
    variables = {v["name"]: v for v in board["templating"]["list"]}
    assert {"plan", "run", "runs"} <= variables.keys()
    for name, several in (("plan", True), ("run", False), ("runs", True)):
        assert variables[name]["multi"] == variables[name]["includeAll"] == several
        assert not variables[name]["skipUrlSync"]
    assert variables["runs"]["allValue"] == ".*"
    assert variables["runs"]["hide"] == (0 if board["uid"] == "orchestrator-plans" else 2)


@each_panel
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert re.search(r"\b(High|Below 0|Above 0|Unequal|far apart)\b", panel["description"])
    assert panel["description"].endswith(".")


@each_panel
def test_a_panel_is_read_by_old_and_new(panel: dict[str, Any]) -> None:
    assert panel["datasource"] == "${datasource}"
    assert panel["targets"]
    assert [target["refId"] for target in panel["targets"]] == [
        chr(ord("A") + i) for i in range(len(panel["targets"]))
    ]
    for target in panel["targets"]:
        assert target["datasource"] == "${datasource}"


@each_panel
def test_columns_of_names_have_no_unit(panel: dict[str, Any]) -> None:
    """Grafana 7 and later give a table's unit to all columns: rank 1 was "100%"."""
    if panel["type"] != "table":
        return
    every = panel["fieldConfig"]["overrides"]
    overrides = {each["matcher"]["options"]: each["properties"] for each in every}
    labels = {name for name in overrides if not name.startswith("Value")}
    assert labels
    for name in labels:
        assert {"id": "unit", "value": "string"} in overrides[name], name


@each_panel
def test_a_panel_of_last_values_asks_for_them(panel: dict[str, Any]) -> None:
    """A query of one moment gives nothing after a run, and the last rank's alone while it ends."""
    for target in panel["targets"]:
        last = panel["type"] != "timeseries"
        assert target.get("instant", False) == last
        expr = target["expr"]
        assert ("last_over_time" in expr) == last
        if last:
            series = re.findall(r"(?<!\w)orchestrator[_:][\w:]+", expr)
            assert series
            assert len(series) == len(re.findall(r"last_over_time\(orchestrator[_:][\w:]+", expr))


@each_panel
def test_stacked_areas_hide_nothing_where_they_are_not_stacked(panel: dict[str, Any]) -> None:
    """Grafana 7 knows no stacking: the areas lay one over the other."""
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if "stacking" in custom:
        assert custom["lineWidth"] >= 2
        assert custom["fillOpacity"] <= 25


@each_panel
def test_names_take_little_of_a_panel(panel: dict[str, Any]) -> None:
    """Legends of "plan (source, run)" took half of it."""
    if panel["type"] != "timeseries":
        return
    legend = panel["options"]["legend"]
    assert legend["showLegend"] == (legend["displayMode"] != "hidden")
    if not legend["showLegend"]:
        return
    names = [target["legendFormat"] for target in panel["targets"]]
    width_px = GRID_PX * panel["gridPos"]["w"] / 24
    typical = [name.replace("{{run}}", "krizhevsky2012-20261121-101500") for name in names]
    repeated = 8 if "{{" in names[0] else 1  # runs or stages
    wide = sum(len(name) * 7 + 30 for name in typical) * repeated
    assert wide / width_px * 22 <= 0.3 * panel["gridPos"]["h"] * 38


def test_a_quantity_has_one_color() -> None:
    """Of a part of a step its own, wherever it is drawn; measured and predicted are told apart."""
    colors: dict[tuple[str, bool], set[str]] = {}
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            for override in panel.get("fieldConfig", {}).get("overrides", []):
                set_to = {p["id"]: p["value"] for p in override["properties"]}
                title = set_to.get("displayName", override["matcher"]["options"])
                if "color" in set_to:
                    assert set_to["color"]["mode"] == "fixed"
                    if title in COLORS:
                        assert set_to["color"]["fixedColor"] == COLORS[title]
                    else:
                        what = (title if name == PREDICTED else panel["title"], name == PREDICTED)
                        colors.setdefault(what, set()).add(set_to["color"]["fixedColor"])
    assert all(len(found) == 1 for found in colors.values()), colors
    assert colors["Exposed communication", False] == {EXPOSED}
    assert len({*colors["measured", True], *colors["predicted", True]}) == 2


def test_the_colors_are_those_of_all_pictures() -> None:
    assert set(SHARE_COLORS.values()) <= set(COLORS.values())
    assert list(QUERY_COLORS.items()) == list(COLORS.items())
    assert len(set(COLORS.values())) == 6


def test_another_data_source_is_opened_with() -> None:
    for board in shipped_dashboards("lab").values():
        [picker] = [v for v in board["templating"]["list"] if v["name"] == "datasource"]
        assert picker["current"] == {"selected": True, "text": "lab", "value": "lab"}
    assert shipped_dashboards() == BOARDS


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"uid": "", "title": "x", "templating": {"list": []}}']
)
def test_a_file_that_is_no_dashboard_any_more(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "overview.json").write_text(text)
    monkeypatch.setattr("orchestrator.observe.dashboards.shipped", lambda folder: tmp_path)
    with pytest.raises(InputError, match=r"overview\.json: not a dashboard"):
        shipped_dashboards()


# -- what a container engine starts ----------------------------------------------------------------


def test_images_are_pinned_and_what_is_mounted_is_there() -> None:
    folder = shipped("dashboards")
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert re.fullmatch(r"(prom/prometheus:v|grafana/grafana:)\d+\.\d+\.\d+", service["image"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (folder / source).is_dir()


def test_grafana_is_set_up_as_a_push_would() -> None:
    folder = shipped("dashboards") / "grafana"
    [source] = yaml.safe_load((folder / "datasources/orchestrator.yaml").read_text())["datasources"]
    assert (source["name"], source["type"]) == (DATA_SOURCE_NAME, "prometheus")
    [provider] = yaml.safe_load((folder / "dashboards/orchestrator.yaml").read_text())["providers"]
    compose = yaml.safe_load((folder.parent / "compose.yaml").read_text())
    assert f".:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
