"""A real Prometheus for the length of a test, with its storage in the test's folder.

with prometheus(tmp_path, scraping(discovery_url)) as server:
    rows = server.wait('orchestrator_steps_total', until=lambda rows: len(rows) == 1)
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BINARY = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    BINARY is None and not os.environ.get("CI"),  # there it has to be, and the test fails
    reason="no `prometheus` on the path; on Debian: apt-get install prometheus",
)
STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Row:
    """One row of an instant query's answer; a scalar has no labels."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A running server.

    Args:
        url: without a slash at its end.
    """

    url: str

    def query(self, expr: str) -> list[Row]:
        """Evaluate an expression now.

        Raises:
            ValueError: Prometheus refused it; its own words.
        """
        data = self.ask("query", query=expr)
        if data["resultType"] in ("scalar", "string"):
            return [Row({}, float(data["result"][1]))]
        return [Row(row["metric"], float(row["value"][1])) for row in data["result"]]

    def ask(self, endpoint: str, **arguments: str) -> Any:
        """The ``data`` of any call of the HTTP API, such as ``targets``.

        Raises:
            ValueError: Prometheus refused it; its own words.
        """
        url = f"{self.url}/api/v1/{endpoint}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{arguments}: {json.load(error)['error']}") from None

    def wait(
        self, expr: str, until: Callable[[list[Row]], bool], deadline_s: float = 60.0
    ) -> list[Row]:
        """Evaluate an expression until its rows are as wanted; fails the test if they never are."""
        end = time.monotonic() + deadline_s
        while not until(rows := self.query(expr)):
            if time.monotonic() > end:
                targets = [
                    (t["scrapeUrl"], t["health"], t["lastError"])
                    for t in self.ask("targets")["activeTargets"]
                ]
                pytest.fail(f"after {deadline_s:g} s {expr} gives {rows}; targets: {targets}")
            time.sleep(0.1)
        return rows


def scraping(discovery_url: str, interval: str = "1s") -> str:
    """The configuration that follows one run's discovery."""
    return f"""
global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}
scrape_configs:
  - job_name: orchestrator
    http_sd_configs: [{{url: "{discovery_url}", refresh_interval: {interval}}}]
"""


@contextmanager
def prometheus(folder: Path, config_yaml: str) -> Iterator[Prometheus]:
    """A server on a free port, ready; ended by its process id at the end."""
    assert BINARY is not None, "mark the test with needs_prometheus"
    config = folder / "prometheus.yml"
    config.write_text(config_yaml)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                BINARY,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'prometheus-data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _until_ready(process, f"http://{address}", log)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"prometheus did not start:\n{log.read_text()}")
            time.sleep(0.05)
