"""The Prometheus series of a run, measured or simulated: their names, labels and meaning.

    a rank's series, labels run, plan, rank, stage, source        the run's, rank and stage empty
    orchestrator_step_seconds  (histogram)                        orchestrator_steps_total
    orchestrator_compute_seconds_total{phase}                     orchestrator_images_total
    orchestrator_communication_seconds_total{op,peer}             orchestrator_loss
    orchestrator_exposed_communication_seconds_total              orchestrator_learning_rate
    orchestrator_wait_seconds_total{peer}                         orchestrator_checkpoint_seconds
    orchestrator_bubble_seconds_total                             orchestrator_restarts_total
    orchestrator_loading_seconds_total                            orchestrator_info{version,torch,
    orchestrator_other_seconds_total                                  ray,backend,device}
    orchestrator_sent_bytes_total{op,peer,layer}
    orchestrator_peak_memory_bytes

A worker's page has its rank's series and the driver's page those of the run, so nothing is there
twice and ``sum`` over ranks is right. Of every rank compute + exposed communication + wait +
bubble + loading + other = the sum of its step times; a page shows whole steps only, so this holds
at any moment. ``orchestrator_accuracy{k}`` comes with the first evaluation.

Which series there are follows from the plan alone: no label value grows with the length of a run.
Counters of a simulation hold one steady step; divide by the number of steps to compare. The run's
``orchestrator_world_size`` counts all ranks, those of folded replicas, too, which have no series.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator.observe.metrics_parts import Part
from orchestrator.program import Program

LABELS = ("run", "plan", "rank", "stage", "source")
# Steps between a millisecond and eight minutes; three a decade.
STEP_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
    200.0, 500.0,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A counter of ranks: the field of :class:`Part` that it adds up, and how it is told.

    Args:
        labels: beside those that all series have.
    """

    part: str
    name: str
    help: str
    labels: tuple[str, ...] = ()


RANK_COUNTERS = (
    Family("compute", "orchestrator_compute_seconds_total", "A computation of the rank ran.",
           ("phase",)),
    Family("communication", "orchestrator_communication_seconds_total",
           "A transfer of the rank was in progress; several at once share the time equally.",
           ("op", "peer")),
    Family("exposed", "orchestrator_exposed_communication_seconds_total",
           "A transfer was in progress and the rank neither computed nor waited for data."),
    Family("wait", "orchestrator_wait_seconds_total",
           "The rank was ready and this peer of its pipeline stage was late.", ("peer",)),
    Family("bubble", "orchestrator_bubble_seconds_total",
           "The rank was idle because the pipeline had nothing for it."),
    Family("loading", "orchestrator_loading_seconds_total",
           "The rank waited for images or labels, or for their copy to the device."),
    Family("other", "orchestrator_other_seconds_total",
           "The rest of the step: the host's own time between its ops."),
    Family("sent", "orchestrator_sent_bytes_total",
           "Bytes sent: of messages as the rank counted them, of a collective the ring equivalent "
           "of the buffer that it was handed.",
           ("op", "peer", "layer")),
)  # fmt: skip


@dataclass(frozen=True)
class RunLabels:
    """What all series of a run have in common.

    Args:
        source: ``measured`` or ``simulated``.
    """

    run: str
    plan: str
    source: str


@dataclass(frozen=True)
class Info:
    """The labels of ``orchestrator_info``; empty where there is none."""

    version: str
    torch: str
    ray: str
    backend: str
    device: str


class RankTotals:
    """What one rank has done so far.

    Args:
        stage: the pipeline stage it is in; all of them, with commas, if it is in several.
        zero: its series, all at 0.
        peak_memory: tells its peak memory in bytes, 0 for not known; asked when the page is read.
    """

    def __init__(self, stage: str, zero: Part, peak_memory: Callable[[], int] = lambda: 0) -> None:
        self.rank, self.stage, self.peak_memory = zero.rank, stage, peak_memory
        self._lock = threading.Lock()
        self._counts = {family.part: Counter[tuple[str, ...]]() for family in RANK_COUNTERS}
        self._steps = [0] * (len(STEP_BUCKETS_S) + 1)
        self._step_s = 0.0
        self.add(zero)

    def add(self, part: Part) -> None:
        """Count a step."""
        with self._lock:
            for name, totals in self._counts.items():
                for key, value in getattr(part, name).items():
                    # A difference of times may be -1e-17, which a counter must not be.
                    totals[key] += max(0, value)
            if part.step_s is not None:
                self._steps[bisect_left(STEP_BUCKETS_S, part.step_s)] += 1
                self._step_s += part.step_s

    def read(self) -> Reading:
        """All totals after a whole number of steps."""
        with self._lock:
            counts = {name: dict(totals) for name, totals in self._counts.items()}
            return Reading(counts, tuple(self._steps), self._step_s)


@dataclass(frozen=True)
class Reading:
    """A rank's totals at one moment.

    Args:
        counts: by field of :class:`Part` and label values.
        steps: by bucket of step time, the last one without an end.
    """

    counts: Mapping[str, Mapping[tuple[str, ...], float]]
    steps: tuple[int, ...]
    step_s: float


@dataclass
class RunTotals:
    """What the run as a whole has done so far; None for what is not known (yet).

    Args:
        restarts: how often the run has gone on in its folder by now; the launch restarts nothing.
        checkpoint_s: how long the last checkpoint took, from its first piece to the whole file.
        world_size: how many ranks there are, those of folded replicas included.
    """

    steps: int = 0
    images: int = 0
    restarts: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    checkpoint_s: float | None = None
    info: Info | None = None
    world_size: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_step(self, images: int, loss: float | None, learning_rate: float | None) -> None:
        """Count a step that has ended on all ranks."""
        with self.lock:
            self.steps += 1
            self.images += images
            self.loss, self.learning_rate = loss, learning_rate


class Page(Collector):
    """The series of some ranks, of the run, or both, for ``prometheus_client``.

    Args:
        ranks: any number, in order.
        run: None to leave the run's own series out.
    """

    def __init__(
        self, labels: RunLabels, ranks: Sequence[RankTotals], run: RunTotals | None = None
    ) -> None:
        self.labels, self.ranks, self.run = labels, ranks, run

    def registry(self) -> CollectorRegistry:
        """A registry of this page alone."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """Every family, once."""
        if self.run is not None:
            yield from self._of_the_run(self.run)
        if self.ranks:
            yield from self._of_the_ranks()

    def _of_the_ranks(self) -> Iterator[Metric]:
        rows = [(self._values(r.rank, r.stage), r.read()) for r in self.ranks]
        histogram = HistogramMetricFamily(
            "orchestrator_step_seconds", "Time of a training step of the rank.", labels=LABELS
        )
        for values, reading in rows:
            histogram.add_metric(values, list(_cumulative(reading.steps)), reading.step_s)
        yield histogram
        for family in RANK_COUNTERS:
            counter = CounterMetricFamily(
                family.name, family.help, labels=(*LABELS, *family.labels)
            )
            for values, reading in rows:
                for key, total in reading.counts[family.part].items():
                    counter.add_metric([*values, *key], total)
            yield counter
        memory = GaugeMetricFamily(
            "orchestrator_peak_memory_bytes", "Most memory that the rank needed.", labels=LABELS
        )
        for totals, (values, _) in zip(self.ranks, rows, strict=True):
            if peak := totals.peak_memory():
                memory.add_metric(values, peak)
        yield memory

    def _of_the_run(self, run: RunTotals) -> Iterator[Metric]:
        values = self._values("", "")
        with run.lock:
            counters = (
                ("orchestrator_steps_total", "Training steps that all ranks ended.", run.steps),
                ("orchestrator_images_total", "Images of those steps.", run.images),
                ("orchestrator_restarts_total", "How often the run went on in its folder.",
                 run.restarts),
            )  # fmt: skip
            gauges = (
                ("orchestrator_loss", "Mean loss over the last step's images.", run.loss),
                ("orchestrator_learning_rate", "Rate of the last step's update.",
                 run.learning_rate),
                ("orchestrator_checkpoint_seconds", "How long the last checkpoint took to write.",
                 run.checkpoint_s),
                ("orchestrator_world_size", "Ranks in all; some may have no series.",
                 run.world_size),
            )  # fmt: skip
            info = run.info
        for name, text, total in counters:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            counter.add_metric(values, total)
            yield counter
        for name, text, value in gauges:
            if value is not None:
                gauge = GaugeMetricFamily(name, text, labels=LABELS)
                gauge.add_metric(values, value)
                yield gauge
        if info is not None:
            about = asdict(info)
            text = "Always 1; what the run runs on."
            gauge = GaugeMetricFamily("orchestrator_info", text, labels=(*LABELS, *about))
            gauge.add_metric([*values, *about.values()], 1)
            yield gauge

    def _values(self, rank: int | str, stage: str) -> list[str]:
        return [self.labels.run, self.labels.plan, str(rank), stage, self.labels.source]


def _cumulative(steps: Iterable[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*STEP_BUCKETS_S, float("inf")), steps, strict=True):
        total += count
        yield "+Inf" if bound == float("inf") else str(bound), total


def stage_of(program: Program, rank: int) -> str:
    """The pipeline stages that a rank is in, such as ``0`` or ``0,2``."""
    within = rank % program.ranks_per_replica
    return ",".join(str(n) for n, ranks in enumerate(program.stages) if within in ranks)
