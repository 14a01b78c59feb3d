"""Prediction against measurement on this machine: ``python -m benchmarks.oneself [--quick]``.

Calibrates (layer parts of ``single`` and ``krizhevsky2012`` only), runs eight plans over Ray, one
thread a rank, and compares each run with its prediction, step by step the same program. Prints
what was measured, noise included: the spread of the steps stands beside the error.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

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


def main(arguments: Sequence[str] = ()) -> None:
    """Calibrate, run, compare."""
    quick = "--quick" in arguments
    batch, steps = (32, 4) if quick else (64, 6)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Path(folder) / "here.yaml"
        sizes = [batch // 8, batch // 2, batch]
        orchestrator(
            "calibrate", "--out", str(cluster), "--threads", "1",
            *(word for size in sizes for word in ("--batch", str(size))),
        )  # fmt: skip
        runs = []
        for name, settings in PLANS.items():
            out = Path(folder) / name
            options = [f"global_batch_size={batch}", *settings]
            orchestrator(
                "run", "--plan", name, "--threads", "1", "--steps", str(steps), "--out", str(out),
                "--data", "synthetic", *(word for o in options for word in ("--set", o)),
            )  # fmt: skip
            runs.append(out)
        found = json.loads(
            orchestrator("compare", *map(str, runs), "--cluster", str(cluster), "--json")
        )
        report(found, {run.name: spread(run) for run in runs}, batch, steps)


def orchestrator(*arguments: str) -> str:
    """Run one command of ours; what it printed."""
    command = [sys.executable, "-m", "orchestrator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def spread(run: Path) -> float:
    """Half the distance between the quartiles of the step times, over their median."""
    rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    times = [row["step_time_s"] for row in rows[1:]]
    low, _, high = quantiles(times, n=4)
    return float((high - low) / 2 / median(times))


def report(found: dict[str, Any], spreads: dict[str, float], batch: int, steps: int) -> None:
    """The table."""
    print(f"oneself: batch {batch}, {steps} steps, the one with the median time; one thread a rank")
    print("| plan | measured s | spread | predicted s | error | exposed | memory |")
    print("|---|---|---|---|---|---|---|")
    for item in found["items"]:
        name, measured, predicted = item["name"], item["measured"], item["predicted"]
        errors = item["errors"]
        print(
            f"| {name} | {measured['step_time_s']:.3f} | {spreads[name]:.1%} "
            f"| {predicted['step_time_s']:.3f} | {item['error_ratio']:+.1%} "
            f"| {errors['exposed_communication_time_s']:+.1%} of the step "
            f"| {errors.get('peak_memory_bytes', float('nan')):+.1%} |"
        )
    print(
        f"mean absolute error {found['mean_absolute_error_ratio']:.1%}, worst "
        f"{found['worst_error_ratio']:.1%}, Kendall's tau {found['kendall_tau']:.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
