"""Prometheus' own tool checks the configuration, the rules, and when each alert fires."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import InputError
from orchestrator.observe.dashboards.prometheus import prometheus_files

PROMTOOL = shutil.which("promtool")
RULES = Path(__file__).with_name("dashboard_rules.yml")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no `promtool` on the path; on Debian: apt-get install prometheus"
)


def promtool(*arguments: str | Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(folder: Path, *discovery_urls: str) -> Path:
    files = prometheus_files(discovery_urls) if discovery_urls else prometheus_files()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "prometheus.yml"


@needs_promtool
def test_the_configuration_and_its_rules_are_valid(tmp_path: Path) -> None:
    said = promtool("check", "config", write(tmp_path))
    assert "2 rule files found" in said
    assert said.count("SUCCESS") == 4


@needs_promtool
def test_what_the_rules_give_and_when_alerts_fire() -> None:
    promtool("test", "rules", RULES)


def test_every_alert_is_made_to_fire() -> None:
    alerts = yaml.safe_load(prometheus_files()["alerts.yml"])["groups"][0]["rules"]
    tests = yaml.safe_load(RULES.read_text())["tests"]
    fired = {a["alertname"] for t in tests for a in t["alert_rule_test"] if a["exp_alerts"]}
    assert fired == {alert["alert"] for alert in alerts}
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description"}


@needs_promtool
def test_runs_elsewhere(tmp_path: Path) -> None:
    urls = ["http://a:9464/targets", "https://[::1]:1/x/targets"]
    config = write(tmp_path, *urls)
    promtool("check", "config", config)
    [job] = yaml.safe_load(config.read_text())["scrape_configs"]
    assert [found["url"] for found in job["http_sd_configs"]] == urls


def test_where_no_run_can_be() -> None:
    with pytest.raises(InputError, match="--discovery-url"):
        prometheus_files(["localhost:9464/targets"])
