"""What the metrics' options of ``run`` and ``simulate`` do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.cli.run_view import LineView
from orchestrator.observe.metrics_run import RunMetrics
from tests.cli.command import SMALL, command, refused
from tests.observe.test_metrics import gateway
from tests.train.small_runs import lines, plan_file, run, summary, trained

Values = dict[str, float]


@pytest.fixture
def last_values(monkeypatch: pytest.MonkeyPatch) -> list[Values]:
    """What can be read after the next runs: sums by name, over all pages."""
    found: list[Values] = []

    def read(self: RunMetrics, tell: Callable[[str], None]) -> None:
        assert self.discovery is not None
        where = self.discovery.describe()
        found.append({})
        for url in (where["metrics_url"], *(target["url"] for target in where["targets"])):
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    before = found[-1].get(sample.name, 0.0)
                    found[-1][sample.name] = before + sample.value

    monkeypatch.setattr(RunMetrics, "linger", read)
    return found


def described(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_a_run_leaves_its_last_values_and_says_where(
    tmp_path: Path, last_values: list[Values]
) -> None:
    out = trained(tmp_path, "everything", 3)
    (values,) = last_values
    found = summary(out)
    assert values["orchestrator_steps_total"] == 3
    assert values["orchestrator_images_total"] == 48
    assert values["orchestrator_loss"] == found["loss_last"]
    assert values["orchestrator_learning_rate"] == 0.1
    assert values["orchestrator_restarts_total"] == 0
    assert values["orchestrator_checkpoint_seconds"] > 0
    assert values["orchestrator_sent_bytes_total"] == 3 * found["bytes_sent"]
    assert values["orchestrator_step_seconds_count"] == 2 * 3
    assert values["orchestrator_info"] == 1
    where = described(out)
    assert where["discovery_url"].startswith("http://127.0.0.1:")
    assert [target["rank"] for target in where["targets"]] == [0, 1]


def test_every_time_that_a_run_goes_on_in_its_folder_is_a_restart(
    tmp_path: Path, last_values: list[Values]
) -> None:
    """The second one and all that followed once counted as one, too."""
    out, other = trained(tmp_path, "columns", 2), tmp_path / "other"
    plan = tmp_path / "columns.yaml"
    told = [summary(out)["restarts"]]
    for folder in (out, out, other):
        assert run(plan, folder, 1, "--resume", str(out)).code == 0
        told.append(summary(folder)["restarts"])
    counted = [values["orchestrator_restarts_total"] for values in last_values]
    assert counted == told == [0, 1, 2, 0]
    assert last_values[1]["orchestrator_steps_total"] == 1, "counters begin anew with the process"
    assert [row["step"] for row in lines(out / "restarts.jsonl")] == [2, 3]
    assert not (other / "restarts.jsonl").exists()


def test_a_run_that_was_killed_counts_how_often_it_went_on(
    tmp_path: Path, last_values: list[Values]
) -> None:
    out = trained(tmp_path, "one", 2)
    for _ in range(2):
        (out / "summary.json").unlink()  # a killed run writes none
        assert run(tmp_path / "one.yaml", out, 1, "--resume", str(out)).code == 0
    assert summary(out)["restarts"] == 2
    assert last_values[-1]["orchestrator_restarts_total"] == 2


def test_the_port_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = trained(tmp_path, "one", 1, "--metrics-port", str(port))
    assert described(out)["discovery_url"] == f"http://127.0.0.1:{port}/targets"


def test_a_port_that_is_taken_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run(plan_file(tmp_path, "one"), tmp_path / "out", 1, "--metrics-port", port)
    assert ended.code == 2
    assert f"cannot serve metrics at 127.0.0.1, port {port}" in ended.err
    assert "--no-metrics" in ended.err
    assert not (tmp_path / "out").exists()


def test_without_metrics_nothing_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RunMetrics, "add_step")
    out = trained(tmp_path, "one", 1, "--no-metrics")
    assert not (out / "metrics.json").exists()


def test_a_gateway_that_does_not_answer_is_a_warning(tmp_path: Path) -> None:
    plan, out = plan_file(tmp_path, "one"), tmp_path / "out"
    ended = run(plan, out, 1, "--no-metrics", "--pushgateway", "http://127.0.0.1:1")
    assert ended.code == 0
    (warning,) = ended.err.splitlines()
    assert warning.startswith("warning: the metrics were not pushed to http://127.0.0.1:1: ")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "192.0.2.7"])
def test_an_address_of_another_machine_is_refused(tmp_path: Path, host: str) -> None:
    ended = run(plan_file(tmp_path, "one"), tmp_path / "out", 1, "--metrics-host", host)
    assert ended.code == 2
    assert f"cannot serve metrics at {host}, port 0" in ended.err
    assert "Traceback" not in ended.err


def test_what_an_interrupted_run_has_counted_is_pushed_and_it_does_not_linger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: LineView, step: int, *_: object) -> None:
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(LineView, "step", interrupt)
    monkeypatch.delattr(RunMetrics, "linger")
    with gateway() as (url, got):
        ended = run(plan_file(tmp_path, "columns"), tmp_path / "out", 9, "--pushgateway", url)
    assert ended.code == 130
    text = got["/metrics/job/orchestrator/run/out"]
    (steps,) = (f for f in text_string_to_metric_families(text) if f.name == "orchestrator_steps")
    assert steps.samples[0].value == 3
    assert len(got) == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--metrics-linger", "-1"),
        ("--metrics-linger", "nan"),
        ("--metrics-linger", "inf"),
        ("--pushgateway", "ftp://host"),
        ("--pushgateway", "http://"),
        ("--metrics-host", ""),
        ("--metrics-port", "65536"),
        ("--metrics-port", "-1"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "simulate"])
def test_values_that_cannot_be_meant_are_refused(verb: str, option: str, value: str) -> None:
    cluster = ("--cluster", "gtx580x2") if verb == "simulate" else ()
    assert option in refused(verb, "--plan", "krizhevsky2012", *cluster, option, value)


def simulate(*more: str) -> tuple[str, ...]:
    return ("simulate", "--plan", "krizhevsky2012", "--cluster", "gtx580x2", *SMALL, *more)


def test_a_simulated_step_has_the_same_series(tmp_path: Path, last_values: list[Values]) -> None:
    out = tmp_path / "out"
    ended = command(*simulate("--metrics-port", "0", "--out", str(out), "--json"))
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    (values,) = last_values
    assert values["orchestrator_steps_total"] == 1
    assert values["orchestrator_images_total"] == found["global_batch_size"]
    assert values["orchestrator_sent_bytes_total"] == found["bytes_sent"]
    peaks = [rank["peak_memory_bytes"] for rank in found["ranks"]]
    assert values["orchestrator_peak_memory_bytes"] == sum(peaks)
    for share in ("compute", "exposed_communication", "wait", "bubble", "loading", "communication"):
        told = values[f"orchestrator_{share}_seconds_total"]
        assert told == pytest.approx(2 * found[f"{share}_time_s"])
    assert "orchestrator_loss" not in values
    assert described(out)["targets"] == [], "all of it is on the driver's page"


def test_a_simulation_that_is_not_served_cannot_stay() -> None:
    assert "--metrics-port 0" in refused(*simulate("--metrics-linger", "3"))


def test_a_simulation_that_is_neither_served_nor_pushed_loads_no_exporter() -> None:

    code = (
        "import sys\nfrom orchestrator.cli import main\n"
        f"try:\n    main({list(simulate('--json'))!r})\n"
        "finally:\n    print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
