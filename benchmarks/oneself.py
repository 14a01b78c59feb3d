"""Prediction against measurement on this machine: ``python -m benchmarks.oneself [--quick]``.

Eight plans over Ray, one thread a rank, in turns with the calibration that predicts them (see
``turns``): layer parts of ``single`` and ``krizhevsky2012`` are measured, and nothing of the runs
themselves. ``--out FOLDER`` keeps the run folders and the calibrated cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from scipy.stats import kendalltau

PLANS = (
    "single", "krizhevsky2012", "data-parallel", "one-weird-trick-gather", "pipeline-gpipe",
    "pipeline-1f1b", "pipeline-interleaved", "pipeline-zero-bubble",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where commands are run: what stands before them, and what their environment has besides."""

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


HERE = Place()


def main(arguments: Sequence[str] = ()) -> None:
    """Calibrate and run in turns, compare."""
    options = parsed(arguments, __doc__)
    turns = 4 if options.quick else 13
    with options.out as folder:
        rows = take_turns(Path(folder) / "oneself", turns, PLANS)
    print(f"\noneself: {turns - 1} counted steps of each plan, one thread a rank")
    report(rows)


def parsed(arguments: Sequence[str], text: str | None) -> argparse.Namespace:
    """``quick``, and ``out``: a folder to be entered, which is gone afterwards if none is named."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args(arguments)
    options.out = nullcontext(options.out) if options.out else tempfile.TemporaryDirectory()
    return options


def take_turns(
    folder: Path, turns: int, plans: Sequence[str], place: Place = HERE
) -> list[dict[str, Any]]:
    """Measured and predicted of every plan: what ``compare --json`` says, with every step."""
    module("benchmarks.turns", str(folder), str(turns), *plans, place=place)
    runs = [folder / name for name in plans]
    cluster = str(folder / "here.yaml")
    text = module(
        "orchestrator", "compare", *map(str, runs), "--cluster", cluster, "--json", quiet=True
    )
    rows: list[dict[str, Any]] = json.loads(text)["items"]
    for row, run in zip(rows, runs, strict=True):
        lines = (run / "steps.jsonl").read_text().splitlines()
        row["steps"] = [json.loads(line) for line in lines[1:]]  # the first one warms up
    return rows


def module(*arguments: str, place: Place = HERE, quiet: bool = False) -> str:
    """Run one of our modules; if quiet, what it printed."""
    command = [*place.prefix, sys.executable, "-m", *arguments]
    environment = {**os.environ, **place.environment}
    done = subprocess.run(
        command, stdout=subprocess.PIPE if quiet else None, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")
    return done.stdout


def report(rows: Sequence[dict[str, Any]]) -> None:
    """A line a plan; medians over the steps."""
    print("| plan | measured s | quartiles | predicted s | error | exposed s | quartiles "
          "| predicted | memory MB | predicted |")  # fmt: skip
    print("|---" * 10 + "|")
    times = []
    for row in rows:
        steps = [step["step_time_s"] for step in row["steps"]]
        low, measured, high = quantiles(steps, n=4, method="inclusive")
        predicted = row["predicted"]["step_time_s"]
        times.append((predicted, measured))
        least, exposed, most = quantiles(
            [step["exposed_communication_time_s"] for step in row["steps"]],
            n=4, method="inclusive",
        )  # fmt: skip
        held, guessed = (row[s]["peak_memory_bytes"] / 1e6 for s in ("measured", "predicted"))
        print(
            f"| {row['name']} | {measured:.3f} | {low:.2f} to {high:.2f} | {predicted:.3f} "
            f"| {predicted / measured - 1:+.1%} "
            f"| {exposed:.4f} | {least:.3f} to {most:.3f} "
            f"| {row['predicted']['exposed_communication_time_s']:.4f} "
            f"| {held:,.0f} | {guessed:,.0f} ({guessed / held - 1:+.0%}) |"
        )
    errors = [abs(predicted / measured - 1) for predicted, measured in times]
    print(
        f"mean absolute error {mean(errors):.1%}, worst {max(errors):.1%}, "
        f"Kendall's tau {kendalltau(*zip(*times, strict=True)).statistic:.2f}; "
        f"{told_apart(rows)} of {len(rows) * (len(rows) - 1) // 2} pairs of plans can be told "
        "apart by their measured quartiles"
    )


def told_apart(rows: Sequence[dict[str, Any]]) -> int:
    """How many pairs of plans have measured steps whose middle halves do not overlap."""
    spans = [
        quantiles([step["step_time_s"] for step in row["steps"]], n=4, method="inclusive")
        for row in rows
    ]
    return sum(a[2] < b[0] for a, b in product(spans, spans))


if __name__ == "__main__":
    main(sys.argv[1:])
