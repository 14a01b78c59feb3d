"""The driver's HTTP server: its own metrics, and where all pages of a run are.

    /metrics            the run's own series
    /targets            every page, in the format of Prometheus' HTTP service discovery
    /ranks/N/metrics    rank N's series, where no worker serves them (any more)

A rank's page is served by its worker while that lives, and by the driver from then on; by the
driver all along where the worker's could not be read from where this list is. Prometheus is told of
one page per rank at any moment, always by the same ``instance``, so a rank's series go on unchanged
when its page moves.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.observe.metrics import Page
from orchestrator.observe.metrics_server import METRICS, PageServer, application

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

TARGETS = "/targets"
_RANK_PAGE = re.compile(r"/ranks/(\d+)/metrics")
_POLL_S = 0.05


@dataclass(frozen=True)
class Target:
    """Where a rank's page is."""

    rank: int
    url: str


class Discovery:
    """Serves the driver's page, the list of all pages, and those of ranks without a worker.

    Args:
        host, port: where to listen; port 0 for any that is free.
        own: the driver's page.
        ranks: every rank's page, as far as the driver knows it.

    Raises:
        InputError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, own: Page, ranks: Mapping[int, Page]) -> None:
        self._labels = own.labels
        self._own = application(own)
        self._ranks = {rank: application(page) for rank, page in ranks.items()}
        self._urls: dict[int, str] = {}
        self._read: dict[str, float] = {}  # by path, when last
        self._server = PageServer(host, port, self._page)

    @property
    def url(self) -> str:
        """Of the list of pages."""
        return self._server.url + TARGETS

    @property
    def targets(self) -> list[Target]:
        """Where the ranks' pages are, as far as they are up."""
        return [Target(rank, url) for rank, url in sorted(self._urls.items())]

    def describe(self) -> dict[str, Any]:
        """``metrics.json``: where every rank serves, and where the driver's own page is."""
        return {
            "discovery_url": self.url,
            "metrics_url": self._server.url + METRICS,
            "targets": [{"rank": t.rank, "url": t.url} for t in self.targets],
        }

    def register(self, rank: int, url: str | None) -> None:
        """A rank's worker is up and serves the rank's page there; None: this server does."""
        self._urls = {**self._urls, rank: url or self._own_url(rank)}

    def take_over(self) -> None:
        """From now on this server has the pages of all ranks, because their workers are gone."""
        self._urls = {rank: self._own_url(rank) for rank in self._ranks}

    def _own_url(self, rank: int) -> str:
        return f"{self._server.url}/ranks/{rank}{METRICS}"

    def was_read(self) -> bool:
        """Whether anybody has come so far."""
        return bool(self._read)

    def wait_until_read(self, patience_s: float) -> None:
        """Return once every page served here has been read anew, or the time is over."""
        since = time.monotonic()
        paths = {METRICS, *(urlsplit(url).path for url in self._urls.values())}
        while time.monotonic() < since + patience_s:
            if all(self._read.get(path, 0.0) > since for path in paths):
                return
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Serve no more."""
        self._server.close()

    def _page(self, path: str) -> WSGIApplication | None:
        found = self._find(path)
        if found is not None:
            self._read[path] = time.monotonic()
        return found

    def _find(self, path: str) -> WSGIApplication | None:
        if path == METRICS:
            return self._own
        if path == TARGETS:
            return self._list
        match = _RANK_PAGE.fullmatch(path)
        return self._ranks.get(int(match[1])) if match else None

    def _list(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        pages = [("driver", self._server.url + METRICS)]
        pages += [(f"rank {target.rank}", target.url) for target in self.targets]
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps([self._entry(who, url) for who, url in pages]).encode()]

    def _entry(self, who: str, url: str) -> dict[str, Any]:
        """One page; labels that the series have themselves would come back as ``exported_run``."""
        at = urlsplit(url)
        labels = {"instance": f"{self._labels.run}/{who}", "__metrics_path__": at.path}
        return {"targets": [at.netloc], "labels": labels}
