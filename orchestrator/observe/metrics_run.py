"""All metrics of one run, from the driver's side: count, serve, let the last values be read, push.

A worker's page shows what the driver hands back to it: waits, bubbles and exposed communication
need the peers' clocks, so a rank's part of a step is known once all ranks' records are joined.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPException
from math import isfinite
from typing import Any

from prometheus_client import push_to_gateway

from orchestrator.observe.accounting import Account
from orchestrator.observe.discovery import Discovery
from orchestrator.observe.metrics import Page, RankTotals, RunLabels, RunTotals, stage_of
from orchestrator.observe.metrics_options import PATIENCE_S, MetricsOptions
from orchestrator.observe.metrics_parts import Part, Parts
from orchestrator.observe.timeline import StepTimes
from orchestrator.program import Program
from orchestrator.program.ledger import Edge

JOB = "orchestrator"  # in the Pushgateway's grouping
_PUSH_TIMEOUT_S = 10.0


class RunMetrics:
    """Counts a run's steps and gives the counts out.

    Args:
        one_page: all ranks' series stand on the driver's page; else each rank has its own.

    Raises:
        InputError: it cannot listen at the host and port.
    """

    def __init__(
        self,
        program: Program,
        labels: RunLabels,
        options: MetricsOptions,
        *,
        one_page: bool = False,
    ) -> None:
        self.labels, self.options = labels, options
        self.parts = Parts(program)
        self.run = RunTotals(world_size=program.world_size)
        self.peaks: dict[int, int] = {}
        self.ranks = {rank: self._totals(program, rank) for rank in program.ranks}
        together = list(self.ranks.values())
        own = Page(labels, together if one_page else [], self.run)
        pages = {} if one_page else {totals.rank: Page(labels, [totals]) for totals in together}
        self.pages = [own, *pages.values()]
        self.discovery = (
            Discovery(options.host, options.port, own, pages) if options.serve else None
        )
        self._changed: Callable[[dict[str, Any]], None] = lambda description: None

    def on_change(self, changed: Callable[[dict[str, Any]], None]) -> None:
        """Call a function with what ``metrics.json`` holds, now and whenever it changes."""
        self._changed = changed
        self._tell_where()

    def _totals(self, program: Program, rank: int) -> RankTotals:
        zero = self.parts.zero(rank)
        return RankTotals(stage_of(program, rank), zero, lambda: self.peaks.get(rank, 0))

    def add_step(
        self, times: StepTimes, account: Account, sent: Mapping[int, Mapping[Edge, int]]
    ) -> list[Part]:
        """Count a step on all ranks; returns their parts of it."""
        parts = self.parts.of(times, account, sent)
        for part in parts:
            self.ranks[part.rank].add(part)
        return parts

    def register(self, rank: int, url: str | None) -> None:
        """A rank's worker is up and serves the rank's page there; None: the driver does."""
        if self.discovery is not None:
            self.discovery.register(rank, url)
            self._tell_where()

    def take_over(self) -> None:
        """Serve all ranks' pages here: they have no workers, or these are gone."""
        if self.discovery is not None:
            self.discovery.take_over()
            self._tell_where()

    def push(self) -> str | None:
        """Push all values, a group for the run and one for each rank; returns what went wrong."""
        gateway = self.options.pushgateway
        if gateway is None or not self.run.steps:
            return None
        try:
            for page in self.pages:
                group = {"run": self.labels.run}
                if page.run is None:
                    group["rank"] = str(page.ranks[0].rank)
                push_to_gateway(gateway, JOB, page.registry(), group, timeout=_PUSH_TIMEOUT_S)
        except (OSError, ValueError, HTTPException) as error:
            return f"the metrics were not pushed to {gateway}: {error}"
        return None

    def linger(self, tell: Callable[[str], None]) -> None:
        """Let the last values be read for the time that the options say; Ctrl-C ends it at once."""
        if self.discovery is None:
            return
        for_s = self.options.linger_s
        if for_s == 0 or (for_s is None and not self.discovery.was_read()):
            return
        where = self.discovery.describe()["metrics_url"]
        with suppress(KeyboardInterrupt):
            if for_s is None:
                tell(f"the last metrics stay at {where} until read once more, {PATIENCE_S:g} s at "
                     "most; Ctrl-C ends this")  # fmt: skip
                self.discovery.wait_until_read(PATIENCE_S)
            else:
                until = f"for {for_s:g} s; Ctrl-C ends this" if isfinite(for_s) else "until Ctrl-C"
                tell(f"the last metrics stay at {where} {until}")
                end = time.monotonic() + for_s
                while (left := end - time.monotonic()) > 0:
                    time.sleep(min(left, 1.0))

    def close(self) -> None:
        """Serve no more: the series of a run that ended are gone."""
        if self.discovery is not None:
            self.discovery.close()

    def _tell_where(self) -> None:
        if self.discovery is not None:
            self._changed(self.discovery.describe())
