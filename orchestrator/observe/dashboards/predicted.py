"""How true the simulator is."""

from __future__ import annotations

from orchestrator.observe.dashboards.board import Board, Variable
from orchestrator.observe.dashboards.panels import (
    RATIO,
    SECONDS,
    Panel,
    Query,
    bars,
    stat,
    table,
    timeseries,
)
from orchestrator.observe.dashboards.queries import (
    ABOUT,
    PEAK_MEMORY,
    PLAN,
    SENT,
    STEPS,
    images,
    part,
    per_step,
    step,
)


def board() -> Board:
    """The dashboard."""
    m = 'plan=~"$plan", run="$run", source="measured"'
    p = 'plan=~"$plan", run="$prediction", source="simulated"'
    per_rank = "avg by (rank) ({})".format

    def error(predicted: str, measured: str) -> str:
        return f"{predicted} / {measured} - 1"

    def both(title: str, name: str) -> Panel:
        return timeseries(
            title, SECONDS, f"Seconds a step, mean over the ranks. {ABOUT[name]} The two far "
            "apart: the simulator is wrong about this part.",
            Query(f"avg ({part(name, m)})", "measured"),
            Query(f"avg ({part(name, p)})", "predicted"),
            width=8,
        )  # fmt: skip

    steps = error(f"avg ({step(p)})", f"avg ({step(m)})")
    sent = error(*(f"sum ({per_step(SENT, 'rank', run)})" for run in (p, m)))
    memory = error(*(f"max ({PEAK_MEMORY}{{{run}}})" for run in (p, m)))
    return Board(
        "predicted-and-measured",
        "Predicted and measured",
        "The same quantity from the simulator and from the workers, with the prediction's error.",
        [
            PLAN,
            Variable("run", "Measured run", STEPS + '{plan=~"$plan", source="measured"}'),
            Variable(
                "prediction", "Simulated run", STEPS + '{plan=~"$plan", source="simulated"}',
                of="run",
            ),
        ],
        [
            stat(
                "Error of the step time", RATIO, "Predicted over measured, less 1. Below 0: the "
                "run is slower than predicted. Far from 0: calibrate again, on this machine.",
                Query(steps), width=6,
            ),
            stat(
                "Error of images a second", RATIO, "Predicted over measured, less 1. Above 0: the "
                "run is slower than predicted.",
                Query(f"sum ({images(p)}) / sum ({images(m)}) - 1"), width=6,
            ),
            stat(
                "Error of bytes sent", RATIO, "Predicted over measured, less 1. Above 0 or below "
                "it: a fault, or two different plans, for bytes are known exactly.",
                Query(sent), width=6,
            ),
            stat(
                "Error of peak memory", RATIO, "Predicted over measured, less 1. Below 0: a plan "
                "that is said to fit may not.",
                Query(memory), width=6,
            ),
            timeseries(
                "Step time", SECONDS, "Mean over the ranks. The two far apart: calibrate again, on "
                "this machine.",
                Query(f"avg ({step(m)})", "measured"),
                Query(f"avg ({step(p)})", "predicted"),
                width=8,
            ),
            both("Computation", "compute"),
            both("Exposed communication", "exposed"),
            both("Wait", "wait"),
            both("Bubble", "bubble"),
            both("Other", "other"),
            table(
                "Rank by rank", SECONDS, "Step and computation of each rank. High error on one "
                "rank alone: its device is not as described; on all: the costs are not.",
                ["rank"],
                Query(per_rank(step(m)), "step, measured"),
                Query(per_rank(step(p)), "step, predicted"),
                Query(error(per_rank(step(p)), per_rank(step(m))), "step, error", unit=RATIO),
                Query(per_rank(part("compute", m)), "computation, measured"),
                Query(per_rank(part("compute", p)), "computation, predicted"),
                Query(
                    error(per_rank(part("compute", p)), per_rank(part("compute", m))),
                    "computation, error", unit=RATIO,
                ),
                width=16,
            ),
            bars(
                "Where the error comes from", RATIO, "Predicted less measured seconds of each "
                "part, as a share of the measured step. Below 0: the simulator thinks it too "
                "short.",
                Query(
                    f"(avg by (part) (orchestrator:part_seconds:mean{{{p}}})"
                    f" - avg by (part) (orchestrator:part_seconds:mean{{{m}}}))"
                    f" / on () group_left () avg ({step(m)})",
                    "{{part}}",
                ),
                width=8, signed=True,
            ),
        ],
    )  # fmt: skip
