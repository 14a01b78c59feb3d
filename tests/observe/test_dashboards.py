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
UNITS = {"s", "decbytes", "percentunit", "none", "short"}
COLORS = {
    "compute": COMPUTE, "exposed": EXPOSED, "wait": WAIT, "bubble": BUBBLE, "loading": LOADING,
    "other": OTHER,
}  # fmt: skip
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
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
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
    assert used == variables.keys()


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
def test_a_part_of_a_step_has_one_color(panel: dict[str, Any]) -> None:
    for override in panel["fieldConfig"]["overrides"]:
        set_to = {p["id"]: p["value"] for p in override["properties"]}
        name = set_to.get("displayName", override["matcher"]["options"])
        if "color" in set_to:
            assert set_to["color"] == {"mode": "fixed", "fixedColor": COLORS[name]}


def test_the_colors_are_those_of_all_pictures() -> None:
    assert list(SHARE_COLORS.values()) == list(COLORS.values())
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
