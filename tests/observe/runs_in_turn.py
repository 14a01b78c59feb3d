"""Two runs made in turn, and three predictions, all ended, as a real Prometheus has them.

    port 0    evening (plan two-stages)       then   morning (plan data-parallel)
    port 1    evening-predicted               then   morning-predicted
    port 2    replicas-predicted, 2 of 8 ranks       alone-predicted, one rank

They are scraped by the configuration that `orchestrator dashboards prometheus` writes. As in a real
run the ranks of each end at different moments, and the next run takes over the port.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import generate_latest

from orchestrator.observe.dashboards.prometheus import prometheus_files
from orchestrator.observe.metrics import Page
from orchestrator.observe.metrics_options import MetricsOptions
from tests.observe.metered import (
    ALONE,
    DATA_PARALLEL,
    REPLICAS,
    TWO_STAGES,
    Training,
    predict,
)
from tests.prometheus_server import Prometheus, Row, prometheus

NOT_SERVED = MetricsOptions(serve=False)
_LOADING = "orchestrator_loading_seconds_total"


@dataclass(frozen=True)
class Past:
    """What came of it.

    Args:
        steps: of each run.
        loss: the last one of each measured run.
    """

    server: Prometheus
    steps: dict[str, int]
    loss: dict[str, float]


@dataclass
class Port:
    """One driver's place: its pages by path, and their list; nobody answers while it is closed.

    Args:
        gone: pages that are listed and not there, as of a worker that has ended.
    """

    number: int = 0
    pages: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    run: str = ""
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}/targets"

    def open(self, run: str, pages: list[Page]) -> None:
        """Serve a run's pages, the driver's first, at the same port as the run before."""
        self.run = run
        self.pages, self.gone = {}, set()
        for page in pages:
            who = "driver" if page.run is not None else f"rank {page.ranks[0].rank}"
            self.pages[who] = lambda page=page: _exposed(page)  # type: ignore[misc]
        port = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                who = self.path.removeprefix("/").replace("%20", " ")
                body = port._targets() if who == "targets" else None
                if who in port.pages.keys() - port.gone:
                    body = port.pages[who]()
                self.send_response(404 if body is None else 200)
                json_or_text = "application/json" if who == "targets" else "text/plain"
                self.send_header("Content-Type", json_or_text)
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", self.number), Handler)
        self.number, self._server = server.server_port, server
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Nobody answers there any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _targets(self) -> bytes:
        address = f"127.0.0.1:{self.number}"
        entries = [
            {
                "targets": [address],
                "labels": {"instance": f"{self.run}/{who}", "__metrics_path__": f"/{who}"},
            }
            for who in self.pages
        ]
        return json.dumps(entries).encode()


def _exposed(page: Page) -> bytes:
    """A page's text, with the series of waiting for data if the page has none."""
    text = generate_latest(page.registry())
    if _LOADING.encode() in text or not page.ranks:
        return text
    counts = re.findall(r"orchestrator_step_seconds_count(\{[^}]*\}) (\S+)", text.decode())
    told = [f"{_LOADING}{labels} 0\n" for labels, _ in counts]
    return text + f"# TYPE {_LOADING} counter\n{''.join(told)}".encode()


@contextmanager
def runs_in_turn(folder: Path) -> Iterator[Past]:
    """The Prometheus, after all of them have ended."""
    ports = [Port(), Port(), Port()]
    steps: dict[str, int] = {}
    loss: dict[str, float] = {}
    first = Training(TWO_STAGES, "evening", NOT_SERVED)
    second = Training(DATA_PARALLEL, "morning", NOT_SERVED)
    predictions = {
        name: predict(program, name, NOT_SERVED).pages
        for name, program in (
            ("evening-predicted", TWO_STAGES), ("morning-predicted", DATA_PARALLEL),
            ("replicas-predicted", REPLICAS), ("alone-predicted", ALONE),
        )
    }  # fmt: skip
    try:
        for port, run in zip(ports, ("evening", "evening-predicted", "replicas-predicted"),
                             strict=True):  # fmt: skip
            port.open(run, predictions.get(run, first.metrics.pages))
        files = prometheus_files([port.url for port in ports])
        for name in ("rules.yml", "alerts.yml"):
            (folder / name).write_text(files[name])
        with prometheus(folder, files["prometheus.yml"].replace("5s", "1s")) as server:
            _train(server, first, ports[0])
            ports[1].close()
            ports[2].close()
            ports[2].open("alone-predicted", predictions["alone-predicted"])
            ports[1].open("morning-predicted", predictions["morning-predicted"])
            _until(server, 'orchestrator:run_start:timestamp{run="morning-predicted"}', bool)
            ports[0].open("morning", second.metrics.pages)
            _train(server, second, ports[0])
            for port in ports:
                port.close()
            _until(server, '{__name__=~"orchestrator.*"}', lambda rows: not rows)
            for training, run in ((first, "evening"), (second, "morning")):
                steps[run] = training.steps
                assert training.metrics.run.loss is not None
                loss[run] = training.metrics.run.loss
            yield Past(server, steps, loss)
    finally:
        for port in ports:
            port.close()


def _train(server: Prometheus, training: Training, port: Port) -> None:
    """Train until all is recorded, and end: the ranks go one after another, the first one first."""
    run = training.metrics.labels.run
    training.step()
    mean = f'orchestrator:part_seconds:mean{{run="{run}"}} and on () orchestrator:steps:rate'
    ranks = len(training.program.ranks)

    def recorded(rows: list[Row]) -> bool:
        training.step()
        return len(rows) == 6 * ranks

    _until(server, mean, recorded)
    # The last values have been read, as `run` waits for it; then nothing changes any more.
    count = f'orchestrator_steps_total{{run="{run}"}} == {training.steps}'
    _until(server, count, bool)
    counts = f'orchestrator_step_seconds_count{{run="{run}"}} == {training.steps}'
    _until(server, counts, lambda rows: len(rows) == ranks)
    for rank in list(training.program.ranks)[:-1]:
        port.gone.add(f"rank {rank}")
        gone = f'orchestrator:share:ratio{{run="{run}", rank="{rank}"}}'
        _until(server, gone, lambda rows: not rows)
    port.close()
    _until(server, f'{{__name__=~"orchestrator.*", run="{run}"}}', lambda rows: not rows)


def _until(server: Prometheus, expr: str, holds: Callable[[list[Row]], bool]) -> None:
    server.wait(expr, holds)
    time.sleep(0.05)
