"""Every query of every dashboard, picker and rule answers, on a real Prometheus.

It scrapes a run that is training and a simulation of the same plan, by the configuration that
`orchestrator dashboards prometheus` writes. Grafana itself takes broken queries without a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from orchestrator.observe.dashboards import build
from orchestrator.observe.dashboards.prometheus import prometheus_files
from orchestrator.observe.metrics_options import MetricsOptions
from tests.observe.grafana_pickers import offered, opened, resolved
from tests.observe.metered import TWO_STAGES, Training, predict
from tests.prometheus_server import Prometheus, Row, needs_prometheus, prometheus

pytestmark = [needs_prometheus, pytest.mark.slow]

LOADING = "orchestrator_loading_seconds_total"  # may be missing; the part is 0 then
MEASURED, SIMULATED = "evening", "evening-predicted"
ALERT_RULES = yaml.safe_load(prometheus_files()["alerts.yml"])["groups"][0]["rules"]
RECORDED = [
    rule
    for group in yaml.safe_load(prometheus_files()["rules.yml"])["groups"]
    for rule in group["rules"]
]
# A simulation stands still, has no loss, and nobody waits in this one.
NOT_SIMULATED = ("orchestrator:steps:rate", "orchestrator:loss:last", "Waited for")


@dataclass(frozen=True)
class Watched:
    """A Prometheus, and the run that it watches."""

    server: Prometheus
    training: Training

    def ask(self, expr: str) -> list[Row]:
        """The answer to a query, once there is one; the run goes on meanwhile."""

        def answered(rows: list[Row]) -> bool:
            self.training.step()
            return any(math.isfinite(row.value) for row in rows)

        return self.server.wait(expr, answered, deadline_s=20.0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    predicted = predict(TWO_STAGES, SIMULATED, MetricsOptions())
    training = Training(TWO_STAGES, MEASURED, MetricsOptions(), one_page=True)
    try:
        runs = (training.metrics.discovery, predicted.discovery)
        files = prometheus_files([run.url for run in runs if run is not None])
        for name in ("rules.yml", "alerts.yml"):
            (folder / name).write_text(files[name])
        with prometheus(folder, files["prometheus.yml"].replace("5s", "1s")) as server:
            found = Watched(server, training)
            training.step()
            found.ask(f'rate(orchestrator_steps_total{{run="{MEASURED}"}}[1m]) > 0')
            yield found
    finally:
        training.metrics.close()
        predicted.close()


def picked(expr: str, source: str) -> str:
    """A query with the pickers as a user sets them."""
    values = {
        "plan": TWO_STAGES.name,
        "run": SIMULATED if source == "simulated" else MEASURED,
        "runs": ".*",
        "measured": MEASURED,
        "prediction": SIMULATED,
        "source": source,
        "rank": "2",
    }
    return resolved(expr, values)


def queries() -> Iterator[Any]:
    """Every query of every panel, for a measured run, and for a simulated one where that goes."""
    for name, board in build().items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expr = target["expr"]
                where = f"{name.removesuffix('.json')}-{panel['title']}-{target['refId']}"
                if 'source="simulated"}) * NaN' not in expr:  # says why a prediction has no line
                    yield pytest.param(picked(expr, "measured"), id=where)
                if "$source" in expr and panel["title"] not in NOT_SIMULATED and "NaN" not in expr:
                    yield pytest.param(picked(expr, "simulated"), id=f"{where}-simulated")


QUERIES = list(queries())


@pytest.mark.parametrize("expr", QUERIES)
def test_a_panel_s_query_answers(watched: Watched, expr: str) -> None:
    assert watched.ask(expr)


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: str(rule["record"]))
def test_a_recorded_rule_answers(watched: Watched, rule: dict[str, Any]) -> None:
    assert watched.ask(rule["expr"])
    labels = ", ".join(f'{key}="{value}"' for key, value in rule.get("labels", {}).items())
    assert watched.ask(f'{rule["record"]}{{source="measured", {labels}}}')
    if rule["record"] not in NOT_SIMULATED:
        assert watched.ask(f'{rule["record"]}{{source="simulated", {labels}}}')


@pytest.mark.parametrize("rule", ALERT_RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_s_query_is_understood(watched: Watched, rule: dict[str, Any]) -> None:
    """It answers nothing while all is well; that it fires is shown in dashboard_rules.yml."""
    watched.server.query(rule["expr"])


def test_prometheus_has_no_trouble_with_any_rule(watched: Watched) -> None:
    watched.ask("orchestrator:compute_over_peers:ratio")
    groups = watched.server.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RECORDED) + len(ALERT_RULES)
    assert {rule["health"] for rule in rules} == {"ok"}, rules


def test_the_pickers_offer_what_there_is(watched: Watched) -> None:
    watched.ask("orchestrator:run_start:timestamp")
    for name, board in build().items():
        values = opened(watched.server, board)
        variables = {v["name"]: v for v in board["templating"]["list"] if v["type"] == "query"}
        found = {n: set(offered(watched.server, v, values)) for n, v in variables.items()}
        assert found["plan"] == {TWO_STAGES.name}
        assert found["run"] == found["runs"] == {MEASURED, SIMULATED}
        if name == "overview.json":
            assert found["source"] == {values["source"]}
            assert found["rank"] == {"0", "1", "2", "3"}
            assert found["listed"] == {"4 of 4"}
        if name == "predicted-and-measured.json":
            assert (found["measured"], found["prediction"]) == ({MEASURED}, {SIMULATED})


def test_every_metric_that_is_asked_for_exists(watched: Watched) -> None:
    """Alerts and both sides of an `or` too, which a missing name would only keep quiet."""
    exprs = [rule["expr"] for rule in (*RECORDED, *ALERT_RULES)]
    exprs += [query.values[0] for query in QUERIES]
    asked = {name for expr in exprs for name in re.findall(r"\borchestrator[_:][\w:]+", expr)}
    there = watched.server.ask("label/__name__/values")
    assert asked - {LOADING} <= set(there)


def test_the_parts_are_the_step(watched: Watched) -> None:
    for source in ("measured", "simulated"):
        rows = watched.ask(f'sum by (rank) (orchestrator:share:ratio{{source="{source}"}})')
        assert [row.value for row in rows] == pytest.approx([1.0] * 4, abs=0.02)
