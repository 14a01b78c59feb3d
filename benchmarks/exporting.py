"""What exporting metrics costs: ``python -m benchmarks.exporting [--quick]``.

The same two ranks take each step once with exporting and once without, in turns. Both times they
report it to a driver, which joins and accounts it as in any run, and they go on when it answers, so
that its work falls into the step that it belongs to. With exporting it also splits the step into
the ranks' parts, counts them and hands them back, the workers count theirs, and every page is read
once a second.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

import torch

from benchmarks.our_side import OurRank, Setting
from benchmarks.pairing import Row, Side, compare, table
from benchmarks.peers import FULL, QUICK, Size
from benchmarks.workers import Job, run_jobs
from orchestrator.execute.worker_context import DriverLine, Event, WorkerLines, WorkerUp
from orchestrator.observe import timeline
from orchestrator.observe.accounting import Accountant
from orchestrator.observe.metrics import Page, RankTotals, RunLabels, stage_of
from orchestrator.observe.metrics_options import LOOPBACK, MetricsOptions
from orchestrator.observe.metrics_parts import Part, Parts
from orchestrator.observe.metrics_run import RunMetrics
from orchestrator.observe.metrics_server import METRICS, PageServer, application
from orchestrator.plan import load_plan
from orchestrator.program import compile_plan
from orchestrator.program.resolve import model_of
from orchestrator.train.worker import StepReport, drive, ended, report

PLAN = "krizhevsky2012"
RANKS = 2
READ_EVERY_S = 1.0
LABELS = RunLabels("benchmark", PLAN, "measured")
TIMES_AS_MANY = 3  # rounds as against other systems: a smaller difference is looked for
_POLL_S = 0.02


@dataclass(frozen=True)
class Meeting:
    """How large the network is, and where the workers find the driver."""

    size: Size
    address: tuple[str, int]
    key: bytes


class ReportingRank(OurRank):
    """A rank that reports every step and goes on when the driver has dealt with it."""

    def __init__(
        self, setting: Setting, line: DriverLine, answers: queue.SimpleQueue[None], *, export: bool
    ) -> None:
        super().__init__(setting, name="exporting" if export else "not exporting")
        self.line, self.answers, self.export = line, answers, export

    def step(self, number: int) -> float:
        if self.export:
            self.line.emit("begin", None)
        drive(self.interpreter, number)
        found = report(ended(self.interpreter))
        self.line.emit("step", (self.export, found))
        self.answers.get()
        return found.loss


def compare_exporting(rank: int, meeting: Meeting) -> list[Row]:
    """A step with and without; every rank calls this."""
    setting = Setting(load_plan(PLAN, meeting.size.network), rank)
    program = setting.program
    totals = RankTotals(stage_of(program, rank), Parts(program).zero(rank))
    page = application(Page(LABELS, [totals]))
    answers: queue.SimpleQueue[None] = queue.SimpleQueue()

    def hear(part: Part | None) -> None:
        if part is not None:
            totals.add(part)
        answers.put(None)

    line = DriverLine(meeting.address, meeting.key, WorkerUp(rank, rank, LOOPBACK, "cpu", 0))
    line.listen(Part, hear)
    line.listen(type(None), hear)
    with PageServer(LOOPBACK, 0, {METRICS: page}.get) as server:
        line.emit("metrics", server.url + METRICS)
        sides: list[Side] = [
            ReportingRank(setting, line, answers, export=export) for export in (True, False)
        ]
        rounds = TIMES_AS_MANY * meeting.size.rounds
        return compare(f"a step of {PLAN}", sides, rounds)


class Driver:
    """Does with the workers' reports what a run's driver does; reads the pages as Prometheus does.

    Args:
        lines: to the workers.
        size: of the network.
    """

    def __init__(self, lines: WorkerLines, size: Size) -> None:
        plan = load_plan(PLAN, size.network)
        self.lines = lines
        self.program = compile_plan(plan, model_of(plan))
        self.accountant = Accountant(self.program)
        self.metrics = RunMetrics(self.program, LABELS, MetricsOptions())
        self.reports: defaultdict[bool, dict[int, StepReport]] = defaultdict(dict)
        self.exporting = threading.Event()  # a step with exporting goes on
        self.ended = False
        self.reads = 0
        self.threads = [threading.Thread(target=run) for run in (self._serve, self._read)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.ended = True
        for thread in self.threads:
            thread.join()
        self.metrics.close()

    def _serve(self) -> None:
        while not self.ended:
            match self.lines.next(_POLL_S):
                case Event(rank, "metrics", str(url)):
                    self.metrics.register(rank, url)
                case Event(_, "begin"):
                    self.exporting.set()
                case Event(rank, "step", (bool(export), StepReport() as found)):
                    self.reports[export][rank] = found
                    if len(self.reports[export]) == RANKS:
                        self._answer(export, self.reports.pop(export))

    def _answer(self, export: bool, reports: dict[int, StepReport]) -> None:
        times = timeline.join(self.program, [r.times for r in reports.values()], {})
        account = self.accountant.account(times)
        told: list[Part | None] = [None] * RANKS
        if export:
            sent = {rank: found.sent for rank, found in reports.items()}
            told = [*self.metrics.add_step(times, account, sent)]
            loss = sum(found.loss for found in reports.values())
            self.metrics.run.add_step(self.program.global_batch, loss, None)
            self.exporting.clear()
        for rank, part in enumerate(told):
            self.lines.tell(rank, part)

    def _read(self) -> None:
        """Once for every second that steps with exporting take."""
        left = READ_EVERY_S
        before = time.monotonic()
        while not self.ended:
            busy = self.exporting.wait(_POLL_S)
            now = time.monotonic()
            left -= now - before if busy else 0.0
            before = now
            if left <= 0:
                left = READ_EVERY_S
                with suppress(OSError):  # the workers have just ended
                    self._read_all()
                before = time.monotonic()
            elif busy:
                time.sleep(_POLL_S)

    def _read_all(self) -> None:
        assert self.metrics.discovery is not None
        where = self.metrics.discovery.describe()
        for url in (where["metrics_url"], *(target["url"] for target in where["targets"])):
            with urllib.request.urlopen(url, timeout=10) as answer:
                answer.read()
        self.reads += 1


def run(size: Size) -> tuple[list[Row], int]:
    """The comparison's row, and how often all pages were read meanwhile."""
    lines = WorkerLines(LOOPBACK)
    driver = Driver(lines, size)
    try:
        meeting = Meeting(size, lines.address, lines.key)
        (outcome,) = run_jobs([Job("exporting", compare_exporting, meeting)], RANKS)
    finally:
        driver.end()
        lines.close()
    if outcome.reason:
        return [Row(outcome.name, "", "", reason=outcome.reason)], driver.reads
    assert isinstance(outcome.result, list)
    return outcome.result, driver.reads


def main(arguments: list[str]) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exporting", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small network, seconds")
    size = QUICK if parser.parse_args(arguments).quick else FULL
    print(f"exporting: torch {torch.__version__}, 1 thread a rank, gloo; {', '.join(size.network)}")
    rows, reads = run(size)
    print(table(rows))
    print(f"all pages were read {reads} times")


if __name__ == "__main__":
    main(sys.argv[1:])
