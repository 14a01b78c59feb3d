"""Every query of every dashboard, picker and rule answers, on a real Prometheus.

It scrapes a run that is training and a simulation of the same plan, by the configuration that
`orchestrator dashboards prometheus` writes. Grafana itself takes broken queries without a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from orchestrator.execute.local import LocalExecutor
from orchestrator.execute.verify import RandomFeed
from orchestrator.models.model import Recipe
from orchestrator.observe.accounting import Accountant
from orchestrator.observe.dashboards import build
from orchestrator.observe.dashboards.prometheus import prometheus_files
from orchestrator.observe.metrics import RunLabels
from orchestrator.observe.metrics_options import MetricsOptions
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.program import Program
from orchestrator.simulate.cluster import load_cluster
from orchestrator.simulate.export import export
from orchestrator.simulate.predict import simulate_program
from tests.program.small import LENET, small_program
from tests.prometheus_server import Prometheus, Row, needs_prometheus, prometheus

pytestmark = [needs_prometheus, pytest.mark.slow]

# Two stages of two ranks: they send, reduce, wait for each other, and the pipeline has bubbles.
PROGRAM = small_program(
    LENET,
    "layers: conv1..pool2, ranks: [0, 1], split: batch",
    "layers: fc3..fc5, ranks: [2, 3], split: channel",
    batch=8,
    more="n_microbatches: 2",
)
MEASURED, SIMULATED = "evening", "evening-predicted"
ALERT_RULES = yaml.safe_load(prometheus_files()["alerts.yml"])["groups"][0]["rules"]
RECORDED = yaml.safe_load(prometheus_files()["rules.yml"])["groups"][0]["rules"]


class Training:
    """A run on the local executor that counts its steps for Prometheus."""

    def __init__(self, program: Program) -> None:
        self.program, self.recipe = program, Recipe(lr=0.01, seed=1)
        self.executor = LocalExecutor(
            program, RandomFeed(program.model, program.global_batch), self.recipe
        )
        self.accountant = Accountant(program)
        labels = RunLabels(MEASURED, program.name, "measured")
        self.metrics = RunMetrics(program, labels, MetricsOptions(), one_page=True)
        self.metrics.peaks = dict.fromkeys(program.ranks, 2**20)  # this executor knows none
        self.steps = 0

    def step(self) -> None:
        """Train one step."""
        for rank in self.executor.ranks:
            rank.sent = Counter()
        loss = self.executor.step(self.steps)
        times = self.executor.times()
        sent = {rank.rank: rank.sent for rank in self.executor.ranks}
        self.metrics.add_step(times, self.accountant.account(times), sent)
        self.metrics.run.add_step(self.program.global_batch, loss, self.recipe.lr)
        self.steps += 1


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
    cluster = load_cluster("dgx1-p100")
    predicted = export(simulate_program(PROGRAM, cluster), cluster, SIMULATED, MetricsOptions())
    training = Training(PROGRAM)
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
        "plan": PROGRAM.name,
        "run": SIMULATED if source == "simulated" else MEASURED,
        "prediction": SIMULATED,
        "source": source,
        "rank": "2",
    }
    return re.sub(r"\$([a-z]\w*)", lambda match: values[match[1]], expr)


def queries() -> Iterator[Any]:
    """Every query of every panel, for a measured run, and for a simulated one where that goes."""
    for name, board in build().items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expr = target["expr"]
                where = f"{name.removesuffix('.json')}-{panel['title']}-{target['refId']}"
                yield pytest.param(picked(expr, "measured"), id=where)
                if "$source" in expr:
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
    if rule["record"] != "orchestrator:steps:rate":  # a simulation stands still
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
    offered = {}
    for name, board in build().items():
        for variable in board["templating"]["list"]:
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
            if match:
                rows = watched.ask(picked(match[1], "measured"))
                offered[name, variable["name"]] = {row.labels[match[2]] for row in rows}
    assert offered["overview.json", "plan"] == {PROGRAM.name}
    assert offered["overview.json", "run"] == {MEASURED, SIMULATED}
    assert offered["overview.json", "source"] == {"measured"}
    assert offered["overview.json", "rank"] == {"0", "1", "2", "3"}
    assert offered["predicted-and-measured.json", "run"] == {MEASURED}
    assert offered["predicted-and-measured.json", "prediction"] == {SIMULATED}


def test_every_metric_that_is_asked_for_exists(watched: Watched) -> None:
    """Alerts and both sides of an `or` too, which a missing name would only keep quiet."""
    exprs = [rule["expr"] for rule in (*RECORDED, *ALERT_RULES)]
    exprs += [query.values[0] for query in QUERIES]
    asked = {name for expr in exprs for name in re.findall(r"\borchestrator[_:][\w:]+", expr)}
    there = watched.server.ask("label/__name__/values")
    assert asked <= set(there)


def test_the_parts_are_the_step(watched: Watched) -> None:
    for source in ("measured", "simulated"):
        rows = watched.ask(f'sum by (rank) (orchestrator:share:ratio{{source="{source}"}})')
        assert [row.value for row in rows] == pytest.approx([1.0] * 4, abs=0.02)


def test_bytes_are_predicted_exactly(watched: Watched) -> None:
    [panel] = [
        p for p in build()["predicted-and-measured.json"]["panels"]
        if p["title"] == "Error of bytes sent"
    ]  # fmt: skip
    [row] = watched.ask(picked(panel["targets"][0]["expr"], "measured"))
    assert row.value == pytest.approx(0.0, abs=1e-9)
