"""What the dashboards show of runs that were made in turn and have all ended.

A real Prometheus has the runs; `@grafana/data` of Grafana 7 and of 13 makes of its answers what
would be seen. Once every table said "No data" then, and sums were those of the last rank to go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.observe.dashboards import build
from orchestrator.program.ledger import edges
from tests.observe.grafana_data import VERSIONS, frames, shown
from tests.observe.grafana_pickers import offered, opened, resolved
from tests.observe.metered import DATA_PARALLEL, TWO_STAGES
from tests.observe.runs_in_turn import Past, runs_in_turn
from tests.prometheus_server import Row, needs_prometheus

pytestmark = [needs_prometheus, pytest.mark.slow]

Json = dict[str, Any]
Seen = dict[int, dict[tuple[str, str, str], list[Json]]]
BOARDS = build()
OF_ONE_RUN = ("overview.json", "links.json", "pipeline.json")
PREDICTED, PLANS = "predicted-and-measured.json", "plans.json"
RANKS = {"0", "1", "2", "3"}
MEASURED = ("evening", "morning")
PREDICTIONS = ("evening-predicted", "morning-predicted", "replicas-predicted", "alone-predicted")
VIEWS = [
    *((name, {"run": run}) for name in OF_ONE_RUN for run in (*MEASURED, *PREDICTIONS)),
    *((PREDICTED, {"run": run}) for run in MEASURED),
    (PLANS, {}),
]
SHARES = ("compute", "exposed", "wait", "bubble", "loading", "other")

# The space for panels in a browser 1440 px wide: Grafana 7 has a side menu of 60 px, Grafana 13
# opens with its menu of 300 px beside the page; then padding and the scroll bar.
GRID_PX = {7: 1360, 13: 1093}
PANEL_EDGES_PX = 18
NO_COLOR = {7: "#141619", 13: "#181b1f"}  # the panel's own
CHARACTER_PX, HEADER_EDGES_PX = 7.5, 24


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with runs_in_turn(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


@pytest.fixture(scope="module")
def seen(past: Past) -> Seen:
    """What each Grafana shows: by version, then by dashboard, run and panel."""
    keys, jobs = [], []
    for name, pick in VIEWS:
        values = opened(past.server, BOARDS[name], **pick)
        for panel in BOARDS[name]["panels"]:
            if panel["type"] in ("stat", "bargauge", "table"):
                keys.append((name, pick.get("run", ""), panel["title"]))
                jobs.append((panel, frames(panel, answers(past, panel, values))))
    return {version: dict(zip(keys, shown(version, jobs), strict=True)) for version in VERSIONS}


def answers(past: Past, panel: Json, values: dict[str, str]) -> list[list[Row]]:
    return [past.server.query(resolved(target["expr"], values)) for target in panel["targets"]]


def the_panel(name: str, title: str) -> Json:
    panels: list[Json] = BOARDS[name]["panels"]
    [panel] = [p for p in panels if p["title"] == title and p["type"] != "timeseries"]
    return panel


def value(past: Past, name: str, title: str, run: str) -> float:
    """What a stat's query gives."""
    values = opened(past.server, BOARDS[name], run=run)
    [[row]] = answers(past, the_panel(name, title), values)
    return row.value


def texts(columns: list[Json]) -> dict[str, list[str]]:
    return {column["title"]: [cell["text"] for cell in column["cells"]] for column in columns}


each_version = pytest.mark.parametrize("version", VERSIONS)
each_measured = pytest.mark.parametrize("run", MEASURED)


# -- which run is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_ONE_RUN)
def test_the_newest_run_opens(past: Past, name: str) -> None:
    values = opened(past.server, BOARDS[name])
    assert (values["run"], values["source"]) == ("morning", "measured")
    [picker] = [v for v in BOARDS[name]["templating"]["list"] if v["name"] == "run"]
    in_order = offered(past.server, picker, values)
    assert set(in_order) == {*MEASURED, *PREDICTIONS}
    assert in_order.index("morning") < in_order.index("morning-predicted")
    assert in_order.index("morning-predicted") < in_order.index("evening")


@pytest.mark.parametrize("run", [None, *MEASURED, *PREDICTIONS])
def test_a_run_is_paired_with_a_prediction_of_its_own_plan(past: Past, run: str | None) -> None:
    """Also from the link of a dashboard that shows a prediction, or one of a plan without a run."""
    pick = {} if run is None else {"run": run}
    values = opened(past.server, BOARDS[PREDICTED], **pick)
    pair = (values["measured"], values["prediction"])
    of_evening = run is not None and run.startswith("evening")
    measured = "evening" if of_evening else "morning"
    assert pair == (measured, f"{measured}-predicted")


def test_plans_shows_all_runs_whichever_was_shown_before(past: Past) -> None:
    values = opened(past.server, BOARDS[PLANS], run="evening")
    [first, *_] = answers(past, the_panel(PLANS, "Side by side"), values)
    assert {row.labels["run"] for row in first} == {*MEASURED, *PREDICTIONS}


def test_a_run_that_took_over_a_port_is_there_once(past: Past) -> None:
    """Its first values are read as those of the run before, and had that one's `instance`."""
    for run in MEASURED:
        every = f'{{__name__=~"orchestrator_.*", run="{run}"}}'
        series = past.server.ask("series", **{"match[]": every})
        for labels in series:
            who = f"rank {labels['rank']}" if "rank" in labels else "driver"
            assert labels["instance"] == f"{run}/{who}"
        assert len(series) > 100


# -- every panel answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pick"), VIEWS, ids=[f"{n}-{p.get('run')}" for n, p in VIEWS])
def test_every_rank_is_there(past: Past, name: str, pick: dict[str, str]) -> None:
    values = opened(past.server, BOARDS[name], **pick)
    ranks = {"replicas-predicted": {"0", "1"}, "alone-predicted": {"0"}}
    expected = ranks.get(pick.get("run", ""), RANKS)
    for panel in BOARDS[name]["panels"]:
        for target in panel.get("targets", []):
            rows = past.server.query(resolved(target["expr"], values))
            where = f"{panel['title']} {target['refId']}"
            assert not any("__name__" in row.labels for row in rows), where
            if not target.get("instant"):
                assert rows == [], f"{where}: all have ended"
                continue
            if pick.get("run") == "evening":  # it has bubbles, sends, waits: nothing is empty
                assert any(math.isfinite(row.value) for row in rows), where
            found = {row.labels["rank"] for row in rows if "rank" in row.labels} - {"none"}
            if found and "topk" not in target["expr"]:
                assert found == expected, where


@each_version
def test_nothing_is_said_to_have_no_data(seen: Seen, version: int) -> None:
    for key, columns in seen[version].items():
        assert columns, key
        for text in [c["text"] if "text" in c else c["cells"][0]["text"] for c in columns]:
            assert text != "No data", key
            assert text or " rank (" in key[2], key


@each_measured
def test_steps_loss_and_memory_are_the_run_s(past: Past, run: str) -> None:
    assert value(past, "overview.json", "Steps", run) == past.steps[run]
    assert value(past, "overview.json", "Loss", run) == pytest.approx(past.loss[run])
    # Rank 0 needs most, and ended first.
    assert value(past, "overview.json", "Peak memory", run) == 100 * 2**20
    step = value(past, "overview.json", "Step time", run)
    assert value(past, "overview.json", "Images a second", run) == pytest.approx(8 / step)


@each_measured
def test_bytes_are_those_of_all_ranks(past: Past, run: str) -> None:
    program = {"evening": TWO_STAGES, "morning": DATA_PARALLEL}[run]
    values = opened(past.server, BOARDS["links.json"], run=run)
    [matrix, *_] = BOARDS["links.json"]["panels"]
    [rows] = answers(past, matrix, values)
    found = {(row.labels["rank"], row.labels["peer"]): row.value for row in rows}
    expected: dict[tuple[str, str], int] = {}
    for edge, size in edges(program).items():
        pair = (str(edge.from_rank), f"to {edge.to_rank}")
        expected[pair] = expected.get(pair, 0) + size
    assert found == pytest.approx({pair: size for pair, size in expected.items() if size})
    assert value(past, PREDICTED, "Error of bytes sent", run) == pytest.approx(0.0, abs=1e-9)


@each_measured
def test_shares_are_of_the_whole_step(past: Past, run: str) -> None:
    title = "Where the time goes, rank by rank ($listed ranks)"
    values = opened(past.server, BOARDS["overview.json"], run=run)
    columns = answers(past, the_panel("overview.json", title), values)
    for rank in RANKS:
        shares = [row.value for rows in columns for row in rows if row.labels["rank"] == rank]
        assert len(shares) == 6
        assert sum(shares) == pytest.approx(1.0, abs=0.02)


def test_stragglers_are_compared_with_all_their_peers(past: Past) -> None:
    """The recorded series compares the rank that goes last with nobody, and before with one."""
    values = opened(past.server, BOARDS["pipeline.json"], run="morning")
    [rows] = answers(past, the_panel("pipeline.json", "Stragglers"), values)
    compute = past.server.query(
        "max by (rank) (last_over_time(orchestrator:part_seconds:mean"
        '{run="morning", part="compute"}[15m]))'
    )
    by_rank = {row.labels["rank"]: row.value for row in compute}
    others = {rank: (sum(by_rank.values()) - own) / 3 for rank, own in by_rank.items()}
    assert {row.labels["rank"]: row.value for row in rows} == pytest.approx(
        {rank: by_rank[rank] / others[rank] for rank in RANKS}
    )


# -- what is seen ----------------------------------------------------------------------------------


@each_version
def test_names_are_not_numbers_with_a_unit(seen: Seen, version: int) -> None:
    """Ranks were "0%", "100%", "1 s"."""
    found = 0
    for key, columns in seen[version].items():
        for title, cells in (texts(columns) if "cells" in columns[0] else {}).items():
            if title in ("rank", "stage"):
                found += 1
                assert set(cells) <= {*RANKS, "none"}, key
    assert found > 30


@each_version
def test_columns_are_in_order(seen: Seen, version: int) -> None:
    def titles(name: str, title: str, run: str = "evening") -> list[str]:
        [key] = [k for k in seen[version] if k[:2] == (name, run) and k[2].startswith(title)]
        return list(texts(seen[version][key]))

    assert titles("overview.json", "Where the time") == ["rank", "stage", *SHARES]
    assert titles("pipeline.json", "Stages") == ["stage", "computation", *SHARES]
    assert titles("links.json", "By kind") == ["op", "bytes a step", "seconds a step"]
    assert titles("links.json", "Bytes a step") == ["rank", *(f"to {n}" for n in range(4))]
    assert titles("links.json", "Seconds a step") == ["rank", *(f"with {n}" for n in range(4))]
    assert titles(PLANS, "Side by side", "") == [
        "plan", "run", "source", "images a second", "step", "bytes a step", "peak memory",
    ]  # fmt: skip
    assert titles(PLANS, "Where the time", "") == ["run", "source", *SHARES]
    assert titles(PREDICTED, "Where the error") == [
        "part", "predicted", "measured", "error", "error, of the step",
    ]  # fmt: skip


@each_version
def test_cells_of_a_matrix(seen: Seen, version: int) -> None:
    """Empty cells were the brightest, and equal ones black."""
    [matrix] = [
        columns for (name, run, title), columns in seen[version].items()
        if (name, run) == ("links.json", "morning") and title.startswith("Bytes")
    ]  # fmt: skip
    cells = [cell for column in matrix[1:] for cell in column["cells"]]
    full = [cell for cell in cells if cell["text"]]
    assert {cell["text"] for cell in full} == {"26.0 KiB"}  # a ring: all alike
    assert {cell["color"] for cell in full} == {"#CC79A7"}
    assert {cell["color"] for cell in cells if not cell["text"]} == {NO_COLOR[version]}
    assert len(cells) == 16
    assert len(full) == 4


@each_version
def test_a_bar_that_is_alone_has_a_name(seen: Seen, version: int) -> None:
    [bar] = seen[version]["links.json", "morning", "Busiest layers"]
    assert bar["title"] == "conv1"
    edges_of_two = seen[version]["links.json", "replicas-predicted", "Busiest edges"]
    assert {bar["title"] for bar in edges_of_two} >= {"0 → 1", "1 → 0"}


@each_version
def test_zero_and_not_applicable_are_said(seen: Seen, version: int) -> None:
    def text(name: str, run: str, title: str) -> str:
        [only] = seen[version][name, run, title]
        return str(only["text"])

    alone = "alone-predicted"
    assert text("overview.json", alone, "Loss") == "not applicable"
    assert text("pipeline.json", alone, "Stragglers") == "no stage has two ranks"
    assert text("pipeline.json", alone, "Waited for") == "nobody waits: 0 s"
    assert text("pipeline.json", alone, "Longest bubbles") == "no bubbles: 0 s"
    assert text("links.json", alone, "Busiest edges") == "nothing is sent: 0 B"
    kinds = texts(seen[version]["links.json", alone, "By kind of transfer"])
    assert kinds == {"op": ["none"], "bytes a step": ["0 B"], "seconds a step": ["0 s"]}
    sent = texts(seen[version][PLANS, "", "Side by side"])
    assert sent["bytes a step"][sent["run"].index(alone)] == "0 B"


@each_version
def test_a_prediction_with_replicas_says_what_it_leaves_out(
    past: Past, seen: Seen, version: int
) -> None:
    [ranks] = seen[version]["overview.json", "replicas-predicted", "Ranks listed"]
    assert (ranks["text"], ranks["title"]) == ("2", "of 8")
    for name in OF_ONE_RUN:
        values = opened(past.server, BOARDS[name], run="replicas-predicted")
        titles = [resolved(panel["title"], values) for panel in BOARDS[name]["panels"]]
        assert any("2 of 8 ranks" in title for title in titles), name


@each_version
def test_tables_fit_a_screen_of_1440_pixels(seen: Seen, version: int) -> None:
    """ "bubble", 87% of a rank's step, was off the edge."""
    for (name, _, title), columns in seen[version].items():
        if "cells" in columns[0]:
            _fits(the_panel(name, title), columns, version)


@each_version
def test_matrices_of_eight_ranks_fit_too(version: int) -> None:
    panel = BOARDS["links.json"]["panels"][0]
    rows = [
        Row({"rank": str(a), "peer": f"to {b}"}, 1.5e6)
        for a in range(8) for b in reversed(range(8)) if a != b
    ]  # fmt: skip
    [columns] = shown(version, [(panel, frames(panel, [rows]))])
    assert [column["title"] for column in columns] == ["rank", *(f"to {n}" for n in range(8))]
    _fits(panel, columns, version)


def _fits(panel: Json, columns: list[Json], version: int) -> None:
    column_px = (GRID_PX[version] - 23 * 8) / 24
    at = panel["gridPos"]["w"]
    room = at * column_px + (at - 1) * 8 - PANEL_EDGES_PX
    custom = [column["config"].get("custom", {}) for column in columns]
    fixed = sum(c.get("width", 0) for c in custom)
    flexible = [c for c in custom if not c.get("width")]
    least = [150 if version == 7 else c["minWidth"] for c in flexible]
    part = max((room - fixed) / max(len(flexible), 1), *least, 0)
    assert fixed + part * len(flexible) <= room + 1, panel["title"]
    for column, c in zip(columns, custom, strict=True):
        needed = len(column["title"]) * CHARACTER_PX + HEADER_EDGES_PX
        assert needed <= c.get("width", part), (panel["title"], column["title"])


# -- units -----------------------------------------------------------------------------------------


@each_version
def test_what_is_larger_than_a_whole_or_below_zero_is_seen(version: int) -> None:
    """Under `percentunit` and `percent` Grafana 7 draws nothing outside 0 to 100 %."""
    stragglers = the_panel("pipeline.json", "Stragglers")
    errors = the_panel(PREDICTED, "Error of the step time")
    memory = the_panel("overview.json", "Peak memory")
    rows = [Row({"rank": str(n), "stage": "0"}, n + 0.5) for n in range(3)]
    bars, [error], [size] = shown(
        version,
        [
            (stragglers, frames(stragglers, [rows])),
            (errors, frames(errors, [[Row({}, -120.04)]])),
            (memory, frames(memory, [[Row({}, 1403 * 2**20)]])),
        ],
    )
    assert [bar["text"] for bar in bars] == ["0.50 ×", "1.50 ×", "2.50 ×"]
    assert [bar["percent"] for bar in bars] == pytest.approx([0.2, 0.6, 1.0])
    assert error["text"] == "-120.0 %"
    assert size["text"] == "1.37 GiB"
