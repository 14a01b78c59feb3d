"""Timing two ways of doing the same, step by step in turn, and what is made of the times.

    round 0   ours theirs      a barrier before every step; a step takes as long as its slowest rank
    round 1   theirs ours      so neither always has the other's cache, or the machine's better half
    ...

What disturbs the machine for longer than a step disturbs both sides alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol

import torch
import torch.distributed as dist

# The third loss is the first to feel the momentum.
CHECK_STEPS = 3
LOSS_TOLERANCE = 1e-4


class Side(Protocol):
    """One way to train, on one rank."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def step(self, number: int) -> float:
        """Run a whole training step; returns this rank's part of the mean loss."""


@dataclass(frozen=True)
class Times:
    """One side's steps.

    Args:
        wall: seconds of each step, of its slowest rank.
        cpu: processor seconds of each step, all ranks and threads.
    """

    wall: tuple[float, ...] = ()
    cpu: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """One comparison's outcome.

    Args:
        what: what is compared.
        ours, theirs: names of the two sides.
        our_times, their_times: their steps, pair by pair.
        loss_difference: largest relative difference of the losses over the first steps.
        reason: why there is no figure, if there is none.
    """

    what: str
    ours: str
    theirs: str
    our_times: Times = Times()
    their_times: Times = Times()
    loss_difference: float = 0.0
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Median step of ours over median step of theirs; below 1, ours is faster."""
        return median(self.our_times.wall) / median(self.their_times.wall)

    @property
    def cpu_ratio(self) -> float:
        """The same of processor time, which other work on the machine disturbs less."""
        return median(self.our_times.cpu) / median(self.their_times.cpu)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the ratios pair by pair."""
        pairs = zip(self.our_times.wall, self.their_times.wall, strict=True)
        first, _, third = quantiles([a / b for a, b in pairs], n=4, method="inclusive")
        return first, third


def check(sides: Sequence[Side]) -> float:
    """Train the first steps on every side; returns the largest relative difference of the losses.

    Some steps, so that the later losses also tell whether the updates are the same.

    Raises:
        RuntimeError: the sides do not train the same network.
    """
    worst = 0.0
    for number in range(CHECK_STEPS):
        losses = torch.tensor([side.step(number) for side in sides], dtype=torch.float64)
        dist.all_reduce(losses)
        ours, *others = losses.tolist()
        for other, side in zip(others, sides[1:], strict=True):
            difference = abs(ours - other) / abs(other)
            worst = max(worst, difference)
            if not difference <= LOSS_TOLERANCE:
                raise RuntimeError(
                    f"step {number}: the loss is {ours:.6f} with {sides[0].name} and {other:.6f} "
                    f"with {side.name}; they do not train the same network"
                )
    return worst


def race(sides: Sequence[Side], rounds: int) -> list[Times]:
    """Step times by side; every rank must call this."""
    wall: list[list[float]] = [[] for _ in sides]
    cpu: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for i in order:
            dist.barrier()
            start, cpu_start = time.perf_counter(), time.process_time()
            sides[i].step(CHECK_STEPS + number)
            wall[i].append(time.perf_counter() - start)
            cpu[i].append(time.process_time() - cpu_start)
    slowest, total = (torch.tensor(times, dtype=torch.float64) for times in (wall, cpu))
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    dist.all_reduce(total)
    rows = zip(slowest.tolist(), total.tolist(), strict=True)
    return [Times(tuple(walls), tuple(cpus)) for walls, cpus in rows]


def compare(what: str, sides: Sequence[Side], rounds: int) -> list[Row]:
    """Check, race, and set the first side against each of the others."""
    difference = check(sides)
    ours, *others = race(sides, rounds)
    return [
        Row(what, sides[0].name, side.name, ours, times, difference)
        for side, times in zip(sides[1:], others, strict=True)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    head = ["what", "ours", "theirs", "ours ms", "theirs ms", "ratio"]
    head += ["IQR", "CPU ratio", "steps", "loss"]
    lines = [head]
    for row in rows:
        names = (row.what, row.ours, row.theirs)
        if row.reason:
            lines.append([*names, *["-"] * 7])
            continue
        first, third = row.quartiles
        lines.append(
            [
                *names,
                f"{median(row.our_times.wall) * 1e3:.1f}",
                f"{median(row.their_times.wall) * 1e3:.1f}",
                f"{row.ratio:.3f}",
                f"{first:.3f}-{third:.3f}",
                f"{row.cpu_ratio:.3f}",
                str(len(row.our_times.wall)),
                f"{row.loss_difference:.0e}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text += [f"{row.what}: no figure: {row.reason}" for row in rows if row.reason]
    return "\n".join(text)
