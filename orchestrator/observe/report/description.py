"""What a report tells, as plain data: whoever measured or simulated fills it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.observe.timeline import StepTimes
from orchestrator.program.ops import Program

Timing = Mapping[str, Any]
"""Times and bytes under their names in a summary, and ``ranks``."""


@dataclass(frozen=True)
class Step:
    """One step to be drawn.

    Args:
        title: over the timeline, such as "Measured, step 7".
        times: on a clock that starts at 0.
    """

    title: str
    program: Program
    times: StepTimes


@dataclass(frozen=True)
class OpPair:
    """One op, predicted and measured; seconds."""

    op: str
    rank: int
    kind: str
    predicted_s: float
    measured_s: float


@dataclass(frozen=True)
class RankBytes:
    """Memory of one rank: the most bytes alive during each of its ops, in posting order."""

    rank: int
    ops: Sequence[int]
    bytes: Sequence[int]


@dataclass(frozen=True)
class Fact:
    """A line of "how this was got"."""

    label: str
    text: str


@dataclass(frozen=True)
class ReportItem:
    """A plan or a run.

    Args:
        about: one sentence.
        batch: images of a step.
        error_ratio: of the predicted step time, signed; None unless both are known.
        fits: whether it fits in the cluster's memory; None without a cluster.
        steps: timelines, measured before predicted.
        pairs: ops that were predicted and measured.
        worst: rows of ``layers, what, predicted_s, measured_s``, the furthest off first.
        memory: over ``steps[-1]``.
        room_bytes: what a program may allocate on a device of the cluster, if there is one.
        facts: where its numbers come from.
        notes: what the cost model had to assume.
    """

    name: str
    about: str
    batch: int
    predicted: Timing | None
    measured: Timing | None
    error_ratio: float | None
    fits: bool | None
    steps: tuple[Step, ...]
    pairs: tuple[OpPair, ...]
    worst: tuple[Mapping[str, Any], ...]
    memory: tuple[RankBytes, ...]
    room_bytes: int | None
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Timing:
        """What is known best: measured, else predicted."""
        found = self.measured if self.measured is not None else self.predicted
        assert found is not None
        return found

    @property
    def sources(self) -> tuple[tuple[str, Timing], ...]:
        """(``measured`` or ``predicted``, timing) as far as known."""
        both = (("measured", self.measured), ("predicted", self.predicted))
        return tuple((name, timing) for name, timing in both if timing is not None)


@dataclass(frozen=True)
class Curve:
    """Simulated images a second of one item.

    Args:
        place: of the item among the report's, which gives it its colour and mark.
        x: as the sweep says, rising.
    """

    name: str
    place: int
    x: Sequence[float]
    images_per_s: Sequence[float]


@dataclass(frozen=True)
class Figure:
    """A figure of the cluster file; ``source`` is None where it is assumed."""

    key: str
    value: float
    source: str | None


@dataclass(frozen=True)
class Report:
    """All of a page.

    Args:
        verdict: one sentence.
        because: sentences.
        items: in order of rank, the best first.
        batch, bandwidth: what flips the order: over images a step, and over multiples of the
            cluster's bandwidth; empty without a cluster.
        agreement: how well all was predicted, in a sentence; "" if nothing was measured.
        facts: of the page as a whole.
        figures: of the cluster.
    """

    verdict: str
    because: tuple[str, ...]
    items: tuple[ReportItem, ...]
    batch: tuple[Curve, ...]
    bandwidth: tuple[Curve, ...]
    agreement: str
    facts: tuple[Fact, ...]
    figures: tuple[Figure, ...]
