"""Prediction against measurement on this machine: ``python -m benchmarks.oneself [--quick]``.

Rounds of the same: calibrate (layer parts of ``single`` and ``krizhevsky2012`` only), then run
eight plans over Ray, one thread a rank. A shared machine changes its speed from minute to minute,
so rounds alternate; told are the medians over all rounds, and beside them how far single steps
lie apart. Nothing of the eight runs goes into their prediction.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import kendalltau

PLANS: dict[str, tuple[str, ...]] = {
    "single": (),
    "krizhevsky2012": (),
    "data-parallel": (),
    "one-weird-trick-gather": ("model={name: alexnet2012}",),
    "pipeline-gpipe": (),
    "pipeline-1f1b": (),
    "pipeline-interleaved": (),
    "pipeline-zero-bubble": (),
}
BATCH = 32


@dataclass(frozen=True)
class Place:
    """Where commands are run: what stands before them, and what their environment has besides."""

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


HERE = Place()


def main(arguments: Sequence[str] = ()) -> None:
    """Calibrate, run, compare."""
    rounds, steps = (1, 5) if "--quick" in arguments else (3, 7)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            found.append(one_round(Path(folder) / str(number), list(PLANS.items()), steps, number))
            print(f"round {number + 1} of {rounds}: {told(found[-1])}", flush=True)
    print(
        f"\noneself: batch {BATCH}, {rounds} rounds of {steps - 1} counted steps, one thread a rank"
    )
    report(found)


def one_round(
    folder: Path,
    plans: list[tuple[str, tuple[str, ...]]],
    steps: int,
    number: int = 0,
    place: Place = HERE,
) -> dict[str, Any]:
    """Calibrate once, run every plan once; what ``compare --json`` says, with the step times."""
    folder.mkdir()
    cluster = folder / "here.yaml"
    sizes = [word for size in (BATCH // 8, BATCH // 2, BATCH) for word in ("--batch", str(size))]
    orchestrator(
        "calibrate", "--out", str(cluster), "--threads", "1", "--seconds", "50", *sizes,
        place=place,
    )  # fmt: skip
    turn = number % len(plans)
    for name, settings in plans[turn:] + plans[:turn]:
        options = [f"global_batch_size={BATCH}", *settings]
        orchestrator(
            "run", "--plan", name, "--threads", "1", "--steps", str(steps),
            "--out", str(folder / name), "--data", "synthetic",
            *(word for o in options for word in ("--set", o)),
            place=place,
        )  # fmt: skip
    runs = [folder / name for name, _ in plans]
    text = orchestrator("compare", *map(str, runs), "--cluster", str(cluster), "--json")
    compared: dict[str, Any] = json.loads(text)
    for item, run in zip(compared["items"], runs, strict=True):
        rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        item["step_times"] = [row["step_time_s"] for row in rows[1:]]
    return compared


def orchestrator(*arguments: str, place: Place = HERE) -> str:
    """Run one command of ours; what it printed."""
    command = [*place.prefix, sys.executable, "-m", "orchestrator", *arguments]
    environment = {**os.environ, **place.environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def told(compared: dict[str, Any]) -> str:
    """One round in a line."""
    rows = (f"{item['name']} {item['error_ratio']:+.0%}" for item in compared["items"])
    return ", ".join(rows)


def report(rounds: Sequence[dict[str, Any]]) -> None:
    """The table: medians over all rounds."""
    items: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for compared in rounds:
        for item in compared["items"]:
            items[item["name"]].append(item)
    print("| plan | measured s | single steps | predicted s | error | exposed s | predicted "
          "| memory MB | predicted |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    errors, pairs = [], []
    for name, found in items.items():
        steps = sorted(t for item in found for t in item["step_times"])
        measured = median(steps)
        predicted = median(item["predicted"]["step_time_s"] for item in found)
        errors.append(predicted / measured - 1)
        pairs.append((predicted, measured))
        exposed = [middle(found, source, "exposed_communication_time_s") for source in SOURCES]
        memory = [middle(found, source, "peak_memory_bytes") / 1e6 for source in SOURCES]
        print(
            f"| {name} | {measured:.3f} | {steps[0]:.2f} to {steps[-1]:.2f} | {predicted:.3f} "
            f"| {errors[-1]:+.1%} | {exposed[0]:.3f} | {exposed[1]:.3f} "
            f"| {memory[0]:,.0f} | {memory[1]:,.0f} ({memory[1] / memory[0] - 1:+.0%}) |"
        )
    print(
        f"mean absolute error {mean(map(abs, errors)):.1%}, worst {max(map(abs, errors)):.1%}, "
        f"Kendall's tau {kendalltau(*zip(*pairs, strict=True)).statistic:.2f}"
    )


SOURCES = ("measured", "predicted")


def middle(items: Sequence[dict[str, Any]], source: str, quantity: str) -> float:
    """Median over the rounds."""
    return float(median(item[source][quantity] for item in items))


if __name__ == "__main__":
    main(sys.argv[1:])
